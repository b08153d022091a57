//! One row: weights pass by once, and are taken apart in registers.

use super::layout::{self, MIN_SCALES, PART_HIGH, PART_NIBBLES, Unit};
use super::many::more;
use super::{BLOCK, Chunk, Form, LANES, Lanes, Values};
use crate::level::Work;

/// A chunk of outputs for one row.
pub(super) struct One<'a> {
    pub(super) values: &'a [Values],
    pub(super) chunk: Chunk<'a>,
}

impl Work for One<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let Self { values, chunk } = self;
        for panel in 0..chunk.panels {
            let units = chunk.weight.panel(chunk.first + panel);
            let sums = &mut chunk.sums[panel * LANES..];
            // SAFETY: a panel has as many blocks as the row, each as long as its layout says, and sums have room.
            unsafe {
                let total = match chunk.weight.form {
                    Form::Q8_0 => q8_0::<S>(units, values),
                    Form::Q4K => q4_k::<S>(units, values),
                    Form::Q6K => q6_k::<S>(units, values),
                };
                total.store(sums.as_mut_ptr());
            }
        }
    }
}

/// Four values, for all outputs.
#[inline(always)]
unsafe fn quad(values: &Values, quad: usize) -> i32 {
    let from = values.values.as_ptr();
    unsafe { from.add(4 * quad).cast::<i32>().read_unaligned() }
}

#[inline(always)]
unsafe fn q8_0<S: Lanes>(units: &[Unit], values: &[Values]) -> S {
    const LAYOUT: layout::Layout = layout::Q8_0;
    unsafe {
        let mut total = S::splat(0.0);
        let mut at = units.as_ptr().cast::<i8>();
        for values in values {
            let mut exact = S::no_sums();
            for index in 0..BLOCK / 4 {
                let weights = S::load_quads(at.add(LAYOUT.weights + index * 4 * LANES));
                exact = S::dot(exact, weights, quad(values, index));
            }
            let scale = S::load_f16(at.cast()).mul(S::splat(values.scale));
            total = S::from_sums(exact).mul_add(scale, total);
            at = at.add(LAYOUT.units * size_of::<Unit>());
        }
        total
    }
}

#[inline(always)]
unsafe fn q4_k<S: Lanes>(units: &[Unit], values: &[Values]) -> S {
    const LAYOUT: layout::Layout = layout::Q4K;
    unsafe {
        let mut total = S::splat(0.0);
        let mut at = units.as_ptr().cast::<i8>();
        for block in values.chunks_exact(8) {
            let scale = S::load_f16(at.cast());
            let mut below = S::splat(0.0);
            for (part, values) in block.iter().enumerate() {
                let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
                // Eight times two products of at most 15 × 127: within an i16.
                let mut dots = S::no_dots();
                for index in 0..BLOCK / 8 {
                    let (low, high) = S::load_nibbles(nibbles.add(index * 4 * LANES));
                    dots = S::add_dots(dots, low, quad(values, 2 * index));
                    dots = S::add_dots(dots, high, quad(values, 2 * index + 1));
                }
                let scales = S::load_twice(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
                let exact = S::scale_dots(S::no_sums(), dots, scales);
                let step = scale.mul(S::splat(values.scale));
                total = S::from_sums(exact).mul_add(step, total);
                let min = S::load_u8(at.add(LAYOUT.mins + part * LANES).cast());
                below = min.mul_add(S::splat(values.sum), below);
            }
            let negative = S::splat(0.0).sub(S::load_f16(at.add(MIN_SCALES).cast()));
            total = below.mul_add(negative, total);
            at = at.add(LAYOUT.units * size_of::<Unit>());
        }
        total
    }
}

#[inline(always)]
unsafe fn q6_k<S: Lanes>(units: &[Unit], values: &[Values]) -> S {
    const LAYOUT: layout::Layout = layout::Q6K;
    unsafe {
        let mut total = S::splat(0.0);
        let mut at = units.as_ptr().cast::<i8>();
        for block in values.chunks_exact(8) {
            let scale = S::load_f16(at.cast());
            for (part, values) in block.iter().enumerate() {
                let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
                let high = at.add(LAYOUT.high + part * PART_HIGH);
                let scales = S::load_byte_pairs(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
                let (first, second) = S::split(scales);
                // Weights are 32 more than they mean: twice 16 × the sums of values.
                let more = S::splat_pairs(more(values));
                let mut exact = S::add_pairs(S::no_sums(), scales, more);
                exact = S::add_pairs(exact, scales, more);
                for index in 0..BLOCK / 8 {
                    let (low, up) = S::load_sixes(
                        nibbles.add(index * 4 * LANES),
                        high.add(index / 2 * 4 * LANES),
                        index % 2 == 1,
                    );
                    // Two times two products of at most 63 × 127: within an i16.
                    let dots = S::add_dots(S::no_dots(), low, quad(values, 2 * index));
                    let dots = S::add_dots(dots, up, quad(values, 2 * index + 1));
                    let scales = if index < 2 { first } else { second };
                    exact = S::scale_dots(exact, dots, scales);
                }
                let step = scale.mul(S::splat(values.scale));
                total = S::from_sums(exact).mul_add(step, total);
            }
            at = at.add(LAYOUT.units * size_of::<Unit>());
        }
        total
    }
}
