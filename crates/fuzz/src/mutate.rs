//! How a good input is broken. Everything follows from the seed and the number of the input.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::targets::Target;

/// No input grows beyond this.
const BYTES_MAX: usize = 1 << 16;
/// Breaks of one input.
const BREAKS_MAX: u32 = 6;
/// Words at which arithmetic goes wrong.
const WORDS: [u32; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
];
/// Texts where a number is wanted.
const TEXTS: [&[u8]; 14] = [
    b"-1",
    b"0",
    b"1e999",
    b"-0.0",
    b"NaN",
    b"",
    b"1\\2",
    b"1\\2\\3",
    b"9999999999999999999999",
    b"0.000000001",
    b" ",
    b"inf",
    b"LINEAR",
    b"\xff\xfe",
];

/// The inputs of a target.
#[derive(Debug)]
pub struct Inputs {
    seeds: Vec<Vec<u8>>,
    seed: u64,
}

impl Inputs {
    /// Of one seed.
    ///
    /// # Panics
    /// When the target has no corpus.
    pub fn new(target: &Target, seed: u64) -> Self {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has a corpus", target.name);
        let name: u64 = target.name.bytes().fold(7, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        Self {
            seeds,
            seed: seed ^ name << 20,
        }
    }

    /// The input of a number; the first ones are the corpus as it is.
    pub fn get(&self, number: u64) -> Vec<u8> {
        if let Some(seed) = self
            .seeds
            .get(usize::try_from(number).unwrap_or(usize::MAX))
        {
            return seed.clone();
        }
        let mut chance = SmallRng::seed_from_u64(
            self.seed
                .wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        );
        let mut input = self.seeds.choose(&mut chance).cloned().unwrap_or_default();
        for _ in 0..chance.random_range(1..=BREAKS_MAX) {
            let other = self
                .seeds
                .choose(&mut chance)
                .map_or(&[][..], Vec::as_slice);
            break_once(&mut input, other, &mut chance);
            input.truncate(BYTES_MAX);
        }
        input
    }
}

fn break_once(input: &mut Vec<u8>, other: &[u8], chance: &mut SmallRng) {
    if input.is_empty() {
        input.extend(other);
        return;
    }
    match chance.random_range(0..14) {
        0..=2 => {
            let at = place(input, chance);
            input[at] ^= 1 << chance.random_range(0..8);
        }
        3 => {
            let at = place(input, chance);
            input[at] = *[0, 1, 0x7f, 0x80, 0xfe, 0xff].choose(chance).unwrap_or(&0);
        }
        4 | 5 => word(input, chance),
        6 => {
            let range = range(input, chance);
            input.drain(range);
        }
        7 => {
            let range = range(input, chance);
            let copy = input[range.clone()].to_vec();
            let at = if chance.random() {
                range.end
            } else {
                place(input, chance)
            };
            input.splice(at..at, copy);
        }
        8 => {
            let length = input.len();
            input.truncate(chance.random_range(0..length));
        }
        9 if !other.is_empty() => {
            let from = other[range(other, chance)].to_vec();
            let at = range(input, chance);
            input.splice(at, from);
        }
        10 => marker(input, chance),
        11 | 12 => element(input, chance),
        _ => {
            let bytes: [u8; 8] = chance.random();
            let at = place(input, chance);
            let count = chance.random_range(1..=8);
            input.splice(at..at, bytes[..count].iter().copied());
        }
    }
}

/// Headers are worth more than data: half of the places are near the start.
fn place(input: &[u8], chance: &mut SmallRng) -> usize {
    let most = if chance.random() {
        input.len()
    } else {
        input.len().min(256)
    };
    chance.random_range(0..most)
}

fn range(input: &[u8], chance: &mut SmallRng) -> std::ops::Range<usize> {
    let start = chance.random_range(0..input.len());
    let most = if chance.random() { 16 } else { input.len() };
    start..(start + chance.random_range(1..=most)).min(input.len())
}

/// A word of 16 or 32 bits, either way round, becomes one where arithmetic goes wrong, or a neighbour of itself.
fn word(input: &mut [u8], chance: &mut SmallRng) {
    let wide: bool = chance.random();
    let size = if wide { 4 } else { 2 };
    if input.len() < size {
        return;
    }
    let at = place(input, chance).min(input.len() - size);
    let little: bool = chance.random();
    let field = &mut input[at..at + size];
    let mut bytes = [0; 4];
    bytes[..size].copy_from_slice(field);
    let old = if little {
        u32::from_le_bytes(bytes)
    } else {
        u32::from_be_bytes(bytes) >> (32 - size * 8)
    };
    let new = match chance.random_range(0..4) {
        0 => old.wrapping_add(chance.random_range(1..16)),
        1 => old.wrapping_sub(chance.random_range(1..16)),
        _ => *WORDS.choose(chance).unwrap_or(&0),
    };
    if little {
        field.copy_from_slice(&new.to_le_bytes()[..size]);
    } else {
        field.copy_from_slice(&new.to_be_bytes()[4 - size..]);
    }
}

/// JPEG and JPEG 2000: another marker, another length behind it, a segment gone or twice.
fn marker(input: &mut Vec<u8>, chance: &mut SmallRng) {
    let markers: Vec<usize> = (0..input.len().saturating_sub(4))
        .filter(|at| input[*at] == 0xff && input[at + 1] >= 0x4f && input[at + 1] != 0xff)
        .collect();
    let Some(&at) = markers.choose(chance) else {
        return;
    };
    let length = usize::from(u16::from_be_bytes([input[at + 2], input[at + 3]])) + 2;
    let end = (at + length).min(input.len());
    match chance.random_range(0..5) {
        0 => {
            input[at + 1] = *[
                0x4f, 0x51, 0x52, 0x53, 0x5c, 0x5d, 0x90, 0x93, 0xc0, 0xc1, 0xc3, 0xc4, 0xd0, 0xd8,
                0xd9, 0xda, 0xdb, 0xdd, 0xf7, 0xf8,
            ]
            .choose(chance)
            .unwrap_or(&0)
        }
        1 => {
            let new = *WORDS.choose(chance).unwrap_or(&0) as u16;
            input[at + 2..at + 4].copy_from_slice(&new.to_be_bytes());
        }
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        _ if end > at + 4 => {
            let at = chance.random_range(at + 4..end);
            input[at] = chance.random();
        }
        _ => {}
    }
}

/// DICOM, explicit: another length, another kind of value, another text; the element gone or twice.
fn element(input: &mut Vec<u8>, chance: &mut SmallRng) {
    let elements: Vec<usize> = (0..input.len().saturating_sub(8))
        .filter(|at| {
            input[at + 4].is_ascii_uppercase()
                && input[at + 5].is_ascii_uppercase()
                && input[at + 1] < 0x60
        })
        .collect();
    let Some(&at) = elements.choose(chance) else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([input[at + 6], input[at + 7]]));
    let end = (at + 8 + length).min(input.len());
    match chance.random_range(0..6) {
        0 => {
            let new = *WORDS.choose(chance).unwrap_or(&0) as u16;
            input[at + 6..at + 8].copy_from_slice(&new.to_le_bytes());
        }
        1 => {
            let vr = [
                b"UN", b"SQ", b"OB", b"OW", b"US", b"DS", b"IS", b"CS", b"UI", b"FD", b"LO",
            ]
            .choose(chance);
            input[at + 4..at + 6].copy_from_slice(*vr.unwrap_or(&b"UN"));
        }
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        4 => {
            let text = *TEXTS.choose(chance).unwrap_or(&&b""[..]);
            input[at + 6..at + 8].copy_from_slice(&(text.len() as u16).to_le_bytes());
            input.splice(at + 8..end, text.iter().copied());
        }
        _ => {
            // A number beside it in the dictionary.
            input[at + 2] = input[at + 2]
                .wrapping_add(chance.random_range(0..4))
                .wrapping_sub(2);
        }
    }
}
