//! Submitting, watching, reading, cancelling and erasing a job, and pausing work, each write a line to the audit. An attempt on
//! the job of another tenant writes none, as nothing was done to it.

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::{Class, JobState};
use medfleet_proto::work::v1::AuditEntry;
use medfleet_queue::AUDIT_STREAM;
use medfleet_testkit::wait_until;
use medfleet_tests::client::PATIENCE;
use medfleet_tests::fleet::{Fleet, OPERATOR, Options, Role};
use medfleet_tests::picture;
use prost::Message;

/// What every token of a test fleet is called.
const ACTOR: &str = "reading-room";

/// How many lines say this of a job, whenever it was: of a line, only its time comes before.
async fn lines(fleet: &Fleet, action: &str, job: &str, scope: &str) -> Result<usize> {
    let entry = AuditEntry {
        action: action.to_owned(),
        job: job.trim_start_matches("jobs/").to_owned(),
        actor: ACTOR.to_owned(),
        scope: scope.to_owned(),
        ..AuditEntry::default()
    };
    let line = entry.encode_to_vec();
    let mut count = 0;
    for (path, bytes) in fleet.queue_files().await? {
        let mut folders = path.iter();
        if folders.any(|folder| folder == AUDIT_STREAM) {
            let said = bytes.windows(line.len()).filter(|window| *window == line);
            count += said.count();
        }
    }
    Ok(count)
}

/// That there is such a line.
async fn is_told(fleet: &Fleet, action: &str, job: &str, scope: &str) -> Result<()> {
    let told = wait_until(PATIENCE, "a line in the audit", async || {
        let lines = lines(fleet, action, job, scope).await.ok()?;
        (lines > 0).then_some(())
    });
    told.await
        .with_context(|| format!("{action} of {job:?} {scope}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_what_is_told() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let done = client.submit_picture(picture::png(64, 1)?).await?.name;
    client.watch_to_end(&done).await?;
    let read = lines(&fleet, "read_result", &done, "").await?;
    ensure!(read == 0, "{read} lines before anybody has read it");
    let other = fleet.client("st-john").await?;
    ensure!(other.result(&done).await.is_err(), "not theirs");
    ensure!(other.erase(&done).await.is_err(), "not theirs");
    ensure!(other.cancel(&done).await.is_err(), "not theirs");
    for action in ["read_result", "erase", "cancel"] {
        let lines = lines(&fleet, action, &done, "").await?;
        ensure!(lines == 0, "{action} by nobody");
    }
    client.result(&done).await?;

    fleet.stop_role(Role::Decode).await?;
    let waits = client.submit_picture(picture::png(64, 2)?).await?.name;
    let cancelled = client.cancel(&waits).await?;
    ensure!(cancelled.state() == JobState::Cancelled, "{cancelled:?}");
    client.erase(&done).await?;
    let operator = fleet.client(OPERATOR).await?;
    operator.pause("st-mary", Class::Bulk).await?;
    operator.resume("st-mary", Class::Bulk).await?;

    for (action, job) in [
        ("submit", &done),
        ("watch", &done),
        ("read_result", &done),
        ("erase", &done),
        ("submit", &waits),
        ("cancel", &waits),
    ] {
        is_told(&fleet, action, job, "").await?;
    }
    for action in ["pause", "resume"] {
        is_told(&fleet, action, "", "tenant st-mary, class bulk").await?;
    }
    Ok(())
}
