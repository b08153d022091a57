//! Taking units for the slots of one worker. The slots share one pair of subscriptions and one pull at a time, which asks for
//! as many units as slots wait: no-wait pulls in class order, then waiting for a hint that there is more, and of which class.
//! Cancel-safe: a pull under way outlives the future that began it, and its answer is the next call's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures::{FutureExt, StreamExt};
use medfleet_core::{Class, PoolName, Stage, chain};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::api::{Operation, repeatable};
use crate::delivery::{Delivery, nak};
use crate::work::check_consumer;
use crate::{Queue, QueueError, Result, subject};

/// How long a class goes without a pull at most: a hint may be lost, and for units that are delivered again there is none.
const IDLE: Duration = Duration::from_secs(1);
/// The same for a class that has as many units in flight as it may: each that is settled makes room, without a hint.
const AT_LIMIT: Duration = Duration::from_millis(100);
/// How long one pull may stay unanswered. A later answer is still taken.
const ANSWER: Duration = Duration::from_secs(2);
/// For one unit in this many the classes below STAT are tried in reverse order, so that a released unit of a low class is taken at
/// last, however many of higher classes come.
const LOWEST_FIRST_EVERY: u64 = 16;
/// First and longest pause after trouble.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

const PULL: Operation = repeatable("pull units");

/// Takes units of one (stage, pool), one at a time, the most urgent class first. Each slot of a worker has a clone; all
/// clones pull together.
#[derive(Debug, Clone)]
pub struct Puller {
    crew: Arc<Crew>,
}

/// What the clones share.
#[derive(Debug)]
struct Crew {
    /// Slots that wait for a unit.
    waiting: AtomicUsize,
    /// Whoever holds the lock pulls for all slots that wait.
    pulls: Mutex<Pulls>,
}

/// A slot that waits for a unit, for as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Pulls {
    queue: Queue,
    stage: Stage,
    pool: PoolName,
    /// The subjects to pull from, in class order.
    subjects: Vec<(Class, String)>,
    wires: Option<Wires>,
    /// The classes that are pulled at all, by their index in `subjects`. A puller of only some classes gets no hints.
    every: Due,
    /// Units that have come and are not taken by a slot yet.
    ready: VecDeque<Message>,
    /// The classes to look at, by their index in `subjects`: those that were not empty when last looked at, and those that
    /// hints have named since.
    due: Due,
    /// When all classes are due, whatever hints have come.
    look_at_all: Instant,
    /// The pull under way.
    asked: Option<Asked>,
    serial: u64,
    /// Units taken so far.
    taken: u64,
    pause: Duration,
}

/// The subscriptions of a worker, kept over its life.
#[derive(Debug)]
struct Wires {
    inbox: Subscriber,
    inbox_base: String,
    hints: Option<Subscriber>,
}

type Due = [bool; Class::ALL.len()];

const EVERY: Due = [true; Class::ALL.len()];
const STAT: Due = [true, false, false, false];

#[derive(Debug, Clone, Copy)]
struct Asked {
    class: usize,
    serial: u64,
    /// Units that may still come.
    owed: usize,
    losses: u64,
    until: Instant,
}

/// How a pull ended.
enum End {
    /// It brought as many units as asked for: there may be more.
    Full,
    /// This class has nothing more for us now.
    Empty,
    /// This class has more, but as many of its units are in flight as may be.
    AtLimit,
    /// The pull was not answered, or the server could not serve it.
    Trouble,
}

impl Queue {
    /// A puller for a stage and pool that were ensured.
    #[must_use]
    pub fn puller(&self, stage: Stage, pool: PoolName) -> Puller {
        self.puller_of(stage, pool, EVERY)
    }

    /// A puller of STAT units alone, for slots that are kept for them. It looks once a second, so that whoever has another slot
    /// free takes a unit before it.
    #[must_use]
    pub fn stat_puller(&self, stage: Stage, pool: PoolName) -> Puller {
        self.puller_of(stage, pool, STAT)
    }

    fn puller_of(&self, stage: Stage, pool: PoolName, every: Due) -> Puller {
        let subjects = Class::ALL.iter().map(|class| {
            let (stream, durable) = (subject::work_stream(stage), subject::durable(&pool, *class));
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}");
            (*class, subject)
        });
        let pulls = Pulls {
            subjects: subjects.collect(),
            queue: self.clone(),
            stage,
            pool,
            wires: None,
            every,
            ready: VecDeque::new(),
            due: every,
            look_at_all: Instant::now(),
            asked: None,
            serial: 0,
            taken: 0,
            pause: PAUSE.0,
        };
        Puller {
            crew: Arc::new(Crew {
                waiting: AtomicUsize::new(0),
                pulls: Mutex::new(pulls),
            }),
        }
    }
}

impl Puller {
    /// Waits for a unit and takes it. The clones together never take more units than there are calls under way. Safe to
    /// cancel, and then to call again. Transient trouble (a restart, an election) is waited out with a growing pause.
    ///
    /// # Errors
    /// [`QueueError::UnknownPool`] when the pool was not ensured, [`QueueError::Closed`]; [`QueueError::NoUnit`] for a message
    /// that is none and is dealt with: call again.
    pub async fn next(&mut self) -> Result<Delivery> {
        let _waiting = Waiting::new(&self.crew.waiting);
        let mut pulls = self.crew.pulls.lock().await;
        pulls.next(&self.crew.waiting).await
    }

    /// Ends pulling. When no other clone waits for a unit, what a cancelled call has left is handed back: units that have
    /// come, and those of a pull under way, whose answer is waited for. Without this, such a unit is delivered to another
    /// worker after the acknowledge wait.
    ///
    /// # Errors
    /// Transient ones; the units are then delivered again after the acknowledge wait.
    pub async fn close(self) -> Result<()> {
        // One that waits may hold the lock for as long as no unit comes.
        let is_last = || self.crew.waiting.load(Ordering::Relaxed) == 0;
        if is_last() {
            let mut pulls = self.crew.pulls.lock().await;
            if is_last() {
                return pulls.hand_back().await;
            }
        }
        Ok(())
    }
}

impl Pulls {
    async fn next(&mut self, waiting: &AtomicUsize) -> Result<Delivery> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                self.pause = PAUSE.0;
                match Delivery::new(&self.queue, message).await {
                    Ok(delivery) => return Ok(delivery),
                    Err(error @ QueueError::NoUnit { .. }) => return Err(error),
                    // Said where it was decided.
                    Err(QueueError::HandedBack { .. }) => {}
                    // It comes again after the acknowledge wait.
                    Err(error) => tracing::error!(
                        stage = %self.stage,
                        error = chain(&error),
                        "a message that is not a unit of work could not be dealt with"
                    ),
                }
                continue;
            }
            match self.look(waiting).await {
                Ok(()) if self.ready.is_empty() => {
                    self.pause = PAUSE.0;
                    self.idle().await;
                }
                Ok(()) => {}
                Err(error @ (QueueError::UnknownPool { .. } | QueueError::Closed)) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(
                        stage = %self.stage,
                        error = chain(&error),
                        "cannot pull now; trying again"
                    );
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    async fn hand_back(&mut self) -> Result<()> {
        if let Some(asked) = self.asked.take() {
            // However it ends: what it brought is handed back.
            self.answer(asked).await;
        }
        // One that cannot be read gets its verdict from another worker too: nobody would count it here any more.
        for message in std::mem::take(&mut self.ready) {
            let Some(reply) = &message.reply else {
                continue;
            };
            self.queue.acknowledge(reply, nak(Duration::ZERO)).await?;
            if let Some(unit) = subject::unit_of(&message.subject) {
                self.queue.hint(&unit).await;
            }
        }
        Ok(())
    }

    /// Looks at the classes that are due, in order, until one has units.
    async fn look(&mut self, waiting: &AtomicUsize) -> Result<()> {
        self.connect_wires().await?;
        self.arrived();
        self.take_hints();
        let order = order(self.taken);
        while self.ready.is_empty() {
            let asked = match self.asked {
                Some(asked) => asked,
                None => {
                    let Some(class) = order.into_iter().find(|class| self.due[*class]) else {
                        return Ok(());
                    };
                    let wanted = waiting.load(Ordering::Relaxed).max(1);
                    self.ask(class, wanted.min(until_next_turn(self.taken)))
                        .await?
                }
            };
            let end = self.answer(asked).await;
            self.asked = None;
            self.taken += self.ready.len() as u64;
            match end {
                End::Full => {}
                End::Empty => self.due[asked.class] = false,
                End::AtLimit => {
                    self.due[asked.class] = false;
                    self.look_at_all = self.look_at_all.min(Instant::now() + AT_LIMIT);
                }
                End::Trouble => {
                    self.due = self.every;
                    if self.ready.is_empty() {
                        let class = self.subjects[asked.class].0;
                        // Tells a restart from a pool that nobody made.
                        check_consumer(&self.queue.api, self.stage, &self.pool, class).await?;
                        return Err(QueueError::unavailable(PULL.name));
                    }
                }
            }
        }
        Ok(())
    }

    async fn connect_wires(&mut self) -> Result<()> {
        if self.wires.is_some() {
            return Ok(());
        }
        let api = &self.queue.api;
        let inbox_base = api.client.new_inbox();
        // The hint is subscribed to before the first look, so that none is missed in between.
        let hint = subject::ready(self.stage, &self.pool);
        let hints = match self.every {
            EVERY => Some(api.subscribe(PULL, hint).await?),
            _ => None,
        };
        let inbox = api.subscribe(PULL, format!("{inbox_base}.*")).await?;
        self.due = self.every;
        self.wires = Some(Wires {
            inbox,
            inbox_base,
            hints,
        });
        Ok(())
    }

    /// Units whose pull was given up on and answered late.
    fn arrived(&mut self) {
        if self.asked.is_some() {
            return;
        }
        let Some(wires) = &mut self.wires else { return };
        while let Some(Some(message)) = wires.inbox.next().now_or_never() {
            if message.status.is_none() {
                self.ready.push_back(message);
            }
        }
    }

    /// A class that was empty is looked at again when a hint names it, which the server sends after the unit is there; and
    /// all of them now and then.
    fn take_hints(&mut self) {
        let now = Instant::now();
        if now >= self.look_at_all {
            self.due = self.every;
            self.look_at_all = now + IDLE;
        }
        if let Some(Wires {
            hints: Some(hints), ..
        }) = &mut self.wires
        {
            while let Some(Some(hint)) = hints.next().now_or_never() {
                hinted(&hint, &mut self.due);
            }
        }
    }

    async fn ask(&mut self, class: usize, wanted: usize) -> Result<Asked> {
        let Some(wires) = &self.wires else {
            return Err(QueueError::unavailable(PULL.name));
        };
        let api = &self.queue.api;
        self.serial += 1;
        let asked = Asked {
            class,
            serial: self.serial,
            owed: wanted,
            losses: api.link.losses(),
            until: Instant::now() + ANSWER,
        };
        let reply = format!("{}.{}", wires.inbox_base, self.serial);
        let payload = format!("{{\"batch\":{wanted},\"no_wait\":true}}");
        // Noted before it is sent: should this future be dropped meanwhile, the next call waits for the answer.
        self.asked = Some(asked);
        let pull = self.subjects[class].1.clone();
        let request = api.client.publish_with_reply(pull, reply, payload.into());
        match tokio::time::timeout_at(asked.until, request).await {
            Ok(Ok(())) => Ok(asked),
            Ok(Err(_)) if api.link.is_closed() => Err(QueueError::Closed),
            _ => {
                self.asked = None;
                Err(QueueError::unavailable(PULL.name))
            }
        }
    }

    /// Waits for the end of a pull; the units that it brings are ready from then on.
    async fn answer(&mut self, asked: Asked) -> End {
        let Some(wires) = &mut self.wires else {
            return End::Trouble;
        };
        let link = &self.queue.api.link;
        let mut owed = asked.owed;
        let mut lost = std::pin::pin!(link.lost_after(asked.losses));
        let mut late = std::pin::pin!(tokio::time::sleep_until(asked.until));
        loop {
            let message = tokio::select! {
                biased;
                message = wires.inbox.next() => message,
                () = &mut lost => return End::Trouble,
                () = &mut late => return End::Trouble,
            };
            let Some(message) = message else {
                return End::Trouble;
            };
            let Some(status) = message.status else {
                self.ready.push_back(message);
                owed = owed.saturating_sub(1);
                // Should this future be dropped meanwhile, the next call waits for the rest.
                self.asked = Some(Asked { owed, ..asked });
                if owed == 0 {
                    return End::Full;
                }
                continue;
            };
            let serial = message.subject.rsplit('.').next();
            if serial.and_then(|text| text.parse().ok()) != Some(asked.serial) {
                // The late end of a pull that was given up on.
                continue;
            }
            return match status.as_u16() {
                404 | 408 => End::Empty,
                // This class has reached its limit of units in flight, or its leader changes; the others go on.
                409 => End::AtLimit,
                _ => End::Trouble,
            };
        }
    }

    async fn idle(&mut self) {
        let Some(wires) = &mut self.wires else { return };
        let Some(hints) = &mut wires.hints else {
            tokio::time::sleep_until(self.look_at_all).await;
            return;
        };
        match tokio::time::timeout_at(self.look_at_all, hints.next()).await {
            Ok(Some(hint)) => hinted(&hint, &mut self.due),
            // The subscriptions ended: make them anew.
            Ok(None) => self.wires = None,
            Err(_) => {}
        }
    }
}

/// The classes in the order in which the next unit is looked for; it changes only when units were taken.
fn order(taken: u64) -> [usize; Class::ALL.len()] {
    match taken % LOWEST_FIRST_EVERY {
        last if last == LOWEST_FIRST_EVERY - 1 => [0, 3, 2, 1],
        _ => [0, 1, 2, 3],
    }
}

/// Units that may be taken before the order changes.
fn until_next_turn(taken: u64) -> usize {
    match taken % LOWEST_FIRST_EVERY {
        last if last == LOWEST_FIRST_EVERY - 1 => 1,
        // Below the period.
        so_far => (LOWEST_FIRST_EVERY - 1 - so_far) as usize,
    }
}

/// Notes the class that a hint names; every class when it names none that we know.
fn hinted(hint: &Message, due: &mut Due) {
    let class = Class::ALL
        .iter()
        .position(|class| class.as_str().as_bytes() == hint.payload.as_ref());
    match class {
        Some(class) => due[class] = true,
        None => *due = EVERY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_class_goes_first_once_in_a_period() {
        let mut taken = 0;
        let mut turns = 0;
        for _ in 0..100 {
            let many = until_next_turn(taken);
            assert!(many >= 1);
            turns += usize::from(order(taken) == [0, 3, 2, 1]) * many;
            taken += many as u64;
        }
        assert_eq!(turns as u64, taken / LOWEST_FIRST_EVERY);
    }
}
