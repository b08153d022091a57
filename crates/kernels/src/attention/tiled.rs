//! The two products of attention in bf16 by AMX: rows' queries with keys, and their weights with values, which lie in memory
//! as its tiles want them.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Block, LANES, Number, State, Sums, Task, block_keys};
use crate::amx::{self, Halves, PairLines};
use crate::pack::{Line, interleave};

/// What a task lays out for tiles.
pub(super) struct Tiled {
    /// Numbers of a query, one more where that is odd.
    depth: usize,
    /// `[rows, depth]`, bf16.
    query: Vec<u16>,
    /// A block's keys: panels of sixteen positions, a line for two numbers of each.
    keys: Box<[MaybeUninit<Line>]>,
    /// A block's values: panels of sixteen numbers, a line for two positions.
    values: Vec<Line>,
    /// Sixteen keys one after the other.
    rows: Vec<u32>,
}

impl Tiled {
    pub(super) fn new<T: Number>(task: &Task<'_, T>, state: &State) -> Self {
        let width = task.of.sizes[2];
        let (depth, keys) = (width.next_multiple_of(2), block_keys(width));
        let mut query = vec![0; state.rows * depth];
        let of = T::halves(task.of.query).unwrap_or_default();
        for (row, query) in query.chunks_exact_mut(depth).enumerate() {
            let place = task.place(row);
            query[..width].copy_from_slice(&of[place..place + width]);
        }
        Self {
            depth,
            query,
            keys: Box::new_uninit_slice(keys / LANES * depth / 2),
            values: vec![Line([0; LANES]); keys / 2 * width.div_ceil(LANES)],
            rows: vec![0; LANES * depth / 2],
        }
    }

    /// Keys of a block; zeros in place of those that are not known.
    pub(super) fn fill_keys<T: Number>(&mut self, task: &Task<'_, T>, block: &Block) {
        let of = T::halves(task.of.cached.keys).unwrap_or_default();
        let (width, words) = (task.of.sizes[2], self.depth / 2);
        let panels = self.keys.chunks_exact_mut(words).take(block.count / LANES);
        for (panel, lines) in panels.enumerate() {
            for (at, row) in self.rows.chunks_exact_mut(words).enumerate() {
                let position = block.first + panel * LANES + at;
                if !block.known.contains(&position) {
                    row.fill(0);
                    continue;
                }
                let key = &of[task.stored(position)..][..width];
                for (word, pair) in row.iter_mut().zip(key.chunks(2)) {
                    *word = both(pair[0], pair.get(1).copied().unwrap_or_default());
                }
            }
            interleave(&self.rows, words, lines);
        }
    }

    /// The same for values.
    pub(super) fn fill_values<T: Number>(&mut self, task: &Task<'_, T>, block: &Block) {
        let of = T::halves(task.of.cached.values).unwrap_or_default();
        let (width, pairs) = (task.of.sizes[2], block.count / 2);
        for pair in 0..pairs {
            let value = |position: usize| -> &[u16] {
                if block.known.contains(&position) {
                    &of[task.stored(position)..][..width]
                } else {
                    &[]
                }
            };
            let first = block.first + 2 * pair;
            let (even, odd) = (value(first), value(first + 1));
            for part in 0..width.div_ceil(LANES) {
                let line = &mut self.values[part * pairs + pair];
                let numbers = |from: &[u16]| {
                    let mut numbers = [0; LANES];
                    let from = &from[from.len().min(part * LANES)..];
                    let count = from.len().min(LANES);
                    numbers[..count].copy_from_slice(&from[..count]);
                    numbers
                };
                let (even, odd) = (numbers(even), numbers(odd));
                line.0 = std::array::from_fn(|at| both(even[at], odd[at]));
            }
        }
    }

    /// Products of rows with all keys of a block: `[rows, keys]`.
    ///
    /// # Safety
    /// The machine has tiles, and `scores` room for these rows.
    pub(super) unsafe fn scores(&self, block: &Block, rows: &Range<usize>, scores: &mut [f32]) {
        let left = Halves {
            at: self.query[rows.start * self.depth..].as_ptr(),
            row: self.depth,
        };
        let right = PairLines {
            at: self.keys.as_ptr().cast(),
            panel: self.depth / 2,
        };
        let sums = Sums {
            at: scores.as_mut_ptr(),
            row: block.count,
            fresh: true,
        };
        let sizes = (rows.len(), block.count / LANES, self.depth);
        // SAFETY: the rows' queries and the block's keys are there, the rest is the caller's word.
        unsafe { amx::sweep(sizes, left, right, sums) };
    }

    /// Adds a block's values, each times its weight, which lie `stride` apart from row to row.
    ///
    /// # Safety
    /// The machine has tiles, and `weights` reach as far as the rows and the block.
    pub(super) unsafe fn add_values<T: Number>(
        &self,
        state: &mut State,
        block: &Block,
        rows: Range<usize>,
        (weights, stride): (&[T], usize),
    ) {
        let left = Halves {
            at: weights.as_ptr().cast(),
            row: stride,
        };
        let right = PairLines {
            at: self.values.as_ptr().cast(),
            panel: block.count / 2,
        };
        let sums = Sums {
            at: state.mixed[rows.start * state.padded..].as_mut_ptr(),
            row: state.padded,
            fresh: false,
        };
        let sizes = (rows.len(), state.padded / LANES, block.count);
        // SAFETY: the block's values and the rows' results are there, the rest is the caller's word.
        unsafe { amx::sweep(sizes, left, right, sums) };
    }
}

/// Two bf16 in a word, the first in the lower half.
fn both(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}
