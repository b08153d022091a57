//! What the dispatcher releases next: pure, over an index of the intake. Classes go in strict order, except for units that have
//! waited too long (`lane`); within a class the tenants take turns by cost (`share`).
//! For each (stage, pool) the released, unfinished work stays below what its live slots can do soon. One unit of each class may
//! always be released, so that a pool without workers still shows a backlog and can be scaled up from zero.
//! Units of STAT take first the slots that workers have for them alone, and count nowhere else as long as there are such.

mod in_flight;
mod lane;
pub mod ledger;
mod pauses;
mod share;
mod shelf;

use std::collections::{BTreeMap, HashMap, HashSet};

use medfleet_core::{Class, JobKey, PoolName, Stage, TenantId, UnixMillis, WorkUnit};
use medfleet_queue::{Headers, IntakeEntry, Outstanding};

use in_flight::InFlight;
pub use in_flight::InFlightMax;
use lane::{Lane, Terms};
pub use pauses::Pauses;
use share::Rank;
pub use share::Weights;
pub(crate) use shelf::{Removal, Shelf};

const CLASSES: usize = Class::ALL.len();

/// Units that are left for a while at most, such as those of a shard of the records that is away.
const LEFT_MAX: usize = 4096;

/// Slots kept for each class from those below it; the lowest class has none below.
pub type Reserved = [u64; CLASSES - 1];

/// Where released units are counted together.
pub type LaneKey = (Stage, PoolName);

/// What an operator has decided about releasing.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What each tenant's turn is worth.
    pub weights: Weights,
    /// How far ahead of its slots the work of a (stage, pool) is released.
    pub ahead_millis: u64,
    /// Units of a (stage, pool) that may be out, whatever they cost.
    pub released_units_max: u64,
    /// A unit that has waited so long is aged.
    pub age_millis: i64,
    /// While a class has aged units, one of so many releases is of that class.
    pub aged_every: u32,
    /// Slots of decode that are kept for each class from those below it.
    pub decode_reserved: Reserved,
    /// Jobs of a tenant that may be in the stages.
    pub in_flight_max: InFlightMax,
}

/// A unit that waits in the intake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub unit: WorkUnit,
    /// Its place in the intake of its stage.
    pub sequence: u64,
    /// Trace context.
    pub headers: Headers,
    /// Since when it waits.
    pub stored_at: UnixMillis,
}

/// Where a waiting unit's message is in the intake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Whose intake.
    pub stage: Stage,
    /// Where in it.
    pub sequence: u64,
}

impl Held {
    /// Where its message is.
    pub fn place(&self) -> Place {
        Place {
            stage: self.unit.stage,
            sequence: self.sequence,
        }
    }
}

impl From<IntakeEntry> for Held {
    fn from(entry: IntakeEntry) -> Self {
        let IntakeEntry {
            unit,
            sequence,
            headers,
            stored_at,
        } = entry;
        Self {
            unit,
            sequence,
            headers,
            stored_at,
        }
    }
}

/// The units of one (stage, pool, class), for the backlog gauge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Of which stage and pool.
    pub lane: LaneKey,
    pub class: Class,
    /// Held plus released and unfinished.
    pub units: u64,
}

/// The intake in memory.
#[derive(Debug)]
pub struct Index {
    rules: Rules,
    pauses: Pauses,
    in_flight: InFlight,
    /// Units that may wait at a stage before only STAT is let on towards it.
    waiting_max: u64,
    lanes: BTreeMap<LaneKey, Lane>,
    /// Where the units of a job are held, to find them when the job ends.
    of_job: HashMap<JobKey, Vec<Waits>>,
    /// Units that could not be released for a reason of their own.
    left: Vec<Held>,
}

impl Index {
    /// An empty one.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            pauses: Pauses::default(),
            in_flight: InFlight::default(),
            waiting_max: u64::MAX,
            lanes: BTreeMap::new(),
            of_job: HashMap::new(),
            left: Vec::new(),
        }
    }

    /// Adds a unit that waits, unless it is here already: a stream may be read anew from its beginning.
    pub fn insert(&mut self, held: Held) {
        if self.is_held(&held) {
            return;
        }
        self.remember(&held);
        self.in_flight.wait(&held.unit);
        let lane = self.lanes.entry(lane_of(&held.unit)).or_default();
        lane.held[slot(held.unit.class)].insert(held);
    }

    /// Takes the units to release now, at most `most`, and counts them as released.
    pub fn take(&mut self, most: usize, now: UnixMillis) -> Vec<Held> {
        let mut taken = Vec::new();
        let before_full = Stage::ALL.iter().copied();
        let before_full: Vec<Stage> = before_full
            .filter(|stage| self.is_next_full(*stage))
            .collect();
        for ((stage, _), lane) in &mut self.lanes {
            while taken.len() < most {
                let terms = Terms {
                    rules: &self.rules,
                    pauses: &self.pauses,
                    in_flight: &self.in_flight,
                    is_next_full: before_full.contains(stage),
                    stage: *stage,
                };
                let Some(held) = lane.next(&terms, now) else {
                    break;
                };
                self.in_flight.go(*stage, &held.unit.key.tenant);
                taken.push(held);
            }
        }
        for held in &taken {
            self.forget_place(held);
        }
        taken
    }

    /// Takes a unit back whose release failed, and stops its (stage, pool) until the next recount.
    pub fn put_back(&mut self, held: Held) {
        self.remember(&held);
        self.in_flight.wait(&held.unit);
        let lane = self.lanes.entry(lane_of(&held.unit)).or_default();
        lane.put_back(held);
    }

    /// A unit whose release failed for a reason of its own, such as a record that this release cannot read: its (stage, pool)
    /// goes on without it until [`Index::try_left`]. Beyond so many, as [`Index::put_back`].
    pub fn leave(&mut self, held: Held) {
        if self.left.len() >= LEFT_MAX {
            return self.put_back(held);
        }
        self.uncount(&held);
        self.in_flight.wait(&held.unit);
        self.left.push(held);
    }

    /// Lets the units that were left be tried again.
    pub fn try_left(&mut self) {
        for held in std::mem::take(&mut self.left) {
            self.in_flight.go(held.unit.stage, &held.unit.key.tenant);
            self.insert(held);
        }
    }

    /// A unit that was taken turned out to need no release.
    pub fn uncount(&mut self, held: &Held) {
        if let Some(lane) = self.lanes.get_mut(&lane_of(&held.unit)) {
            lane.uncount(held);
        }
    }

    /// Removes the units of a job that are of this epoch or an older one, and says which intake messages they were: a late
    /// word of how an epoch ended takes nothing from the one after it.
    pub fn remove_job(&mut self, key: &JobKey, epoch: u32) -> Vec<Place> {
        let waits = self.of_job.remove(key).unwrap_or_default();
        let (over, newer): (Vec<_>, Vec<_>) =
            waits.into_iter().partition(|unit| unit.epoch <= epoch);
        if !newer.is_empty() {
            self.of_job.insert(key.clone(), newer);
        }
        for unit in &over {
            if let Some(lane) = self.lanes.get_mut(&unit.lane) {
                lane.held[slot(unit.class)].remove(&key.tenant, unit.rank);
                self.in_flight.go(unit.lane.0, &key.tenant);
            }
        }
        let places = over.into_iter().map(|unit| Place {
            stage: unit.lane.0,
            sequence: unit.rank.sequence(),
        });
        let mut places: Vec<Place> = places.collect();
        let is_over = |held: &Held| held.unit.key == *key && held.unit.epoch <= epoch;
        for held in self.left.iter().filter(|held| is_over(held)) {
            self.in_flight.go(held.unit.stage, &key.tenant);
            places.push(held.place());
        }
        self.left.retain(|held| !is_over(held));
        places
    }

    /// Replaces what was counted here by what the queue says, and lets releases go on.
    pub fn recount(&mut self, key: &LaneKey, outstanding: &Outstanding) {
        self.lanes
            .entry(key.clone())
            .or_default()
            .recount(outstanding);
    }

    /// Takes how many units the workers of a (stage, pool) take at a time.
    pub fn set_slots(&mut self, key: &LaneKey, slots: u64) {
        self.lanes.entry(key.clone()).or_default().set_slots(slots);
    }

    /// Takes how many units of STAT these workers take at a time beside those.
    pub fn set_stat_slots(&mut self, key: &LaneKey, slots: u64) {
        let lane = self.lanes.entry(key.clone()).or_default();
        lane.set_stat_slots(slots);
    }

    /// Takes how many units may wait at a stage before only STAT is let on towards it.
    pub fn set_waiting_max(&mut self, most: u64) {
        self.waiting_max = most;
    }

    /// Takes what operators hold back now. Whether that is something else than before.
    pub fn set_pauses(&mut self, pauses: Pauses) -> bool {
        std::mem::replace(&mut self.pauses, pauses) != self.pauses
    }

    /// Takes how many jobs of each tenant have not ended. Needed where tenants have limits of what is in the stages.
    pub fn set_open_jobs(&mut self, open: HashMap<TenantId, u64>) {
        self.in_flight.set_open(open);
    }

    /// Takes whose jobs wait behind the stages in such numbers that only STAT jobs of theirs are let in.
    pub fn set_behind(&mut self, behind: HashSet<TenantId>) {
        self.in_flight.set_behind(behind);
    }

    /// Every (stage, pool) that holds units and has no room for them: a recount may find some.
    pub fn full(&self) -> Vec<LaneKey> {
        let full = self
            .lanes
            .iter()
            .filter(|((stage, _), lane)| lane.is_full(&self.terms(*stage)));
        full.map(|(key, _)| key.clone()).collect()
    }

    /// As [`Index::full`], each with the classes of which something is out: nothing of the others can have ended there, so that
    /// a count of them would find no room. A count of [`Index::recount`] that leaves them at nothing changes nothing of them.
    pub fn full_and_out(&self) -> Vec<(LaneKey, Vec<Class>)> {
        let full = self.full().into_iter().map(|key| {
            let out = self.lanes.get(&key).map(Lane::classes_out);
            (key, out.unwrap_or_default())
        });
        full.collect()
    }

    /// Every (stage, pool) seen so far.
    pub fn lanes(&self) -> Vec<LaneKey> {
        self.lanes.keys().cloned().collect()
    }

    /// Held and released units, for the gauge.
    pub fn backlog(&self) -> Vec<Backlog> {
        let lanes = self.lanes.iter().flat_map(|(key, lane)| {
            Class::ALL.iter().map(|class| Backlog {
                lane: key.clone(),
                class: *class,
                units: lane.units(*class),
            })
        });
        lanes.collect()
    }

    fn terms(&self, stage: Stage) -> Terms<'_> {
        Terms {
            rules: &self.rules,
            pauses: &self.pauses,
            in_flight: &self.in_flight,
            is_next_full: self.is_next_full(stage),
            stage,
        }
    }

    /// Whether so many units wait at a stage behind this one that what is left of its intake is for STAT: what is let on here
    /// would take that room.
    fn is_next_full(&self, stage: Stage) -> bool {
        let next: &[Stage] = match stage {
            // A job without images has nothing to encode.
            Stage::Preprocess => &[Stage::Encode, Stage::Decode],
            Stage::Encode => &[Stage::Decode],
            Stage::Decode => &[],
        };
        next.iter().any(|next| {
            let there = self.lanes.iter().filter(|((stage, _), _)| stage == next);
            let waiting: u64 = there.map(|(_, lane)| lane.waiting()).sum();
            waiting >= self.waiting_max
        })
    }

    fn remember(&mut self, held: &Held) {
        let waits = Waits {
            lane: lane_of(&held.unit),
            class: held.unit.class,
            rank: Rank::of(held),
            epoch: held.unit.epoch,
        };
        let of_job = self.of_job.entry(held.unit.key.clone()).or_default();
        of_job.push(waits);
    }

    fn is_held(&self, held: &Held) -> bool {
        let (rank, unit) = (Rank::of(held), &held.unit);
        let is_same = |waits: &Waits| {
            waits.rank == rank && waits.lane.0 == unit.stage && waits.lane.1 == unit.pool
        };
        let waits = self.of_job.get(&unit.key);
        waits.is_some_and(|waits| waits.iter().any(is_same))
    }

    fn forget_place(&mut self, held: &Held) {
        if let Some(waits) = self.of_job.get_mut(&held.unit.key) {
            waits.retain(|unit| unit.lane.0 != held.unit.stage || unit.rank != Rank::of(held));
            if waits.is_empty() {
                self.of_job.remove(&held.unit.key);
            }
        }
    }
}

/// Where a unit of a job waits.
#[derive(Debug)]
struct Waits {
    lane: LaneKey,
    class: Class,
    rank: Rank,
    epoch: u32,
}

fn lane_of(unit: &WorkUnit) -> LaneKey {
    (unit.stage, unit.pool.clone())
}

/// Position of a class, in order of service.
const fn slot(class: Class) -> usize {
    class as usize
}

#[cfg(test)]
mod fairness;
#[cfg(test)]
mod tests;
