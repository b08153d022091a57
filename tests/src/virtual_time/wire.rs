//! A process's connection to the queue: the operations of `medfleet_queue::Queue`, with one request each, over a link that may be
//! slow, be cut, or lose an answer. Decisions on the way are core's `protocol`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use medfleet_core::protocol::{self, Change, Tried};
use medfleet_core::{JobKey, JobRecord, Move, Stage, UnixMillis, WorkUnit};
use medfleet_queue::{Applied, Changed, QueueError, Revision, Seen};

use super::clocks::WallClock;
use super::server::{Delivery, Server, Stream, name_of};
use super::timeline::{TaskId, Timeline, after};
use super::{ACK_WAIT, HORIZON, Plant, REQUEST_TIMEOUT, Role};

/// Tries, as in the queue.
const TRIES_MAX: u32 = 16;
/// One answer in so many is lost, faults or not.
const LOST_ONE_IN: u64 = 400;
/// One publish in so many meets a leader that dies with what it has proposed.
const PROMISED_ONE_IN: u64 = 60;

pub(super) struct Process {
    pub(super) role: Role,
    pub(super) number: usize,
    /// Its machine's: it goes on when the process ends.
    pub(super) clock: WallClock,
    /// What the queue's clock said, and when: of `ingest`, once it was told.
    pub(super) told: Cell<Option<(UnixMillis, u64)>>,
    pub(super) is_up: Cell<bool>,
    /// Whether clients are answered.
    pub(super) serves: Cell<bool>,
    /// Since when it is stopped in order, and until when it may finish what it has.
    pub(super) drain_until: Cell<Option<u64>>,
    pub(super) cut_until: Cell<u64>,
    pub(super) answers_lost_until: Cell<u64>,
    pub(super) slow_until: Cell<u64>,
    pub(super) tasks: RefCell<Vec<TaskId>>,
    /// The jobs in its hands, by task.
    pub(super) at_work: RefCell<BTreeMap<TaskId, JobKey>>,
    /// How often something went wrong while it had a job in its hands.
    pub(super) mishaps: RefCell<BTreeMap<JobKey, u32>>,
    /// The latest revisions that it wrote.
    own: RefCell<BTreeMap<JobKey, u64>>,
}

impl Process {
    pub(super) fn new(role: Role, number: usize, clock: WallClock) -> Self {
        Self {
            role,
            number,
            clock,
            told: Cell::new(None),
            is_up: Cell::new(false),
            serves: Cell::new(false),
            drain_until: Cell::new(None),
            cut_until: Cell::new(0),
            answers_lost_until: Cell::new(0),
            slow_until: Cell::new(0),
            tasks: RefCell::default(),
            at_work: RefCell::default(),
            mishaps: RefCell::default(),
            own: RefCell::default(),
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{:?} {}", self.role, self.number)
    }

    /// Whatever it has in its hands may have to be started again.
    pub(super) fn count_mishaps(&self) {
        let mut mishaps = self.mishaps.borrow_mut();
        for key in self.at_work.borrow().values() {
            *mishaps.entry(key.clone()).or_default() += 1;
        }
    }
}

/// The connection of one process.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) timeline: Timeline,
    pub(super) server: Rc<RefCell<Server>>,
    pub(super) process: Rc<Process>,
    pub(super) plant: Plant,
}

impl Wire {
    /// The time of day as this process has it: its machine's, or the queue's since that was told.
    pub(super) fn clock(&self) -> UnixMillis {
        let now = self.timeline.now();
        let told = self.process.told.get();
        match told.filter(|_| self.plant != Plant::StampsByOwnClock) {
            Some((time, at)) => after(time, now.saturating_sub(at)),
            None => self.process.clock.time(now),
        }
    }

    /// As `ingest`'s `QueueClock` asks the queue; where that does not answer, what is known goes on.
    pub(super) async fn ask_time(&self) {
        let asked = self.timeline.now();
        if let Ok(time) = self.time().await {
            let at = asked + (self.timeline.now() - asked) / 2;
            self.process.told.set(Some((time, at)));
        }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.timeline.now() >= HORIZON
    }

    /// One request, at most for the request timeout and one answer that never comes. Where a lost answer was noticed, one that is
    /// repeatable is made again.
    async fn call<T>(
        &self,
        name: &'static str,
        is_repeatable: bool,
        mut act: impl FnMut(&mut Server, u64) -> T,
    ) -> Result<T, QueueError> {
        let begun = self.timeline.now();
        loop {
            let slow = if self.process.slow_until.get() > self.timeline.now() {
                100
            } else {
                0
            };
            self.timeline
                .sleep(slow + self.timeline.between(0, 4))
                .await;
            let now = self.timeline.now();
            if now >= begun + REQUEST_TIMEOUT {
                self.process.count_mishaps();
                return Err(QueueError::unavailable(name));
            }
            let is_cut = self.process.cut_until.get() > now;
            if is_cut || self.server.borrow().down_until > now {
                self.timeline.sleep(self.timeline.between(50, 250)).await;
                continue;
            }
            let answer = act(&mut self.server.borrow_mut(), now);
            self.look_for_wrongs();
            if !self.loses_answer(now) {
                self.timeline
                    .sleep(slow + self.timeline.between(0, 4))
                    .await;
                return Ok(answer);
            }
            self.process.count_mishaps();
            if is_repeatable && self.timeline.once_in(2) {
                continue;
            }
            let who = self.process.name();
            self.timeline.note(&format!("{who} lost an answer: {name}"));
            self.timeline.sleep(REQUEST_TIMEOUT).await;
            return Err(QueueError::TimedOut {
                operation: name,
                waited: Duration::from_millis(REQUEST_TIMEOUT),
            });
        }
    }

    fn loses_answer(&self, now: u64) -> bool {
        if self.is_calm() {
            return false;
        }
        if self.process.answers_lost_until.get() > now {
            return self.timeline.between(1, 10) <= 7;
        }
        self.timeline.once_in(LOST_ONE_IN)
    }

    fn look_for_wrongs(&self) {
        let broken = self.server.borrow_mut().broken.take();
        if let Some(broken) = broken {
            self.timeline.broken(broken);
        }
    }

    /// Reads a record, never older than this process's own latest write.
    pub(super) async fn record(
        &self,
        key: &JobKey,
    ) -> Result<Option<(JobRecord, u64)>, QueueError> {
        let own = self.process.own.borrow().get(key).copied().unwrap_or(0);
        let is_behind = !self.is_calm() && self.timeline.once_in(4);
        let found = self
            .ask("read a record", |server, now| {
                let (until, age) = server.outdated;
                let behind = if is_behind && until > now { age } else { 0 };
                server.read(key, now.saturating_sub(behind), own)
            })
            .await?;
        Ok(found.map(|found| (found.record, found.revision)))
    }

    /// Every record, for the scan of the open jobs.
    pub(super) async fn records(&self) -> Result<Vec<(JobKey, JobRecord)>, QueueError> {
        self.ask("scan the records", |server, _| {
            let all = server.records.iter();
            let latest = all.filter_map(|(key, versions)| {
                let version = versions.last()?;
                Some((key.clone(), version.record.clone()))
            });
            latest.collect()
        })
        .await
    }

    /// Creates a record; the one that is there already, if there is one.
    pub(super) async fn create(
        &self,
        key: &JobKey,
        record: &JobRecord,
    ) -> Result<Option<JobRecord>, QueueError> {
        let stored = self
            .call("create a record", false, |server, now| {
                server.create(key, record.clone(), now)
            })
            .await?;
        if let Some(revision) = stored {
            self.note_own(key, record, revision);
            return Ok(None);
        }
        match self.record(key).await? {
            Some((found, _)) => Ok(Some(found)),
            // What it read is behind: the next call finds it.
            None => Err(QueueError::Contended { tries: 1 }),
        }
    }

    async fn update(
        &self,
        key: &JobKey,
        record: &JobRecord,
        revision: u64,
    ) -> Result<Option<u64>, QueueError> {
        let stored = self
            .call("change a record", false, |server, now| {
                server.update(key, record.clone(), revision, now)
            })
            .await?;
        if let Some(revision) = stored {
            self.note_own(key, record, revision);
        }
        Ok(stored)
    }

    fn note_own(&self, key: &JobKey, record: &JobRecord, revision: u64) {
        self.process.own.borrow_mut().insert(key.clone(), revision);
        let (who, state) = (self.process.name(), record.state);
        let (done, total) = (record.chunks.done(), record.chunks.total);
        let (epoch, attempt) = (record.epoch, record.attempt);
        self.timeline.note(&format!(
            "{who} stored {key}: {state}, epoch {epoch}, attempt {attempt}, chunks {done}/{total}"
        ));
    }

    /// As `Queue::apply_without_event`.
    pub(super) async fn apply(
        &self,
        key: &JobKey,
        seen: Seen<'_>,
        step: &Move,
        now: UnixMillis,
    ) -> Result<Applied, QueueError> {
        let (mut known, epoch) = match seen {
            Seen::Nothing => (None, None),
            Seen::Epoch(epoch) => (None, Some(epoch)),
            Seen::Record(record, revision) => {
                let known = (record.clone(), revision.sequence());
                (Some(known), Some(record.epoch))
            }
        };
        let mut is_first = known.is_some();
        for _ in 0..=TRIES_MAX {
            let found = match known.take() {
                Some(known) => Some(known),
                None => self.record(key).await?,
            };
            let Some((before, revision)) = found else {
                return Ok(Applied::Missing);
            };
            let tried = protocol::propose(&before, epoch, step, now);
            // What was seen before may be old: it leads to a write, which compares, or to nothing.
            let is_old = std::mem::replace(&mut is_first, false);
            let record = match tried {
                Tried::Moved(record) if is_old && record == before => continue,
                Tried::Moved(record) => record,
                _ if is_old => continue,
                Tried::Refused { reason, record } => {
                    return Ok(Applied::Refused { reason, record });
                }
                Tried::OtherEpoch { record } => return Ok(Applied::OtherEpoch { record }),
                Tried::Missing => return Ok(Applied::Missing),
            };
            let stored = if record == before {
                Some(revision)
            } else {
                self.update(key, &record, revision).await?
            };
            if let Some(revision) = stored {
                return Ok(Applied::Applied {
                    record,
                    before,
                    revision: Revision::at(revision),
                });
            }
        }
        Err(QueueError::Contended { tries: TRIES_MAX })
    }

    /// As `Queue::apply`: with the event of what was moved.
    pub(super) async fn apply_and_say(
        &self,
        key: &JobKey,
        epoch: Option<u32>,
        step: &Move,
        now: UnixMillis,
    ) -> Result<Applied, QueueError> {
        let seen = epoch.map_or(Seen::Nothing, Seen::Epoch);
        let applied = self.apply(key, seen, step, now).await?;
        if let Applied::Applied { record, .. } = &applied {
            self.say(key, record).await?;
        }
        Ok(applied)
    }

    /// A change of a worker whose unit does not go well, if the job is still its own.
    pub(super) async fn change(
        &self,
        unit: &WorkUnit,
        attempt: Option<u32>,
        step: &Move,
    ) -> Result<Changed, QueueError> {
        let now = self.clock();
        for _ in 0..TRIES_MAX {
            let Some((before, revision)) = self.record(&unit.key).await? else {
                return Ok(Changed::Superseded);
            };
            let after = match protocol::propose_change(&before, unit, attempt, step, now) {
                Change::Store(after) => after,
                Change::Over => return Ok(Changed::Over(Box::new(before))),
                Change::Done => return Ok(Changed::Done(Box::new(before))),
                Change::Superseded => return Ok(Changed::Superseded),
            };
            if self.update(&unit.key, &after, revision).await?.is_some() {
                if after.state.is_final() {
                    self.say(&unit.key, &after).await?;
                }
                return Ok(Changed::Made);
            }
        }
        Err(QueueError::Contended { tries: TRIES_MAX })
    }

    /// Publishes where a record stands.
    pub(super) async fn say(&self, key: &JobKey, record: &JobRecord) -> Result<(), QueueError> {
        self.ask("publish an event", |server, _| {
            server.say(key, record);
        })
        .await
    }

    /// Stores a unit; one at most is under its subject, and an older epoch's gives way.
    pub(super) async fn publish(&self, stream: Stream, unit: &WorkUnit) -> Result<(), QueueError> {
        let name = name_of(unit);
        for tried in 0..TRIES_MAX {
            if !self.is_calm() && self.timeline.once_in(PROMISED_ONE_IN) {
                let until = self.timeline.now() + self.timeline.between(100, 1_000);
                self.server.borrow_mut().promise(stream, unit, until);
            }
            let is_stored = self
                .ask("publish a unit", |server, now| {
                    server.publish(stream, unit, now)
                })
                .await?;
            if is_stored || self.plant == Plant::BelievesRefusal {
                return Ok(());
            }
            let live = self
                .ask("look at a unit", |server, _| server.live(stream, &name))
                .await?;
            match live {
                Some((sequence, live)) if protocol::replaces(unit, &live) => {
                    self.delete(stream, sequence).await?;
                }
                Some(_) => return Ok(()),
                None => {
                    self.timeline.sleep(5 * u64::from(tried)).await;
                }
            }
        }
        Err(QueueError::Contended { tries: TRIES_MAX })
    }

    /// Removes a message; one that is gone is fine.
    pub(super) async fn delete(&self, stream: Stream, sequence: u64) -> Result<(), QueueError> {
        self.ask("remove a message", |server, _| {
            server.delete(stream, sequence);
        })
        .await
    }

    /// Takes the most urgent unit of a stage.
    pub(super) async fn pull(&self, stage: Stage) -> Result<Option<Delivery>, QueueError> {
        self.ask("pull a unit", |server, now| {
            let until = self.out_until(server, now);
            server.pull(stage, now, until)
        })
        .await
    }

    /// Begins the acknowledge wait of a message anew.
    pub(super) async fn progress(&self, sequence: u64) -> Result<(), QueueError> {
        self.ask("report progress", |server, now| {
            let until = self.out_until(server, now);
            server.progress(sequence, until);
        })
        .await
    }

    /// Until when a unit is its worker's that is taken now: by the server's clock.
    fn out_until(&self, server: &Server, now: u64) -> UnixMillis {
        let time = if self.plant == Plant::LeasesByOwnClock {
            self.clock()
        } else {
            server.clock.time(now)
        };
        after(time, ACK_WAIT)
    }

    /// As `Queue::time`: what the server's clock shows.
    pub(super) async fn time(&self) -> Result<UnixMillis, QueueError> {
        self.ask("ask for the time", |server, now| server.clock.time(now))
            .await
    }

    /// Any other request, which may be repeated.
    pub(super) async fn ask<T>(
        &self,
        name: &'static str,
        act: impl FnMut(&mut Server, u64) -> T,
    ) -> Result<T, QueueError> {
        self.call(name, true, act).await
    }
}
