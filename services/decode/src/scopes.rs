//! The scopes within which the engine reuses prompt prefixes and phrases of earlier texts. Each tenant has its own, so that no
//! tenant can tell from the time that an answer takes what another tenant has asked. Once one of its jobs was erased, a tenant
//! gets a new scope, so that nothing read before is found again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use medfleet_core::{Digest, TenantId};

/// The scope of each tenant's requests, while this process runs. All clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scopes(Arc<Mutex<HashMap<TenantId, Current>>>);

#[derive(Debug, Default)]
struct Current {
    /// Its number among the tenant's.
    number: u64,
    /// Whether a request had it.
    is_used: bool,
}

impl Scopes {
    /// The scope of the tenant's requests from now on.
    pub(crate) fn of(&self, tenant: &TenantId) -> Digest {
        let mut scopes = self.lock();
        let current = scopes.entry(tenant.clone()).or_default();
        current.is_used = true;
        scope(tenant, current.number)
    }

    /// To be called when a job of the tenant was erased. Returns the scope that requests had until now, or `None` if there was no
    /// request since the last erasure: thousands of jobs may be erased at once.
    pub(crate) fn renew(&self, tenant: &TenantId) -> Option<Digest> {
        let mut scopes = self.lock();
        let current = scopes.get_mut(tenant).filter(|of| of.is_used)?;
        let before = scope(tenant, current.number);
        *current = Current {
            number: current.number + 1,
            is_used: false,
        };
        Some(before)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Current>> {
        // Nothing that is done under the lock can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn scope(tenant: &TenantId, number: u64) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("medfleet prefix scope v2");
    hasher.update(tenant.as_str().as_bytes());
    // The last eight bytes are always the number.
    hasher.update(&number.to_le_bytes());
    Digest::new(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erasure_gives_its_tenant_another_scope_and_nobody_else() {
        let (a, b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        let scopes = Scopes::default();
        let told = scopes.clone();
        assert_eq!(told.renew(&a), None, "nothing was read yet");
        let before = [scopes.of(&a), scopes.of(&b)];
        assert_ne!(before[0], before[1]);
        assert_eq!(told.renew(&a), Some(before[0]));
        assert_eq!(told.renew(&a), None, "nothing was read since");
        let between = scopes.of(&a);
        assert_eq!(told.renew(&a), Some(between));
        let found = [before[0], between, scopes.of(&a)];
        assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2]);
        assert_eq!(scopes.of(&b), before[1]);
    }
}
