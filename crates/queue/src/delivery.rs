//! A unit in a worker's hands, and how it leaves them: each verdict is one acknowledgement, confirmed where it says more than
//! that the unit is done.

use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use medfleet_core::{Failure, JobKey, UnixMillis, Verdict, WorkUnit};
use medfleet_proto::work::v1 as wire;
use serde_json::json;
use tokio::time::Instant;

use crate::ack;
use crate::api::{Operation, from_headers, repeatable};
use crate::unreadable::bury;
use crate::wire::{decode, reason_to_wire, unit_from_wire, unit_to_wire};
use crate::{Headers, Queue, QueueError, Result};

const ACKNOWLEDGE: Operation = repeatable("acknowledge a unit");
/// A unit that is to come again after this time or later is set aside where the consumer's places are few: what is left of 5 s where a
/// pause was shortened as much as it may be (`medfleet_core::spread`).
const LONG: Duration = Duration::from_millis(2_500);
/// The part of a consumer's places, one in this many, that may be taken before units that wait are set aside.
const CROWDED_FROM: u64 = 4;

/// A unit that this process took. Dropping it unsettled is what a crash does: it is delivered again after the
/// acknowledge wait.
#[derive(Debug)]
pub struct Delivery {
    pub unit: WorkUnit,
    /// Trace context.
    pub headers: Headers,
    pub released_at: UnixMillis,
    /// How often it was delivered, this time included.
    pub deliveries: u64,
    queue: Queue,
    reply: String,
}

impl Delivery {
    /// The unit of a message. One that cannot be read is given its verdict, as [`QueueError::NoUnit`] says, or handed back, as
    /// [`QueueError::HandedBack`] does.
    pub(crate) async fn new(queue: &Queue, message: Message) -> Result<Self> {
        let malformed = |reason| QueueError::malformed("a delivered message", reason);
        let reply = message
            .reply
            .as_ref()
            .map(|reply| reply.to_string())
            .ok_or_else(|| malformed("nobody to acknowledge it to"))?;
        let info =
            ack::parse(&reply).ok_or_else(|| malformed("unknown form of acknowledge subject"))?;
        let headers = from_headers(message.headers.as_ref());
        let unit = decode::<wire::WorkUnit>("a work unit", message.payload.clone())
            .and_then(|unit| unit_from_wire(&unit));
        match unit {
            Ok(unit) => Ok(Self {
                unit,
                headers,
                released_at: info.stored_at,
                deliveries: info.deliveries,
                queue: queue.clone(),
                reply,
            }),
            Err(error) => Err(bury(queue, &message, &reply, info, &error).await),
        }
    }

    /// Says that the worker is alive, which starts the acknowledge wait anew. Call it every [`Queue::heartbeat`].
    ///
    /// # Errors
    /// Transient ones: go on working and try again.
    pub async fn progress(&self) -> Result<()> {
        self.queue.acknowledge(&self.reply, "+WPI".into()).await
    }

    /// As [`Delivery::settle`], but a unit that is done is acknowledged without waiting until the server confirms it. Its effects
    /// are durable by then, so that a lost acknowledgement costs one more delivery, which finds them done.
    ///
    /// # Errors
    /// As [`Delivery::settle`]; of `Done` only that it could not be handed to the connection in time.
    pub async fn settle_soon(self, verdict: Verdict) -> Result<()> {
        match verdict {
            Verdict::Done => {
                let api = &self.queue.api;
                api.tell(ACKNOWLEDGE, self.reply, "+ACK".into()).await
            }
            verdict => self.settle(verdict).await,
        }
    }

    /// Ends the delivery. `Done` acknowledges; `Retry` hands back, to be delivered again after its delay, or, where that is long
    /// and too many units are with workers, sets the job aside, for ingest to queue it again; `Reject` stores a dead letter
    /// first; `Abort` does nothing. Returns when the server has confirmed.
    ///
    /// # Errors
    /// Transient ones, after trying for the request timeout: the unit may be delivered again.
    pub async fn settle(self, verdict: Verdict) -> Result<()> {
        match verdict {
            Verdict::Done => self.queue.acknowledge(&self.reply, "+ACK".into()).await,
            Verdict::Retry { after } => {
                // A unit that is handed back keeps its place at the consumer until it comes again. The units of one tenant whose
                // files cannot be read could take all of them.
                if after >= LONG && matches!(self.queue.is_crowded(&self.unit).await, Ok(true)) {
                    return self.queue.set_aside(&self.unit.key, &self.reply).await;
                }
                self.queue.acknowledge(&self.reply, nak(after)).await?;
                if after.is_zero() {
                    self.queue.hint(&self.unit).await;
                }
                Ok(())
            }
            Verdict::Reject(failure) => {
                let letter = dead_letter(&self.unit, &failure, (self.queue.clock)().0);
                self.queue.publish_dead(&letter).await?;
                self.queue.acknowledge(&self.reply, "+ACK".into()).await
            }
            Verdict::Abort => Ok(()),
        }
    }
}

pub(crate) fn nak(after: Duration) -> Bytes {
    if after.is_zero() {
        return Bytes::from_static(b"-NAK");
    }
    let delay = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
    format!("-NAK {}", json!({ "delay": delay })).into()
}

pub fn dead_letter(unit: &WorkUnit, failure: &Failure, now_unix_millis: i64) -> wire::DeadLetter {
    wire::DeadLetter {
        unit: Some(unit_to_wire(unit)),
        reason: reason_to_wire(failure.reason) as i32,
        message: failure.message.clone(),
        time_unix_millis: now_unix_millis,
    }
}

impl Queue {
    /// Whether so many units of this one's stage, pool and class are with workers, including those handed back for later, that
    /// units which wait should give up their places: a consumer without a free place delivers nothing. The slots of all workers
    /// are far fewer than its places.
    pub(crate) async fn is_crowded(&self, unit: &WorkUnit) -> Result<bool> {
        let (taken, most) = self.places(unit).await?;
        Ok(is_crowded(taken, most))
    }

    /// Takes a unit out of the queue in such a way that its job is queued again later, by its record.
    pub(crate) async fn set_aside(&self, key: &JobKey, reply: &str) -> Result<()> {
        let begun = Instant::now();
        self.note_aside(key).await?;
        let acknowledged = self.acknowledge(reply, "+ACK".into()).await;
        // The acknowledgement may still arrive after a sweep has found the unit in its place and removed the note: then the unit
        // would be gone without a note. The sweep of this release leaves the note as long as it finds a unit, but that of an
        // earlier release does not, so a second note is written.
        if acknowledged.is_err() || begun.elapsed() > self.config.request_timeout.get() {
            self.note_aside(key).await?;
        }
        acknowledged
    }

    /// Acknowledges and waits for the server to confirm.
    pub(crate) async fn acknowledge(&self, reply: &str, what: Bytes) -> Result<()> {
        self.api
            .send(ACKNOWLEDGE, reply, None, what)
            .await
            .map(|_| ())
    }
}

fn is_crowded(taken: u64, most: Option<u64>) -> bool {
    most.is_some_and(|most| taken > most / CROWDED_FROM)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anyhow::ensure;
    use medfleet_core::spread;
    use medfleet_testkit::NatsServer;

    use super::*;
    use crate::QueueConfig;
    use crate::wire::samples;

    /// The connection may keep it for minutes while the server is away.
    #[tokio::test]
    async fn a_note_goes_behind_an_acknowledgement_that_may_come_late() -> anyhow::Result<()> {
        let server = NatsServer::start().await?;
        let config = QueueConfig::at(server.url());
        let queue = Queue::connect(&config, Arc::new(|| UnixMillis(0))).await?;
        queue.ensure(&[]).await?;
        let key = samples::key();
        ensure!(queue.set_aside(&key, "heard.by.nobody").await.is_err());
        let noted = queue.list_aside(Duration::ZERO).await?;
        let noted = noted.into_iter().map(|(key, at)| (key, at.sequence()));
        let noted: Vec<_> = noted.collect();
        ensure!(noted == [(key, 2)], "{noted:?}");
        Ok(())
    }

    #[test]
    fn a_quarter_of_the_places_is_not_crowded() {
        let check = |taken, most, expected| {
            assert_eq!(is_crowded(taken, most), expected, "{taken} of {most:?}");
        };
        check(1, Some(4096), false);
        check(1024, Some(4096), false);
        check(1025, Some(4096), true);
        check(1, Some(1), true);
        check(u64::MAX, None, false);
    }

    /// Or a fleet whose longest pause that is would never set one aside.
    #[test]
    fn a_pause_of_five_seconds_is_long_however_it_was_shortened() {
        let shortened = (0..1024).map(|number| spread(Duration::from_secs(5), number));
        assert_eq!(shortened.min(), Some(LONG));
    }

    #[test]
    fn a_delay_is_written_in_nanoseconds() {
        assert_eq!(nak(Duration::ZERO), "-NAK");
        assert_eq!(
            nak(Duration::from_millis(1500)),
            "-NAK {\"delay\":1500000000}"
        );
    }
}
