//! The scopes within which the engine reuses what it has read of prompts and what texts had in common. Each tenant has its own, so
//! that no tenant can tell by the time an answer takes what another has asked; and a new one once a job of it was erased, so that
//! nothing that was read before is found again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use medfleet_core::{Digest, TenantId};

/// How often jobs of each tenant were erased while this process ran. All clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scopes(Arc<Mutex<HashMap<TenantId, u64>>>);

impl Scopes {
    /// That of a tenant's requests from now on.
    pub(crate) fn of(&self, tenant: &TenantId) -> Digest {
        scope(tenant, self.lock().get(tenant).copied().unwrap_or(0))
    }

    /// A job of the tenant was erased. Gives the scope that requests had until now.
    pub(crate) fn renew(&self, tenant: &TenantId) -> Digest {
        let mut erasures = self.lock();
        let count = erasures.entry(tenant.clone()).or_default();
        let before = scope(tenant, *count);
        *count += 1;
        before
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, u64>> {
        // Nothing that is done under the lock can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn scope(tenant: &TenantId, erasures: u64) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("medfleet prefix scope v2");
    hasher.update(tenant.as_str().as_bytes());
    // The last eight bytes are always the number.
    hasher.update(&erasures.to_le_bytes());
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
        let before = [scopes.of(&a), scopes.of(&b)];
        assert_ne!(before[0], before[1]);
        assert_eq!(told.renew(&a), before[0]);
        let between = scopes.of(&a);
        assert_eq!(told.renew(&a), between);
        let found = [before[0], between, scopes.of(&a)];
        assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2]);
        assert_eq!(scopes.of(&b), before[1]);
    }
}
