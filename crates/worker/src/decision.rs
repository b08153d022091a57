//! What to do with a unit, given what its job's record says. Pure: the loop carries it out.

use std::time::Duration;

use medfleet_core::{
    Failure, FailureReason, JobRecord, Refused, Stage, UnixMillis, Verdict, WorkUnit,
};
use medfleet_queue::{Applied, Revision};

/// What follows an attempt to start a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Its start is recorded, at this revision: work.
    Work(JobRecord, Revision),
    /// It was done before: queue what follows. True when this start was counted and has to be taken back.
    Repeat(JobRecord, bool),
    /// The job is final: publish its last event again, then acknowledge.
    Announce(JobRecord),
    /// Started as often as allowed: fail the job.
    Exhausted(Failure),
    /// Nothing to do: the job is gone, or the unit is of an older epoch.
    Drop,
    /// The record is behind the unit; come again.
    Later,
}

/// Decides after the start was tried.
#[must_use]
pub fn after_start(unit: &WorkUnit, applied: Applied) -> Start {
    match applied {
        Applied::Applied {
            record, revision, ..
        } => {
            let done = unit.stage == Stage::Encode && record.chunks.is_done(unit.unit);
            if done {
                Start::Repeat(record, true)
            } else {
                Start::Work(record, revision)
            }
        }
        Applied::Refused {
            reason: Refused::Final { .. },
            record,
        } => Start::Announce(record),
        // Done before its worker died: other chunks may have used up the starts since, but this one needs none.
        Applied::Refused {
            reason: Refused::Exhausted { .. },
            record,
        } if unit.stage == Stage::Encode && record.chunks.is_done(unit.unit) => {
            Start::Repeat(record, false)
        }
        Applied::Refused {
            reason: reason @ Refused::Exhausted { .. },
            ..
        } => Start::Exhausted(Failure::new(
            FailureReason::AttemptsExhausted,
            reason.to_string(),
        )),
        Applied::Refused { record, .. } if is_past(unit.stage, &record) => {
            Start::Repeat(record, false)
        }
        Applied::Refused { .. } => Start::Later,
        Applied::OtherEpoch { record } if record.epoch < unit.epoch => Start::Later,
        Applied::OtherEpoch { .. } | Applied::Missing => Start::Drop,
    }
}

/// Whether the stage's own outcome is in the record already.
fn is_past(stage: Stage, record: &JobRecord) -> bool {
    match stage {
        Stage::Preprocess => record.frames.is_some(),
        Stage::Encode => record.frames.is_some() && record.chunks.all_done(),
        // Its outcome is a final state.
        Stage::Decode => false,
    }
}

/// Whose a unit is while it is being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Still this worker's.
    Mine,
    /// Another attempt or epoch owns the job.
    Superseded,
    /// The job is final.
    Over(Box<JobRecord>),
    /// Its time is over.
    Expired,
}

/// Decides at every heartbeat and at every hint.
#[must_use]
pub fn standing(
    unit: &WorkUnit,
    attempt: Option<u32>,
    record: &JobRecord,
    now: UnixMillis,
) -> Standing {
    if record.epoch != unit.epoch || attempt.is_some_and(|attempt| attempt != record.attempt) {
        Standing::Superseded
    } else if record.state.is_final() {
        Standing::Over(Box::new(record.clone()))
    } else if now > record.expires {
        Standing::Expired
    } else {
        Standing::Mine
    }
}

/// The verdict on a unit whose job failed: what the sender can mend ends here, the rest is kept for a replay.
#[must_use]
pub fn verdict_of_failure(failure: Failure) -> Verdict {
    match failure.reason {
        FailureReason::InputRefused
        | FailureReason::PromptTooLong
        | FailureReason::AnswerUnusable => Verdict::Done,
        FailureReason::ImageMissing
        | FailureReason::Integrity
        | FailureReason::AttemptsExhausted
        | FailureReason::Internal
        | FailureReason::ModelMismatch => Verdict::Reject(failure),
    }
}

/// The verdict on a unit of a job that is final already. The dead letter of a failed one may never have been written,
/// when the worker of this unit died right after the record; it is one per unit, however often it is sent. A unit that is
/// delivered for the first time cannot be the one that failed.
#[must_use]
pub fn verdict_of_final(record: &JobRecord, deliveries: u64) -> Verdict {
    match &record.failure {
        Some(failure) if deliveries > 1 => verdict_of_failure(failure.clone()),
        _ => Verdict::Done,
    }
}

/// Pause before the next delivery: doubles with every delivery up to the longest.
#[must_use]
pub fn backoff(first: Duration, longest: Duration, deliveries: u64) -> Duration {
    let doublings = u32::try_from(deliveries.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(20);
    first.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests;
