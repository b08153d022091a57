//! A unit that gives up its place in the queue: its job is noted, the unit is removed, and the sweep queues by the job's record
//! what it waits for.

use super::step::Wrong;
use super::worker::place;
use super::world::{Delivery, Desk, End, Flaw, Model, Phase, Put, World};
use crate::protocol::{Change, outstanding, propose_change};
use crate::{Failure, FailureReason, JobState, Move};

/// Steps of the sweep with a job that was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum AsideStep {
    /// The record is read.
    Record,
    /// The first unit is looked for among those with workers.
    Look(Rest),
    /// It is not there, and is queued.
    Put(Rest, Put),
    /// The note goes, unless a unit was there.
    Forget(bool),
}

/// What is left of a job's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Rest {
    /// One bit a unit.
    units: u8,
    epoch: u8,
    /// One before these was with workers.
    is_out: bool,
}

impl Rest {
    fn unit(self) -> u8 {
        self.units.trailing_zeros() as u8
    }

    fn after_first(self, was_out: bool) -> AsideStep {
        let rest = Self {
            units: self.units & !(1 << self.unit()),
            is_out: self.is_out || was_out,
            ..self
        };
        rest.begin()
    }

    const fn begin(self) -> AsideStep {
        match self.units {
            0 => AsideStep::Forget(self.is_out),
            _ => AsideStep::Look(self),
        }
    }
}

impl AsideStep {
    /// The unit that is being put where units wait is not what was there any more.
    pub(super) fn removed(&mut self, unit: u8) {
        if let Self::Put(rest, Put::Replace(same)) = self
            && rest.unit() == unit
        {
            *same = false;
        }
    }
}

impl Model {
    /// A unit that its worker's release cannot read: only its subject is known, and so its job.
    pub(super) fn unread(
        &self,
        mut world: World,
        at: usize,
        delivery: Delivery,
    ) -> Result<World, Wrong> {
        world.budget.unreads -= 1;
        let Some(id) = world.record else {
            return self.end(world, at, delivery, End::Retry);
        };
        let before = self.record(id).clone();
        if before.state == JobState::Forwarded {
            return self.end(world, at, delivery, End::Done);
        }
        // Taken for one of the epoch that its job is in.
        let delivery = Delivery {
            epoch: before.epoch as u8,
            ..delivery
        };
        let unit = self.unit(&world, delivery.unit, delivery.epoch);
        let step = Move::Fail(Failure::new(FailureReason::Internal, "x"));
        match propose_change(&before, &unit, None, &step, world.time()) {
            // Another release may be able to read it.
            Change::Store(_) => Ok(place(world, at, delivery, Phase::Aside, None)),
            Change::Over => self.over(world, at, delivery, &before),
            Change::Done => self.follow(world, at, delivery, &before),
            Change::Superseded => self.end(world, at, delivery, End::Done),
        }
    }

    /// Notes the job; then the unit goes.
    pub(super) fn note_aside(&self, mut world: World, at: usize, delivery: Delivery) -> World {
        if self.scenario.flaw != Some(Flaw::AsideUnnoted) {
            world.renote_aside(true);
        }
        place(world, at, delivery, Phase::Settle(End::Done), None)
    }

    /// The sweep: queues what the job waits for. The note stays as long as a unit is with workers: whoever has set it aside may
    /// not have come to remove it yet.
    pub(super) fn queue_again(
        &mut self,
        mut world: World,
        at: usize,
        noted: bool,
        step: AsideStep,
    ) -> World {
        let flaw = self.scenario.flaw;
        let step = match step {
            AsideStep::Record => {
                let id = world.record.expect("a job that was set aside is there");
                let record = self.record(id);
                let units: u8 = outstanding(self.key(), record)
                    .iter()
                    .fold(0, |units, unit| units | 1 << self.number(unit));
                let rest = Rest {
                    units,
                    epoch: record.epoch as u8,
                    is_out: false,
                };
                rest.begin()
            }
            AsideStep::Look(rest) if world.work[rest.unit() as usize].is_some() => {
                rest.after_first(true)
            }
            AsideStep::Look(rest) => AsideStep::Put(rest, Put::Try),
            AsideStep::Put(rest, put) => {
                match self.put(&mut world, (rest.unit(), rest.epoch), false, put) {
                    Some(put) => AsideStep::Put(rest, put),
                    None => rest.after_first(false),
                }
            }
            AsideStep::Forget(is_out) => {
                let stays = is_out && flaw != Some(Flaw::AsideForgotten);
                if !stays && (noted || flaw == Some(Flaw::AsideByKey)) {
                    world.renote_aside(false);
                }
                world.desks[at] = Desk::Idle;
                return world;
            }
        };
        world.desks[at] = Desk::Aside { noted, step };
        world
    }
}
