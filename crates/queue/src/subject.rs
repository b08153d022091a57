//! Names of streams and subjects, and reading them back. Pure.
//! A subject carries what a consumer, a filter or an access rule needs to tell messages apart, and never patient data.

use medfleet_core::{
    Class, Cost, JobId, JobKey, JobRecord, JobState, PoolName, Stage, TenantId, UnixMillis,
    UploadId, WorkUnit,
};

pub(crate) const EVENTS: &str = "EVENTS";
/// The stream of the dead letters.
pub const DEAD: &str = "DEAD";
/// The stream of the audit entries.
pub const AUDIT: &str = "AUDIT";
/// The stream of the job records, where they have one shard.
pub const JOBS_STREAM: &str = "KV_JOBS_0";
/// What the names of their buckets begin with.
const JOBS: &str = "JOBS_";
/// The stream of the accepts that may need a sweeper.
pub const PENDING_STREAM: &str = "KV_PENDING";
pub(crate) const PENDING: &str = bucket_of(PENDING_STREAM);
/// Bucket of the uploads under way.
pub(crate) const UPLOADS: &str = "UPLOADS";
/// Bucket of the leader leases.
pub(crate) const LEASES: &str = "LEASES";
/// Bucket of what one process does and others wait for.
pub(crate) const CLAIMS: &str = "CLAIMS";
/// Bucket of the work that operators hold back.
pub(crate) const PAUSES: &str = "PAUSES";
/// The stream in which accepted jobs wait for their release.
pub const INTAKE_STREAM: &str = "INTAKE_PREPROCESS";

/// The stream of what all processes of a fleet have to agree on.
pub(crate) const FLEET_STREAM: &str = "KV_FLEET";
pub(crate) const FLEET: &str = bucket_of(FLEET_STREAM);

/// What NATS calls the stream behind a bucket: this, and the bucket's name.
pub(crate) const BUCKET_PREFIX: &str = "KV_";

const fn bucket_of(stream: &'static str) -> &'static str {
    stream.split_at(BUCKET_PREFIX.len()).1
}

/// The buckets of the job records in so many shards. Of several the names say how many, so that a process that counts otherwise
/// finds none of them; of one it is the name that it had before there were several.
pub(crate) fn record_buckets(shards: u8) -> impl Iterator<Item = String> {
    (0..shards).map(move |shard| match shards {
        1 => bucket_of(JOBS_STREAM).to_owned(),
        _ => format!("{JOBS}{shard}_OF_{shards}"),
    })
}

/// In how many shards the job records are of which a stream has one; none of another stream.
pub(crate) fn shards_of(stream: &str) -> Option<u8> {
    if stream == JOBS_STREAM {
        return Some(1);
    }
    let name = stream.strip_prefix(BUCKET_PREFIX)?.strip_prefix(JOBS)?;
    let (shard, shards) = name.split_once("_OF_")?;
    let shards: u8 = shards.parse().ok()?;
    let shard: u8 = shard.parse().ok()?;
    (shard < shards).then_some(shards)
}

/// Whether a stream has job records: all of them, or those of a shard.
pub fn is_record_stream(stream: &str) -> bool {
    shards_of(stream).is_some()
}

/// Every subject of a bucket.
pub(crate) fn all_of(bucket: &str) -> String {
    format!("$KV.{bucket}.>")
}

/// What a bucket's stream takes in place of them when nobody may write to it any more.
pub(crate) fn closed(bucket: &str) -> String {
    format!("closed.{bucket}")
}

/// Where workers say that they are there, on core NATS.
pub(crate) const PRESENCE: &str = "presence";

/// The stream where a stage's units wait for release. Each stage has its own, so that a flood of accepted jobs never
/// takes the room that the chunks and texts of the jobs under way need to move on.
pub(crate) const fn intake_stream(stage: Stage) -> &'static str {
    match stage {
        Stage::Preprocess => INTAKE_STREAM,
        Stage::Encode => "INTAKE_ENCODE",
        Stage::Decode => "INTAKE_DECODE",
    }
}

/// The stream of a stage's released units.
pub(crate) const fn work_stream(stage: Stage) -> &'static str {
    match stage {
        Stage::Preprocess => "WORK_PREPROCESS",
        Stage::Encode => "WORK_ENCODE",
        Stage::Decode => "WORK_DECODE",
    }
}

/// `<stage>.<pool>.<class>.<tenant>.<job>.<unit>`, the tail shared by intake and work.
fn unit_tail(unit: &WorkUnit) -> String {
    format!(
        "{}.{}.{}.{}.{}",
        unit.stage, unit.pool, unit.class, unit.key, unit.unit
    )
}

/// Where a unit waits for release.
pub(crate) fn intake(unit: &WorkUnit) -> String {
    format!("intake.{}", unit_tail(unit))
}

/// Where a released unit waits for a worker.
pub(crate) fn work(unit: &WorkUnit) -> String {
    format!("work.{}", unit_tail(unit))
}

/// Everything that one durable consumer serves.
pub(crate) fn work_filter(stage: Stage, pool: &PoolName, class: Class) -> String {
    format!("work.{stage}.{pool}.{class}.>")
}

/// The durable consumer of a (pool, class) on its stage's stream. A pool's name has no underscore.
pub(crate) fn durable(pool: &PoolName, class: Class) -> String {
    format!("{pool}_{class}")
}

/// What waits for release of one (stage, pool, class).
pub(crate) fn intake_filter(stage: Stage, pool: &PoolName, class: Class) -> String {
    format!("intake.{stage}.{pool}.{class}.>")
}

/// The unit that the subject of a released one names; its epoch, end and cost are not in there, and are those of nothing. One
/// of no number is none that its job's record can have done.
pub(crate) fn unit_of(work: &str) -> Option<WorkUnit> {
    let tokens: Vec<&str> = work.split('.').collect();
    let ["work", stage, pool, class, tenant, job, unit] = tokens.as_slice() else {
        return None;
    };
    Some(WorkUnit {
        key: key(tenant, job)?,
        stage: stage.parse().ok()?,
        pool: PoolName::new(*pool).ok()?,
        class: class.parse().ok()?,
        unit: unit.parse().unwrap_or(u32::MAX),
        epoch: 0,
        expires: UnixMillis(0),
        cost: Cost::default(),
    })
}

/// The hint that a unit was released; its payload is the unit's class.
pub(crate) fn ready(stage: Stage, pool: &PoolName) -> String {
    format!("ready.{stage}.{pool}")
}

/// The key of a pause: `_` stands for every tenant or every class, and is no tenant's name.
pub(crate) fn pause_key(tenant: Option<&TenantId>, class: Option<Class>) -> String {
    let tenant = tenant.map_or("_", TenantId::as_str);
    format!("{tenant}.{}", class.map_or("_", Class::as_str))
}

/// What tells an event from every other event of its job; two equal ones are the same event.
pub fn event_token(record: &JobRecord) -> String {
    let (epoch, state) = (record.epoch, record.state);
    match state {
        JobState::Encoding => format!("{epoch}-{state}-{}", record.chunks.done()),
        JobState::Decoding => format!("{epoch}-{state}-{}", record.attempt),
        _ => format!("{epoch}-{state}"),
    }
}

pub(crate) fn event(key: &JobKey, record: &JobRecord) -> String {
    format!("event.{key}.{}", event_token(record))
}

/// An event of the hub's job, at its edge: told from others by its place at the hub.
pub(crate) fn hub_event(key: &JobKey, epoch: u32, sequence: u64) -> String {
    format!("event.{key}.{epoch}-hub-{sequence}")
}

pub(crate) fn events_of(key: &JobKey) -> String {
    format!("event.{key}.*")
}

/// Text of a job, on core NATS.
pub(crate) fn text(key: &JobKey) -> String {
    format!("text.{key}")
}

/// The hint that a job was cancelled, on core NATS.
pub(crate) fn cancel(key: &JobKey) -> String {
    format!("cancel.{key}")
}

/// A dead letter: one per job and epoch, whichever unit brings it.
pub(crate) fn dead(key: &JobKey, epoch: u32) -> String {
    format!("dead.{key}.{epoch}")
}

/// All dead letters of a tenant, or of all.
pub(crate) fn dead_of(tenant: Option<&TenantId>) -> String {
    match tenant {
        Some(tenant) => format!("dead.{tenant}.>"),
        None => "dead.>".to_owned(),
    }
}

/// All dead letters of a job.
pub(crate) fn dead_of_job(key: &JobKey) -> String {
    format!("dead.{key}.>")
}

/// The epoch of the job that a dead letter is of.
pub(crate) fn epoch_of_dead(subject: &str) -> Option<u32> {
    subject.rsplit('.').next()?.parse().ok()
}

/// The hint that a job was erased, on core NATS.
pub(crate) fn erased(key: &JobKey) -> String {
    format!("erased.{key}")
}

/// A tenant's audit entries.
pub(crate) fn audit(tenant: &TenantId) -> String {
    format!("audit.{tenant}")
}

/// The key of an upload in its bucket.
pub(crate) fn upload_key(tenant: &TenantId, upload: &UploadId) -> String {
    format!("{tenant}.{upload}")
}

/// The job of a subject whose second and third tokens name it (`event`, `text`, `cancel`, `erased`).
pub(crate) fn job_of(subject: &str) -> Option<JobKey> {
    let mut tokens = subject.split('.').skip(1);
    key(tokens.next()?, tokens.next()?)
}

/// The job of a bucket key `<tenant>.<job>`.
pub(crate) fn job_of_key(text: &str) -> Option<JobKey> {
    let (tenant, job) = text.split_once('.')?;
    key(tenant, job)
}

/// The key of the accept that stands on a sheet of a process's pad, beside those that have their job's name; its value is the
/// job's key. No tenant's name has an underscore.
pub(crate) fn accept_key(holder: &str, sheet: u64) -> String {
    format!("_accept.{holder}.{sheet}")
}

/// Every such key.
pub(crate) const ACCEPTS: &str = "_accept.*.*";

/// The key of a job that was set aside, beside those of accepts.
pub(crate) fn aside_key(key: &JobKey) -> String {
    format!("{key}{ASIDE_END}")
}

/// Every such key.
pub(crate) const ASIDE: &str = "*.*.aside";
const ASIDE_END: &str = ".aside";

/// The job of such a key.
pub(crate) fn job_of_aside(text: &str) -> Option<JobKey> {
    job_of_key(text.strip_suffix(ASIDE_END)?)
}

fn key(tenant: &str, job: &str) -> Option<JobKey> {
    Some(JobKey::new(
        TenantId::new(tenant).ok()?,
        JobId::new(job).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples;

    #[test]
    fn a_unit_has_one_subject() {
        let unit = samples::unit(Stage::Encode, 3);
        let job = "ab".repeat(16);
        assert_eq!(
            work(&unit),
            format!("work.encode.tiny-here.routine.st-mary.{job}.3")
        );
        assert_eq!(
            intake(&unit),
            format!("intake.encode.tiny-here.routine.st-mary.{job}.3")
        );
        let dead = dead(&unit.key, 3);
        assert_eq!(dead, format!("dead.st-mary.{job}.3"));
        assert_eq!(epoch_of_dead(&dead), Some(3));
    }

    #[test]
    fn an_event_is_named_by_what_changed() {
        let check = |change: fn(&mut JobRecord), expected: &str| {
            let mut record = samples::record();
            change(&mut record);
            assert_eq!(event_token(&record), expected);
        };
        check(|_| {}, "0-accepted");
        check(
            |r| {
                r.state = JobState::Encoding;
                r.chunks.done_bitmap = 0b101;
            },
            "0-encoding-2",
        );
        check(
            |r| {
                r.epoch = 1;
                r.state = JobState::Decoding;
                r.attempt = 4;
            },
            "1-decoding-4",
        );
        check(|r| r.state = JobState::Completed, "0-completed");
    }

    #[test]
    fn streams_of_records_say_of_how_many_shards() {
        let of_one: Vec<_> = record_buckets(1).collect();
        assert_eq!(of_one, ["JOBS_0"]);
        let of_two: Vec<_> = record_buckets(2).collect();
        assert_eq!(of_two, ["JOBS_0_OF_2", "JOBS_1_OF_2"]);
        for count in [1, 2, 32] {
            for bucket in record_buckets(count) {
                let stream = format!("{BUCKET_PREFIX}{bucket}");
                assert_eq!(shards_of(&stream), Some(count), "{stream}");
            }
        }
        for stream in [
            "KV_JOBS_1",
            "KV_JOBS_2_OF_2",
            "JOBS_0",
            PENDING_STREAM,
            "EVENTS",
        ] {
            assert!(!is_record_stream(stream), "{stream}");
        }
    }

    #[test]
    fn pauses_have_names() {
        let tenant = samples::key().tenant;
        assert_eq!(pause_key(Some(&tenant), None), "st-mary._");
        assert_eq!(pause_key(None, Some(Class::Bulk)), "_.bulk");
    }

    #[test]
    fn keys_read_back() {
        let key = samples::key();
        assert_eq!(job_of(&text(&key)), Some(key.clone()));
        assert_eq!(job_of("text.st-mary"), None);
        let unit = samples::unit(Stage::Encode, 3);
        let named = unit_of(&work(&unit)).map(|named| (named.key, named.stage, named.unit));
        assert_eq!(named, Some((key.clone(), Stage::Encode, 3)));
        assert_eq!(unit_of("work.encode.tiny-here.routine.Nobody.1.0"), None);
        assert_eq!(unit_of(&intake(&unit)), None);
        assert_eq!(job_of_key(&key.to_string()), Some(key.clone()));
        assert_eq!(job_of_key(&aside_key(&key)), None);
        assert_eq!(job_of_aside(&key.to_string()), None);
        assert_eq!(job_of_aside(&aside_key(&key)), Some(key));
        // Taken for no job's by a release that knows no pads.
        assert_eq!(job_of_key(&accept_key("0a", 1)), None);
        assert_eq!(job_of_aside(&accept_key("0a", 1)), None);
    }
}
