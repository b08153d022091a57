//! The time of one leader: every tenant's jobs are offered one after the other, in the order in which they were accepted,
//! and those that the hub has are followed, all at once. A tenant whose jobs wait holds up no other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use medfleet_core::{JobKey, JobRecord, Move, Stage, TenantId};
use medfleet_queue::{Applied, IntakeEntry, QueueError};
use medfleet_runtime::exit::chain;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Edge;
use super::follow::Follow;
use super::offer::Offered;
use super::plan::{self, Duty};
use crate::config::Travels;

/// Intake messages taken at once before anything else.
const INTAKE_BATCH: usize = 256;
/// How often jobs past their time are looked for, and the figures shown.
const TICK: Duration = Duration::from_secs(1);
/// Jobs past their time that are ended at a time.
const EXPIRED_MAX: usize = 64;
/// Of these so many at once.
const EXPIRED_AT_A_TIME: usize = 16;
/// Tenants for whom the hub is asked at once whether it is there: one that does not answer must not hold up the rest.
const PROBES_AT_A_TIME: usize = 8;
/// How often all records are looked through for what is owed: the hint of an erasure may have been lost.
const SCAN_EVERY: Duration = Duration::from_secs(600);

/// The jobs of one tenant that wait.
struct Lane {
    /// By their place in the intake: the order in which they were accepted; after these those whose images stay, in the order
    /// in which they were encoded.
    waiting: BTreeMap<(Stage, u64), IntakeEntry>,
    /// The first of them is being offered.
    is_busy: bool,
    /// Whether the hub may have the first of them without our record saying so: it may have been offered before.
    is_doubtful: bool,
}

/// An offer that has come to its end.
type Offering = BoxFuture<'static, (IntakeEntry, Offered)>;

pub(super) struct Session {
    edge: Arc<Edge>,
    lanes: BTreeMap<TenantId, Lane>,
    offers: FuturesUnordered<Offering>,
    follows: FuturesUnordered<BoxFuture<'static, JobKey>>,
    followed: HashMap<JobKey, Followed>,
}

/// A job that is followed.
struct Followed {
    hint: Arc<Notify>,
    /// It was hinted at: its record may have changed after it was last read.
    is_hinted: bool,
}

/// What a session hears.
enum Step {
    Waiting(Option<Result<IntakeEntry, QueueError>>),
    Offered(IntakeEntry, Offered),
    Followed(JobKey),
    Hint(JobKey),
    Records(Vec<(JobKey, JobRecord)>),
    ScanOver,
    Tick,
}

impl Session {
    /// Hands jobs on until something of this side breaks.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub(super) async fn run(edge: &Arc<Edge>) -> Result<(), QueueError> {
        let mut session = Self {
            edge: Arc::clone(edge),
            lanes: BTreeMap::new(),
            offers: FuturesUnordered::new(),
            follows: FuturesUnordered::new(),
            followed: HashMap::new(),
        };
        // Hints first, then what is stored, so that nothing falls in between.
        let mut hints = hints(edge).await?;
        let mut intake = intake(edge).await?;
        let mut scan = edge.queue.scan_records();
        let (mut is_scanning, mut has_scanned) = (true, false);
        let mut scan_at = Instant::now() + SCAN_EVERY;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let probe = probe(edge);
        let mut probe = std::pin::pin!(probe);
        loop {
            let step = tokio::select! {
                entry = intake.next() => Step::Waiting(entry),
                Some((entry, offered)) = session.offers.next() => Step::Offered(entry, offered),
                Some(key) = session.follows.next() => Step::Followed(key),
                Some(key) = hints.next() => Step::Hint(key),
                page = scan.next(), if is_scanning => page.map_or(Step::ScanOver, Step::Records),
                _ = tick.tick() => Step::Tick,
                () = &mut probe => Step::Tick,
            };
            match step {
                Step::Waiting(first) => session.take_intake(first, &mut intake)?,
                Step::Offered(entry, offered) => session.take_offered(&entry, offered),
                Step::Followed(key) => {
                    let was = session.followed.remove(&key);
                    if was.is_some_and(|was| was.is_hinted) {
                        session.follow(key);
                    }
                }
                Step::Hint(key) => session.hint(key),
                Step::Records(page) => {
                    for (key, record) in page {
                        if plan::duty(&record) != Duty::Nothing {
                            session.follow(key);
                        }
                    }
                }
                Step::ScanOver => (is_scanning, has_scanned) = (false, true),
                Step::Tick => {
                    session.tick().await;
                    if scan_at <= Instant::now() {
                        scan_at = Instant::now() + SCAN_EVERY;
                        scan = edge.queue.scan_records();
                        is_scanning = true;
                    }
                }
            }
            // How much of a tenant's is at the hub must be known first.
            if has_scanned {
                session.offer_next();
            }
        }
    }

    fn take_intake(
        &mut self,
        first: Option<Result<IntakeEntry, QueueError>>,
        intake: &mut BoxStream<'static, Result<IntakeEntry, QueueError>>,
    ) -> Result<(), QueueError> {
        let mut next = first;
        for _ in 0..INTAKE_BATCH {
            match next {
                // The site's own stages work on it first.
                Some(Ok(entry)) if self.is_dispatched(&entry) => {}
                Some(Ok(entry)) => {
                    let tenant = entry.unit.key.tenant.clone();
                    let lane = self.lanes.entry(tenant).or_insert_with(|| Lane {
                        waiting: BTreeMap::new(),
                        is_busy: false,
                        is_doubtful: true,
                    });
                    let place = (entry.unit.stage, entry.sequence);
                    lane.waiting.insert(place, entry);
                }
                Some(Err(error)) => {
                    tracing::error!(error = chain(&error), "an intake message is skipped");
                }
                None => return Err(QueueError::Closed),
            }
            match intake.next().now_or_never() {
                Some(entry) => next = entry,
                None => break,
            }
        }
        Ok(())
    }

    fn is_dispatched(&self, entry: &IntakeEntry) -> bool {
        let travels = self.edge.config.travels(&entry.unit.key.tenant);
        entry.unit.stage == Stage::Preprocess && travels == Travels::Tokens
    }

    fn take_offered(&mut self, entry: &IntakeEntry, offered: Offered) {
        let key = &entry.unit.key;
        if let Some(lane) = self.lanes.get_mut(&key.tenant) {
            lane.waiting.remove(&(entry.unit.stage, entry.sequence));
            lane.is_busy = false;
            // Jobs are offered one after the other: what comes next was never offered, by whomever.
            lane.is_doubtful = false;
        }
        if offered == Offered::AtHub {
            self.follow(key.clone());
        }
    }

    /// Offers the first job of every tenant that has room at the hub.
    fn offer_next(&mut self) {
        let most = self.edge.config.in_flight_max;
        let mut at_hub: HashMap<&TenantId, u32> = HashMap::new();
        for key in self.followed.keys() {
            *at_hub.entry(&key.tenant).or_default() += 1;
        }
        for (tenant, lane) in &mut self.lanes {
            let has_room = at_hub.get(tenant).is_none_or(|count| *count < most);
            let Some((_, first)) = lane.waiting.first_key_value() else {
                continue;
            };
            if lane.is_busy || !has_room {
                continue;
            }
            lane.is_busy = true;
            let offering = offer(Arc::clone(&self.edge), first.clone(), lane.is_doubtful);
            self.offers.push(offering.boxed());
        }
    }

    fn follow(&mut self, key: JobKey) {
        if self.followed.contains_key(&key) {
            return;
        }
        let hint = Arc::new(Notify::new());
        let followed = Followed {
            hint: Arc::clone(&hint),
            is_hinted: false,
        };
        self.followed.insert(key.clone(), followed);
        let follow = Follow::new(Arc::clone(&self.edge), key, hint);
        self.follows.push(follow.run().boxed());
    }

    /// A job was cancelled or erased.
    fn hint(&mut self, key: JobKey) {
        match self.followed.get_mut(&key) {
            Some(followed) => {
                followed.is_hinted = true;
                followed.hint.notify_one();
            }
            // Its record says whether anything is owed.
            None => self.follow(key),
        }
    }

    async fn tick(&mut self) {
        let waiting: usize = self.lanes.values().map(|lane| lane.waiting.len()).sum();
        let figures = self.edge.edge_figures();
        figures
            .waiting
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let at_hub = i64::try_from(self.followed.len()).unwrap_or(i64::MAX);
        figures.at_hub.set(at_hub);
        self.edge.uplink.show();
        self.expire().await;
    }

    /// Ends jobs whose time is over while they wait; those at the hub the hub ends.
    async fn expire(&mut self) {
        let edge = Arc::clone(&self.edge);
        let due = edge.open.due(edge.clock.now()).into_iter();
        let due = due.filter(|(key, _)| !self.followed.contains_key(key));
        let due: Vec<_> = due.take(EXPIRED_MAX).collect();
        let ends = due
            .into_iter()
            .map(|(key, epoch)| end_of_time(Arc::clone(&edge), key, epoch));
        let mut ends = futures::stream::iter(ends).buffer_unordered(EXPIRED_AT_A_TIME);
        while let Some(ended) = ends.next().await {
            if let Err(error) = ended {
                let error = chain(&error);
                tracing::warn!(error, "jobs past their time wait for the queue");
                return;
            }
        }
    }
}

/// What waits to be handed on: accepted jobs, and, where images stay, those that would be decoded next.
async fn intake(
    edge: &Edge,
) -> Result<BoxStream<'static, Result<IntakeEntry, QueueError>>, QueueError> {
    let accepted = edge.queue.intake(Stage::Preprocess).await?;
    if !edge.config.encodes() {
        return Ok(accepted);
    }
    let encoded = edge.queue.intake(Stage::Decode).await?;
    Ok(futures::stream::select_all([accepted, encoded]).boxed())
}

/// Ends a job whose time is over, and no longer counts it.
async fn end_of_time(edge: Arc<Edge>, key: JobKey, epoch: u32) -> Result<(), QueueError> {
    let now = edge.clock.now();
    let applied = edge.queue.apply(&key, Some(epoch), &Move::Expire, now);
    match applied.await? {
        Applied::Applied { .. } => {
            edge.figures.expired.inc();
            if edge.config.encodes() {
                // A worker that misses the hint learns it from the record at its next heartbeat.
                edge.queue.publish_cancel(&key).await?;
            }
        }
        // It was handed on in this moment.
        Applied::Refused { record, .. } if !record.state.is_final() => return Ok(()),
        // By somebody who died before saying so, perhaps.
        Applied::Refused { record, .. } => edge.queue.publish_event(&key, &record).await?,
        Applied::OtherEpoch { .. } | Applied::Missing => {}
    }
    edge.open.end(&key, epoch);
    Ok(())
}

/// Offers a job until that has come to its end.
async fn offer(edge: Arc<Edge>, entry: IntakeEntry, is_doubtful: bool) -> (IntakeEntry, Offered) {
    let mut is_doubtful = is_doubtful;
    let mut tries = 0;
    loop {
        match Arc::clone(&edge).offer(&entry, is_doubtful).await {
            Ok(offered) => return (entry, offered),
            Err(trouble) => {
                // The hub may have taken it and only its answer was lost.
                is_doubtful = true;
                edge.wait_after(&trouble, tries).await;
                tries += 1;
            }
        }
    }
}

/// Jobs that were cancelled or erased.
async fn hints(edge: &Edge) -> Result<BoxStream<'static, JobKey>, QueueError> {
    let cancels = edge.queue.cancels().await?;
    let erasures = edge.queue.erasures().await?;
    Ok(futures::stream::select(cancels, erasures).boxed())
}

/// Asks the hub again and again whether it is there, and reads the tokens again.
async fn probe(edge: &Edge) {
    loop {
        if let Err(error) = edge.uplink.tokens.reload().await {
            let error = chain(&error);
            tracing::error!(
                error,
                "the hub's tokens cannot be read again; those read before stay"
            );
        }
        let tenants = futures::stream::iter(edge.uplink.tokens.tenants());
        let probes = tenants.for_each_concurrent(PROBES_AT_A_TIME, async |tenant| {
            edge.uplink.probe(&tenant).await;
        });
        probes.await;
        tokio::time::sleep(edge.config.probe_every.get()).await;
    }
}
