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
use crate::tile::{Left, Sums, TILE_ROWS, sweep};

/// Rows of a block; with [`BLOCK_DEPTH`] a quarter of a megabyte.
const BLOCK_ROWS: usize = 40 * TILE_ROWS;
/// Inputs of a block; a panel of so many is 16 KiB, half of the first cache. Even, for pairs.
const BLOCK_DEPTH: usize = 256;
/// Inputs of a block, of all panels worked on together where those are several; 32 KiB.
const BLOCK_LINES: usize = 2 * BLOCK_DEPTH;
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
                // Tiles of about the same size: a small one at the end would take as long as a large one.
                let tile_rows = count.div_ceil(count.div_ceil(TILE_ROWS));
                pack_left(block, [tile_rows, inputs, depth], &mut left, parallel);
                let task = |chunk| {
                    let tiles = Tiles::new(&left, (tile_rows, depth), weight, (count, chunk));
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

/// Rows in tiles: tile t holds its rows' k-th inputs side by side, at (t × depth + k) × tile rows. What a tile lacks in rows
/// or depth is zero.
fn pack_left<T: Number>(
    x: &[T],
    [tile_rows, inputs, depth]: [usize; 3],
    left: &mut Vec<f32>,
    parallel: bool,
) {
    let rows = x.len() / inputs;
    let tiles = rows.div_ceil(tile_rows);
    left.resize(tiles * depth * tile_rows, 0.0);
    let pack = |(tile, packed): (usize, &mut [f32])| {
        packed[inputs * tile_rows..].fill(0.0);
        for r in 0..tile_rows {
            let row = tile * tile_rows + r;
            let values = packed.iter_mut().skip(r).step_by(tile_rows);
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
    let tile = depth * tile_rows;
    if parallel && tiles > 1 {
        left.par_chunks_mut(tile).enumerate().for_each(pack);
    } else {
        left.chunks_mut(tile).enumerate().for_each(pack);
    }
}

/// A chunk of outputs for a block of rows.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    left: &'a [f32],
    depth: usize,
    weight: &'a Packed,
    rows: usize,
    /// Rows of a tile; the last may have fewer.
    tile_rows: usize,
    /// First panel.
    first: usize,
    panels: usize,
}

impl<'a> Tiles<'a> {
    fn new(
        left: &'a [f32],
        (tile_rows, depth): (usize, usize),
        weight: &'a Packed,
        (rows, chunk): (usize, usize),
    ) -> Self {
        let first = chunk * CHUNK_PANELS;
        Self {
            left,
            depth,
            weight,
            rows,
            tile_rows,
            first,
            panels: CHUNK_PANELS.min(weight.outputs().div_ceil(LANES) - first),
        }
    }

    fn left(&self, tile: usize, from: usize) -> Left {
        Left {
            at: self.left[(tile * self.depth + from) * self.tile_rows..].as_ptr(),
            step: self.tile_rows,
            row: 1,
        }
    }

    /// [rows, panels × LANES].
    fn sums(self, kernels: Kernels) -> Vec<f32> {
        let mut sums = vec![0.0; self.rows * self.panels * LANES];
        // SAFETY: the left side has whole tiles of this depth, the weights these panels, and the sums a place for each.
        unsafe {
            if self.rows <= TILE_ROWS {
                self.one_tile(kernels, &mut sums);
            } else {
                self.all_tiles(kernels, &mut sums);
            }
        }
        sums
    }

    /// A few rows: weights pass by once.
    unsafe fn one_tile(&self, kernels: Kernels, sums: &mut [f32]) {
        let right = self.weight.right(self.first, 0);
        let sums = Sums {
            at: sums.as_mut_ptr(),
            row: self.panels * LANES,
            fresh: true,
        };
        let sizes = (self.rows, self.panels, self.depth);
        unsafe { sweep(kernels, sizes, self.left(0, 0), right, sums) }
    }

    unsafe fn all_tiles(&self, kernels: Kernels, sums: &mut [f32]) {
        let tiles = self.rows.div_ceil(self.tile_rows);
        let together = kernels.panels();
        let block = BLOCK_DEPTH.min(BLOCK_LINES / together);
        for from in (0..self.depth).step_by(block) {
            let depth = block.min(self.depth - from);
            for panel in (0..self.panels).step_by(together) {
                let panels = together.min(self.panels - panel);
                let right = self.weight.right(self.first + panel, from);
                for tile in 0..tiles {
                    let first = tile * self.tile_rows;
                    let place = (first * self.panels + panel) * LANES;
                    let sums = Sums {
                        at: sums[place..].as_mut_ptr(),
                        row: self.panels * LANES,
                        fresh: from == 0,
                    };
                    let sizes = (self.tile_rows.min(self.rows - first), panels, depth);
                    unsafe { sweep(kernels, sizes, self.left(tile, from), right, sums) }
                }
            }
        }
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
