//! Places that all tenants share, such as uploads in progress. None may take the last of them from the others: a quarter is
//! kept for tenants that have none yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use medfleet_core::TenantId;

/// The places. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    most: usize,
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    tenant: TenantId,
}

impl Places {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// A place for a tenant, if there is one.
    pub(crate) fn take(&self, tenant: &TenantId) -> Option<Place> {
        let mut taken = self.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(tenant).copied().unwrap_or(0);
        let most = if own == 0 {
            self.most
        } else {
            self.most - self.most / 4
        };
        if all >= most {
            return None;
        }
        taken.insert(tenant.clone(), own + 1);
        drop(taken);
        Some(Place {
            places: self.clone(),
            tenant: tenant.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, usize>> {
        // Counts, changed in single steps: whole after a panic elsewhere.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(own) = taken.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_last_places_from_the_others() {
        let tenant = |name: &str| TenantId::new(name).expect("a name");
        let places = Places::new(8);
        let mut north: Vec<_> = (0..6).map(|_| places.take(&tenant("north"))).collect();
        assert!(north.iter().all(Option::is_some));
        assert!(places.take(&tenant("north")).is_none());
        let east = places.take(&tenant("east"));
        assert!(east.is_some() && places.take(&tenant("east")).is_none());
        let south = places.take(&tenant("south"));
        assert!(south.is_some() && places.take(&tenant("west")).is_none());
        drop((east, south));
        north.pop();
        assert!(places.take(&tenant("north")).is_some());
        drop(north);
        assert!(places.lock().is_empty());
    }
}
