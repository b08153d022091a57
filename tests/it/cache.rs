//! An image that a tenant shows again, in whatever study, is encoded once; the result says so, and the text is the same as
//! that of images encoded for it. Another tenant's images are its own, and what was erased is encoded again.

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::{self, JobState, result::Output};
use medfleet_tests::client::{Client, inline, report};
use medfleet_tests::fleet::{Fleet, Options, Role, http_get};
use medfleet_tests::picture;

/// A report over pictures of these seeds: the job's name and its result.
async fn drafted(client: &Client, pictures: &[u32]) -> Result<(String, v1::Result)> {
    let inputs = pictures.iter();
    let inputs = inputs.map(|seed| Ok(inline(picture::png(64, *seed)?)));
    let job = client
        .submit(report(inputs.collect::<Result<_>>()?))
        .await?;
    let done = client.wait_final(&job.name).await?;
    ensure!(done.state() == JobState::Completed, "{done:?}");
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
    let (_, metrics) = http_get(fleet.admin(Role::Encode), "/metrics").await?;
    let wanted = format!("medfleet_encode_frames_total {encoded}");
    let is_there = metrics.lines().any(|line| line == wanted);
    ensure!(is_there, "{wanted} is not among: {metrics}");
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
    let (mary, john) = (
        fleet.client("st-mary").await?,
        fleet.client("st-john").await?,
    );
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
