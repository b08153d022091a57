//! Data residency at a hospital's edge, with real processes: the images of a tenant stay, and the hub writes the same text by
//! their tokens; and what a hub believes of tokens that come to it, which is nothing about any image of its own.

use anyhow::{Context, Result, ensure};
use medfleet_core::{Digest, Move, PoolName, Stage, Verdict};
use medfleet_proto::v1::{self, JobState};
use medfleet_proto::work::v1 as work;
use medfleet_queue::Applied;
use medfleet_testkit::{clock, wait_until};
use medfleet_tests::client::{PATIENCE, inline, pictures, report, task};
use medfleet_tests::config::POOL;
use medfleet_tests::edge::Edge;
use medfleet_tests::fleet::{Fleet, Model, Options, Pace};
use medfleet_tests::picture;
use medfleet_worker::encoded;

use crate::edge::{EVERY_STAGE, all_at_hub, each_is_done_once, kill_as_they_arrive, states};
use crate::identifiers::{QUESTION, SECRETS, answer, holds, phantom, planted};

/// The stages of a job whose images stay, up to where only the hub goes on.
const ENCODED_HERE: [JobState; 6] = [
    JobState::Accepted,
    JobState::Released,
    JobState::Preprocessed,
    JobState::Encoding,
    JobState::Forwarded,
    JobState::Decoding,
];

/// An edge where the images of one of the two tenants stay, without workers yet.
async fn where_images_stay(hub: &Fleet) -> Result<Edge> {
    let rules = "[tenants.st-mary]\ntravels = \"tokens\"".parse()?;
    Edge::start(hub, rules).await
}

fn compare(inputs: Vec<v1::Input>) -> v1::SubmitJobRequest {
    task(v1::task::Kind::Compare(v1::CompareTask::default()), inputs)
}

/// Whether any of the files has these bytes anywhere.
fn has(files: &[Vec<u8>], bytes: &[u8]) -> bool {
    let is_in = |file: &Vec<u8>| file.windows(bytes.len()).any(|part| part == bytes);
    files.iter().any(is_in)
}

/// A result without what says where and when it was made, and by whose key.
fn of_anybody(mut result: v1::Result) -> v1::Result {
    result.job.clear();
    result.timings = None;
    for frame in &mut result.frames {
        frame.frame_digest.clear();
        frame.token_digest.clear();
    }
    if let Some(provenance) = &mut result.provenance {
        provenance.input_digests.clear();
        provenance.encoder_device.clear();
        provenance.frames_cached = 0;
    }
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn where_images_stay_the_hub_writes_the_same_and_has_no_pixel() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = where_images_stay(&hub).await?;
    site.start_stages().await?;
    let (mary, john) = (site.client("st-mary").await?, site.client("st-john").await?);
    let above = hub.client("st-mary").await?;
    let pictures = [
        picture::png(64, 1)?,
        picture::png(64, 2)?,
        picture::png(64, 3)?,
    ];
    let requests = || {
        let inputs = |range: std::ops::Range<usize>| {
            let pictures = pictures[range].iter();
            pictures.map(|picture| inline(picture.clone())).collect()
        };
        [report(inputs(0..1)), compare(inputs(1..3))]
    };
    let mut texts = Vec::new();
    for request in requests() {
        let job = mary.submit(request).await?.name;
        let seen = mary.watch_completed(&job).await?;
        ensure!(states(&seen) == ENCODED_HERE, "{:?}", states(&seen));
        let result = mary.result(&job).await?;
        let provenance = result.provenance.as_ref().context("its provenance")?;
        ensure!(provenance.encoder_device == "simulated", "{provenance:?}");
        texts.push((seen.text, of_anybody(result)));
    }
    // Of the other tenant the files travel, as before.
    let job = john.submit_picture(picture::png(64, 4)?).await?;
    let seen = john.watch_to_end(&job.name).await?;
    ensure!(states(&seen) == EVERY_STAGE, "{:?}", states(&seen));

    hub.wait_idle().await?;
    let frames = site.blobs_of("st-mary", "frame")?;
    ensure!(frames.len() == pictures.len(), "{} frames", frames.len());
    let (kept, inputs) = (hub.kept().await?, site.blobs_of("st-mary", "input")?);
    for bytes in pictures.iter().chain(&frames) {
        ensure!(!has(&kept, bytes), "the hub has a picture or a frame");
    }
    ensure!(
        has(&kept, &picture::png(64, 4)?),
        "the look finds nothing at all"
    );
    ensure!(
        has(&inputs, &pictures[0]),
        "the picture is where it was sent"
    );

    for (request, (text, result)) in requests().into_iter().zip(texts) {
        let job = above.submit(request).await?.name;
        let alone = above.watch_to_end(&job).await?;
        ensure!(alone.text == text && !text.is_empty(), "another text");
        let alone = of_anybody(above.result(&job).await?);
        ensure!(alone == result, "{alone:?} is not {result:?}");
    }
    ensure!(
        has(&hub.kept().await?, &pictures[0]),
        "now it was sent there"
    );
    hub.wait_idle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_images_stay_what_was_encoded_waits_and_is_doubled_by_nothing() -> Result<()> {
    const JOBS: u32 = 8;
    let hub = Fleet::paced(Pace::writing(10)).await?;
    let site = where_images_stay(&hub).await?;
    site.start_stages().await?;
    site.link().cut();
    let edge = site.client("st-mary").await?;
    let above = hub.client("st-mary").await?;
    let mut jobs = Vec::new();
    for seed in 0..JOBS {
        jobs.push(edge.submit_picture(picture::png(64, seed)?).await?.name);
    }
    site.wait_waiting(JOBS).await?;
    for job in &jobs {
        let job = edge.get(job).await?;
        ensure!(job.state() == JobState::Encoding, "{job:?}");
    }
    // One that ends while it waits never comes there.
    let (ended, jobs) = jobs.split_first().context("a job")?;
    ensure!(edge.cancel(ended).await?.state() == JobState::Cancelled);
    site.kill9().await?;
    // Nobody's images stay any more: what was begun here goes on as tokens all the same.
    site.configure(toml::Table::new())?;
    site.start_again().await?;
    wait_until(PATIENCE, "it to tell of them", async || {
        let log = site.log().ok()?;
        log.contains("were begun under one").then_some(())
    })
    .await?;
    site.link().mend();
    kill_as_they_arrive(&site, &above, &[1, 3]).await?;
    each_is_done_once(&site, &above, jobs, &ENCODED_HERE).await
}

/// A worker has begun a job and set it aside; before it was queued again, the rule went under which it was begun.
#[tokio::test(flavor = "multi_thread")]
async fn where_images_stayed_what_was_set_aside_is_released_again() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = where_images_stay(&hub).await?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit_picture(picture::png(64, 1)?).await?.name;
    let queue = site.queue().await?;
    let mut puller = queue.puller(Stage::Preprocess, PoolName::new(POOL)?);
    let delivery = tokio::time::timeout(PATIENCE, puller.next()).await??;
    let unit = delivery.unit.clone();
    let start = Move::Start {
        stage: Stage::Preprocess,
        unit: 0,
        retries_max: 3,
    };
    let started = queue.apply(&unit.key, Some(unit.epoch), &start, clock()());
    let started = started.await?;
    ensure!(matches!(started, Applied::Applied { .. }), "{started:?}");
    site.kill9().await?;
    delivery.settle(Verdict::Done).await?;
    queue.publish_intake(&unit, &Vec::new()).await?;
    site.configure(toml::Table::new())?;
    site.start_again().await?;
    site.start_stages().await?;
    let edge = site.client("st-mary").await?;
    edge.wait_completed(&job).await?;
    let frames = site.blobs_of("st-mary", "frame")?;
    ensure!(frames.len() == 1, "it was not done here");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_images_stay_and_nobody_encodes_nothing_leaves() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = where_images_stay(&hub).await?;
    let edge = site.client("st-mary").await?;
    let cancelled = edge.submit(pictures(&[1])?).await?.name;
    let short = v1::SubmitJobRequest {
        time_to_live: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..pictures(&[2])?
    };
    let short = edge.submit(short).await?.name;
    ensure!(edge.wait_final(&short).await?.state() == JobState::Expired);
    ensure!(edge.cancel(&cancelled).await?.state() == JobState::Cancelled);
    // The stages of a site that come later find their work, and end here what is no image.
    let last = edge.submit(pictures(&[3])?).await?.name;
    let garbage = report(vec![inline(b"no image of any kind".to_vec())]);
    let garbage = edge.submit(garbage).await?.name;
    site.start_stages().await?;
    let refused = v1::FailureReason::InputRefused;
    edge.wait_failed(&garbage, refused).await?;
    edge.wait_completed(&last).await?;
    let above = hub.client("st-mary").await?;
    ensure!(all_at_hub(&above).await?.len() == 1, "an ended job left");
    Ok(())
}

/// It was accepted and waited when its files could still travel, and the texts that end its own with them.
#[tokio::test(flavor = "multi_thread")]
async fn where_images_stay_since_a_moment_ago_no_text_leaves_that_nobody_searched() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, toml::Table::new()).await?;
    site.link().cut();
    let edge = site.client("st-mary").await?;
    let decoding = v1::DecodingParameters {
        stop: vec!["Qorvex".to_owned()],
        ..v1::DecodingParameters::default()
    };
    let request = v1::SubmitJobRequest {
        decoding: Some(decoding),
        ..report(vec![inline(picture::png(64, 1)?)])
    };
    let job = edge.submit(request).await?.name;
    site.kill9().await?;
    site.configure("[tenants.st-mary]\ntravels = \"tokens\"".parse()?)?;
    site.start_again().await?;
    site.start_stages().await?;
    site.link().mend();
    let edge = site.client("st-mary").await?;
    let failed = edge.wait_final(&job).await?;
    let failure = failed.failure.context("a reason")?;
    ensure!(
        failure.reason() == v1::FailureReason::InputRefused
            && failure.message.contains("decoding.stop"),
        "{failure:?}"
    );
    let above = hub.client("st-mary").await?;
    ensure!(all_at_hub(&above).await?.is_empty(), "it left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_images_stay_nothing_of_a_header_travels() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = where_images_stay(&hub).await?;
    site.start_stages().await?;
    let folder = tempfile::tempdir()?;
    let image = planted(phantom(folder.path()).await?, &[])?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit(answer(QUESTION, image.clone())).await?.name;
    let seen = edge.watch_to_end(&job).await?;
    let result = edge.result(&job).await?;
    let mut warnings = result.warnings.iter();
    let is_masked = warnings.any(|text| {
        text.starts_with("PROMPT_MASKED") && text.ends_with("NAME 3, NUMBER 2, BIRTH_DATE 1")
    });
    ensure!(is_masked, "{:?}", result.warnings);
    hub.wait_idle().await?;
    for file in hub.kept().await? {
        for secret in SECRETS {
            ensure!(!holds(&file, secret), "{secret:?} is at the hub");
        }
    }
    let inputs = site.blobs_of("st-mary", "input")?;
    ensure!(
        inputs.iter().any(|file| holds(file, "Qorvex^Wylat")),
        "it was never there"
    );

    // The hub alone masks and writes the same.
    let above = hub.client("st-mary").await?;
    let job = above.submit(answer(QUESTION, image)).await?.name;
    ensure!(above.watch_to_end(&job).await?.text == seen.text);
    let alone = of_anybody(above.result(&job).await?);
    let ours = of_anybody(result);
    ensure!(alone == ours, "{alone:?} is not {ours:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_another_model_fail_and_both_are_named() -> Result<()> {
    let hub = Fleet::with_model(Model::Tiny).await?;
    let site = where_images_stay(&hub).await?;
    site.start_stages().await?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit_picture(picture::png(64, 1)?).await?;
    let mismatch = v1::FailureReason::ModelMismatch;
    let failure = edge.wait_failed(&job.name, mismatch).await?;
    let is_named = ["64 pixels", "224 pixels"].map(|side| failure.message.contains(side));
    ensure!(is_named == [true; 2], "{failure:?}");
    Ok(())
}

/// An encoded study of one frame, as the simulated model's encoder could have made it, with these tokens.
fn encoded_study(encoder: &str, tokens: &[u8]) -> Result<Vec<u8>> {
    let encoder: Digest = encoder.parse()?;
    let frame = work::EncodedFrame {
        width: 64,
        channels: 1,
        info: Some(v1::FrameUsed::default()),
        tokens_checksum: encoded::checksum(tokens),
    };
    let study = work::EncodedStudy {
        image_count: 1,
        frames: vec![frame],
        preprocessing_version: "medgemma-1.5-5".to_owned(),
        input_digests: vec![vec![1; 32].into()],
        screening: Some(work::TextScreening::default()),
        encoder_digest: encoder.as_bytes().to_vec().into(),
        tokens_per_frame: 16,
        token_width: 32,
        dtype: "bf16".to_owned(),
        ..work::EncodedStudy::default()
    };
    let begin = encoded::beginning(&study)?;
    Ok([&begin[..], tokens].concat())
}

fn standing_for_one(file: Vec<u8>) -> v1::SubmitJobRequest {
    let input = v1::Input {
        encoded_images: 1,
        ..inline(file)
    };
    report(vec![input])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_be_tokens_counts_for_its_own_job_alone() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let client = hub.client("st-mary").await?;
    let picture = picture::png(64, 1)?;
    let honest = client.submit_picture(picture.clone()).await?;
    let text = client.watch_to_end(&honest.name).await?.text;
    let provenance = client.result(&honest.name).await?.provenance;
    let encoder = provenance.context("its provenance")?.encoder_digest;

    let tokens = vec![7_u8; 16 * 32 * 2];
    let file = encoded_study(&encoder, &tokens)?;
    let claimed = client.submit(standing_for_one(file.clone())).await?;
    let claimed = client.watch_completed(&claimed.name).await?;
    ensure!(claimed.text != text && !claimed.text.is_empty());
    let again = client.submit_picture(picture.clone()).await?;
    ensure!(client.watch_to_end(&again.name).await?.text == text);

    let mut damaged = file.clone();
    *damaged.last_mut().context("a byte")? ^= 1;
    let other = encoded_study(&"ab".repeat(32), &tokens)?;
    for (file, reason, named) in [
        (picture, v1::FailureReason::InputRefused, "no encoded study"),
        (damaged, v1::FailureReason::InputRefused, "damaged"),
        (other, v1::FailureReason::ModelMismatch, encoder.as_str()),
    ] {
        let job = client.submit(standing_for_one(file)).await?;
        let failure = client.wait_failed(&job.name, reason).await?;
        ensure!(failure.message.contains(named), "{failure:?}");
    }
    // Not declared, it is no picture.
    let job = client.submit_picture(file).await?;
    let refused = v1::FailureReason::InputRefused;
    client.wait_failed(&job.name, refused).await?;
    Ok(())
}
