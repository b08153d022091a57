//! A worker that is stopped beyond the acknowledgement wait, and comes back while its successor is at work: it changes
//! nothing, and the successor's message is still there, or what it asks for is done.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use medfleet_core::{JobRecord, PoolName, Stage};
use medfleet_testkit::wait_until;
use medfleet_tests::chaos::check::check;
use medfleet_tests::chaos::disk::Kind;
use medfleet_tests::chaos::herd::{Herd, HerdOptions, Id};
use medfleet_tests::chaos::load::{Accepted, Asked, film_of, jobs};
use medfleet_tests::client::PATIENCE;
use medfleet_tests::config::{ACK_WAIT, POOL, job_key};
use medfleet_tests::fleet::{Pace, Role, http_get};
use medfleet_tests::picture;

/// Fleets in one of which both workers are met at work: a loaded machine may be too late to see that.
const TRIES_MAX: usize = 5;

struct Case {
    role: Role,
    stage: Stage,
    asked: Asked,
    pace: Pace,
    /// Whether a worker of the stage is at work on the job, by its record.
    is_at_work: fn(&JobRecord, u32) -> bool,
    /// Whether the stage's outcome is in the record.
    is_done: fn(&JobRecord) -> bool,
}

async fn comes_back(case: Case) -> Result<()> {
    for _ in 0..TRIES_MAX {
        if is_met_and_comes_back(&case).await? {
            return Ok(());
        }
    }
    bail!("{TRIES_MAX} times the stage was done before its worker was met")
}

/// Whether both workers were met before the stage's outcome was there.
async fn is_met_and_comes_back(case: &Case) -> Result<bool> {
    let herd = Herd::start(HerdOptions {
        nodes: 1,
        instances: 2,
        record_shards: 1,
        disk: Kind::Plain,
        pace: case.pace,
        ack_wait: ACK_WAIT,
    })
    .await?;
    let (zombie, successor) = ((case.role, 0), (case.role, 1));
    herd.drain(successor).await?;
    let clients = herd.clients()?;
    let queue = herd.probe().await?;
    let name = clients.submit(&case.asked).await?;
    let key = job_key(case.asked.tenant, &name)?;
    let asked = case.asked.clone();
    let accepted = [Accepted { name, asked }];
    let started = async |times: u32| {
        wait_until(PATIENCE, "a worker to begin", async || {
            let (record, _) = queue.record(&key).await.ok()??;
            if (case.is_done)(&record) {
                return Some(false);
            }
            (case.is_at_work)(&record, times).then_some(true)
        })
        .await
    };
    if !started(1).await? {
        return Ok(false);
    }
    herd.stop(zombie).await?;
    herd.start_service(successor).await?;
    let is_met = started(2).await;
    if !is_met.context("the successor does not begin")? {
        return Ok(false);
    }
    herd.resume(zombie).await?;
    wait_until(PATIENCE, "the zombie to settle", async || {
        herd.is_idle(zombie).await.then_some(())
    })
    .await?;
    let (record, _) = queue.record(&key).await?.context("the record is gone")?;
    let outstanding = queue.outstanding(case.stage, &PoolName::new(POOL)?).await?;
    ensure!(
        outstanding.total() == 1 || (case.is_done)(&record),
        "the zombie took its successor's message away: {record:?}"
    );
    // Only the attempt that owns a job may end it. A machine that stood still may have given the job to a third one.
    if case.role == Role::Decode && record.attempt == 2 {
        let done = units_done(&herd, zombie).await?;
        ensure!(done == 0, "the zombie says that it has done {done} units");
    }
    // The hardest case for what the zombie may have broken: now the successor dies.
    herd.kill9(successor).await?;
    herd.start_service(successor).await?;
    let found = check(&herd, &clients, &accepted).await?;
    ensure!(found.completed == 1, "{found:?}");
    Ok(true)
}

/// What a decoder has counted of units that are done.
async fn units_done(herd: &Herd, id: Id) -> Result<u64> {
    let (_, page) = http_get(herd.admin(id), "/metrics").await?;
    let mut sum = None;
    for line in page.lines() {
        let is_done = line.contains("verdict=\"done\"");
        if is_done && line.starts_with("medfleet_decode_units_total{") {
            let value: u64 = line.rsplit(' ').next().context("a value")?.parse()?;
            sum = Some(sum.unwrap_or(0) + value);
        }
    }
    sum.context("no count of units")
}

fn one(images: usize) -> Result<Asked> {
    let jobs = jobs(5, 64, Duration::ZERO)?;
    jobs.into_iter()
        .find(|asked| asked.images.len() == images && !asked.is_repeated)
        .context("such a job among 64")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_preprocess() -> Result<()> {
    // A film of full size keeps preprocess busy long enough to be met at work.
    let (file, pixels) = film_of(picture::radiograph("RG1_J2KR.dcm")?)?;
    comes_back(Case {
        role: Role::Preprocess,
        stage: Stage::Preprocess,
        asked: Asked {
            files: vec![file],
            images: vec![pixels],
            is_uploaded: true,
            ..one(1)?
        },
        pace: Pace::default(),
        is_at_work: |record, times| record.starts.preprocess == times && record.frames.is_none(),
        is_done: |record| record.frames.is_some(),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_encode() -> Result<()> {
    comes_back(Case {
        role: Role::Encode,
        stage: Stage::Encode,
        asked: one(1)?,
        pace: Pace {
            // Like the time of a text below, seconds: a worker is mostly met at work at the first try.
            encode_millis: 6_000,
            ..Pace::default()
        },
        is_at_work: |record, times| record.starts.encode == times && !record.chunks.all_done(),
        is_done: |record| record.chunks.total > 0 && record.chunks.all_done(),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_decode() -> Result<()> {
    comes_back(Case {
        role: Role::Decode,
        stage: Stage::Decode,
        asked: one(2)?,
        pace: Pace::writing(600),
        is_at_work: |record, times| record.attempt == times && !record.state.is_final(),
        is_done: |record| record.state.is_final(),
    })
    .await
}
