//! Image tokens in memory, for decoders that fetch them soon after and for frames that come again: the least recently used go
//! when the bytes run out.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use medfleet_core::{Digest, TenantId};

/// About how many bytes an entry takes besides its tokens. Without it many small tensors would take far more memory than they
/// are counted for.
const ENTRY_BYTES: u64 = 512;

type Key = (TenantId, Digest);

/// Tokens that were made of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Made {
    /// Their name in the store.
    pub(crate) tokens: Digest,
    /// For which job ([`medfleet_worker::made_for`]).
    pub(crate) made_for: [u8; 16],
}

/// Tokens by tenant and digest, and by the frame that they were made of; shared by the workers' slots and the token service.
#[derive(Debug)]
pub(crate) struct Cache {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Held>,
    /// Frame → what was made of it. Each leads to an entry.
    frames: HashMap<Key, Made>,
    /// Use → entry, the oldest use first.
    uses: BTreeMap<u64, Key>,
    next_use: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Held {
    tokens: Bytes,
    used: u64,
    /// What they were made of.
    frame: Digest,
}

impl Cache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// Keeps what was made of a frame, unless it alone is larger than the cache. `frame` is the name by which it is found.
    pub(crate) fn put(&self, tenant: &TenantId, frame: Digest, made: Made, tokens: Bytes) {
        let length = tokens.len() as u64 + ENTRY_BYTES;
        if length > self.bytes_max {
            return;
        }
        let key = (tenant.clone(), made.tokens);
        let mut state = self.lock();
        state.remove(&key);
        while state.bytes + length > self.bytes_max {
            let Some((_, oldest)) = state.uses.first_key_value() else {
                break;
            };
            let oldest = oldest.clone();
            state.remove(&oldest);
        }
        let used = state.next_use;
        state.next_use += 1;
        state.bytes += length;
        state.uses.insert(used, key.clone());
        state.frames.insert((tenant.clone(), frame), made);
        let held = Held {
            tokens,
            used,
            frame,
        };
        state.entries.insert(key, held);
    }

    /// A tensor that is still held.
    pub(crate) fn get(&self, tenant: &TenantId, tokens: Digest) -> Option<Bytes> {
        self.lock().touch((tenant.clone(), tokens))
    }

    /// What was made of a frame, if it is still held.
    pub(crate) fn find(&self, tenant: &TenantId, frame: Digest) -> Option<Made> {
        let mut state = self.lock();
        let made = *state.frames.get(&(tenant.clone(), frame))?;
        state.touch((tenant.clone(), made.tokens))?;
        Some(made)
    }

    /// Drops a tensor that the store has no longer.
    pub(crate) fn remove(&self, tenant: &TenantId, tokens: Digest) {
        self.lock().remove(&(tenant.clone(), tokens));
    }

    /// Drops everything of a tenant: one of its jobs was erased, and the cache does not know which tensors were that job's.
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
    /// An entry, which was used just now.
    fn touch(&mut self, key: Key) -> Option<Bytes> {
        let at = self.next_use;
        let held = self.entries.get_mut(&key)?;
        let (tokens, before) = (held.tokens.clone(), std::mem::replace(&mut held.used, at));
        self.next_use += 1;
        self.uses.remove(&before);
        self.uses.insert(at, key);
        Some(tokens)
    }

    fn remove(&mut self, key: &Key) {
        let Some(held) = self.entries.remove(key) else {
            return;
        };
        self.bytes -= held.tokens.len() as u64 + ENTRY_BYTES;
        self.uses.remove(&held.used);
        let frame = (key.0.clone(), held.frame);
        // Others may have been made of the frame since.
        if self
            .frames
            .get(&frame)
            .is_some_and(|made| made.tokens == key.1)
        {
            self.frames.remove(&frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::new([byte; 32])
    }

    fn made(byte: u8) -> Made {
        Made {
            tokens: digest(byte),
            made_for: [byte; 16],
        }
    }

    /// Tokens of so many bytes, of a frame whose name is 100 more than theirs.
    fn put(cache: &Cache, tenant: &TenantId, byte: u8, length: usize) {
        let tokens = vec![byte; length].into();
        cache.put(tenant, digest(byte + 100), made(byte), tokens);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let tenant = TenantId::new("st-mary").expect("a good name");
        let other = TenantId::new("other").expect("a good name");
        // Room for two of four bytes, or one of ten.
        let cache = Cache::new(10 + 2 * ENTRY_BYTES);
        put(&cache, &tenant, 1, 4);
        put(&cache, &tenant, 2, 4);
        assert!(cache.get(&tenant, digest(1)).is_some());
        put(&cache, &tenant, 3, 4);
        assert!(
            cache.get(&tenant, digest(2)).is_none(),
            "it was used least recently"
        );
        assert!(cache.get(&tenant, digest(1)).is_some());
        assert!(cache.get(&other, digest(1)).is_none(), "another tenant's");
        put(&cache, &tenant, 4, 11 + ENTRY_BYTES as usize);
        assert!(
            cache.get(&tenant, digest(4)).is_none(),
            "larger than the whole cache"
        );
        put(&cache, &tenant, 1, 10 + ENTRY_BYTES as usize);
        assert_eq!(
            cache.get(&tenant, digest(1)).map(|bytes| bytes.len()),
            Some(10 + ENTRY_BYTES as usize)
        );
        assert!(cache.get(&tenant, digest(3)).is_none());
    }

    #[test]
    fn a_frame_finds_what_was_made_of_it_while_that_is_held() {
        let (a, b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        let cache = Cache::new(8 + 2 * ENTRY_BYTES);
        put(&cache, &a, 1, 4);
        put(&cache, &a, 2, 4);
        assert_eq!(cache.find(&a, digest(101)), Some(made(1)));
        assert_eq!(cache.find(&b, digest(101)), None, "another tenant's");
        put(&cache, &a, 3, 4);
        assert_eq!(cache.find(&a, digest(102)), None, "used least recently");
        assert_eq!(cache.find(&a, digest(101)), Some(made(1)), "it was used");
        cache.remove(&a, digest(1));
        assert_eq!(cache.find(&a, digest(101)), None);
        // Of the same frame others are made: the older ones go, and their frame leads to the newer ones.
        cache.put(&a, digest(103), made(4), vec![4; 4].into());
        cache.remove(&a, digest(3));
        assert_eq!(cache.find(&a, digest(103)), Some(made(4)));
        cache.forget(&a);
        assert_eq!(cache.find(&a, digest(103)), None);
        let state = cache.lock();
        assert!(state.frames.is_empty() && state.uses.is_empty() && state.bytes == 0);
    }

    #[test]
    fn an_erasure_takes_what_the_tenant_has_and_nothing_else() {
        let (a, b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        let cache = Cache::new(8 + 2 * ENTRY_BYTES);
        put(&cache, &a, 1, 4);
        put(&cache, &b, 1, 4);
        cache.forget(&a);
        assert!(cache.get(&a, digest(1)).is_none() && cache.get(&b, digest(1)).is_some());
        put(&cache, &a, 1, 4);
        assert!(
            cache.get(&b, digest(1)).is_some(),
            "the room of what was dropped is free"
        );
    }
}
