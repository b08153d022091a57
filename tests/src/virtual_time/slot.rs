//! One slot of a worker: take, start, work, settle, in the order of `crates/worker`. The decisions are core's `protocol` and the
//! worker's own `Ending`, as there; only the loop that carries them out is written here again.

use std::pin::pin;
use std::rc::Rc;

use futures::future::{Either, select};
use medfleet_core::protocol::{
    Standing, Start, after_start, next, standing, verdict_of_failure, verdict_of_final,
};
use medfleet_core::{JobRecord, Move, Refused, Stage, UnixMillis, Verdict, WorkUnit};
use medfleet_queue::{Applied, Changed, QueueError, Revision, Seen};
use medfleet_worker::{Ending, Stopped};

use super::server::{Delivery, Stream};
use super::stages::Started;
use super::wire::Wire;
use super::{ACK_WAIT, Plant, RETRIES_MAX, RETRY_FIRST, RETRY_LONGEST, World};

/// One unit in so many is none that the worker's release can read.
const UNREADABLE_ONE_IN: u64 = 40;

pub(super) struct Slot {
    pub(super) world: Rc<World>,
    pub(super) wire: Wire,
    pub(super) stage: Stage,
}

impl Slot {
    /// Takes and settles units until the process is stopped.
    pub(super) async fn run(self) {
        let timeline = self.wire.timeline.clone();
        let stage = self.stage;
        while self.wire.process.drain_until.get().is_none() {
            match self.wire.pull(stage).await {
                Ok(Some(delivery)) => self.process(delivery).await,
                Ok(None) => timeline.sleep(timeline.between(10, 200)).await,
                Err(_) => timeline.sleep(1_000).await,
            }
        }
    }

    async fn process(&self, delivery: Delivery) {
        let timeline = &self.wire.timeline;
        if !self.wire.is_calm() && timeline.once_in(UNREADABLE_ONE_IN) {
            // What is not done about it now is done when it comes again.
            drop(self.set_aside(&delivery).await);
            return;
        }
        let process = &self.wire.process;
        let (task, key) = (self.wire.timeline.current(), delivery.unit.key.clone());
        process.at_work.borrow_mut().insert(task, key);
        let verdict = self.verdict(&delivery).await;
        let (unit, deliveries) = (&delivery.unit, delivery.deliveries);
        self.wire.timeline.note(&format!(
            "{} ends {} {} of {}, delivery {deliveries}: {verdict:?}",
            process.name(),
            unit.stage,
            unit.unit,
            unit.key
        ));
        // Unconfirmed, it is delivered again, and finds its effects done.
        drop(self.settle(&delivery, verdict).await);
        process.at_work.borrow_mut().remove(&task);
    }

    /// As the queue does with a unit that it cannot read where too many of them take its places: notes the job, then removes
    /// the unit. One whose job has ended is left as it is.
    async fn set_aside(&self, delivery: &Delivery) -> Result<(), QueueError> {
        let (wire, key) = (&self.wire, &delivery.unit.key);
        let record = wire.record(key).await?;
        if record.is_none_or(|(record, _)| record.state.is_final()) {
            return Ok(());
        }
        if wire.plant != Plant::ForgetsUnread {
            wire.ask("set a job aside", |server, now| server.set_aside(key, now))
                .await?;
        }
        wire.delete(Stream::Work, delivery.sequence).await?;
        wire.timeline.note(&format!("{key} is set aside"));
        Ok(())
    }

    async fn settle(&self, delivery: &Delivery, verdict: Verdict) -> Result<(), QueueError> {
        let sequence = delivery.sequence;
        match verdict {
            Verdict::Done => self.wire.delete(Stream::Work, sequence).await,
            Verdict::Retry { after } => {
                let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                self.wire
                    .ask("hand a unit back", |server, now| {
                        server.hand_back(sequence, after, now);
                    })
                    .await
            }
            Verdict::Reject(failure) => {
                self.wire
                    .ask("store a dead letter", |server, _| {
                        server.bury(&delivery.unit, &failure);
                    })
                    .await?;
                self.wire.delete(Stream::Work, sequence).await
            }
            Verdict::Abort => Ok(()),
        }
    }

    fn retry(&self, delivery: &Delivery) -> Verdict {
        Verdict::Retry {
            after: delivery
                .unit
                .pause(RETRY_FIRST, RETRY_LONGEST, delivery.deliveries),
        }
    }

    async fn verdict(&self, delivery: &Delivery) -> Verdict {
        let verdict = match self.begin(delivery).await {
            Ok(verdict) => Ok(verdict),
            // Nothing was started, so that there is nothing to hand back.
            Err(Ending::Retry(_)) => Ok(self.retry(delivery)),
            Err(ending) => self.end(delivery, None, ending).await,
        };
        verdict.unwrap_or_else(|_| self.retry(delivery))
    }

    /// Starts the unit and works on it; an error here means that nothing was started.
    async fn begin(&self, delivery: &Delivery) -> Result<Verdict, Ending> {
        let (unit, wire) = (&delivery.unit, &self.wire);
        let now = wire.clock();
        if now > unit.expires && self.has_passed(unit.expires).await? {
            return Ok(match wire.change(unit, None, &Move::Expire).await? {
                Changed::Over(record) => return Err(Ending::Over(Some(record))),
                Changed::Made | Changed::Done(_) | Changed::Superseded => Verdict::Done,
            });
        }
        let step = Move::Start {
            stage: self.stage,
            unit: unit.unit,
            retries_max: RETRIES_MAX,
        };
        let Some((known, revision)) = wire.record(&unit.key).await? else {
            return Ok(self.retry(delivery));
        };
        // Of the unit's own epoch, or it must not be moved.
        let seen = if known.epoch == unit.epoch {
            Seen::Record(&known, Revision::at(revision))
        } else {
            Seen::Epoch(unit.epoch)
        };
        let applied = wire.apply(&unit.key, seen, &step, now).await?;
        let revision = match &applied {
            Applied::Applied { revision, .. } => revision.sequence(),
            _ => revision,
        };
        match after_start(unit, applied.into()) {
            Start::Work(record) => Ok(self.work(delivery, (record, revision)).await),
            Start::Repeat(record) => {
                self.publish_next(unit, &record).await?;
                Ok(Verdict::Done)
            }
            Start::Announce(record) => {
                wire.say(&unit.key, &record).await?;
                Ok(verdict_of_final(&record))
            }
            Start::Exhausted(failure) => Err(Ending::Fail(failure)),
            Start::Drop => Ok(Verdict::Done),
            Start::Later => Ok(self.retry(delivery)),
        }
    }

    async fn publish_next(&self, unit: &WorkUnit, record: &JobRecord) -> Result<(), QueueError> {
        for unit in next(unit, record) {
            self.wire.publish(Stream::Intake, &unit).await?;
        }
        Ok(())
    }

    /// Works on a started unit while its heartbeats go out.
    async fn work(&self, delivery: &Delivery, started: (JobRecord, u64)) -> Verdict {
        let attempt = (self.stage == Stage::Decode).then_some(started.0.attempt);
        let outcome = {
            let working = pin!(self.make(&delivery.unit, &started));
            let stopping = pin!(self.stopped(delivery, attempt));
            let draining = pin!(self.draining());
            match select(working, select(stopping, draining)).await {
                Either::Left((made, _)) => made.map_err(Some),
                Either::Right((Either::Left((stopped, _)), _)) => {
                    Err(self.stop(delivery, stopped).await)
                }
                Either::Right((Either::Right(((), _)), _)) => {
                    Err(self.stop(delivery, Stopped::Draining).await)
                }
            }
        };
        match outcome {
            Ok(()) => Verdict::Done,
            Err(None) if self.hand_back(delivery, attempt).await => Verdict::Retry {
                after: std::time::Duration::ZERO,
            },
            Err(None) => Verdict::Abort,
            Err(Some(ending)) => {
                let ended = self.end(delivery, attempt, ending).await;
                ended.unwrap_or_else(|_| self.retry(delivery))
            }
        }
    }

    /// Says that it has begun, makes the outputs durable, then advances the job.
    async fn make(
        &self,
        unit: &WorkUnit,
        (record, revision): &(JobRecord, u64),
    ) -> Result<(), Ending> {
        self.wire.say(&unit.key, record).await?;
        let started = Started {
            wire: &self.wire,
            world: &self.world,
            unit,
            record,
        };
        let step = started.outputs().await?;
        self.advance(unit, (record, *revision), step).await
    }

    /// Records that the outputs are durable, then publishes the event and what follows from the new record.
    async fn advance(
        &self,
        unit: &WorkUnit,
        seen: (&JobRecord, u64),
        step: Move,
    ) -> Result<(), Ending> {
        let (wire, key, now) = (&self.wire, &unit.key, self.wire.clock());
        let seen = Seen::Record(seen.0, Revision::at(seen.1));
        let mut applied = wire.apply(key, seen, &step, now).await?;
        if wire.plant == Plant::ForgetsFence
            && let Applied::Refused {
                reason: Refused::Fenced { current, .. },
                ..
            } = &applied
            && let Move::Complete { result, .. } = step
        {
            let step = Move::Complete {
                attempt: *current,
                result,
            };
            let seen = Seen::Epoch(unit.epoch);
            applied = wire.apply(key, seen, &step, now).await?;
        }
        let record = match applied {
            Applied::Applied { record, .. } => record,
            Applied::Refused { reason, record } => return Err(Ending::of_refused(&reason, record)),
            Applied::OtherEpoch { .. } => return Err(Ending::Over(None)),
            // Whether the job is gone, the next delivery finds out.
            Applied::Missing => return Err(Ending::Superseded),
        };
        // Both are on their way at once: either may be what a crash leaves out.
        if wire.timeline.once_in(2) {
            wire.say(key, &record).await?;
            self.publish_next(unit, &record).await?;
        } else {
            self.publish_next(unit, &record).await?;
            wire.say(key, &record).await?;
        }
        Ok(())
    }

    /// Resolves when the unit must not be worked on any more; sends its heartbeats until then.
    async fn stopped(&self, delivery: &Delivery, attempt: Option<u32>) -> Stopped {
        let (unit, sequence) = (&delivery.unit, delivery.sequence);
        loop {
            self.wire.timeline.sleep(ACK_WAIT / 3).await;
            // The next one may get through; if none does, the unit is delivered again and the fence holds.
            drop(self.wire.progress(sequence).await);
            let read = self.wire.record(&unit.key).await;
            let now = self.wire.clock();
            let (stopped, expires) = match read {
                Ok(Some((record, _))) => (Stopped::by(unit, attempt, &record, now), record.expires),
                Ok(None) => {
                    let is_over = now > unit.expires;
                    (is_over.then_some(Stopped::Expired), unit.expires)
                }
                Err(_) => (None, unit.expires),
            };
            let Some(stopped) = stopped else { continue };
            let is_by_time = matches!(stopped, Stopped::Expired);
            // Not while the queue does not say.
            if !is_by_time || matches!(self.has_passed(expires).await, Ok(true)) {
                return stopped;
            }
        }
    }

    /// Whether a time has passed by the queue's clock too: this process's may be ahead.
    async fn has_passed(&self, time: UnixMillis) -> Result<bool, QueueError> {
        Ok(self.wire.plant == Plant::ExpiresByOwnClock || self.wire.time().await? > time)
    }

    /// Resolves when what is not finished has to be handed back.
    async fn draining(&self) {
        loop {
            self.wire.timeline.sleep(100).await;
            let until = self.wire.process.drain_until.get();
            if until.is_some_and(|until| until <= self.wire.timeline.now()) {
                return;
            }
        }
    }

    /// What a stop from outside means; none when the unit is to be handed back.
    async fn stop(&self, delivery: &Delivery, stopped: Stopped) -> Option<Ending> {
        match stopped {
            Stopped::Superseded => Some(Ending::Superseded),
            Stopped::Done(record) => Some(Ending::Repeat(record)),
            Stopped::Over(record) => Some(Ending::Over(Some(record))),
            Stopped::Draining => None,
            Stopped::Expired => {
                let expired = self.wire.change(&delivery.unit, None, &Move::Expire).await;
                Some(match expired {
                    Ok(Changed::Over(record)) => Ending::Over(Some(record)),
                    Ok(Changed::Made | Changed::Done(_) | Changed::Superseded) => {
                        Ending::Over(None)
                    }
                    Err(error) => error.into(),
                })
            }
        }
    }

    /// Takes the start back. False when the unit is another worker's by now.
    async fn hand_back(&self, delivery: &Delivery, attempt: Option<u32>) -> bool {
        let step = Move::HandBack { stage: self.stage };
        !matches!(
            self.wire.change(&delivery.unit, attempt, &step).await,
            Ok(Changed::Superseded)
        )
    }

    /// Carries out how the work ended, and gives the verdict.
    async fn end(
        &self,
        delivery: &Delivery,
        attempt: Option<u32>,
        ending: Ending,
    ) -> Result<Verdict, QueueError> {
        let (unit, wire) = (&delivery.unit, &self.wire);
        match ending {
            Ending::Retry(_) if self.hand_back(delivery, attempt).await => Ok(self.retry(delivery)),
            Ending::Retry(_) | Ending::Superseded => Ok(Verdict::Abort),
            Ending::Wrong(_) => {
                let now = wire.clock();
                let record = wire.record(&unit.key).await?;
                let standing = record.map(|(record, _)| standing(unit, attempt, &record, now));
                Ok(match standing {
                    Some(Standing::Superseded) => Verdict::Abort,
                    _ => self.retry(delivery),
                })
            }
            Ending::Fail(failure) | Ending::Missing(failure) => {
                let step = Move::Fail(failure.clone());
                match wire.change(unit, attempt, &step).await? {
                    Changed::Made => Ok(verdict_of_failure(failure)),
                    Changed::Over(record) => {
                        wire.say(&unit.key, &record).await?;
                        Ok(verdict_of_final(&record))
                    }
                    Changed::Done(record) => {
                        self.publish_next(unit, &record).await?;
                        Ok(Verdict::Done)
                    }
                    Changed::Superseded => Ok(Verdict::Abort),
                }
            }
            Ending::Repeat(record) => {
                self.publish_next(unit, &record).await?;
                Ok(Verdict::Done)
            }
            Ending::Over(Some(record)) => {
                wire.say(&unit.key, &record).await?;
                Ok(verdict_of_final(&record))
            }
            Ending::Over(None) => Ok(Verdict::Done),
        }
    }
}
