//! Changes of a record for a unit that does not go well: handed back, failed, out of time. A fenced worker must not make
//! them, so what is proposed is checked against the very revision that is replaced.

use medfleet_core::protocol::{self, Change};
use medfleet_core::{JobKey, JobRecord, Move, UnixMillis, WorkUnit, invariant};

use crate::{Queue, QueueError, Result, Updated};

/// Tries before it is left to the next delivery.
const TRIES_MAX: u32 = 16;

/// What became of a change.
#[derive(Debug)]
pub enum Changed {
    /// Stored, its event published.
    Made,
    /// The job is final: this is its record.
    Over(Box<JobRecord>),
    /// Somebody else has finished the unit: this is its job's record.
    Done(Box<JobRecord>),
    /// The job is not this worker's any more, or gone.
    Superseded,
}

impl Queue {
    /// Hands back, fails or expires the unit's job, if the job is still this worker's: of the unit's epoch and, where one is
    /// given, of the attempt. Publishes the event of an end.
    ///
    /// # Errors
    /// Transient ones leave open whether it was made: change again. [`QueueError::Internal`] for a step that would break an
    /// invariant: a defect, never stored.
    pub async fn change(
        &self,
        unit: &WorkUnit,
        attempt: Option<u32>,
        step: &Move,
        now: UnixMillis,
    ) -> Result<Changed> {
        let propose =
            |before: &JobRecord| Some(protocol::propose_change(before, unit, attempt, step, now));
        let changed = self.change_by(&unit.key, propose).await?;
        Ok(match changed {
            Some((_, Some(Change::Store(_)))) => Changed::Made,
            Some((record, Some(Change::Over))) => Changed::Over(Box::new(record)),
            Some((record, Some(Change::Done))) => Changed::Done(Box::new(record)),
            Some((_, Some(Change::Superseded) | None)) | None => Changed::Superseded,
        })
    }

    /// Asks what to make of the record and stores that, again when somebody was faster, and publishes the event of an end.
    /// Gives the record before it and what was proposed of that one; none without a record.
    ///
    /// # Errors
    /// As [`Queue::change`].
    pub(crate) async fn change_by(
        &self,
        key: &JobKey,
        propose: impl Fn(&JobRecord) -> Option<Change>,
    ) -> Result<Option<(JobRecord, Option<Change>)>> {
        for _ in 0..TRIES_MAX {
            let Some((before, revision)) = self.record(key).await? else {
                return Ok(None);
            };
            let after = match propose(&before) {
                Some(Change::Store(after)) => after,
                other => return Ok(Some((before, other))),
            };
            if let Some(invariant) = invariant::violated_by_step(&before, &after) {
                return Err(QueueError::Internal { invariant });
            }
            if let Updated::Updated(_) = self.update_record(key, &after, revision).await? {
                if after.state.is_final() {
                    self.publish_event(key, &after).await?;
                }
                return Ok(Some((before, Some(Change::Store(after)))));
            }
        }
        Err(QueueError::Contended { tries: TRIES_MAX })
    }
}
