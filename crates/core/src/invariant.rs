//! What must hold of every record and of every change of one, written once.
//! Asserted by unit tests, by the end-to-end tests, and by the queue before it stores a record.

use crate::{CHUNKS_MAX, JobRecord, JobState};

/// The first invariant that `record` breaks, as a sentence; `None` when all hold.
pub fn violation(record: &JobRecord) -> Option<&'static str> {
    let decoded = matches!(record.state, JobState::Decoding | JobState::Completed);
    if decoded && !record.chunks.all_done() {
        return Some("a decode began before every declared image was encoded");
    }
    // The hub keeps the frames of what it encodes.
    let has_frames = record.frames.is_some() || record.forwarded.is_some();
    if decoded && !has_frames && record.erased.is_none() {
        return Some("a decode began without a frames manifest");
    }
    let has_result = record.state == JobState::Completed && record.erased.is_none();
    if has_result != record.result.is_some() {
        return Some("a job has a result exactly when it is completed and not erased");
    }
    if record.erased.is_some() && !record.state.is_final() {
        return Some("a job was erased before its end");
    }
    if record.state == JobState::Forwarded && record.forwarded.is_none() {
        return Some("a job was handed on to nobody");
    }
    if record.forwarded.is_some()
        && (record.state == JobState::Accepted || is_under_way(record.state))
    {
        return Some("a job that the hub does is done here as well");
    }
    let has_hub_erased = record.forwarded.as_ref().is_some_and(|hub| hub.is_erased);
    if has_hub_erased && record.erased.is_none() {
        return Some("the hub has erased a job that is not erased here");
    }
    if (record.state == JobState::Failed) != record.failure.is_some() {
        return Some("a job has a failure exactly when it failed");
    }
    if record.state.is_final() != record.times.finished.is_some() {
        return Some("a job has an end time exactly when it is final");
    }
    if record.chunks.total > CHUNKS_MAX {
        return Some("a job has more chunks than its record can tell apart");
    }
    if record
        .chunks
        .done_bitmap
        .checked_shr(record.chunks.total)
        .unwrap_or(0)
        != 0
    {
        return Some("a chunk beyond the job's count is marked encoded");
    }
    None
}

/// The first invariant that the change from `before` to `after` breaks; `None` when all hold.
pub fn violated_by_step(before: &JobRecord, after: &JobRecord) -> Option<&'static str> {
    let is_erasure = before.erased.is_none() && after.erased.is_some();
    let is_erasure_at_hub = before.owes_erasure() && !after.owes_erasure();
    let is_handed_on = after.forwarded.is_some() && before.forwarded.is_none();
    // The job ended here while the record did not say that the hub has it.
    let is_found = is_handed_on && before.state.is_final();
    let may_change = is_erasure || is_erasure_at_hub || is_found;
    if before.state.is_final() && before.epoch == after.epoch && before != after && !may_change {
        return Some("a final record changed within its epoch");
    }
    let ends = before.state == JobState::Forwarded && after.state == JobState::Cancelled;
    let same_end = (before.state, before.epoch) == (after.state, after.epoch);
    if is_erasure && !same_end && !ends {
        return Some("an erasure changed how a job ended");
    }
    if is_found && !same_end {
        return Some("a job that had ended was handed on");
    }
    if before.erased.is_some() && after.erased.is_none() {
        return Some("an erased job came back");
    }
    if after.epoch != before.epoch && before.state != JobState::Failed {
        return Some("a job that did not fail started over");
    }
    if after.epoch < before.epoch {
        return Some("the epoch went back");
    }
    if after.attempt < before.attempt {
        return Some("the attempt went back");
    }
    if after.epoch == before.epoch && after.state < before.state {
        return Some("the state went back within an epoch");
    }
    let is_encoded = after.frames.is_some() && after.chunks.all_done();
    if is_handed_on && !is_found && before.state != JobState::Accepted && !is_encoded {
        return Some(
            "a job was handed on after work on it had begun and before every image was encoded",
        );
    }
    let (was, is) = (before.forwarded.as_ref(), after.forwarded.as_ref());
    if before.epoch == after.epoch && was.is_some() && was.map(|f| &f.job) != is.map(|f| &f.job) {
        return Some("a job was handed on to another job of the hub");
    }
    if (before.body, before.study) != (after.body, after.study) {
        return Some("what was submitted changed");
    }
    if before.pseudonyms != after.pseudonyms {
        return Some("whose a job is changed");
    }
    violation(after)
}

/// Whether workers are at it.
const fn is_under_way(state: JobState) -> bool {
    matches!(
        state,
        JobState::Released | JobState::Preprocessed | JobState::Encoding | JobState::Decoding
    )
}
