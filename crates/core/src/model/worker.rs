//! A worker: takes a unit, starts it, makes its outputs durable, records them, queues what follows, settles.

use super::step::{Steps, Wrong};
use super::world::{
    DECODE, Delivery, End, Flaw, Model, Phase, Put, Role, Seen, Wish, Worker, World, frames_digest,
    result_digest,
};
use crate::protocol::{
    Change, Setback, Standing, Start, Tried, after_refused, after_start, next, propose_change,
    standing, verdict_of_failure, verdict_of_final,
};
use crate::{Failure, FailureReason, JobRecord, Move, Stage, Verdict};

impl Model {
    pub(super) fn worker_steps(&mut self, world: &World, at: usize, steps: &mut Steps) {
        let (delivery, phase, seen) = match world.workers[at] {
            Worker::Busy(delivery, phase, seen) => (delivery, phase, seen),
            Worker::Idle => {
                // Idle workers are alike: one of them is enough.
                if !world.workers[..at].contains(&Worker::Idle) {
                    Self::take(world, at, steps);
                }
                return;
            }
        };
        if world.budget.crashes > 0 {
            let to = self.crash_worker(world, at, &delivery);
            steps.outside("a worker dies", Ok(to), world);
        }
        if phase == Phase::Taken && world.budget.unreads > 0 {
            let to = self.unread(world.clone(), at, delivery);
            steps.outside("a worker cannot read its unit", to, world);
        }
        match phase {
            Phase::Taken | Phase::Work(true) | Phase::Change(_) => {
                self.record_steps(world, (at, delivery, phase), seen, steps);
                if let Phase::Work(_) = phase {
                    self.interruptions(world, at, delivery, steps);
                }
            }
            Phase::Work(false) => {
                let to = self.output(world.clone(), at, delivery, seen);
                steps.own("a worker stores its outputs", Ok(to), world);
                self.interruptions(world, at, delivery, steps);
            }
            Phase::Publish(units, put) => {
                let to = self.publish(world.clone(), (at, delivery), units, put);
                steps.own("a worker queues what follows", to, world);
            }
            Phase::Settle(end) => {
                if end == End::Retry && world.budget.asides > 0 {
                    let mut to = place(world.clone(), at, delivery, Phase::Aside, None);
                    to.budget.asides -= 1;
                    steps.outside("a worker gives up the place of its unit", Ok(to), world);
                }
                let to = settle(world.clone(), at, end);
                steps.own("a worker settles", Ok(to), world);
            }
            Phase::Aside => {
                let to = self.note_aside(world.clone(), at, delivery);
                steps.own("a worker notes that its job waits", Ok(to), world);
            }
        }
    }

    /// Steps that need the record: it is read, then compared and stored.
    fn record_steps(
        &mut self,
        world: &World,
        (at, delivery, phase): (usize, Delivery, Phase),
        seen: Option<Seen>,
        steps: &mut Steps,
    ) {
        let now = Seen {
            record: world.record.unwrap_or(0),
            is_fresh: world.record.is_some(),
        };
        if seen.is_none() && self.scenario.is_split && now.is_fresh {
            let to = place(world.clone(), at, delivery, phase, Some(now));
            steps.own("a worker reads the record", Ok(to), world);
            return;
        }
        let seen = seen.unwrap_or(now);
        match phase {
            Phase::Taken => {
                let to = self.begin(world.clone(), at, delivery, seen);
                steps.own("a worker starts its unit", to, world);
            }
            Phase::Change(wish) => {
                let to = self.change(world.clone(), (at, delivery), wish, seen);
                steps.own("a worker changes the record", to, world);
            }
            _ => {
                let to = self.advance(world.clone(), at, delivery, seen);
                steps.own("a worker records its outputs", to, world);
            }
        }
    }

    fn take(world: &World, at: usize, steps: &mut Steps) {
        for (unit, live) in world.work.iter().enumerate() {
            let Some(live) = live.filter(|live| !live.is_out) else {
                continue;
            };
            let mut to = world.clone();
            let delivery = Delivery {
                unit: unit as u8,
                epoch: live.epoch,
                is_live: true,
                attempt: None,
            };
            to.work[unit] = Some(super::world::Live {
                is_out: true,
                ..live
            });
            to.workers[at] = Worker::Busy(delivery, Phase::Taken, None);
            steps.own("a worker takes a unit", Ok(to), world);
        }
    }

    fn begin(
        &mut self,
        mut world: World,
        at: usize,
        delivery: Delivery,
        seen: Seen,
    ) -> Result<World, Wrong> {
        let unit = self.unit(&world, delivery.unit, delivery.epoch);
        if world.time() > unit.expires {
            return Ok(place(
                world,
                at,
                delivery,
                Phase::Change(Wish::Expire),
                None,
            ));
        }
        if world.record.is_none() {
            return self.end(world, at, delivery, End::Done);
        }
        let stage = unit.stage;
        let step = Move::Start {
            stage,
            unit: unit.unit,
            retries_max: self.scenario.retries_max,
        };
        let Some(tried) = self.move_once(&mut world, seen, Some(delivery.epoch), &step)? else {
            return Ok(place(world, at, delivery, Phase::Taken, None));
        };
        if matches!(tried, Tried::Moved(_)) {
            let units = if stage == Stage::Encode {
                self.scenario.chunks
            } else {
                1
            };
            let kills = u32::from(world.past.kills[stage as usize]);
            if kills >= units + self.scenario.retries_max {
                return Err("a unit is started that has killed as many workers as it may");
            }
            if !delivery.is_live {
                // Its message was removed by one that had been paused: the unit may be queued for another by now.
                world.past.mishap();
            }
        }
        match after_start(&unit, tried) {
            Start::Work(record) => {
                let attempt = (stage == Stage::Decode).then_some(record.attempt as u8);
                let seen = self.scenario.is_split.then_some(Seen {
                    record: self.id(record),
                    is_fresh: true,
                });
                let delivery = Delivery {
                    attempt,
                    ..delivery
                };
                let is_stored = self.scenario.flaw == Some(Flaw::RecordFirst);
                Ok(place(world, at, delivery, Phase::Work(is_stored), seen))
            }
            Start::Repeat(record) => self.follow(world, at, delivery, &record),
            Start::Announce(record) => {
                let end = end_of(verdict_of_final(&record));
                self.end(world, at, delivery, end)
            }
            Start::Exhausted(_) => Ok(place(
                world,
                at,
                delivery,
                Phase::Change(Wish::FailExhausted),
                None,
            )),
            Start::Drop => self.end(world, at, delivery, End::Done),
            Start::Later => self.end(world, at, delivery, End::Retry),
        }
    }

    /// What stops work from outside, or from within.
    fn interruptions(&mut self, world: &World, at: usize, delivery: Delivery, steps: &mut Steps) {
        let Some(id) = world.record else { return };
        let unit = self.unit(world, delivery.unit, delivery.epoch);
        let record = self.record(id).clone();
        let attempt = delivery.attempt.map(u32::from);
        let standing = standing(&unit, attempt, &record, world.time());
        let stop = |phase| Ok(place(world.clone(), at, delivery, phase, None));
        let to = match &standing {
            Standing::Mine => {
                let done = is_finished(&record, &unit);
                if record.epoch != unit.epoch || attempt.is_some_and(|a| a != record.attempt) {
                    Some(Err("a fenced worker has seen it and goes on"))
                } else if record.state.is_final() || done {
                    Some(Err("a worker has seen that its unit is over and goes on"))
                } else if world.time() > record.expires {
                    Some(Err(
                        "a worker has seen that the job's time is over and goes on",
                    ))
                } else {
                    None
                }
            }
            Standing::Superseded => Some(self.end(world.clone(), at, delivery, self.fenced())),
            Standing::Done(record) => Some(self.follow(world.clone(), at, delivery, record)),
            Standing::Over(record) => Some(self.over(world.clone(), at, delivery, record)),
            Standing::Expired => Some(stop(Phase::Change(Wish::Expire))),
        };
        if let Some(to) = to {
            steps.own("a heartbeat stops a worker", to, world);
        }
        if world.budget.drains > 0 {
            let mut to = place(
                world.clone(),
                at,
                delivery,
                Phase::Change(Wish::HandBack),
                None,
            );
            to.budget.drains -= 1;
            steps.outside("a worker drains", Ok(to), world);
        }
        if world.budget.fails > 0 {
            let mut to = place(world.clone(), at, delivery, Phase::Change(Wish::Fail), None);
            to.budget.fails -= 1;
            steps.outside("a unit fails for good", Ok(to), world);
        }
        if world.budget.wrongs > 0 {
            let mut to = world.clone();
            to.budget.wrongs -= 1;
            if record.epoch == unit.epoch {
                to.past.mishap();
            }
            let end = match standing {
                Standing::Superseded => End::Abort,
                _ => End::Retry,
            };
            let to = self.end(to, at, delivery, end);
            steps.outside("a unit goes wrong", to, world);
        }
    }

    fn output(
        &mut self,
        mut world: World,
        at: usize,
        delivery: Delivery,
        seen: Option<Seen>,
    ) -> World {
        let epoch = delivery.epoch as usize;
        match self.stage(delivery.unit) {
            Stage::Preprocess => world.frames |= 1 << epoch,
            Stage::Encode => {
                let chunk = self.unit(&world, delivery.unit, delivery.epoch).unit;
                world.tokens[epoch] |= 1 << chunk;
            }
            Stage::Decode => world.results |= 1 << delivery.attempt.unwrap_or(0),
        }
        place(world, at, delivery, Phase::Work(true), seen)
    }

    fn advance(
        &mut self,
        mut world: World,
        at: usize,
        delivery: Delivery,
        seen: Seen,
    ) -> Result<World, Wrong> {
        let unit = self.unit(&world, delivery.unit, delivery.epoch);
        let attempt = delivery.attempt.unwrap_or(0);
        let step = match unit.stage {
            Stage::Preprocess => Move::Preprocessed {
                frames: frames_digest(delivery.epoch),
                chunks: self.scenario.chunks,
                frame_count: self.scenario.chunks,
            },
            Stage::Encode => Move::ChunkEncoded { chunk: unit.unit },
            Stage::Decode => Move::Complete {
                attempt: attempt.into(),
                result: result_digest(delivery.epoch, attempt),
            },
        };
        let before = world.record.map(|id| self.record(id).clone());
        let Some(tried) = self.move_once(&mut world, seen, Some(delivery.epoch), &step)? else {
            return Ok(place(world, at, delivery, Phase::Work(true), None));
        };
        match tried {
            Tried::Moved(record) => {
                let before = before.expect("a record that moved was there");
                if before != record && before.epoch != unit.epoch {
                    return Err("work of an older epoch changed the record");
                }
                if self.scenario.flaw == Some(Flaw::AcknowledgeFirst) && delivery.is_live {
                    world.remove_work(delivery.unit);
                }
                self.follow(world, at, delivery, &record)
            }
            Tried::Refused { reason, record } => match after_refused(&reason) {
                Setback::Over => self.over(world, at, delivery, &record),
                Setback::Superseded => {
                    let end = self.fenced();
                    self.end(world, at, delivery, end)
                }
                Setback::Repeat => self.follow(world, at, delivery, &record),
                Setback::Fail(_) => Ok(place(world, at, delivery, Phase::Change(Wish::Fail), None)),
            },
            Tried::OtherEpoch { .. } => self.end(world, at, delivery, End::Done),
            Tried::Missing => {
                let end = self.fenced();
                self.end(world, at, delivery, end)
            }
        }
    }

    fn change(
        &mut self,
        mut world: World,
        (at, delivery): (usize, Delivery),
        wish: Wish,
        seen: Seen,
    ) -> Result<World, Wrong> {
        if world.record.is_none() {
            return self.end(world, at, delivery, End::Done);
        }
        let unit = self.unit(&world, delivery.unit, delivery.epoch);
        let before = self.record(seen.record).clone();
        let fail = |reason| Move::Fail(Failure::new(reason, "x"));
        let step = match wish {
            Wish::HandBack => Move::HandBack { stage: unit.stage },
            Wish::Fail => fail(FailureReason::Integrity),
            Wish::FailExhausted => fail(FailureReason::AttemptsExhausted),
            Wish::Expire => Move::Expire,
        };
        let attempt = match wish {
            Wish::HandBack | Wish::Fail => delivery.attempt.map(u32::from),
            Wish::FailExhausted | Wish::Expire => None,
        };
        let end = match propose_change(&before, &unit, attempt, &step, world.time()) {
            Change::Store(after) => {
                if !self.store(&mut world, seen, &after)? {
                    return Ok(place(world, at, delivery, Phase::Change(wish), None));
                }
                if let Some(wrong) = self.wrong_change(&world, &before, &unit, (wish, attempt)) {
                    return Err(wrong);
                }
                match after.failure {
                    Some(failure) => end_of(verdict_of_failure(failure)),
                    None if wish == Wish::HandBack => End::Retry,
                    None => End::Done,
                }
            }
            Change::Over => match wish {
                Wish::HandBack => End::Retry,
                Wish::Fail | Wish::FailExhausted | Wish::Expire => {
                    return self.over(world, at, delivery, &before);
                }
            },
            Change::Done => return self.follow(world, at, delivery, &before),
            Change::Superseded => match wish {
                Wish::HandBack | Wish::Fail | Wish::FailExhausted => self.fenced(),
                Wish::Expire => End::Done,
            },
        };
        self.end(world, at, delivery, end)
    }

    fn wrong_change(
        &self,
        world: &World,
        before: &JobRecord,
        unit: &crate::WorkUnit,
        (wish, attempt): (Wish, Option<u32>),
    ) -> Option<Wrong> {
        if before.epoch != unit.epoch {
            return Some("a worker of an older epoch ended or changed a job");
        }
        if attempt.is_some_and(|attempt| attempt != before.attempt) {
            return Some("a fenced worker changed a record");
        }
        let fails = matches!(wish, Wish::Fail | Wish::FailExhausted);
        if fails && is_finished(before, unit) {
            return Some("a job failed for a unit that was done");
        }
        let few = u32::from(world.past.mishaps) <= self.scenario.retries_max;
        if wish == Wish::FailExhausted && few {
            return Some("a unit was given up on that did not go wrong often enough");
        }
        None
    }

    /// Queues what follows, then acknowledges.
    pub(super) fn follow(
        &self,
        world: World,
        at: usize,
        delivery: Delivery,
        record: &JobRecord,
    ) -> Result<World, Wrong> {
        let unit = self.unit(&world, delivery.unit, delivery.epoch);
        let units = next(&unit, record)
            .iter()
            .fold(0, |units, unit| units | 1 << self.number(unit));
        if units == 0 {
            return self.end(world, at, delivery, End::Done);
        }
        Ok(place(
            world,
            at,
            delivery,
            Phase::Publish(units, Put::Try),
            None,
        ))
    }

    fn publish(
        &mut self,
        mut world: World,
        (at, delivery): (usize, Delivery),
        units: u8,
        put: Put,
    ) -> Result<World, Wrong> {
        let unit = units.trailing_zeros() as u8;
        // What it waits for besides a slot is an edge: where there is none, it is released at once.
        let to_work = unit == DECODE && !self.scenario.desks.contains(&Role::Edge);
        let left = self.put(&mut world, (unit, delivery.epoch), to_work, put);
        // The queue may have removed this worker's own message.
        let Worker::Busy(delivery, ..) = world.workers[at] else {
            return Err("a worker lost its place");
        };
        let phase = match left {
            Some(put) => Phase::Publish(units, put),
            None => {
                let units = units & !(1 << unit);
                if units == 0 {
                    return self.end(world, at, delivery, End::Done);
                }
                Phase::Publish(units, Put::Try)
            }
        };
        Ok(place(world, at, delivery, phase, None))
    }

    /// The job has ended.
    pub(super) fn over(
        &self,
        world: World,
        at: usize,
        delivery: Delivery,
        record: &JobRecord,
    ) -> Result<World, Wrong> {
        let end = match self.scenario.flaw {
            Some(Flaw::OverIsDone) => End::Done,
            _ => end_of(verdict_of_final(record)),
        };
        self.end(world, at, delivery, end)
    }

    fn fenced(&self) -> End {
        match self.scenario.flaw {
            Some(Flaw::FencedAcknowledges) => End::Done,
            _ => End::Abort,
        }
    }

    /// A decision to settle; a fenced worker leaves its successor's message alone.
    pub(super) fn end(
        &self,
        world: World,
        at: usize,
        delivery: Delivery,
        end: End,
    ) -> Result<World, Wrong> {
        let record = world.record.map(|id| self.record(id));
        if let (Some(record), Some(attempt)) = (record, delivery.attempt)
            && end != End::Abort
            && record.epoch == u32::from(delivery.epoch)
            && !record.state.is_final()
            && record.attempt != u32::from(attempt)
            && !self.scenario.is_split
        {
            return Err("a fenced worker settles its successor's message");
        }
        Ok(place(world, at, delivery, Phase::Settle(end), None))
    }
}

fn settle(mut world: World, at: usize, end: End) -> World {
    let Worker::Busy(delivery, ..) = world.workers[at] else {
        return world;
    };
    let unit = delivery.unit as usize;
    match end {
        End::Letter => {
            world.letters |= 1 << delivery.epoch;
            return place(world, at, delivery, Phase::Settle(End::Done), None);
        }
        End::Done if delivery.is_live => world.remove_work(delivery.unit),
        End::Retry if delivery.is_live => {
            if let Some(live) = &mut world.work[unit] {
                live.is_out = false;
            }
        }
        End::Done | End::Retry | End::Abort => {}
    }
    world.workers[at] = Worker::Idle;
    world
}

pub(super) fn place(
    mut world: World,
    at: usize,
    mut delivery: Delivery,
    phase: Phase,
    seen: Option<Seen>,
) -> World {
    // Whether its message is there is the world's to say.
    if let Worker::Busy(placed, ..) = world.workers[at] {
        delivery.is_live = placed.is_live;
    }
    world.workers[at] = Worker::Busy(delivery, phase, seen);
    world
}

fn end_of(verdict: Verdict) -> End {
    match verdict {
        Verdict::Done => End::Done,
        Verdict::Retry { .. } => End::Retry,
        Verdict::Reject(_) => End::Letter,
        Verdict::Abort => End::Abort,
    }
}

/// The property's own idea of a unit that is finished.
fn is_finished(record: &JobRecord, unit: &crate::WorkUnit) -> bool {
    match unit.stage {
        Stage::Preprocess => record.frames.is_some(),
        Stage::Encode => record.chunks.done_bitmap & (1 << unit.unit) != 0,
        Stage::Decode => record.state.is_final(),
    }
}
