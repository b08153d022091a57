//! Randomness, passed in: the machine's for ids and keys, a seeded one for tests that must replay.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use medfleet_core::splitmix;

pub trait Random: Debug + Send + Sync {
    fn fill(&self, buffer: &mut [u8]);

    /// A random number of 64 bits.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// 128 random bits: an id.
    fn id(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        bytes
    }
}

/// The operating system's randomness, good enough for keys.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, buffer: &mut [u8]) {
        // Without randomness no id is safe, and every Linux that boots has it.
        getrandom::fill(buffer)
            .expect("the operating system gives random bytes once it has booted");
    }
}

/// [`splitmix`] from a seed: the same seed gives the same bytes. For tests and simulations, never for ids that others see.
#[derive(Debug)]
pub struct SeededRandom(AtomicU64);

impl SeededRandom {
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Random for SeededRandom {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let state = self.0.fetch_add(splitmix::STEP, Ordering::SeqCst);
            let bytes = splitmix::mixed(state).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let (a, b) = (SeededRandom::new(7), SeededRandom::new(7));
        assert_eq!(a.id(), b.id());
        assert_ne!(a.id(), SeededRandom::new(8).id());
    }

    #[test]
    fn the_machine_does_not_repeat_itself() {
        assert_ne!(SystemRandom.id(), SystemRandom.id());
    }
}
