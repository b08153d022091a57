//! No room, in the blob store and then in the queue: a submit is told so, and when to come back; the alert of a full store fires.
//! Sent again once there is room it is accepted, and done once.

use anyhow::{Context, Result, ensure};
use medfleet_core::setting::ByteSize;
use medfleet_proto::v1::{JobState, SubmitJobRequest};
use medfleet_queue::StreamBytes;
use medfleet_testkit::wait_until;
use medfleet_tests::alerts;
use medfleet_tests::client::{Client, PATIENCE, inline, report};
use medfleet_tests::fleet::{Fleet, Options, Role};
use medfleet_tests::picture;
use toml::toml;
use tonic::Code;
use tonic_types::StatusExt;

/// The store has room for one film of so many pixels a side, each a byte, with all that is made of it; not for two.
const SIDE: u32 = 400;
/// The series that the alert goes by.
const FULL: &str = "medfleet_ingest_store_full_calls_total";

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
    let done = client.wait_final(&job.name).await?;
    ensure!(done.state() == JobState::Completed, "{done:?}");
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
    let done = client.wait_final(&first.name).await?;
    ensure!(done.state() == JobState::Completed, "{done:?}");

    // Told before the first refusal, too: what a series begins with is no increase, and the alert would miss it.
    let before = alerts::told(fleet.admin(Role::Ingest), FULL).await?;
    alerts::expect("MedfleetStoreFull", false, FULL, (before, before)).await?;
    let second = with_id("second", picture::noise(SIDE, 2)?);
    let noted = refused_for(&client, &second, "STORE_FULL").await?;
    ensure!(noted.is_none(), "{noted:?}");
    let after = alerts::told(fleet.admin(Role::Ingest), FULL).await?;
    ensure!((before, after) == (0, 2), "{before}, then {after}");
    alerts::expect("MedfleetStoreFull", true, FULL, (before, after)).await?;
    let unknown = client.get_by_request_id("second").await.err();
    let unknown = unknown.context("half of a job was accepted")?;
    ensure!(unknown.code() == Code::NotFound, "{unknown:?}");
    ensure!(jobs(&client).await? == 1, "a job that nobody accepted");
    client.erase(&first.name).await?;
    let before = done_once(&client, &second).await?;
    ensure!(!before, "it had been accepted before there was room");
    ensure!(jobs(&client).await? == 2, "one was accepted twice");

    // Its record is there, and waits for its unit: for the client that comes again, or for the sweep.
    fleet.change_intake(ByteSize::from_bytes(1)).await?;
    let third = with_id("third", picture::png(64, 3)?);
    let noted = refused_for(&client, &third, "QUEUE_FULL").await?;
    let waits = client.get_by_request_id("third").await?;
    ensure!(noted == Some(waits.name), "{noted:?}");
    fleet.change_intake(StreamBytes::default().intake).await?;
    done_once(&client, &third).await?;
    ensure!(jobs(&client).await? == 3, "one was accepted twice");
    fleet.wait_idle().await
}
