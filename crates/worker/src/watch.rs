//! What stops a unit from outside: a newer attempt, a final job, its expiry, the end of the drain time.
//! The record is read at every heartbeat, and when the job's time is over; a cancel hint only makes it sooner.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::protocol::{Standing, standing};
use medfleet_core::{JobKey, JobRecord, TenantId, UnixMillis, WorkUnit, chain};
use medfleet_queue::{Delivery, Queue, QueueError};
use medfleet_runtime::{Clock, Shutdown};
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Most cancel hints that wait for a slot; a slot that has missed some reads its record instead.
pub(crate) const HINTS_MAX: usize = 256;
/// Pause before the hints are subscribed to again.
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// Why work was stopped from outside.
#[derive(Debug)]
pub enum Stopped {
    /// The unit is another worker's.
    Superseded,
    /// The unit is done already, by this record.
    Done(Box<JobRecord>),
    /// The job has ended, as this record says.
    Over(Box<JobRecord>),
    /// The job's time is over, by this process's clock.
    Expired,
    /// The process ends.
    Draining,
}

impl Stopped {
    /// What a record means for the worker that has the unit; `None` where it may go on. `attempt` is its fence, which only
    /// decode has.
    pub fn by(
        unit: &WorkUnit,
        attempt: Option<u32>,
        record: &JobRecord,
        now: UnixMillis,
    ) -> Option<Self> {
        match standing(unit, attempt, record, now) {
            Standing::Mine => None,
            Standing::Superseded => Some(Self::Superseded),
            Standing::Done(record) => Some(Self::Done(record)),
            Standing::Over(record) => Some(Self::Over(record)),
            Standing::Expired => Some(Self::Expired),
        }
    }
}

/// Resolves when the unit must not be worked on any more; sends its heartbeats until then.
pub(crate) async fn stopped(
    queue: &Queue,
    clock: &dyn Clock,
    delivery: &Delivery,
    attempt: Option<u32>,
    hints: &mut broadcast::Receiver<JobKey>,
) -> Stopped {
    let unit = &delivery.unit;
    let heartbeat = queue.heartbeat();
    let mut beat = interval_at(Instant::now() + heartbeat, heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut end = pin!(tokio::time::sleep(until_passed(unit.expires, clock.now())));
    let mut is_end_awaited = true;
    loop {
        let due = tokio::select! {
            _ = beat.tick() => true,
            () = hinted(hints, &unit.key) => false,
            () = &mut end, if is_end_awaited => {
                is_end_awaited = false;
                false
            }
        };
        let progress = async {
            if due && let Err(error) = delivery.progress().await {
                // The next one may get through; if none does, the unit is delivered again and the fence holds.
                tracing::debug!(error = chain(&error), "heartbeat was not confirmed");
            }
        };
        let (record, ()) = tokio::join!(queue.record(&unit.key), progress);
        let now = clock.now();
        let (stopped, expires) = match record {
            Ok(Some((record, _))) => {
                let stopped = Stopped::by(unit, attempt, &record, now);
                (stopped, record.expires)
            }
            // No proof that the job is gone: the server may have lost its leadership without knowing it. Only the job's expiry
            // counts.
            Ok(None) => {
                tracing::debug!("no record was found at a heartbeat");
                let is_over = now > unit.expires;
                (is_over.then_some(Stopped::Expired), unit.expires)
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "record was not read at a heartbeat");
                (None, unit.expires)
            }
        };
        let Some(stopped) = stopped else { continue };
        if !matches!(stopped, Stopped::Expired) {
            return stopped;
        }
        // This process's clock may be ahead: the queue's decides. While that does not answer, the next heartbeat asks again.
        match queue.time().await {
            Ok(now) if now > expires => return stopped,
            Ok(now) => {
                end.as_mut()
                    .reset(Instant::now() + until_passed(expires, now));
                is_end_awaited = true;
            }
            Err(error) => tracing::debug!(
                error = chain(&error),
                "the queue did not say what time it is"
            ),
        }
    }
}

/// From now on, how long until a time has passed.
fn until_passed(time: UnixMillis, now: UnixMillis) -> Duration {
    let millis = time.0.saturating_sub(now.0).saturating_add(1);
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Resolves on a hint about this job, or when hints were missed.
async fn hinted(hints: &mut broadcast::Receiver<JobKey>, key: &JobKey) {
    loop {
        match hints.recv().await {
            Ok(hint) if hint == *key => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            // The channel closes only when the process ends; the heartbeats go on.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Resolves when what is not finished has to be handed back.
pub(crate) async fn draining(shutdown: &Shutdown, before: Duration) {
    shutdown.begun().await;
    tokio::time::sleep(shutdown.remaining().saturating_sub(before)).await;
}

/// Tells `forget` whose jobs were erased, for as long as the process lives.
pub(crate) async fn follow_erasures(
    queue: Queue,
    forget: impl Fn(&TenantId) + Send,
) -> Result<(), Infallible> {
    follow(|| queue.erasures(), move |key| forget(&key.tenant)).await
}

/// Passes the cancel hints on to all slots for as long as the process lives.
pub(crate) async fn forward_hints(
    queue: Queue,
    hints: broadcast::Sender<JobKey>,
) -> Result<(), Infallible> {
    let pass_on = |key| {
        // No slot listens when none is at work.
        let _ = hints.send(key);
    };
    follow(|| queue.cancels(), pass_on).await
}

/// Calls `each` with the jobs of one kind of hint; what is said while nobody is subscribed is missed.
async fn follow<F>(subscribe: impl Fn() -> F, each: impl Fn(JobKey)) -> Result<(), Infallible>
where
    F: Future<Output = Result<BoxStream<'static, JobKey>, QueueError>>,
{
    loop {
        match subscribe().await {
            Ok(mut hints) => {
                while let Some(key) = hints.next().await {
                    each(key);
                }
            }
            // The error names the kind.
            Err(error) => tracing::debug!(error = chain(&error), "hints are not received"),
        }
        tokio::time::sleep(RESUBSCRIBE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};

    use anyhow::{Result, bail, ensure};
    use medfleet_core::setting::DurationText;
    use medfleet_core::{Class, JobState, Move, Stage};
    use medfleet_runtime::SystemClock;
    use medfleet_testkit::{self as kit, NATS_DEFAULT, NatsServer, wait_until};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    /// Longer than a test waits.
    const HOUR: DurationText = DurationText::from_secs(3600);

    /// A queue on a server, of workers that report so often, and a unit in the hands of one.
    async fn at_work(server: &NatsServer, heartbeat: DurationText) -> Result<(Queue, Delivery)> {
        at_work_for(server, heartbeat, HOUR).await
    }

    /// As [`at_work`], of a job that has so much time left.
    async fn at_work_for(
        server: &NatsServer,
        heartbeat: DurationText,
        left: DurationText,
    ) -> Result<(Queue, Delivery)> {
        let mut config = kit::config(&server.url());
        config.ack_wait = HOUR;
        config.heartbeat = Some(heartbeat);
        let queue = kit::queue(&config).await?;
        let (key, mut record) = kit::record(1, 1);
        let millis = i64::try_from(left.as_millis())?;
        record.expires = UnixMillis(SystemClock.now().0 + millis);
        queue.create_record(&key, &record).await?;
        let unit = WorkUnit {
            expires: record.expires,
            ..kit::unit(&key, Stage::Preprocess, Class::Routine, 0)
        };
        queue.publish_work(&unit, &Vec::new()).await?;
        let mut puller = queue.puller(Stage::Preprocess, kit::pool());
        let delivery = tokio::time::timeout(PATIENCE, puller.next()).await??;
        Ok((queue, delivery))
    }

    /// That a unit stays with who says so, the tests of the queue show.
    #[tokio::test]
    async fn the_server_hears_again_and_again_that_a_unit_is_being_worked_on() -> Result<()> {
        let server = NatsServer::start_with(NATS_DEFAULT, true).await?;
        let (queue, delivery) = at_work(&server, DurationText::from_millis(50)).await?;
        let (_sender, mut hints) = broadcast::channel(1);
        let heard = wait_until(PATIENCE, "three signs of life", async || {
            let log = fs::read_to_string(server.log()).ok()?;
            let lines: Vec<&str> = log.lines().collect();
            let is_beat = |two: &&[&str]| {
                two[0].contains("$JS.ACK.WORK_PREPROCESS.") && two[1].contains("[\"+WPI\"]")
            };
            (lines.windows(2).filter(is_beat).count() >= 3).then_some(())
        });
        tokio::select! {
            heard = heard => heard,
            stopped = stopped(&queue, &SystemClock, &delivery, None, &mut hints) => bail!("{stopped:?}"),
        }
    }

    /// With nobody but the worker to end it.
    #[tokio::test]
    async fn the_end_of_a_jobs_time_stops_the_work_long_before_the_next_heartbeat() -> Result<()> {
        let server = NatsServer::start().await?;
        let (heartbeat, left) = (
            DurationText::from_secs(1200),
            DurationText::from_millis(500),
        );
        let (queue, delivery) = at_work_for(&server, heartbeat, left).await?;
        let (_sender, mut hints) = broadcast::channel(1);
        let working = stopped(&queue, &SystemClock, &delivery, None, &mut hints);
        let stopped = tokio::time::timeout(PATIENCE, working).await?;
        ensure!(matches!(stopped, Stopped::Expired), "{stopped:?}");
        let now = queue.time().await?;
        ensure!(now > delivery.unit.expires, "{now:?}");
        Ok(())
    }

    /// A clock by which every job's time is over, and how often it was looked at.
    #[derive(Debug, Default)]
    struct Ahead(AtomicU64);

    impl Clock for Ahead {
        fn now(&self) -> UnixMillis {
            self.0.fetch_add(1, Ordering::SeqCst);
            UnixMillis(i64::MAX)
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_ahead_of_the_queues_stops_no_work() -> Result<()> {
        let server = NatsServer::start().await?;
        let (queue, delivery) = at_work(&server, DurationText::from_millis(50)).await?;
        let (_sender, mut hints) = broadcast::channel(1);
        let ahead = Ahead::default();
        let looked = wait_until(PATIENCE, "three looks at the clock", async || {
            (ahead.0.load(Ordering::SeqCst) >= 3).then_some(())
        });
        tokio::select! {
            looked = looked => looked,
            stopped = stopped(&queue, &ahead, &delivery, None, &mut hints) => bail!("{stopped:?}"),
        }
    }

    async fn cancel(queue: &Queue, key: &JobKey) -> Result<()> {
        let step = Move::Cancel;
        queue.apply(key, None, &step, SystemClock.now()).await?;
        Ok(())
    }

    fn is_cancelled(stopped: &Stopped) -> bool {
        matches!(stopped, Stopped::Over(record) if record.state == JobState::Cancelled)
    }

    #[tokio::test]
    async fn a_cancel_whose_hint_was_lost_stops_the_work_at_a_heartbeat() -> Result<()> {
        let server = NatsServer::start().await?;
        let (queue, delivery) = at_work(&server, DurationText::from_millis(50)).await?;
        let (_sender, mut hints) = broadcast::channel(1);
        let working = stopped(&queue, &SystemClock, &delivery, None, &mut hints);
        let working = tokio::time::timeout(PATIENCE, working);
        let (stopped, cancelled) = tokio::join!(working, cancel(&queue, &delivery.unit.key));
        cancelled?;
        let stopped = stopped?;
        ensure!(is_cancelled(&stopped), "{stopped:?}");
        Ok(())
    }

    #[tokio::test]
    async fn a_hint_stops_the_work_on_a_cancelled_job_long_before_the_next_heartbeat() -> Result<()>
    {
        let server = NatsServer::start().await?;
        let (queue, delivery) = at_work(&server, DurationText::from_secs(1200)).await?;
        let (sender, mut hints) = broadcast::channel(HINTS_MAX);
        cancel(&queue, &delivery.unit.key).await?;
        let hinting = wait_until(PATIENCE, "the work to stop", async || {
            // Whoever listens may not do so yet.
            queue.publish_cancel(&delivery.unit.key).await.ok()?;
            None::<()>
        });
        tokio::select! {
            stopped = stopped(&queue, &SystemClock, &delivery, None, &mut hints) => {
                ensure!(is_cancelled(&stopped), "{stopped:?}");
                Ok(())
            }
            in_vain = hinting => in_vain,
            _ = forward_hints(queue.clone(), sender) => bail!("nobody listens any more"),
        }
    }
}
