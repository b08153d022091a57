//! The waiting units of one (stage, pool, class), shared out among tenants by deficit round robin: each tenant in turn
//! gets credit by its weight and is served while the credit covers what its next unit costs. A tenant that floods waits
//! behind itself only. Within a tenant the unit whose job ends first goes first. Pure.
//!
//! Source: M. Shreedhar and G. Varghese, "Efficient fair queueing using deficit round robin", SIGCOMM 1995. A turn is worth
//! one millisecond times the weight, so that units of any cost interleave finely; turns in which nobody could be served are
//! taken all at once.

use std::collections::{BTreeMap, HashMap, VecDeque};

use medfleet_core::{Stage, TenantId, UnixMillis};

use super::Held;

/// What tenants are due; those without an entry weigh 1.
pub type Weights = BTreeMap<TenantId, u32>;

/// The units that wait in one class.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    shares: HashMap<TenantId, Share>,
    /// Tenants that have units, the next one first. Holds exactly the keys of `shares`.
    turns: VecDeque<TenantId>,
    /// All units in order of arrival.
    by_age: BTreeMap<u64, (TenantId, UnixMillis)>,
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

/// What releasing a unit costs its tenant, in milliseconds of slots. With the first unit of a job all of its work is let in,
/// later units stand for their own.
pub(super) fn price(held: &Held) -> u64 {
    let cost = &held.unit.cost;
    let millis = match held.unit.stage {
        Stage::Preprocess => cost.whole(),
        stage => cost.at(stage),
    };
    millis.max(1)
}

fn weight(weights: &Weights, tenant: &TenantId) -> u64 {
    u64::from(weights.get(tenant).copied().unwrap_or(1).max(1))
}

impl Waiting {
    pub(super) fn insert(&mut self, held: Held) {
        let (tenant, rank) = (&held.unit.key.tenant, Rank::of(&held));
        let share = self.shares.entry(tenant.clone()).or_insert_with(|| {
            self.turns.push_back(tenant.clone());
            Share::default()
        });
        let entry = (tenant.clone(), held.stored_at);
        self.by_age.insert(rank.sequence, entry);
        share.units.insert(rank, held);
    }

    /// Takes back a unit that was popped, as if it had not been.
    pub(super) fn put_back(&mut self, held: Held) {
        let (tenant, price) = (held.unit.key.tenant.clone(), price(&held));
        self.insert(held);
        self.refund(&tenant, price);
    }

    /// Gives a tenant back what a popped unit has cost it, unless nothing of it waits: then it keeps no credit.
    pub(super) fn refund(&mut self, tenant: &TenantId, price: u64) {
        if let Some(share) = self.shares.get_mut(tenant) {
            share.credit += price;
        }
    }

    /// The next unit by turn and weight, of those tenants that are not held back.
    pub(super) fn pop(
        &mut self,
        weights: &Weights,
        is_held: impl Fn(&TenantId) -> bool,
    ) -> Option<Held> {
        let rounds = self.turns.iter().filter(|tenant| !is_held(tenant));
        let rounds = rounds.filter_map(|tenant| {
            let share = self.shares.get(tenant)?;
            let (_, next) = share.units.first_key_value()?;
            let missing = price(next).saturating_sub(share.credit);
            Some(missing.div_ceil(weight(weights, tenant)))
        });
        // In all rounds before this one nobody can pay.
        let before = rounds.min()?.saturating_sub(1);
        for (tenant, share) in &mut self.shares {
            if !is_held(tenant) {
                share.credit += before * weight(weights, tenant);
            }
        }
        loop {
            let tenant = self.turns.front()?;
            let share = self.shares.get_mut(tenant)?;
            if is_held(tenant) {
                self.turns.rotate_left(1);
                continue;
            }
            let (rank, next) = share.units.first_key_value()?;
            let price = price(next);
            if share.credit >= price {
                share.credit -= price;
                let (tenant, rank) = (tenant.clone(), *rank);
                return self.remove(&tenant, rank);
            }
            share.credit += weight(weights, tenant);
            self.turns.rotate_left(1);
        }
    }

    /// Since when the oldest unit waits.
    pub(super) fn oldest(&self, is_held: impl Fn(&TenantId) -> bool) -> Option<UnixMillis> {
        let mut by_age = self.by_age.values();
        by_age
            .find(|(tenant, _)| !is_held(tenant))
            .map(|(_, since)| *since)
    }

    pub(super) fn remove(&mut self, tenant: &TenantId, rank: Rank) -> Option<Held> {
        let share = self.shares.get_mut(tenant)?;
        let held = share.units.remove(&rank);
        self.by_age.remove(&rank.sequence);
        if share.units.is_empty() {
            self.shares.remove(tenant);
            self.turns.retain(|turn| turn != tenant);
        }
        held
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Whether there is a unit that may be released.
    pub(super) fn has_any(&self, is_held: impl Fn(&TenantId) -> bool) -> bool {
        self.shares.keys().any(|tenant| !is_held(tenant))
    }

    /// Units that wait.
    pub(super) fn len(&self) -> u64 {
        self.by_age.len() as u64
    }
}
