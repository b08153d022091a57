//! What a slot does beside the work: how it begins with units, and how they end that do not go well.

use anyhow::{Context, Result, ensure};
use medfleet_core::{Class, Digest, FailureReason, JobState, UnixMillis};
use medfleet_queue::Replicas;
use medfleet_runtime::{ManualClock, Metrics, SystemClock};
use medfleet_testkit as kit;

use super::*;

/// Brings nothing: what is tried comes after the work.
struct Nothing;

impl Handler for Nothing {
    const STAGE: Stage = Stage::Preprocess;

    type Inputs = ();

    async fn read(&self, _unit: &WorkUnit, _record: &JobRecord) -> Result<(), Ending> {
        Ok(())
    }

    async fn work(&self, _started: &Started, (): ()) -> Result<(), Ending> {
        Ok(())
    }
}

fn slot(queue: Queue) -> Slot<Nothing> {
    let shutdown = Shutdown::new(Duration::ZERO);
    Slot {
        worker: Worker {
            config: WorkerConfig::default(),
            pool: kit::pool(),
            queue,
            clock: Arc::new(SystemClock),
            tasks: TaskSet::new(shutdown.clone()),
            metrics: WorkerMetrics::register(&Metrics::new(), Nothing::STAGE, 1),
        },
        shutdown,
        handler: Arc::new(Nothing),
        hints: broadcast::channel(HINTS_MAX).0,
        places: Arc::new(Semaphore::new(1)),
        place: Arc::default(),
        few_starts: Arc::new(Semaphore::new(1)),
    }
}

/// Nobody waits for its answer any more.
#[tokio::test]
async fn a_unit_whose_time_is_over_ends_its_job_before_it_is_started() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    let (key, mut record) = kit::record(1, 1);
    let now = kit::clock()();
    record.times.accepted = UnixMillis(now.0 - 10_000);
    record.expires = UnixMillis(now.0 - 1_000);
    queue.create_record(&key, &record).await?;
    let unit = WorkUnit {
        expires: record.expires,
        ..kit::unit(&key, Nothing::STAGE, Class::Routine, 0)
    };
    queue.publish_work(&unit, &Headers::new()).await?;
    let delivery = queue.puller(Nothing::STAGE, kit::pool()).next().await?;
    let slot = slot(queue.clone());
    let hints = slot.hints.subscribe();
    let verdict = slot.begin(&delivery, hints).await;
    ensure!(matches!(verdict, Ok(Verdict::Done)), "{verdict:?}");
    let (ended, _) = queue.record(&key).await?.context("a record")?;
    ensure!(
        ended.state == JobState::Expired && ended.starts.preprocess == 0,
        "{ended:?}"
    );
    Ok(())
}

/// By its own clock the job's time is over; the queue's decides.
#[tokio::test]
async fn a_worker_whose_clock_is_ahead_starts_what_has_time_left() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    let unit = WorkUnit {
        expires: record.expires,
        ..kit::unit(&key, Nothing::STAGE, Class::Routine, 0)
    };
    queue.publish_work(&unit, &Headers::new()).await?;
    let delivery = queue.puller(Nothing::STAGE, kit::pool()).next().await?;
    let mut slot = slot(queue.clone());
    slot.worker.clock = Arc::new(ManualClock::at(UnixMillis(record.expires.0 + 1)));
    let hints = slot.hints.subscribe();
    let verdict = slot.begin(&delivery, hints).await;
    ensure!(matches!(verdict, Ok(Verdict::Done)), "{verdict:?}");
    let (started, _) = queue.record(&key).await?.context("a record")?;
    ensure!(
        !started.state.is_final() && started.starts.preprocess == 1,
        "{started:?}"
    );
    Ok(())
}

/// A unit of this job in a worker's hands, which begins with it.
async fn begun(queue: &Queue, key: &JobKey) -> Result<Result<Verdict, Ending>> {
    let unit = kit::unit(key, Nothing::STAGE, Class::Routine, 0);
    queue.publish_work(&unit, &Headers::new()).await?;
    let delivery = queue.puller(Nothing::STAGE, kit::pool()).next().await?;
    let slot = slot(queue.clone());
    let hints = slot.hints.subscribe();
    Ok(slot.begin(&delivery, hints).await)
}

async fn step(queue: &Queue, key: &JobKey, step: &Move) -> Result<()> {
    let now = kit::clock()();
    let moved = queue.apply_without_event(key, Seen::Epoch(0), step, now);
    let moved = moved.await?;
    ensure!(matches!(moved, Applied::Applied { .. }), "{moved:?}");
    Ok(())
}

/// As a worker leaves it that dies right behind the record.
#[tokio::test]
async fn of_a_job_that_has_failed_the_end_is_told_and_the_dead_letter_written() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    let failure = Failure::new(FailureReason::Internal, "a defect");
    step(&queue, &key, &Move::Fail(failure.clone())).await?;
    ensure!(queue.next_event(&key, 0).await?.is_none());
    let verdict = begun(&queue, &key).await?;
    ensure!(
        matches!(&verdict, Ok(Verdict::Reject(said)) if *said == failure),
        "{verdict:?}"
    );
    ensure!(queue.next_event(&key, 0).await?.is_some(), "nobody is told");
    Ok(())
}

/// As a worker leaves it that dies before it has queued what follows.
#[tokio::test]
async fn of_a_unit_that_is_done_what_follows_is_queued() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    let (key, record) = kit::record(1, 2);
    queue.create_record(&key, &record).await?;
    let start = Move::Start {
        stage: Nothing::STAGE,
        unit: 0,
        retries_max: 1,
    };
    let frames = Move::Preprocessed {
        frames: Digest::new([3; 32]),
        chunks: 2,
        frame_count: 2,
    };
    for done in [start, frames] {
        step(&queue, &key, &done).await?;
    }
    let verdict = begun(&queue, &key).await?;
    ensure!(matches!(verdict, Ok(Verdict::Done)), "{verdict:?}");
    let waiting = queue.waiting_for_release(Stage::Encode).await?;
    ensure!(waiting == 2, "{waiting} chunks are queued");
    Ok(())
}

/// Whatever ends their worker would have both given up on. Until then a unit waits for nobody.
#[tokio::test]
async fn a_unit_with_few_starts_left_begins_where_no_other_such_is_at_work() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    let unit = kit::unit(&key, Nothing::STAGE, Class::Routine, 0);
    queue.publish_work(&unit, &Headers::new()).await?;
    let delivery = queue.puller(Nothing::STAGE, kit::pool()).next().await?;
    let slot = slot(queue.clone());
    let other = Arc::clone(&slot.few_starts).try_acquire_owned()?;
    let starts = async || {
        let (stands, _) = queue.record(&key).await?.context("a record")?;
        anyhow::Ok(stands.starts.preprocess)
    };
    let many = slot.worker.config.retries_max - 1;
    for start in 1..=many {
        let verdict = slot.begin(&delivery, slot.hints.subscribe()).await;
        ensure!(matches!(verdict, Ok(Verdict::Done)), "{verdict:?}");
        ensure!(starts().await? == start, "start {start}");
    }
    let verdict = slot.begin(&delivery, slot.hints.subscribe()).await;
    ensure!(matches!(verdict, Ok(Verdict::Retry { .. })), "{verdict:?}");
    ensure!(starts().await? == many, "it was started");
    drop(other);
    let verdict = slot.begin(&delivery, slot.hints.subscribe()).await;
    ensure!(matches!(verdict, Ok(Verdict::Done)), "{verdict:?}");
    ensure!(starts().await? == many + 1, "it was not started");
    ensure!(slot.few_starts.available_permits() == 1, "it is at work");
    Ok(())
}

/// Whoever hands back or acknowledges what is another's by now takes it from that one.
#[tokio::test]
async fn a_fenced_attempt_settles_nothing_however_its_work_ended() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    let unit = kit::unit(&key, Nothing::STAGE, Class::Routine, 0);
    queue.publish_work(&unit, &Headers::new()).await?;
    let delivery = queue.puller(Nothing::STAGE, kit::pool()).next().await?;
    let slot = slot(queue.clone());
    let (own, fenced) = (Some(record.attempt), Some(record.attempt + 1));
    for ending in [
        Ending::retry("the store is away"),
        Ending::wrong("the model failed"),
        Ending::fail(FailureReason::Internal, "a defect"),
        Ending::missing(FailureReason::ImageMissing, "image 0 of 1 is not there"),
    ] {
        let verdict = slot.end(&delivery, fenced, ending).await?;
        ensure!(matches!(verdict, Verdict::Abort), "{verdict:?}");
    }
    let (stands, _) = queue.record(&key).await?.context("a record")?;
    ensure!(stands == record, "{stands:?}");
    let wrong = Ending::wrong("the model failed");
    let verdict = slot.end(&delivery, own, wrong).await?;
    ensure!(matches!(verdict, Verdict::Retry { .. }), "{verdict:?}");
    Ok(())
}

/// A server that leads no more and does not know it yet has not got what was stored a moment ago. One server only, whose answers
/// are taken as a cluster's if there are as many replicas.
#[tokio::test]
async fn what_a_cluster_has_not_got_yet_fails_no_job() -> Result<()> {
    let (server, queue) = kit::start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    let start = Move::Start {
        stage: Nothing::STAGE,
        unit: 0,
        retries_max: 1,
    };
    let now = kit::clock()();
    queue.apply(&key, Some(0), &start, now).await?;
    let unit = kit::unit(&key, Nothing::STAGE, Class::Routine, 0);
    queue.publish_work(&unit, &Headers::new()).await?;
    let delivery = queue.puller(Nothing::STAGE, kit::pool()).next().await?;
    let missing = || Ending::missing(FailureReason::ImageMissing, "image 0 of 1 is not there");

    let mut config = kit::config(&server.url());
    config.replicas = Replicas::Three;
    let of_many = Queue::connect(&config, kit::clock()).await?;
    let verdict = slot(of_many).end(&delivery, None, missing()).await?;
    ensure!(matches!(verdict, Verdict::Retry { .. }), "{verdict:?}");
    let (record, _) = queue.record(&key).await?.context("a record")?;
    ensure!(!record.state.is_final(), "{record:?}");

    // A single server knows all there is.
    let verdict = slot(queue).end(&delivery, None, missing()).await?;
    let reason = match &verdict {
        Verdict::Reject(failure) => Some(failure.reason),
        _ => None,
    };
    ensure!(reason == Some(FailureReason::ImageMissing), "{verdict:?}");
    Ok(())
}
