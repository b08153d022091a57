//! What breaks between a hospital's edge and its hub: an upload in the middle, a job that the hub has lost, a certificate
//! that is not the hub's.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_core::{Forwarded, JobId, JobKey, JobRecord, UnixMillis};
use medfleet_proto::v1::{self, FailureReason, JobState, SubmitJobRequest};
use medfleet_queue::{Queue, Updated};
use medfleet_testkit::{clock, wait_until};
use medfleet_tests::client::{Client, PATIENCE, is_encoded, pictures, report, uploaded};
use medfleet_tests::config::job_key;
use medfleet_tests::edge::Edge;
use medfleet_tests::fleet::{Fleet, Options, Role};
use medfleet_tests::picture;
use toml::{Table, Value, toml};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::edge::at_hub;

/// Bytes of a part of an upload at the hub, so that a file has many.
const PART_BYTES: usize = 128 << 10;
/// What passes before a link is cut. A hub that is slow has taken only what exceeds its stream's window of 1 MiB, which is
/// still several parts, and three times all of it is less than the file.
const BETWEEN_CUTS_BYTES: u64 = 2 << 20;
/// Side of a picture whose file has 9 MB.
const SIDE: u32 = 3_000;

/// Parts of files that the hub has stored.
fn parts(hub: &Fleet) -> usize {
    // Before the first there is no folder.
    let stored: BTreeSet<String> = hub.stored("st-mary").unwrap_or_default();
    let parts = stored.iter().filter(|name| name.starts_with("input/"));
    parts.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_takes_little_within_a_request_is_sent_uploads() -> Result<()> {
    let limits = toml! {
        [limits]
        inline_bytes_max = "1B"
    };
    let hub = Fleet::with_ingest(limits).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit_picture(picture::png(64, 1)?).await?.name;
    edge.wait_completed(&job).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_to_the_hub_that_is_cut_goes_on_where_it_was() -> Result<()> {
    let limits = toml! {
        [limits]
        upload_part_bytes = "128 KiB"
        study_bytes_max = "512 MiB"
    };
    let hub = Fleet::with_ingest(limits).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let file = picture::noise(SIDE, 1)?;
    let all = file.len().div_ceil(PART_BYTES);
    let upload = edge.upload(&file).await?;
    site.link().cut_after(BETWEEN_CUTS_BYTES);
    let job = edge.submit(report(vec![uploaded(&upload)])).await?.name;
    let mut arrived = 0;
    for cuts_left in [2, 1, 0] {
        wait_until(PATIENCE, "the link to be cut", async || {
            site.link().is_cut().then_some(())
        })
        .await?;
        let before = arrived;
        arrived = wait_until(PATIENCE, "more parts to be stored", async || {
            let stored = parts(&hub);
            if stored == before && site.link().is_cut() {
                // What had arrived was cut before any of it was stored, as a loaded hub may have it.
                site.link().cut_after(BETWEEN_CUTS_BYTES);
            }
            (stored > before).then_some(stored)
        })
        .await?;
        ensure!(arrived < all, "all {all} parts were there before the cut");
        match cuts_left {
            0 => site.link().mend(),
            _ => site.link().cut_after(BETWEEN_CUTS_BYTES),
        }
    }
    edge.wait_completed(&job).await?;
    ensure!(parts(&hub) == all, "{} parts, not {all}", parts(&hub));
    let usage = hub.queue().await?.usage().await?;
    let uploads = usage.iter().find(|stream| stream.stream == "KV_UPLOADS");
    let uploads = uploads.context("the bucket of uploads")?.messages;
    ensure!(uploads == 1, "begun {uploads} times");
    let above = hub.client("st-mary").await?;
    ensure!(above.list(10, "").await?.0.len() == 1, "a job was doubled");
    Ok(())
}

/// The edge's own queue was away for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_loss_of_the_edges_queue_no_job_waits_for_a_file_on_the_line() -> Result<()> {
    let limits = toml! {
        [limits]
        upload_part_bytes = "128 KiB"
        study_bytes_max = "512 MiB"
    };
    let hub = Fleet::with_ingest(limits).await?;
    let patient = toml! { answer_max = "30s" };
    let site = Edge::start(&hub, patient).await?;
    let edge = site.client("st-mary").await?;
    let upload = edge.upload(&picture::noise(SIDE, 1)?).await?;
    // The link takes what it passes in 64 KiB at the most: the file is on it for longer than anything is waited for.
    site.link().delay(Duration::from_secs(2));
    let large = edge.submit(report(vec![uploaded(&upload)])).await?.name;
    wait_until(PATIENCE, "a part to be stored at the hub", async || {
        (parts(&hub) > 0).then_some(())
    })
    .await?;
    site.restart_nats().await?;
    let stat = SubmitJobRequest {
        request_id: "stat".to_owned(),
        class: v1::Class::Stat.into(),
        ..pictures(&[2])?
    };
    let stat = wait_until(PATIENCE, "a job to be accepted", async || {
        edge.submit(stat.clone()).await.ok()
    });
    edge.wait_completed(&stat.await?.name).await?;
    let before = edge.get(&large).await?;
    ensure!(before.state() == JobState::Accepted, "{before:?}");
    site.link().mend();
    edge.wait_completed(&large).await?;
    // It was sent once.
    let above = hub.client("st-mary").await?;
    let there = above.list(10, "").await?.0;
    ensure!(there.len() == 2, "{there:?}");
    site.wait_waiting(0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_while_its_file_is_on_the_line_is_not_handed_on() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let upload = edge.upload(&picture::noise(SIDE, 1)?).await?;
    site.link().cut_after(BETWEEN_CUTS_BYTES);
    let job = edge.submit(report(vec![uploaded(&upload)])).await?.name;
    wait_until(PATIENCE, "the link to be cut", async || {
        site.link().is_cut().then_some(())
    })
    .await?;
    site.wait_waiting(1).await?;
    ensure!(edge.cancel(&job).await?.state() == JobState::Cancelled);
    site.link().mend();
    site.wait_waiting(0).await?;
    let above = hub.client("st-mary").await?;
    let there = above.list(10, "").await?.0;
    ensure!(there.is_empty(), "{there:?}");
    Ok(())
}

/// A hub without a decoder, its edge, and a job that stands before its decode there: their names at the edge and at the hub.
async fn before_decode() -> Result<(Fleet, Edge, String, String)> {
    let hub = Fleet::start(Options::default()).await?;
    hub.stop_role(Role::Decode).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit(pictures(&[1])?).await?.name;
    let above = hub.client("st-mary").await?;
    let theirs = wait_until(PATIENCE, "the job to be encoded at the hub", async || {
        let theirs = at_hub(&site, &above, &job).await.ok()?;
        is_encoded(&theirs).then_some(theirs.name)
    })
    .await?;
    edge.wait_state(&job, JobState::Forwarded).await?;
    Ok((hub, site, job, theirs))
}

/// As a hub does that was set up anew with another key.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_hub_takes_under_another_name_fails_and_nothing_of_it_stays_there()
-> Result<()> {
    let (hub, site, job, theirs) = before_decode().await?;
    site.link().cut();
    let of_before = |record: JobRecord| JobRecord {
        forwarded: record.forwarded.clone().map(|forwarded| Forwarded {
            job: JobId::from_bytes([1; 16]),
            ..forwarded
        }),
        ..record
    };
    change(&site.queue().await?, &job_key("st-mary", &job)?, of_before).await?;
    site.link().mend();
    let edge = site.client("st-mary").await?;
    let failed = edge.wait_final(&job).await?;
    let failure = failed.failure.clone().context("a reason")?;
    ensure!(
        failed.state() == JobState::Failed && failure.message.contains("under its name"),
        "{failed:?}"
    );
    let above = hub.client("st-mary").await?;
    let left = above.get(&theirs).await?;
    ensure!(left.erase_time.is_some(), "{left:?}");
    Ok(())
}

/// Makes the time of a job of the edge be over, as it would be in some hours.
async fn let_expire(site: &Edge, job: &str) -> Result<()> {
    let past = UnixMillis(clock()().0 - 1_000);
    let over = |record: JobRecord| JobRecord {
        expires: past,
        ..record
    };
    change(&site.queue().await?, &job_key("st-mary", job)?, over).await?;
    Ok(())
}

/// Changes a record behind everybody's back, and gives it as it was before.
async fn change(
    queue: &Queue,
    key: &JobKey,
    change: impl Fn(JobRecord) -> JobRecord,
) -> Result<JobRecord> {
    // Whoever else changes the record is waited for.
    wait_until(PATIENCE, "its record to be changed", async || {
        let (record, revision) = queue.record(key).await.ok()??;
        let changed = change(record.clone());
        let stored = queue.update_record(key, &changed, revision).await;
        matches!(stored, Ok(Updated::Updated(_))).then_some(record)
    })
    .await
}

/// Cuts the link and makes the hub lose the job's record, and nothing else of it.
async fn lose(hub: &Fleet, site: &Edge, theirs: &str) -> Result<()> {
    site.link().cut();
    let key = job_key("st-mary", theirs)?;
    let queue = hub.queue().await?;
    // Whoever still changes it is waited for.
    wait_until(PATIENCE, "the record to be gone", async || {
        match queue.record(&key).await.ok()? {
            Some((_, revision)) => {
                queue.remove_record(&key, revision).await.ok()?;
                None
            }
            None => Some(()),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_hub_has_lost_is_handed_on_again_and_finishes() -> Result<()> {
    let (hub, site, job, theirs) = before_decode().await?;
    lose(&hub, &site, &theirs).await?;
    site.link().mend();
    // What is still about of it, such as the unit that waits for a decoder, is of the epoch before.
    let (key, queue) = (job_key("st-mary", &theirs)?, hub.queue().await?);
    let epoch = wait_until(PATIENCE, "the hub to have the job again", async || {
        let (record, _) = queue.record(&key).await.ok()??;
        Some(record.epoch)
    })
    .await?;
    ensure!(epoch == 1, "it began again in epoch {epoch}");
    hub.start_role(Role::Decode).await?;
    let edge = site.client("st-mary").await?;
    edge.wait_completed(&job).await?;
    ensure!(edge.result(&job).await?.job == job);
    let above = hub.client("st-mary").await?;
    let all = above.list(10, "").await?.0;
    ensure!(all.len() == 1 && all[0].name == theirs, "{all:?}");
    let log = site.log()?;
    ensure!(log.contains("the hub has lost a job"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_files_the_edge_has_lost_fails_and_the_log_names_it() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    site.link().cut();
    let edge = site.client("st-mary").await?;
    let job = edge.submit(pictures(&[1])?).await?.name;
    // Whoever is offering the job may have read its files.
    site.kill9().await?;
    let files = site.folder().join("blobs").join("st-mary").join("study");
    fs::remove_dir_all(files)?;
    site.start_again().await?;
    site.link().mend();
    let edge = site.client("st-mary").await?;
    let failed = edge.wait_final(&job).await?;
    let failure = failed.failure.clone();
    let failure = failure.with_context(|| format!("no reason: {failed:?}"))?;
    ensure!(failure.reason() == FailureReason::Integrity, "{failed:?}");
    let (log, id) = (site.log()?, job.trim_start_matches("jobs/"));
    let mut lines = log.lines();
    let said = lines.find(|line| line.contains("a job cannot be read back to be handed on"));
    ensure!(said.is_some_and(|line| line.contains(id)), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_hub_has_lost_fails_with_the_reason_when_its_time_is_over() -> Result<()> {
    let (hub, site, job, theirs) = before_decode().await?;
    // Before the link is cut: whoever follows the job reads its record again after that.
    let_expire(&site, &job).await?;
    lose(&hub, &site, &theirs).await?;
    let edge = site.client("st-mary").await?;
    let waits = edge.get(&job).await?;
    ensure!(waits.state() == JobState::Forwarded, "{waits:?}");
    site.link().mend();
    let failure = edge.wait_failed(&job, FailureReason::Internal).await?;
    ensure!(
        failure.message.contains("does not know the job any more"),
        "{failure:?}"
    );
    Ok(())
}

/// The hub's answer was lost, and the job ended here before anybody heard that the hub has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_to_the_hub_unheard_is_erased_there_when_it_is_erased_here() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let (edge, above) = (site.client("st-mary").await?, hub.client("st-mary").await?);
    site.link().lose_answers();
    let job = edge.submit(pictures(&[1])?).await?.name;
    let theirs = wait_until(PATIENCE, "the job at the hub", async || {
        Some(at_hub(&site, &above, &job).await.ok()?.name)
    })
    .await?;
    ensure!(edge.cancel(&job).await?.state() == JobState::Cancelled);
    site.wait_waiting(1).await?;
    site.link().mend();
    // Nobody here has anything to do with it any more.
    site.wait_waiting(0).await?;
    edge.erase(&job).await?;
    above
        .wait_for(&theirs, |job| job.erase_time.is_some())
        .await?;
    Ok(())
}

/// As after a rollback of the hub: a later release has written its record.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_hub_cannot_read_holds_up_no_other() -> Result<()> {
    let hub = Fleet::start(Options::default()).await?;
    let site = Edge::start(&hub, Table::new()).await?;
    let (edge, above) = (site.client("st-mary").await?, hub.client("st-mary").await?);
    // Nobody changes the record any more.
    hub.stop_role(Role::Preprocess).await?;
    site.link().lose_answers();
    let job = edge.submit(pictures(&[1])?).await?.name;
    let theirs = wait_until(PATIENCE, "the job at the hub", async || {
        Some(at_hub(&site, &above, &job).await.ok()?.name)
    })
    .await?;
    let record = format!("$KV.JOBS_0.{}", job_key("st-mary", &theirs)?);
    hub.publish_garbage(&record).await?;
    hub.start_role(Role::Preprocess).await?;
    site.link().mend();
    let next = edge.submit(pictures(&[1])?).await?.name;
    edge.wait_completed(&next).await?;
    ensure!(edge.get(&job).await?.state() == JobState::Accepted);
    Ok(())
}

/// As a server does that lost its power before it had written what it answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_has_forgotten_a_cancel_is_told_again() -> Result<()> {
    let (hub, site, job, theirs) = before_decode().await?;
    let (key, queue) = (job_key("st-mary", &theirs)?, hub.queue().await?);
    // Handed on to nobody who is there, it takes a cancel and does not end by it.
    let handed_on = |record: JobRecord| JobRecord {
        state: medfleet_core::JobState::Forwarded,
        forwarded: Some(Forwarded {
            job: JobId::from_bytes([1; 16]),
            at: UnixMillis(clock()().0),
            is_cancel_wanted: false,
            is_erased: false,
        }),
        ..record
    };
    let before = change(&queue, &key, handed_on).await?;
    let edge = site.client("st-mary").await?;
    edge.cancel(&job).await?;
    wait_until(PATIENCE, "the hub to be told", async || {
        let (record, _) = queue.record(&key).await.ok()??;
        record.forwarded?.is_cancel_wanted.then_some(())
    })
    .await?;
    change(&queue, &key, |_| before.clone()).await?;
    site.link().cut();
    site.link().mend();
    let ended = edge.wait_final(&job).await?;
    ensure!(ended.state() == JobState::Cancelled, "{ended:?}");
    let above = hub.client("st-mary").await?;
    ensure!(above.get(&theirs).await?.state() == JobState::Cancelled);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_result_the_hub_has_erased_fails_with_the_reason() -> Result<()> {
    let (hub, site, job, theirs) = before_decode().await?;
    site.link().cut();
    hub.start_role(Role::Decode).await?;
    let above = hub.client("st-mary").await?;
    above.wait_completed(&theirs).await?;
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

/// A certificate that signs itself, and its key, PEM.
fn certificate(name: &str) -> Result<[String; 2]> {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()])?;
    Ok([made.cert.pem(), made.signing_key.serialize_pem()])
}

/// A client of a hub that demands a certificate: whom it trusts, and what it shows.
async fn shows(hub: &Fleet, authority: &str, [cert, key]: &[String; 2]) -> Result<Client> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority))
        .identity(Identity::from_pem(cert, key))
        .domain_name("localhost");
    let endpoint = Channel::from_shared(format!("https://{}", hub.api()))?.tls_config(tls)?;
    Client::over(endpoint.connect().await?, &hub.token("st-mary"))
}

/// The wrong authority is no reason to fail a job, nor to trust. The hub, too, looks at who calls.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_hands_nothing_to_a_hub_whose_certificate_it_does_not_trust() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, content: &str| -> Result<(String, Value)> {
        let path = folder.path().join(name);
        fs::write(&path, content)?;
        Ok((name.to_owned(), path.display().to_string().into()))
    };
    let (own, other, shown) = (
        certificate("localhost")?,
        certificate("localhost")?,
        certificate("site")?,
    );
    let tls = Table::from_iter([
        file("cert", &own[0])?,
        file("key", &own[1])?,
        file("client_ca", &shown[0])?,
    ]);
    let hub = Fleet::with_ingest(Table::from_iter([("tls".to_owned(), Value::Table(tls))])).await?;
    let more = Table::from_iter([
        file("ca_file", &other[0])?,
        file("client_cert", &shown[0])?,
        file("client_key", &shown[1])?,
        ("server_name".to_owned(), "localhost".into()),
    ]);
    let site = Edge::start(&hub, more).await?;
    let edge = site.client("st-mary").await?;
    let job = edge.submit(pictures(&[1])?).await?.name;
    let silence = "medfleet_ingest_edge_hub_silence_seconds";
    site.wait_metric(silence, |silent| silent > 2.0).await?;
    let waits = edge.get(&job).await?;
    ensure!(waits.state() == JobState::Accepted, "{waits:?}");
    // Silent it has been since its start, but only the end of a call says that the hub is away.
    let said = wait_until(PATIENCE, "the edge to say so", async || {
        let log = site.log().ok()?;
        log.contains("the hub is away").then_some(())
    });
    said.await.with_context(|| site.log().unwrap_or_default())?;
    let above = shows(&hub, &own[0], &shown).await?;
    ensure!(above.list(1, "").await?.0.is_empty(), "it was handed on");
    // A self-made certificate is none that the hub knows.
    let stranger = match shows(&hub, &own[0], &other).await {
        Ok(stranger) => stranger.list(1, "").await.is_err(),
        Err(_) => true,
    };
    ensure!(stranger, "a certificate of nobody was taken");

    file("ca_file", &own[0])?;
    site.kill9().await?;
    site.start_again().await?;
    let edge = site.client("st-mary").await?;
    edge.wait_completed(&job).await?;
    ensure!(at_hub(&site, &above, &job).await?.state() == JobState::Completed);
    Ok(())
}
