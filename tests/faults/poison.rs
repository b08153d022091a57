//! A unit that kills whoever works on it: after so many starts its job fails with that reason, and the worker that would have
//! been the next one lives and goes on. A replay, once nothing kills any more, completes it.

use std::fs;

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::FailureReason;
use medfleet_testkit::wait_until;
use medfleet_tests::client::PATIENCE;
use medfleet_tests::config::job_key;
use medfleet_tests::fleet::{Fleet, Pace, Role};
use medfleet_tests::picture;

/// The first start, and `worker.retries_max` more.
const STARTS: u32 = 5;
/// Longer than a test waits: a worker that takes so long for a word is at work when it is killed, however late that is.
const NEVER_MILLIS: u64 = 600_000;

/// Has decoders that are started from now on take no time for a word.
fn let_finish(fleet: &Fleet) -> Result<()> {
    let file = fleet.tokens_file().with_file_name("decode.toml");
    let config = fs::read_to_string(&file)?;
    let never = format!("\"{NEVER_MILLIS}ms\"");
    ensure!(config.contains(&never), "{config}");
    Ok(fs::write(&file, config.replace(&never, "\"0ms\""))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_kills_its_worker_is_given_up_on_and_the_worker_lives() -> Result<()> {
    let fleet = Fleet::paced(Pace::writing(NEVER_MILLIS)).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 1)?).await?.name;
    let key = job_key("st-mary", &job)?;
    let queue = fleet.queue().await?;
    for start in 1..=STARTS {
        let started = wait_until(PATIENCE, "a decode to start", async || {
            let (record, _) = queue.record(&key).await.ok()??;
            // One that stood still too long on a busy machine was given its unit again, which is a start too.
            (record.attempt >= start).then_some(())
        });
        started.await.with_context(|| format!("start {start}"))?;
        fleet.kill9(Role::Decode).await?;
        if start == STARTS {
            let_finish(&fleet)?;
        }
        fleet.start_role(Role::Decode).await?;
    }
    let exhausted = FailureReason::AttemptsExhausted;
    client.wait_failed(&job, exhausted).await?;
    let letter = client.wait_letter().await?;
    ensure!(letter.job == job && letter.stage == "decode", "{letter:?}");
    let said = letter.failure.as_ref().map(|failure| failure.reason());
    ensure!(said == Some(exhausted), "{letter:?}");
    // By the worker that was given it last and was not killed by it.
    client.replay(&letter.name).await?;
    client.wait_completed(&job).await?;
    let (record, _) = queue.record(&key).await?.context("its record")?;
    // Attempts go on and starts begin anew. Each is one more where a slow machine's sign of life came late.
    ensure!(
        record.epoch == 1 && record.attempt > STARTS && record.starts.decode < STARTS,
        "{record:?}"
    );
    Ok(())
}
