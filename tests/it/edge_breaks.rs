//! What breaks between a hospital's edge and its hub: an upload in the middle, a job that the hub has lost, a certificate
//! that is not the hub's.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_core::{JobId, JobKey, TenantId};
use medfleet_proto::v1::{self, FailureReason, JobState};
use medfleet_testkit::{clock, wait_until};
use medfleet_tests::client::{Client, PATIENCE, inline, report, uploaded};
use medfleet_tests::edge::Edge;
use medfleet_tests::fleet::{Fleet, Options, Role};
use medfleet_tests::picture;
use toml::{Table, toml};

/// Bytes of a part of an upload at the hub, so that a file has many.
const PART_BYTES: usize = 256 << 10;
/// What 64 KiB take on the way to the hub while a test cuts it.
const SLOW: Duration = Duration::from_millis(20);

/// A file of noise, which cannot be made smaller: 5 MiB.
fn large() -> Result<Vec<u8>> {
    let side = 2_300;
    let mut state = 2_654_435_761_u32;
    let pixels = (0..side * side).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    });
    picture::grey_png(side, pixels.collect())
}

/// The hub's job of a job of the edge.
async fn at_hub(hub: &Client, job: &str) -> Result<v1::Job> {
    let id = job.strip_prefix("jobs/").context("a job's name")?;
    Ok(hub.get_by_request_id(&format!("edge/{id}/0")).await?)
}

/// Parts of files that the hub has stored.
fn parts(hub: &Fleet) -> usize {
    // Before the first there is no folder.
    let stored: BTreeSet<String> = hub.stored("st-mary").unwrap_or_default();
    let parts = stored.iter().filter(|name| name.starts_with("input/"));
    parts.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_to_the_hub_that_is_cut_goes_on_where_it_was() -> Result<()> {
    let limits = toml! {
        [limits]
        upload_part_bytes = "256 KiB"
        study_bytes_max = "1024 MiB"
    };
    let hub = Fleet::start(Options {
        ingest: limits,
        ..Options::default()
    })
    .await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let file = large()?;
    let all = file.len().div_ceil(PART_BYTES);
    site.link().delay(SLOW);
    let upload = edge.upload(&file).await?;
    let job = edge.submit(report(vec![uploaded(&upload)])).await?.name;
    for seen in [3, 8, 14] {
        wait_until(PATIENCE, "some parts to arrive", async || {
            (parts(&hub) >= seen).then_some(())
        })
        .await?;
        site.link().cut();
        let arrived = parts(&hub);
        ensure!(arrived < all, "all {all} parts were there before the cut");
        site.link().delay(SLOW);
    }
    let ended = edge.wait_final(&job).await?;
    ensure!(ended.state() == JobState::Completed, "{ended:?}");
    ensure!(parts(&hub) == all, "{} parts, not {all}", parts(&hub));
    let usage = hub.queue().await?.usage().await?;
    let uploads = usage.iter().find(|stream| stream.stream == "KV_UPLOADS");
    let uploads = uploads.context("the bucket of uploads")?.messages;
    ensure!(uploads == 1, "begun {uploads} times");
    let above = hub.client("st-mary").await?;
    ensure!(above.list(10, "").await?.0.len() == 1, "a job was doubled");
    Ok(())
}

/// A hub without a decoder, its edge, and a job that stands before its decode there: their names at the edge and at the hub.
async fn before_decode(request: v1::SubmitJobRequest) -> Result<(Fleet, Edge, String, String)> {
    let hub = Fleet::start(Options::default()).await?;
    hub.stop_role(Role::Decode).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit(request).await?.name;
    let above = hub.client("st-mary").await?;
    let theirs = wait_until(PATIENCE, "the job to be encoded at the hub", async || {
        let theirs = at_hub(&above, &job).await.ok()?;
        let is_encoded = theirs.chunks_total > 0 && theirs.chunks_done == theirs.chunks_total;
        is_encoded.then_some(theirs.name)
    })
    .await?;
    edge.wait_for(&job, |job| job.state() == JobState::Forwarded)
        .await?;
    Ok((hub, site, job, theirs))
}

fn film() -> Result<v1::SubmitJobRequest> {
    Ok(report(vec![inline(picture::png(64, 1)?)]))
}

/// Cuts the link and makes the hub forget the job, as one does that was put back from an older backup.
async fn lose(hub: &Fleet, site: &Edge, theirs: &str) -> Result<()> {
    site.link().cut();
    let id = theirs.strip_prefix("jobs/").context("a job's name")?;
    let key = JobKey {
        tenant: TenantId::new("st-mary")?,
        job: JobId::new(id)?,
    };
    let queue = hub.queue().await?;
    // Whoever still changes it is waited for.
    wait_until(PATIENCE, "the record to be gone", async || {
        match queue.record(&key).await.ok()? {
            Some((_, revision)) => {
                queue.remove_record(revision).await.ok()?;
                None
            }
            None => Some(()),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_hub_has_lost_is_handed_on_again_under_its_name() -> Result<()> {
    let (hub, site, job, theirs) = before_decode(film()?).await?;
    lose(&hub, &site, &theirs).await?;
    hub.start_role(Role::Decode).await?;
    site.link().mend();
    let edge = site.client("st-mary").await?;
    let ended = edge.wait_final(&job).await?;
    ensure!(ended.state() == JobState::Completed, "{ended:?}");
    ensure!(edge.result(&job).await?.job == job);
    let above = hub.client("st-mary").await?;
    let all = above.list(10, "").await?.0;
    ensure!(all.len() == 1 && all[0].name == theirs, "{all:?}");
    let log = site.log()?;
    ensure!(log.contains("the hub has lost a job"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_hub_has_lost_fails_with_the_reason_when_its_time_is_over() -> Result<()> {
    let short = v1::SubmitJobRequest {
        time_to_live: Some(prost_types::Duration {
            seconds: 30,
            nanos: 0,
        }),
        ..film()?
    };
    let (hub, site, job, theirs) = before_decode(short).await?;
    lose(&hub, &site, &theirs).await?;
    let edge = site.client("st-mary").await?;
    let expires = edge.get(&job).await?.expire_time.context("its end")?;
    let now = clock();
    wait_until(PATIENCE, "its time to be over", async || {
        (now().0 / 1000 > expires.seconds).then_some(())
    })
    .await?;
    let waits = edge.get(&job).await?;
    ensure!(waits.state() == JobState::Forwarded, "{waits:?}");
    site.link().mend();
    let failed = edge.wait_final(&job).await?;
    let failure = failed.failure.clone().context("a reason")?;
    ensure!(
        failed.state() == JobState::Failed && failure.reason() == FailureReason::Internal,
        "{failed:?}"
    );
    ensure!(
        failure.message.contains("does not know the job any more"),
        "{failure:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_result_the_hub_has_erased_fails_with_the_reason() -> Result<()> {
    let (hub, site, job, theirs) = before_decode(film()?).await?;
    site.link().cut();
    hub.start_role(Role::Decode).await?;
    let above = hub.client("st-mary").await?;
    let done = above.wait_final(&theirs).await?;
    ensure!(done.state() == JobState::Completed, "{done:?}");
    above.erase(&theirs).await?;
    site.link().mend();
    let edge = site.client("st-mary").await?;
    let failed = edge.wait_final(&job).await?;
    let failure = failed.failure.clone().context("a reason")?;
    ensure!(
        failed.state() == JobState::Failed && failure.message.contains("has its result no more"),
        "{failed:?}"
    );
    Ok(())
}

/// The wrong authority is no reason to fail a job, nor to trust.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_hands_nothing_to_a_hub_whose_certificate_it_does_not_trust() -> Result<()> {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let hub = Fleet::start(Options {
        tls: Some((own.cert.pem(), own.signing_key.serialize_pem())),
        ..Options::default()
    })
    .await?;
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("hub-ca.pem");
    fs::write(&authority, other.cert.pem())?;
    let mut more = Table::new();
    more.insert("ca_file".to_owned(), authority.display().to_string().into());
    more.insert("server_name".to_owned(), "localhost".into());
    let site = Edge::start(&hub, more).await?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit(film()?).await?.name;
    let silence = "medfleet_ingest_edge_hub_silence_seconds";
    site.wait_metric(silence, |silent| silent > 2.0).await?;
    let waits = edge.get(&job).await?;
    ensure!(waits.state() == JobState::Accepted, "{waits:?}");
    let log = site.log()?;
    ensure!(log.contains("the hub is away"), "{log}");
    let token = hub.token("st-mary");
    let above = Client::connect_tls(hub.api(), &token, &own.cert.pem()).await?;
    ensure!(above.list(1, "").await?.0.is_empty(), "it was handed on");

    fs::write(&authority, own.cert.pem())?;
    site.kill9().await?;
    site.start_again().await?;
    let edge = site.client("st-mary").await?;
    let ended = edge.wait_final(&job).await?;
    ensure!(ended.state() == JobState::Completed, "{ended:?}");
    ensure!(at_hub(&above, &job).await?.state() == JobState::Completed);
    Ok(())
}
