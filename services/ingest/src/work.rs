//! The dispatcher: what the leader does to one unit or one job. [`session`] is what it does for as long as it leads.
//! Two leaders for a moment do no harm: a release is idempotent, and the queue refuses a unit that is already released.

mod looks;
mod session;
mod silent;
mod told;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{
    JobKey, JobRecord, Move, PoolName, Stage, TenantId, UnixMillis, WorkUnit, protocol,
};
use medfleet_queue::{Applied, Headers, Queue, QueueError};
use medfleet_runtime::{Clock, Shutdown, telemetry};
use tokio::time::Instant;
use tracing::Instrument;

use crate::config::{DispatcherConfig, EdgeConfig, Travels};
use crate::fanout::Fanout;
use crate::leader::{self, Ended, Leader};
use crate::metrics::Figures;
use crate::open::OpenJobs;
use crate::roster::Roster;
use crate::unit::ledger::Open;
use crate::unit::{Held, Removal, Rules};
use session::Session;
pub(crate) use session::in_turn;
pub(crate) use silent::Silent;

/// A server answered with less than this process already knows about a job: it is outdated, and has to be asked again later.
const BEHIND: QueueError = QueueError::unavailable("end a job whose time is over");
/// What was read of an intake may be another's by now: a server that lost its latest writes has given their places to others.
pub(crate) const STALE: QueueError = QueueError::unavailable("keep the intake in mind");
/// A unit that waited longer than this is released only after its job's record was read.
const LOOK_AFTER: Duration = Duration::from_secs(2);

/// Which units a dispatcher releases.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    /// All of them.
    Fleet,
    /// At a hospital's edge: the units of preprocess and encode of tenants whose images stay. All other units are the edge's, which
    /// also ends the jobs whose time is over.
    Site(Arc<EdgeConfig>),
}

impl Scope {
    const fn stages(&self) -> &'static [Stage] {
        match self {
            Self::Fleet => Stage::ALL,
            Self::Site(_) => &[Stage::Preprocess, Stage::Encode],
        }
    }

    fn takes(&self, unit: &WorkUnit) -> bool {
        match self {
            Self::Fleet => true,
            Self::Site(edge) => match unit.stage {
                Stage::Preprocess => edge.travels(&unit.key.tenant) == Travels::Tokens,
                // A job whose work has begun here goes on here, even if the setting has changed since.
                Stage::Encode => true,
                Stage::Decode => false,
            },
        }
    }

    /// For each tenant, how many jobs are in the stages or wait to be let in; and the tenants of which no more are let in,
    /// because too many of their jobs wait behind the stages. At an edge, jobs that are at the hub or wait for it are in no
    /// stage. A tenant may have as many waiting for the hub as it may have there. So a hub that is away stops the encoding only
    /// then, before encoded jobs fill the disk.
    fn standing(
        &self,
        open: HashMap<TenantId, Open>,
    ) -> (HashMap<TenantId, u64>, HashSet<TenantId>) {
        let Self::Site(edge) = self else {
            let all = open.into_iter().map(|(tenant, open)| (tenant, open.all));
            return (all.collect(), HashSet::new());
        };
        let most = u64::from(edge.in_flight_max);
        let behind = open.iter().filter(|(_, open)| open.encoded >= most);
        let behind = behind.map(|(tenant, _)| tenant.clone()).collect();
        let here = open.into_iter().map(|(tenant, open)| {
            let elsewhere = open.encoded.saturating_add(open.at_hub);
            (tenant, open.all.saturating_sub(elsewhere))
        });
        (here.collect(), behind)
    }

    /// Whether the progress of jobs has to be counted even where no tenant has a limit.
    const fn counts_jobs(&self) -> bool {
        matches!(self, Self::Site(_))
    }

    const fn expires_jobs(&self) -> bool {
        matches!(self, Self::Fleet)
    }
}

/// What dispatching needs.
#[derive(Debug, Clone)]
pub(crate) struct Dispatcher {
    pub(crate) config: DispatcherConfig,
    pub(crate) scope: Scope,
    pub(crate) queue: Queue,
    pub(crate) fanout: Fanout,
    pub(crate) roster: Roster,
    pub(crate) open: OpenJobs,
    pub(crate) pools: Vec<PoolName>,
    pub(crate) rules: Rules,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) figures: Figures,
    pub(crate) shutdown: Shutdown,
    /// Tells this process from others.
    pub(crate) holder: String,
}

impl Dispatcher {
    /// Leads whenever the lease is free, until the shutdown.
    pub(crate) async fn run(self) {
        let leader = Leader {
            queue: self.queue.clone(),
            holder: self.holder.clone(),
            shutdown: self.shutdown.clone(),
            gauge: self.figures.leader.clone(),
            pause: self.config.recount_every.get(),
        };
        leader
            .run(|| self.sessions(), || self.figures.clear_backlog())
            .await;
    }

    /// One session after the other, until the shutdown; for whoever leads.
    pub(crate) async fn sessions(&self) {
        leader::sessions(|| self.session()).await;
    }

    /// One session: reads and releases until the shutdown, or until the queue's feed breaks.
    async fn session(&self) -> Result<(), Ended> {
        let begun = Session::begin(self).await;
        let mut session = begun.map_err(Ended::BeforeItBegan)?;
        let mut recount = every(self.config.recount_every.get());
        let mut expire = every(self.config.expire_every.get());
        loop {
            tokio::select! {
                () = self.shutdown.begun() => return Ok(()),
                step = session.next() => session.take(step).await?,
                _ = recount.tick() => session.recount_all().await,
                _ = expire.tick(), if self.scope.expires_jobs() => session.expire().await,
            }
            session.release().await;
            session.tidy()?;
        }
    }
}

/// How long a unit has waited.
fn waited(held: &Held, now: UnixMillis) -> Duration {
    let millis = now.0.saturating_sub(held.stored_at.0);
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Removes what was read of a stage's intake when the connection had been lost so often: it may have been lost since.
///
/// # Errors
/// [`QueueError::Unavailable`] where it has been, and transient ones: read the intake anew.
pub(crate) async fn remove(
    queue: &Queue,
    losses: u64,
    (stage, removal): (Stage, Removal),
) -> Result<(), QueueError> {
    if queue.losses() != losses {
        return Err(STALE);
    }
    match removal {
        Removal::Below(sequence) => queue.remove_intake_below(stage, sequence).await,
        Removal::One(sequence) => queue.remove_intake(stage, sequence).await,
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

/// What became of a unit that was taken to be released.
enum Outcome {
    /// It is with the workers; its intake message has to go.
    Released(Held),
    /// Its job has ended: nothing was released.
    Dropped(Held),
    /// The queue did not take it.
    Failed(Held, QueueError),
}

impl Dispatcher {
    async fn release_unit(&self, held: Held, silent: &Silent) -> Outcome {
        let unit = &held.unit;
        let span = tracing::debug_span!(
            "release",
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "release",
            stage = unit.stage.as_str(),
            class = unit.class.as_str(),
        );
        telemetry::follow(&span, &held.headers);
        let headers = match telemetry::inject(&span) {
            none if none.is_empty() => held.headers.clone(),
            headers => headers,
        };
        let released = self.try_release(&held, &headers, silent);
        match released.instrument(span).await {
            Ok(true) => {
                self.figures.released.inc();
                Outcome::Released(held)
            }
            Ok(false) => Outcome::Dropped(held),
            Err(error) => Outcome::Failed(held, error),
        }
    }

    /// Releases a unit. False when its job does not need it any more.
    async fn try_release(
        &self,
        held: &Held,
        headers: &Headers,
        silent: &Silent,
    ) -> Result<bool, QueueError> {
        let (unit, now) = (&held.unit, self.clock.now());
        let shard = self.queue.record_shard(&unit.key.job);
        // A fresh unit is released at once, unless no worker could begin it. The job of an older one may have ended while nobody led.
        let record = if waited(held, now) > LOOK_AFTER || silent.is_away(shard, Instant::now()) {
            silent.ask(shard, self.queue.record(&unit.key)).await?
        } else {
            None
        };
        if unit.expires <= now {
            // `now` was carried on from an earlier answer, or is the machine's: the queue's present time decides.
            let now = self.queue.time().await?;
            if unit.expires <= now {
                // A server knows all that was queued before it became outdated.
                let may_be_behind = waited(held, now) < self.queue.outdated_max();
                self.expire_job((&unit.key, unit.epoch), now, may_be_behind)
                    .await?;
                return Ok(false);
            }
        }
        if record.is_some_and(|(record, _)| !protocol::is_wanted(unit, &record)) {
            return Ok(false);
        }
        self.queue.put_work(unit, headers).await?;
        Ok(true)
    }

    /// As [`expire`], and tells workers and watchers.
    async fn expire_job(
        &self,
        (key, epoch): (&JobKey, u32),
        now: UnixMillis,
        may_be_behind: bool,
    ) -> Result<(), QueueError> {
        match expire(&self.queue, (key, epoch), now, may_be_behind).await? {
            Expired::Now => {
                self.figures.expired.inc();
                // A worker that misses the hint learns it from the record at its next heartbeat.
                self.queue.publish_cancel(key).await
            }
            // It has ended already, perhaps by a process that died before it published the event.
            Expired::Refused(record) => self.queue.publish_event(key, &record).await,
            Expired::Gone => Ok(()),
        }
    }
}

/// What became of a job whose time is over.
pub(crate) enum Expired {
    /// It was ended by this call.
    Now,
    /// It cannot expire any more: this is its record.
    Refused(Box<JobRecord>),
    /// It was replayed, or its record is gone with the retention.
    Gone,
}

/// Ends a job of this epoch whose time is over, `now` by the queue's clock. `may_be_behind`: a server that does not know the job
/// may be outdated; otherwise the record is gone.
///
/// # Errors
/// [`BEHIND`] where an outdated server may have answered: if the job counted as ended now, nobody would ever end it.
pub(crate) async fn expire(
    queue: &Queue,
    (key, epoch): (&JobKey, u32),
    now: UnixMillis,
    may_be_behind: bool,
) -> Result<Expired, QueueError> {
    match queue.apply(key, Some(epoch), &Move::Expire, now).await? {
        Applied::Applied { .. } => Ok(Expired::Now),
        Applied::Refused { record, .. } => Ok(Expired::Refused(Box::new(record))),
        Applied::OtherEpoch { record } if record.epoch < epoch => Err(BEHIND),
        Applied::Missing if may_be_behind => Err(BEHIND),
        Applied::OtherEpoch { .. } | Applied::Missing => Ok(Expired::Gone),
    }
}

#[cfg(test)]
mod tests;
