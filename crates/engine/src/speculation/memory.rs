//! What a tenant's texts had in common: which token came after which few. Kept in the memory of this process and nowhere
//! else, tenant by tenant, within a limit; what does not come again for an hour is gone, and all of a tenant's goes when a
//! job of it is erased.
//!
//! The few tokens before a token are kept as a keyed hash that no other process could work out, the token after them as it
//! is. A tenant's phrases are only ever compared with texts of the same tenant.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use medfleet_core::Digest;

use super::chances::{Chances, PHRASE_LENGTHS, Source};

/// What an entry takes at most: 16 bytes and a control byte, in a table that is half full or more.
const ENTRY_BYTES: u64 = 40;
/// Tenants that are remembered; the one that wrote longest ago is forgotten first.
const TENANTS_MAX: usize = 64;
/// After so long the older half of what a tenant wrote is forgotten.
const TURN: Duration = Duration::from_secs(30 * 60);

/// A handle on the memory of all tenants.
#[derive(Debug, Clone)]
pub struct Phrases(Arc<Mutex<Memory>>);

impl Phrases {
    /// An empty memory within a limit.
    pub fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Mutex::new(Memory::new(bytes_max))))
    }

    /// Forgets all that is known of a scope's texts, those included that are being written now.
    pub fn forget(&self, scope: &Digest) {
        self.lock().forget(*scope, Instant::now());
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Memory> {
        // What a panic left behind is at worst a wrong proposal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory of all tenants.
#[derive(Debug)]
pub(crate) struct Memory {
    entries_max: usize,
    tenants: HashMap<Digest, Tenant>,
    /// When all of a scope was forgotten.
    forgotten: HashMap<Digest, Instant>,
}

/// What one tenant's texts had, in two halves: what came since the last turn, and what came before.
#[derive(Debug)]
pub(crate) struct Tenant {
    young: HashMap<u64, u32>,
    old: HashMap<u64, u32>,
    hashes: RandomState,
    chances: Chances,
    turned: Instant,
    used: Instant,
    /// Entries of a half.
    half_max: usize,
}

impl Memory {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            entries_max: usize::try_from(bytes_max / ENTRY_BYTES).unwrap_or(usize::MAX),
            tenants: HashMap::new(),
            forgotten: HashMap::new(),
        }
    }

    fn forget(&mut self, scope: Digest, now: Instant) {
        self.tenants.remove(&scope);
        // No text is written for so long.
        self.forgotten
            .retain(|_, at| now.saturating_duration_since(*at) < 2 * TURN);
        self.forgotten.insert(scope, now);
    }

    /// Whether a text of a scope that began then may be learnt: nothing was forgotten since.
    pub(crate) fn may_learn(&self, scope: &Digest, begun: Instant) -> bool {
        self.forgotten.get(scope).is_none_or(|at| *at < begun)
    }

    /// What is known of a tenant at a time; nothing of one that is new.
    pub(crate) fn tenant(&mut self, scope: Digest, now: Instant) -> &mut Tenant {
        let new = !self.tenants.contains_key(&scope);
        if new {
            self.make_room(now);
            self.tenants.insert(scope, Tenant::new(now));
        }
        let half_max = self.entries_max / self.tenants.len().max(1) / 2;
        if new {
            // The others have to make do with less.
            for tenant in self.tenants.values_mut() {
                tenant.limit(half_max, now);
            }
        }
        let tenant = self
            .tenants
            .entry(scope)
            .or_insert_with(|| Tenant::new(now));
        // More than it had, where another tenant was forgotten.
        tenant.half_max = half_max;
        tenant.used = now;
        tenant.age(now);
        tenant
    }

    /// Forgets tenants until another has room, those of whom nothing can be left any more first.
    fn make_room(&mut self, now: Instant) {
        let silent = |tenant: &Tenant| now.saturating_duration_since(tenant.used) >= 2 * TURN;
        self.tenants.retain(|_, tenant| !silent(tenant));
        while self.tenants.len() >= TENANTS_MAX {
            let oldest = self.tenants.iter().min_by_key(|(_, tenant)| tenant.used);
            let Some(scope) = oldest.map(|(scope, _)| *scope) else {
                return;
            };
            self.tenants.remove(&scope);
        }
    }
}

impl Tenant {
    fn new(now: Instant) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            hashes: RandomState::new(),
            chances: Chances::default(),
            turned: now,
            used: now,
            half_max: 0,
        }
    }

    pub(crate) const fn chances(&self) -> &Chances {
        &self.chances
    }

    pub(crate) const fn chances_mut(&mut self) -> &mut Chances {
        &mut self.chances
    }

    /// The token that came after the longest known end of a text.
    pub(crate) fn after(&self, text: &[u32]) -> Option<(u32, Source)> {
        PHRASE_LENGTHS
            .iter()
            .enumerate()
            .find_map(|(place, length)| {
                let key = self.key(text, *length)?;
                let token = self.young.get(&key).or_else(|| self.old.get(&key))?;
                Some((*token, Source::phrase(place)))
            })
    }

    /// A text was written: the tokens from `first` on, after those before.
    pub(crate) fn learn(&mut self, tokens: &[u32], first: usize) {
        for (at, token) in tokens.iter().enumerate().skip(first) {
            for length in PHRASE_LENGTHS {
                let Some(key) = self.key(&tokens[..at], length) else {
                    continue;
                };
                if self.young.len() >= self.half_max && !self.young.contains_key(&key) {
                    if self.half_max == 0 {
                        return;
                    }
                    self.turn(self.turned);
                }
                self.young.insert(key, *token);
            }
        }
    }

    /// The last `length` tokens; none of a text that is shorter.
    fn key(&self, text: &[u32], length: usize) -> Option<u64> {
        let from = text.len().checked_sub(length)?;
        Some(self.hashes.hash_one(&text[from..]))
    }

    /// What came before the last turn is forgotten.
    fn turn(&mut self, now: Instant) {
        self.old = std::mem::take(&mut self.young);
        self.turned = now;
    }

    fn age(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.turned);
        if since >= 2 * TURN {
            self.young = HashMap::new();
        }
        if since >= TURN {
            self.turn(now);
        }
    }

    /// Another share of the memory: what is beyond it is forgotten.
    fn limit(&mut self, half_max: usize, now: Instant) {
        self.half_max = half_max;
        if self.young.len() > half_max {
            self.turn(now);
        }
        if self.old.len() > half_max {
            self.old = HashMap::new();
        }
    }

    #[cfg(test)]
    fn entries(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn scope(number: u8) -> Digest {
        Digest::new([number; 32])
    }

    /// `count` tokens that no other `seed` has.
    fn text(seed: u32, count: u32) -> Vec<u32> {
        (0..count).map(|at| seed * 100_000 + at).collect()
    }

    fn knows(tenant: &Tenant, text: &[u32]) -> bool {
        let after = tenant.after(&text[..text.len() - 1]);
        after.is_some_and(|(token, _)| Some(&token) == text.last())
    }

    #[test]
    fn the_longest_known_end_decides_and_what_came_last_counts() {
        let mut memory = Memory::new(1 << 20);
        let tenant = memory.tenant(scope(1), Instant::now());
        tenant.learn(&[1, 2, 3, 4, 5], 0);
        tenant.learn(&[9, 8, 7, 4, 6], 2);
        assert_eq!(tenant.after(&[3, 4]), Some((5, Source::phrase(2))));
        assert_eq!(tenant.after(&[1, 2, 3, 4]), Some((5, Source::phrase(1))));
        assert_eq!(tenant.after(&[9, 8, 7, 4]), Some((6, Source::phrase(1))));
        assert_eq!(tenant.after(&[9, 8]), Some((7, Source::phrase(2))));
        assert_eq!(tenant.after(&[9]), None, "one token is too few");
        assert_eq!(tenant.after(&[8, 7, 4, 6]), None, "the end");
        tenant.learn(&[3, 4, 7], 2);
        assert_eq!(tenant.after(&[3, 4]), Some((7, Source::phrase(2))));
    }

    #[test]
    fn tenants_share_nothing_and_are_forgotten_one_by_one() {
        let phrases = Phrases::new(1 << 20);
        let (now, said) = (Instant::now(), text(1, 20));
        for number in [1, 2] {
            phrases.lock().tenant(scope(number), now).learn(&said, 0);
        }
        assert!(!knows(phrases.lock().tenant(scope(3), now), &said));
        phrases.forget(&scope(1));
        assert!(!knows(phrases.lock().tenant(scope(1), now), &said));
        assert!(knows(phrases.lock().tenant(scope(2), now), &said));
        let key = |number| {
            let mut memory = phrases.lock();
            memory.tenant(scope(number), now).key(&said, 4)
        };
        assert_ne!(key(1), key(2), "not even their hashes are the same");
    }

    #[test]
    fn a_text_that_began_before_all_was_forgotten_is_not_learnt() {
        let mut memory = Memory::new(1 << 20);
        let begun = Instant::now();
        assert!(memory.may_learn(&scope(1), begun));
        memory.forget(scope(1), begun + TURN);
        let may =
            |memory: &Memory, begun| [1, 2].map(|number| memory.may_learn(&scope(number), begun));
        assert_eq!(may(&memory, begun), [false, true], "another has its own");
        assert_eq!(may(&memory, begun + TURN), [false, true]);
        assert_eq!(may(&memory, begun + 2 * TURN), [true, true]);
        memory.forget(scope(2), begun + 3 * TURN);
        assert_eq!(memory.forgotten.len(), 1, "that is long ago");
    }

    #[test]
    fn what_does_not_come_again_for_an_hour_is_gone() {
        let mut memory = Memory::new(1 << 20);
        let begun = Instant::now();
        let (once, often) = (text(1, 20), text(2, 20));
        let half_hours = |count: u32| begun + count * TURN;
        memory.tenant(scope(1), begun).learn(&once, 0);
        memory.tenant(scope(1), half_hours(1)).learn(&often, 0);
        assert!(knows(memory.tenant(scope(1), half_hours(1)), &once));
        memory.tenant(scope(1), half_hours(2)).learn(&often, 0);
        let tenant = memory.tenant(scope(1), half_hours(2));
        assert!(!knows(tenant, &once) && knows(tenant, &often));
        // After silence nothing is left, of others neither.
        memory.tenant(scope(2), half_hours(2)).learn(&often, 0);
        assert!(!knows(memory.tenant(scope(1), half_hours(4)), &often));
        memory.tenant(scope(3), half_hours(5));
        assert!(!memory.tenants.contains_key(&scope(2)));
    }

    #[test]
    fn there_is_a_limit_which_tenants_share() {
        let entries = 240;
        let mut memory = Memory::new(entries * ENTRY_BYTES);
        let now = Instant::now();
        let all = |memory: &Memory| memory.tenants.values().map(Tenant::entries).sum::<usize>();
        for seed in 1..40 {
            let said = text(seed, 30);
            let tenant = memory.tenant(scope(1), now);
            tenant.learn(&said, 0);
            assert!(knows(tenant, &said), "the newest is there");
            assert!(all(&memory) <= entries as usize);
        }
        for number in 2..=200 {
            let tenant = memory.tenant(scope(number), now + Duration::from_secs(number.into()));
            tenant.learn(&text(1, 30), 0);
            assert!(all(&memory) <= entries as usize);
            assert!(memory.tenants.len() <= TENANTS_MAX);
        }
        assert!(memory.tenants.contains_key(&scope(200)));
        assert!(!memory.tenants.contains_key(&scope(1)));
        let mut nothing = Memory::new(0);
        let tenant = nothing.tenant(scope(1), now);
        tenant.learn(&text(1, 30), 0);
        assert_eq!(tenant.entries(), 0);
    }
}
