//! Every stream, bucket and durable consumer as data, and the one function that makes a server agree with it.

use std::time::Duration;

use medfleet_core::{Class, PoolName, Stage};
use serde_json::{Value, json};

use crate::api::{Api, Operation, code, is_code, repeatable};
use crate::bucket::stream_of;
use crate::subject::{
    AUDIT, CLAIMS, DEAD, EVENTS, FLEET, FLEET_STREAM, LEASES, PAUSES, PENDING, UPLOADS, all_of,
    durable, intake_stream, record_buckets, work_filter, work_stream,
};
use crate::{QueueConfig, QueueError, Result, layout};

/// One stream, in the terms that differ between ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stream {
    name: String,
    subjects: String,
    /// Messages leave when acknowledged.
    is_work_queue: bool,
    /// What happens to a second message of a subject.
    second: Second,
    bytes_max: u64,
    /// 0 for no limit.
    messages_max: u64,
    /// Zero for ever.
    age_max: Duration,
    /// Entries cannot be removed before their age.
    append_only: bool,
    /// It is gone when its servers are: nothing that it says is of use for longer than a moment.
    in_memory: bool,
}

/// What becomes of a message whose subject already has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    /// It replaces the first: a bucket.
    Replaces,
    /// It is refused: one live message per subject.
    Refused,
    /// Both stay, up to so many of one subject; then the oldest of it goes. 0 for any number.
    Kept(u64),
}

/// Size of the bucket with what all processes agree on, an entry of some letters.
const FLEET_BYTES_MAX: u64 = 64 << 10;
/// Memory of the claims: some 80,000 at a time.
const CLAIMS_BYTES_MAX: u64 = 16 << 20;

fn base(name: &str, subjects: &str, bytes_max: u64) -> Stream {
    Stream {
        name: name.to_owned(),
        subjects: subjects.to_owned(),
        is_work_queue: false,
        second: Second::Refused,
        bytes_max,
        messages_max: 0,
        age_max: Duration::ZERO,
        append_only: false,
        in_memory: false,
    }
}

fn bucket(name: &str, bytes_max: u64, age_max: Duration) -> Stream {
    Stream {
        second: Second::Replaces,
        age_max,
        ..base(&stream_of(name), &all_of(name), bytes_max)
    }
}

/// The bucket of the claims. It is not one of [`streams`]: only processes that claim make it, again after its server has lost
/// it, and no process fails to start because it cannot be made.
fn claims(config: &QueueConfig) -> Stream {
    Stream {
        in_memory: true,
        ..bucket(CLAIMS, CLAIMS_BYTES_MAX, config.lease_ttl.get())
    }
}

fn streams(config: &QueueConfig) -> Vec<Stream> {
    let bytes = &config.stream_bytes_max;
    // The bucket that says how many shards of records there are comes first, right before the shards.
    let mut all = vec![bucket(FLEET, FLEET_BYTES_MAX, Duration::ZERO)];
    let part = part_of(bytes.records.get(), config.record_shards);
    let records = record_buckets(config.record_shards);
    all.extend(records.map(|name| bucket(&name, part, config.record_retention.get())));
    all.extend([
        Stream {
            age_max: config.event_retention.get(),
            ..base(EVENTS, "event.>", bytes.events.get())
        },
        Stream {
            age_max: config.dead_retention.get(),
            ..base(DEAD, "dead.>", bytes.dead.get())
        },
        Stream {
            age_max: config.audit_retention.get(),
            second: Second::Kept(config.audit_lines()),
            append_only: true,
            ..base(AUDIT, "audit.*", bytes.audit.get())
        },
        bucket(PENDING, bytes.small.get(), config.record_retention.get()),
        bucket(UPLOADS, bytes.small.get(), config.upload_ttl.get()),
        bucket(LEASES, bytes.small.get(), config.lease_ttl.get()),
        bucket(PAUSES, bytes.small.get(), Duration::ZERO),
    ]);
    all.extend(Stage::ALL.iter().map(|stage| Stream {
        messages_max: config.intake_messages_max,
        ..base(
            intake_stream(*stage),
            &format!("intake.{stage}.>"),
            bytes.intake.get(),
        )
    }));
    all.extend(Stage::ALL.iter().map(|stage| Stream {
        is_work_queue: true,
        ..base(
            work_stream(*stage),
            &format!("work.{stage}.>"),
            bytes.work.get(),
        )
    }));
    all
}

/// The share of each of `streams` streams in a limit for all of them; 0 is no limit.
fn part_of(limit: u64, streams: u8) -> u64 {
    match limit {
        0 => 0,
        limit => (limit / u64::from(streams.max(1))).max(1),
    }
}

/// How long a server remembers message ids. We send none, but a server requires it to be no longer than the stream's age limit.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn limit(value: u64) -> i64 {
    if value == 0 {
        -1
    } else {
        i64::try_from(value).unwrap_or(i64::MAX)
    }
}

fn stream_json(stream: &Stream, replicas: usize) -> Value {
    let window = if stream.age_max.is_zero() {
        DUPLICATE_WINDOW
    } else {
        DUPLICATE_WINDOW.min(stream.age_max)
    };
    json!({
        "name": stream.name,
        "subjects": [stream.subjects],
        "retention": if stream.is_work_queue { "workqueue" } else { "limits" },
        "storage": if stream.in_memory { "memory" } else { "file" },
        "num_replicas": replicas,
        "discard": "new",
        "discard_new_per_subject": stream.second == Second::Refused,
        "max_msgs_per_subject": match stream.second {
            Second::Kept(most) => limit(most),
            Second::Refused | Second::Replaces => 1,
        },
        "max_msgs": limit(stream.messages_max),
        "max_bytes": limit(stream.bytes_max),
        "max_age": nanos(stream.age_max),
        "max_msg_size": -1,
        "max_consumers": -1,
        "duplicate_window": nanos(window),
        "allow_direct": true,
        "allow_rollup_hdrs": false,
        "deny_delete": stream.append_only,
        "deny_purge": stream.append_only,
    })
}

fn consumer_json(config: &QueueConfig, stage: Stage, pool: &PoolName, class: Class) -> Value {
    let name = durable(pool, class);
    json!({
        "stream_name": work_stream(stage),
        "config": {
            "name": name,
            "durable_name": name,
            "filter_subject": work_filter(stage, pool, class),
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "replay_policy": "instant",
            "ack_wait": nanos(config.ack_wait.get()),
            // The record counts starts; the server never decides that a unit is lost.
            "max_deliver": -1,
            "max_ack_pending": config.in_flight_max,
        },
    })
}

const CREATE: Operation = repeatable("create a stream");

/// What to do with a stream that is there already with another configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    /// Change it to what is configured.
    Changed,
    /// Leave it as its owner has set it.
    Left,
}

/// Makes the server have all streams and consumers. Safe to call from many processes at once, and again.
pub(crate) async fn ensure(
    api: &Api,
    config: &QueueConfig,
    pools: &[PoolName],
    present: Present,
) -> Result<()> {
    let replicas = config.replicas.count();
    for mut stream in streams(config) {
        if present == Present::Changed {
            spare(api, config, &mut stream).await?;
        }
        let body = stream_json(&stream, replicas);
        match present {
            Present::Changed => ensure_stream(api, &stream.name, &body).await?,
            Present::Left => ensure_there(api, &stream.name, &body).await?,
        }
        if stream.name == FLEET_STREAM {
            layout::agree(api, config.record_shards, present).await?;
        }
    }
    for stage in Stage::ALL {
        for pool in pools {
            for class in Class::ALL {
                let body = consumer_json(config, *stage, pool, *class);
                ensure_consumer(api, *stage, pool, *class, &body).await?;
            }
        }
    }
    layout::confirm(api, config.record_shards).await
}

/// Makes the bucket of the claims, or makes it what is configured. Safe to call from many processes at once, and again.
pub(crate) async fn ensure_claims(api: &Api, config: &QueueConfig) -> Result<()> {
    let stream = claims(config);
    let body = stream_json(&stream, config.replicas.count());
    ensure_stream(api, &stream.name, &body).await
}

/// Keeps a start from removing lines of the audit. Where the configuration does not say how many lines are kept of a tenant, the
/// number follows from the stream's size, so that another release or a smaller stream would give a lower one. Then the stream
/// keeps as many as it has; lines still go by their age, and as new ones come.
async fn spare(api: &Api, config: &QueueConfig, stream: &mut Stream) -> Result<()> {
    if let (Second::Kept(most @ 1..), None) = (stream.second, config.audit_lines_max) {
        let held = api.most_of_a_subject(&stream.name, &stream.subjects).await;
        stream.second = Second::Kept(most.max(held?));
    }
    Ok(())
}

/// Makes a stream that is missing; one that is there stays, whatever its limits are.
async fn ensure_there(api: &Api, name: &str, body: &Value) -> Result<()> {
    let subject = format!("STREAM.CREATE.{name}");
    let created = api
        .call::<serde::de::IgnoredAny>(CREATE, &subject, body)
        .await;
    let error = match created {
        Ok(_) => return Ok(()),
        Err(error) if is_code(&error, code::STREAM_EXISTS) => return Ok(()),
        Err(error) => error,
    };
    // A server that is asked for the very stream that it has looks first whether there is room for another such one.
    if matches!(error, QueueError::Full { .. }) && is_there(api, name).await? {
        return Ok(());
    }
    Err(naming(error, name))
}

async fn is_there(api: &Api, name: &str) -> Result<bool> {
    const INFO: Operation = repeatable("look at a stream");
    let method = format!("STREAM.INFO.{name}");
    let looked = api
        .call::<serde::de::IgnoredAny>(INFO, &method, &json!({}))
        .await;
    match looked {
        Ok(_) => Ok(true),
        Err(error) if is_code(&error, code::STREAM_NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Tries of update and create before a conflict with another process counts as an error.
const TRIES: usize = 5;

pub(crate) async fn ensure_stream(api: &Api, name: &str, body: &Value) -> Result<()> {
    const UPDATE: Operation = repeatable("update a stream");
    let (create, update) = (
        format!("STREAM.CREATE.{name}"),
        format!("STREAM.UPDATE.{name}"),
    );
    let mut latest = QueueError::Contended { tries: 0 };
    for _ in 0..TRIES {
        let updated = api
            .call::<serde::de::IgnoredAny>(UPDATE, &update, body)
            .await;
        match updated {
            Ok(_) => return Ok(()),
            Err(error) if is_code(&error, code::STREAM_NOT_FOUND) => {}
            Err(error) => return Err(naming(error, name)),
        }
        let created = api
            .call::<serde::de::IgnoredAny>(CREATE, &create, body)
            .await;
        match created {
            Ok(_) => return Ok(()),
            // Another process was first, with other settings: the next round updates them.
            Err(error) if is_code(&error, code::STREAM_EXISTS) => latest = error,
            Err(error) => return Err(naming(error, name)),
        }
    }
    Err(naming(latest, name))
}

/// Adds the name of the stream or consumer to a refusal, as the server's own words do not contain it.
fn naming(error: QueueError, name: &str) -> QueueError {
    match error {
        QueueError::Refused {
            operation,
            code,
            description,
        } => QueueError::Refused {
            operation,
            code,
            description: format!("{name} cannot be what this release needs: {description}"),
        },
        error => error,
    }
}

async fn ensure_consumer(
    api: &Api,
    stage: Stage,
    pool: &PoolName,
    class: Class,
    body: &Value,
) -> Result<()> {
    const CREATE: Operation = repeatable("create a consumer");
    let (stream, name) = (work_stream(stage), durable(pool, class));
    let method = format!(
        "CONSUMER.CREATE.{stream}.{name}.{}",
        work_filter(stage, pool, class)
    );
    let made = api
        .call::<serde::de::IgnoredAny>(CREATE, &method, body)
        .await;
    match made {
        Ok(_) => Ok(()),
        Err(error) => Err(naming(error, &format!("{name} of {stream}"))),
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::setting::ByteSize;

    use super::*;
    use crate::subject::{JOBS_STREAM, PENDING_STREAM, is_record_stream};

    #[test]
    fn the_names_that_others_know_are_those_of_the_streams() {
        let all = streams(&QueueConfig::default());
        for name in [AUDIT, DEAD, JOBS_STREAM, PENDING_STREAM] {
            let stream = all.iter().find(|stream| stream.name == name);
            assert!(stream.is_some(), "{name}");
        }
        // And a bucket's subjects are not those of its stream.
        let jobs = all.iter().find(|stream| stream.name == JOBS_STREAM);
        let subjects = jobs.map(|stream| stream.subjects.as_str());
        assert_eq!(subjects, Some("$KV.JOBS_0.>"));
    }

    #[test]
    fn shards_of_the_records_have_together_what_one_has() {
        let check = |record_shards: u8, records: u64, expected: u64| {
            let mut config = QueueConfig {
                record_shards,
                ..QueueConfig::default()
            };
            config.stream_bytes_max.records = ByteSize::from_bytes(records);
            let all = streams(&config);
            let shards = all.iter().filter(|stream| is_record_stream(&stream.name));
            let limits: Vec<_> = shards.map(|shard| shard.bytes_max).collect();
            assert_eq!(limits, vec![expected; usize::from(record_shards)]);
            assert_eq!(all[0].name, FLEET_STREAM, "what is agreed on comes first");
        };
        check(1, 1_600, 1_600);
        check(8, 1_600, 200);
        // A limit never becomes none.
        check(32, 5, 1);
        check(8, 0, 0);
    }

    #[test]
    fn no_two_streams_share_a_subject_and_all_are_bounded() {
        let config = QueueConfig {
            record_shards: 8,
            ..QueueConfig::default()
        };
        let mut all = streams(&config);
        all.push(claims(&config));
        let mut subjects: Vec<_> = all.iter().map(|stream| &stream.subjects).collect();
        subjects.sort();
        subjects.dedup();
        assert_eq!(subjects.len(), all.len());
        assert!(all.iter().all(|stream| stream.bytes_max > 0));
        let unlimited_in_time: Vec<_> = all
            .iter()
            .filter(|stream| stream.age_max.is_zero())
            .map(|stream| stream.name.as_str())
            .collect();
        assert_eq!(
            unlimited_in_time,
            [
                "KV_FLEET",
                "KV_PAUSES",
                "INTAKE_PREPROCESS",
                "INTAKE_ENCODE",
                "INTAKE_DECODE",
                "WORK_PREPROCESS",
                "WORK_ENCODE",
                "WORK_DECODE"
            ],
            "accepted work never ages away, nor does a pause"
        );
    }
}
