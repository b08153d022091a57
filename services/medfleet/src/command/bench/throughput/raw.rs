//! The writes of the job protocol without a fleet: for each job, the same publishes and record updates as a fleet makes, with the
//! same contents, sizes and order, to the same streams, on a server that nobody else uses.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use medfleet_core::{
    Class, Cost, Digest, JobId, JobKey, JobRecord, Move, NewJob, PoolName, Pseudonyms, Stage,
    TaskKind, TenantId, UnixMillis, WorkUnit, protocol,
};
use medfleet_proto::work::v1::AuditEntry;
use medfleet_queue::{Created, Headers, Queue, QueueConfig, Revision, Updated};
use medfleet_runtime::{Clock, SystemClock};

use super::super::drive::side_by_side;
use super::super::programs::POOL;

/// Publishes and record updates of one job of one chunk: pending entry, record, event, audit and intake of the accept; then of
/// each stage the release, the record and event of its start and of its end, and the intake of what follows. Without the event
/// of encode's start: work that takes no time has ended before it is told.
pub(super) const WRITES: u64 = 21;
/// As many connections as a fleet has services.
const CONNECTIONS: usize = 4;
/// Sheets on which accepts are noted, one over the other.
const SHEETS: u64 = 64;
/// Time to live of the jobs.
const TTL_MILLIS: i64 = 86_400_000;
/// As long as a job's real one.
const TRACEPARENT: &str = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01";

/// Connections to the server.
pub(super) struct Raw {
    queues: Vec<Arc<Queue>>,
}

impl Raw {
    /// Connects, and makes the streams that a fleet makes.
    pub(super) async fn connect(config: &QueueConfig) -> Result<Self> {
        let mut queues = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let queue = Queue::connect(config, Arc::new(|| SystemClock.now()));
            queues.push(Arc::new(queue.await.context("cannot connect")?));
        }
        let pool = PoolName::new(POOL).context("the pool's name")?;
        if let Some(queue) = queues.first() {
            let made = queue.ensure(std::slice::from_ref(&pool)).await;
            made.context("cannot make the streams")?;
        }
        Ok(Self { queues })
    }

    /// Makes the writes of the jobs of these numbers, of `at_once` jobs at a time.
    pub(super) async fn run(&self, numbers: Range<u64>, at_once: usize) -> Result<Duration> {
        let begun = Instant::now();
        let job = |queue: Arc<Queue>, number| async move { one_job(&queue, number).await };
        side_by_side(numbers, at_once, &self.queues, job).await?;
        Ok(begun.elapsed())
    }

    /// Closes the connections.
    pub(super) async fn close(self) {
        for queue in self.queues {
            queue.drain().await;
        }
    }
}

/// The writes of one job, one after the other.
async fn one_job(queue: &Queue, number: u64) -> Result<()> {
    let tenant = TenantId::new("local").context("a tenant's name")?;
    // Ids are spread as those of a fleet are.
    let id = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let job = JobId::from_bytes(id.to_be_bytes());
    let key = JobKey { tenant, job };
    let record = record()?;
    queue.note_accept(("raw", number % SHEETS), &key).await?;
    let Created::Created(revision) = queue.create_record(&key, &record).await? else {
        bail!("job {number} is there already");
    };
    queue.publish_event(&key, &record).await?;
    let entry = AuditEntry {
        time_unix_millis: SystemClock.now().0,
        action: "submit".to_owned(),
        job: key.job.to_string(),
        actor: "local".to_owned(),
        ..AuditEntry::default()
    };
    queue.audit(&key.tenant, &entry).await?;
    let unit = protocol::first(&key, &record).context("an accepted job has a unit")?;
    let headers: Headers = vec![("traceparent".to_owned(), TRACEPARENT.to_owned())];
    queue.publish_intake(&unit, &headers).await?;
    let mut writer = Writer {
        queue,
        key,
        record,
        revision,
        headers,
    };
    let digest = Digest::new([7; 32]);
    let preprocessed = Move::Preprocessed {
        frames: digest,
        chunks: 1,
        frame_count: 1,
    };
    let complete = Move::Complete {
        attempt: 1,
        result: digest,
    };
    let unit = writer.stage(unit, &preprocessed).await?;
    let unit = writer.stage(unit, &Move::ChunkEncoded { chunk: 0 }).await?;
    writer.stage(unit, &complete).await?;
    Ok(())
}

/// One job under way.
struct Writer<'a> {
    queue: &'a Queue,
    key: JobKey,
    record: JobRecord,
    revision: Revision,
    headers: Headers,
}

impl Writer<'_> {
    /// Release, start and end of a unit, and the intake of the unit that follows; at the last stage it gives the same again.
    async fn stage(&mut self, unit: WorkUnit, end: &Move) -> Result<WorkUnit> {
        self.queue.put_work(&unit, &self.headers).await?;
        let stage = unit.stage;
        let retries_max = 4;
        let start = Move::Start {
            stage,
            unit: unit.unit,
            retries_max,
        };
        self.change(&start).await?;
        if stage != Stage::Encode {
            self.tell().await?;
        }
        self.change(end).await?;
        self.tell().await?;
        match protocol::next(&unit, &self.record).into_iter().next() {
            Some(next) => {
                self.queue.publish_intake(&next, &self.headers).await?;
                Ok(next)
            }
            None => Ok(unit),
        }
    }

    async fn change(&mut self, step: &Move) -> Result<()> {
        let after = self.record.apply(step, SystemClock.now());
        let after = after.context("the job's next step")?;
        let updated = self.queue.update_record(&self.key, &after, self.revision);
        let Updated::Updated(revision) = updated.await? else {
            bail!("somebody else changes the records");
        };
        (self.record, self.revision) = (after, revision);
        Ok(())
    }

    /// The event of the change.
    async fn tell(&self) -> Result<()> {
        self.queue.publish_event(&self.key, &self.record).await?;
        Ok(())
    }
}

fn record() -> Result<JobRecord> {
    let now = SystemClock.now();
    let digest = Digest::new([3; 32]);
    Ok(JobRecord::accepted(NewJob {
        pool: PoolName::new(POOL).context("the pool's name")?,
        class: Class::Routine,
        task: TaskKind::Report,
        image_count: 1,
        body: digest,
        study: digest,
        pseudonyms: Pseudonyms::default(),
        accepted: now,
        expires: UnixMillis(now.0.saturating_add(TTL_MILLIS)),
        traceparent: TRACEPARENT.to_owned(),
        model: "bench".to_owned(),
        cost: Cost {
            preprocess_millis: 1,
            frames: 1,
            encode_millis_per_frame: 1,
            decode_millis_per_frame: 1,
            decode_millis: 0,
        },
    }))
}
