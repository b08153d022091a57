//! Every operation of every level against plain arrays, over numbers that are easily got wrong.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{LANES, Lanes, Portable};
use crate::level::{Kernels, Work};

/// Zeros, halves, subnormal numbers, the largest, infinities, ties of bf16 and what is no number.
const ODD: [u32; LANES] = [
    0x0000_0000,
    0x8000_0000,
    0x3f00_0000,
    0xc020_0000,
    0x4060_0000,
    0x0000_0001,
    0x807f_ffff,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x3f80_8000,
    0x3f81_8000,
    0x7fc0_0000,
    0xff80_0001,
    0x4b7f_ffff,
];

/// What an operation gave, as bits.
type Results = Vec<(&'static str, Vec<u32>)>;

/// What is no number has only one form.
fn bits(value: f32) -> u32 {
    if value.is_nan() {
        f32::NAN.to_bits()
    } else {
        value.to_bits()
    }
}

#[inline(always)]
unsafe fn floats<S: Lanes>(vector: S) -> Vec<u32> {
    let mut lanes = [0.0; LANES];
    unsafe { vector.store(lanes.as_mut_ptr()) };
    lanes.map(bits).to_vec()
}

#[inline(always)]
unsafe fn bytes<S: Lanes>(quads: S::Quads) -> Vec<u32> {
    let mut bytes = [0_i8; 4 * LANES];
    unsafe { S::store_quads(bytes.as_mut_ptr(), quads) };
    bytes.map(|byte| u32::from(byte as u8)).to_vec()
}

#[inline(always)]
unsafe fn words<S: Lanes>(pairs: S::Pairs) -> Vec<u32> {
    let mut words = [0_i16; 2 * LANES];
    unsafe { S::store_pairs(words.as_mut_ptr(), pairs) };
    words.map(|word| u32::from(word as u16)).to_vec()
}

#[inline(always)]
unsafe fn arithmetic<S: Lanes>(a: [u32; LANES], b: [u32; LANES]) -> Results {
    unsafe {
        let (x, y) = (S::load(a.as_ptr().cast()), S::load(b.as_ptr().cast()));
        let mut halves = [0_u16; LANES];
        x.store_bf16(halves.as_mut_ptr());
        let (low, high) = (S::load_bf16_low(a.as_ptr()), S::load_bf16_high(a.as_ptr()));
        vec![
            ("add", floats(x.add(y))),
            ("sub", floats(x.sub(y))),
            ("mul", floats(x.mul(y))),
            ("div", floats(x.div(y))),
            ("max", floats(x.max(y))),
            ("min", floats(x.min(y))),
            ("round", floats(x.round())),
            ("zero_below", floats(x.zero_below(y, -0.5))),
            ("store_bf16", halves.map(u32::from).to_vec()),
            ("load_bf16", floats(S::load_bf16(halves.as_ptr()))),
            ("rounded_to_bf16", floats(x.rounded_to_bf16())),
            ("low halves", floats(low)),
            ("high halves", floats(high)),
        ]
    }
}

/// `words` are 64 bytes and as many behind them.
#[inline(always)]
unsafe fn integers<S: Lanes>(words: &[u32; 2 * LANES], four: [i8; 4]) -> Results {
    let at = words.as_ptr().cast::<i8>();
    let total = four.map(i32::from).iter().sum();
    let four = i32::from_le_bytes(four.map(|value| value as u8));
    unsafe {
        let quads = S::load_quads(at);
        let pairs = S::load_pairs(at.cast());
        let (low, up) = S::load_nibbles(at);
        let (first, second) = S::load_sixes(at, at.add(4 * LANES), false);
        let (third, fourth) = S::load_sixes(at, at.add(4 * LANES), true);
        let byte_pairs = S::load_byte_pairs(at);
        let (one, other) = S::split(byte_pairs);
        let sums = S::dot(S::sums_of_eights(total), S::load_eights(at), four);
        let products = S::add_pairs(sums, pairs, byte_pairs);
        let products = S::add_pairs(products, byte_pairs, S::splat_pairs(four));
        let dots = S::add_dots(S::no_dots(), first, four);
        let dots = S::add_dots(dots, fourth, four);
        let scaled = S::scale_dots(sums, dots, one);
        // Ties among them.
        let middle = S::splat(127.0);
        let x = S::load_u8(at.cast()).sub(middle);
        let y = S::load_u8(at.add(LANES).cast()).sub(middle);
        vec![
            ("quads", bytes::<S>(quads)),
            ("lower nibbles", bytes::<S>(low)),
            ("upper nibbles", bytes::<S>(up)),
            ("first sixes", bytes::<S>(first)),
            ("second sixes", bytes::<S>(second)),
            ("third sixes", bytes::<S>(third)),
            ("fourth sixes", bytes::<S>(fourth)),
            ("pairs", self::words::<S>(pairs)),
            ("splat_pairs", self::words::<S>(S::splat_pairs(four))),
            ("load_byte_pairs", self::words::<S>(byte_pairs)),
            ("load_twice", self::words::<S>(S::load_twice(at))),
            ("first of each", self::words::<S>(one)),
            ("second of each", self::words::<S>(other)),
            ("dot", floats(S::from_sums(sums))),
            ("add_pairs", floats(S::from_sums(products))),
            ("scale_dots", floats(S::from_sums(scaled))),
            (
                "halves",
                self::words::<S>(S::whole_pairs(x, y, S::splat(0.5))),
            ),
            (
                "large",
                self::words::<S>(S::whole_pairs(x, y, S::splat(128.0))),
            ),
            ("load_u8", floats(S::load_u8(at.cast()))),
        ]
    }
}

fn random_words<const COUNT: usize>(random: &mut SmallRng) -> [u32; COUNT] {
    std::array::from_fn(|_| random.random())
}

struct Check;

impl Work for Check {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let mut random = SmallRng::seed_from_u64(1);
        // SAFETY: vectors are as long as they must be; this is compiled for the level.
        unsafe {
            for round in 0..256 {
                let (mut a, mut b) = (ODD, ODD);
                b.rotate_left(round % LANES);
                if round >= LANES {
                    (a, b) = (random_words(&mut random), random_words(&mut random));
                }
                assert_eq!(arithmetic::<S>(a, b), arithmetic::<Portable>(a, b));
            }
            for round in 0..256 {
                let words = match round {
                    0 => [0x8080_8080; 2 * LANES],
                    1 => [0xffff_ffff; 2 * LANES],
                    _ => random_words(&mut random),
                };
                let four = match round {
                    0 => [127; 4],
                    1 => [-127; 4],
                    _ => std::array::from_fn(|_| random.random_range(-127..=127)),
                };
                let expected = integers::<Portable>(&words, four);
                assert_eq!(integers::<S>(&words, four), expected);
            }
            for first in (0..=u16::MAX).step_by(LANES) {
                let halves: [u16; LANES] = std::array::from_fn(|lane| first + lane as u16);
                let found = floats(S::load_f16(halves.as_ptr()));
                let expected = floats(Portable::load_f16(halves.as_ptr()));
                assert_eq!(found, expected, "f16 from {first:#x}");
            }
            for first in (-126_i16..127).step_by(LANES) {
                let whole: [f32; LANES] =
                    std::array::from_fn(|lane| f32::from((first + lane as i16).min(127)));
                let found = floats(S::load(whole.as_ptr()).power_of_two());
                let expected = whole.map(|n| 2_f32.powf(n).to_bits());
                assert_eq!(found, expected, "2 to the powers from {first}");
            }
            for (power, expected) in [(-127.0, 0.0), (128.0, f32::INFINITY)] {
                let found = floats(S::splat(power).power_of_two());
                assert_eq!(found, [f32::to_bits(expected); LANES], "2^{power}");
            }
        }
    }
}

#[test]
fn every_level_does_as_plain_arrays_do() {
    for kernels in Kernels::all() {
        kernels.run(Check);
    }
    // What `run` chooses where the machine has no products of bytes.
    #[cfg(target_arch = "aarch64")]
    Check.run::<super::Neon<false>>();
}

struct MulAdd;

impl Work for MulAdd {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let mut random = SmallRng::seed_from_u64(2);
        for round in 0..256 {
            let mut vector = || -> [f32; LANES] {
                if round < LANES {
                    let mut odd = ODD;
                    odd.rotate_left(random.random_range(0..LANES));
                    return odd.map(f32::from_bits);
                }
                std::array::from_fn(|_| random.random_range(-2.0..2.0))
            };
            let (x, y, z) = (vector(), vector(), vector());
            // SAFETY: vectors are as long as they must be; this is compiled for the level.
            let found = unsafe {
                let by = S::load(y.as_ptr());
                floats(S::load(x.as_ptr()).mul_add(by, S::load(z.as_ptr())))
            };
            for (lane, found) in found.into_iter().enumerate() {
                let (x, y, z) = (x[lane], y[lane], z[lane]);
                let expected = [bits(x.mul_add(y, z)), bits(x * y + z)];
                assert!(expected.contains(&found), "{x} × {y} + {z}");
            }
        }
    }
}

#[test]
fn products_are_added_rounded_once_or_twice() {
    for kernels in Kernels::all() {
        kernels.run(MulAdd);
    }
}
