//! Image tokens in memory, for decoders that fetch them soon after: the least recently used go when the bytes run out.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use medfleet_core::{Digest, TenantId};

type Key = (TenantId, Digest);

/// Tokens by tenant and digest; shared by the workers' slots and the token service.
#[derive(Debug)]
pub(crate) struct Cache {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, (Bytes, u64)>,
    /// Use → entry, the oldest use first.
    uses: BTreeMap<u64, Key>,
    next_use: u64,
    bytes: u64,
}

impl Cache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// Keeps a tensor, unless it alone is larger than the cache.
    pub(crate) fn put(&self, tenant: &TenantId, digest: Digest, tokens: Bytes) {
        let length = tokens.len() as u64;
        if length > self.bytes_max {
            return;
        }
        let key = (tenant.clone(), digest);
        let mut state = self.lock();
        state.remove(&key);
        while state.bytes + length > self.bytes_max {
            let Some((_, oldest)) = state.uses.first_key_value() else {
                break;
            };
            let oldest = oldest.clone();
            state.remove(&oldest);
        }
        let at = state.next_use;
        state.next_use += 1;
        state.bytes += length;
        state.uses.insert(at, key.clone());
        state.entries.insert(key, (tokens, at));
    }

    /// A tensor that is still held.
    pub(crate) fn get(&self, tenant: &TenantId, digest: Digest) -> Option<Bytes> {
        let key = (tenant.clone(), digest);
        let mut state = self.lock();
        let at = state.next_use;
        let (tokens, used) = state.entries.get_mut(&key)?;
        let (tokens, before) = (tokens.clone(), std::mem::replace(used, at));
        state.next_use += 1;
        state.uses.remove(&before);
        state.uses.insert(at, key);
        Some(tokens)
    }

    /// Drops everything of a tenant: a job of it was erased, and which tensors were that job's nobody knows here.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        let mut state = self.lock();
        let keys = state.entries.keys().filter(|(of, _)| of == tenant);
        for key in keys.cloned().collect::<Vec<_>>() {
            state.remove(&key);
        }
    }

    /// Bytes held, and how many may be.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.lock().bytes, self.bytes_max)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic between two changes can only make the count of bytes too large: less is cached.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, key: &Key) {
        if let Some((tokens, used)) = self.entries.remove(key) {
            self.bytes -= tokens.len() as u64;
            self.uses.remove(&used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let tenant = TenantId::new("st-mary").expect("a good name");
        let other = TenantId::new("other").expect("a good name");
        let digest = |byte| Digest::new([byte; 32]);
        let cache = Cache::new(10);
        cache.put(&tenant, digest(1), vec![1; 4].into());
        cache.put(&tenant, digest(2), vec![2; 4].into());
        assert!(cache.get(&tenant, digest(1)).is_some());
        cache.put(&tenant, digest(3), vec![3; 4].into());
        assert!(
            cache.get(&tenant, digest(2)).is_none(),
            "it was used least recently"
        );
        assert!(cache.get(&tenant, digest(1)).is_some());
        assert!(cache.get(&other, digest(1)).is_none(), "another tenant's");
        cache.put(&tenant, digest(4), vec![4; 11].into());
        assert!(
            cache.get(&tenant, digest(4)).is_none(),
            "larger than the whole cache"
        );
        cache.put(&tenant, digest(1), vec![9; 10].into());
        assert_eq!(
            cache.get(&tenant, digest(1)).map(|bytes| bytes.len()),
            Some(10)
        );
        assert!(cache.get(&tenant, digest(3)).is_none());
    }

    #[test]
    fn an_erasure_takes_what_the_tenant_has_and_nothing_else() {
        let (a, b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        let digest = Digest::new([1; 32]);
        let cache = Cache::new(8);
        cache.put(&a, digest, vec![1; 4].into());
        cache.put(&b, digest, vec![2; 4].into());
        cache.forget(&a);
        assert!(cache.get(&a, digest).is_none() && cache.get(&b, digest).is_some());
        cache.put(&a, digest, vec![3; 4].into());
        assert!(
            cache.get(&b, digest).is_some(),
            "the room of what was dropped is free"
        );
    }
}
