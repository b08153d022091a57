//! No room, in the blob store, in the queue, or in the audit: a submit is told so, and when to come back, and the alert of a full
//! store fires. Sent again once there is room it is accepted, and done once. What makes room is not held up.

use anyhow::{Context, Result, ensure};
use medfleet_core::Stage;
use medfleet_core::setting::ByteSize;
use medfleet_proto::v1::{Class, SubmitJobRequest};
use medfleet_proto::work::v1::AuditEntry;
use medfleet_queue::StreamBytes;
use medfleet_testkit::{tenant, wait_until};
use medfleet_tests::alerts;
use medfleet_tests::client::{Client, PATIENCE, inline, refused, report};
use medfleet_tests::fleet::{Fleet, OPERATOR, Options, Role, http_get};
use medfleet_tests::picture;
use toml::toml;
use tonic::Code;
use tonic_types::StatusExt;

/// The store has room for one film of so many pixels a side, each a byte, with all that is made of it; not for two.
const SIDE: u32 = 400;
/// The series that the alert goes by: of calls, and of the writes of every process.
const FULL: &str = "medfleet_ingest_store_full_calls_total";
const FULL_WRITES: &str = "medfleet_store_full_writes_total";

fn with_id(id: &str, picture: Vec<u8>) -> SubmitJobRequest {
    SubmitJobRequest {
        request_id: id.to_owned(),
        ..report(vec![inline(picture)])
    }
}

/// Twice, since the second time finds whatever the first one left. Gives the job that is noted all the same, by its name.
async fn refused_for(
    client: &Client,
    request: &SubmitJobRequest,
    reason: &str,
) -> Result<Option<String>> {
    let mut noted = None;
    for _ in 0..2 {
        let refused = client.submit(request.clone()).await.err();
        let refused = refused.context("accepted without room")?;
        let details = refused.get_error_details();
        let told = details.error_info().map(|info| info.reason.as_str());
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        let is_full = refused.code() == Code::ResourceExhausted && told == Some(reason);
        ensure!(is_full && refused.message().contains("full"), "{refused:?}");
        ensure!(delay.is_some_and(|delay| !delay.is_zero()), "{refused:?}");
        noted = details
            .error_info()
            .and_then(|info| info.metadata.get("job").cloned());
    }
    Ok(noted)
}

/// Whether the fleet had taken it before this was asked for the first time.
async fn done_once(client: &Client, request: &SubmitJobRequest) -> Result<bool> {
    let submit = async || client.submit_full(request.clone()).await.ok();
    let (job, before) = wait_until(PATIENCE, "room for the job", submit).await?;
    client.wait_completed(&job.name).await?;
    let (again, already) = client.submit_full(request.clone()).await?;
    ensure!(already && again.name == job.name, "{again:?}");
    Ok(before)
}

async fn jobs(client: &Client) -> Result<usize> {
    Ok(client.list(10, "").await?.0.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_refused_and_accepted_once_when_there_is_room() -> Result<()> {
    let store = toml! {
        kind = "jetstream"
        bucket = "blobs"
        replicas = 1
    };
    let queue = toml! {
        [stream_bytes_max]
        objects = "256 KiB"
    };
    let fleet = Fleet::start(Options {
        store: Some(store),
        queue,
        ..Options::default()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    let first = client
        .submit(with_id("first", picture::noise(SIDE, 1)?))
        .await?;
    client.wait_completed(&first.name).await?;

    // Told before the first refusal, too: what a series begins with is no increase, and the alert would miss it.
    let before = alerts::told(fleet.admin(Role::Ingest), FULL).await?;
    alerts::expect("MedfleetStoreFull", false, &[(FULL, (before, before))]).await?;
    let second = with_id("second", picture::noise(SIDE, 2)?);
    let noted = refused_for(&client, &second, "STORE_FULL").await?;
    ensure!(noted.is_none(), "{noted:?}");
    let after = alerts::told(fleet.admin(Role::Ingest), FULL).await?;
    ensure!((before, after) == (0, 2), "{before}, then {after}");
    alerts::expect("MedfleetStoreFull", true, &[(FULL, (before, after))]).await?;
    let writes = alerts::told(fleet.admin(Role::Ingest), FULL_WRITES).await?;
    alerts::expect("MedfleetStoreFull", true, &[(FULL_WRITES, (0, writes))]).await?;
    let unknown = client.get_by_request_id("second").await;
    refused(unknown, Code::NotFound).context("half of a job")?;
    ensure!(jobs(&client).await? == 1, "a job that nobody accepted");
    client.erase(&first.name).await?;
    let before = done_once(&client, &second).await?;
    ensure!(!before, "it had been accepted before there was room");
    ensure!(jobs(&client).await? == 2, "one was accepted twice");

    // An empty intake has room beyond its reserve, however small it is: only the publish finds that there is none.
    let queue = fleet.queue().await?;
    wait_until(PATIENCE, "the intake to be empty", async || {
        let waiting = queue.waiting_for_release(Stage::Preprocess).await.ok()?;
        (waiting == 0).then_some(())
    })
    .await?;
    // Its record is there, and waits for its unit: for the client that comes again, or for the sweep.
    let no_intake = StreamBytes {
        intake: ByteSize::from_bytes(1),
        ..StreamBytes::default()
    };
    fleet.change_streams(no_intake).await?;
    let third = with_id("third", picture::png(64, 3)?);
    let noted = refused_for(&client, &third, "QUEUE_FULL").await?;
    let waits = client.get_by_request_id("third").await?;
    ensure!(noted == Some(waits.name), "{noted:?}");
    fleet.change_streams(StreamBytes::default()).await?;
    done_once(&client, &third).await?;
    ensure!(jobs(&client).await? == 3, "one was accepted twice");
    fleet.wait_idle().await
}

/// Lines that are in the audit before its room is cut down.
const LINES: usize = 500;
/// The room that is left then: for some eight lines, and less than half of the reserve, which is a sixteenth of all.
const LEFT_BYTES: u64 = 1024;

/// Leaves the audit room for a few lines, and waits until ingest has seen that.
async fn nearly_fill_audit(fleet: &Fleet) -> Result<()> {
    let queue = fleet.queue().await?;
    let line = AuditEntry {
        action: "watch".to_owned(),
        actor: "x".repeat(64),
        ..AuditEntry::default()
    };
    for _ in 0..LINES {
        queue.audit(&tenant(), &line).await?;
    }
    let usage = queue.usage().await?;
    let audit = usage.iter().find(|stream| stream.stream == "AUDIT");
    let bytes_max = audit.context("no audit")?.bytes + LEFT_BYTES;
    fleet
        .change_streams(StreamBytes {
            audit: ByteSize::from_bytes(bytes_max),
            ..StreamBytes::default()
        })
        .await?;
    let shown = format!("medfleet_queue_stream_limit_bytes{{stream=\"AUDIT\"}} {bytes_max}");
    let is_seen = async || {
        let (_, text) = http_get(fleet.admin(Role::Ingest), "/metrics").await.ok()?;
        text.lines().any(|line| line == shown).then_some(())
    };
    wait_until(PATIENCE, "ingest to look at the audit", is_seen).await?;
    Ok(())
}

/// Whoever answers for the data of patients must be able to erase on the very day when everything is full.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_audit_has_left_is_for_erasures_and_operators() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let first = client.submit(with_id("first", picture::png(64, 1)?));
    let first = client.wait_completed(&first.await?.name).await?;
    nearly_fill_audit(&fleet).await?;

    let second = with_id("second", picture::png(64, 2)?);
    let noted = refused_for(&client, &second, "QUEUE_FULL").await?;
    ensure!(noted.is_none(), "{noted:?}");
    refused(client.result(&first.name).await, Code::ResourceExhausted)?;
    // Nor is the last of it for a tenant that cancels again and again.
    refused(client.cancel(&first.name).await, Code::ResourceExhausted)?;

    let operator = fleet.client(OPERATOR).await?;
    operator.pause("st-mary", Class::Bulk).await?;
    operator.resume("st-mary", Class::Bulk).await?;
    let erased = client.erase(&first.name).await?;
    ensure!(erased.objects_removed > 0, "{erased:?}");

    fleet.change_streams(StreamBytes::default()).await?;
    let before = done_once(&client, &second).await?;
    ensure!(!before, "it had been accepted before there was room");
    fleet.wait_idle().await
}
