//! The dispatcher's view of one (stage, pool): how much released work may be unfinished there, and which class is released next.
//! Pure.

use std::collections::VecDeque;

use medfleet_core::{Class, Stage, TenantId, UnixMillis};
use medfleet_queue::Outstanding;

use super::in_flight::InFlight;
use super::pauses::Pauses;
use super::share::{Waiting, price};
use super::{CLASSES, Held, Rules, slot};

/// Assumed cost, in milliseconds, of a unit that an earlier leader released, as long as this one has released none here.
const UNKNOWN_MILLIS: u64 = 1_000;

/// Units of one (stage, pool) by class.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) held: [Waiting; CLASSES],
    /// Expected milliseconds of each released, unfinished unit, in order of release.
    released: [VecDeque<u64>; CLASSES],
    /// Cost of the latest released unit.
    latest: u64,
    /// Units that its workers take at a time, all together.
    slots: u64,
    /// Units of STAT that they take beside those.
    stat_slots: u64,
    /// The last release failed, so that nothing is released here until the next recount.
    is_stopped: bool,
    /// For each class, how often a higher one was released since its own last release while it had units waiting.
    passed: [u32; CLASSES],
    /// The class released last.
    last: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            held: Default::default(),
            released: Default::default(),
            latest: UNKNOWN_MILLIS,
            slots: 0,
            stat_slots: 0,
            is_stopped: false,
            passed: [0; CLASSES],
            last: CLASSES,
        }
    }
}

/// The rules and limits that hold for releases of one (stage, pool) now.
pub(super) struct Terms<'a> {
    pub(super) rules: &'a Rules,
    pub(super) pauses: &'a Pauses,
    pub(super) in_flight: &'a InFlight,
    /// What is left of the next stage's intake is for STAT.
    pub(super) is_next_full: bool,
    pub(super) stage: Stage,
}

impl Terms<'_> {
    /// Whether units of this class of the tenant are held back now: by a pause; or, which does not apply to STAT, by the next
    /// stage's full intake or, for the first stage, by the tenant's limit of jobs in the stages.
    fn hold(&self, tenant: &TenantId, class: usize) -> bool {
        let is_full = || {
            let is_let_in = self.stage == Stage::Preprocess;
            self.is_next_full
                || (is_let_in && self.in_flight.is_full(&self.rules.in_flight_max, tenant))
        };
        self.pauses.hold(tenant, class) || (class != slot(Class::Stat) && is_full())
    }

    /// Slots that are kept for a class from those below it.
    fn reserved(&self, class: usize) -> u64 {
        match self.stage {
            Stage::Decode => self.rules.decode_reserved.get(class).copied().unwrap_or(0),
            Stage::Preprocess | Stage::Encode => 0,
        }
    }
}

impl Lane {
    /// Takes the next unit, if there is room, and counts it as released.
    pub(super) fn next(&mut self, terms: &Terms<'_>, now: UnixMillis) -> Option<Held> {
        if self.is_stopped {
            return None;
        }
        let class = self.choose(terms, now)?;
        // By turn also where the class has waited too long: the oldest units may all be those of one tenant's flood.
        let is_held = |tenant: &_| terms.hold(tenant, class);
        let held = self.held[class].pop(&terms.rules.weights, is_held)?;
        for lower in class + 1..CLASSES {
            if !self.held[lower].is_empty() {
                self.passed[lower] = self.passed[lower].saturating_add(1);
            }
        }
        self.passed[class] = 0;
        self.last = class;
        self.count(&held);
        Some(held)
    }

    /// The highest class that has a unit and room for it; but every `aged_every` releases a lower one that has waited too long.
    fn choose(&self, terms: &Terms<'_>, now: UnixMillis) -> Option<usize> {
        let rules = terms.rules;
        let has_room = self.has_room(rules);
        let is_open = |class: &usize| {
            let is_held = |tenant: &_| terms.hold(tenant, *class);
            (has_room || self.has_place_apart(rules, *class) || self.released[*class].is_empty())
                && self.leaves_reserve(terms, *class)
                && self.held[*class].has_any(is_held)
        };
        let first = (0..CLASSES).find(is_open)?;
        // A patient is waiting: an aged unit goes before a STAT unit only if another STAT unit was released right before.
        let stat_was_served = first != slot(Class::Stat) || self.last == first;
        let aged = (first + 1..CLASSES).find(|class| {
            // The cheap conditions come first: to find the oldest unit, many that are held back may have to be passed.
            if !stat_was_served || self.passed[*class] + 1 < rules.aged_every || !is_open(class) {
                return false;
            }
            let is_held = |tenant: &_| terms.hold(tenant, *class);
            let since = self.held[*class].oldest(is_held);
            since.is_some_and(|since| now.0.saturating_sub(since.0) >= rules.age_millis)
        });
        aged.or(Some(first))
    }

    /// Whether more may be released: not every slot has a unit yet, or the released work is less than all slots do in the time that
    /// work is released ahead.
    fn has_room(&self, rules: &Rules) -> bool {
        let units: u64 = (0..CLASSES).map(|class| self.units_in_slots(class)).sum();
        let of_class = |class: usize| self.released[class].iter().skip(self.apart(class));
        let millis: u64 = (0..CLASSES).flat_map(of_class).sum();
        self.is_allowed(rules)
            && (units < self.slots || millis < self.slots.saturating_mul(rules.ahead_millis))
    }

    /// Whether one of the slots is free that are reserved for this class at the workers.
    fn has_place_apart(&self, rules: &Rules, class: usize) -> bool {
        self.released[class].len() < self.apart(class) && self.is_allowed(rules)
    }

    /// Whether the number of released units, whatever their cost, is below its limit.
    fn is_allowed(&self, rules: &Rules) -> bool {
        let units: usize = self.released.iter().map(VecDeque::len).sum();
        (units as u64) < rules.released_units_max
    }

    /// Whether one more unit of a class still leaves the slots free that are kept for higher classes. One slot may always be used,
    /// and where there is no slot nothing can be kept.
    fn leaves_reserve(&self, terms: &Terms<'_>, class: usize) -> bool {
        let above = (0..class).map(|above| (terms.reserved(above), self.units_in_slots(above)));
        let (reserved, unused) = above.fold((0, 0), |(reserved, unused), (kept, out)| {
            (reserved + kept, unused + kept.saturating_sub(out))
        });
        let out: u64 = (0..CLASSES).map(|class| self.units_in_slots(class)).sum();
        reserved == 0 || self.slots == 0 || out < self.slots.saturating_sub(unused).max(1)
    }

    /// How many units of a class fit into slots that workers have for it alone.
    fn apart(&self, class: usize) -> usize {
        if class == slot(Class::Stat) {
            usize::try_from(self.stat_slots).unwrap_or(usize::MAX)
        } else {
            0
        }
    }

    /// The released units of a class beyond those that fit into slots of their own: they count against the slots of all classes.
    fn units_in_slots(&self, class: usize) -> u64 {
        self.released[class].len().saturating_sub(self.apart(class)) as u64
    }

    fn count(&mut self, held: &Held) {
        self.latest = held.unit.cost.at(held.unit.stage);
        self.released[slot(held.unit.class)].push_back(self.latest);
    }

    /// A unit that was counted right now is not out after all: the latest of its cost, as others may have been counted behind it.
    fn take_back(&mut self, held: &Held) {
        let cost = held.unit.cost.at(held.unit.stage);
        let released = &mut self.released[slot(held.unit.class)];
        let place = released.iter().rposition(|counted| *counted == cost);
        match place {
            Some(place) => released.remove(place),
            None => released.pop_back(),
        };
    }

    /// A unit that was taken turned out to need no release, or could not be released: its tenant has paid for nothing.
    pub(super) fn uncount(&mut self, held: &Held) {
        let class = slot(held.unit.class);
        self.take_back(held);
        self.held[class].refund(&held.unit.key.tenant, price(held));
    }

    /// Takes a unit back whose release failed; nothing more is tried here until the next recount.
    pub(super) fn put_back(&mut self, held: Held) {
        let class = slot(held.unit.class);
        self.take_back(&held);
        self.is_stopped = true;
        self.held[class].put_back(held);
    }

    /// Replaces what was counted here by what the queue says, and lets releases go on. The queue knows units only: those
    /// released first are taken for those that are done.
    pub(super) fn recount(&mut self, outstanding: &Outstanding) {
        for class in Class::ALL {
            let counted = outstanding.of(*class);
            let units = usize::try_from(counted.waiting + counted.in_flight).unwrap_or(usize::MAX);
            let released = &mut self.released[slot(*class)];
            let done = released.len().saturating_sub(units);
            released.drain(..done);
            // Of the leader before this one.
            while released.len() < units {
                released.push_front(self.latest);
            }
        }
        self.is_stopped = false;
    }

    pub(super) fn set_slots(&mut self, slots: u64) {
        self.slots = slots;
    }

    pub(super) fn set_stat_slots(&mut self, slots: u64) {
        self.stat_slots = slots;
    }

    /// Whether units wait that a recount may find room for.
    pub(super) fn is_full(&self, terms: &Terms<'_>) -> bool {
        let waits = |class: usize| self.held[class].has_any(|tenant| terms.hold(tenant, class));
        !self.is_stopped && (0..CLASSES).any(waits)
    }

    /// The classes of which units are released and not known to be done.
    pub(super) fn classes_out(&self) -> Vec<Class> {
        let all = Class::ALL.iter().copied();
        all.filter(|class| !self.released[slot(*class)].is_empty())
            .collect()
    }

    /// Units that wait, of all classes.
    pub(super) fn waiting(&self) -> u64 {
        self.held.iter().map(Waiting::len).sum()
    }

    /// Held and released units of a class.
    pub(super) fn units(&self, class: Class) -> u64 {
        self.held[slot(class)].len() + self.released[slot(class)].len() as u64
    }
}
