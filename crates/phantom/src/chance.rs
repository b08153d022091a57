//! Random streams: one per purpose, each a function of the set's seed and a number only, so that no picture depends on
//! another or on the order in which threads make them.

use medfleet_core::splitmix::mixed;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};

/// What a stream is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// The patient's shape.
    Anatomy = 1,
    /// Exposure, position, size of the picture.
    Acquisition = 2,
    /// Which findings there are.
    Findings = 3,
    /// Words of the report.
    Report = 4,
    /// Questions and their order.
    Questions = 5,
    /// Noise of the picture.
    Noise = 6,
    /// How the file is written.
    File = 7,
}

/// A stream of random numbers.
#[derive(Debug)]
pub(crate) struct Chance(SmallRng);

impl Chance {
    /// The stream of `purpose` for the picture or patient `number` of the set `seed`.
    pub(crate) fn new(seed: u64, number: u64, purpose: Purpose) -> Self {
        Self::from_seed(mixed(mixed(mixed(seed) ^ number) ^ purpose as u64))
    }

    /// The stream of a seed drawn from another stream.
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// A seed for a stream of its own.
    pub(crate) fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform between `low` and `high`.
    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.0.random::<f32>()
    }

    /// True with the probability `part`.
    pub(crate) fn happens(&mut self, part: f64) -> bool {
        self.0.random_bool(part)
    }

    /// Uniform below `end`, which is above 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// One of `choices`, which are not empty.
    pub(crate) fn one<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        choices
            .choose(&mut self.0)
            .expect("callers pass lists written in the code")
    }

    /// -1 or 1.
    pub(crate) fn sign(&mut self) -> f32 {
        if self.happens(0.5) { 1.0 } else { -1.0 }
    }

    /// A number of mean 0 and deviation 1, bell-shaped between -3.5 and 3.5: four 16-bit uniform numbers added up.
    pub(crate) fn bell(&mut self) -> f32 {
        let bits = self.0.next_u64();
        let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        (sum as f32 / 65536.0 - 2.0) * 1.732
    }
}
