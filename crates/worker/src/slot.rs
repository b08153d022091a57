//! The loop of one slot: take, start, work, settle. What to do at each turn is decided in core's `protocol`.

use std::iter::repeat_n;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{Either, join_all, ready, select};
use medfleet_core::protocol::{
    Standing, Start, after_start, has_few_starts, next, retries_of_all, standing,
    verdict_of_failure, verdict_of_final,
};
use medfleet_core::{Failure, JobKey, JobRecord, Move, PoolName, Stage, Verdict, WorkUnit, chain};
use medfleet_queue::{
    Applied, Changed, Delivery, Headers, Puller, Queue, QueueError, Revision, Seen,
};
use medfleet_runtime::{Clock, OnFailure, OnShutdown, Shutdown, TaskKind, TaskSet, telemetry};
use tokio::sync::{Mutex, Semaphore, broadcast};
use tracing::{Instrument, Span, field};

use crate::config::WorkerConfig;
use crate::handler::{Ending, Handler, Started, publish};
use crate::metrics::{WorkerMetrics, word};
use crate::place::Place;
use crate::presence;
use crate::watch::{HINTS_MAX, Stopped, draining, forward_hints, stopped};

/// Pause after the queue refused to be pulled from.
const AFTER_TROUBLE: Duration = Duration::from_secs(1);
/// How long a unit with few starts left is handed back for at most, while another such is at work: not so long that its job would be
/// set aside.
const UNTIL_ALONE: Duration = Duration::from_secs(2);
/// How long the event of an encode's start may be put off: too short for a watcher to notice.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(250);

#[derive(Debug, Clone)]
pub struct Worker {
    pub config: WorkerConfig,
    /// The pool whose units it takes.
    pub pool: PoolName,
    pub queue: Queue,
    pub clock: Arc<dyn Clock>,
    /// Where its tasks start.
    pub tasks: TaskSet,
    pub metrics: WorkerMetrics,
}

/// Takes and settles units until the shutdown has begun and every slot is empty.
pub async fn run<H: Handler>(worker: Worker, handler: Arc<H>) {
    let (hints, _) = broadcast::channel(HINTS_MAX);
    let listening = TaskKind {
        name: "cancel hints",
        on_failure: OnFailure::Shutdown,
        on_shutdown: OnShutdown::Wait,
    };
    let forward = forward_hints(worker.queue.clone(), hints.clone());
    let forward = worker.tasks.start(listening, forward);
    let announcing = TaskKind {
        name: "worker's presence",
        on_failure: OnFailure::Log,
        on_shutdown: OnShutdown::Wait,
    };
    let announce = presence::announce(worker.clone(), H::STAGE, H::STAT_SLOTS);
    let announce = worker.tasks.start(announcing, announce);
    let kind = TaskKind {
        name: slot_name(H::STAGE),
        on_failure: OnFailure::Shutdown,
        on_shutdown: OnShutdown::Wait,
    };
    let slots = worker.config.slots.get();
    let puller = worker.queue.puller(H::STAGE, worker.pool.clone());
    let of_stat = worker.queue.stat_puller(H::STAGE, worker.pool.clone());
    // A unit that leaves its place makes room for one more: there are slots for those too, which wait until then.
    let every = (puller, Arc::new(Semaphore::new(slots)));
    let every = repeat_n(every, slots.saturating_mul(1 + H::ASIDE));
    let of_stat = (of_stat, Arc::new(Semaphore::new(H::STAT_SLOTS)));
    let few_starts = Arc::new(Semaphore::new(1));
    let slots = every
        .chain(repeat_n(of_stat, H::STAT_SLOTS))
        .map(|(puller, places)| {
            let slot = Slot {
                worker: worker.clone(),
                shutdown: worker.tasks.shutdown().clone(),
                handler: Arc::clone(&handler),
                hints: hints.clone(),
                places,
                place: Arc::new(Place::counted_in(worker.metrics.aside())),
                few_starts: Arc::clone(&few_starts),
            };
            worker.tasks.start(kind, slot.run(puller))
        });
    let slots: Vec<_> = slots.collect();
    join_all(slots.iter().map(|slot| slot.ended())).await;
    forward.abort();
    announce.abort();
}

const fn slot_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Preprocess => "preprocess slot",
        Stage::Encode => "encode slot",
        Stage::Decode => "decode slot",
    }
}

/// How long the event of a start may be put off, so that work that is over by then costs its watchers one event less. Only for
/// encode, whose outcome is an event of the same job state; that preprocess or decode has begun, no later event says.
const fn announce_after(stage: Stage) -> Duration {
    match stage {
        Stage::Encode => ANNOUNCE_AFTER,
        Stage::Preprocess | Stage::Decode => Duration::ZERO,
    }
}

struct Slot<H> {
    worker: Worker,
    shutdown: Shutdown,
    handler: Arc<H>,
    hints: broadcast::Sender<JobKey>,
    /// One permit for each unit that may be worked on at a time, shared by the slots.
    places: Arc<Semaphore>,
    /// The place of the unit in this slot.
    place: Arc<Place>,
    /// The one permit to work on a unit with few starts left, shared by the slots.
    few_starts: Arc<Semaphore>,
}

impl<H: Handler> Slot<H> {
    async fn run(self, mut puller: Puller) -> Result<(), QueueError> {
        // Logged once, not at every pull for as long as the queue is away.
        let mut is_told = false;
        loop {
            let pulled = tokio::select! {
                biased;
                () = self.shutdown.begun() => break,
                pulled = self.next(&mut puller) => pulled,
            };
            match pulled {
                Ok(delivery) => {
                    is_told = false;
                    self.process(delivery).await;
                }
                Err(QueueError::Closed) => return Err(QueueError::Closed),
                Err(QueueError::NoUnit { job }) => self.worker.metrics.unreadable(job.is_some()),
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(error = chain(&error), "no unit could be taken");
                    }
                    self.pause().await;
                }
            }
            self.place.end();
        }
        close(puller).await;
        Ok(())
    }

    /// A unit, once there is a place for it.
    async fn next(&self, puller: &mut Puller) -> Result<Delivery, QueueError> {
        self.place.take(&self.places).await;
        puller.next().await
    }

    async fn pause(&self) {
        tokio::select! {
            () = self.shutdown.begun() => {}
            () = tokio::time::sleep(AFTER_TROUBLE) => {}
        }
    }

    /// One unit from delivery to settlement.
    async fn process(&self, delivery: Delivery) {
        let span = span(&delivery.unit, delivery.deliveries);
        telemetry::follow(&span, &delivery.headers);
        let begin = Instant::now();
        let class = delivery.unit.class;
        let waited = self.worker.clock.now().0 - delivery.released_at.0;
        self.worker
            .metrics
            .began(class, delivery.deliveries, waited as f64 / 1000.0);
        async {
            let verdict = self.verdict(&delivery).await;
            let (said, span) = (word(&verdict), Span::current());
            if telemetry::is_recorded(&span) {
                span.record("medfleet.verdict", said);
                // Collectors that keep only a sample of traces keep those with an error.
                if matches!(verdict, Verdict::Reject(_)) {
                    span.record("otel.status_code", "ERROR");
                }
            }
            self.worker
                .metrics
                .settled(class, &verdict, begin.elapsed().as_secs_f64());
            if let Err(error) = delivery.settle_soon(verdict).await {
                // The unit is then delivered again, and that delivery finds its effects done.
                tracing::warn!(
                    error = chain(&error),
                    verdict = said,
                    "a verdict was not confirmed"
                );
            }
        }
        .instrument(span)
        .await;
    }

    async fn verdict(&self, delivery: &Delivery) -> Verdict {
        // Subscribed before the start, so that no hint that concerns it is missed.
        let hints = self.hints.subscribe();
        let verdict = match self.begin(delivery, hints).await {
            Ok(verdict) => Ok(verdict),
            // Nothing was started, so that there is nothing to hand back.
            Err(Ending::Retry(error)) => {
                let error = chain(error.as_ref());
                tracing::warn!(error, stage = %H::STAGE, "a unit was not started");
                Ok(self.retry(delivery))
            }
            Err(ending) => self.end(delivery, None, ending).await,
        };
        self.or_retry(delivery, verdict)
    }

    /// The verdict, or another try where the queue failed before there was one.
    fn or_retry(&self, delivery: &Delivery, verdict: Result<Verdict, QueueError>) -> Verdict {
        verdict.unwrap_or_else(|error| {
            tracing::debug!(
                error = chain(&error),
                "the queue failed, the unit is tried again"
            );
            self.retry(delivery)
        })
    }

    fn retry(&self, delivery: &Delivery) -> Verdict {
        let config = &self.worker.config;
        let (first, longest) = (config.retry_first.get(), config.retry_longest.get());
        Verdict::Retry {
            after: delivery.unit.pause(first, longest, delivery.deliveries),
        }
    }

    /// Starts the unit and works on it; an error here means that nothing was started.
    async fn begin(
        &self,
        delivery: &Delivery,
        hints: broadcast::Receiver<JobKey>,
    ) -> Result<Verdict, Ending> {
        let (unit, queue, now) = (&delivery.unit, &self.worker.queue, self.worker.clock.now());
        // This process's clock may be ahead: the queue's decides.
        if now > unit.expires && queue.time().await? > unit.expires {
            return Ok(match queue.change(unit, None, &Move::Expire, now).await? {
                // The worker that ended the job may have died before it published the event.
                Changed::Over(record) => return Err(Ending::Over(Some(record))),
                Changed::Made | Changed::Done(_) | Changed::Superseded => Verdict::Done,
            });
        }
        let Some((known, revision)) = queue.record(&unit.key).await? else {
            // For the reason that core's `Start::Later` gives.
            return Ok(self.retry(delivery));
        };
        let retries_max = self.worker.config.retries_max;
        let retries_max = retries_of_all(unit, &known, retries_max, delivery.deliveries);
        let step = Move::Start {
            stage: H::STAGE,
            unit: unit.unit,
            retries_max,
        };
        // Held until the unit has ended.
        let permit = has_few_starts(unit, &known, retries_max)
            .then(|| Arc::clone(&self.few_starts).try_acquire_owned());
        if matches!(permit, Some(Err(_))) {
            let after = unit.pause(UNTIL_ALONE, UNTIL_ALONE, delivery.deliveries);
            return Ok(Verdict::Retry { after });
        }
        // A record of another epoch must not be moved by this unit.
        let seen = if known.epoch == unit.epoch {
            Seen::Record(&known, revision)
        } else {
            Seen::Epoch(unit.epoch)
        };
        let starting = pin!(queue.apply_without_event(&unit.key, seen, &step, now));
        let reading = pin!(self.handler.read(unit, &known));
        // Reading need not end with the start: from then on it is part of the work, which can be stopped.
        let (applied, inputs) = match select(starting, reading).await {
            Either::Left((applied, reading)) => (applied, Either::Left(reading)),
            Either::Right((inputs, starting)) => (starting.await, Either::Right(ready(inputs))),
        };
        let applied = applied?;
        let (is_stale, revision) = match &applied {
            Applied::Applied {
                before, revision, ..
            } => (*before != known, *revision),
            _ => (true, revision),
        };
        match after_start(unit, applied.into()) {
            Start::Work(record) => {
                let changed = is_stale.then(|| record.clone());
                let inputs = async move {
                    match changed {
                        Some(record) => self.handler.read(unit, &record).await,
                        None => inputs.await,
                    }
                };
                let started = (record, revision);
                Ok(self.work(delivery, started, inputs, hints).await)
            }
            Start::Repeat(record) => {
                self.repeat(delivery, &record).await?;
                Ok(Verdict::Done)
            }
            Start::Announce(record) => {
                queue.publish_event(&unit.key, &record).await?;
                Ok(verdict_of_final(&record))
            }
            Start::Exhausted(failure) => Err(Ending::Fail(failure)),
            Start::Drop => Ok(Verdict::Done),
            Start::Later => Ok(self.retry(delivery)),
        }
    }

    async fn repeat(&self, delivery: &Delivery, record: &JobRecord) -> Result<(), QueueError> {
        let next = next(&delivery.unit, record);
        publish(&self.worker.queue, next, &headers()).await
    }

    /// Works on a started unit while its heartbeats go out.
    async fn work(
        &self,
        delivery: &Delivery,
        (record, revision): (JobRecord, Revision),
        inputs: impl Future<Output = Result<H::Inputs, Ending>>,
        mut hints: broadcast::Receiver<JobKey>,
    ) -> Verdict {
        let attempt = (H::STAGE == Stage::Decode).then_some(record.attempt);
        let (queue, unit) = (self.worker.queue.clone(), delivery.unit.clone());
        let clock = Arc::clone(&self.worker.clock);
        let headers = headers();
        let started = Started {
            unit,
            record,
            revision,
            headers,
            place: Arc::clone(&self.place),
            queue,
            clock,
            announce_after: announce_after(H::STAGE),
            is_announced: Mutex::new(false),
        };
        let working = async {
            let work = pin!(async { self.handler.work(&started, inputs.await?).await });
            let announced = pin!(started.announce_in_time());
            match select(work, announced).await {
                // Work that failed at once: a start that is always announced still is. Should that fail too, the error of the work
                // is the one that matters.
                Either::Left((Err(ending), announced)) if started.announce_after.is_zero() => {
                    drop(announced.await);
                    Err(ending)
                }
                Either::Left((worked, _)) => worked,
                // A start whose event failed is announced again before the outcome, or the outcome's event stands for both.
                Either::Right((_, work)) => work.await,
            }
        };
        let (queue, clock) = (&self.worker.queue, self.worker.clock.as_ref());
        let before = self.worker.config.hand_back_before.get();
        let outcome = tokio::select! {
            outcome = working => outcome.map_err(Some),
            stopped = stopped(queue, clock, delivery, attempt, &mut hints) => Err(self.stop(delivery, stopped).await),
            () = draining(&self.shutdown, before) => Err(self.stop(delivery, Stopped::Draining).await),
        };
        match outcome {
            Ok(()) => Verdict::Done,
            Err(None) if self.hand_back(delivery, attempt).await => Verdict::Retry {
                after: Duration::ZERO,
            },
            Err(None) => Verdict::Abort,
            Err(Some(ending)) => {
                let ended = self.end(delivery, attempt, ending).await;
                self.or_retry(delivery, ended)
            }
        }
    }

    /// How the unit ends after a stop from outside; `None` when it is to be handed back.
    async fn stop(&self, delivery: &Delivery, stopped: Stopped) -> Option<Ending> {
        match stopped {
            Stopped::Superseded => Some(Ending::Superseded),
            Stopped::Done(record) => Some(Ending::Repeat(record)),
            Stopped::Over(record) => Some(Ending::Over(Some(record))),
            Stopped::Draining => None,
            Stopped::Expired => {
                let (unit, queue) = (&delivery.unit, &self.worker.queue);
                let now = self.worker.clock.now();
                let expired = queue.change(unit, None, &Move::Expire, now).await;
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

    /// Takes the start back, so that it does not count as one that went wrong. False when the unit is another worker's by
    /// now: a fenced worker must not even hand it back, because the server would take it from the other.
    async fn hand_back(&self, delivery: &Delivery, attempt: Option<u32>) -> bool {
        let step = Move::HandBack { stage: H::STAGE };
        let now = self.worker.clock.now();
        let (queue, unit) = (&self.worker.queue, &delivery.unit);
        match queue.change(unit, attempt, &step, now).await {
            Ok(Changed::Superseded) => false,
            Ok(Changed::Made | Changed::Over(_) | Changed::Done(_)) => true,
            Err(error) => {
                // The start then counts towards `retries_max`, which leaves room for some that did not go wrong.
                tracing::debug!(error = chain(&error), "a start was not taken back");
                true
            }
        }
    }

    /// Carries out how the work ended, and gives the verdict.
    async fn end(
        &self,
        delivery: &Delivery,
        attempt: Option<u32>,
        ending: Ending,
    ) -> Result<Verdict, QueueError> {
        let (unit, queue) = (&delivery.unit, &self.worker.queue);
        let ending = match ending {
            Ending::Missing(failure) => found_missing(queue, delivery, failure).await?,
            ending => ending,
        };
        match ending {
            Ending::Retry(error) => {
                let error = chain(error.as_ref());
                tracing::warn!(error, stage = %H::STAGE, deliveries = delivery.deliveries, "a unit is tried again later");
                if self.hand_back(delivery, attempt).await {
                    Ok(self.retry(delivery))
                } else {
                    Ok(Verdict::Abort)
                }
            }
            Ending::Wrong(error) => {
                let error = chain(error.as_ref());
                tracing::warn!(error, stage = %H::STAGE, deliveries = delivery.deliveries, "a unit went wrong");
                // A fenced worker must not even hand it back, because the server would take it from the other.
                let now = self.worker.clock.now();
                let record = queue.record(&unit.key).await?;
                let standing = record.map(|(record, _)| standing(unit, attempt, &record, now));
                Ok(match standing {
                    Some(Standing::Superseded) => Verdict::Abort,
                    _ => self.retry(delivery),
                })
            }
            Ending::Fail(failure) | Ending::Missing(failure) => {
                let step = Move::Fail(failure.clone());
                let now = self.worker.clock.now();
                match queue.change(unit, attempt, &step, now).await? {
                    Changed::Made => {
                        tracing::info!(stage = %H::STAGE, reason = failure.reason.as_str(), detail = failure.message, "a job failed");
                        Ok(verdict_of_failure(failure))
                    }
                    Changed::Over(record) => {
                        queue.publish_event(&unit.key, &record).await?;
                        Ok(verdict_of_final(&record))
                    }
                    Changed::Done(record) => {
                        self.repeat(delivery, &record).await?;
                        Ok(Verdict::Done)
                    }
                    Changed::Superseded => Ok(Verdict::Abort),
                }
            }
            Ending::Repeat(record) => {
                self.repeat(delivery, &record).await?;
                Ok(Verdict::Done)
            }
            Ending::Superseded => Ok(Verdict::Abort),
            Ending::Over(Some(record)) => {
                queue.publish_event(&unit.key, &record).await?;
                // The worker that failed the job may have died before it wrote the dead letter, and this may be that unit.
                Ok(verdict_of_final(&record))
            }
            Ending::Over(None) => Ok(Verdict::Done),
        }
    }
}

/// How a unit ends whose inputs are missing. All of them were stored before the unit was released. But in a cluster, a server
/// that was cut off then and does not know yet that it has lost its leadership does not have them, and answers that they do not
/// exist.
async fn found_missing(
    queue: &Queue,
    delivery: &Delivery,
    failure: Failure,
) -> Result<Ending, QueueError> {
    let outdated_max = queue.outdated_max();
    if outdated_max.is_zero() {
        return Ok(Ending::Fail(failure));
    }
    let age = queue.time().await?.0.saturating_sub(delivery.released_at.0);
    let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    Ok(if age < outdated_max {
        Ending::retry(failure.message)
    } else {
        Ending::Fail(failure)
    })
}

/// The span of a unit. It names ids only, never contents. Numbers are `i64`: unsigned ones reach a collector as text.
fn span(unit: &WorkUnit, deliveries: u64) -> Span {
    let (stage, pool) = (unit.stage, &unit.pool);
    tracing::info_span!(
        "unit",
        otel.name = %format_args!("{stage} work.{stage}.{pool}"),
        otel.kind = "consumer",
        otel.status_code = field::Empty,
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = %format_args!("work.{stage}.{pool}"),
        medfleet.tenant = %unit.key.tenant,
        medfleet.job = %unit.key.job,
        medfleet.unit = i64::from(unit.unit),
        medfleet.epoch = i64::from(unit.epoch),
        medfleet.deliveries = deliveries.cast_signed(),
        medfleet.verdict = field::Empty,
    )
}

/// The current span's trace context, for messages.
fn headers() -> Headers {
    telemetry::inject(&Span::current())
}

async fn close(puller: Puller) {
    if let Err(error) = puller.close().await {
        // A unit that the last pull still brings is delivered again after the acknowledge wait.
        tracing::debug!(error = chain(&error), "the last pull was not handed back");
    }
}

#[cfg(test)]
mod tests;
