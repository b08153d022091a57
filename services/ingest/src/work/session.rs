//! The time of one leader: the intake in memory, what it hears of jobs, and the releases that follow. A failed call costs
//! one round, not the session: what could not be done is kept and tried again at the next count.

use std::collections::BTreeSet;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use medfleet_core::{JobKey, PoolName, Stage};
use medfleet_proto::work::v1::JobEvent;
use medfleet_queue::{IntakeEntry, QueueError};
use medfleet_runtime::exit::chain;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Dispatcher, Outcome};
use crate::convert;
use crate::unit::{Held, Index, LaneKey, Pauses, Place};

/// Events that may wait for the dispatcher; beyond that they are dropped, being hints.
const EVENTS_MAX: usize = 1024;
/// Jobs that are ended, and intake messages that are removed, before releases go on.
const AT_ONCE_MAX: usize = 1024;
/// Intake messages taken at once before anything is released.
const INTAKE_BATCH: usize = 256;

/// What a session hears.
pub(super) enum Step {
    /// A unit that waits, or one that cannot be read; `None` when the connection is closed.
    Waiting(Option<Result<IntakeEntry, QueueError>>),
    /// A job moved.
    Moved(JobKey, JobEvent),
    /// It is time to look whether a full pool has room.
    LookAgain,
}

/// The time of one leader.
pub(super) struct Session<'a> {
    dispatcher: &'a Dispatcher,
    index: Index,
    intake: BoxStream<'static, Result<IntakeEntry, QueueError>>,
    events: mpsc::Receiver<(JobKey, JobEvent)>,
    /// Intake messages whose unit is out but which could not be removed.
    leftovers: BTreeSet<Place>,
    /// When to count the full pools again, because something ended there.
    recount_at: Option<Instant>,
}

impl<'a> Session<'a> {
    pub(super) async fn begin(dispatcher: &'a Dispatcher) -> Result<Self, QueueError> {
        let events = dispatcher.hub.observe(EVENTS_MAX);
        let mut intakes = Vec::with_capacity(Stage::ALL.len());
        for stage in Stage::ALL {
            intakes.push(dispatcher.queue.intake(*stage).await?);
        }
        let mut session = Self {
            dispatcher,
            index: Index::new(dispatcher.rules.clone()),
            intake: stream::select_all(intakes).boxed(),
            events,
            leftovers: BTreeSet::new(),
            recount_at: None,
        };
        // Not knowing what is held back, nothing is released.
        let pauses = dispatcher.queue.pauses().await?;
        session.index.set_pauses(Pauses::of(&pauses));
        session.count_slots();
        session.recount(lanes(&dispatcher.pools)).await;
        Ok(session)
    }

    /// Takes how many units the workers that are there take at a time.
    fn count_slots(&mut self) {
        let crews = self
            .dispatcher
            .roster
            .crews(&self.dispatcher.pools, Instant::now());
        for (lane, crew) in crews {
            self.index.set_slots(&lane, crew.slots);
        }
    }

    /// The next thing heard. Nothing is lost when it is dropped half-way.
    pub(super) async fn next(&mut self) -> Step {
        let recount_at = self.recount_at;
        let look_again = async {
            match recount_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            entry = self.intake.next() => Step::Waiting(entry),
            Some((key, event)) = self.events.recv() => Step::Moved(key, event),
            () = look_again => Step::LookAgain,
        }
    }

    /// Takes what was heard.
    ///
    /// # Errors
    /// [`QueueError::Closed`] when the intake has ended.
    pub(super) async fn take(&mut self, step: Step) -> Result<(), QueueError> {
        match step {
            Step::Waiting(entry) => self.take_intake(entry)?,
            Step::Moved(key, event) => self.take_event(&key, &event).await,
            Step::LookAgain => self.recount(self.index.full()).await,
        }
        Ok(())
    }

    /// Takes what has arrived, the first entry and those right behind it.
    fn take_intake(
        &mut self,
        first: Option<Result<IntakeEntry, QueueError>>,
    ) -> Result<(), QueueError> {
        let mut next = first;
        for _ in 0..INTAKE_BATCH {
            match next {
                Some(Ok(entry)) => self.index.insert(Held::from(entry)),
                Some(Err(error)) => {
                    tracing::error!(error = chain(&error), "an intake message is skipped");
                }
                None => return Err(QueueError::Closed),
            }
            match self.intake.next().now_or_never() {
                Some(entry) => next = entry,
                None => break,
            }
        }
        Ok(())
    }

    /// A job moved: something may have ended, so that a full pool has room again.
    async fn take_event(&mut self, key: &JobKey, event: &JobEvent) {
        if self.recount_at.is_none() && !self.index.full().is_empty() {
            // The worker acknowledges right after its event: by then the unit no longer counts.
            self.recount_at = Some(Instant::now() + self.dispatcher.config.recount_least.get());
        }
        if convert::is_final(event) {
            self.forget(key, event.epoch).await;
        }
    }

    /// Removes what waits of a job that has ended in this epoch.
    async fn forget(&mut self, key: &JobKey, epoch: u32) {
        for place in self.index.remove_job(key, epoch) {
            self.remove(place).await;
        }
    }

    /// Removes an intake message, at the next count if not now.
    async fn remove(&mut self, place: Place) {
        let queue = &self.dispatcher.queue;
        if let Err(error) = queue.remove_intake(place.stage, place.sequence).await {
            tracing::debug!(error = chain(&error), "an intake message stays for now");
            self.leftovers.insert(place);
        }
    }

    /// Performs every release that the index decides.
    pub(super) async fn release(&mut self) {
        loop {
            let now = self.dispatcher.clock.now();
            if self.dispatcher.rules.in_flight_max.is_any() {
                self.index.set_open_jobs(self.dispatcher.open.counts());
            }
            let batch = self.index.take(self.dispatcher.config.releases_max, now);
            if batch.is_empty() {
                return;
            }
            let at_once = batch.len();
            let dispatcher = self.dispatcher;
            let releases = stream::iter(batch).map(|held| dispatcher.release_unit(held));
            let outcomes: Vec<_> = releases.buffer_unordered(at_once).collect().await;
            for outcome in outcomes {
                match outcome {
                    Outcome::Released { leftover } => self.leftovers.extend(leftover),
                    Outcome::Dropped(held) => {
                        self.index.uncount(&held);
                        self.leftovers.insert(held.place());
                    }
                    Outcome::Failed(held, error) => {
                        tracing::warn!(error = chain(&error), stage = %held.unit.stage, "a unit could not be released");
                        self.index.put_back(held);
                    }
                }
            }
        }
    }

    /// Counts all pools and their slots, looks what is held back, tries again what failed, and shows the backlog.
    pub(super) async fn recount_all(&mut self) {
        self.count_slots();
        match self.dispatcher.queue.pauses().await {
            Ok(pauses) => self.index.set_pauses(Pauses::of(&pauses)),
            // What was held back stays so.
            Err(error) => {
                tracing::warn!(error = chain(&error), "the pauses could not be read");
            }
        }
        self.recount(self.index.lanes()).await;
        self.remove_leftovers().await;
        self.dispatcher.figures.show_backlog(&self.index.backlog());
    }

    /// Tries again to remove intake messages, some at a time: releases wait meanwhile.
    async fn remove_leftovers(&mut self) {
        let some: Vec<Place> = self.leftovers.iter().take(AT_ONCE_MAX).copied().collect();
        let queue = &self.dispatcher.queue;
        let removals = stream::iter(some).map(async |place| {
            let removed = queue.remove_intake(place.stage, place.sequence).await;
            (place, removed)
        });
        let removals = removals.buffer_unordered(self.dispatcher.config.releases_max);
        for (place, removed) in removals.collect::<Vec<_>>().await {
            match removed {
                Ok(()) => {
                    self.leftovers.remove(&place);
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "an intake message stays for now");
                }
            }
        }
    }

    async fn recount(&mut self, lanes: Vec<LaneKey>) {
        for lane in lanes {
            match self.dispatcher.queue.outstanding(lane.0, &lane.1).await {
                Ok(outstanding) => self.index.recount(&lane, &outstanding),
                // Its units wait until the operator names the pool again, or they expire.
                Err(error @ QueueError::UnknownPool { .. }) => {
                    tracing::debug!(
                        error = chain(&error),
                        "units wait for a pool that is not configured"
                    );
                }
                // The old count stands: nothing is released beyond it.
                Err(error) => {
                    tracing::warn!(error = chain(&error), "released units could not be counted");
                    break;
                }
            }
        }
        self.recount_at = None;
    }

    /// Ends jobs whose time is over, wherever they stand, some at a time: releases wait meanwhile.
    pub(super) async fn expire(&mut self) {
        let dispatcher = self.dispatcher;
        let now = dispatcher.clock.now();
        let due = dispatcher.open.due(now).into_iter().take(AT_ONCE_MAX);
        let expiries = stream::iter(due).map(async |(key, epoch)| {
            let expired = dispatcher.expire_job(&key, epoch, now).await;
            (key, epoch, expired)
        });
        let expiries = expiries.buffer_unordered(dispatcher.config.releases_max);
        for (key, epoch, expired) in expiries.collect::<Vec<_>>().await {
            match expired {
                Ok(()) => {
                    dispatcher.open.end(&key, epoch);
                    let places = self.index.remove_job(&key, epoch);
                    self.leftovers.extend(places);
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "jobs past their time wait for the queue"
                    );
                }
            }
        }
    }
}

/// Every (stage, pool).
fn lanes(pools: &[PoolName]) -> Vec<LaneKey> {
    Stage::ALL
        .iter()
        .flat_map(|stage| pools.iter().map(|pool| (*stage, pool.clone())))
        .collect()
}
