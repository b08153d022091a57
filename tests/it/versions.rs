//! The short set on the oldest and the newest supported nats-server.

use anyhow::{Result, ensure};
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
    let job = client.submit_picture(picture::png(64, 1)?).await?;
    let walked = client.watch_to_end(&job.name).await?;
    ensure!(
        walked
            .last
            .is_some_and(|job| job.state() == JobState::Completed),
        "the walk"
    );

    let job = client.submit_picture(picture::png(64, 2)?).await?;
    client
        .wait_for(&job.name, |job| job.state() == JobState::Decoding)
        .await?;
    fleet.kill9(Role::Decode).await?;
    fleet.start_role(Role::Decode).await?;
    ensure!(
        client.wait_final(&job.name).await?.state() == JobState::Completed,
        "a killed decoder"
    );

    let job = client.submit_picture(picture::png(64, 3)?).await?;
    client
        .wait_for(&job.name, |job| job.state() == JobState::Decoding)
        .await?;
    fleet.restart_nats().await?;
    ensure!(
        client.wait_final(&job.name).await?.state() == JobState::Completed,
        "a killed nats-server"
    );

    // From now on a word takes longer than a test waits, so that the job rests until its cancel, however late that is.
    fleet.stop_role(Role::Decode).await?;
    configure_decode(&fleet, "600s")?;
    fleet.start_role(Role::Decode).await?;
    let job = client.submit_picture(picture::png(64, 4)?).await?;
    client
        .wait_for(&job.name, |job| job.state() == JobState::Decoding)
        .await?;
    ensure!(
        client.cancel(&job.name).await?.state() == JobState::Cancelled,
        "a cancel"
    );
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
