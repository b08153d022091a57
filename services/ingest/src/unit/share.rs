//! The waiting units of one (stage, pool, class), shared out among tenants by deficit round robin: each tenant in turn
//! gets credit by its weight and is served while the credit covers what its next unit costs. A tenant that floods waits
//! behind itself only. Within a tenant the unit whose job ends first goes first. Pure.
//!
//! Source: M. Shreedhar and G. Varghese, "Efficient fair queueing using deficit round robin", SIGCOMM 1995.

use std::collections::{BTreeMap, HashMap, VecDeque};

use medfleet_core::{TenantId, UnixMillis};

use super::Held;

/// Credit that a tenant gets a turn, times its weight. In units of [`cost`].
const QUANTUM: u64 = 1;

/// What tenants are due; those without an entry weigh 1.
pub(crate) type Weights = BTreeMap<TenantId, u32>;

/// The units that wait in one class.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    shares: HashMap<TenantId, Share>,
    /// Tenants that have units, the next one first. Holds exactly the keys of `shares`.
    turns: VecDeque<TenantId>,
}

#[derive(Debug, Default)]
struct Share {
    units: BTreeMap<Rank, Held>,
    credit: u64,
}

/// The order within a tenant: end of the job's time, then arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    expires: UnixMillis,
    sequence: u64,
}

impl Rank {
    pub(super) fn of(held: &Held) -> Self {
        Self {
            expires: held.unit.expires,
            sequence: held.sequence,
        }
    }

    pub(super) fn sequence(self) -> u64 {
        self.sequence
    }
}

/// What releasing a unit costs its tenant. A chunk of encode is about one second of device time by construction, and a
/// preprocess unit stands for its job; until a job's cost is estimated at accept, both count as one.
const fn cost(_: &Held) -> u64 {
    1
}

impl Waiting {
    pub(super) fn insert(&mut self, held: Held) {
        let tenant = &held.unit.key.tenant;
        let share = self.shares.entry(tenant.clone()).or_insert_with(|| {
            self.turns.push_back(tenant.clone());
            Share::default()
        });
        share.units.insert(Rank::of(&held), held);
    }

    /// Takes back a unit that was popped, as if it had not been.
    pub(super) fn put_back(&mut self, held: Held) {
        let (tenant, cost) = (held.unit.key.tenant.clone(), cost(&held));
        self.insert(held);
        if let Some(share) = self.shares.get_mut(&tenant) {
            share.credit += cost;
        }
    }

    /// The next unit by turn and weight.
    pub(super) fn pop(&mut self, weights: &Weights) -> Option<Held> {
        loop {
            let tenant = self.turns.front()?;
            let share = self.shares.get_mut(tenant)?;
            let next = share.units.first_entry()?;
            let cost = cost(next.get());
            if share.credit >= cost {
                share.credit -= cost;
                let held = next.remove();
                if share.units.is_empty() {
                    self.shares.remove(&held.unit.key.tenant);
                    self.turns.pop_front();
                }
                return Some(held);
            }
            let weight = weights.get(tenant).copied().unwrap_or(1).max(1);
            share.credit += QUANTUM * u64::from(weight);
            self.turns.rotate_left(1);
        }
    }

    /// Removes one unit.
    pub(super) fn remove(&mut self, tenant: &TenantId, rank: Rank) {
        let Some(share) = self.shares.get_mut(tenant) else {
            return;
        };
        share.units.remove(&rank);
        if share.units.is_empty() {
            self.shares.remove(tenant);
            self.turns.retain(|turn| turn != tenant);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Units that wait.
    pub(super) fn len(&self) -> u64 {
        self.shares
            .values()
            .map(|share| share.units.len() as u64)
            .sum()
    }
}
