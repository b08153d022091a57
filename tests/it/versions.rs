//! The short set on the oldest and the newest supported nats-server.

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::JobState;
use medfleet_tests::fleet::{Fleet, Model, Options, Pace, Role};
use medfleet_tests::picture;

use crate::operators::configure_decode;

async fn short_set(version: &'static str) -> Result<()> {
    let pace = Pace {
        // Sixteen words: seconds, also for a test that is late to see that they are written.
        step_millis: 400,
        ..Pace::default()
    };
    let fleet = Fleet::start(Options {
        nats: version,
        model: Model::Simulated(pace),
        ..Options::default()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    let decoding = async |seed| -> Result<String> {
        let job = client.submit_picture(picture::png(64, seed)?).await?.name;
        client.wait_state(&job, JobState::Decoding).await?;
        Ok(job)
    };
    let job = client.submit_picture(picture::png(64, 1)?).await?;
    let walked = client.watch_completed(&job.name).await;
    walked.context("the walk")?;

    let job = decoding(2).await?;
    fleet.kill9(Role::Decode).await?;
    fleet.start_role(Role::Decode).await?;
    let decoded = client.wait_completed(&job).await;
    decoded.context("a killed decoder")?;

    let job = decoding(3).await?;
    fleet.restart_nats().await?;
    let decoded = client.wait_completed(&job).await;
    decoded.context("a killed nats-server")?;

    // From now on a word takes longer than a test waits, so that the job rests until its cancel, however late that is.
    fleet.stop_role(Role::Decode).await?;
    configure_decode(&fleet, "600s")?;
    fleet.start_role(Role::Decode).await?;
    let job = decoding(4).await?;
    ensure!(client.cancel(&job).await?.state() == JobState::Cancelled);
    fleet.wait_idle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_oldest_supported() -> Result<()> {
    short_set(medfleet_testkit::NATS_OLDEST).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_newest_known() -> Result<()> {
    short_set(medfleet_testkit::NATS_NEWEST).await
}
