//! Wire messages to domain types and back: the one place where this crate does it.

use bytes::Bytes;
use medfleet_core::{
    Chunks, Class, Cost, Digest, Failure, FailureReason, Forwarded, JobId, JobKey, JobRecord,
    JobState, PoolName, PseudonymHash, Pseudonyms, Stage, Starts, TaskKind, TenantId, Times,
    UnixMillis, WorkUnit,
};
use medfleet_proto::v1;
use medfleet_proto::work::v1 as work;
use prost::Message;

use crate::{QueueError, Result};

pub(crate) mod later;

use later::Later;

/// Largest encoded job record.
pub const RECORD_BYTES_MAX: usize = 1024;

/// Decodes a message; `what` names it in the error, whose text shows nothing of the content.
pub(crate) fn decode<M: Message + Default>(what: &'static str, bytes: Bytes) -> Result<M> {
    M::decode(bytes).map_err(|_| QueueError::malformed(what, "not the encoding of this message"))
}

pub(crate) fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// The state's number on the wire.
pub const fn state_to_wire(state: JobState) -> v1::JobState {
    match state {
        JobState::Accepted => v1::JobState::Accepted,
        JobState::Forwarded => v1::JobState::Forwarded,
        JobState::Released => v1::JobState::Released,
        JobState::Preprocessed => v1::JobState::Preprocessed,
        JobState::Encoding => v1::JobState::Encoding,
        JobState::Decoding => v1::JobState::Decoding,
        JobState::Completed => v1::JobState::Completed,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
        JobState::Expired => v1::JobState::Expired,
    }
}

/// The state of a wire number; `None` for one that this version does not know.
pub fn state_from_wire(state: i32) -> Option<JobState> {
    JobState::ALL
        .iter()
        .copied()
        .find(|known| state_to_wire(*known) as i32 == state)
}

/// The class's number in the public API.
pub const fn class_to_wire(class: Class) -> v1::Class {
    match class {
        Class::Stat => v1::Class::Stat,
        Class::Urgent => v1::Class::Urgent,
        Class::Routine => v1::Class::Routine,
        Class::Bulk => v1::Class::Bulk,
    }
}

/// The reason's number on the wire.
pub const fn reason_to_wire(reason: FailureReason) -> v1::FailureReason {
    match reason {
        FailureReason::InputRefused => v1::FailureReason::InputRefused,
        FailureReason::ImageMissing => v1::FailureReason::ImageMissing,
        FailureReason::Integrity => v1::FailureReason::Integrity,
        FailureReason::AttemptsExhausted => v1::FailureReason::AttemptsExhausted,
        FailureReason::PromptTooLong => v1::FailureReason::PromptTooLong,
        FailureReason::Internal => v1::FailureReason::Internal,
        FailureReason::ModelMismatch => v1::FailureReason::ModelMismatch,
        FailureReason::AnswerUnusable => v1::FailureReason::AnswerUnusable,
    }
}

/// The reason of a wire number; `None` for none and for one that this version does not know.
pub fn reason_from_wire(reason: i32) -> Option<FailureReason> {
    FailureReason::ALL
        .iter()
        .copied()
        .find(|known| reason_to_wire(*known) as i32 == reason)
}

/// The task's number on the wire.
pub const fn task_to_wire(task: TaskKind) -> v1::TaskKind {
    match task {
        TaskKind::Report => v1::TaskKind::Report,
        TaskKind::Answer => v1::TaskKind::Answer,
        TaskKind::Classify => v1::TaskKind::Classify,
        TaskKind::Localise => v1::TaskKind::Localise,
        TaskKind::Compare => v1::TaskKind::Compare,
        TaskKind::Extract => v1::TaskKind::Extract,
        TaskKind::Embed => v1::TaskKind::Embed,
        TaskKind::ZeroShot => v1::TaskKind::ZeroShot,
    }
}

/// The task of a wire number; `None` for one that this version does not know.
pub(crate) fn task_from_wire(task: i32) -> Option<TaskKind> {
    TaskKind::ALL
        .iter()
        .copied()
        .find(|known| task_to_wire(*known) as i32 == task)
}

/// A unit as it travels.
pub(crate) fn unit_to_wire(unit: &WorkUnit) -> work::WorkUnit {
    work::WorkUnit {
        tenant: unit.key.tenant.to_string(),
        job: unit.key.job.to_string(),
        epoch: unit.epoch,
        pool: unit.pool.to_string(),
        class: unit.class.to_string(),
        unit: unit.unit,
        stage: unit.stage.to_string(),
        expire_unix_millis: unit.expires.0,
        cost: Some(cost_to_wire(&unit.cost)),
    }
}

/// A cost as it travels.
pub(crate) const fn cost_to_wire(cost: &Cost) -> work::Cost {
    work::Cost {
        preprocess_millis: cost.preprocess_millis,
        frames: cost.frames,
        encode_millis_per_frame: cost.encode_millis_per_frame,
        decode_millis_per_frame: cost.decode_millis_per_frame,
        decode_millis: cost.decode_millis,
    }
}

/// A cost as it is used; nothing for what was written before there were costs.
pub fn cost_from_wire(cost: Option<&work::Cost>) -> Cost {
    cost.map_or_else(Cost::default, |cost| Cost {
        preprocess_millis: cost.preprocess_millis,
        frames: cost.frames,
        encode_millis_per_frame: cost.encode_millis_per_frame,
        decode_millis_per_frame: cost.decode_millis_per_frame,
        decode_millis: cost.decode_millis,
    })
}

/// A unit as it is used.
///
/// # Errors
/// [`QueueError::Malformed`] names the field, not its value.
pub fn unit_from_wire(unit: &work::WorkUnit) -> Result<WorkUnit> {
    let bad = |field: &'static str| QueueError::malformed("a work unit", field);
    Ok(WorkUnit {
        key: JobKey::new(
            TenantId::new(unit.tenant.as_str()).map_err(|_| bad("tenant"))?,
            JobId::new(unit.job.as_str()).map_err(|_| bad("job"))?,
        ),
        stage: unit.stage.parse::<Stage>().map_err(|_| bad("stage"))?,
        pool: PoolName::new(unit.pool.as_str()).map_err(|_| bad("pool"))?,
        class: unit.class.parse::<Class>().map_err(|_| bad("class"))?,
        unit: unit.unit,
        epoch: unit.epoch,
        expires: UnixMillis(unit.expire_unix_millis),
        cost: cost_from_wire(unit.cost.as_ref()),
    })
}

fn digest_to_wire(digest: Option<Digest>) -> Bytes {
    digest.map_or_else(Bytes::new, |digest| {
        Bytes::copy_from_slice(digest.as_bytes())
    })
}

fn digest_from_wire(bytes: &[u8], field: &'static str) -> Result<Option<Digest>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Digest::from_slice(bytes)
        .map(Some)
        .map_err(|_| QueueError::malformed("a job record", field))
}

fn hash_to_wire(hash: Option<&PseudonymHash>) -> Bytes {
    hash.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(hash.as_bytes()))
}

fn pseudonyms_from_wire(wire: &work::JobRecord) -> Result<Pseudonyms> {
    let hash = |bytes: &Bytes| {
        PseudonymHash::from_slice(bytes)
            .ok_or_else(|| QueueError::malformed("a job record", "pseudonym hash"))
    };
    let patient = Some(&wire.patient_hash).filter(|bytes| !bytes.is_empty());
    Ok(Pseudonyms {
        patient: patient.map(hash).transpose()?,
        studies: wire.study_hashes.iter().map(hash).collect::<Result<_>>()?,
    })
}

/// 0 stands for no time; a machine whose clock is before 1970 reads as 0, and what it did has a time all the same.
fn time_to_wire(time: Option<UnixMillis>) -> i64 {
    match time {
        None => 0,
        Some(UnixMillis(0)) => 1,
        Some(time) => time.0,
    }
}

/// Encodes a record, with what a later release wrote into it.
///
/// # Errors
/// [`QueueError::TooLarge`] above [`RECORD_BYTES_MAX`].
pub(crate) fn encode_record(record: &JobRecord, later: &Later) -> Result<Bytes> {
    let times = &record.times;
    let failure = record.failure.as_ref();
    let studies = record.pseudonyms.studies.iter();
    let message = work::JobRecord {
        state: state_to_wire(record.state) as i32,
        epoch: record.epoch,
        attempt: record.attempt,
        starts: vec![
            record.starts.preprocess,
            record.starts.encode,
            record.starts.decode,
        ],
        chunks_total: record.chunks.total,
        chunks_done_bitmap: record.chunks.done_bitmap,
        pool: record.pool.to_string(),
        class: record.class.to_string(),
        task: task_to_wire(record.task) as i32,
        image_count: record.image_count,
        body_digest: digest_to_wire(Some(record.body)),
        study_digest: digest_to_wire(Some(record.study)),
        patient_hash: hash_to_wire(record.pseudonyms.patient.as_ref()),
        study_hashes: studies.map(|hash| hash_to_wire(Some(hash))).collect(),
        frames_digest: digest_to_wire(record.frames),
        result_digest: digest_to_wire(record.result),
        failure_reason: failure.map_or(0, |failure| reason_to_wire(failure.reason) as i32),
        failure_message: failure.map_or_else(String::new, |failure| failure.message.clone()),
        times_unix_millis: vec![
            times.accepted.0,
            time_to_wire(times.released),
            time_to_wire(times.preprocessed),
            time_to_wire(times.encoded),
            time_to_wire(times.decoding),
            time_to_wire(times.finished),
        ],
        expire_unix_millis: record.expires.0,
        traceparent: record.traceparent.clone(),
        model: record.model.clone(),
        erased_unix_millis: time_to_wire(record.erased),
        cost: Some(cost_to_wire(&record.cost)),
        class_asked: match record.class_asked {
            asked if asked == record.class => String::new(),
            asked => asked.to_string(),
        },
        forwarded: record.forwarded.as_ref().map(|forwarded| work::Forwarded {
            job: forwarded.job.to_string(),
            time_unix_millis: forwarded.at.0,
            cancel_wanted: forwarded.is_cancel_wanted,
            erased: forwarded.is_erased,
        }),
    };
    let mut bytes = message.encode_to_vec();
    later.append_to(&mut bytes, record.forwarded.is_some());
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(QueueError::TooLarge {
            what: "a job record",
            bytes: bytes.len(),
            bytes_max: RECORD_BYTES_MAX,
        });
    }
    Ok(bytes.into())
}

/// What a later release wrote into an encoded record.
pub(crate) fn later_of_record(bytes: &[u8]) -> Result<Later> {
    Later::of(bytes)
        .ok_or_else(|| QueueError::malformed("a job record", "a field of an unknown kind"))
}

/// What a later release wrote into an encoded upload record.
pub(crate) fn later_of_upload(bytes: &[u8]) -> Result<Vec<u8>> {
    later::of_upload(bytes)
        .ok_or_else(|| QueueError::malformed("an upload record", "a field of an unknown kind"))
}

pub(crate) fn decode_record(bytes: Bytes) -> Result<JobRecord> {
    let bad = |field: &'static str| QueueError::malformed("a job record", field);
    let wire: work::JobRecord = decode("a job record", bytes)?;
    let start = |index: usize| wire.starts.get(index).copied().unwrap_or(0);
    let time = |index: usize| {
        let millis = wire.times_unix_millis.get(index).copied().unwrap_or(0);
        (millis != 0).then_some(UnixMillis(millis))
    };
    // A reason of a newer version must not turn a failed record into an unreadable one.
    let failure = (wire.failure_reason != 0).then(|| Failure {
        reason: reason_from_wire(wire.failure_reason).unwrap_or(FailureReason::Internal),
        message: wire.failure_message.clone(),
    });
    let class: Class = wire.class.parse().map_err(|_| bad("class"))?;
    let class_asked = match wire.class_asked.as_str() {
        "" => class,
        asked => asked.parse().map_err(|_| bad("class asked"))?,
    };
    let forwarded = wire.forwarded.as_ref().map(|forwarded| {
        Ok::<_, QueueError>(Forwarded {
            job: JobId::new(forwarded.job.as_str()).map_err(|_| bad("the hub's job"))?,
            at: UnixMillis(forwarded.time_unix_millis),
            is_cancel_wanted: forwarded.cancel_wanted,
            is_erased: forwarded.erased,
        })
    });
    Ok(JobRecord {
        forwarded: forwarded.transpose()?,
        state: state_from_wire(wire.state).ok_or_else(|| bad("state"))?,
        epoch: wire.epoch,
        attempt: wire.attempt,
        starts: Starts {
            preprocess: start(0),
            encode: start(1),
            decode: start(2),
        },
        chunks: Chunks {
            total: wire.chunks_total,
            done_bitmap: wire.chunks_done_bitmap,
        },
        pool: PoolName::new(wire.pool.as_str()).map_err(|_| bad("pool"))?,
        class,
        class_asked,
        task: task_from_wire(wire.task).ok_or_else(|| bad("task"))?,
        image_count: wire.image_count,
        body: digest_from_wire(&wire.body_digest, "body digest")?
            .ok_or_else(|| bad("body digest"))?,
        study: digest_from_wire(&wire.study_digest, "study digest")?
            .ok_or_else(|| bad("study digest"))?,
        pseudonyms: pseudonyms_from_wire(&wire)?,
        frames: digest_from_wire(&wire.frames_digest, "frames digest")?,
        result: digest_from_wire(&wire.result_digest, "result digest")?,
        failure,
        times: Times {
            accepted: time(0).unwrap_or_default(),
            released: time(1),
            preprocessed: time(2),
            encoded: time(3),
            decoding: time(4),
            finished: time(5),
        },
        expires: UnixMillis(wire.expire_unix_millis),
        traceparent: wire.traceparent,
        erased: (wire.erased_unix_millis != 0).then_some(UnixMillis(wire.erased_unix_millis)),
        model: wire.model,
        cost: cost_from_wire(wire.cost.as_ref()),
    })
}

/// The event that says where a record stands. Its time is the record's own where the record has one, so that
/// publishing it again says the same.
pub(crate) fn event_of(record: &JobRecord, now: UnixMillis) -> work::JobEvent {
    let times = &record.times;
    let time = match record.state {
        JobState::Accepted => Some(times.accepted),
        JobState::Forwarded => record.forwarded.as_ref().map(|forwarded| forwarded.at),
        JobState::Released => times.released,
        JobState::Preprocessed => times.preprocessed,
        JobState::Encoding => times.encoded,
        JobState::Decoding => times.decoding,
        JobState::Completed | JobState::Failed | JobState::Cancelled | JobState::Expired => {
            times.finished
        }
    };
    let event = work::JobEvent {
        state: state_to_wire(record.state) as i32,
        time_unix_millis: time.unwrap_or(now).0,
        chunks_total: record.chunks.total,
        chunks_done: record.chunks.done(),
        attempt: record.attempt,
        epoch: record.epoch,
        ..work::JobEvent::default()
    };
    if record.state.is_final() {
        return event;
    }
    work::JobEvent {
        pool: record.pool.to_string(),
        class: record.class.to_string(),
        cost: Some(cost_to_wire(&record.cost)),
        expire_unix_millis: record.expires.0,
        ..event
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
