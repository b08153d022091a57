//! Every step that can be taken from a world. What is decided in a step is decided by the functions that the fleet runs.

use super::world::{
    CallStep, DECODE, Delivery, Desk, EPOCHS, Flaw, Live, Model, Planted, Put, Role, Seen, Worker,
    World, frames_digest, result_digest,
};
use crate::protocol::{Tried, first, propose, replaces};
use crate::{Chunks, Ended, JobRecord, JobState, Move, Outcome, invariant};

/// What a property says when it does not hold.
pub(super) type Wrong = &'static str;

pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) to: World,
    /// Whether the fleet takes it by itself: no fault, no client, no clock.
    pub(super) is_own: bool,
    pub(super) wrong: Option<Wrong>,
}

/// The steps found so far.
#[derive(Default)]
pub(super) struct Steps(pub(super) Vec<Step>);

impl Steps {
    pub(super) fn own(&mut self, name: &'static str, to: Result<World, Wrong>, from: &World) {
        self.add(name, to, from, true);
    }

    pub(super) fn outside(&mut self, name: &'static str, to: Result<World, Wrong>, from: &World) {
        self.add(name, to, from, false);
    }

    fn add(&mut self, name: &'static str, to: Result<World, Wrong>, from: &World, is_own: bool) {
        let (to, wrong) = match to {
            Ok(to) => (to.normalised(), None),
            Err(wrong) => (from.clone(), Some(wrong)),
        };
        self.0.push(Step {
            name,
            to,
            is_own,
            wrong,
        });
    }
}

impl Model {
    /// Every step from a world.
    pub(super) fn steps(&mut self, world: &World) -> Vec<Step> {
        let mut steps = Steps::default();
        for at in 0..self.scenario.workers {
            self.worker_steps(world, at, &mut steps);
        }
        for (at, role) in self.scenario.desks.iter().enumerate() {
            self.desk_steps(world, at, *role, &mut steps);
        }
        if !self.scenario.desks.contains(&Role::Release) {
            self.release_at_once(world, &mut steps);
        }
        Self::redeliver(world, &mut steps);
        self.hub(world, &mut steps);
        self.tenant_and_time(world, &mut steps);
        steps.0
    }

    /// A unit whose worker is silent for the acknowledge wait comes again.
    fn redeliver(world: &World, steps: &mut Steps) {
        for (unit, live) in world.work.iter().enumerate() {
            let Some(live) = live.filter(|live| live.is_out) else {
                continue;
            };
            let is_held = world.workers.iter().any(|worker| match worker {
                Worker::Busy(delivery, ..) => delivery.is_live && delivery.unit as usize == unit,
                Worker::Idle => false,
            });
            let mut to = world.clone();
            to.work[unit] = Some(Live {
                is_out: false,
                ..live
            });
            if !is_held {
                steps.own("the unit of a silent worker comes again", Ok(to), world);
            } else if world.budget.stalls > 0 {
                to.budget.stalls -= 1;
                to.past.mishap();
                let name = "a worker pauses past the acknowledge wait";
                steps.outside(name, Ok(to), world);
            }
        }
    }

    /// The dispatcher, where it is not looked at closely.
    fn release_at_once(&mut self, world: &World, steps: &mut Steps) {
        for (unit, waiting) in world.intake.iter().enumerate() {
            let Some(epoch) = *waiting else { continue };
            if unit == DECODE as usize && self.scenario.desks.contains(&Role::Edge) {
                continue;
            }
            let mut to = world.clone();
            self.put(&mut to, (unit as u8, epoch), true, Put::Try);
            to.remove_intake(unit as u8);
            steps.own("release", Ok(to), world);
        }
    }

    /// The hub ends what was handed on to it, and the edge hears of it.
    fn hub(&mut self, world: &World, steps: &mut Steps) {
        let Some(id) = world.record else { return };
        let record = self.record(id).clone();
        if record.state != JobState::Forwarded {
            return;
        }
        let mut to = world.clone();
        let (epoch, attempt) = (record.epoch as u8, record.attempt as u8 + 1);
        to.results |= 1 << attempt;
        let ended = Ended {
            outcome: Outcome::Completed(result_digest(epoch, attempt)),
            attempt: attempt.into(),
            chunks: Chunks::default(),
        };
        let seen = Seen {
            record: id,
            is_fresh: true,
        };
        let moved = self.move_once(&mut to, seen, Some(epoch), &Move::End(ended));
        steps.own("the hub completes the job", moved.map(|_| to), world);
    }

    fn tenant_and_time(&mut self, world: &World, steps: &mut Steps) {
        let Some(id) = world.record else { return };
        let record = self.record(id).clone();
        let seen = Seen {
            record: id,
            is_fresh: true,
        };
        if world.budget.cancels > 0 && !record.state.is_final() {
            let mut to = world.clone();
            to.budget.cancels -= 1;
            let moved = self.move_once(&mut to, seen, None, &Move::Cancel);
            steps.outside("the tenant cancels", moved.map(|_| to), world);
        }
        if world.budget.ends > 0 {
            let mut to = world.clone();
            to.budget.ends -= 1;
            to.now += 1;
            steps.outside("time passes", Ok(to), world);
        }
        if world.time() > record.expires && !record.state.is_final() {
            let mut to = world.clone();
            let epoch = Some(record.epoch as u8);
            let moved = self.move_once(&mut to, seen, epoch, &Move::Expire);
            steps.outside("the dispatcher ends the job", moved.map(|_| to), world);
        }
    }

    /// One turn of the loop that every change of a record goes through. `None` when somebody was faster.
    pub(super) fn move_once(
        &mut self,
        world: &mut World,
        seen: Seen,
        epoch: Option<u8>,
        step: &Move,
    ) -> Result<Option<Tried>, Wrong> {
        let before = self.record(seen.record).clone();
        let tried = propose(&before, epoch.map(u32::from), step, world.time());
        if let Tried::Moved(after) = &tried
            && !self.store(world, seen, after)?
        {
            return Ok(None);
        }
        Ok(Some(tried))
    }

    /// Compare-and-set, and what must hold of every record that is stored. False when somebody was faster.
    pub(super) fn store(
        &mut self,
        world: &mut World,
        seen: Seen,
        after: &JobRecord,
    ) -> Result<bool, Wrong> {
        if self.record(seen.record) == after {
            return Ok(true);
        }
        if !seen.is_fresh && self.scenario.flaw != Some(Flaw::BlindStore) {
            return Ok(false);
        }
        let latest = world
            .record
            .expect("a record is changed only once it is there");
        let before = self.record(latest).clone();
        if let Some(wrong) = invariant::violated_by_step(&before, after) {
            return Err(wrong);
        }
        let epoch = after.epoch as usize;
        let here = epoch as u8;
        if after.frames.is_some()
            && (after.frames != Some(frames_digest(here)) || world.frames & (1 << epoch) == 0)
        {
            return Err("the record names frames of another epoch, or that are not stored");
        }
        if after.chunks.done_bitmap & !u32::from(world.tokens[epoch]) != 0 {
            return Err("a chunk is marked encoded whose tokens are not stored");
        }
        if let Some(result) = after.result
            && (result != result_digest(here, after.attempt as u8)
                || world.results & (1 << after.attempt) == 0)
        {
            return Err("the result is of another epoch or attempt, or is not stored");
        }
        if before.epoch == after.epoch
            && before.state == JobState::Encoding
            && before.chunks.done_bitmap & !after.chunks.done_bitmap != 0
        {
            return Err("a chunk that was done is not done any more");
        }
        if after.epoch > before.epoch {
            world.past.mishaps = 0;
            world.past.kills = [0; 3];
        }
        world.record = Some(self.id(after.clone()));
        for worker in &mut world.workers {
            if let Worker::Busy(_, _, Some(seen)) = worker {
                seen.is_fresh = false;
            }
        }
        Ok(true)
    }

    /// A step of a publish: to the workers, or to where units wait. What is left to do, if anything.
    pub(super) fn put(
        &mut self,
        world: &mut World,
        (unit, epoch): (u8, u8),
        to_work: bool,
        put: Put,
    ) -> Option<Put> {
        let at = unit as usize;
        let queued = if to_work {
            world.work[at].map(|live| live.epoch)
        } else {
            world.intake[at]
        };
        let remove = |world: &mut World| {
            if to_work {
                world.remove_work(unit);
            } else {
                world.remove_intake(unit);
            }
        };
        match (put, queued) {
            (Put::Try, Some(queued)) => {
                let (new, old) = (
                    self.unit(world, unit, epoch),
                    self.unit(world, unit, queued),
                );
                if !replaces(&new, &old) {
                    return None;
                }
                if self.scenario.is_slow {
                    return Some(Put::Replace(true));
                }
                remove(world);
            }
            (Put::Replace(same), queued) => {
                let by_name = self.scenario.flaw == Some(Flaw::ReplaceByName);
                if same || (by_name && queued.is_some()) {
                    remove(world);
                }
                return Some(Put::Try);
            }
            (Put::Try, None) => {}
        }
        if to_work {
            world.work[at] = Some(Live {
                epoch,
                is_out: false,
            });
        } else {
            world.intake[at] = Some(epoch);
        }
        None
    }

    /// Whether a replay of this epoch's letter fits into the model.
    pub(super) fn can_replay(&self, world: &World, epoch: usize) -> bool {
        let is_real = self.scenario.planted == Some(Planted::Letter) || world.record.is_some();
        world.letters & (1 << epoch) != 0 && epoch + 1 < EPOCHS && is_real
    }

    /// The epoch of the first unit of a job, if it may not be queued yet.
    pub(super) fn first(&self, record: &JobRecord) -> Option<u8> {
        first(self.key(), record).map(|unit| unit.epoch as u8)
    }

    /// Every worker's and every desk's death.
    pub(super) fn crash_worker(&self, world: &World, at: usize, delivery: &Delivery) -> World {
        let mut to = world.clone();
        to.budget.crashes -= 1;
        let current = world.record.map(|id| self.record(id).epoch);
        if current == Some(delivery.epoch.into()) {
            to.past.mishap();
            if matches!(
                world.workers[at],
                Worker::Busy(_, super::world::Phase::Work(_), _)
            ) {
                to.past.kills[self.stage(delivery.unit) as usize] += 1;
            }
        }
        to.workers[at] = Worker::Idle;
        to
    }

    pub(super) fn crash_desk(world: &World, at: usize) -> World {
        let mut to = world.clone();
        to.budget.crashes -= 1;
        to.desks[at] = Desk::Idle;
        to
    }
}

impl CallStep {
    /// Where a call goes on once it knows the record.
    pub(super) fn after(first: Option<u8>, or: Self) -> Self {
        first.map_or(or, |epoch| Self::Intake(epoch, Put::Try))
    }
}
