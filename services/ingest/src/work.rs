//! The dispatcher's loop: one leader by lease reads the intake into the index and performs the releases that it decides.
//! Two leaders for a moment do no harm: a release is idempotent, and the queue refuses a unit that is already out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::Either;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use medfleet_core::{JobKey, JobState, Move, PoolName, Stage, UnixMillis};
use medfleet_proto::work::v1::JobEvent;
use medfleet_queue::{Applied, Headers, IntakeEntry, Lease, Queue, QueueError};
use medfleet_runtime::exit::chain;
use medfleet_runtime::{Clock, Shutdown, telemetry};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Instrument;

use crate::config::DispatcherConfig;
use crate::convert;
use crate::hub::Hub;
use crate::metrics::Figures;
use crate::tokens::Tokens;
use crate::unit::{Held, Index, LaneKey};

/// Name of the lease.
const LEASE: &str = "dispatcher";
/// Stages whose work is released from the intake; decode units are published by the last encode worker.
const RELEASED: [Stage; 2] = [Stage::Preprocess, Stage::Encode];
/// Events that may wait for the dispatcher; beyond that they are dropped, being hints.
const EVENTS_MAX: usize = 1024;
/// Intake messages taken at once before anything is released.
const INTAKE_BATCH: usize = 256;
/// A unit that waited longer than this is released only after a look at its job.
const LOOK_AFTER: Duration = Duration::from_secs(2);
/// Records read at once when a leader begins.
const RECORDS_PAGE: usize = 500;
/// States in which a job can still expire.
const OPEN_STATES: [JobState; 5] = [
    JobState::Accepted,
    JobState::Released,
    JobState::Preprocessed,
    JobState::Encoding,
    JobState::Decoding,
];

/// What dispatching needs.
#[derive(Debug, Clone)]
pub(crate) struct Dispatcher {
    pub(crate) config: DispatcherConfig,
    pub(crate) queue: Queue,
    pub(crate) hub: Hub,
    pub(crate) tokens: Tokens,
    pub(crate) pools: Vec<PoolName>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) figures: Figures,
    pub(crate) shutdown: Shutdown,
    /// Tells this process from others.
    pub(crate) holder: String,
}

/// What became of a unit that was taken to be released.
enum Outcome {
    /// It is with the workers; its intake message is gone, or still there under this sequence.
    Released { leftover: Option<u64> },
    /// Its job has ended: nothing was released.
    Dropped(Held),
    /// The queue did not take it.
    Failed(Held, QueueError),
}

impl Dispatcher {
    /// Leads whenever the lease is free, until the shutdown.
    pub(crate) async fn run(self) {
        while !self.shutdown.has_begun() {
            match self.queue.try_lease(LEASE, &self.holder).await {
                Ok(Some(lease)) => {
                    self.figures.leader.set(1);
                    tracing::info!("this process is the dispatcher");
                    let led = self.lead(lease).await;
                    self.figures.leader.set(0);
                    self.figures.clear_backlog();
                    match led {
                        Ok(()) => tracing::info!("this process is no longer the dispatcher"),
                        Err(error) => {
                            tracing::warn!(error = chain(&error), "the dispatcher starts over")
                        }
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(
                    error = chain(&error),
                    "the dispatcher's lease could not be asked for"
                ),
            }
            tokio::select! {
                () = tokio::time::sleep(self.config.recount_every.get()) => {}
                () = self.shutdown.begun() => {}
            }
        }
    }

    /// Leads until the lease is lost, the shutdown begins (the lease is given back) or the queue fails.
    async fn lead(&self, mut lease: Lease) -> Result<(), QueueError> {
        let mut session = Session::begin(self).await?;
        let mut renew = every(self.config.lease_renew.get());
        let mut recount = every(self.config.recount_every.get());
        let mut expire = every(self.config.expire_every.get());
        loop {
            let soon = match session.recount_at {
                Some(at) => Either::Left(tokio::time::sleep_until(at)),
                None => Either::Right(std::future::pending()),
            };
            tokio::select! {
                () = self.shutdown.begun() => return lease.release().await,
                _ = renew.tick() => if !lease.renew().await? { return Ok(()) },
                entry = session.intake.next() => session.take_intake(entry)?,
                Some((key, event)) = session.events.recv() => session.take_event(&key, &event).await?,
                _ = recount.tick() => session.recount_all().await?,
                () = soon => session.recount_full().await?,
                _ = expire.tick() => session.expire().await?,
            }
            session.release().await?;
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

/// The time of one leader.
struct Session<'a> {
    dispatcher: &'a Dispatcher,
    index: Index,
    intake: BoxStream<'static, Result<IntakeEntry, QueueError>>,
    events: mpsc::Receiver<(JobKey, JobEvent)>,
    /// Jobs that have not ended, with their epoch and the end of their time.
    open: HashMap<JobKey, (u32, UnixMillis)>,
    /// Intake messages whose unit is out but which could not be removed.
    leftovers: BTreeSet<u64>,
    /// When to count the full pools again, because something ended there.
    recount_at: Option<Instant>,
}

impl<'a> Session<'a> {
    async fn begin(dispatcher: &'a Dispatcher) -> Result<Self, QueueError> {
        // First the events, then the records: a job that ends in between is seen by one of them.
        let events = dispatcher.hub.observe(EVENTS_MAX);
        let mut session = Self {
            dispatcher,
            index: Index::new(dispatcher.config.released_units_max),
            intake: dispatcher.queue.intake().await?.boxed(),
            events,
            open: HashMap::new(),
            leftovers: BTreeSet::new(),
            recount_at: None,
        };
        for tenant in dispatcher.tokens.tenants() {
            let mut after = None;
            loop {
                let records = dispatcher.queue.list_records(
                    &tenant,
                    after.as_ref(),
                    RECORDS_PAGE,
                    &OPEN_STATES,
                );
                let records = records.await?;
                let is_last = records.len() < RECORDS_PAGE;
                after = records.last().map(|(job, _)| job.clone());
                for (job, record) in records {
                    let key = JobKey {
                        tenant: tenant.clone(),
                        job,
                    };
                    session.open.insert(key, (record.epoch, record.expires));
                }
                if is_last {
                    break;
                }
            }
        }
        let lanes = RELEASED
            .iter()
            .flat_map(|stage| dispatcher.pools.iter().map(|pool| (*stage, pool.clone())));
        session.recount(lanes.collect()).await?;
        Ok(session)
    }

    /// Takes what has arrived, the first entry and those right behind it.
    fn take_intake(
        &mut self,
        first: Option<Result<IntakeEntry, QueueError>>,
    ) -> Result<(), QueueError> {
        let mut next = first;
        for _ in 0..INTAKE_BATCH {
            match next {
                Some(Ok(entry)) => {
                    let unit = &entry.unit;
                    self.open
                        .insert(unit.key.clone(), (unit.epoch, unit.expires));
                    self.index.insert(Held::from(entry));
                }
                Some(Err(error @ QueueError::Malformed { .. })) => {
                    tracing::error!(error = chain(&error), "an intake message is skipped");
                }
                Some(Err(error)) => return Err(error),
                None => return Err(QueueError::Closed),
            }
            match self.intake.next().now_or_never() {
                Some(entry) => next = entry.map_or(Some(Err(QueueError::Closed)), Some),
                None => break,
            }
        }
        Ok(())
    }

    /// A job moved: something may have ended, so that a full pool has room again.
    async fn take_event(&mut self, key: &JobKey, event: &JobEvent) -> Result<(), QueueError> {
        if self.recount_at.is_none() && !self.index.full().is_empty() {
            // The worker acknowledges right after its event: by then the unit no longer counts.
            self.recount_at = Some(Instant::now() + self.dispatcher.config.recount_least.get());
        }
        let is_current = self
            .open
            .get(key)
            .is_none_or(|(epoch, _)| *epoch <= event.epoch);
        if convert::is_final(event) && is_current {
            self.forget(key).await?;
        }
        Ok(())
    }

    /// Removes what waits of a job that has ended.
    async fn forget(&mut self, key: &JobKey) -> Result<(), QueueError> {
        self.open.remove(key);
        for sequence in self.index.remove_job(key) {
            self.dispatcher.queue.remove_intake(sequence).await?;
        }
        Ok(())
    }

    /// Performs every release that the index decides.
    async fn release(&mut self) -> Result<(), QueueError> {
        loop {
            let batch = self.index.take(self.dispatcher.config.releases_max);
            if batch.is_empty() {
                return Ok(());
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
                        self.leftovers.insert(held.sequence);
                    }
                    Outcome::Failed(held, error) => {
                        tracing::warn!(error = chain(&error), stage = %held.unit.stage, "a unit could not be released");
                        self.index.put_back(held);
                    }
                }
            }
        }
    }

    /// Counts all pools, tries again what failed, and shows the backlog.
    async fn recount_all(&mut self) -> Result<(), QueueError> {
        self.recount(self.index.lanes()).await?;
        for sequence in std::mem::take(&mut self.leftovers) {
            self.dispatcher.queue.remove_intake(sequence).await?;
        }
        self.dispatcher.figures.show_backlog(&self.index.backlog());
        Ok(())
    }

    async fn recount_full(&mut self) -> Result<(), QueueError> {
        self.recount(self.index.full()).await
    }

    async fn recount(&mut self, lanes: Vec<LaneKey>) -> Result<(), QueueError> {
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
                Err(error) => return Err(error),
            }
        }
        self.recount_at = None;
        Ok(())
    }

    /// Ends every job whose time is over, wherever it stands.
    async fn expire(&mut self) -> Result<(), QueueError> {
        let now = self.dispatcher.clock.now();
        let due = self.open.iter().filter(|(_, (_, expires))| *expires <= now);
        let due: Vec<_> = due.map(|(key, (epoch, _))| (key.clone(), *epoch)).collect();
        for (key, epoch) in due {
            self.dispatcher.expire_job(&key, epoch, now).await?;
            self.forget(&key).await?;
        }
        Ok(())
    }
}

impl Dispatcher {
    async fn release_unit(&self, held: Held) -> Outcome {
        let unit = &held.unit;
        let span = tracing::info_span!(
            "release",
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "release",
            stage = unit.stage.as_str(),
            class = unit.class.as_str(),
        );
        telemetry::set_parent(&span, &held.headers);
        let headers = match telemetry::inject(&span) {
            none if none.is_empty() => held.headers.clone(),
            headers => headers,
        };
        let released = self.try_release(&held, &headers).instrument(span).await;
        match released {
            Ok(true) => {
                self.figures.released.inc();
                let removed = self.queue.remove_intake(held.sequence).await;
                let leftover = removed.err().map(|error| {
                    tracing::debug!(
                        error = chain(&error),
                        "a released unit stays in the intake for now"
                    );
                    held.sequence
                });
                Outcome::Released { leftover }
            }
            Ok(false) => Outcome::Dropped(held),
            Err(error) => Outcome::Failed(held, error),
        }
    }

    /// True when the unit is with the workers, false when its job needs it no more.
    async fn try_release(&self, held: &Held, headers: &Headers) -> Result<bool, QueueError> {
        let (unit, now) = (&held.unit, self.clock.now());
        if unit.expires <= now {
            self.expire_job(&unit.key, unit.epoch, now).await?;
            return Ok(false);
        }
        // A fresh unit goes at once; an older one may be of a job that ended while nobody led.
        let waited = u128::try_from(now.0 - held.stored_at.0).unwrap_or(0);
        if waited > LOOK_AFTER.as_millis()
            && let Some((record, _)) = self.queue.record(&unit.key).await?
            && (record.state.is_final() || record.epoch > unit.epoch)
        {
            return Ok(false);
        }
        self.queue.publish_work(unit, headers).await?;
        Ok(true)
    }

    async fn expire_job(
        &self,
        key: &JobKey,
        epoch: u32,
        now: UnixMillis,
    ) -> Result<(), QueueError> {
        match self
            .queue
            .apply(key, Some(epoch), &Move::Expire, now)
            .await?
        {
            Applied::Applied { .. } => {
                self.figures.expired.inc();
                // A worker that misses the hint learns it from the record at its next heartbeat.
                self.queue.publish_cancel(key).await
            }
            // It ended by itself, was replayed, or its record is gone with the retention.
            Applied::Refused { .. } | Applied::OtherEpoch { .. } | Applied::Missing => Ok(()),
        }
    }
}
