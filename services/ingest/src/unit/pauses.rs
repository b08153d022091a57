//! Work that operators hold back. Pure.

use std::collections::BTreeMap;

use medfleet_core::{TenantId, WorkUnit};
use medfleet_queue::Pause;

use super::{CLASSES, slot};

type Held = [bool; CLASSES];

/// What is held back: of every tenant, and of single ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses {
    everyone: Held,
    tenants: BTreeMap<TenantId, Held>,
}

impl Pauses {
    /// Of what the queue has of them.
    pub fn of(pauses: &[Pause]) -> Self {
        let mut all = Self::default();
        for Pause { tenant, class, .. } in pauses {
            let held = match tenant {
                Some(tenant) => all.tenants.entry(tenant.clone()).or_default(),
                None => &mut all.everyone,
            };
            match class {
                Some(class) => held[slot(*class)] = true,
                None => *held = [true; CLASSES],
            }
        }
        all
    }

    /// Whether a unit is held back.
    pub(crate) fn holds(&self, unit: &WorkUnit) -> bool {
        self.hold(&unit.key.tenant, slot(unit.class))
    }

    pub(super) fn hold(&self, tenant: &TenantId, class: usize) -> bool {
        self.everyone[class] || self.tenants.get(tenant).is_some_and(|held| held[class])
    }
}
