//! What watchers hear of a start.

use anyhow::{Result, bail, ensure};
use medfleet_core::{Class, Digest, JobKey};
use medfleet_queue::Created;
use medfleet_runtime::SystemClock;
use medfleet_testkit as kit;

use super::*;

const LONG: Duration = Duration::from_secs(3_600);
const SHORT: Duration = Duration::from_millis(1);

/// The first encode unit of a job with so many chunks, whose start is recorded and is announced after this time.
async fn started(
    queue: &Queue,
    seed: u8,
    chunks: u32,
    announce_after: Duration,
) -> Result<Started> {
    let (key, record) = kit::record(seed, 1);
    let Created::Created(_) = queue.create_record(&key, &record).await? else {
        bail!("there is such a job");
    };
    let start = |stage| Move::Start {
        stage,
        unit: 0,
        retries_max: 4,
    };
    let preprocessed = Move::Preprocessed {
        frames: Digest::new([9; 32]),
        chunks,
        frame_count: chunks,
    };
    let now = SystemClock.now();
    for step in [start(Stage::Preprocess), preprocessed] {
        let applied = queue.apply_without_event(&key, Seen::Nothing, &step, now);
        applied.await?;
    }
    let step = start(Stage::Encode);
    let applied = queue.apply_without_event(&key, Seen::Nothing, &step, now);
    let Applied::Applied {
        record, revision, ..
    } = applied.await?
    else {
        bail!("the start was refused");
    };
    Ok(Started {
        unit: kit::unit(&key, Stage::Encode, Class::Routine, 0),
        record,
        headers: Headers::new(),
        place: Arc::default(),
        revision,
        queue: queue.clone(),
        clock: Arc::new(SystemClock),
        announce_after,
        is_announced: Mutex::new(false),
    })
}

/// How many chunks are done by each event of a job.
async fn chunks_done(queue: &Queue, key: &JobKey) -> Result<Vec<u32>> {
    let (mut after, mut done) = (0, Vec::new());
    while let Some((sequence, event)) = queue.next_event(key, after).await? {
        after = sequence;
        done.push(event.chunks_done);
    }
    Ok(done)
}

async fn advance(started: &Started) -> Result<()> {
    let chunk = started.unit.unit;
    match started.advance(&Move::ChunkEncoded { chunk }).await {
        Ok(_) => Ok(()),
        Err(ending) => bail!("{ending:?}"),
    }
}

#[tokio::test]
async fn a_start_is_announced_before_its_outcome_or_not_at_all() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    // Over before the start had to be announced: the outcome alone, and no start after it.
    let short = started(&queue, 1, 1, LONG).await?;
    advance(&short).await?;
    short.announce(&short.record).await?;
    let told = chunks_done(&queue, &short.unit.key).await?;
    ensure!(told == [1], "{told:?}");
    // At work for longer than that.
    let long = started(&queue, 2, 1, SHORT).await?;
    long.announce_in_time().await?;
    ensure!(chunks_done(&queue, &long.unit.key).await? == [0]);
    advance(&long).await?;
    ensure!(chunks_done(&queue, &long.unit.key).await? == [0, 1]);
    // Announced in any case, by whichever comes first.
    let always = started(&queue, 3, 1, Duration::ZERO).await?;
    advance(&always).await?;
    ensure!(chunks_done(&queue, &always.unit.key).await? == [0, 1]);
    Ok(())
}

/// Two chunks were begun at the same time, and one is done when the start of the other has to be announced.
#[tokio::test]
async fn a_start_that_is_announced_late_leads_no_watcher_back() -> Result<()> {
    let (_server, queue) = kit::start().await?;
    let first = started(&queue, 1, 2, LONG).await?;
    let second = Started {
        unit: kit::unit(&first.unit.key, Stage::Encode, Class::Routine, 1),
        record: first.record.clone(),
        headers: Headers::new(),
        place: Arc::default(),
        revision: first.revision,
        queue: queue.clone(),
        clock: Arc::new(SystemClock),
        announce_after: SHORT,
        is_announced: Mutex::new(false),
    };
    advance(&first).await?;
    second.announce_in_time().await?;
    let told = chunks_done(&queue, &first.unit.key).await?;
    ensure!(told == [1], "{told:?}");
    advance(&second).await?;
    let told = chunks_done(&queue, &first.unit.key).await?;
    ensure!(told == [1, 2], "{told:?}");
    // Nor is a start announced whose job has gone on.
    let late = Started {
        is_announced: Mutex::new(false),
        ..second
    };
    let step = Move::Cancel;
    let now = SystemClock.now();
    let key = &late.unit.key;
    queue
        .apply_without_event(key, Seen::Nothing, &step, now)
        .await?;
    late.announce_in_time().await?;
    let told = chunks_done(&queue, key).await?;
    ensure!(told == [1, 2], "{told:?}");
    Ok(())
}
