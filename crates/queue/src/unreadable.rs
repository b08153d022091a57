//! A message in the place of a unit of work that this release cannot read. Another release may: so it is handed back, for a
//! while. Then its job would wait for it until its time is over: so the job that the subject names fails, with a dead letter,
//! before the message goes.
//!
//! What is handed back keeps a place of the few that its consumer has. Where such messages take too many of them, the job is
//! set aside and the message goes; ingest's sweep queues later what the job waits for by its record.

use std::time::Duration;

use async_nats::Message;
use medfleet_core::protocol::{self, Change};
use medfleet_core::{
    Failure, FailureReason, JobKey, JobRecord, JobState, Move, UnixMillis, Verdict, WorkUnit,
    chain, doubled,
};

use crate::ack::AckInfo;
use crate::api::from_headers;
use crate::delivery::{dead_letter, nak};
use crate::{Queue, QueueError, Result, subject};

/// Pause before a message whose job is not found is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// First and longest pause before a message is delivered again that another release may be able to read; it doubles.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// What is told of a job that failed so.
const WHY: &str = "a unit of work of the job is not one that this release can read";

/// Gives the message its verdict. The error says what came of it: [`QueueError::NoUnit`] when it is gone,
/// [`QueueError::HandedBack`] when it comes again.
pub(crate) async fn bury(
    queue: &Queue,
    message: &Message,
    reply: &str,
    info: AckInfo,
    why: &QueueError,
) -> QueueError {
    let Some(unit) = subject::unit_of(&message.subject) else {
        tracing::error!(
            error = chain(why),
            sequence = info.stream_sequence,
            "a message among the units of work is none and names no job: it is dropped, and a job may wait for it"
        );
        return settled(queue.acknowledge(reply, "+ACK".into()).await, None);
    };
    let (key, named) = (unit.key.clone(), unit.clone());
    // This process's clock may be anywhere; the messages are dated by the queue's, and so are the ends of jobs.
    let now = match queue.time().await {
        Ok(now) => now,
        Err(error) => return error,
    };
    let age = age(info, now);
    let is_over = is_over(info.deliveries, age, queue.config.unreadable_wait.get());
    match fail(queue, unit, message, (is_over, now)).await {
        Ok(Fate::Settled) => {
            tracing::error!(
                error = chain(why),
                job = %key.job,
                "a unit of work cannot be read: its job was failed, unless it has no need of it"
            );
            settled(queue.acknowledge(reply, "+ACK".into()).await, Some(key))
        }
        Ok(Fate::Later) => leave(queue, &named, (reply, info), why).await,
        // A server that does not know yet that it leads no more has not got the latest jobs.
        Ok(Fate::NotFound(_)) if age < queue.outdated_max() => {
            tracing::warn!(
                error = chain(why),
                job = %key.job,
                "a unit of work cannot be read, and its job is not found yet"
            );
            let reason = "its job is not found yet";
            handed_back(queue.acknowledge(reply, nak(LOOK_AGAIN)).await, reason)
        }
        Ok(Fate::NotFound(unit)) => {
            tracing::error!(
                error = chain(why),
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

/// Leaves the message to a worker of another release: hands it back, or sets its job aside where too many places are taken.
async fn leave(
    queue: &Queue,
    unit: &WorkUnit,
    (reply, info): (&str, AckInfo),
    why: &QueueError,
) -> QueueError {
    let key = &unit.key;
    match queue.is_crowded(unit).await {
        Ok(true) => {
            tracing::warn!(
                error = chain(why),
                job = %key.job,
                "a unit of work cannot be read, and too many are with workers: it is removed, and ingest queues its job again"
            );
            let set_aside = queue.set_aside(key, reply).await;
            handed_back(set_aside, "its job is queued again later")
        }
        Ok(false) => {
            tracing::warn!(
                error = chain(why),
                job = %key.job,
                deliveries = info.deliveries,
                "a unit of work cannot be read: it is handed back, for a worker of another release"
            );
            let reason = "another release may be able to read it";
            let pause = doubled(PAUSE.0, PAUSE.1, info.deliveries.saturating_sub(1));
            let again = nak(pause);
            handed_back(queue.acknowledge(reply, again).await, reason)
        }
        // It comes again after the acknowledge wait.
        Err(error) => error,
    }
}

/// How long the message is there. The queue's clock may have been set back since.
fn age(info: AckInfo, now: UnixMillis) -> Duration {
    let millis = now.0.saturating_sub(info.stored_at.0);
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Whether others have had the time to read it: the message is as old as `wait`, and has come as often as it does within that
/// at the longest pause. It may have waited long for its first worker, and a unit that was tried often may be young.
fn is_over(deliveries: u64, age: Duration, wait: Duration) -> bool {
    let often = wait.as_millis() / PAUSE.1.as_millis();
    age >= wait && u128::from(deliveries) > often
}

/// Whether a worker may be at work on the job: a start in the stage that the job is in was neither finished nor handed back.
/// That of a worker that has died looks the same; so this holds only for as long as the job has time, by the queue's clock.
fn may_be_at_work(record: &JobRecord, now: UnixMillis) -> bool {
    let is_started = match record.state {
        JobState::Released => record.starts.preprocess > 0,
        JobState::Encoding => record.starts.encode > record.chunks.done(),
        JobState::Decoding => record.starts.decode > 0,
        _ => false,
    };
    is_started && now <= record.expires
}

/// What became of the job.
enum Fate {
    /// Nothing waits for the unit any more.
    Settled,
    /// Another worker may be able to read it, or is at work on the job.
    Later,
    /// There is no such job; the unit as far as it is known.
    NotFound(WorkUnit),
}

/// Fails the job in the epoch that it is in, unless it has ended, the outcome of the unit is in its record already, the hub
/// does it, or it must not fail yet.
async fn fail(
    queue: &Queue,
    unit: WorkUnit,
    message: &Message,
    (is_over, now): (bool, UnixMillis),
) -> Result<Fate> {
    let failure = failure();
    let step = Move::Fail(failure.clone());
    let propose = |before: &JobRecord| {
        if before.state == JobState::Forwarded {
            return Some(Change::Superseded);
        }
        match protocol::propose_change(before, &of_record(&unit, before), None, &step, now) {
            Change::Store(_) if !is_over || may_be_at_work(before, now) => None,
            change => Some(change),
        }
    };
    let changed = queue.change_by(&unit.key, propose).await?;
    let Some((before, change)) = changed else {
        return Ok(Fate::NotFound(unit));
    };
    let unit = of_record(&unit, &before);
    match change {
        None => return Ok(Fate::Later),
        Some(Change::Store(_)) => publish_letter(queue, &unit, &failure).await?,
        // Whoever did it may have died before queueing what follows.
        Some(Change::Done) => {
            let headers = from_headers(message.headers.as_ref());
            for next in protocol::next(&unit, &before) {
                queue.publish_intake(&next, &headers).await?;
            }
        }
        // Whoever ended it, perhaps by this very message, may have died before saying so.
        Some(Change::Over) => {
            queue.publish_event(&unit.key, &before).await?;
            if let Verdict::Reject(failure) = protocol::verdict_of_final(&before) {
                publish_letter(queue, &unit, &failure).await?;
            }
        }
        Some(Change::Superseded) => {}
    }
    Ok(Fate::Settled)
}

/// The unit that a subject names, with what only its job's record tells.
fn of_record(unit: &WorkUnit, record: &JobRecord) -> WorkUnit {
    WorkUnit {
        epoch: record.epoch,
        expires: record.expires,
        cost: record.cost,
        ..unit.clone()
    }
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

fn handed_back(acknowledged: Result<()>, reason: &'static str) -> QueueError {
    match acknowledged {
        Ok(()) => QueueError::HandedBack { reason },
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_have_the_time_of_a_roll_out_and_many_turns_in_it() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let check = |deliveries, age, wait, expected| {
            let found = is_over(deliveries, age, wait);
            assert_eq!(found, expected, "{deliveries} deliveries in {age:?}");
        };
        check(1, Duration::ZERO, minutes(10), false);
        // It waited long for its first worker.
        check(20, minutes(600), minutes(10), false);
        // It was tried often by those who can read it.
        check(u64::MAX, minutes(9), minutes(10), false);
        check(21, minutes(10), minutes(10), true);
        check(1, Duration::ZERO, Duration::ZERO, true);
    }
}
