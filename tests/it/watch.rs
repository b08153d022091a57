//! Watching: a second client, resuming anywhere, and five thousand at once on one ingest.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_proto::v1::{
    DecodingParameters, ExtractTask, FailureReason, JobState, SubmitJobRequest, task::Kind,
};
use medfleet_tests::client::{Client, PATIENCE, Seen, inline, task};
use medfleet_tests::fleet::{Fleet, Options, Pace, Role};
use medfleet_tests::picture;

/// A client that reconnects after every few events ends with the same text as one that stayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_resumes_without_gap_or_repeat() -> Result<()> {
    let pace = Pace::writing(20);
    let fleet = Fleet::paced(pace).await?;
    let first = fleet.client("st-mary").await?;
    let job = first.submit_picture(picture::png(64, 5)?).await?;
    let whole = medfleet_tests::beside({
        let (first, name) = (first.clone(), job.name.clone());
        async move { first.watch_to_end(&name).await }
    });
    let mut seen = Seen::default();
    let mut connections = 0;
    while seen.last.is_none() {
        let second = fleet.client("st-mary").await?;
        let (sequence, length) = (seen.sequence, seen.text.len());
        let enough = |now: &Seen| now.sequence > sequence || now.text.len() > length + 10;
        second.watch_until(&job.name, &mut seen, enough).await?;
        connections += 1;
        ensure!(
            connections < 1_000,
            "no progress over a thousand connections"
        );
    }
    let whole = whole.await??;
    ensure!(
        connections > 3,
        "the job was over before a reconnect was tried"
    );
    ensure!(
        seen.text == whole.text && !whole.text.is_empty(),
        "{:?} is not {:?}",
        seen.text,
        whole.text
    );
    let (resumed, stayed): (Vec<_>, Vec<_>) = (states(&seen), states(&whole));
    ensure!(resumed == stayed, "{resumed:?} is not {stayed:?}");
    Ok(())
}

/// A watch that begins after the end still gets everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_watcher_gets_the_whole_story() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 6)?).await?;
    let live = client.watch_to_end(&job.name).await?;
    let late = client.watch_to_end(&job.name).await?;
    ensure!(late.text == live.text && !late.text.is_empty(), "{late:?}");
    ensure!(states(&late) == states(&live), "{late:?} {live:?}");
    Ok(())
}

/// There is no result that could tell the last of it, and the model that takes no time writes all of it at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_no_answer_is_told_to_its_end() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    fleet.stop_role(Role::Decode).await?;
    let client = fleet.client("st-mary").await?;
    let kind = Kind::Extract(ExtractTask {
        json_schema: r#"{"type": "array", "items": {"type": "integer"}, "minItems": 8}"#.to_owned(),
    });
    let request = SubmitJobRequest {
        decoding: Some(DecodingParameters {
            max_tokens: 3,
            ..DecodingParameters::default()
        }),
        ..task(kind, vec![inline(picture::png(64, 7)?)])
    };
    let job = client.submit(request).await?;
    let mut seen = Seen::default();
    let mut watch = client.watch(&job.name, &seen).await?;
    let watched = async {
        // From then on it follows live.
        while !states(&seen).contains(&(JobState::Encoding, 1)) {
            let message = watch.next().await.context("the watch ended")?;
            seen.take(message?)?;
        }
        fleet.start_role(Role::Decode).await?;
        while let Some(message) = watch.next().await {
            seen.take(message?)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(PATIENCE, watched).await??;
    let last = seen.last.context("a final job")?;
    let failure = last.failure.context("half a list is no answer")?;
    ensure!(
        failure.reason() == FailureReason::AnswerUnusable,
        "{failure:?}"
    );
    // The simulated model's tokens are bytes.
    ensure!(seen.text.len() == 3, "{:?}", seen.text);
    Ok(())
}

/// Five thousand watchers of fifty jobs, all on one ingest, over a hundred connections.
#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_watchers_on_one_ingest() -> Result<()> {
    const JOBS: usize = 50;
    const WATCHERS: usize = 5_000;
    let fleet = Fleet::start(Options::default()).await?;
    fleet.stop_role(Role::Decode).await?;
    let submitter = fleet.client("st-mary").await?;
    let mut jobs = Vec::new();
    for seed in 0..JOBS {
        let picture = picture::png(32, seed as u32)?;
        jobs.push(submitter.submit_picture(picture).await?.name);
    }
    let clients: Vec<Client> = stream::iter(0..100)
        .then(|_| fleet.client("st-mary"))
        .try_collect()
        .await?;
    let mut watches = Vec::new();
    for index in 0..WATCHERS {
        let (client, name) = (
            clients[index % clients.len()].clone(),
            jobs[index % JOBS].clone(),
        );
        watches.push(medfleet_tests::beside(async move {
            client.watch_to_end(&name).await
        }));
    }
    // Only now can any job end: every watcher is there to see it, or arrives late and is told.
    fleet.start_role(Role::Decode).await?;
    let mut texts = vec![None; JOBS];
    for (index, watch) in watches.into_iter().enumerate() {
        let seen = watch.await?.with_context(|| format!("watcher {index}"))?;
        let state = seen.last.as_ref().map(|job| job.state());
        ensure!(
            state == Some(JobState::Completed),
            "watcher {index} ended in {state:?}"
        );
        let text = texts[index % JOBS].get_or_insert_with(|| seen.text.clone());
        ensure!(*text == seen.text, "two watchers of one job saw two texts");
    }
    Ok(())
}

fn states(seen: &Seen) -> Vec<(JobState, u32)> {
    seen.progress
        .iter()
        .map(|(_, state, chunks)| (*state, *chunks))
        .collect()
}
