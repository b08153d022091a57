//! A decode never starts with an image missing: the job fails with that reason and not one token of text. A process never
//! starts on an empty folder in the place of its fleet's blobs.

use std::fs;

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::{FailureReason, JobState};
use medfleet_tests::client::{Client, pictures};
use medfleet_tests::fleet::{Fleet, Options, Role};
use medfleet_tests::picture;

/// The name of a job about these pictures of which all is encoded. No decoder runs, and no encoder that would hold the tokens in
/// memory: only the store is left.
pub(crate) async fn encoded(fleet: &Fleet, client: &Client, seeds: &[u32]) -> Result<String> {
    fleet.stop_role(Role::Decode).await?;
    let all = u32::try_from(seeds.len())?;
    let job = client.submit(pictures(seeds)?).await?;
    client
        .wait_for(&job.name, |job| {
            job.chunks_total == all && job.chunks_done == all
        })
        .await?;
    fleet.stop_role(Role::Encode).await?;
    Ok(job.name)
}

/// Why a job fails whose tokens something happens to before they are decoded. There is no text of it.
async fn failure_after(
    harm: impl FnOnce(&Fleet) -> Result<()>,
    seeds: &[u32],
) -> Result<FailureReason> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let job = encoded(&fleet, &client, seeds).await?;
    harm(&fleet)?;
    fleet.start_role(Role::Decode).await?;
    let seen = client.watch_to_end(&job).await?;
    let last = seen.last.context("the end was seen")?;
    ensure!(last.state() == JobState::Failed, "{last:?}");
    ensure!(seen.text.is_empty(), "text all the same: {:?}", seen.text);
    Ok(last.failure.context("a reason")?.reason())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_blob_fails_the_job() -> Result<()> {
    let reason = failure_after(Fleet::remove_tokens, &[1, 2]).await?;
    ensure!(reason == FailureReason::ImageMissing, "{reason:?}");
    Ok(())
}

/// Bytes changed on disk are never used: the digest says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_token_blob_fails_the_job() -> Result<()> {
    let damage = |fleet: &Fleet| fleet.damage_one_blob("tokens");
    let reason = failure_after(damage, &[3]).await?;
    ensure!(reason == FailureReason::Integrity, "{reason:?}");
    Ok(())
}

/// As after a restart of a machine whose disk was not mounted: nothing is accepted, or looked for, beside the real blobs.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_lost_its_blobs_stops_the_start_until_an_operator_means_it() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(64, 4)?).await?;
    client.wait_final(&job.name).await?;
    for role in Role::ALL {
        fleet.stop_role(role).await?;
    }
    let blobs = fleet.tokens_file().with_file_name("blobs");
    fs::remove_dir_all(&blobs)?;
    fs::create_dir(&blobs)?;
    let refused = fleet.start_role(Role::Preprocess).await;
    let refused = format!("{:#}", refused.expect_err("the disk is not mounted"));
    ensure!(
        refused.contains("is empty, but the queue has jobs"),
        "{refused}"
    );
    ensure!(fs::read_dir(&blobs)?.count() == 0, "it left something");
    fs::write(blobs.join(".store"), "")?;
    fleet.start_role(Role::Ingest).await?;
    let client = fleet.client("st-mary").await?;
    ensure!(client.get(&job.name).await?.state() == JobState::Completed);
    Ok(())
}
