//! The border between domain words and the public API's messages; nothing else in this crate names both.

use medfleet_core::{Class, JobId, JobRecord, PoolName, TaskKind, UnixMillis, UploadId};
use medfleet_proto::v1;
use medfleet_proto::work::v1::{self as work, JobEvent, UploadRecord};
use medfleet_queue::Pause;
pub(crate) use medfleet_queue::wire::{class_to_wire as class, state_from_wire as state_from};
use medfleet_queue::wire::{cost_from_wire, reason_to_wire, state_to_wire, task_to_wire};
use prost_types::Timestamp;

use crate::error::Refusal;
use crate::unit::ledger::Sighting;

/// Collection of job names.
const JOBS: &str = "jobs/";
/// Collection of upload names.
const UPLOADS: &str = "uploads/";
/// Collection of dead letters' names.
const DEAD_LETTERS: &str = "deadLetters/";

pub(crate) fn job_name(id: &JobId) -> String {
    format!("{JOBS}{id}")
}

pub(crate) fn upload_name(id: &UploadId) -> String {
    format!("{UPLOADS}{id}")
}

/// Reads `jobs/{id}`.
pub(crate) fn job_id(name: &str) -> Result<JobId, Refusal> {
    let id = name.strip_prefix(JOBS).and_then(|id| JobId::new(id).ok());
    id.ok_or_else(|| Refusal::invalid("name", "jobs/ followed by 32 lowercase hexadecimal digits"))
}

/// Reads `uploads/{id}`.
pub(crate) fn upload_id(field: &str, name: &str) -> Result<UploadId, Refusal> {
    let id = name
        .strip_prefix(UPLOADS)
        .and_then(|id| UploadId::new(id).ok());
    id.ok_or_else(|| {
        Refusal::invalid(
            field,
            "uploads/ followed by 32 lowercase hexadecimal digits",
        )
    })
}

/// What the name of a dead letter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LetterName {
    /// The job and its epoch that failed, of which one letter is stored: also when the letter is gone it says whose it was.
    Of(JobId, u32),
    /// Its place in the stream: so earlier releases named it.
    Place(u64),
}

/// Reads `deadLetters/{id}`.
pub(crate) fn letter_name(name: &str) -> Result<LetterName, Refusal> {
    let read = |id: &str| match id.split_once('-') {
        Some((job, epoch)) => Some(LetterName::Of(JobId::new(job).ok()?, epoch.parse().ok()?)),
        // Sequences count from 1.
        None => Some(LetterName::Place(
            id.parse::<u64>().ok().filter(|place| *place > 0)?,
        )),
    };
    name.strip_prefix(DEAD_LETTERS)
        .and_then(read)
        .ok_or_else(|| {
            let allowed = "deadLetters/ followed by a job's id, a hyphen and a number, as ListDeadLetters gives it";
            Refusal::invalid("name", allowed)
        })
}

/// A dead letter as the API shows it.
pub(crate) fn dead_letter(sequence: u64, letter: &work::DeadLetter) -> v1::DeadLetter {
    let unit = letter.unit.clone().unwrap_or_default();
    let name = match JobId::new(unit.job.as_str()) {
        Ok(job) => format!("{DEAD_LETTERS}{job}-{}", unit.epoch),
        // Nothing but its place tells it from others.
        Err(_) => format!("{DEAD_LETTERS}{sequence}"),
    };
    v1::DeadLetter {
        name,
        job: format!("{JOBS}{}", unit.job),
        stage: unit.stage,
        unit: unit.unit,
        pool: unit.pool,
        epoch: unit.epoch,
        failure: Some(v1::Failure {
            reason: letter.reason,
            message: letter.message.clone(),
        }),
        create_time: Some(timestamp(UnixMillis(letter.time_unix_millis))),
    }
}

/// What is held back, as the API shows it.
pub(crate) fn pause(pause: &Pause) -> v1::Pause {
    let of = pause.class.map_or(v1::Class::Unspecified, class);
    v1::Pause {
        tenant: pause
            .tenant
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        class: of.into(),
        actor: pause.actor.clone(),
        create_time: Some(timestamp(pause.at)),
    }
}

pub(crate) fn timestamp(at: UnixMillis) -> Timestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    Timestamp {
        seconds: at.0.div_euclid(1000),
        nanos,
    }
}

pub(crate) fn unix_millis(at: Timestamp) -> UnixMillis {
    let millis = at.seconds.saturating_mul(1000);
    UnixMillis(millis.saturating_add(i64::from(at.nanos / 1_000_000)))
}

/// A record as the API shows it.
pub(crate) fn job(id: &JobId, record: &JobRecord) -> v1::Job {
    let times = &record.times;
    // That the hub has a job may be heard long after its end.
    let handed_on = record.forwarded.as_ref().map(|forwarded| forwarded.at);
    let steps = [
        times.released,
        times.preprocessed,
        times.encoded,
        times.decoding,
        times.finished,
        record.erased,
        handed_on.filter(|_| times.finished.is_none()),
    ];
    let updated = steps
        .into_iter()
        .flatten()
        .fold(times.accepted, UnixMillis::max);
    v1::Job {
        name: job_name(id),
        state: state_to_wire(record.state).into(),
        class: class(record.class).into(),
        task: task_to_wire(record.task).into(),
        model: record.model.clone(),
        create_time: Some(timestamp(times.accepted)),
        update_time: Some(timestamp(updated)),
        expire_time: Some(timestamp(record.expires)),
        failure: record.failure.as_ref().map(|failure| v1::Failure {
            reason: reason_to_wire(failure.reason).into(),
            message: failure.message.clone(),
        }),
        image_count: record.image_count,
        chunks_total: record.chunks.total,
        chunks_done: record.chunks.done(),
        trace_id: trace_id(&record.traceparent).to_owned(),
        attempt: record.attempt,
        erase_time: record.erased.map(timestamp),
        class_asked: class(record.class_asked).into(),
        cancel_wanted: !record.state.is_final()
            && record
                .forwarded
                .as_ref()
                .is_some_and(|f| f.is_cancel_wanted),
    }
}

/// The second field of a W3C traceparent; empty when there is none.
fn trace_id(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).unwrap_or_default()
}

/// A durable event as a watcher sees it.
pub(crate) fn progress(event: &JobEvent) -> v1::JobProgress {
    v1::JobProgress {
        state: event.state,
        chunks_total: event.chunks_total,
        chunks_done: event.chunks_done,
    }
}

/// What an event says of a job that has not ended; nothing when an older version sent it.
pub(crate) fn sighting(event: &JobEvent) -> Option<Sighting> {
    Some(Sighting {
        epoch: event.epoch,
        state: state_from(event.state)?,
        chunks_total: event.chunks_total,
        chunks_done: event.chunks_done,
        pool: PoolName::new(event.pool.as_str()).ok()?,
        class: event.class.parse().ok()?,
        cost: cost_from_wire(event.cost.as_ref()),
        expires: UnixMillis(event.expire_unix_millis),
    })
}

/// Whether an event's state is final.
pub(crate) fn is_final(event: &JobEvent) -> bool {
    use v1::JobState as S;
    matches!(
        event.state(),
        S::Completed | S::Failed | S::Cancelled | S::Expired
    )
}

pub(crate) fn upload(id: &UploadId, record: &UploadRecord) -> v1::Upload {
    v1::Upload {
        name: upload_name(id),
        committed_bytes: record.committed_bytes,
        total_bytes: record.total_bytes,
        complete: record.committed_bytes == record.total_bytes,
        expire_time: Some(timestamp(UnixMillis(record.expire_unix_millis))),
    }
}

/// The text that was streamed while this result was written: all deltas, one after the other.
pub(crate) fn result_text(result: &v1::Result) -> &str {
    match &result.output {
        Some(v1::result::Output::Report(report)) => &report.text,
        Some(v1::result::Output::Answer(answer)) => &answer.text,
        Some(v1::result::Output::Classification(classification)) => &classification.text,
        Some(v1::result::Output::Localisation(localisation)) => &localisation.text,
        Some(v1::result::Output::Extraction(extraction)) => &extraction.json,
        Some(v1::result::Output::Embeddings(_) | v1::result::Output::ZeroShot(_)) | None => "",
    }
}

/// The domain's word for a wire class; unspecified is routine, none for numbers that are no class.
pub(crate) fn class_from(number: i32) -> Option<Class> {
    if number == i32::from(v1::Class::Unspecified) {
        return Some(Class::Routine);
    }
    Class::ALL
        .iter()
        .copied()
        .find(|known| i32::from(class(*known)) == number)
}

/// The kind of a task that was sent.
pub(crate) const fn task_kind(kind: &v1::task::Kind) -> TaskKind {
    match kind {
        v1::task::Kind::Report(_) => TaskKind::Report,
        v1::task::Kind::Answer(_) => TaskKind::Answer,
        v1::task::Kind::Classify(_) => TaskKind::Classify,
        v1::task::Kind::Localise(_) => TaskKind::Localise,
        v1::task::Kind::Compare(_) => TaskKind::Compare,
        v1::task::Kind::Extract(_) => TaskKind::Extract,
        v1::task::Kind::Embed(_) => TaskKind::Embed,
        v1::task::Kind::ZeroShot(_) => TaskKind::ZeroShot,
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::{JobState, Move};

    use super::*;

    #[test]
    fn every_state_and_class_reads_back() {
        for known in JobState::ALL {
            assert_eq!(state_from(state_to_wire(*known).into()), Some(*known));
        }
        for known in Class::ALL {
            assert_eq!(class_from(class(*known).into()), Some(*known));
        }
        assert_eq!(
            (state_from(0), state_from(99), class_from(99)),
            (None, None, None)
        );
        assert_eq!(class_from(0), Some(Class::Routine));
    }

    #[test]
    fn letters_are_named_by_job_and_epoch_and_read_by_their_place_too() {
        let job = JobId::from_bytes([0xab; 16]);
        let unit = work::WorkUnit {
            job: job.to_string(),
            epoch: 2,
            ..work::WorkUnit::default()
        };
        let letter = work::DeadLetter {
            unit: Some(unit),
            ..work::DeadLetter::default()
        };
        let check = |name: &str, expected: Option<LetterName>| {
            assert_eq!(letter_name(name).ok(), expected, "{name}");
        };
        let named = dead_letter(7, &letter).name;
        check(&named, Some(LetterName::Of(job, 2)));
        let placed = dead_letter(7, &work::DeadLetter::default()).name;
        check(&placed, Some(LetterName::Place(7)));
        check("deadLetters/0", None);
        check("deadLetters/7-2", None);
        check("deadLetters/", None);
        check("jobs/7", None);
    }

    /// As the contract says: the first chunk's start is in no record.
    #[test]
    fn a_job_last_came_further_at_its_latest_step() {
        let (key, mut record) = medfleet_testkit::record(1, 1);
        let began = record.times.accepted.0;
        let updated = |record: &JobRecord| job(&key.job, record).update_time;
        let at = |millis| Some(timestamp(UnixMillis(began + millis)));
        record.state = JobState::Preprocessed;
        record.times.preprocessed = Some(UnixMillis(began + 20));
        assert_eq!(updated(&record), at(20));
        record.state = JobState::Encoding;
        assert_eq!(updated(&record), at(20));
        record.times.encoded = Some(UnixMillis(began + 30));
        assert_eq!(updated(&record), at(30));
        let now = |millis| UnixMillis(began + millis);
        let ended = record.apply(&Move::Cancel, now(40)).expect("it goes on");
        let found = Move::FoundAtHub {
            job: key.job.clone(),
        };
        let known = ended.apply(&found, now(50)).expect("it has ended");
        assert_eq!(updated(&known), at(40));
    }

    #[test]
    fn names_and_times() {
        let id = JobId::from_bytes([0xab; 16]);
        assert_eq!(job_id(&job_name(&id)).ok(), Some(id));
        assert!(job_id("jobs/..").is_err() && job_id("uploads/").is_err());
        assert_eq!(
            timestamp(UnixMillis(1_500)),
            Timestamp {
                seconds: 1,
                nanos: 500_000_000
            }
        );
        assert_eq!(
            timestamp(UnixMillis(-1)),
            Timestamp {
                seconds: -1,
                nanos: 999_000_000
            }
        );
        assert_eq!(
            trace_id("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(trace_id(""), "");
    }
}
