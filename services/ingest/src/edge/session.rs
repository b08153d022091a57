//! What the leader does for as long as it leads: it offers each tenant's jobs to the hub, of each class one after the other, in the
//! order of the tenant's [`Lane`], and follows all jobs that the hub has at the same time. A tenant whose jobs wait holds up no other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, ready};
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, Stream, StreamExt};
use medfleet_core::{JobKey, JobRecord, Stage, TenantId, UnixMillis, chain};
use medfleet_queue::{IntakeEntry, Pause, QueueError};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Edge;
use super::follow::Follow;
use super::lane::{Lane, Turn};
use super::offer::Offered;
use super::plan::{self, Duty, Trouble};
use crate::config::Travels;
use crate::leader::Ended;
use crate::unit::Pauses;
use crate::work::{Expired, STALE, Silent, expire, in_turn};

/// Intake messages taken at once before anything else.
const INTAKE_BATCH: usize = 256;
/// How often jobs past their time are looked for, and the figures shown.
const TICK: Duration = Duration::from_secs(1);
/// Jobs past their time that are ended at a time.
const EXPIRED_MAX: usize = 64;
/// Of these, how many are ended at the same time.
const EXPIRED_AT_A_TIME: usize = 16;
/// Tenants for whom the hub is probed at the same time: a probe that gets no answer must not hold up the rest.
const PROBES_AT_A_TIME: usize = 8;
/// How often all records are read to find what the edge still owes the hub ([`Duty`]): the hint of an erasure may have been lost.
const SCAN_EVERY: Duration = Duration::from_secs(600);

/// How long a job waits that could not be offered for a reason of its own.
const LEFT_FOR: Duration = Duration::from_secs(30);

/// An offer under way: the job's intake message, and what became of it.
type Offering = BoxFuture<'static, (IntakeEntry, Result<Offered, NotDone>)>;

/// Why an offer came to nothing.
#[derive(Debug, Clone, Copy)]
enum NotDone {
    /// For a reason that other jobs may meet too, such as a hub that is away; a pause has followed. Until when the hub asked the job
    /// to wait.
    Shared(Option<Instant>),
    /// For a reason of this job alone.
    OfJob,
    /// It is held back.
    Held,
}

/// What a session that ends is offering: files may be on the line for hours, and the next session goes on with them.
#[derive(Default)]
pub(super) struct UnderWay {
    offers: FuturesUnordered<Offering>,
    lanes: BTreeMap<TenantId, Lane>,
}

pub(super) struct Session {
    edge: Arc<Edge>,
    /// Losses of the connection to the queue before the intake was read.
    losses: u64,
    /// Jobs whose messages came later were offered by nobody else.
    begun: Begun,
    lanes: BTreeMap<TenantId, Lane>,
    /// What operators hold back.
    pauses: Pauses,
    /// It was said that the pauses cannot be read, and they could not be since.
    is_unread_told: bool,
    offers: FuturesUnordered<Offering>,
    follows: FuturesUnordered<BoxFuture<'static, JobKey>>,
    followed: HashMap<JobKey, Followed>,
    /// Jobs past their time that could not be ended yet, and when that was tried first.
    due_since: HashMap<JobKey, Instant>,
    /// Of these, those that could not be ended when it was last tried, in which epoch.
    not_ended: HashSet<(JobKey, u32)>,
    /// Everything else waits while they are ended: a shard that is away must not be asked for each of its jobs.
    silent: Silent,
    /// It was said that jobs past their time cannot be ended, and none of those tried since could be.
    is_trouble_told: bool,
    /// When the jobs that were left are tried again.
    try_left_at: Instant,
}

/// How far the intakes were when the session began. An outdated server may give too low a sequence, so a message also counts as
/// older than the session if it was stored before that time.
struct Begun {
    /// Sequence of the last message of each intake.
    ends: BTreeMap<Stage, u64>,
    at: UnixMillis,
}

impl Begun {
    async fn now(edge: &Edge) -> Result<Self, QueueError> {
        Ok(Self {
            ends: ends(edge).await?,
            at: edge.queue.time().await?,
        })
    }

    /// Whether an earlier leader may have offered the job of this message.
    fn is_doubtful(&self, entry: &IntakeEntry) -> bool {
        let last = self.ends.get(&entry.unit.stage);
        last.is_none_or(|last| entry.sequence <= *last) || entry.stored_at <= self.at
    }
}

/// A job that is followed.
struct Followed {
    hint: Arc<Notify>,
    /// A hint has come: the record may have changed after it was last read.
    is_hinted: bool,
}

/// What a session hears.
enum Step {
    Waiting(Option<Result<IntakeEntry, QueueError>>),
    Offered(IntakeEntry, Result<Offered, NotDone>),
    Followed(JobKey),
    Hint(JobKey),
    Pauses(Result<Vec<Pause>, QueueError>),
    Records(Vec<(JobKey, JobRecord)>),
    ScanOver,
    Tick,
}

impl Session {
    async fn begin(edge: &Arc<Edge>) -> Result<Self, QueueError> {
        let losses = edge.queue.losses();
        let mut session = Self {
            begun: Begun::now(edge).await?,
            edge: Arc::clone(edge),
            losses,
            lanes: BTreeMap::new(),
            pauses: Pauses::default(),
            is_unread_told: false,
            offers: FuturesUnordered::new(),
            follows: FuturesUnordered::new(),
            followed: HashMap::new(),
            due_since: HashMap::new(),
            not_ended: HashSet::new(),
            silent: Silent::none_of(edge.queue.record_shards()),
            is_trouble_told: false,
            try_left_at: Instant::now() + LEFT_FOR,
        };
        // Not knowing what is held back, nothing is handed on.
        session.hold_back(&edge.queue.pauses().await?);
        Ok(session)
    }

    /// Hands jobs on until something of this side breaks. `under_way`: what the session before was offering, and then what this one
    /// is.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub(super) async fn run(edge: &Arc<Edge>, under_way: &Mutex<UnderWay>) -> Result<(), Ended> {
        let begun = Self::begin(edge).await;
        let mut session = begun.map_err(Ended::BeforeItBegan)?;
        // Hints are subscribed to before the stored state is read, so that no change is missed in between.
        let hints = hints(edge).await.map_err(Ended::BeforeItBegan)?;
        let intake = intake(edge).await.map_err(Ended::BeforeItBegan)?;
        let before = std::mem::take(&mut *lock(under_way));
        (session.offers, session.lanes) = (before.offers, before.lanes);
        session.lanes.values_mut().for_each(Lane::forget_waiting);
        let ended = session.hand_on(hints, intake).await;
        *lock(under_way) = UnderWay {
            offers: session.offers,
            lanes: session.lanes,
        };
        ended.map_err(Ended::Broke)
    }

    /// Hands jobs on, until an error ends it.
    async fn hand_on(
        &mut self,
        mut hints: BoxStream<'static, JobKey>,
        mut intake: BoxStream<'static, Result<IntakeEntry, QueueError>>,
    ) -> Result<(), QueueError> {
        let (edge, session) = (Arc::clone(&self.edge), self);
        let edge = &edge;
        let mut pauses = std::pin::pin!(pauses(edge));
        let mut scan = edge.queue.scan_records();
        let (mut is_scanning, mut has_scanned, mut begun_here) = (true, false, 0);
        let mut scan_at = Instant::now() + SCAN_EVERY;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut probe = std::pin::pin!(probe(edge));
        loop {
            let step = tokio::select! {
                entry = intake.next() => Step::Waiting(entry),
                Some((entry, offered)) = session.offers.next() => Step::Offered(entry, offered),
                Some(key) = session.follows.next() => Step::Followed(key),
                Some(key) = hints.next() => Step::Hint(key),
                page = scan.next(), if is_scanning => page.map_or(Step::ScanOver, Step::Records),
                Some(read) = pauses.next() => Step::Pauses(read),
                _ = tick.tick() => Step::Tick,
                () = &mut probe => Step::Tick,
            };
            match step {
                Step::Waiting(first) => session.take_intake(first, &mut intake)?,
                Step::Offered(entry, offered) => session.take_offered(&entry, offered),
                Step::Followed(key) => session.go_on_following(key),
                Step::Hint(key) => session.hint(key),
                Step::Pauses(read) => session.take_pauses(read),
                Step::Records(page) => {
                    for (key, record) in page {
                        begun_here += u64::from(plan::is_begun_here(&record));
                        if plan::duty(&record) != Duty::Nothing {
                            session.follow(key);
                        }
                    }
                }
                Step::ScanOver => {
                    (is_scanning, has_scanned) = (false, true);
                    // The hint of an end may have been lost.
                    session.lanes.values_mut().for_each(Lane::let_go);
                    if begun_here > 0 && !edge.works_here() {
                        edge.work_on(begun_here);
                    }
                }
                Step::Tick => {
                    session.tick().await;
                    if scan_at <= Instant::now() {
                        scan_at = Instant::now() + SCAN_EVERY;
                        scan = edge.queue.scan_records();
                        (is_scanning, begun_here) = (true, 0);
                    }
                }
            }
            session.go_on(has_scanned)?;
        }
    }

    /// After a look at a job: another one where it was told of meanwhile.
    fn go_on_following(&mut self, key: JobKey) {
        let was = self.followed.remove(&key);
        if was.is_some_and(|was| was.is_hinted) {
            self.follow(key);
        }
    }

    /// Offers what is next. `has_scanned`: how much of a tenant's is at the hub must be known first.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] after a loss of the connection to the queue, as what was read of the intake may not be true any
    /// more: a new session reads it anew. While the queue is away none can begin, and the offers under way go on in this one.
    fn go_on(&mut self, has_scanned: bool) -> Result<(), QueueError> {
        let queue = &self.edge.queue;
        if queue.losses() == self.losses {
            if has_scanned {
                self.offer_next();
            }
            return Ok(());
        }
        if self.offers.is_empty() || queue.is_connected() {
            return Err(STALE);
        }
        Ok(())
    }

    fn take_intake(
        &mut self,
        first: Option<Result<IntakeEntry, QueueError>>,
        intake: &mut BoxStream<'static, Result<IntakeEntry, QueueError>>,
    ) -> Result<(), QueueError> {
        let mut next = first;
        for _ in 0..INTAKE_BATCH {
            match next {
                // The dispatcher releases it: this site's own stages encode its images first.
                Some(Ok(entry)) if self.is_dispatched(&entry) => {}
                Some(Ok(entry)) => {
                    let is_doubtful = self.begun.is_doubtful(&entry);
                    let tenant = entry.unit.key.tenant.clone();
                    let lane = self.lanes.entry(tenant).or_default();
                    lane.add(entry, is_doubtful);
                }
                Some(Err(error)) => {
                    tracing::error!(error = chain(&error), "an intake message is skipped");
                    self.edge.figures.unreadable.inc();
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

    fn take_offered(&mut self, entry: &IntakeEntry, offered: Result<Offered, NotDone>) {
        let key = &entry.unit.key;
        if let Some(lane) = self.lanes.get_mut(&key.tenant) {
            match offered {
                Ok(_) => lane.done(entry),
                Err(NotDone::Shared(until)) => lane.not_done(entry, until),
                Err(NotDone::OfJob) => lane.leave(entry),
                Err(NotDone::Held) => {
                    lane.hold(entry);
                    if !self.pauses.holds(&entry.unit) {
                        // It was resumed meanwhile.
                        lane.let_go();
                    }
                }
            }
        }
        if matches!(offered, Ok(Offered::AtHub)) {
            self.follow(key.clone());
        }
    }

    /// Offers the next job of every tenant, beside what is being offered of lower classes.
    fn offer_next(&mut self) {
        let (most, now) = (self.edge.config.in_flight_max, Instant::now());
        let mut at_hub: HashMap<&TenantId, u32> = HashMap::new();
        for key in self.followed.keys() {
            *at_hub.entry(&key.tenant).or_default() += 1;
        }
        for (tenant, lane) in &mut self.lanes {
            let at_hub = at_hub.get(tenant).copied().unwrap_or_default();
            if let Some(turn) = lane.next(most.saturating_sub(at_hub), now) {
                let is_held = self.pauses.holds(&turn.entry.unit);
                let turn = (turn, is_held, lane.hurry());
                let offering = offer(Arc::clone(&self.edge), turn, self.losses);
                self.offers.push(offering.boxed());
            }
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

    /// What could not be read stays as it is known.
    fn take_pauses(&mut self, read: Result<Vec<Pause>, QueueError>) {
        let was_told = std::mem::replace(&mut self.is_unread_told, read.is_err());
        match read {
            Ok(pauses) => self.hold_back(&pauses),
            Err(error) if !was_told => {
                tracing::warn!(error = chain(&error), "the pauses could not be read");
            }
            Err(_) => {}
        }
    }

    /// Takes what operators hold back, and shows them that it is taken.
    fn hold_back(&mut self, pauses: &[Pause]) {
        let count = i64::try_from(pauses.len()).unwrap_or(i64::MAX);
        self.edge.figures.pauses.set(count);
        let pauses = Pauses::of(pauses);
        if self.pauses != pauses {
            tracing::info!(pauses = count, "the edge has taken up what is paused");
            self.pauses = pauses;
            self.lanes.values_mut().for_each(Lane::let_go);
        }
    }

    /// A job was cancelled or erased.
    fn hint(&mut self, key: JobKey) {
        if let Some(lane) = self.lanes.get_mut(&key.tenant) {
            lane.wake(&key.job);
        }
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
        let waiting: usize = self.lanes.values().map(Lane::len).sum();
        let figures = self.edge.edge_figures();
        figures
            .waiting
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let at_hub = i64::try_from(self.followed.len()).unwrap_or(i64::MAX);
        figures.at_hub.set(at_hub);
        self.edge.uplink.show();
        if self.try_left_at <= Instant::now() {
            self.try_left_at = Instant::now() + LEFT_FOR;
            self.lanes.values_mut().for_each(Lane::try_left);
        }
        self.expire().await;
    }

    /// Ends jobs whose time is over while they wait; those at the hub the hub ends.
    async fn expire(&mut self) {
        let edge = Arc::clone(&self.edge);
        // Only the queue's clock decides that a job's time is over, never this machine's.
        let Some(now) = edge.clock.known() else {
            return;
        };
        let due = edge.open.due(now).into_iter();
        let due = due.filter(|(key, _)| !self.followed.contains_key(key));
        let due = in_turn(due.collect(), &self.not_ended, EXPIRED_MAX);
        self.not_ended.clear();
        if due.is_empty() {
            self.is_trouble_told = false;
            return self.due_since.clear();
        }
        let (at, outdated_max) = (Instant::now(), edge.queue.outdated_max());
        let (queue, silent) = (&edge.queue, &self.silent);
        let ends: Vec<_> = due
            .into_iter()
            .map(|(key, epoch)| {
                let since = *self.due_since.entry(key.clone()).or_insert(at);
                // After that time even an outdated server has heard of the job.
                let may_be_behind = at.duration_since(since) < outdated_max;
                let job = (key, epoch);
                let end = end_of_time(Arc::clone(&edge), job.clone(), (now, may_be_behind));
                async move {
                    let shard = queue.record_shard(&job.0.job);
                    let ended = match silent.ask(shard, queue.record(&job.0)).await {
                        Ok(_) => end.await,
                        Err(error) => Err(error),
                    };
                    (job, ended)
                }
            })
            .collect();
        let mut ends = futures::stream::iter(ends).buffer_unordered(EXPIRED_AT_A_TIME);
        let mut trouble = None;
        while let Some((job, ended)) = ends.next().await {
            match ended {
                Ok(()) => {
                    if let Some(lane) = self.lanes.get_mut(&job.0.tenant) {
                        lane.wake(&job.0.job);
                    }
                }
                // One that cannot be ended holds up no other.
                Err(error) => {
                    self.not_ended.insert(job);
                    trouble = Some(error);
                }
            }
        }
        let has_trouble = trouble.is_some();
        if let Some(error) = trouble.filter(|_| !self.is_trouble_told) {
            let error = chain(&error);
            tracing::warn!(error, "jobs past their time wait for the queue");
        }
        self.is_trouble_told = has_trouble;
    }
}

fn lock(under_way: &Mutex<UnderWay>) -> MutexGuard<'_, UnderWay> {
    // Nothing that is done under the lock can panic half-way.
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The jobs that wait to be handed on: accepted ones, and encoded ones, which exist where images stay at the site or did when the
/// jobs were begun.
async fn intake(
    edge: &Edge,
) -> Result<BoxStream<'static, Result<IntakeEntry, QueueError>>, QueueError> {
    let mut accepted = edge.queue.intake(Stage::Preprocess).await?;
    if edge.works_here() {
        // The dispatcher of this site reads these messages too, and reports those that cannot be read.
        accepted = accepted.filter(|entry| ready(entry.is_ok())).boxed();
    }
    let encoded = edge.queue.intake(Stage::Decode).await?;
    Ok(futures::stream::select_all([accepted, encoded]).boxed())
}

/// Sequence of the last message of each intake that is read here.
async fn ends(edge: &Edge) -> Result<BTreeMap<Stage, u64>, QueueError> {
    let mut ends = BTreeMap::new();
    for stage in [Stage::Preprocess, Stage::Decode] {
        ends.insert(stage, edge.queue.intake_end(stage).await?);
    }
    Ok(ends)
}

/// Ends a job whose time is over, `now` by the queue's clock, and counts it as open no longer. `may_be_behind`: a server that does
/// not know the job may be outdated; otherwise the record is gone.
async fn end_of_time(
    edge: Arc<Edge>,
    (key, epoch): (JobKey, u32),
    (now, may_be_behind): (UnixMillis, bool),
) -> Result<(), QueueError> {
    match expire(&edge.queue, (&key, epoch), now, may_be_behind).await? {
        Expired::Now => {
            edge.figures.expired.inc();
            if edge.works_here() {
                // A worker that misses the hint learns it from the record at its next heartbeat.
                edge.queue.publish_cancel(&key).await?;
            }
        }
        // It was handed on to the hub just now.
        Expired::Refused(record) if !record.state.is_final() => return Ok(()),
        // Ended already, perhaps by a process that died before it published the event.
        Expired::Refused(record) => edge.queue.publish_event(&key, &record).await?,
        Expired::Gone => {}
    }
    edge.open.end(&key, epoch);
    Ok(())
}

/// Offers a job once. If that fails for a reason that other jobs may meet too, it returns only after a pause, which ends early where
/// the lane says so.
async fn offer(
    edge: Arc<Edge>,
    (turn, is_held, hurry): (Turn, bool, Arc<Notify>),
    losses: u64,
) -> (IntakeEntry, Result<Offered, NotDone>) {
    let Turn {
        entry,
        is_doubtful,
        tries,
    } = turn;
    let read = (&entry, losses);
    match Arc::clone(&edge).offer(read, (is_doubtful, is_held)).await {
        Ok(offered) => (entry, Ok(offered)),
        Err(Trouble::Held) => (entry, Err(NotDone::Held)),
        Err(trouble) if plan::is_of_job(&trouble) => {
            edge.tell(&entry.unit.key, &trouble);
            (entry, Err(NotDone::OfJob))
        }
        Err(trouble) => {
            let asked = plan::asked(&trouble);
            let until = asked.and_then(|asked| Instant::now().checked_add(asked));
            tokio::select! {
                biased;
                () = edge.wait_after(&entry.unit.key, &trouble, tries) => {}
                () = hurry.notified() => {}
            }
            (entry, Err(NotDone::Shared(until)))
        }
    }
}

/// What operators hold back, again and again.
fn pauses(edge: &Edge) -> impl Stream<Item = Result<Vec<Pause>, QueueError>> {
    let mut every = tokio::time::interval_at(Instant::now() + TICK, TICK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    futures::stream::unfold(every, move |mut every| async move {
        every.tick().await;
        Some((edge.queue.pauses().await, every))
    })
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
