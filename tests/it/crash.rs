//! kill -9 of each process in the middle of a job: the job still completes, once, with the text of an undisturbed one.

use anyhow::{Result, ensure};
use medfleet_proto::v1::JobState;
use medfleet_tests::client::{Seen, report, uploaded};
use medfleet_tests::fleet::{Fleet, Pace, Role};
use medfleet_tests::picture;

/// Jobs of which one is met in its state.
const TRIES_MAX: u32 = 5;

/// What is killed, and in which state of the job.
#[derive(Clone, Copy)]
enum Victim {
    Process(Role),
    Nats,
}

async fn survives(victim: Victim, state: JobState) -> Result<()> {
    survives_with(picture::png(64, 9)?, victim, state).await
}

async fn survives_with(picture: Vec<u8>, victim: Victim, state: JobState) -> Result<()> {
    let pace = Pace {
        encode_millis: 1_500,
        // Sixteen words: seconds, also for a test that is late to see that they are written.
        step_millis: if state == JobState::Decoding { 400 } else { 0 },
        ..Pace::default()
    };
    let fleet = Fleet::paced(pace).await?;
    let client = fleet.client("st-mary").await?;
    // The stage behind is away, so that the job rests in its state while the victim dies, however late that is.
    let resting = match state {
        JobState::Accepted => Some(Role::Preprocess),
        JobState::Encoding => Some(Role::Decode),
        _ => None,
    };
    if let Some(role) = resting {
        fleet.stop_role(role).await?;
    }
    let input = uploaded(&client.upload(&picture).await?);
    let mut tries = 0;
    let job = loop {
        let job = client.submit(report(vec![input.clone()])).await?;
        let met = client
            .wait_for(&job.name, |job| job.state() >= state)
            .await?;
        if met.state() == state {
            break job;
        }
        // A loaded machine may be too late to disturb it.
        tries += 1;
        ensure!(tries < TRIES_MAX, "too late for {tries} jobs: {met:?}");
    };
    match victim {
        Victim::Process(role) => {
            fleet.kill9(role).await?;
            fleet.start_role(role).await?;
        }
        Victim::Nats => fleet.restart_nats().await?,
    }
    if let Some(role) = resting {
        fleet.start_role(role).await?;
    }
    let last = client.wait_completed(&job.name).await?;
    let mut seen = Seen::default();
    client.watch_until(&job.name, &mut seen, |_| false).await?;
    let undisturbed = client.submit(report(vec![input])).await?;
    let expected = client.watch_to_end(&undisturbed.name).await?.text;
    ensure!(
        seen.text == expected && !expected.is_empty(),
        "{:?} is not {expected:?}",
        seen.text
    );
    fleet.wait_idle().await?;
    let again = client.get(&job.name).await?;
    ensure!(
        again == last,
        "a final job changed: {last:?} became {again:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_while_accepted() -> Result<()> {
    survives(Victim::Process(Role::Ingest), JobState::Accepted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_while_encoding() -> Result<()> {
    survives(Victim::Process(Role::Ingest), JobState::Encoding).await
}

#[tokio::test(flavor = "multi_thread")]
async fn preprocess_while_released() -> Result<()> {
    // The real radiograph keeps preprocess busy long enough to be met at work.
    let radiograph = picture::radiograph("RG1_J2KR.dcm")?;
    survives_with(
        radiograph,
        Victim::Process(Role::Preprocess),
        JobState::Released,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn encode_while_encoding() -> Result<()> {
    survives(Victim::Process(Role::Encode), JobState::Encoding).await
}

#[tokio::test(flavor = "multi_thread")]
async fn decode_while_decoding() -> Result<()> {
    survives(Victim::Process(Role::Decode), JobState::Decoding).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_while_accepted() -> Result<()> {
    survives(Victim::Nats, JobState::Accepted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_while_encoding() -> Result<()> {
    survives(Victim::Nats, JobState::Encoding).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_while_decoding() -> Result<()> {
    survives(Victim::Nats, JobState::Decoding).await
}
