//! The phantom world from outside: pictures, words, sets and files.

mod dicom;
mod picture;
mod set;
mod words;

use medfleet_phantom::{Finding, Phantom};

/// Seed of all tests.
const SEED: u64 = 11;

/// The first pictures of a set.
fn phantoms(count: u64) -> impl Iterator<Item = Phantom> {
    (0..count).map(|index| Phantom::draw(SEED, index, false))
}

/// A finding's box in pixels of a square of `side`: top, left, bottom, right.
fn pixels(finding: &Finding, side: usize) -> [usize; 4] {
    finding.area.map(|edge| edge as usize * side / 1000)
}
