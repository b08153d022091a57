//! One job and everything around it that the protocol relies on, as a value: its record, the messages, the blobs, the
//! workers and the processes of `ingest`, each at a point between two of its steps.

use std::collections::HashMap;

use super::aside::AsideStep;
use crate::{
    Class, Cost, Digest, JobId, JobKey, JobRecord, NewJob, PoolName, Pseudonyms, Stage, TaskKind,
    TenantId, UnixMillis, WorkUnit,
};

/// Kinds of units: preprocess, up to two chunks, decode, and a chunk that no job has.
pub(super) const UNITS: usize = 5;
/// The decode.
pub(super) const DECODE: u8 = 3;
/// A chunk beyond the job's.
pub(super) const FOREIGN: u8 = 4;
/// Epochs told apart: two replays.
pub(super) const EPOCHS: usize = 3;
/// Workers at most.
pub(super) const WORKERS: usize = 2;
/// Processes of `ingest` at most.
pub(super) const DESKS: usize = 4;

/// A record by its number in [`Model::record`].
pub(super) type RecordId = u16;

/// What may happen that is not the fleet's own doing, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Budget {
    /// A process dies at any point.
    pub(super) crashes: u8,
    /// A worker is paused past the acknowledge wait, and goes on later.
    pub(super) stalls: u8,
    /// A worker hands its unit back.
    pub(super) drains: u8,
    /// The work goes wrong in a way that another try may mend.
    pub(super) wrongs: u8,
    /// The work fails for good.
    pub(super) fails: u8,
    /// The tenant cancels.
    pub(super) cancels: u8,
    /// The time of the job runs out.
    pub(super) ends: u8,
    /// A dead letter is replayed.
    pub(super) replays: u8,
    /// The job is submitted.
    pub(super) submits: u8,
    /// A worker cannot read the unit that it was given.
    pub(super) unreads: u8,
    /// A unit that is handed back for later gives up its place.
    pub(super) asides: u8,
}

/// What one check explores.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) chunks: u32,
    pub(super) workers: usize,
    pub(super) desks: &'static [Role],
    pub(super) budget: Budget,
    pub(super) retries_max: u32,
    /// Reading and comparing are two steps, not one.
    pub(super) is_split: bool,
    /// Looking at what is queued under a name and replacing it are two steps, not one.
    pub(super) is_slow: bool,
    /// What is there that should not be.
    pub(super) planted: Option<Planted>,
    /// A mistake outside this crate.
    pub(super) flaw: Option<Flaw>,
}

/// A process of `ingest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Call,
    /// Finishes what a call left.
    Sweep,
    /// Releases what waits, one unit at a time.
    Release,
    /// Hands encoded jobs on to a hub: takes what waits for a decode.
    Edge,
}

/// Messages that no part of the fleet sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planted {
    /// A decode before there are frames; with an edge it waits for that.
    EarlyDecode,
    /// A chunk that the job does not have.
    ForeignChunk,
    /// A dead letter of a job that has not failed.
    Letter,
}

/// Mistakes in what surrounds the pure functions, to show that the order of the steps and the queue's promises matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A record is stored without comparing.
    BlindStore,
    /// The unit is acknowledged before what follows is queued.
    AcknowledgeFirst,
    /// The record changes before the outputs are stored.
    RecordFirst,
    /// A pending entry is removed whoever made it.
    PendingByKey,
    /// What is queued under a name is removed, whatever it is by now.
    ReplaceByName,
    /// A unit of a job that somebody else failed is acknowledged without its dead letter.
    OverIsDone,
    /// A fenced worker acknowledges.
    FencedAcknowledges,
    /// A unit gives up its place without a note.
    AsideUnnoted,
    /// The note of a job goes although one of its units is still with a worker.
    AsideForgotten,
    /// The note of a job that was set aside goes whoever made it.
    AsideByKey,
}

/// A message in a work queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Live {
    pub(super) epoch: u8,
    pub(super) is_out: bool,
}

/// A record as somebody has read it, and whether it is still the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) record: RecordId,
    pub(super) is_fresh: bool,
}

/// A unit in a worker's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Delivery {
    pub(super) unit: u8,
    pub(super) epoch: u8,
    /// Whether its message is still there.
    pub(super) is_live: bool,
    /// The attempt that this worker started, when it decodes.
    pub(super) attempt: Option<u8>,
}

/// Between two steps of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Put {
    Try,
    /// The one in its place is older; whether it is still that one.
    Replace(bool),
}

/// A change that a worker makes when its unit does not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wish {
    HandBack,
    Fail,
    FailExhausted,
    Expire,
}

/// How a delivery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    Done,
    Retry,
    Letter,
    Abort,
}

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// It has the unit.
    Taken,
    /// Its start is recorded; whether its outputs are durable.
    Work(bool),
    /// It changes the record.
    Change(Wish),
    /// It queues what follows: one bit a unit.
    Publish(u8, Put),
    Settle(End),
    /// Its unit gives up its place: the job is noted first.
    Aside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Worker {
    Idle,
    Busy(Delivery, Phase, Option<Seen>),
}

/// A process of `ingest` at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Desk {
    Idle,
    /// A submit, or the replay of the letter of an epoch; `noted`: its pending entry is the one that is there.
    Call {
        replay: Option<u8>,
        step: CallStep,
        noted: bool,
    },
    Sweep {
        noted: bool,
        step: CallStep,
    },
    /// A job that was set aside; `noted`: its note is the one that is there.
    Aside {
        noted: bool,
        step: AsideStep,
    },
    /// A unit that was seen in the intake; whether its message is still there.
    Release {
        unit: u8,
        epoch: u8,
        is_live: bool,
        step: ReleaseStep,
    },
    /// A decode that was seen in the intake; whether its message is still there, and whether all that is left is to remove it.
    Edge {
        epoch: u8,
        is_live: bool,
        is_over: bool,
    },
}

/// Steps of a call and of the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum CallStep {
    Note,
    Record,
    /// The sweep may have taken the entry for abandoned.
    NoteAgain(u8),
    /// The intake message of this epoch.
    Intake(u8, Put),
    Answer,
    Forget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ReleaseStep {
    Publish(Put),
    Remove,
}

/// What happened so far, for the properties only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Past {
    /// A client was told that the job is accepted.
    pub(super) is_answered: bool,
    /// What went wrong with a start of this epoch, all kinds and stages together.
    pub(super) mishaps: u8,
    /// Workers that died at work in this epoch, by stage.
    pub(super) kills: [u8; 3],
}

impl Past {
    pub(super) fn mishap(&mut self) {
        // No setting tells more of them apart.
        self.mishaps = (self.mishaps + 1).min(4);
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) record: Option<RecordId>,
    pub(super) now: u8,
    /// When the job of each epoch expires.
    pub(super) expires: [u8; EPOCHS],
    /// One bit an epoch.
    pub(super) frames: u8,
    /// One bit a chunk, by epoch.
    pub(super) tokens: [u8; EPOCHS],
    /// One bit an attempt.
    pub(super) results: u16,
    pub(super) is_pending: bool,
    /// There is a note that the job was set aside.
    pub(super) is_aside: bool,
    pub(super) intake: [Option<u8>; UNITS],
    pub(super) work: [Option<Live>; UNITS],
    /// One bit an epoch.
    pub(super) letters: u8,
    pub(super) workers: [Worker; WORKERS],
    pub(super) desks: [Desk; DESKS],
    pub(super) budget: Budget,
    pub(super) past: Past,
}

/// A scenario and the records that it has met.
pub(super) struct Model {
    pub(super) scenario: Scenario,
    records: Vec<JobRecord>,
    ids: HashMap<JobRecord, RecordId>,
    units: Vec<WorkUnit>,
}

impl Model {
    pub(super) fn new(scenario: Scenario) -> Self {
        let key = JobKey::new(
            TenantId::new("st-mary").expect("a good name"),
            JobId::from_bytes([1; 16]),
        );
        let unit = |stage, unit| WorkUnit {
            key: key.clone(),
            stage,
            pool: PoolName::new("default").expect("a good name"),
            class: Class::Routine,
            unit,
            epoch: 0,
            expires: UnixMillis(0),
            cost: Cost::default(),
        };
        Self {
            scenario,
            records: Vec::new(),
            ids: HashMap::new(),
            units: vec![
                unit(Stage::Preprocess, 0),
                unit(Stage::Encode, 0),
                unit(Stage::Encode, 1),
                unit(Stage::Decode, 0),
                unit(Stage::Encode, 7),
            ],
        }
    }

    pub(super) fn start(&mut self) -> World {
        let planted = |unit: u8, what| {
            (self.scenario.planted == Some(what)).then_some((
                unit,
                Live {
                    epoch: 0,
                    is_out: false,
                },
            ))
        };
        let mut work = [None; UNITS];
        let foreign = planted(FOREIGN, Planted::ForeignChunk);
        let early = planted(DECODE, Planted::EarlyDecode);
        let has_edge = self.scenario.desks.contains(&Role::Edge);
        let to_edge = early.filter(|_| has_edge);
        let early = early.filter(|_| !has_edge);
        for (unit, live) in foreign.into_iter().chain(early) {
            work[unit as usize] = Some(live);
        }
        // Without a client the job has been accepted already.
        let is_accepted = !self.scenario.desks.contains(&Role::Call);
        let record = is_accepted.then(|| self.id(self.accepted()));
        let mut intake = [None; UNITS];
        intake[0] = is_accepted.then_some(0);
        intake[DECODE as usize] = to_edge.map(|(_, live)| live.epoch);
        World {
            record,
            now: 0,
            expires: [1; EPOCHS],
            frames: 0,
            tokens: [0; EPOCHS],
            results: 0,
            is_pending: false,
            is_aside: false,
            intake,
            work,
            letters: u8::from(self.scenario.planted == Some(Planted::Letter)),
            workers: [Worker::Idle; WORKERS],
            desks: [Desk::Idle; DESKS],
            budget: self.scenario.budget,
            past: Past {
                is_answered: is_accepted,
                ..Past::default()
            },
        }
    }

    pub(super) fn record(&self, id: RecordId) -> &JobRecord {
        &self.records[id as usize]
    }

    pub(super) fn id(&mut self, record: JobRecord) -> RecordId {
        if let Some(id) = self.ids.get(&record) {
            return *id;
        }
        let id = RecordId::try_from(self.records.len()).expect("fewer records than that");
        self.records.push(record.clone());
        self.ids.insert(record, id);
        id
    }

    /// The message of a unit.
    pub(super) fn unit(&self, world: &World, unit: u8, epoch: u8) -> WorkUnit {
        WorkUnit {
            epoch: epoch.into(),
            expires: millis(world.expires[epoch as usize]),
            ..self.units[unit as usize].clone()
        }
    }

    pub(super) fn key(&self) -> &JobKey {
        &self.units[0].key
    }

    pub(super) fn stage(&self, unit: u8) -> Stage {
        self.units[unit as usize].stage
    }

    /// The number of a unit that a function of this crate has made.
    pub(super) fn number(&self, unit: &WorkUnit) -> u8 {
        let same = |known: &WorkUnit| (known.stage, known.unit) == (unit.stage, unit.unit);
        let number = self.units.iter().position(same);
        number.expect("one of the model's units") as u8
    }

    pub(super) fn accepted(&self) -> JobRecord {
        JobRecord::accepted(NewJob {
            pool: self.units[0].pool.clone(),
            class: Class::Routine,
            task: TaskKind::Report,
            image_count: self.scenario.chunks,
            body: Digest::new([1; 32]),
            study: Digest::new([2; 32]),
            pseudonyms: Pseudonyms::default(),
            accepted: UnixMillis::default(),
            expires: millis(1),
            traceparent: String::new(),
            model: String::new(),
            cost: Cost::default(),
        })
    }
}

/// The frames of an epoch: another preprocessing version may have made them.
pub(super) fn frames_digest(epoch: u8) -> Digest {
    Digest::new([10 + epoch; 32])
}

pub(super) fn result_digest(epoch: u8, attempt: u8) -> Digest {
    let mut bytes = [20; 32];
    bytes[0] = epoch;
    bytes[1] = attempt;
    Digest::new(bytes)
}

/// A step of the model's clock.
pub(super) fn millis(time: u8) -> UnixMillis {
    UnixMillis(i64::from(time) * 100)
}

impl World {
    /// Past the end of a job that ends now or before.
    pub(super) fn time(&self) -> UnixMillis {
        UnixMillis(millis(self.now).0 + 1)
    }

    /// Takes a message out of a work queue.
    pub(super) fn remove_work(&mut self, unit: u8) {
        self.work[unit as usize] = None;
        for worker in &mut self.workers {
            if let Worker::Busy(delivery, phase, _) = worker {
                if delivery.unit == unit {
                    delivery.is_live = false;
                }
                if let Phase::Publish(units, Put::Replace(same)) = phase
                    && units.trailing_zeros() == u32::from(unit)
                {
                    *same = false;
                }
            }
        }
        for desk in &mut self.desks {
            if let Desk::Release {
                unit: released,
                step: ReleaseStep::Publish(Put::Replace(same)),
                ..
            } = desk
                && *released == unit
            {
                *same = false;
            }
        }
    }

    /// Takes a message out of the intake.
    pub(super) fn remove_intake(&mut self, unit: u8) {
        self.intake[unit as usize] = None;
        for desk in &mut self.desks {
            match desk {
                Desk::Release {
                    unit: released,
                    is_live,
                    ..
                } if *released == unit => *is_live = false,
                Desk::Edge { is_live, .. } if unit == DECODE => *is_live = false,
                Desk::Call {
                    step: CallStep::Intake(_, Put::Replace(same)),
                    ..
                }
                | Desk::Sweep {
                    step: CallStep::Intake(_, Put::Replace(same)),
                    ..
                } if unit == 0 => *same = false,
                Desk::Aside { step, .. } => step.removed(unit),
                _ => {}
            }
        }
        for worker in &mut self.workers {
            if let Worker::Busy(_, Phase::Publish(units, Put::Replace(same)), _) = worker
                && units.trailing_zeros() == u32::from(unit)
            {
                *same = false;
            }
        }
    }

    /// The pending entry changes: nobody's is the one that is there any more.
    pub(super) fn renote(&mut self, is_pending: bool) {
        self.is_pending = is_pending;
        for desk in &mut self.desks {
            if let Desk::Call { noted, .. } | Desk::Sweep { noted, .. } = desk {
                *noted = false;
            }
        }
    }

    /// The note of a job that was set aside changes: nobody's is the one that is there any more.
    pub(super) fn renote_aside(&mut self, is_aside: bool) {
        self.is_aside = is_aside;
        for desk in &mut self.desks {
            if let Desk::Aside { noted, .. } = desk {
                *noted = false;
            }
        }
    }

    /// Equal worlds look equal: workers are interchangeable.
    pub(super) fn normalised(mut self) -> Self {
        self.workers.sort_by_key(|worker| match worker {
            Worker::Idle => (2, 0, 0),
            Worker::Busy(delivery, phase, _) => {
                let at = match phase {
                    Phase::Taken => 0,
                    Phase::Work(stored) => 1 + u8::from(*stored),
                    Phase::Change(_) => 3,
                    Phase::Publish(..) => 4,
                    Phase::Settle(_) => 5,
                    Phase::Aside => 6,
                };
                (1, delivery.unit, at)
            }
        });
        self
    }
}
