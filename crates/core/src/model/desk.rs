//! The processes of `ingest`: calls that submit and replay, the sweep, the dispatcher.

use super::aside::AsideStep;
use super::step::{Steps, Wrong};
use super::world::{
    CallStep, DECODE, Desk, Flaw, Model, Put, ReleaseStep, Role, Seen, World, millis,
};
use crate::protocol::{Tried, is_wanted};
use crate::{Class, JobId, JobRecord, Move};

impl Model {
    pub(super) fn desk_steps(&mut self, world: &World, at: usize, role: Role, steps: &mut Steps) {
        let desk = world.desks[at];
        if desk != Desk::Idle && world.budget.crashes > 0 {
            steps.outside(
                "a process of ingest dies",
                Ok(Self::crash_desk(world, at)),
                world,
            );
        }
        match desk {
            Desk::Idle => self.open(world, at, role, steps),
            Desk::Call {
                replay,
                step,
                noted,
            } => {
                let to = self.call(world.clone(), at, (replay, step, noted));
                steps.own("a call goes on", to, world);
            }
            Desk::Sweep { noted, step } => {
                let to = self.sweep(world.clone(), at, noted, step);
                steps.own("the sweep goes on", Ok(to), world);
            }
            Desk::Aside { noted, step } => {
                let to = self.queue_again(world.clone(), at, noted, step);
                steps.own("the sweep queues a job again", Ok(to), world);
            }
            Desk::Edge {
                epoch,
                is_live,
                is_over,
            } => {
                let to = self.hand_on(world.clone(), at, (epoch, is_live, is_over));
                steps.own("the edge goes on", to, world);
            }
            Desk::Release {
                unit,
                epoch,
                is_live,
                step,
            } => {
                let desk = (unit, epoch, is_live);
                for to in self.release(world, at, desk, step) {
                    steps.own("a release goes on", Ok(to), world);
                }
            }
        }
    }

    fn open(&mut self, world: &World, at: usize, role: Role, steps: &mut Steps) {
        match role {
            Role::Call => {
                if world.budget.submits > 0 {
                    let mut to = world.clone();
                    to.budget.submits -= 1;
                    // A job that is known needs no entry.
                    let step = match world.record.map(|id| self.record(id)) {
                        Some(record) => CallStep::after(self.first(record), CallStep::Answer),
                        None => CallStep::Note,
                    };
                    to.desks[at] = Desk::Call {
                        replay: None,
                        step,
                        noted: false,
                    };
                    steps.outside("a client submits", Ok(to), world);
                }
                let letters =
                    (0..super::world::EPOCHS).filter(|epoch| self.can_replay(world, *epoch));
                for epoch in letters.filter(|_| world.budget.replays > 0) {
                    let mut to = world.clone();
                    to.budget.replays -= 1;
                    to.desks[at] = Desk::Call {
                        replay: Some(epoch as u8),
                        step: CallStep::Note,
                        noted: false,
                    };
                    steps.outside("a dead letter is replayed", Ok(to), world);
                }
            }
            Role::Sweep => Self::open_sweep(world, at, steps),
            Role::Release => {
                for (unit, waiting) in world.intake.iter().enumerate() {
                    let Some(epoch) = *waiting else { continue };
                    let mut to = world.clone();
                    to.desks[at] = Desk::Release {
                        unit: unit as u8,
                        epoch,
                        is_live: true,
                        step: ReleaseStep::Publish(Put::Try),
                    };
                    steps.own("the dispatcher sees a unit", Ok(to), world);
                }
            }
            Role::Edge => {
                if let Some(epoch) = world.intake[DECODE as usize] {
                    let mut to = world.clone();
                    to.desks[at] = Desk::Edge {
                        epoch,
                        is_live: true,
                        is_over: false,
                    };
                    steps.own("the edge sees a decode", Ok(to), world);
                }
            }
        }
    }

    fn open_sweep(world: &World, at: usize, steps: &mut Steps) {
        // An entry of a replay is young for as long as the replay may still change the record.
        if world.is_pending && !is_young(world) {
            let mut to = world.clone();
            to.desks[at] = Desk::Sweep {
                noted: true,
                step: CallStep::Record,
            };
            steps.own("the sweep finds an entry", Ok(to), world);
        }
        if world.is_aside {
            let mut to = world.clone();
            to.desks[at] = Desk::Aside {
                noted: true,
                step: AsideStep::Record,
            };
            steps.own("the sweep finds a job that was set aside", Ok(to), world);
        }
    }

    /// An encoded job goes to the hub: the record first, then its message goes. The hub takes it once, by its request id.
    fn hand_on(
        &mut self,
        mut world: World,
        at: usize,
        (epoch, is_live, is_over): (u8, bool, bool),
    ) -> Result<World, Wrong> {
        if is_over {
            if is_live {
                world.remove_intake(DECODE);
            }
            world.desks[at] = Desk::Idle;
            return Ok(world);
        }
        let tried = match world.record {
            Some(id) => {
                let step = Move::Forward {
                    job: JobId::from_bytes([epoch; 16]),
                    class: Class::Routine,
                };
                let seen = Seen {
                    record: id,
                    is_fresh: true,
                };
                self.move_once(&mut world, seen, Some(epoch), &step)?
            }
            None => None,
        };
        world.desks[at] = match tried {
            // Its images are not all encoded: it is looked at again.
            Some(Tried::Refused { record, .. }) if !record.state.is_final() => Desk::Idle,
            _ => Desk::Edge {
                epoch,
                is_live,
                is_over: true,
            },
        };
        Ok(world)
    }

    fn call(
        &mut self,
        mut world: World,
        at: usize,
        (replay, step, mut noted): (Option<u8>, CallStep, bool),
    ) -> Result<World, Wrong> {
        let step = match step {
            CallStep::Note => {
                world.renote(true);
                noted = true;
                CallStep::Record
            }
            CallStep::Record => match replay {
                None => self.create(&mut world, noted),
                Some(epoch) => self.replay(&mut world, epoch)?,
            },
            CallStep::NoteAgain(epoch) => {
                world.renote(true);
                noted = true;
                CallStep::Intake(epoch, Put::Try)
            }
            CallStep::Intake(epoch, put) => match self.put(&mut world, (0, epoch), false, put) {
                Some(put) => CallStep::Intake(epoch, put),
                None => CallStep::Answer,
            },
            CallStep::Answer => {
                match replay {
                    None => world.past.is_answered = true,
                    Some(epoch) => world.letters &= !(1 << epoch),
                }
                CallStep::Forget
            }
            CallStep::Forget => {
                self.forget(&mut world, noted);
                world.desks[at] = Desk::Idle;
                return Ok(world);
            }
        };
        world.desks[at] = Desk::Call {
            replay,
            step,
            noted,
        };
        Ok(world)
    }

    fn create(&mut self, world: &mut World, noted: bool) -> CallStep {
        if let Some(id) = world.record {
            return CallStep::after(self.first(self.record(id)), CallStep::Answer);
        }
        let record = self.accepted();
        world.expires[0] = world.now + 1;
        let record = JobRecord {
            expires: millis(world.now + 1),
            ..record
        };
        world.record = Some(self.id(record));
        // So late that the sweep has dropped the entry.
        if noted {
            CallStep::Intake(0, Put::Try)
        } else {
            CallStep::NoteAgain(0)
        }
    }

    fn replay(&mut self, world: &mut World, epoch: u8) -> Result<CallStep, Wrong> {
        let Some(id) = world.record else {
            return Ok(CallStep::Forget);
        };
        let expires = world.now + 1;
        let step = Move::Replay {
            expires: millis(expires),
        };
        let seen = Seen {
            record: id,
            is_fresh: true,
        };
        let tried = self.move_once(world, seen, Some(epoch), &step)?;
        Ok(match tried.expect("what was just read is the latest") {
            Tried::Moved(record) => {
                world.expires[record.epoch as usize] = expires;
                CallStep::Intake(record.epoch as u8, Put::Try)
            }
            Tried::Refused { record, .. } | Tried::OtherEpoch { record } => {
                if record.epoch > u32::from(epoch) {
                    CallStep::after(self.first(&record), CallStep::Answer)
                } else {
                    CallStep::Forget
                }
            }
            Tried::Missing => CallStep::Forget,
        })
    }

    fn forget(&self, world: &mut World, noted: bool) {
        let by_key = self.scenario.flaw == Some(Flaw::PendingByKey);
        if noted || by_key {
            world.renote(false);
        }
    }

    fn sweep(&mut self, mut world: World, at: usize, noted: bool, step: CallStep) -> World {
        let step = match step {
            CallStep::Intake(epoch, put) => match self.put(&mut world, (0, epoch), false, put) {
                Some(put) => CallStep::Intake(epoch, put),
                None => CallStep::Forget,
            },
            CallStep::Forget => {
                self.forget(&mut world, noted);
                world.desks[at] = Desk::Idle;
                return world;
            }
            _ => {
                let record = world.record.map(|id| self.record(id));
                let first = record.and_then(|record| self.first(record));
                CallStep::after(first, CallStep::Forget)
            }
        };
        if let Desk::Sweep { noted, .. } = world.desks[at] {
            world.desks[at] = Desk::Sweep { noted, step };
        }
        world
    }

    fn release(
        &mut self,
        world: &World,
        at: usize,
        (unit, epoch, is_live): (u8, u8, bool),
        step: ReleaseStep,
    ) -> Vec<World> {
        let desk = |world: &mut World, step| {
            if let Desk::Release { is_live, .. } = world.desks[at] {
                world.desks[at] = Desk::Release {
                    unit,
                    epoch,
                    is_live,
                    step,
                };
            }
        };
        let mut to = world.clone();
        let mut all = Vec::new();
        match step {
            ReleaseStep::Publish(put) => {
                let record = world.record.map(|id| self.record(id));
                let message = self.unit(world, unit, epoch);
                // The look at the job comes only for a unit that has waited.
                if put == Put::Try && record.is_some_and(|record| !is_wanted(&message, record)) {
                    let mut dropped = world.clone();
                    desk(&mut dropped, ReleaseStep::Remove);
                    all.push(dropped);
                }
                let left = self.put(&mut to, (unit, epoch), true, put);
                desk(
                    &mut to,
                    left.map_or(ReleaseStep::Remove, ReleaseStep::Publish),
                );
            }
            ReleaseStep::Remove => {
                if is_live {
                    to.remove_intake(unit);
                }
                to.desks[at] = Desk::Idle;
            }
        }
        all.push(to);
        all
    }
}

fn is_young(world: &World) -> bool {
    world.desks.iter().any(|desk| {
        let Desk::Call {
            replay: Some(_),
            step: CallStep::Record,
            noted,
        } = desk
        else {
            return false;
        };
        *noted
    })
}
