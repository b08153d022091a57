//! Rows as whole numbers.

use rayon::prelude::*;

use super::{BLOCK, NOT_FINITE, PAIRS, ROW_LENGTH, bits, blocks, exponent, inverse};
use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::tile::TILE_ROWS;

/// Rows as whole numbers, in tiles: tile t holds pair p of its rows side by side, at (t × pairs + p) × tile rows, and their steps
/// in the same way. Tiles of one row are rows as they lie: sooner made, where they are used once.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(super) tile_rows: usize,
    inputs: usize,
    pairs: Vec<i32>,
    steps: Vec<f32>,
}

impl Rows {
    /// Of bf16 `[rows, inputs]`.
    pub(crate) fn new(kernels: Kernels, x: &[u16], inputs: usize, parallel: bool) -> Self {
        let rows = x.len() / inputs;
        // Tiles of about the same size: a small one at the end would take as long as a large one.
        let tile_rows = rows.div_ceil(rows.div_ceil(TILE_ROWS));
        let tiles = rows.div_ceil(tile_rows);
        let (pairs, blocks) = (inputs.div_ceil(2), blocks(inputs));
        let mut laid = Self {
            tile_rows,
            inputs,
            pairs: vec![0; tiles * pairs * tile_rows],
            steps: vec![0.0; tiles * blocks * tile_rows],
        };
        let x = x.chunks(tile_rows * inputs);
        let tiles = laid.pairs.chunks_mut(pairs * tile_rows);
        let tiles = tiles.zip(laid.steps.chunks_mut(blocks * tile_rows)).zip(x);
        let lay = |((pairs, steps), x)| {
            kernels.run(Lay {
                x,
                stride: inputs,
                inputs,
                tile_rows,
                pairs,
                steps,
            });
        };
        if parallel {
            let tiles: Vec<_> = tiles.collect();
            tiles.into_par_iter().for_each(lay);
        } else {
            tiles.for_each(lay);
        }
        laid
    }

    /// None yet, of so many inputs each, as they will lie.
    pub(crate) fn empty(inputs: usize) -> Self {
        Self {
            tile_rows: 1,
            inputs,
            pairs: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Other rows in place of those before, `stride` apart, each in a tile of its own.
    pub(crate) fn refill(
        &mut self,
        kernels: Kernels,
        x: &[u16],
        (rows, inputs, stride): (usize, usize, usize),
    ) {
        let (pairs, blocks) = (inputs.div_ceil(2), blocks(inputs));
        self.inputs = inputs;
        self.pairs.resize(rows * pairs, 0);
        self.steps.resize(rows * blocks, 0.0);
        kernels.run(Lay {
            x: &x[..(rows - 1) * stride + inputs],
            stride,
            inputs,
            tile_rows: 1,
            pairs: &mut self.pairs,
            steps: &mut self.steps,
        });
    }

    /// From a row, the first of a tile, and an input on, which begins a block.
    pub(super) fn from(&self, row: usize, input: usize) -> Left {
        let (pairs, blocks) = (self.inputs.div_ceil(2), blocks(self.inputs));
        let tile = row / self.tile_rows;
        let (pair, block) = (tile * pairs + input / 2, tile * blocks + input / BLOCK);
        Left {
            pairs: self.pairs[pair * self.tile_rows..].as_ptr(),
            steps: self.steps[block * self.tile_rows..].as_ptr(),
            rows: self.tile_rows,
            pair_row: pairs,
            step_row: blocks,
        }
    }
}

/// Rows of a tile, or each in a tile of its own, that become whole numbers.
struct Lay<'a> {
    x: &'a [u16],
    /// How far rows are apart.
    stride: usize,
    inputs: usize,
    tile_rows: usize,
    pairs: &'a mut [i32],
    steps: &'a mut [f32],
}

impl Work for Lay<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let (pairs, blocks) = (self.inputs.div_ceil(2), blocks(self.inputs));
        let apart = self.tile_rows;
        for (r, row) in self.x.chunks(self.stride).enumerate() {
            let (tile, within) = (r / apart, r % apart);
            for (block, values) in row[..self.inputs].chunks(BLOCK).enumerate() {
                let mut padded = [0; BLOCK];
                let values = values.as_array().unwrap_or_else(|| {
                    padded[..values.len()].copy_from_slice(values);
                    &padded
                });
                let mut whole = [0; PAIRS];
                // SAFETY: both arrays are of as many pairs.
                let step = unsafe { whole_block::<S>(values, &mut whole) };
                self.steps[(tile * blocks + block) * apart + within] = step;
                let count = PAIRS.min(pairs - block * PAIRS);
                let to = &mut self.pairs[(tile * pairs + block * PAIRS) * apart + within..];
                if apart == 1 {
                    to[..count].copy_from_slice(&whole[..count]);
                    continue;
                }
                for (to, pair) in to.iter_mut().step_by(apart).zip(&whole[..count]) {
                    *to = *pair;
                }
            }
        }
    }
}

/// The bits of the largest value, without its sign. In halves, which compilers make vectors of.
#[inline(always)]
fn largest(block: &[u16; BLOCK]) -> u16 {
    let mut sizes = block.map(|value| value & 0x7fff);
    let mut half = BLOCK / 2;
    while half > 0 {
        let (front, back) = sizes.split_at_mut(half);
        for (front, back) in front.iter_mut().zip(back) {
            *front = (*front).max(*back);
        }
        half /= 2;
    }
    sizes[0]
}

/// A block of values in steps, and the step: not a number where one of them is not finite.
#[inline(always)]
unsafe fn whole_block<S: Lanes>(block: &[u16; BLOCK], whole: &mut [i32; PAIRS]) -> f32 {
    let most = largest(block);
    if most == 0 {
        whole.fill(0);
        return 1.0;
    }
    let exponent = exponent(f32::from_bits(u32::from(most) << 16));
    if exponent == NOT_FINITE {
        return f32::NAN;
    }
    unsafe {
        let mut values = [S::splat(0.0); BLOCK / LANES];
        for (values, from) in values
            .chunks_exact_mut(2)
            .zip(block.chunks_exact(2 * LANES))
        {
            let from = from.as_ptr().cast();
            values[0] = S::load_bf16_low(from);
            values[1] = S::load_bf16_high(from);
        }
        let one = S::splat(inverse(exponent));
        let mut squares = S::splat(0.0);
        for value in values {
            let value = value.mul(one);
            squares = value.mul_add(value, squares);
        }
        let bits = bits(squares.total(), ROW_LENGTH);
        let many = S::splat(f32::from_bits((254 + bits - exponent) << 23));
        for (values, whole) in values.chunks_exact(2).zip(whole.chunks_exact_mut(LANES)) {
            let pairs = S::whole_pairs(values[0], values[1], many);
            S::store_pairs(whole.as_mut_ptr().cast(), pairs);
        }
        f32::from_bits((exponent - bits) << 23)
    }
}

/// Some [`Rows`] from some block on.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pairs: *const i32,
    steps: *const f32,
    /// Rows of a tile.
    rows: usize,
    /// How far tiles are apart.
    pair_row: usize,
    step_row: usize,
}

impl Left {
    /// A pair of a row: of the tile, or of the tile of its own that is so many behind.
    #[inline(always)]
    pub(super) unsafe fn pair<const TILED: bool>(&self, pair: usize, row: usize) -> i32 {
        let at = if TILED {
            pair * self.rows + row
        } else {
            row * self.pair_row + pair
        };
        unsafe { *self.pairs.add(at) }
    }

    /// Its step.
    #[inline(always)]
    pub(super) unsafe fn step<const TILED: bool>(&self, block: usize, row: usize) -> f32 {
        let at = if TILED {
            block * self.rows + row
        } else {
            row * self.step_row + block
        };
        unsafe { *self.steps.add(at) }
    }
}
