//! x Wᵀ with packed weights, and what follows a product while its result is still near: bias, GELU, residual.
//!
//! Rows are worked through in blocks that fit the second cache; within a block, tasks take chunks of outputs. Each task
//! walks the depth in blocks as well, going on from the sums of the one before, so that every chain stays in order.

use rayon::prelude::*;

use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::number::Number;
use crate::pack::Packed;
use crate::pieces::{Shared, filled, load, store};
use crate::tile::{Left, Right, Sums, TILE_ROWS, multiply};

/// Rows of a block; with [`BLOCK_DEPTH`] a quarter of a megabyte.
const BLOCK_ROWS: usize = 40 * TILE_ROWS;
/// Inputs of a block; a panel of so many is 16 KiB, half of the first cache. Even, for pairs.
const BLOCK_DEPTH: usize = 256;
/// Panels of a chunk of outputs, which one task works on.
const CHUNK_PANELS: usize = 4;
/// Multiplications below which a product is not worth a second thread.
const PARALLEL_MIN: usize = 1 << 17;

/// What is done with each result of a product, in this order. It is rounded to T after the bias, and after each further step.
#[derive(Debug, Clone, Copy)]
pub struct Then<'a, T> {
    /// `[outputs]`, added.
    pub bias: Option<&'a [f32]>,
    /// GELU in its tanh form.
    pub gelu: bool,
    /// `[rows, outputs]`, added.
    pub residual: Option<&'a [T]>,
}

impl<T> Default for Then<'_, T> {
    fn default() -> Self {
        Self {
            bias: None,
            gelu: false,
            residual: None,
        }
    }
}

impl Kernels {
    /// x `[rows, inputs]` → `[rows, outputs]`.
    ///
    /// # Panics
    /// Where sizes do not fit each other.
    #[must_use]
    pub fn product<T: Number>(self, x: &[T], weight: &Packed, then: Then<T>) -> Vec<T> {
        T::product(self, x, weight, then)
    }

    pub(crate) fn product_of<T: Number>(self, x: &[T], weight: &Packed, then: Then<T>) -> Vec<T> {
        let (inputs, outputs) = (weight.inputs(), weight.outputs());
        let rows = rows_of(x, inputs);
        then.check(rows, outputs);
        let depth = if weight.pairs() {
            inputs.next_multiple_of(2)
        } else {
            inputs
        };
        let parallel = rows * inputs * outputs >= PARALLEL_MIN;
        filled(rows * outputs, |out| {
            let mut left = Vec::new();
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let count = BLOCK_ROWS.min(rows - first);
                let block = &x[first * inputs..(first + count) * inputs];
                pack_left(block, (count, inputs, depth), &mut left, parallel);
                let task = |chunk| {
                    let tiles = Tiles::new(&left, depth, weight, (count, chunk));
                    let sums = tiles.sums(self);
                    self.run(Finish {
                        sums: &sums,
                        panels: tiles.panels,
                        first: tiles.first,
                        outputs,
                        rows: (first, count),
                        then,
                        out,
                    });
                };
                let chunks = outputs.div_ceil(CHUNK_PANELS * LANES);
                each(chunks, parallel, task);
            }
        })
    }
}

/// Rows of a matrix that is `width` wide.
pub(crate) fn rows_of<T>(x: &[T], width: usize) -> usize {
    assert!(width > 0 && x.len().is_multiple_of(width), "whole rows");
    x.len() / width
}

/// Does tasks 0..count, on several threads where that pays.
pub(crate) fn each(count: usize, parallel: bool, task: impl Fn(usize) + Sync + Send) {
    if parallel {
        (0..count).into_par_iter().for_each(task);
    } else {
        (0..count).for_each(task);
    }
}

impl<T> Then<'_, T> {
    pub(crate) fn check(&self, rows: usize, outputs: usize) {
        assert!(
            self.bias.is_none_or(|bias| bias.len() == outputs)
                && self
                    .residual
                    .is_none_or(|residual| residual.len() == rows * outputs),
            "a bias for each output and a residual for each result"
        );
    }
}

/// Rows in tiles: tile t holds its rows' k-th inputs side by side, at (t × depth + k) × TILE_ROWS. What a tile lacks in rows
/// or depth is zero.
fn pack_left<T: Number>(
    x: &[T],
    (rows, inputs, depth): (usize, usize, usize),
    left: &mut Vec<f32>,
    parallel: bool,
) {
    let tiles = rows.div_ceil(TILE_ROWS);
    left.resize(tiles * depth * TILE_ROWS, 0.0);
    let pack = |(tile, packed): (usize, &mut [f32])| {
        packed[inputs * TILE_ROWS..].fill(0.0);
        for r in 0..TILE_ROWS {
            let row = tile * TILE_ROWS + r;
            let values = packed.iter_mut().skip(r).step_by(TILE_ROWS);
            if row < rows {
                let source = &x[row * inputs..(row + 1) * inputs];
                for (value, from) in values.zip(source) {
                    *value = from.wide();
                }
            } else {
                values.for_each(|value| *value = 0.0);
            }
        }
    };
    if parallel && tiles > 1 {
        left.par_chunks_mut(depth * TILE_ROWS)
            .enumerate()
            .for_each(pack);
    } else {
        left.chunks_mut(depth * TILE_ROWS)
            .enumerate()
            .for_each(pack);
    }
}

/// A chunk of outputs for a block of rows.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    left: &'a [f32],
    depth: usize,
    weight: &'a Packed,
    rows: usize,
    /// First panel.
    first: usize,
    panels: usize,
}

/// [`Tiles`] that become sums.
struct Sweep<'a> {
    tiles: Tiles<'a>,
    sums: &'a mut [f32],
}

impl<'a> Tiles<'a> {
    fn new(
        left: &'a [f32],
        depth: usize,
        weight: &'a Packed,
        (rows, chunk): (usize, usize),
    ) -> Self {
        let first = chunk * CHUNK_PANELS;
        Self {
            left,
            depth,
            weight,
            rows,
            first,
            panels: CHUNK_PANELS.min(weight.outputs().div_ceil(LANES) - first),
        }
    }

    /// [rows, panels × LANES]. Tiles are worked on whole, so their last rows have a place too.
    fn sums(self, kernels: Kernels) -> Vec<f32> {
        let places = self.rows.next_multiple_of(TILE_ROWS);
        let mut sums = vec![0.0; places * self.panels * LANES];
        kernels.run(Sweep {
            tiles: self,
            sums: &mut sums,
        });
        sums
    }

    fn left(&self, tile: usize, from: usize) -> Left {
        Left {
            at: self.left[(tile * self.depth + from) * TILE_ROWS..].as_ptr(),
            step: TILE_ROWS,
            row: 1,
        }
    }
}

impl Work for Sweep<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        // SAFETY: the left side has whole tiles of this depth, the weights these panels, and the sums a place for each result.
        unsafe {
            if self.tiles.rows <= TILE_ROWS {
                self.one_tile::<S>();
            } else {
                self.all_tiles::<S>();
            }
        }
    }
}

impl Sweep<'_> {
    /// A few rows: weights pass by once, and are widened in registers.
    #[inline(always)]
    unsafe fn one_tile<S: Lanes>(self) {
        let tiles = self.tiles;
        let right = tiles.weight.right(tiles.first, 0);
        let sums = Sums {
            at: self.sums.as_mut_ptr(),
            row: tiles.panels * LANES,
            fresh: true,
        };
        let sizes = (tiles.rows, tiles.panels, tiles.depth);
        unsafe { multiply::<S>(sizes, tiles.left(0, 0), right, sums) }
    }

    #[inline(always)]
    unsafe fn all_tiles<S: Lanes>(self) {
        let tiles = self.tiles;
        let mut wide = [0_f32; BLOCK_DEPTH * LANES];
        for from in (0..tiles.depth).step_by(BLOCK_DEPTH) {
            let depth = BLOCK_DEPTH.min(tiles.depth - from);
            for panel in 0..tiles.panels {
                let right = tiles.weight.right(tiles.first + panel, from);
                let right = unsafe { widened::<S>(right, depth, &mut wide) };
                for tile in 0..tiles.rows.div_ceil(TILE_ROWS) {
                    let place = (tile * TILE_ROWS * tiles.panels + panel) * LANES;
                    let sums = Sums {
                        at: self.sums[place..].as_mut_ptr(),
                        row: tiles.panels * LANES,
                        fresh: from == 0,
                    };
                    // The last tile's missing rows are computed too, from zeros: they cost less than another loop.
                    let sizes = (TILE_ROWS, 1, depth);
                    unsafe { multiply::<S>(sizes, tiles.left(tile, from), right, sums) }
                }
            }
        }
    }
}

/// A panel as f32: where it is in pairs, a copy that stays in the first cache while all tiles use it.
#[inline(always)]
unsafe fn widened<S: Lanes>(right: Right, depth: usize, wide: &mut [f32]) -> Right {
    let Right::Pairs { at, .. } = right else {
        return right;
    };
    unsafe {
        for pair in 0..depth / 2 {
            let (even, odd) = S::load_bf16_pairs(at.add(pair * LANES));
            even.store(wide.as_mut_ptr().add(2 * pair * LANES));
            odd.store(wide.as_mut_ptr().add((2 * pair + 1) * LANES));
        }
    }
    Right::F32 {
        at: wide.as_ptr(),
        panel: depth,
    }
}

/// Sums [rows, panels × LANES] that become results.
pub(crate) struct Finish<'a, T> {
    pub(crate) sums: &'a [f32],
    pub(crate) panels: usize,
    /// First panel.
    pub(crate) first: usize,
    pub(crate) outputs: usize,
    /// First row, and how many.
    pub(crate) rows: (usize, usize),
    pub(crate) then: Then<'a, T>,
    /// These rows and outputs are one task's alone.
    pub(crate) out: Shared<T>,
}

impl<T: Number> Work for Finish<'_, T> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let (then, out) = (self.then, self.out);
        for row in 0..self.rows.1 {
            for panel in 0..self.panels {
                let column = (self.first + panel) * LANES;
                let count = LANES.min(self.outputs - column);
                let place = (self.rows.0 + row) * self.outputs + column;
                // SAFETY: the task's results are these, and bias and residual were checked to have as many.
                unsafe {
                    let sums = &self.sums[(row * self.panels + panel) * LANES..];
                    let mut value = S::load(sums.as_ptr());
                    if let Some(bias) = then.bias {
                        value = value.add(load::<S, f32>(bias[column..].as_ptr(), count));
                    }
                    if then.gelu {
                        value = T::round(value).gelu();
                    }
                    if let Some(residual) = then.residual {
                        let residual = load::<S, T>(residual[place..].as_ptr(), count);
                        value = residual.add(T::round(value));
                    }
                    store::<S, T>(out.at(place), value, count);
                }
            }
        }
    }
}
