//! Attention as the model's reference computes it in bf16: scores, weights and results are each rounded. A weight can be
//! rounded only once the sum of its row is known, so some rows at a time keep their scores, rounded as they are: all their
//! keys come first, then their values.

use std::ops::Range;

use super::pairs::{Pairs, Part, Wide, whole};
use super::{BLOCK_ROWS, LANES, Lanes, Number, State, Task};
use crate::{amx, bfp};

/// Positions whose scores and values are worked on together; what is held of them for [`BLOCK_ROWS`] rows is 24 KiB.
pub(super) const CHUNK: usize = 128;
const _: () = assert!(CHUNK.is_multiple_of(amx::STEP) && CHUNK.is_multiple_of(bfp::BLOCK));
/// What is left free behind each row of scores: with 4,096 keys all rows would lie in the same lines of the first cache.
const APART: usize = 2 * LANES;

/// What some rows hold while they are worked on.
struct Kept<T> {
    /// `[rows, stride]`: scores, then weights.
    numbers: Vec<T>,
    /// The positions of the task, and some more.
    stride: usize,
    wide: Wide,
    /// Weights of a row that are not divided yet.
    weights: Vec<f32>,
}

impl<T: Number> Task<'_, T> {
    /// All keys and values into the rows' results.
    #[inline(always)]
    pub(super) unsafe fn mix_rounded<S: Lanes>(&self, state: &mut State) {
        let pairs = Pairs::new(self, state);
        let rows = BLOCK_ROWS.min(state.rows);
        let stride = pairs.count + APART;
        let mut kept = Kept {
            numbers: vec![T::default(); rows * stride],
            stride,
            wide: Wide::new(self.kernels, &pairs, rows * CHUNK),
            weights: vec![0.0; pairs.count],
        };
        for rows in state.blocks() {
            // SAFETY: rows are the task's, and what is kept has room for them.
            unsafe { self.mix_rows::<S>(state, &pairs, rows, &mut kept) };
        }
        // Weights are divided by their sum already.
        state.weight.fill(1.0);
    }

    #[inline(always)]
    unsafe fn mix_rows<S: Lanes>(
        &self,
        state: &mut State,
        pairs: &Pairs,
        rows: Range<usize>,
        kept: &mut Kept<T>,
    ) {
        let seen = |row: usize| {
            let range = self.of.seen[self.queries.start + row / self.of.group()];
            range.first - pairs.first..range.end - pairs.first
        };
        let first = rows.clone().map(|row| seen(row).start).min().unwrap_or(0);
        let end = rows.clone().map(|row| seen(row).end).max().unwrap_or(0);
        // Both count from the first of the pairs, which is a whole number of steps from the sequence's start.
        let all = whole(first..end);
        let parts = || {
            let positions = all.clone().step_by(CHUNK);
            positions.map(|at| Part {
                rows: rows.clone(),
                positions: at..all.end.min(at + CHUNK),
            })
        };
        pairs.begin(self.kernels, &rows, &mut kept.wide);
        // SAFETY: parts are of these rows and of the positions that they see, for which all has room.
        unsafe {
            for part in parts() {
                pairs.scores(self, state, &part, &mut kept.wide);
                self.keep::<S>(&part, kept);
            }
            for (at, row) in rows.clone().enumerate() {
                let numbers = &mut kept.numbers[at * kept.stride..][all.clone()];
                let seen = seen(row);
                let seen = seen.start - all.start..seen.end - all.start;
                weigh::<S, T>(numbers, seen, &mut kept.weights);
            }
            for part in parts() {
                let weights = (&kept.numbers[part.positions.start..], kept.stride);
                let to = (self.kernels, &mut *state);
                pairs.add_values::<S, T>(to, &part, weights, &mut kept.wide);
            }
        }
    }

    /// Rounds and scales the scores of a part.
    #[inline(always)]
    unsafe fn keep<S: Lanes>(&self, part: &Part, kept: &mut Kept<T>) {
        let scores = kept.wide.numbers.chunks_exact(part.positions.len());
        let numbers = kept.numbers.chunks_exact_mut(kept.stride);
        for (scores, numbers) in scores.zip(numbers).take(part.rows.len()) {
            let numbers = &mut numbers[part.positions.clone()];
            for at in (0..scores.len()).step_by(LANES) {
                // SAFETY: both have whole lines, as many as there are positions.
                unsafe {
                    let score = T::round(S::load(scores[at..].as_ptr()));
                    let score = score.mul(S::splat(self.of.scale));
                    T::store(numbers[at..].as_mut_ptr(), score);
                }
            }
        }
    }
}

/// A row's scores become its weights; those it does not see are 0.
///
/// # Safety
/// `numbers` are whole lines, and `wide` has as many.
#[inline(always)]
unsafe fn weigh<S: Lanes, T: Number>(numbers: &mut [T], seen: Range<usize>, wide: &mut [f32]) {
    let (from, end) = (seen.start / LANES * LANES, seen.end.next_multiple_of(LANES));
    numbers[..from].fill(T::default());
    numbers[end..].fill(T::default());
    let unseen = T::rounded(f32::NEG_INFINITY);
    numbers[from..seen.start].fill(unseen);
    numbers[seen.end..end].fill(unseen);
    let (numbers, wide) = (&mut numbers[from..end], &mut wide[..end - from]);
    let lines = (0..end - from).step_by(LANES);
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for at in lines.clone() {
            most = most.max(T::load(numbers[at..].as_ptr()));
        }
        let largest = S::splat(most.largest());
        let mut sum = S::splat(0.0);
        for at in lines.clone() {
            let weight = T::load::<S>(numbers[at..].as_ptr()).sub(largest).exp();
            weight.store(wide[at..].as_mut_ptr());
            sum = sum.add(weight);
        }
        let sum = sum.total();
        let (by, sum) = (S::splat(1.0 / sum), S::splat(-sum));
        for at in lines {
            let weight = S::load(wide[at..].as_ptr());
            let quotient = weight.mul(by);
            // What is left of the weight brings the last bit, as a division would; at the portable level, whose multiply-adds round
            // twice, nearly always.
            let left = quotient.mul_add(sum, weight);
            T::store(numbers[at..].as_mut_ptr(), left.mul_add(by, quotient));
        }
    }
}
