//! An image that a tenant shows again, in whatever study, is encoded once; the result says so, and the text is the same as
//! that of images encoded for it. So it is where it comes to several encoders at once, and where one of them dies at it. Another
//! tenant's images are its own, and what was erased is encoded again.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use medfleet_proto::v1::{self, result::Output};
use medfleet_testkit::wait_until;
use medfleet_tests::alerts::told;
use medfleet_tests::client::{Client, PATIENCE, pictures};
use medfleet_tests::fleet::extra::Extra;
use medfleet_tests::fleet::{Fleet, Model, Options, Pace, Role};
use medfleet_tests::picture;
use toml::toml;

const FRAMES: &str = "medfleet_encode_frames_total";
const TAKEN: &str = "medfleet_encode_claims_total{outcome=\"taken\"}";
const HELD: &str = "medfleet_encode_claims_total{outcome=\"held\"}";
const FOUND: &str = "medfleet_encode_claims_held_total{outcome=\"found\"}";
const LEFT: &str = "medfleet_encode_claims_held_total{outcome=\"left\"}";
const WAITS: &str = "medfleet_encode_claims_held_wait_seconds_count";

/// A report over pictures of these seeds: the job's name and its result.
async fn drafted(client: &Client, seeds: &[u32]) -> Result<(String, v1::Result)> {
    let job = client.submit(pictures(seeds)?).await?;
    client.wait_completed(&job.name).await?;
    let result = client.result(&job.name).await?;
    Ok((job.name, result))
}

/// That so many of the result's images came from the cache, and so many were encoded since the fleet's start.
async fn expect(
    fleet: &Fleet,
    (_, result): &(String, v1::Result),
    cached: u32,
    encoded: u32,
) -> Result<()> {
    let provenance = result.provenance.as_ref().context("no provenance")?;
    ensure!(provenance.frames_cached == cached, "{provenance:?}");
    let found = told(fleet.admin(Role::Encode), FRAMES).await?;
    ensure!(found == i64::from(encoded), "{found} images were encoded");
    Ok(())
}

fn text((_, result): &(String, v1::Result)) -> Result<&str> {
    match &result.output {
        Some(Output::Report(report)) => Ok(&report.text),
        other => anyhow::bail!("not a report: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_comes_again_is_encoded_once_for_its_tenant() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let (mary, john) = fleet.two_clients().await?;
    let first = drafted(&mary, &[1, 2]).await?;
    expect(&fleet, &first, 0, 2).await?;
    let second = drafted(&mary, &[2, 3]).await?;
    expect(&fleet, &second, 1, 3).await?;
    let shared = &first.1.frames[1].token_digest;
    ensure!(second.1.frames[0].token_digest == *shared, "{second:?}");
    let foreign = drafted(&john, &[2, 3]).await?;
    expect(&fleet, &foreign, 0, 5).await?;

    // The second study relies on the image still.
    mary.erase(&first.0).await?;
    let third = drafted(&mary, &[2]).await?;
    expect(&fleet, &third, 1, 5).await?;
    for job in [&second.0, &third.0] {
        mary.erase(job).await?;
    }
    fleet.wait_idle().await?;
    let stored = fleet.stored("st-mary")?;
    let left = stored.iter().find(|name| name.starts_with("tokens/"));
    ensure!(left.is_none(), "{left:?}");
    let again = drafted(&mary, &[2, 3]).await?;
    expect(&fleet, &again, 0, 7).await?;
    ensure!(
        text(&again)? == text(&second)?,
        "images from the cache gave another text"
    );
    fleet.wait_idle().await
}

/// A fleet whose encoder, of one slot, takes so long for an image.
async fn encoding_in(millis: u64, queue: toml::Table) -> Result<Fleet> {
    let pace = Pace {
        encode_millis: millis,
        ..Pace::default()
    };
    Fleet::start(Options {
        model: Model::Simulated(pace),
        queue,
        ..Options::default()
    })
    .await
}

/// One more encoder of a slot.
async fn another(fleet: &Fleet) -> Result<Extra> {
    let other = fleet.another(Role::Encode, 1)?;
    other.ready().await?;
    Ok(other)
}

/// Has encoders that are started from now on take another time for an image.
fn change_pace(fleet: &Fleet, from_millis: u64, to_millis: u64) -> Result<()> {
    let [from, to] = [from_millis, to_millis].map(|millis| format!("\"{millis}ms\""));
    let file = fleet.tokens_file().with_file_name("encode.toml");
    let config = fs::read_to_string(&file)?;
    ensure!(config.contains(&from), "{config}");
    Ok(fs::write(&file, config.replace(&from, &to))?)
}

/// Submits as many jobs with one picture at once.
async fn submitted(client: &Client, jobs: usize) -> Result<Vec<v1::Job>> {
    let picture = picture::png(64, 1)?;
    let jobs = (0..jobs).map(|_| client.submit_picture(picture.clone()));
    Ok(try_join_all(jobs).await?)
}

/// Waits for these jobs, which must complete, and gives their results.
async fn results(client: &Client, jobs: &[v1::Job]) -> Result<Vec<(String, v1::Result)>> {
    let mut results = Vec::new();
    for job in jobs {
        client.wait_completed(&job.name).await?;
        results.push((job.name.clone(), client.result(&job.name).await?));
    }
    Ok(results)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_comes_to_two_encoders_at_once_is_encoded_once() -> Result<()> {
    let fleet = encoding_in(4_000, toml::Table::new()).await?;
    let other = another(&fleet).await?;
    let client = fleet.client("st-mary").await?;
    // All are there before the first comes to an encoder: the others come while that one is at it.
    fleet.stop_role(Role::Preprocess).await?;
    let jobs = submitted(&client, 6).await?;
    fleet.start_role(Role::Preprocess).await?;
    let results = results(&client, &jobs).await?;
    let (mut encoded, mut held, mut found, mut waits) = (0, 0, 0, 0);
    for admin in [fleet.admin(Role::Encode), other.admin()] {
        encoded += told(admin, FRAMES).await?;
        held += told(admin, HELD).await?;
        found += told(admin, FOUND).await?;
        waits += told(admin, WAITS).await?;
    }
    ensure!(held > 0, "the other encoder never had the image");
    ensure!(encoded == 1, "it was encoded {encoded} times");
    ensure!(
        found == held && waits == held,
        "of {held} that waited, {found} found it, and {waits} waits were counted"
    );
    let mut cached = 0;
    for result in &results {
        let provenance = result.1.provenance.as_ref();
        cached += provenance.context("no provenance")?.frames_cached;
        ensure!(text(result)? == text(&results[0])?, "{result:?}");
    }
    ensure!(cached == 5, "{cached} results say that it was in the cache");
    fleet.wait_idle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_encoder_dies_at_another_takes_over_and_does_not_idle_until_then() -> Result<()> {
    // The first one is still at its image when it dies, however late that is. Its claims do not outlive it for long.
    const NEVER_MILLIS: u64 = 600_000;
    let fleet = encoding_in(NEVER_MILLIS, toml! { lease_ttl = "3s" }).await?;
    let client = fleet.client("st-mary").await?;
    let has = async |admin: SocketAddr, metric: &str| {
        let counted = told(admin, metric).await.ok()?;
        (counted > 0).then_some(())
    };
    let mut jobs = submitted(&client, 1).await?;
    let dying = fleet.admin(Role::Encode);
    wait_until(PATIENCE, "one to encode", async || has(dying, TAKEN).await).await?;
    // Slow enough for its next image to be claimed as well.
    change_pace(&fleet, NEVER_MILLIS, 200)?;
    let other = another(&fleet).await?;
    let living = other.admin();
    jobs.extend(submitted(&client, 1).await?);
    wait_until(PATIENCE, "the other to wait", async || {
        has(living, HELD).await
    })
    .await?;
    // One that waits holds no slot: the next image goes to it, and begins.
    let urgent = v1::SubmitJobRequest {
        class: v1::Class::Urgent.into(),
        ..pictures(&[2])?
    };
    let next = client.submit(urgent).await?;
    wait_until(PATIENCE, "the next image to be begun", async || {
        has(living, TAKEN).await
    })
    .await?;
    fleet.kill9(Role::Encode).await?;
    let results = results(&client, &jobs).await?;
    ensure!(text(&results[0])? == text(&results[1])?, "{results:?}");
    client.wait_completed(&next.name).await?;
    let encoded = told(living, FRAMES).await?;
    ensure!(encoded == 2, "it encoded {encoded} images");
    let left = told(living, LEFT).await?;
    ensure!(left == 1, "{left} images were left to it");
    fleet.wait_idle().await
}
