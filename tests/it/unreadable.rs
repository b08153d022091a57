//! A message among the units of work that no worker can read is counted, where an alert looks, and fails the job that it names;
//! where there are too many of them, the job is set aside and queued again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_core::{PoolName, Stage, Verdict};
use medfleet_proto::v1::FailureReason;
use medfleet_testkit::wait_until;
use medfleet_tests::alerts::told;
use medfleet_tests::client::PATIENCE;
use medfleet_tests::config::POOL;
use medfleet_tests::fleet::{Fleet, Options, Role};
use medfleet_tests::picture;
use toml::toml;

/// What the encode worker has counted of them, by whether they name their job.
async fn counted(fleet: &Fleet, job_known: &str) -> Result<i64> {
    let series = format!("medfleet_encode_unreadable_units_total{{job_known=\"{job_known}\"}}");
    told(fleet.admin(Role::Encode), &series).await
}

#[tokio::test(flavor = "multi_thread")]
async fn units_that_cannot_be_read_are_counted() -> Result<()> {
    let fleet = Fleet::start(Options {
        queue: toml! { unreadable_wait = "0s" },
        ..Options::default()
    })
    .await?;
    for job_known in ["yes", "no"] {
        let count = counted(&fleet, job_known).await?;
        ensure!(count == 0, "{job_known}: {count} before the first");
    }
    // The job rests, so that no worker is at work on it.
    fleet.stop_role(Role::Preprocess).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 1)?).await?.name;
    let id = job.strip_prefix("jobs/").context("a job's name")?;
    for (named, job_known) in [(format!("st-mary.{id}"), "yes"), ("Nobody.1".into(), "no")] {
        let subject = format!("work.encode.{POOL}.stat.{named}.0");
        fleet.publish_garbage(&subject).await?;
        wait_until(PATIENCE, "the unit to be counted", async || {
            (counted(&fleet, job_known).await.ok()? == 1).then_some(())
        })
        .await?;
    }
    client.wait_failed(&job, FailureReason::Internal).await?;
    ensure!(counted(&fleet, "yes").await? == 1, "counted twice");
    Ok(())
}

/// One is too many where there are three places. In the place of the one it cannot read, the worker gets another from the sweep.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_set_aside_is_queued_again() -> Result<()> {
    let fleet = Fleet::start(Options {
        queue: toml! { in_flight_max = 3 },
        ..Options::default()
    })
    .await?;
    fleet.stop_role(Role::Preprocess).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 1)?).await?.name;
    // The unit is gone for good, and garbage has its place.
    let queue = fleet.queue().await?;
    let mut puller = queue.puller(Stage::Preprocess, PoolName::new(POOL)?);
    let taken = tokio::time::timeout(PATIENCE, puller.next()).await??;
    let (key, class) = (taken.unit.key.clone(), taken.unit.class);
    taken.settle(Verdict::Done).await?;
    puller.close().await?;
    let subject = format!("work.preprocess.{POOL}.{class}.{key}.0");
    fleet.publish_garbage(&subject).await?;
    fleet.start_role(Role::Preprocess).await?;
    client.wait_completed(&job).await?;
    wait_until(PATIENCE, "the note to go", async || {
        let aside = queue.list_aside(Duration::ZERO).await.ok()?;
        aside.is_empty().then_some(())
    })
    .await
}
