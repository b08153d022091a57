//! What the edge makes of the hub's answers, and how long it waits. Pure.

use std::time::Duration;

use medfleet_core::{
    Chunks, Ended, Failure, FailureReason, JobId, JobRecord, JobState, Outcome, Stage, UnixMillis,
    doubled, spread,
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
use crate::validate::UPLOAD_INSTEAD;

/// The slowest line that is reckoned with, in bytes a second: half of 0.5 Mbit/s, as others use the line too. A slower one needs a
/// longer `ingest.edge.answer_max`.
const LINE_BYTES_PER_SECOND: u64 = 32 << 10;
/// Most bytes that lie in the system's buffers of one connection: 4 MiB on Linux (`net.ipv4.tcp_wmem`). What was written has not
/// reached the hub before it has passed these, and nothing shows how far it is.
pub(super) const BUFFERED_BYTES_MAX: u64 = 4 << 20;

/// How long to wait for an answer where request and answer bring `bytes` over the line.
pub(super) fn patience(answer_max: Duration, bytes: u64) -> Duration {
    let on_the_line = bytes.saturating_mul(1000) / LINE_BYTES_PER_SECOND;
    answer_max.saturating_add(Duration::from_millis(on_the_line))
}

/// Why something was not done at the hub.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The hub has refused it, and would refuse it again.
    Refused(String),
    /// The hub has no such job, or no such upload any more.
    NotThere,
    /// The hub has a job of this request id, with another content.
    Taken,
    /// The hub's job is in another state than the call needs.
    OtherState,
    /// Not possible now: why, and how long the hub asks to wait, if it does.
    Later(&'static str, Option<Duration>),
    /// The hub itself has a defect, or cannot read what it has of this job.
    Defect,
    /// The hub does not know the tenant's token, or there is none.
    Token,
    /// An operator of this site holds it back.
    Held,
    /// Whether the hub has the job shows a little later; nothing else waits for that.
    Unsure,
    /// The job has ended here while its files were sent.
    Ended,
    /// Something at this site failed.
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

/// Whether the trouble is that of one job, such as a record that a later release has written, so that other jobs may still be
/// handed on.
pub(super) fn is_of_job(trouble: &Trouble) -> bool {
    matches!(
        trouble,
        Trouble::Here(Refusal::Queue(QueueError::Malformed { .. })) | Trouble::Unsure
    )
}

/// What a status of the hub means. Only medfleet's own refusals count as such: a proxy in between, or another server under the
/// hub's name, must not fail a job.
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
        Code::Internal => Trouble::Defect,
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

/// Whether the hub refused a job for the bytes within its request, and might take it if they were uploaded before.
pub(super) fn is_to_upload(why: &str) -> bool {
    why.contains(UPLOAD_INSTEAD)
}

/// Whether the status comes from the hub itself, and not from something in between.
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
        Code::Aborted => "the hub has more of an upload than it said",
        // A connection that broke, or something that stands in the hub's place.
        _ => "no answer of medfleet came",
    }
}

/// How long the hub asks to wait.
pub(super) const fn asked(trouble: &Trouble) -> Option<Duration> {
    match trouble {
        Trouble::Later(_, asked) => *asked,
        _ => None,
    }
}

/// How long to wait before the next try: doubled with each try from `least` to `most`, less a random part, so that edges that were
/// cut off together do not come back together. Where the hub asks for a time, that long and at most `least` more.
pub(super) fn pause(
    (least, most): (Duration, Duration),
    tries: u32,
    asked: Option<Duration>,
    random: u64,
) -> Duration {
    let own = spread(doubled(least, most, tries.into()), random);
    asked.map_or(own, |asked| asked + own.min(least))
}

/// Counts the tries of an upload in a row after which the hub has stored no more of it; `tries` is the count before the latest one.
pub(super) const fn fruitless(tries: u32, stored_before: u64, stored_now: u64) -> u32 {
    if stored_now > stored_before {
        0
    } else {
        tries + 1
    }
}

/// How many bytes are left to skip after a part of this length, if all of it is skipped; `None` for a part that has to be read, as
/// not all of it is skipped or its length is unknown.
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

/// What the edge owes the hub for this job, by its record alone.
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

/// How outdated an answer of the hub may be, with time to spare: in a cluster a server that was cut off answers for some 20 s
/// before it knows that it no longer leads.
const HUB_BEHIND_MAX: Duration = Duration::from_secs(60);

/// Whether a job was handed on so recently that an outdated server of the hub may not know it yet. `now` is the queue's time; true
/// for any job that was handed on as long as that is unknown.
pub(super) fn is_new_there(record: &JobRecord, now: Option<UnixMillis>) -> bool {
    let forwarded = record.forwarded.as_ref();
    forwarded.is_some_and(|forwarded| is_younger(forwarded.at, now, HUB_BEHIND_MAX))
}

/// Whether a job ended here so recently that the hub, which does not know it, may have taken it right before and not show it yet.
pub(super) fn has_just_ended(record: &JobRecord, now: Option<UnixMillis>) -> bool {
    let finished = record.times.finished;
    finished.is_some_and(|at| is_younger(at, now, HUB_BEHIND_MAX))
}

/// Whether something of the time `at` may be younger than `most`. A clock that was set back makes nothing older.
fn is_younger(at: UnixMillis, now: Option<UnixMillis>, most: Duration) -> bool {
    now.is_none_or(|now| {
        let age = u64::try_from(now.0.saturating_sub(at.0)).unwrap_or(0);
        Duration::from_millis(age) < most
    })
}

/// Whether work on a job was begun at this site and it was not handed on: this site's own stages have to encode its images.
pub(super) fn is_begun_here(record: &JobRecord) -> bool {
    (JobState::Released..=JobState::Decoding).contains(&record.state)
}

/// Whether a job whose first unit waits was begun at this site and has to be released to its stages. It was begun under a setting
/// that has changed since, and the dispatcher now leaves such units to the edge.
pub(super) fn is_to_release(stage: Stage, record: &JobRecord) -> bool {
    stage == Stage::Preprocess && is_begun_here(record) && record.frames.is_none()
}

/// Whether a job can be handed on when its unit of `stage` waits: as it was accepted, or with every image encoded.
pub(super) fn is_ready(stage: Stage, record: &JobRecord) -> bool {
    record.is_ready_to_forward() && (stage != Stage::Decode || record.is_encoded_here())
}

/// Whether a record that was read may be that of an outdated server: there is none, or its epoch (`found`) is older than the
/// intake message's. Once the message is older, the record is really gone.
pub(super) fn is_behind(
    found: Option<u32>,
    entry: &IntakeEntry,
    as_of: (Option<UnixMillis>, Duration),
) -> bool {
    found.is_none_or(|epoch| epoch < entry.unit.epoch) && is_new_here(entry, as_of)
}

/// Whether an intake message is so young that an outdated server may not know what was stored before it: younger than a server can
/// be outdated (`outdated_max`). `now` is the queue's time, which also dates messages, as a machine's own clock may be ahead; as
/// long as it is unknown, no message counts as old.
pub(super) fn is_new_here(
    entry: &IntakeEntry,
    (now, outdated_max): (Option<UnixMillis>, Duration),
) -> bool {
    // A single server is never outdated.
    !outdated_max.is_zero() && is_younger(entry.stored_at, now, outdated_max)
}

/// The request id that a job has at the hub: the same however often it is handed on. It also names the request's meaning: once a
/// job is forgotten here, its client may use the id again for something else, while the hub still has the old job.
pub(super) fn request_id(job: &JobId, record: &JobRecord) -> String {
    let meaning = keys::meaning(&record.body);
    format!("edge/{job}/{}/{meaning}", record.epoch)
}

/// Checks that the hub's answer is about the job that was asked for: the text of another one is worse than none.
pub(super) fn is_of(name: &str, job: &JobId) -> Result<(), Trouble> {
    match name == convert::job_name(job) {
        true => Ok(()),
        false => Err(Trouble::Later("the hub tells of another job", None)),
    }
}

/// What is left of a job's time, at least a second. Never more than it was given, which the hub may refuse as too long: this
/// replica's clock may be behind that of the one that accepted it, or was set back since.
pub(super) fn time_left(record: &JobRecord, now: UnixMillis) -> Duration {
    let now = now.max(record.times.accepted);
    let millis = u64::try_from(record.expires.0.saturating_sub(now.0)).unwrap_or(0);
    Duration::from_millis(millis.max(1_000))
}

/// How the hub's job ended; `None` when it has not. `completed` gives the outcome of a completed one, from its stored result.
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
    // It does not matter any more which chunks were done, only how many.
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
