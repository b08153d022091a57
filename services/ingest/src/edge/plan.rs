//! What the edge makes of the hub's answers, and how long it waits. Pure.

use std::time::Duration;

use medfleet_core::{
    Chunks, Ended, Failure, FailureReason, JobId, JobRecord, JobState, Outcome, Stage, UnixMillis,
    doubled,
};
use medfleet_proto::v1;
use medfleet_queue::wire::reason_from_wire;
use medfleet_queue::{IntakeEntry, QueueError};
use medfleet_store::StoreError;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::convert;
use crate::error::{DOMAIN, Refusal};
use crate::keys;

/// What the slowest line is taken to carry that is waited for, in bytes a second: half a line of 0.5 Mbit/s, as others use it
/// too. On a slower one `ingest.edge.answer_max` has to be longer.
const LINE_BYTES_PER_SECOND: u64 = 32 << 10;
/// Bytes of files that lie in buffers on their way, at most: Linux lets one connection have 4 MiB (`net.ipv4.tcp_wmem`). What
/// was written is not at the hub before it is through these, and nothing tells how far it is.
pub(super) const BUFFERED_BYTES_MAX: u64 = 4 << 20;

/// How long an answer may take whose request, or itself, brings so many bytes over the line.
pub(super) fn patience(answer_max: Duration, bytes: u64) -> Duration {
    let on_the_line = bytes.saturating_mul(1000) / LINE_BYTES_PER_SECOND;
    answer_max.saturating_add(Duration::from_millis(on_the_line))
}

/// Why something was not done at the hub.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The hub has decided, and would not decide otherwise the next time.
    Refused(String),
    /// The hub has no such job, or no such upload any more.
    NotThere,
    /// The hub has a job of this request id that was submitted otherwise.
    Taken,
    /// The hub's job is in another state than the call needs.
    OtherState,
    /// Not now; where the hub says so, not before this long.
    Later(&'static str, Option<Duration>),
    /// The hub does not know the tenant's token, or there is none.
    Token,
    /// Something of this side.
    Here(Refusal),
}

impl From<Refusal> for Trouble {
    fn from(error: Refusal) -> Self {
        Self::Here(error)
    }
}

impl From<QueueError> for Trouble {
    fn from(error: QueueError) -> Self {
        Self::Here(error.into())
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Here(error.into())
    }
}

/// Whether a job was not handed on for a reason of its own, such as a record that a later release has written: others may be
/// all the same.
pub(super) fn is_of_job(trouble: &Trouble) -> bool {
    matches!(
        trouble,
        Trouble::Here(Refusal::Queue(QueueError::Malformed { .. }))
    )
}

/// What a status of the hub means. Only what medfleet itself has refused is a refusal: whatever stands between the two,
/// a proxy or another server under the hub's name, must fail no job.
pub(super) fn trouble(status: &Status) -> Trouble {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == DOMAIN);
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    let word = code_word(status.code());
    let Some(info) = info else {
        return match status.code() {
            Code::Unauthenticated => Trouble::Token,
            _ => Trouble::Later(word, delay),
        };
    };
    match status.code() {
        Code::Unauthenticated => Trouble::Token,
        Code::NotFound => Trouble::NotThere,
        Code::AlreadyExists => Trouble::Taken,
        Code::FailedPrecondition if info.reason == "WRONG_STATE" => Trouble::OtherState,
        Code::ResourceExhausted if delay.is_some() => Trouble::Later(word, delay),
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::OutOfRange
        | Code::ResourceExhausted => {
            Trouble::Refused(format!("{}: {}", info.reason, status.message()))
        }
        _ => Trouble::Later(word, delay),
    }
}

/// Whether the hub itself has answered, whatever it said.
pub(super) fn is_answer(status: &Status) -> bool {
    let details = status.get_error_details();
    details
        .error_info()
        .is_some_and(|info| info.domain == DOMAIN)
}

const fn code_word(code: Code) -> &'static str {
    match code {
        Code::Unavailable => "the hub is not reachable",
        Code::DeadlineExceeded => "the hub did not answer in time",
        Code::ResourceExhausted => "the hub has no room",
        Code::Internal => "the hub has a defect",
        Code::Aborted => "the hub has more of an upload than it said",
        // A connection that broke, or something that stands in the hub's place.
        _ => "no answer of medfleet came",
    }
}

/// How long to wait before the next try: doubled from the least to the most, of which a random part is taken off, so that
/// edges that were cut off together do not come back together. What the hub asks for is waited in any case.
pub(super) fn pause(
    (least, most): (Duration, Duration),
    tries: u32,
    asked: Option<Duration>,
    random: u64,
) -> Duration {
    let whole = doubled(least, most, tries.into());
    let share = u32::try_from(random % 1024).unwrap_or(0);
    let own = whole / 2 + whole / 2 * share / 1024;
    asked.map_or(own, |asked| asked + own.min(least))
}

/// How often in a row an upload has been tried without the hub storing any more of it.
pub(super) const fn fruitless(tries: u32, stored_before: u64, stored_now: u64) -> u32 {
    if stored_now > stored_before {
        0
    } else {
        tries + 1
    }
}

/// What is left to skip after a part of this length, if all of it is skipped; none of a part that is to be read, such as one whose
/// length nobody knows.
pub(super) fn after(length: Option<&usize>, skip: u64) -> Option<u64> {
    skip.checked_sub(*length? as u64)
}

/// What the edge owes the hub for a job that was handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing any more.
    Nothing,
    /// To erase what was erased here.
    Erase(JobId),
    /// To follow it, and to tell that it was cancelled.
    Follow { job: JobId, cancel: bool },
}

/// Decides by the record alone.
pub(super) fn duty(record: &JobRecord) -> Duty {
    match &record.forwarded {
        Some(forwarded) if record.owes_erasure() => Duty::Erase(forwarded.job.clone()),
        Some(forwarded) if !record.state.is_final() => Duty::Follow {
            job: forwarded.job.clone(),
            cancel: forwarded.is_cancel_wanted,
        },
        _ => Duty::Nothing,
    }
}

/// How old a state a server of the hub may answer with, with time to spare: on a cluster one that was cut off answers for some
/// 20 s before it knows that it leads no more.
const HUB_BEHIND_MAX: Duration = Duration::from_secs(60);

/// Whether a job was handed on so lately that a server of the hub may not know it yet. `now` by the queue's clock; as long as
/// that is unknown, it may.
pub(super) fn is_new_there(record: &JobRecord, now: Option<UnixMillis>) -> bool {
    let forwarded = record.forwarded.as_ref();
    forwarded.is_some_and(|forwarded| is_younger(forwarded.at, now, HUB_BEHIND_MAX))
}

/// Whether something of this time may be younger than that. A clock that was set back makes nothing older.
fn is_younger(at: UnixMillis, now: Option<UnixMillis>, most: Duration) -> bool {
    now.is_none_or(|now| {
        let age = u64::try_from(now.0.saturating_sub(at.0)).unwrap_or(0);
        Duration::from_millis(age) < most
    })
}

/// Whether work on a job was begun at this site and it has not been handed on: its own stages have to bring it to its tokens.
pub(super) fn is_begun_here(record: &JobRecord) -> bool {
    (JobState::Released..=JobState::Decoding).contains(&record.state)
}

/// Whether a job whose first unit waits was begun at this site and has to be released to its stages: under a rule that is gone,
/// the dispatcher leaves such units to whoever hands jobs on.
pub(super) fn is_to_release(stage: Stage, record: &JobRecord) -> bool {
    stage == Stage::Preprocess && is_begun_here(record) && record.frames.is_none()
}

/// Whether a job can be handed on by what waits for a stage: as it was accepted, or as tokens.
pub(super) fn is_ready(stage: Stage, record: &JobRecord) -> bool {
    record.is_ready_to_forward() && (stage != Stage::Decode || record.is_encoded_here())
}

/// Whether the server that told of a job may be an outdated one, which does not know what an intake message was put there for:
/// it knows no record, or one of an epoch before (`found`: that of its record). Not once the message is older than such a
/// server can be: then the record is gone. `now` by the queue's clock, which dates the message: a machine's own may be ahead,
/// and as long as the queue's is unknown, no message is old.
pub(super) fn is_behind(
    found: Option<u32>,
    entry: &IntakeEntry,
    (now, outdated_max): (Option<UnixMillis>, Duration),
) -> bool {
    // No server is outdated where there is only one.
    !outdated_max.is_zero()
        && found.is_none_or(|epoch| epoch < entry.unit.epoch)
        && is_younger(entry.stored_at, now, outdated_max)
}

/// The request id that a job has at the hub: the same however often it is handed on. It says what was meant, too: the hub may
/// still have a job of this name that meant something else, where an id was free again here and not there.
pub(super) fn request_id(job: &JobId, record: &JobRecord) -> String {
    let meaning = keys::meaning(&record.body);
    format!("edge/{job}/{}/{meaning}", record.epoch)
}

/// Checks that what the hub told is of this job of its: the text of another is worse than none.
pub(super) fn is_of(name: &str, job: &JobId) -> Result<(), Trouble> {
    match name == convert::job_name(job) {
        true => Ok(()),
        false => Err(Trouble::Later("the hub tells of another job", None)),
    }
}

/// What is left of a job's time, at least a second.
pub(super) fn time_left(record: &JobRecord, now: UnixMillis) -> Duration {
    let millis = u64::try_from(record.expires.0.saturating_sub(now.0)).unwrap_or(0);
    Duration::from_millis(millis.max(1_000))
}

/// How the hub's job ended; none when it has not. A completed one needs the outcome given, that of its stored result.
pub(super) fn ended(job: &v1::Job, completed: impl FnOnce() -> Outcome) -> Option<Ended> {
    use v1::JobState as S;
    let outcome = match job.state() {
        S::Completed => completed(),
        S::Failed => Outcome::Failed(failure(job.failure.as_ref())),
        S::Cancelled => Outcome::Cancelled,
        S::Expired => Outcome::Expired,
        _ => return None,
    };
    let total = job.chunks_total.min(medfleet_core::CHUNKS_MAX);
    let done = job.chunks_done.min(total);
    // Which of them were done does not matter any more.
    let done_bitmap = u32::try_from((1_u64 << done) - 1).unwrap_or(u32::MAX);
    Some(Ended {
        outcome,
        attempt: job.attempt,
        chunks: Chunks { total, done_bitmap },
    })
}

fn failure(failure: Option<&v1::Failure>) -> Failure {
    let reason = failure.and_then(|failure| reason_from_wire(failure.reason));
    let message = failure.map_or("", |failure| failure.message.as_str());
    Failure::new(reason.unwrap_or(FailureReason::Internal), message)
}

/// The failure of a job that the hub does not take.
pub(super) fn refused(why: &str) -> Failure {
    let text = format!("the hub does not take this job: {why}");
    Failure::new(FailureReason::InputRefused, text)
}

#[cfg(test)]
mod tests;
