//! A message in the place of a unit of work that this release cannot read. Its job would wait for it until its time is over:
//! so the job that the subject names fails, with a dead letter, before the message goes.

use std::time::Duration;

use async_nats::Message;
use medfleet_core::protocol::{self, Change};
use medfleet_core::{Failure, FailureReason, JobKey, Move, Verdict, WorkUnit, invariant};

use crate::ack::AckInfo;
use crate::api::from_headers;
use crate::delivery::{dead_letter, nak};
use crate::{Queue, QueueError, Result, Updated, subject};

/// Tries of failing a job that changes meanwhile.
const TRIES_MAX: u32 = 16;
/// Pause before a message whose job is not found is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What is told of a job that failed so.
const WHY: &str = "a unit of work of the job is not one that this release can read";

/// Gives the message its verdict. The error says what came of it: [`QueueError::NoUnit`] when it is gone.
pub(crate) async fn bury(
    queue: &Queue,
    message: &Message,
    reply: &str,
    info: AckInfo,
    why: &QueueError,
) -> QueueError {
    let Some(unit) = subject::unit_of(&message.subject) else {
        tracing::error!(
            error = why as &dyn std::error::Error,
            sequence = info.stream_sequence,
            "a message among the units of work is none and names no job: it is dropped, and a job may wait for it"
        );
        return settled(queue.acknowledge(reply, "+ACK".into()).await, None);
    };
    let key = unit.key.clone();
    match fail(queue, unit, message).await {
        Ok(Fate::Settled) => {
            tracing::error!(
                error = why as &dyn std::error::Error,
                job = %key.job,
                "a unit of work cannot be read: its job was failed, unless it has no need of it"
            );
            settled(queue.acknowledge(reply, "+ACK".into()).await, Some(key))
        }
        // A server that does not know yet that it leads no more has not got the latest jobs.
        Ok(Fate::NotFound(unit)) => {
            let age = (queue.clock)().0.saturating_sub(info.stored_at.0);
            if u128::try_from(age).unwrap_or(0) < queue.outdated_max().as_millis() {
                let again = queue.acknowledge(reply, nak(LOOK_AGAIN)).await;
                return again.err().unwrap_or(QueueError::Malformed {
                    what: "a work unit",
                    reason: "and its job is not found yet",
                });
            }
            tracing::error!(
                error = why as &dyn std::error::Error,
                job = %key.job,
                "a unit of work cannot be read, and its job is not there"
            );
            let settle = async {
                publish_letter(queue, &unit, &failure()).await?;
                queue.acknowledge(reply, "+ACK".into()).await
            };
            settled(settle.await, Some(key))
        }
        Err(error) => error,
    }
}

/// What became of the job.
enum Fate {
    /// Nothing waits for the unit any more.
    Settled,
    /// There is no such job; the unit as far as it is known.
    NotFound(WorkUnit),
}

/// Fails the job in the epoch that it is in, unless it has ended or the outcome of the unit is in its record already.
async fn fail(queue: &Queue, mut unit: WorkUnit, message: &Message) -> Result<Fate> {
    let (now, failure) = ((queue.clock)(), failure());
    let step = Move::Fail(failure.clone());
    for _ in 0..TRIES_MAX {
        let Some((before, revision)) = queue.record(&unit.key).await? else {
            return Ok(Fate::NotFound(unit));
        };
        unit.epoch = before.epoch;
        unit.expires = before.expires;
        unit.cost = before.cost;
        match protocol::propose_change(&before, &unit, None, &step, now) {
            Change::Store(after) => {
                if let Some(invariant) = invariant::violated_by_step(&before, &after) {
                    return Err(QueueError::Internal { invariant });
                }
                let stored = queue.update_record(&unit.key, &after, revision).await?;
                if stored == Updated::Conflict {
                    continue;
                }
                queue.publish_event(&unit.key, &after).await?;
                publish_letter(queue, &unit, &failure).await?;
            }
            // Whoever did it may have died before queueing what follows.
            Change::Done => {
                let headers = from_headers(message.headers.as_ref());
                for next in protocol::next(&unit, &before) {
                    queue.publish_intake(&next, &headers).await?;
                }
            }
            // Whoever ended it, perhaps by this very message, may have died before saying so.
            Change::Over => {
                queue.publish_event(&unit.key, &before).await?;
                if let Verdict::Reject(failure) = protocol::verdict_of_final(&before) {
                    publish_letter(queue, &unit, &failure).await?;
                }
            }
            Change::Superseded => {}
        }
        return Ok(Fate::Settled);
    }
    Err(QueueError::Contended { tries: TRIES_MAX })
}

fn failure() -> Failure {
    Failure::new(FailureReason::Internal, WHY)
}

async fn publish_letter(queue: &Queue, unit: &WorkUnit, failure: &Failure) -> Result<()> {
    let letter = dead_letter(unit, failure, (queue.clock)().0);
    queue.publish_dead(&letter).await
}

fn settled(acknowledged: Result<()>, job: Option<JobKey>) -> QueueError {
    match acknowledged {
        Ok(()) => QueueError::NoUnit { job },
        Err(error) => error,
    }
}
