//! Changes of a record that a worker makes when its work did not go well. A fenced worker must not make them, so the
//! attempt is checked against the very revision that is replaced.

use medfleet_core::protocol::{self, Change};
use medfleet_core::{JobRecord, Move, UnixMillis, WorkUnit, invariant};
use medfleet_queue::{Queue, QueueError, Updated};

/// Tries before it is left to the next delivery.
const TRIES_MAX: u32 = 16;

/// What became of a change.
#[derive(Debug)]
pub(crate) enum Changed {
    /// Stored, its event published.
    Made,
    /// The job is final: this is its record.
    Over(Box<JobRecord>),
    /// Somebody else has finished the unit: this is its job's record.
    Done(Box<JobRecord>),
    /// The job is not this worker's any more, or gone.
    Superseded,
}

/// Makes a change if the job is still this worker's.
pub(crate) async fn change(
    queue: &Queue,
    unit: &WorkUnit,
    attempt: Option<u32>,
    step: &Move,
    now: UnixMillis,
) -> Result<Changed, QueueError> {
    for _ in 0..TRIES_MAX {
        let Some((before, revision)) = queue.record(&unit.key).await? else {
            return Ok(Changed::Superseded);
        };
        let after = match protocol::propose_change(&before, unit, attempt, step, now) {
            Change::Store(after) => after,
            Change::Over => return Ok(Changed::Over(Box::new(before))),
            Change::Done => return Ok(Changed::Done(Box::new(before))),
            Change::Superseded => return Ok(Changed::Superseded),
        };
        if let Some(invariant) = invariant::violated_by_step(&before, &after) {
            return Err(QueueError::Internal { invariant });
        }
        if let Updated::Updated(_) = queue.update_record(&unit.key, &after, revision).await? {
            if after.state.is_final() {
                queue.publish_event(&unit.key, &after).await?;
            }
            return Ok(Changed::Made);
        }
    }
    Err(QueueError::Contended { tries: TRIES_MAX })
}
