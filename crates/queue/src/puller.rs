//! Taking one unit at a time: no-wait pulls in class order, then waiting for a hint that there is more, and of which class.
//! Cancel-safe: a pull under way outlives the future that began it, and its answer is the next call's.

use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures::{FutureExt, StreamExt};
use medfleet_core::{Class, PoolName, Stage};
use serde_json::json;
use tokio::time::Instant;

use crate::api::{Operation, repeatable, to_json};
use crate::delivery::Delivery;
use crate::work::check_consumer;
use crate::{Queue, QueueError, Result, subject};

/// Longest time an idle puller goes without looking, should a hint be lost.
const IDLE: Duration = Duration::from_secs(1);
/// How long one pull may stay unanswered. A later answer is still taken.
const ANSWER: Duration = Duration::from_secs(2);
/// One unit in so many is looked for in the other direction below STAT, so that a released unit of a lower class is taken at
/// last however many of the higher ones come.
const LOWEST_FIRST_EVERY: u64 = 16;
/// First and longest pause after trouble.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

const PULL: Operation = repeatable("pull a unit");

/// Takes units of one (stage, pool), one at a time, the most urgent class first.
#[derive(Debug)]
pub struct Puller {
    queue: Queue,
    stage: Stage,
    pool: PoolName,
    /// The subjects to pull from, in class order.
    pulls: Vec<(Class, String)>,
    wires: Option<Wires>,
    /// The classes to look at, by their index in `pulls`: all of them, or those that hints named since all were empty.
    due: Due,
    /// The pull under way: an index into `pulls`, its serial number, its end.
    asked: Option<Asked>,
    serial: u64,
    /// Units taken so far.
    taken: u64,
    pause: Duration,
}

/// The subscriptions of a puller, kept over its life.
#[derive(Debug)]
struct Wires {
    inbox: Subscriber,
    inbox_base: String,
    hints: Subscriber,
}

type Due = [bool; Class::ALL.len()];

const EVERY: Due = [true; Class::ALL.len()];

#[derive(Debug, Clone, Copy)]
struct Asked {
    class: usize,
    serial: u64,
    losses: u64,
    until: Instant,
}

enum Answer {
    Unit(Message),
    /// This class has nothing for us now.
    Empty,
    /// The pull was not answered, or the server could not.
    Trouble,
}

impl Queue {
    /// A puller for a stage and pool that were ensured.
    #[must_use]
    pub fn puller(&self, stage: Stage, pool: PoolName) -> Puller {
        let pulls = Class::ALL.iter().map(|class| {
            let (stream, durable) = (subject::work_stream(stage), subject::durable(&pool, *class));
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}");
            (*class, subject)
        });
        Puller {
            pulls: pulls.collect(),
            queue: self.clone(),
            stage,
            pool,
            wires: None,
            due: EVERY,
            asked: None,
            serial: 0,
            taken: 0,
            pause: PAUSE.0,
        }
    }
}

impl Puller {
    /// Waits for a unit and takes it. Takes none beyond it: never holds more than the one it returns. Safe to cancel, and
    /// then to call again. Transient trouble (a restart, an election) is waited out with a growing pause.
    ///
    /// # Errors
    /// [`QueueError::UnknownPool`] when the pool was not ensured, [`QueueError::Closed`].
    pub async fn next(&mut self) -> Result<Delivery> {
        loop {
            match self.look().await {
                Ok(Some(message)) => {
                    self.pause = PAUSE.0;
                    match Delivery::new(&self.queue, message).await {
                        Ok(delivery) => return Ok(delivery),
                        // Not a unit of this version; it went to the dead letters.
                        Err(error) => tracing::error!(
                            stage = %self.stage,
                            error = &error as &dyn std::error::Error,
                            "a message that is not a unit of work"
                        ),
                    }
                }
                Ok(None) => {
                    self.pause = PAUSE.0;
                    self.idle().await;
                }
                Err(error @ (QueueError::UnknownPool { .. } | QueueError::Closed)) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(
                        stage = %self.stage,
                        error = &error as &dyn std::error::Error,
                        "cannot pull now; trying again"
                    );
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// Ends pulling: waits for the answer of a pull that was cancelled half-way, and hands back the unit that it brings.
    /// Without this, such a unit is delivered to another worker after the acknowledge wait.
    ///
    /// # Errors
    /// Transient ones; the unit is then delivered again after the acknowledge wait.
    pub async fn close(mut self) -> Result<()> {
        let Some(asked) = self.asked.take() else {
            return Ok(());
        };
        let Answer::Unit(message) = self.answer(asked).await else {
            return Ok(());
        };
        let delivery = Delivery::new(&self.queue, message).await?;
        let now = medfleet_core::Verdict::Retry {
            after: Duration::ZERO,
        };
        delivery.settle(now).await
    }

    /// One round over the classes that are due. After it all of them are, until hints say more.
    async fn look(&mut self) -> Result<Option<Message>> {
        self.connect_wires().await?;
        if let Some(message) = self.arrived() {
            return Ok(Some(message));
        }
        let order = order(self.taken);
        let first = match self.asked {
            Some(asked) => order.iter().position(|class| *class == asked.class),
            None => {
                if self.due == EVERY {
                    self.forget_hints();
                }
                None
            }
        };
        for class in order.into_iter().skip(first.unwrap_or(0)) {
            if !self.due[class] {
                continue;
            }
            let asked = match self.asked {
                Some(asked) => asked,
                None => self.ask(class).await?,
            };
            let answer = self.answer(asked).await;
            self.asked = None;
            match answer {
                Answer::Unit(message) => {
                    self.due = EVERY;
                    self.taken += 1;
                    return Ok(Some(message));
                }
                Answer::Empty => {}
                Answer::Trouble => {
                    self.due = EVERY;
                    let class = self.pulls[class].0;
                    // Tells a restart from a pool that nobody made.
                    check_consumer(&self.queue.api, self.stage, &self.pool, class).await?;
                    return Err(QueueError::Unavailable {
                        operation: PULL.name,
                    });
                }
            }
        }
        Ok(None)
    }

    async fn connect_wires(&mut self) -> Result<()> {
        if self.wires.is_some() {
            return Ok(());
        }
        let api = &self.queue.api;
        let inbox_base = api.client.new_inbox();
        // The hint is subscribed to before the first look, so that none is missed in between.
        let hint = subject::ready(self.stage, &self.pool);
        let hints = api.subscribe(PULL, hint).await?;
        let inbox = api.subscribe(PULL, format!("{inbox_base}.*")).await?;
        self.wires = Some(Wires {
            inbox,
            inbox_base,
            hints,
        });
        Ok(())
    }

    /// A unit whose pull was given up on and answered late.
    fn arrived(&mut self) -> Option<Message> {
        if self.asked.is_some() {
            return None;
        }
        let wires = self.wires.as_mut()?;
        while let Some(Some(message)) = wires.inbox.next().now_or_never() {
            if message.status.is_none() {
                return Some(message);
            }
        }
        None
    }

    /// Hints from before a look at every class say nothing that the look does not.
    fn forget_hints(&mut self) {
        if let Some(wires) = &mut self.wires {
            while let Some(Some(_)) = wires.hints.next().now_or_never() {}
        }
    }

    async fn ask(&mut self, class: usize) -> Result<Asked> {
        let Some(wires) = &self.wires else {
            return Err(QueueError::Unavailable {
                operation: PULL.name,
            });
        };
        let api = &self.queue.api;
        self.serial += 1;
        let asked = Asked {
            class,
            serial: self.serial,
            losses: api.link.losses(),
            until: Instant::now() + ANSWER,
        };
        let reply = format!("{}.{}", wires.inbox_base, self.serial);
        let payload = to_json(PULL, &json!({ "batch": 1, "no_wait": true }))?;
        // Noted before it is sent: should this future be dropped meanwhile, the next call waits for the answer.
        self.asked = Some(asked);
        let request = api
            .client
            .publish_with_reply(self.pulls[class].1.clone(), reply, payload);
        match tokio::time::timeout_at(asked.until, request).await {
            Ok(Ok(())) => Ok(asked),
            Ok(Err(_)) if api.link.is_closed() => Err(QueueError::Closed),
            _ => {
                self.asked = None;
                Err(QueueError::Unavailable {
                    operation: PULL.name,
                })
            }
        }
    }

    async fn answer(&mut self, asked: Asked) -> Answer {
        let Some(wires) = &mut self.wires else {
            return Answer::Trouble;
        };
        let link = &self.queue.api.link;
        loop {
            let message = tokio::select! {
                biased;
                message = wires.inbox.next() => message,
                () = link.lost_after(asked.losses) => return Answer::Trouble,
                () = tokio::time::sleep_until(asked.until) => return Answer::Trouble,
            };
            let Some(message) = message else {
                return Answer::Trouble;
            };
            let Some(status) = message.status else {
                return Answer::Unit(message);
            };
            let serial = message.subject.rsplit('.').next();
            if serial.and_then(|text| text.parse().ok()) != Some(asked.serial) {
                // The late end of a pull that was given up on.
                continue;
            }
            return match status.as_u16() {
                // 409: this class has reached its limit of units in flight, or its leader changes; the others go on.
                404 | 408 | 409 => Answer::Empty,
                _ => Answer::Trouble,
            };
        }
    }

    async fn idle(&mut self) {
        let Some(wires) = &mut self.wires else {
            return;
        };
        self.due = EVERY;
        match tokio::time::timeout(IDLE, wires.hints.next()).await {
            Ok(Some(hint)) => {
                // Every class was empty a moment ago: only what the hints name can have something.
                let mut due = hinted(&hint);
                while let Some(Some(hint)) = wires.hints.next().now_or_never() {
                    due = std::array::from_fn(|class| due[class] | hinted(&hint)[class]);
                }
                self.due = due;
            }
            // The subscriptions ended: make them anew.
            Ok(None) => self.wires = None,
            Err(_) => {}
        }
    }
}

/// The classes in the order in which the next unit is looked for; it changes only when a unit was taken.
fn order(taken: u64) -> [usize; Class::ALL.len()] {
    match taken % LOWEST_FIRST_EVERY {
        last if last == LOWEST_FIRST_EVERY - 1 => [0, 3, 2, 1],
        _ => [0, 1, 2, 3],
    }
}

/// The class that a hint names; every class when it names none that we know.
fn hinted(hint: &Message) -> Due {
    let class = Class::ALL
        .iter()
        .position(|class| class.as_str().as_bytes() == hint.payload.as_ref());
    class.map_or(EVERY, |named| std::array::from_fn(|class| class == named))
}
