//! The decisions of the job protocol: who changes a record, who goes on, who stops, what follows a unit, and how it ends. Pure;
//! the queue and the workers carry them out, and the model check explores them together with the state machine.

use crate::guard::Guard;
use crate::{
    Failure, FailureReason, JobKey, JobRecord, JobState, Move, Refused, Stage, UnixMillis, Verdict,
    WorkUnit,
};

/// What becomes of a wish to move a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// This is the record to store, or as it was stored.
    Moved(JobRecord),
    /// The state machine does not allow it.
    Refused {
        reason: Refused,
        /// The record as found.
        record: JobRecord,
    },
    /// The job was replayed since the work was made.
    OtherEpoch { record: JobRecord },
    /// There is no such job, or it has expired.
    Missing,
}

/// Applies a move to a record as it was read. The caller stores what comes out by compare-and-set, and begins anew with
/// the record it then finds when somebody was faster.
pub fn propose(before: &JobRecord, epoch: Option<u32>, step: &Move, now: UnixMillis) -> Tried {
    let other = epoch.is_some_and(|epoch| epoch != before.epoch);
    if Guard::EpochOfMove.acts(other) {
        return Tried::OtherEpoch {
            record: before.clone(),
        };
    }
    match before.apply(step, now) {
        Ok(record) => Tried::Moved(record),
        Err(reason) => Tried::Refused {
            reason,
            record: before.clone(),
        },
    }
}

/// What becomes of the change that a worker wants because its unit does not go well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This is the record to store, by compare-and-set.
    Store(Box<JobRecord>),
    /// The job has ended.
    Over,
    /// Somebody else has finished the unit: queue what follows.
    Done,
    /// The job is another's by now: touch nothing.
    Superseded,
}

/// As [`propose`], for a hand-back, a failure or an expiry by a worker. A fenced worker must not make it.
pub fn propose_change(
    before: &JobRecord,
    unit: &WorkUnit,
    attempt: Option<u32>,
    step: &Move,
    now: UnixMillis,
) -> Change {
    let other_attempt = attempt.is_some_and(|attempt| attempt != before.attempt);
    if Guard::EpochOfChange.acts(before.epoch != unit.epoch)
        || Guard::AttemptOfChange.acts(other_attempt)
    {
        return Change::Superseded;
    }
    let failed = matches!(step, Move::Fail(_)) && !before.state.is_final();
    if Guard::DoneIsNoFailure.acts(failed && is_done(unit, before)) {
        return Change::Done;
    }
    match before.apply(step, now) {
        Ok(after) => Change::Store(Box::new(after)),
        Err(Refused::Final { .. }) => Change::Over,
        Err(_) => Change::Superseded,
    }
}

/// What follows an attempt to start a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Its start is recorded: work.
    Work(JobRecord),
    /// It was done before, and this start is not counted: queue what follows.
    Repeat(JobRecord),
    /// The job is final: publish its last event again, then acknowledge.
    Announce(JobRecord),
    /// Started as often as allowed: fail the job.
    Exhausted(Failure),
    /// Nothing to do: the unit is of an older epoch.
    Drop,
    /// The record is behind the unit, or was not found: try again later. A server that has lost its leadership without knowing it
    /// yet answers this way about a job that was accepted since. Records outlive the expiry of their units, so this ends.
    Later,
}

/// Decides after the start was tried.
pub fn after_start(unit: &WorkUnit, tried: Tried) -> Start {
    match tried {
        Tried::Moved(record) => Start::Work(record),
        Tried::Refused {
            reason: Refused::Final { .. },
            record,
        } => Start::Announce(record),
        Tried::Refused {
            reason: reason @ Refused::Exhausted { .. },
            ..
        } => Start::Exhausted(Failure::new(
            FailureReason::AttemptsExhausted,
            reason.to_string(),
        )),
        Tried::Refused { record, .. } if Guard::RepeatWhatFollows.acts(is_done(unit, &record)) => {
            Start::Repeat(record)
        }
        Tried::Refused { .. } => Start::Later,
        Tried::OtherEpoch { record } if record.epoch < unit.epoch => Start::Later,
        Tried::OtherEpoch { .. } => Start::Drop,
        Tried::Missing => Start::Later,
    }
}

/// Starts beyond one a unit that a job may take of a stage, as this unit is begun for the delivery of this number. `retries_max`:
/// those of one unit.
///
/// A job's chunks share their starts. Where the queue, or a machine with many workers, goes away, the starts of all that are at work
/// come to nothing at once. So a chunk that was not delivered more often than it may be started is not given up on for the starts of
/// the others, as long as all of them together have not taken what each may.
pub fn retries_of_all(
    unit: &WorkUnit,
    record: &JobRecord,
    retries_max: u32,
    deliveries: u64,
) -> u32 {
    let is_of_others = unit.stage == Stage::Encode && deliveries <= 1 + u64::from(retries_max);
    let units = if is_of_others { record.chunks.total } else { 1 };
    retries_max.saturating_mul(units.max(1))
}

/// Starts that a unit has left when it has few: its last, and one more, as one may have come to nothing for another reason than the
/// starts of those beside it.
const FEW_STARTS: u32 = 2;

/// Whether a unit was started in vain, and may be started only twice more at the most; `retries_max` is as [`retries_of_all`] has
/// it. What ends its worker takes along those beside it, whose starts count too. All of them come again at the same time, so that the
/// same ones would end together each time, until all are given up on. So of all that a process is at work on one unit at most has few
/// starts left.
///
/// Nothing else waits. A unit whose starts came to nothing because the queue was away begins at once, but for the last of them. No
/// unit waits for a worker without other work, which a busy one never is, or for the long units of others: it waits only for units
/// that came as close to their end as itself. One of STAT waits as well, as it would be given up on with the other.
pub fn has_few_starts(unit: &WorkUnit, record: &JobRecord, retries_max: u32) -> bool {
    if record.epoch != unit.epoch || record.state.is_final() || is_done(unit, record) {
        return false;
    }
    // A job's chunks share their starts; which of those under way will come to nothing is not known.
    let (starts, units) = match unit.stage {
        Stage::Preprocess => (record.starts.preprocess, 1),
        Stage::Encode => (record.starts.encode, record.chunks.total),
        Stage::Decode => (record.starts.decode, 1),
    };
    let left = units.saturating_add(retries_max).saturating_sub(starts);
    // Without any left it is given up on, and waits for nobody.
    starts >= units && (1..=FEW_STARTS).contains(&left)
}

/// Whether the outcome of a unit is in its job's record already.
fn is_done(unit: &WorkUnit, record: &JobRecord) -> bool {
    match unit.stage {
        Stage::Preprocess => record.frames.is_some(),
        Stage::Encode => {
            let all = record.frames.is_some() && record.chunks.all_done();
            all || record.chunks.is_done(unit.unit)
        }
        // Its outcome is a final state.
        Stage::Decode => false,
    }
}

/// What a refused move means for the worker that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setback {
    /// The job is over.
    Over,
    /// Another attempt owns the job: touch nothing.
    Superseded,
    /// Somebody else did the same work meanwhile: queue what follows.
    Repeat,
    Fail(Failure),
}

/// Decides when a worker's outcome is refused.
pub fn after_refused(reason: &Refused) -> Setback {
    match reason {
        Refused::Final { .. } | Refused::Erased => Setback::Over,
        Refused::Fenced { .. } => Setback::Superseded,
        Refused::Illegal { .. } => Setback::Repeat,
        Refused::Exhausted { .. } => Setback::Fail(Failure::new(
            FailureReason::AttemptsExhausted,
            reason.to_string(),
        )),
        Refused::Chunk { .. } => {
            Setback::Fail(Failure::new(FailureReason::Internal, reason.to_string()))
        }
    }
}

/// Whose a unit is while it is being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Still this worker's.
    Mine,
    /// Another attempt or epoch owns the job.
    Superseded,
    /// Somebody else has finished the unit.
    Done(Box<JobRecord>),
    Over(Box<JobRecord>),
    /// Its time is over.
    Expired,
}

/// Decides at every heartbeat and at every hint.
pub fn standing(
    unit: &WorkUnit,
    attempt: Option<u32>,
    record: &JobRecord,
    now: UnixMillis,
) -> Standing {
    let other =
        record.epoch != unit.epoch || attempt.is_some_and(|attempt| attempt != record.attempt);
    if Guard::StopOther.acts(other) {
        Standing::Superseded
    } else if Guard::StopOver.acts(record.state.is_final()) {
        Standing::Over(Box::new(record.clone()))
    } else if Guard::StopDone.acts(is_done(unit, record)) {
        Standing::Done(Box::new(record.clone()))
    } else if Guard::StopExpired.acts(now > record.expires) {
        Standing::Expired
    } else {
        Standing::Mine
    }
}

/// What follows a unit whose outcome is in the record, each to wait for its turn with what it is expected to take; queueing
/// it again changes nothing. Whoever finds the last chunk done queues the decode.
pub fn next(unit: &WorkUnit, record: &JobRecord) -> Vec<WorkUnit> {
    if record.frames.is_none() || unit.stage == Stage::Decode {
        return Vec::new();
    }
    if record.chunks.all_done() {
        return vec![unit.at(Stage::Decode, 0, record.cost)];
    }
    if unit.stage == Stage::Encode {
        return Vec::new();
    }
    let open = (0..record.chunks.total).filter(|chunk| !record.chunks.is_done(*chunk));
    open.map(|chunk| {
        let cost = record.cost.of_chunk(chunk, record.chunks.total);
        unit.at(Stage::Encode, chunk, cost)
    })
    .collect()
}

/// The first unit of a job that is accepted and may not be queued yet; none when it has moved on.
pub fn first(key: &JobKey, record: &JobRecord) -> Option<WorkUnit> {
    (record.state == JobState::Accepted).then(|| preprocess(key, record))
}

/// What an open job waits for, by its record alone: for queues that lost it, such as those of a backup that is older or newer
/// than the records. Queueing it where nothing was lost changes nothing.
pub fn outstanding(key: &JobKey, record: &JobRecord) -> Vec<WorkUnit> {
    let preprocess = preprocess(key, record);
    // The hub does what was handed on.
    if record.state.is_final() || record.state == JobState::Forwarded {
        Vec::new()
    } else if record.frames.is_none() {
        vec![preprocess]
    } else {
        next(&preprocess, record)
    }
}

fn preprocess(key: &JobKey, record: &JobRecord) -> WorkUnit {
    WorkUnit {
        key: key.clone(),
        stage: Stage::Preprocess,
        pool: record.pool.clone(),
        class: record.class,
        unit: 0,
        epoch: record.epoch,
        expires: record.expires,
        cost: record.cost,
    }
}

/// Whether a unit that waits is still wanted: its job goes on here, and in no newer epoch.
pub fn is_wanted(unit: &WorkUnit, record: &JobRecord) -> bool {
    let is_over = record.state.is_final() || record.state == JobState::Forwarded;
    // A record of an older epoch is only behind the unit.
    record.epoch < unit.epoch || (record.epoch == unit.epoch && !is_over)
}

/// Whether a unit takes the place of the one that is queued under its name: one left over from before a replay would keep
/// the new one out, then be dropped for its age, and the job would wait for ever.
pub fn replaces(unit: &WorkUnit, queued: &WorkUnit) -> bool {
    Guard::OlderGivesWay.acts(queued.epoch < unit.epoch)
}

/// The verdict on a unit whose job failed: what the sender can mend ends here, the rest is kept for a replay.
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

/// The verdict on a unit of a job that is final already. The dead letter of a failed one may never have been written, when
/// a worker died right after the record. Which worker that was cannot be told from here: the unit may have been this
/// very one, in the hands of another. So every unit sends the letter; it is one per job and epoch, however often it is sent.
/// None of an erased job: its letter was removed, and it cannot be started over.
pub fn verdict_of_final(record: &JobRecord) -> Verdict {
    match &record.failure {
        Some(_) if Guard::LetterOfErased.acts(record.erased.is_some()) => Verdict::Done,
        Some(failure) if Guard::LetterAgain.acts(true) => verdict_of_failure(failure.clone()),
        _ => Verdict::Done,
    }
}

#[cfg(test)]
mod tests;
