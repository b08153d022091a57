//! Between releases: what a later one wrote is read or left alone, what an earlier one made is changed to what this one
//! needs, or refused with its name.

use anyhow::{Context, Result, bail, ensure};
use async_nats::Client;
use medfleet_core::setting::ByteSize;
use medfleet_core::{Class, JobKey, JobState, Move, Stage, UploadId, Verdict, WorkUnit};
use medfleet_proto::work::v1::{AuditEntry, UploadRecord};
use medfleet_queue::{AUDIT_STREAM, Applied, Queue, QueueConfig, QueueError, Seen, Updated};
use medfleet_testkit::{self as kit, NatsServer};
use serde_json::{Value, json};

use crate::units::is_settled;
use crate::{PATIENCE, start};

/// Field 1000 of a message, a number: no release has it yet.
const LATER_FIELD: [u8; 3] = [0xc0, 0x3e, 0x07];
/// Field 1000 of a record's cost, which is field 21.
const LATER_COST: [u8; 6] = [0xaa, 0x01, 3, 0xc0, 0x3e, 0x08];
/// A state that no release has yet.
const LATER_STATE: u8 = 100;

fn begin() -> Move {
    Move::Start {
        stage: Stage::Preprocess,
        unit: 0,
        retries_max: 3,
    }
}

/// The bytes of a record as they are stored.
async fn stored(client: &Client, key: &JobKey) -> Result<Vec<u8>> {
    let subject = format!("$JS.API.DIRECT.GET.KV_JOBS_0.$KV.JOBS_0.{key}");
    let message = client.request(subject, "".into()).await?;
    Ok(message.payload.to_vec())
}

async fn store(client: &Client, key: &JobKey, bytes: &[u8]) -> Result<()> {
    let subject = format!("$KV.JOBS_0.{key}");
    client.request(subject, bytes.to_vec().into()).await?;
    Ok(())
}

/// The rule of docs/how-to/upgrade.md for new fields: an older release reads over them and keeps them, whoever of its processes
/// changes the record, and however often.
#[tokio::test]
async fn a_field_of_a_later_release_stays_when_the_record_changes() -> Result<()> {
    let (server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    let client = async_nats::connect(server.url()).await?;
    let fields = [&LATER_FIELD[..], &LATER_COST].concat();
    let later = [stored(&client, &key).await?, fields.clone()].concat();
    store(&client, &key, &later).await?;

    let (found, revision) = queue.record(&key).await?.context("a record")?;
    ensure!(found == record, "{found:?}");
    let listed = queue.list_records(&kit::tenant(), None, 10, &[]).await?;
    ensure!(listed.len() == 1, "{listed:?}");
    let (now, early) = (kit::clock()(), Move::ChunkEncoded { chunk: 0 });
    let refused = queue.apply(&key, Some(0), &early, now).await?;
    ensure!(matches!(refused, Applied::Refused { .. }), "{refused:?}");
    ensure!(
        stored(&client, &key).await? == later,
        "it was rewritten without a change"
    );

    let applied = queue.apply(&key, Some(0), &begin(), now).await?;
    ensure!(matches!(applied, Applied::Applied { .. }), "{applied:?}");
    let changed = stored(&client, &key).await?;
    ensure!(
        changed != later && changed.ends_with(&fields),
        "{changed:?}"
    );
    // By a revision of before it is not written, nor does that lose anything.
    let stale = queue.update_record(&key, &record, revision).await?;
    ensure!(stale == Updated::Conflict, "{stale:?}");
    ensure!(stored(&client, &key).await? == changed);
    // By what a change gives back, without another look, as a worker does.
    let Applied::Applied {
        record, revision, ..
    } = applied
    else {
        bail!("not applied");
    };
    let (seen, back) = (Seen::Record(&record, revision), Move::Cancel);
    let ended = queue.apply_without_event(&key, seen, &back, now).await?;
    ensure!(matches!(ended, Applied::Applied { .. }), "{ended:?}");
    ensure!(stored(&client, &key).await?.ends_with(&fields));
    let (read, _) = queue.record(&key).await?.context("a record")?;
    ensure!(read.state == JobState::Cancelled && read.cost == record.cost);
    Ok(())
}

/// As of a job's record.
#[tokio::test]
async fn a_field_of_a_later_release_stays_when_an_upload_goes_on() -> Result<()> {
    let (server, queue) = start().await?;
    let (tenant, upload) = (kit::tenant(), UploadId::from_bytes([7; 16]));
    let begun = UploadRecord {
        total_bytes: 10,
        expire_unix_millis: 90_000,
        ..UploadRecord::default()
    };
    queue.create_upload(&tenant, &upload, &begun).await?;
    let client = async_nats::connect(server.url()).await?;
    let subject = format!("$KV.UPLOADS.{tenant}.{upload}");
    let get = format!("$JS.API.DIRECT.GET.KV_UPLOADS.{subject}");
    let stored = client.request(get.clone(), "".into()).await?.payload;
    let later = [&stored[..], &LATER_FIELD].concat();
    client.request(subject, later.into()).await?;

    let (mut record, mut revision) = queue.upload(&tenant, &upload).await?.context("an upload")?;
    ensure!(record == begun, "{record:?}");
    for committed in [4, 10] {
        record.committed_bytes = committed;
        let updated = queue.update_upload(&tenant, &upload, &record, revision);
        let Updated::Updated(next) = updated.await? else {
            bail!("nobody else changes it");
        };
        revision = next;
        let stored = client.request(get.clone(), "".into()).await?.payload;
        ensure!(stored.ends_with(&LATER_FIELD), "{stored:?}");
    }
    let read = queue.upload(&tenant, &upload).await?;
    ensure!(read == Some((record, revision)), "{read:?}");
    Ok(())
}

/// An older worker hands back what it cannot read; a newer one can do it. So nothing may be stored meanwhile.
#[tokio::test]
async fn a_record_in_a_state_of_a_later_release_is_left_alone() -> Result<()> {
    let (server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    let client = async_nats::connect(server.url()).await?;
    let mut later = stored(&client, &key).await?;
    ensure!(later.starts_with(&[0x08, 0x01]), "field 1, accepted");
    later[1] = LATER_STATE;
    store(&client, &key, &later).await?;
    let now = kit::clock()();
    for error in [
        queue.record(&key).await.err(),
        queue.apply(&key, Some(0), &begin(), now).await.err(),
        queue.apply(&key, None, &Move::Cancel, now).await.err(),
        queue.create_record(&key, &record).await.err(),
    ] {
        let error = error.context("it was understood")?;
        ensure!(matches!(error, QueueError::Malformed { .. }), "{error:?}");
    }
    ensure!(stored(&client, &key).await? == later);
    Ok(())
}

pub(crate) async fn call(client: &Client, method: &str, body: &Value) -> Result<Value> {
    let payload = serde_json::to_vec(body)?;
    let answer = client
        .request(format!("$JS.API.{method}"), payload.into())
        .await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    ensure!(answer.get("error").is_none(), "{method}: {answer}");
    Ok(answer)
}

fn with(mut base: Value, changes: Value) -> Value {
    if let (Value::Object(base), Value::Object(changes)) = (&mut base, changes) {
        base.extend(changes);
    }
    base
}

fn unit() -> WorkUnit {
    kit::unit(&kit::record(1, 1).0, Stage::Encode, Class::Stat, 0)
}

/// A server with one work stream as another release would have made it, and a unit in it.
async fn of_another_release(changes: Value) -> Result<(NatsServer, Queue, Client)> {
    let server = NatsServer::start().await?;
    let queue = Queue::connect(&kit::config(&server.url()), kit::clock()).await?;
    let client = async_nats::connect(server.url()).await?;
    let stream = json!({
        "name": "WORK_ENCODE",
        "subjects": ["work.encode.>"],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": 1,
        "discard": "new",
        "discard_new_per_subject": true,
        "max_msgs_per_subject": 1,
        "max_bytes": 1 << 20,
        "allow_direct": true,
    });
    call(&client, "STREAM.CREATE.WORK_ENCODE", &with(stream, changes)).await?;
    queue.publish_work(&unit(), &Vec::new()).await?;
    Ok((server, queue, client))
}

async fn make_consumer(client: &Client, changes: Value) -> Result<()> {
    let config = json!({
        "name": "tiny-here_stat",
        "durable_name": "tiny-here_stat",
        "filter_subject": "work.encode.tiny-here.stat.>",
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "max_deliver": -1,
    });
    let body = json!({ "stream_name": "WORK_ENCODE", "config": with(config, changes) });
    let method = "CONSUMER.CREATE.WORK_ENCODE.tiny-here_stat.work.encode.tiny-here.stat.>";
    call(client, method, &body).await.map(drop)
}

#[tokio::test]
async fn limits_of_another_release_are_changed_under_work() -> Result<()> {
    let (_server, queue, client) = of_another_release(json!({ "max_msgs": 7 })).await?;
    let waits = json!({ "ack_wait": 20_000_000_000_u64, "max_ack_pending": 5 });
    make_consumer(&client, waits).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let taken = tokio::time::timeout(PATIENCE, puller.next()).await??;

    queue.ensure(&[kit::pool()]).await?;
    let info = call(&client, "STREAM.INFO.WORK_ENCODE", &json!({})).await?;
    ensure!(info["config"]["max_msgs"] == -1, "{info}");
    ensure!(info["state"]["messages"] == 1, "{info}");
    let consumer = "CONSUMER.INFO.WORK_ENCODE.tiny-here_stat";
    let info = call(&client, consumer, &json!({})).await?;
    ensure!(info["config"]["max_ack_pending"] == 4096, "{info}");
    // What was taken before the change is settled after it.
    taken.settle(Verdict::Done).await?;
    is_settled(&queue).await
}

/// Starts an ingest's queue, adds a line to the audit, and says how many it has then.
async fn lines_after_a_start(config: &QueueConfig) -> Result<u64> {
    let queue = kit::queue(config).await?;
    let line = AuditEntry {
        action: "watch".to_owned(),
        ..AuditEntry::default()
    };
    queue.audit(&kit::tenant(), &line).await?;
    let usage = queue.usage().await?;
    let audit = usage.iter().find(|stream| stream.stream == AUDIT_STREAM);
    Ok(audit.context("no audit")?.messages)
}

/// Of the release before, which kept another number of them, or of when the audit had more room.
#[tokio::test]
async fn no_start_removes_lines_of_the_audit_unless_somebody_says_so() -> Result<()> {
    let server = NatsServer::start().await?;
    let mut config = kit::config(&server.url());
    config.stream_bytes_max.audit = ByteSize::from_bytes(6 << 10);
    let few = config.audit_lines();
    ensure!(few == 9, "{few}");
    config.audit_lines_max = Some(0);
    for expected in 1..=12 {
        let lines = lines_after_a_start(&config).await?;
        ensure!(lines == expected, "{lines}, expected {expected}");
    }
    // From then on the oldest makes room for the latest.
    for (said, expected) in [
        (None, 12),
        (Some(few), few),
        (None, few),
        (Some(0), few + 1),
    ] {
        config.audit_lines_max = said;
        let lines = lines_after_a_start(&config).await?;
        ensure!(lines == expected, "{said:?}: {lines}, expected {expected}");
    }
    Ok(())
}

/// A worker's file with another limit, or an older worker's, changes nothing for the others; what is missing is made.
#[tokio::test]
async fn who_does_not_own_the_limits_leaves_them() -> Result<()> {
    let (_server, queue, client) = of_another_release(json!({ "max_msgs": 7 })).await?;
    queue.ensure_there(&[kit::pool()]).await?;
    let info = call(&client, "STREAM.INFO.WORK_ENCODE", &json!({})).await?;
    ensure!(info["config"]["max_msgs"] == 7, "{info}");
    let consumer = "CONSUMER.INFO.WORK_ENCODE.tiny-here_stat";
    call(&client, consumer, &json!({})).await?;
    call(&client, "STREAM.INFO.EVENTS", &json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn a_stream_that_cannot_be_changed_is_named_and_stays() -> Result<()> {
    for (changes, words) in [
        (json!({ "storage": "memory" }), "storage type"),
        (json!({ "retention": "limits" }), "retention policy"),
    ] {
        let (_server, queue, client) = of_another_release(changes).await?;
        let error = queue.ensure(&[kit::pool()]).await;
        let error = error.err().context("it was changed")?;
        ensure!(!error.is_transient(), "{error:?}");
        let text = error.to_string();
        let named = "WORK_ENCODE cannot be what this release needs";
        ensure!(text.contains(named) && text.contains(words), "{text}");
        let info = call(&client, "STREAM.INFO.WORK_ENCODE", &json!({})).await?;
        ensure!(info["state"]["messages"] == 1, "{info}");
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_cannot_be_changed_is_named() -> Result<()> {
    let (_server, queue, client) = of_another_release(json!({})).await?;
    make_consumer(&client, json!({ "replay_policy": "original" })).await?;
    let error = queue.ensure(&[kit::pool()]).await;
    let text = error.err().context("it was changed")?.to_string();
    let named = "tiny-here_stat of WORK_ENCODE cannot be what this release needs";
    ensure!(text.contains(named), "{text}");
    Ok(())
}
