//! A few rows at a time: weights are taken apart in registers, for each few rows anew. For one tile of rows they pass by once,
//! as fast as memory gives them.

use super::layout::{self, Layout, MIN_SCALES, PART_HIGH, PART_NIBBLES, PARTS, Unit};
use super::many::{half_of, less};
use super::{BLOCK, Chunk, Form, LANES, Lanes, Values};
use crate::level::Work;

/// Rows worked on together at most where there are sixteen registers.
pub(super) const FEW_ROWS: usize = 4;
/// The same where there are 32.
pub(super) const MORE_ROWS: usize = 8;
/// How many blocks of 32 inputs ahead of their use they are asked for.
const AHEAD: usize = 4;

/// A chunk of outputs for rows in tiles of a few.
pub(super) struct Few<'a> {
    /// `[rows, blocks]`.
    pub(super) values: &'a [Values],
    pub(super) rows: usize,
    pub(super) chunk: Chunk<'a>,
}

impl Work for Few<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let Self {
            values,
            rows,
            chunk,
        } = self;
        let (blocks, stride) = (values.len() / rows, chunk.panels * LANES);
        let form = chunk.weight.form;
        let layout = Layout::of(form);
        // Tiles of about the same size.
        let most = if S::WIDE_DOTS { MORE_ROWS } else { FEW_ROWS };
        let tile_rows = rows.div_ceil(rows.div_ceil(most));
        // Where blocks are long, panels take turns: a core fetches from several places at once faster than from one.
        let turn = if form == Form::Q8_0 { blocks } else { PARTS };
        for from in (0..blocks).step_by(turn) {
            let parts = turn.min(blocks - from);
            // Of the form's own blocks.
            let [first_block, count, all] =
                [from, parts, blocks].map(|blocks| blocks * BLOCK / form.block_inputs());
            // What comes next: of this panel, or of the one as many panels on.
            let ahead = match form {
                Form::Q8_0 => AHEAD,
                _ if from + parts < blocks => count,
                _ => chunk.panels * all - first_block,
            };
            for panel in 0..chunk.panels {
                let units = chunk.weight.panel(chunk.first + panel);
                let units = &units[first_block * layout.units..][..count * layout.units];
                for first in (0..rows).step_by(tile_rows) {
                    let count = tile_rows.min(rows - first);
                    let tile = Tile {
                        form,
                        units,
                        ahead,
                        values: &values[first * blocks + from..],
                        blocks,
                        parts,
                        sums: &mut chunk.sums[first * stride + panel * LANES..],
                        stride,
                    };
                    match count {
                        1 => tile.run::<S, 1>(),
                        2 => tile.run::<S, 2>(),
                        3 => tile.run::<S, 3>(),
                        4 => tile.run::<S, 4>(),
                        _ if !S::WIDE_DOTS => unreachable!("tiles have so many rows at most"),
                        5 => tile.run::<S, 5>(),
                        6 => tile.run::<S, 6>(),
                        7 => tile.run::<S, 7>(),
                        _ => tile.run::<S, MORE_ROWS>(),
                    }
                }
            }
        }
    }
}

/// Some blocks of a panel for a few rows.
struct Tile<'a> {
    form: Form,
    units: &'a [Unit],
    /// How many blocks ahead they are asked for.
    ahead: usize,
    /// `[rows, blocks]`, from the first of these blocks on.
    values: &'a [Values],
    /// Of a row, all of them.
    blocks: usize,
    /// Those of 32 inputs that are multiplied.
    parts: usize,
    /// Sixteen for each row, `stride` apart.
    sums: &'a mut [f32],
    stride: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self) {
        let mut rows = [&self.values[..self.parts]; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = &self.values[r * self.blocks..][..self.parts];
        }
        // SAFETY: a panel has as many blocks as the rows, each as long as its layout says, and there is room for sixteen sums.
        unsafe {
            let mut totals = [S::splat(0.0); R];
            for (r, total) in totals.iter_mut().enumerate() {
                *total = S::load(self.sums[r * self.stride..][..LANES].as_ptr());
            }
            let at = self.units.as_ptr().cast();
            match self.form {
                Form::Q8_0 => q8_0::<S, R>(at, self.ahead, rows, &mut totals),
                Form::Q4K => q4_k::<S, R>(at, self.ahead, rows, &mut totals),
                Form::Q6K => q6_k::<S, R>(at, self.ahead, rows, &mut totals),
            }
            for (r, total) in totals.into_iter().enumerate() {
                total.store(self.sums[r * self.stride..][..LANES].as_mut_ptr());
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

/// Blocks of 32 inputs.
#[inline(always)]
unsafe fn q8_0<S: Lanes, const R: usize>(
    mut at: *const i8,
    ahead: usize,
    rows: [&[Values]; R],
    totals: &mut [S; R],
) {
    const LAYOUT: Layout = layout::Q8_0;
    unsafe {
        for block in 0..rows[0].len() {
            LAYOUT.prefetch::<S>(at, ahead, (0, 1));
            let mut exact = [S::no_sums(); R];
            for (exact, row) in exact.iter_mut().zip(rows) {
                let [first, second] = row.get_unchecked(block).halves;
                *exact = S::sums_of_eights(i32::from(first) + i32::from(second));
            }
            for index in 0..BLOCK / 4 {
                let weights = S::load_eights(at.add(LAYOUT.weights + index * 4 * LANES));
                for (exact, row) in exact.iter_mut().zip(rows) {
                    *exact = S::dot(*exact, weights, quad(row.get_unchecked(block), index));
                }
            }
            let scale = S::load_f16(at.cast());
            for r in 0..R {
                let scale = scale.mul(S::splat(rows[r].get_unchecked(block).scale));
                totals[r] = S::from_sums(exact[r]).mul_add(scale, totals[r]);
            }
            at = at.add(LAYOUT.bytes());
        }
    }
}

/// exact + dots × scales, for dots that begin anew.
#[inline(always)]
pub(super) unsafe fn scale_all<S: Lanes, const R: usize>(
    exact: &mut [S::Sums; R],
    dots: &mut [S::Dots; R],
    scales: S::Pairs,
) {
    for (exact, dots) in exact.iter_mut().zip(dots) {
        unsafe {
            *exact = S::scale_dots(*exact, *dots, scales);
            *dots = S::no_dots();
        }
    }
}

/// A block of 256 inputs.
#[inline(always)]
unsafe fn q4_k<S: Lanes, const R: usize>(
    at: *const i8,
    ahead: usize,
    rows: [&[Values]; R],
    totals: &mut [S; R],
) {
    const LAYOUT: Layout = layout::Q4K;
    unsafe {
        let scale = S::load_f16(at.cast());
        let mut below = [S::splat(0.0); R];
        for part in 0..PARTS {
            LAYOUT.prefetch::<S>(at, ahead, (part, PARTS));
            let mut values = [rows[0].get_unchecked(part); R];
            for (values, row) in values.iter_mut().zip(rows) {
                *values = row.get_unchecked(part);
            }
            let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
            // Eight times two products of at most 15 × 127: within an i16.
            let mut dots = [S::no_dots(); R];
            for index in 0..BLOCK / 8 {
                let (low, high) = S::load_nibbles(nibbles.add(index * 4 * LANES));
                for (dots, values) in dots.iter_mut().zip(values) {
                    *dots = S::add_dots(*dots, low, quad(values, 2 * index));
                    *dots = S::add_dots(*dots, high, quad(values, 2 * index + 1));
                }
            }
            let scales = S::load_twice(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
            let min = S::load_u8(at.add(LAYOUT.mins + part * LANES).cast());
            for r in 0..R {
                let exact = S::scale_dots(S::no_sums(), dots[r], scales);
                let step = scale.mul(S::splat(values[r].scale));
                totals[r] = S::from_sums(exact).mul_add(step, totals[r]);
                below[r] = min.mul_add(S::splat(values[r].sum), below[r]);
            }
        }
        let negative = S::splat(0.0).sub(S::load_f16(at.add(MIN_SCALES).cast()));
        for (total, below) in totals.iter_mut().zip(below) {
            *total = below.mul_add(negative, *total);
        }
    }
}

/// A block of 256 inputs.
#[inline(always)]
unsafe fn q6_k<S: Lanes, const R: usize>(
    at: *const i8,
    ahead: usize,
    rows: [&[Values]; R],
    totals: &mut [S; R],
) {
    const LAYOUT: Layout = layout::Q6K;
    unsafe {
        let scale = S::load_f16(at.cast());
        for part in 0..PARTS {
            LAYOUT.prefetch::<S>(at, ahead, (part, PARTS));
            let mut values = [rows[0].get_unchecked(part); R];
            for (values, row) in values.iter_mut().zip(rows) {
                *values = row.get_unchecked(part);
            }
            let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
            let high = at.add(LAYOUT.high + part * PART_HIGH);
            let scales = S::load_byte_pairs(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
            let (near, far) = S::split(scales);
            let mut exact = [S::no_sums(); R];
            for (exact, values) in exact.iter_mut().zip(values) {
                // Weights are 32 more than they mean: twice 16 × the sums of values.
                let more = S::splat_pairs(half_of(less(values)));
                *exact = S::add_pairs(*exact, scales, more);
                *exact = S::add_pairs(*exact, scales, more);
            }
            for (half, scales) in [near, far].into_iter().enumerate() {
                let mut dots = [S::no_dots(); R];
                for index in 2 * half..2 * half + 2 {
                    let (low, up) = S::load_sixes(
                        nibbles.add(index * 4 * LANES),
                        high.add(half * 4 * LANES),
                        index % 2 == 1,
                    );
                    for (dots, values) in dots.iter_mut().zip(values) {
                        *dots = S::add_dots(*dots, low, quad(values, 2 * index));
                        *dots = S::add_dots(*dots, up, quad(values, 2 * index + 1));
                    }
                    // Two times two products of at most 63 × 127 are within an i16.
                    if !S::WIDE_DOTS || index % 2 == 1 {
                        scale_all::<S, R>(&mut exact, &mut dots, scales);
                    }
                }
            }
            for r in 0..R {
                let step = scale.mul(S::splat(values[r].scale));
                totals[r] = S::from_sums(exact[r]).mul_add(step, totals[r]);
            }
        }
    }
}
