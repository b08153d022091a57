//! How many jobs of a tenant are in the stages: those that have not ended, less those that wait to be let in. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use medfleet_core::{Stage, TenantId, WorkUnit};

/// Most jobs of a tenant in the stages at a time; none without a limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InFlightMax {
    /// Of a tenant that is not named.
    pub default: Option<u64>,
    /// Of single tenants, in place of the default.
    pub tenants: BTreeMap<TenantId, Option<u64>>,
}

impl InFlightMax {
    fn of(&self, tenant: &TenantId) -> Option<u64> {
        self.tenants.get(tenant).copied().unwrap_or(self.default)
    }

    /// Whether any tenant has a limit.
    pub(crate) fn is_any(&self) -> bool {
        self.default.is_some() || self.tenants.values().any(Option::is_some)
    }
}

/// Counts of jobs by tenant.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    open: HashMap<TenantId, u64>,
    waiting: HashMap<TenantId, u64>,
    behind: HashSet<TenantId>,
}

impl InFlight {
    /// Takes how many jobs of each tenant have not ended.
    pub(super) fn set_open(&mut self, open: HashMap<TenantId, u64>) {
        self.open = open;
    }

    /// Takes whose jobs wait behind the stages in such numbers that no more of them are let in.
    pub(super) fn set_behind(&mut self, behind: HashSet<TenantId>) {
        self.behind = behind;
    }

    /// A unit waits; only the first of a job counts.
    pub(super) fn wait(&mut self, unit: &WorkUnit) {
        if unit.stage == Stage::Preprocess {
            *self.waiting.entry(unit.key.tenant.clone()).or_default() += 1;
        }
    }

    /// It waits no more.
    pub(super) fn go(&mut self, stage: Stage, tenant: &TenantId) {
        if stage == Stage::Preprocess
            && let Some(waiting) = self.waiting.get_mut(tenant)
        {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(tenant);
            }
        }
    }

    /// Whether the tenant has as many jobs in the stages, or behind them, as it may have.
    pub(super) fn is_full(&self, most: &InFlightMax, tenant: &TenantId) -> bool {
        if self.behind.contains(tenant) {
            return true;
        }
        let Some(most) = most.of(tenant) else {
            return false;
        };
        let of = |counts: &HashMap<TenantId, u64>| counts.get(tenant).copied().unwrap_or(0);
        of(&self.open).saturating_sub(of(&self.waiting)) >= most
    }
}
