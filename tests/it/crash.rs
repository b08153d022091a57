//! kill -9 of each process in the middle of a job: the job still completes, once, with the text of an undisturbed one.

use anyhow::{Result, ensure};
use medfleet_proto::v1::JobState;
use medfleet_tests::client::{Seen, report, uploaded};
use medfleet_tests::fleet::{Fleet, Pace, Role};
use medfleet_tests::picture;

use crate::operators::configure_decode;

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

/// What it has of the text of the attempt that died counts no more: it is told so, and gets all of the next one's.
#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_of_a_decoder_that_is_killed_has_the_text_once() -> Result<()> {
    // Sixteen words: most of a minute, also for a test that is late to see the first of them.
    let fleet = Fleet::paced(Pace::writing(3_000)).await?;
    let client = fleet.client("st-mary").await?;
    let picture = picture::png(64, 9)?;
    let job = client.submit_picture(picture.clone()).await?;
    let mut seen = Seen::default();
    let has_text = |seen: &Seen| !seen.text.is_empty();
    client.watch_until(&job.name, &mut seen, has_text).await?;
    ensure!(has_text(&seen) && seen.last.is_none(), "{seen:?}");
    let died = seen.attempt;
    fleet.kill9(Role::Decode).await?;
    configure_decode(&fleet, "0ms")?;
    fleet.start_role(Role::Decode).await?;
    client.watch_until(&job.name, &mut seen, |_| false).await?;
    let last = seen.last.as_ref().map(|job| job.state());
    ensure!(last == Some(JobState::Completed), "{seen:?}");
    let undisturbed = client.submit_picture(picture).await?;
    let expected = client.watch_to_end(&undisturbed.name).await?.text;
    ensure!(
        seen.attempt > died && seen.text == expected,
        "{seen:?} is not {expected:?}"
    );
    Ok(())
}
