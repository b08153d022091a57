//! x Wᵀ with packed weights, and what follows a product while its result is still near: bias, GELU, residual.
//!
//! Rows are worked through in blocks that fit the second cache; within a block, tasks take chunks of outputs. Each task
//! walks the depth in blocks as well, going on from the sums of the one before, so that every chain stays in order.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::amx::{self, Halves};
use crate::bfp;
use crate::lanes::{LANES, Lanes, MANY_PANELS};
use crate::level::{Kernels, Work};
use crate::number::Number;
use crate::pack::{Line, Packed};
use crate::pieces::{Aligned, Shared, filled, load, store};
use crate::tile::{Left, Right, Sums, TILE_ROWS, sweep, widen};

/// Rows of a block; with [`BLOCK_DEPTH`] a quarter of a megabyte.
const BLOCK_ROWS: usize = 40 * TILE_ROWS;
/// The same for rows of bf16 as they lie, in whole tiles of AMX.
const BLOCK_TALL_ROWS: usize = 256;
/// The same for rows as whole numbers, half as large as f32.
const BLOCK_WHOLE_ROWS: usize = 512;
/// Inputs of a block; a panel of so many is 16 KiB, half of the first cache. A multiple of AMX's steps, and even, for pairs.
const BLOCK_DEPTH: usize = 256;
/// Inputs of a block, of all panels worked on together where those are several; 32 KiB.
const BLOCK_LINES: usize = 2 * BLOCK_DEPTH;
/// From so many rows on pairs of bf16 are widened once for all of a block's rows, where several panels are worked on together: there
/// what widens takes turns with what multiplies. For 16 rows it takes longer than it spares; 302 and more gain a tenth.
const WIDENED_ROWS: usize = 16 * TILE_ROWS;
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
        let halves = T::halves(x).filter(|_| weight.pairs());
        let whole = halves.filter(|_| self.has_blocks());
        let halves = halves.filter(|_| self.has_tiles());
        let halves = halves.map(|x| even(x, inputs));
        let block_rows = match (&halves, whole) {
            (Some(_), _) => BLOCK_TALL_ROWS,
            (None, Some(_)) => BLOCK_WHOLE_ROWS,
            (None, None) => BLOCK_ROWS,
        };
        filled(rows * outputs, |out| {
            let mut wide = Vec::new();
            let mut pairs;
            for first in (0..rows).step_by(block_rows) {
                let count = block_rows.min(rows - first);
                let left = if let Some(x) = &halves {
                    Rows::Halves(&x[first * depth..(first + count) * depth])
                } else if let Some(x) = whole {
                    let x = &x[first * inputs..(first + count) * inputs];
                    pairs = bfp::Rows::new(self, x, inputs, parallel);
                    Rows::Whole(&pairs)
                } else {
                    let block = &x[first * inputs..(first + count) * inputs];
                    // Tiles of about the same size: a small one at the end would take as long as a large one.
                    let tile_rows = count.div_ceil(count.div_ceil(TILE_ROWS));
                    pack_left(block, [tile_rows, inputs, depth], &mut wide, parallel);
                    Rows::Wide {
                        numbers: &wide,
                        tile_rows,
                    }
                };
                let task = |chunk| {
                    let tiles = Tiles::new(left, depth, weight, (count, chunk));
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

/// Rows of bf16 as an even number of inputs, the last zero where there is one more.
fn even(x: &[u16], inputs: usize) -> Cow<'_, [u16]> {
    if inputs.is_multiple_of(2) {
        return Cow::Borrowed(x);
    }
    let rows = x.chunks_exact(inputs);
    Cow::Owned(
        rows.flat_map(|row| row.iter().copied().chain([0]))
            .collect(),
    )
}

/// A block of rows as the inner loop takes them.
#[derive(Clone, Copy)]
enum Rows<'a> {
    /// Of [`pack_left`]: rows of a tile, of which the last may have fewer.
    Wide {
        numbers: &'a [f32],
        tile_rows: usize,
    },
    /// bf16, one row after the other.
    Halves(&'a [u16]),
    Whole(&'a bfp::Rows),
}

/// A chunk of outputs for a block of rows.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    left: Rows<'a>,
    depth: usize,
    weight: &'a Packed,
    rows: usize,
    /// First panel.
    first: usize,
    panels: usize,
}

impl<'a> Tiles<'a> {
    fn new(
        left: Rows<'a>,
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

    /// [rows, panels × LANES].
    fn sums(self, kernels: Kernels) -> Aligned {
        let mut sums = Aligned::zeros(self.rows * self.panels * LANES);
        match self.left {
            Rows::Wide { numbers, tile_rows } if self.rows <= TILE_ROWS => {
                let sizes = (self.rows, self.panels, self.depth);
                let left = wide(&numbers[..tile_rows * self.depth], tile_rows);
                let right = self.weight.right(self.first, 0);
                // SAFETY: the left side has a tile of this depth, the weights these panels, and the sums a place for each.
                // A few rows: weights pass by once.
                unsafe {
                    sweep(
                        kernels,
                        sizes,
                        left,
                        right,
                        self.place(&mut sums, (0, 0), 0),
                    )
                };
            }
            Rows::Wide { numbers, tile_rows } => {
                let together = kernels.panels();
                let block = BLOCK_DEPTH.min(BLOCK_LINES / together);
                let widens = self.weight.pairs() && together > 1 && self.rows >= WIDENED_ROWS;
                let mut lines = vec![Line([0; LANES]); if widens { together * block } else { 0 }];
                self.in_blocks((block, together, tile_rows), |at, sizes| {
                    let tile = at.row / tile_rows;
                    let left = &numbers[(tile * self.depth + at.input) * tile_rows..];
                    let mut right = self.weight.right(self.first + at.panel, at.input);
                    if widens {
                        if at.row == 0 {
                            let from = self.weight.pair_lines(self.first + at.panel, at.input);
                            let (sizes, lines) = ((sizes.1, sizes.2, block), &mut lines);
                            // Asked for is the same of the next block, which is widened once all rows were multiplied.
                            // SAFETY: the weights have these panels, of pairs for all of this depth.
                            unsafe { widen(kernels, from, sizes, sizes.1 / 2, lines) };
                        }
                        right = Right::F32 {
                            at: lines.as_ptr().cast(),
                            panel: block,
                        };
                    }
                    let sums = self.place(&mut sums, (at.row, at.panel), at.input);
                    // SAFETY: as above, for whole tiles.
                    unsafe { sweep(kernels, sizes, wide(left, tile_rows), right, sums) };
                });
            }
            Rows::Whole(rows) => {
                let mut whole = bfp::Whole::new(kernels);
                let blocks = (bfp::DEPTH, MANY_PANELS, self.rows);
                self.in_blocks(blocks, |at, (count, panels, depth)| {
                    let weights = self.weight.weights(self.first + at.panel, at.input);
                    let sums = self.place(&mut sums, (at.row, at.panel), at.input);
                    let sizes = (panels, at.input, depth);
                    // SAFETY: as above; blocks are whole but for the last.
                    unsafe { whole.sweep((rows, count), weights, sizes, sums) };
                });
            }
            Rows::Halves(numbers) => {
                // Few rows: weights pass by once.
                let block = if self.rows <= amx::ROWS {
                    self.depth
                } else {
                    BLOCK_DEPTH
                };
                self.in_blocks((block, amx::PANELS, self.rows), |at, sizes| {
                    let left = Halves {
                        at: numbers[at.row * self.depth + at.input..].as_ptr(),
                        row: self.depth,
                    };
                    let right = self.weight.pair_lines(self.first + at.panel, at.input);
                    let sums = self.place(&mut sums, (at.row, at.panel), at.input);
                    // SAFETY: as above; rows are only made so where there are tiles, and depth and blocks are even.
                    unsafe { amx::sweep(sizes, left, right, sums) };
                });
            }
        }
        sums
    }

    /// Where sums from a row and panel on go; they begin at the first input.
    fn place(&self, sums: &mut [f32], (row, panel): (usize, usize), input: usize) -> Sums {
        Sums {
            at: sums[(row * self.panels + panel) * LANES..].as_mut_ptr(),
            row: self.panels * LANES,
            fresh: input == 0,
        }
    }

    /// Rows × panels × depth for each block of `sizes` (inputs, panels and rows), the inputs of a result in order.
    fn in_blocks(
        &self,
        (inputs, panels, rows): (usize, usize, usize),
        mut work: impl FnMut(Corner, (usize, usize, usize)),
    ) {
        for input in (0..self.depth).step_by(inputs) {
            for panel in (0..self.panels).step_by(panels) {
                for row in (0..self.rows).step_by(rows) {
                    let sizes = (
                        rows.min(self.rows - row),
                        panels.min(self.panels - panel),
                        inputs.min(self.depth - input),
                    );
                    work(Corner { row, panel, input }, sizes);
                }
            }
        }
    }
}

/// Where a block begins.
struct Corner {
    row: usize,
    panel: usize,
    input: usize,
}

fn wide(numbers: &[f32], tile_rows: usize) -> Left {
    Left {
        at: numbers.as_ptr(),
        step: tile_rows,
        row: 1,
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
