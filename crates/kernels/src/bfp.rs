//! Products of bf16 with bf16 in block floating point, for [`crate::Level::Avx512Bfp`]: VNNI multiplies pairs of 16 bits at twice the
//! rate of f32.
//!
//! A bf16 has eight significant bits. [`BLOCK`] inputs of a row share a power of two, their *step*, and are whole numbers of it, of up
//! to fifteen bits; so do as many weights of an output. Both steps are as small as they may be for the sum of a block's products to
//! be exact in an i32, by the lengths of both vectors. Sums are scaled, and blocks are added up in order, in f32. What is 16 to 128
//! times smaller than the largest beside it, or more, may lose digits; all other numbers are held exactly. What is below 2^−119, a
//! number or a result, may be lost, and where the largest of a row's block and of the weights' are 2^150 and more together, zero
//! may come out as no number: f32 does not hold the product of such steps.
//!
//! Weights stay bf16 in memory and become whole numbers while they pass by.

mod panels;
mod rows;

use rayon::prelude::*;

use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::pack::Line;

pub(crate) use panels::{DEPTH, Weights, Whole};
pub(crate) use rows::Rows;

/// Inputs that share a step.
pub(crate) const BLOCK: usize = 64;
/// Pairs of them.
const PAIRS: usize = BLOCK / 2;
/// How long a block of a row and one of weights may be, as vectors of numbers of steps, before they are rounded. By Cauchy and
/// Schwarz no sum of their products is larger than both lengths together.
const ROW_LENGTH: f32 = 65_500.0;
const WEIGHTS_LENGTH: f32 = 32_700.0;
/// What rounding adds to a length at most: half a step of each.
const ROUNDED_LENGTH: f32 = 4.0;
/// Bits of the largest value of a block behind its first one at most, as an i16 holds them.
const BITS_MAX: u32 = 14;
/// The exponent of what is not finite, and of the largest power of two whose reciprocal is a normal number.
const NOT_FINITE: u32 = 255;
const INVERTIBLE: u32 = 253;
/// What stands for a step where a weight is no finite number: 2^128, infinite in f32.
const NO_STEP: u8 = 255;
/// A step of 1, where all weights are zero: with the finest, products of steps would be subnormal, which takes processors long.
const ANY_STEP: u8 = 127;

const _: () = assert!(
    ROUNDED_LENGTH * ROUNDED_LENGTH * 4.0 >= BLOCK as f32
        && ((ROW_LENGTH + ROUNDED_LENGTH) as i64 * (WEIGHTS_LENGTH + ROUNDED_LENGTH) as i64)
            < i32::MAX as i64,
    "sums are within an i32"
);

/// Blocks of so many inputs.
pub(crate) const fn blocks(inputs: usize) -> usize {
    inputs.div_ceil(BLOCK)
}

/// The steps of panels of so many inputs, in pairs: `[panels, blocks, LANES]`, exponents, 127 more than they mean.
pub(crate) fn steps(lines: &[Line], inputs: usize, parallel: bool) -> Vec<u8> {
    let (pairs, of_panel) = (inputs.div_ceil(2), blocks(inputs) * LANES);
    let mut steps = vec![0; lines.len() / pairs * of_panel];
    let find = |(lines, steps): (&[Line], &mut [u8])| {
        Kernels::best().run(Steps { lines, steps });
    };
    if parallel {
        let steps = steps.par_chunks_exact_mut(of_panel);
        lines.par_chunks_exact(pairs).zip(steps).for_each(find);
    } else {
        let steps = steps.chunks_exact_mut(of_panel);
        lines.chunks_exact(pairs).zip(steps).for_each(find);
    }
    steps
}

struct Steps<'a> {
    lines: &'a [Line],
    steps: &'a mut [u8],
}

impl Work for Steps<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        for (lines, steps) in self.lines.chunks(PAIRS).zip(self.steps.chunks_mut(LANES)) {
            let (mut largest, mut squares) = ([0.0; LANES], [0.0; LANES]);
            // SAFETY: lines and arrays are of sixteen numbers.
            unsafe {
                let zero = S::splat(0.0);
                let mut most = zero;
                for line in lines {
                    let at = line.0.as_ptr();
                    for value in [S::load_bf16_low(at), S::load_bf16_high(at)] {
                        most = most.max(value.max(zero.sub(value)));
                    }
                }
                most.store(largest.as_mut_ptr());
                let ones = largest.map(|largest| inverse(exponent(largest)));
                let ones = S::load(ones.as_ptr());
                let mut sum = zero;
                for line in lines {
                    let at = line.0.as_ptr();
                    for value in [S::load_bf16_low(at), S::load_bf16_high(at)] {
                        let value = value.mul(ones);
                        sum = value.mul_add(value, sum);
                    }
                }
                sum.store(squares.as_mut_ptr());
            }
            for ((step, largest), square) in steps.iter_mut().zip(largest).zip(squares) {
                *step = match exponent(largest) {
                    NOT_FINITE => NO_STEP,
                    _ if square.is_nan() => NO_STEP,
                    _ if largest == 0.0 => ANY_STEP,
                    exponent => (exponent - bits(square, WEIGHTS_LENGTH)) as u8,
                };
            }
        }
    }
}

/// The exponent, 127 more than it means, of the power of two that a size is 1 to 2 times as large as; at least so large that all
/// steps are normal numbers.
fn exponent(size: f32) -> u32 {
    (size.to_bits() >> 23).max(BITS_MAX + 1)
}

/// 1 / 2^exponent.
fn inverse(exponent: u32) -> f32 {
    f32::from_bits((254 - exponent.min(INVERTIBLE)) << 23)
}

/// Bits behind the first one that the largest value of a block may have: `square` is the block's length times itself, where the power
/// of two of the largest is 1.
fn bits(square: f32, length_max: f32) -> u32 {
    let finest = length_max / square.sqrt();
    ((finest.to_bits() >> 23) - 127).min(BITS_MAX)
}
