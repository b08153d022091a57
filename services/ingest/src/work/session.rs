//! The time of one leader: the intake in memory, what it hears of jobs, and the releases that follow. A failed call costs
//! one round, not the session: what could not be done is kept and tried again at the next count.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use medfleet_core::{Class, JobKey, PoolName, Stage, WorkUnit, chain};
use medfleet_proto::work::v1::JobEvent;
use medfleet_queue::{IntakeEntry, Pause, QueueError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::looks::Looks;
use super::silent::Silent;
use super::told::{Task, Told};
use super::{Dispatcher, Outcome, STALE, remove};
use crate::convert;
use crate::unit::{Held, Index, LaneKey, Pauses, Removal, Shelf};

/// Events that may wait for the dispatcher; beyond that they are dropped, being hints.
const EVENTS_MAX: usize = 1024;
/// Jobs that are ended before releases go on, and intake messages that are removed one by one beside them.
const AT_ONCE_MAX: usize = 1024;
/// How long a unit is left that could not be released for a reason of its own.
const LEFT_FOR: Duration = Duration::from_secs(30);
/// Intake messages, or events, taken at once before anything is released.
const BATCH: usize = 256;

/// What a session hears.
pub(super) enum Step {
    /// A unit that waits, or one that cannot be read; `None` when the connection is closed.
    Waiting(Option<Result<IntakeEntry, QueueError>>),
    /// A job moved.
    Moved(JobKey, JobEvent),
    /// It is time to look whether a full pool has room.
    LookAgain,
    /// Intake messages were removed, or could not be.
    Removed(Vec<Removed>),
}

/// What became of a removal from a stage's intake.
type Removed = (Stage, Removal, Result<(), QueueError>);

/// The time of one leader.
pub(super) struct Session<'a> {
    dispatcher: &'a Dispatcher,
    index: Index,
    intake: BoxStream<'static, Result<IntakeEntry, QueueError>>,
    events: mpsc::Receiver<(JobKey, JobEvent)>,
    /// What lies in the intake of each stage.
    shelves: BTreeMap<Stage, Shelf>,
    /// The removals under way.
    removing: Option<BoxFuture<'a, Vec<Removed>>>,
    /// The last removal failed: none is tried before the next count.
    may_remove: bool,
    /// Losses of the connection before the intake was read.
    losses: u64,
    looks: Looks,
    silent: Silent,
    told: Told,
    /// When the units that were left are tried again.
    try_left_at: Instant,
    /// Jobs past their time that could not be ended when it was last tried.
    not_ended: HashSet<(JobKey, u32)>,
}

impl<'a> Session<'a> {
    pub(super) async fn begin(dispatcher: &'a Dispatcher) -> Result<Self, QueueError> {
        let losses = dispatcher.queue.losses();
        let events = dispatcher.fanout.observe(EVENTS_MAX);
        let stages = dispatcher.scope.stages();
        let mut intakes = Vec::with_capacity(stages.len());
        for stage in stages {
            intakes.push(dispatcher.queue.intake(*stage).await?);
        }
        let mut session = Self {
            dispatcher,
            index: Index::new(dispatcher.rules.clone()),
            intake: stream::select_all(intakes).boxed(),
            events,
            shelves: BTreeMap::new(),
            removing: None,
            may_remove: true,
            losses,
            looks: Looks::new(dispatcher.config.recount_least.get(), Instant::now()),
            silent: Silent::none_of(dispatcher.queue.record_shards()),
            told: Told::default(),
            try_left_at: Instant::now() + LEFT_FOR,
            not_ended: HashSet::new(),
        };
        session
            .index
            .set_waiting_max(dispatcher.queue.intake_for_all());
        // Not knowing what is held back, nothing is released.
        session.hold_back(&dispatcher.queue.pauses().await?);
        session.count_slots();
        session.recount(all_classes(lanes(&dispatcher.pools))).await;
        Ok(session)
    }

    /// Takes what operators hold back, and shows them that it is taken.
    fn hold_back(&mut self, pauses: &[Pause]) {
        let count = i64::try_from(pauses.len()).unwrap_or(i64::MAX);
        self.dispatcher.figures.pauses.set(count);
        if self.index.set_pauses(Pauses::of(pauses)) {
            tracing::info!(pauses = count, "the dispatcher has taken up what is paused");
        }
    }

    /// Takes how many units the workers that are there take at a time.
    fn count_slots(&mut self) {
        let crews = self
            .dispatcher
            .roster
            .crews(&self.dispatcher.pools, Instant::now());
        for (lane, crew) in crews {
            self.index.set_slots(&lane, crew.slots);
            self.index.set_stat_slots(&lane, crew.stat_slots);
        }
    }

    /// The next thing heard. Nothing is lost when it is dropped half-way.
    pub(super) async fn next(&mut self) -> Step {
        let look_at = self.looks.at();
        let removing = &mut self.removing;
        let removed = async {
            match removing {
                Some(under_way) => {
                    let removed = under_way.await;
                    *removing = None;
                    removed
                }
                None => std::future::pending().await,
            }
        };
        let look_again = async {
            match look_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            entry = self.intake.next() => Step::Waiting(entry),
            Some((key, event)) = self.events.recv() => Step::Moved(key, event),
            () = look_again => Step::LookAgain,
            removed = removed => Step::Removed(removed),
        }
    }

    /// Takes what was heard.
    ///
    /// # Errors
    /// [`QueueError::Closed`] when the intake has ended.
    pub(super) async fn take(&mut self, step: Step) -> Result<(), QueueError> {
        match step {
            Step::Waiting(entry) => self.take_intake(entry)?,
            Step::Moved(key, event) => self.take_events(&key, &event),
            Step::LookAgain => {
                self.recount(self.index.full_and_out()).await;
            }
            Step::Removed(removed) => self.take_removed(removed),
        }
        Ok(())
    }

    /// Takes what has arrived, the first entry and those right behind it.
    fn take_intake(
        &mut self,
        first: Option<Result<IntakeEntry, QueueError>>,
    ) -> Result<(), QueueError> {
        let mut next = first;
        for _ in 0..BATCH {
            match next {
                // Somebody else's: it stays where it is.
                Some(Ok(entry)) if !self.dispatcher.scope.takes(&entry.unit) => {
                    self.shelves.entry(entry.unit.stage).or_default().skipped();
                }
                Some(Ok(entry)) => {
                    let shelf = self.shelves.entry(entry.unit.stage).or_default();
                    shelf.read(entry.sequence);
                    self.index.insert(Held::from(entry));
                }
                Some(Err(error)) => {
                    tracing::error!(error = chain(&error), "an intake message is skipped");
                    self.dispatcher.figures.unreadable.inc();
                    // Of which stage it is, it does not say.
                    for stage in Stage::ALL {
                        self.shelves.entry(*stage).or_default().skipped();
                    }
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

    /// Takes what was told of a job, and what is told of others right behind it.
    fn take_events(&mut self, key: &JobKey, event: &JobEvent) {
        self.take_event(key, event);
        for _ in 1..BATCH {
            let Ok((key, event)) = self.events.try_recv() else {
                break;
            };
            self.take_event(&key, &event);
        }
    }

    /// A job moved: something may have ended, so that a full pool has room again.
    fn take_event(&mut self, key: &JobKey, event: &JobEvent) {
        self.looks.moved(Instant::now());
        if convert::is_final(event) {
            self.forget(key, event.epoch);
        }
    }

    /// What waits of a job that has ended in this epoch is done with.
    fn forget(&mut self, key: &JobKey, epoch: u32) {
        for place in self.index.remove_job(key, epoch) {
            self.done(place.stage, place.sequence);
        }
    }

    /// An intake message is done with.
    fn done(&mut self, stage: Stage, sequence: u64) {
        self.shelves.entry(stage).or_default().done(sequence);
    }

    fn take_removed(&mut self, removed: Vec<Removed>) {
        let now = Instant::now();
        for (stage, removal, outcome) in removed {
            match outcome {
                Ok(()) => self.shelves.entry(stage).or_default().removed(removal, now),
                Err(error) => {
                    tracing::debug!(error = chain(&error), "intake messages stay for now");
                    self.may_remove = false;
                }
            }
        }
    }

    /// Begins to remove what is done with, beside everything else.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] after a loss of the connection: what was read of the intake may not be true any more, and
    /// removing what lies in front of something could remove what came in its place. A new session reads it anew.
    pub(super) fn tidy(&mut self) -> Result<(), QueueError> {
        if self.dispatcher.queue.losses() != self.losses {
            return Err(STALE);
        }
        if self.removing.is_some() || !self.may_remove {
            return Ok(());
        }
        let now = Instant::now();
        let removals = self.shelves.iter().flat_map(|(stage, shelf)| {
            let removals = shelf.removals(AT_ONCE_MAX, now).into_iter();
            removals.map(|removal| (*stage, removal))
        });
        let removals: Vec<_> = removals.collect();
        if removals.is_empty() {
            return Ok(());
        }
        let (queue, at_once) = (&self.dispatcher.queue, self.dispatcher.config.releases_max);
        let losses = self.losses;
        // Many wait for their turn, and the connection may be lost before it comes.
        let removals = stream::iter(removals).map(move |(stage, removal)| async move {
            let removed = remove(queue, losses, (stage, removal)).await;
            (stage, removal, removed)
        });
        self.removing = Some(removals.buffer_unordered(at_once).collect().boxed());
        Ok(())
    }

    /// Performs every release that the index decides; where units are left, the pools are looked at again in time.
    pub(super) async fn release(&mut self) {
        loop {
            let now = self.dispatcher.clock.now();
            let dispatcher = self.dispatcher;
            if dispatcher.scope.counts_jobs() || dispatcher.rules.in_flight_max.is_any() {
                let (open, behind) = dispatcher.scope.standing(dispatcher.open.counts());
                self.index.set_open_jobs(open);
                self.index.set_behind(behind);
            }
            let batch = self.index.take(self.dispatcher.config.releases_max, now);
            if batch.is_empty() {
                self.looks.full(&self.index.full());
                return;
            }
            let at_once = batch.len();
            let silent = &self.silent;
            let releases = stream::iter(batch).map(|held| dispatcher.release_unit(held, silent));
            let outcomes: Vec<_> = releases.buffer_unordered(at_once).collect().await;
            let mut released: BTreeMap<(LaneKey, Class), WorkUnit> = BTreeMap::new();
            for outcome in outcomes {
                match outcome {
                    Outcome::Released(held) => {
                        self.told.went_well(Task::Release);
                        self.done(held.unit.stage, held.sequence);
                        let lane = (held.unit.stage, held.unit.pool.clone());
                        released.insert((lane, held.unit.class), held.unit);
                    }
                    Outcome::Dropped(held) => {
                        self.index.uncount(&held);
                        self.done(held.unit.stage, held.sequence);
                    }
                    // Such as a record that a later release has written: its own dispatcher, or its job's time, ends this.
                    Outcome::Failed(held, error) if is_of_unit(&error) => {
                        tracing::error!(error = chain(&error), stage = %held.unit.stage, job = %held.unit.key.job, "a unit is left where it waits");
                        self.index.leave(held);
                    }
                    Outcome::Failed(held, error) if self.waits_for_shard(&held.unit.key) => {
                        tracing::debug!(error = chain(&error), stage = %held.unit.stage, "a unit is left while its job's record cannot be read");
                        self.index.leave(held);
                    }
                    Outcome::Failed(held, error) => {
                        if self.told.is_news(Task::Release) {
                            tracing::warn!(error = chain(&error), stage = %held.unit.stage, job = %held.unit.key.job, "a unit could not be released");
                        }
                        self.index.put_back(held);
                    }
                }
            }
            // One hint for all units of a kind.
            for unit in released.values() {
                dispatcher.queue.hint(unit).await;
            }
        }
    }

    /// Whether the shard of a job's record is away.
    fn waits_for_shard(&self, key: &JobKey) -> bool {
        let shard = self.dispatcher.queue.record_shard(&key.job);
        self.silent.is_away(shard, Instant::now())
    }

    /// Counts all pools and their slots, looks what is held back, tries again what failed, and shows the backlog.
    pub(super) async fn recount_all(&mut self) {
        self.count_slots();
        match self.dispatcher.queue.pauses().await {
            Ok(pauses) => {
                self.told.went_well(Task::ReadPauses);
                self.hold_back(&pauses);
            }
            // What was held back stays so.
            Err(error) => {
                if self.told.is_news(Task::ReadPauses) {
                    tracing::warn!(error = chain(&error), "the pauses could not be read");
                }
            }
        }
        // A count of some pools alone says nothing of the others.
        if self.recount(all_classes(self.index.lanes())).await {
            self.told.went_well(Task::Count);
        }
        if Instant::now() >= self.try_left_at {
            self.try_left_at = Instant::now() + LEFT_FOR;
            self.index.try_left();
        }
        self.shelves.values_mut().for_each(Shelf::age);
        self.may_remove = true;
        self.dispatcher.figures.show_backlog(&self.index.backlog());
    }

    /// True if the queue has answered for all of them.
    async fn recount(&mut self, lanes: Vec<(LaneKey, Vec<Class>)>) -> bool {
        let queue = &self.dispatcher.queue;
        let asked_at = Instant::now();
        let mut is_answered = true;
        for (lane, classes) in &lanes {
            match queue.outstanding_of(lane.0, &lane.1, classes).await {
                Ok(outstanding) => self.index.recount(lane, &outstanding),
                // Its units wait until the operator names the pool again, or they expire.
                Err(error @ QueueError::UnknownPool { .. }) => {
                    tracing::debug!(
                        error = chain(&error),
                        "units wait for a pool that is not configured"
                    );
                }
                // The old count stands: nothing is released beyond it.
                Err(error) => {
                    if self.told.is_news(Task::Count) {
                        tracing::warn!(
                            error = chain(&error),
                            "released units could not be counted"
                        );
                    }
                    is_answered = false;
                    break;
                }
            }
        }
        self.looks
            .counted(lanes.into_iter().map(|(lane, _)| lane), asked_at);
        is_answered
    }

    /// Ends jobs whose time is over by the queue's clock, wherever they stand, some at a time: releases wait meanwhile.
    pub(super) async fn expire(&mut self) {
        let dispatcher = self.dispatcher;
        let now = match dispatcher.queue.time().await {
            Ok(now) => now,
            Err(error) => {
                if self.told.is_news(Task::AskTime) {
                    let error = chain(&error);
                    tracing::warn!(error, "jobs past their time wait for the queue's clock");
                }
                return;
            }
        };
        self.told.went_well(Task::AskTime);
        let due = in_turn(dispatcher.open.due(now), &self.not_ended, AT_ONCE_MAX);
        self.not_ended.clear();
        let may_be_behind = !dispatcher.queue.outdated_max().is_zero();
        let silent = &self.silent;
        let expiries = stream::iter(due).map(async |(key, epoch)| {
            let shard = dispatcher.queue.record_shard(&key.job);
            let expired = match silent.ask(shard, dispatcher.queue.record(&key)).await {
                Ok(_) => {
                    let job = (&key, epoch);
                    dispatcher.expire_job(job, now, may_be_behind).await
                }
                Err(error) => Err(error),
            };
            (key, epoch, expired)
        });
        let expiries = expiries.buffer_unordered(dispatcher.config.releases_max);
        let expiries: Vec<_> = expiries.collect().await;
        for (key, epoch, expired) in expiries {
            match expired {
                Ok(()) => {
                    dispatcher.open.end(&key, epoch);
                    self.forget(&key, epoch);
                }
                Err(error) => {
                    if self.told.is_news(Task::End) {
                        let error = chain(&error);
                        tracing::warn!(error, "jobs past their time wait for the queue");
                    }
                    self.not_ended.insert((key, epoch));
                }
            }
        }
        if self.not_ended.is_empty() {
            self.told.went_well(Task::End);
        }
    }
}

/// Whether others may be released all the same: trouble with the queue would meet them too.
fn is_of_unit(error: &QueueError) -> bool {
    !error.is_transient() && !matches!(error, QueueError::Closed)
}

/// The jobs to end now, `most` of them. Those that could not be ended last time come last, so that they take no other's place.
pub(crate) fn in_turn(
    mut due: Vec<(JobKey, u32)>,
    not_ended: &HashSet<(JobKey, u32)>,
    most: usize,
) -> Vec<(JobKey, u32)> {
    due.sort_by_key(|job| not_ended.contains(job));
    due.truncate(most);
    due
}

fn all_classes(lanes: Vec<LaneKey>) -> Vec<(LaneKey, Vec<Class>)> {
    let counted = lanes.into_iter().map(|lane| (lane, Class::ALL.to_vec()));
    counted.collect()
}

/// Every (stage, pool).
fn lanes(pools: &[PoolName]) -> Vec<LaneKey> {
    Stage::ALL
        .iter()
        .flat_map(|stage| pools.iter().map(|pool| (*stage, pool.clone())))
        .collect()
}

#[cfg(test)]
mod tests;
