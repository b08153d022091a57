//! Cancelling in each state: the job ends CANCELLED, once, and whoever is at work on it lets go of it.

use anyhow::{Result, ensure};
use medfleet_proto::v1::JobState;
use medfleet_tests::client::refused;
use medfleet_tests::fleet::{Fleet, Model, Options, Pace, Role};
use medfleet_tests::picture;
use toml::toml;
use tonic::Code;

/// Longer than a test waits: who takes so long for an image or a word does not end by itself.
const NEVER_MILLIS: u64 = 600_000;

async fn cancel_in(state: JobState, without: Option<Role>, pace: Pace) -> Result<()> {
    let fleet = Fleet::start(Options {
        model: Model::Simulated(pace),
        // Workers hear of a cancel when it is made, or not before the test is over: heartbeats, at which they look, are rare, and
        // what one does not let go of comes to no other.
        queue: toml! { ack_wait = "1h" },
        ..Options::default()
    })
    .await?;
    if let Some(role) = without {
        fleet.stop_role(role).await?;
    }
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 7)?).await?;
    client.wait_state(&job.name, state).await?;
    let cancelled = client.cancel(&job.name).await?;
    ensure!(cancelled.state() == JobState::Cancelled, "{cancelled:?}");
    let again = client.cancel(&job.name).await?;
    ensure!(
        again.state() == JobState::Cancelled,
        "cancelling twice answers the same"
    );
    // Whoever held the job lets go of it: the role comes back and the next job runs through.
    if let Some(role) = without {
        fleet.start_role(role).await?;
    }
    let seen = client.watch_to_end(&job.name).await?;
    ensure!(
        seen.last
            .is_some_and(|job| job.state() == JobState::Cancelled),
        "the watch ends CANCELLED"
    );
    refused(client.result(&job.name).await, Code::FailedPrecondition)?;
    fleet.wait_idle().await?;
    ensure!(
        client.get(&job.name).await?.state() == JobState::Cancelled,
        "it stays cancelled"
    );
    let listed = client.list_in(JobState::Cancelled).await?;
    ensure!(
        listed.len() == 1 && listed[0].name == job.name,
        "{listed:?}"
    );
    let listed = client.list_in(JobState::Completed).await?;
    ensure!(listed.is_empty(), "{listed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_accepted() -> Result<()> {
    cancel_in(JobState::Accepted, Some(Role::Preprocess), Pace::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_preprocessed() -> Result<()> {
    cancel_in(JobState::Preprocessed, Some(Role::Encode), Pace::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_encoding() -> Result<()> {
    // Without a decoder the job rests in this state, however late its cancel comes.
    cancel_in(
        JobState::Encoding,
        Some(Role::Decode),
        Pace {
            encode_millis: NEVER_MILLIS,
            ..Pace::default()
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_encoded_and_waiting_for_a_decoder() -> Result<()> {
    cancel_in(JobState::Encoding, Some(Role::Decode), Pace::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_decoding() -> Result<()> {
    cancel_in(JobState::Decoding, None, Pace::writing(NEVER_MILLIS)).await
}

/// A completed job cannot be cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_it_is_refused() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 8)?).await?;
    client.watch_to_end(&job.name).await?;
    refused(client.cancel(&job.name).await, Code::FailedPrecondition)?;
    Ok(())
}
