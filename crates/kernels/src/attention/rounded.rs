//! Attention as the model's reference computes it in bf16: scores, weights and results are each rounded. A weight can be
//! rounded only once the sum of its row is known, so a task keeps its scores, rounded as they are, and walks keys first and
//! values then.

use super::tiled::Tiled;
use super::{LANES, Lanes, Number, State, Task};

/// Scores that a task keeps, 8 MiB in bf16.
pub(super) const KEPT_NUMBERS: usize = 1 << 22;

/// The scores of a task, then its weights.
struct Kept<T> {
    /// `[rows, stride]`.
    numbers: Vec<T>,
    /// The positions from `first` on, a multiple of [`LANES`].
    stride: usize,
    /// Where the first block begins.
    first: usize,
}

impl<T: Number> Task<'_, T> {
    /// All keys into the rows' results.
    #[inline(always)]
    pub(super) unsafe fn mix_rounded<S: Lanes>(&self, state: &mut State, scores: &mut [f32]) {
        let (span, keys) = (self.span(), super::block_keys(self.of.sizes[2]));
        let first = span.start / keys * keys;
        let stride = (span.end - first).next_multiple_of(LANES);
        let mut kept = Kept {
            numbers: vec![T::default(); state.rows * stride],
            stride,
            first,
        };
        let mut tiled = self.kernels.has_tiles().then(|| Tiled::new(self, state));
        unsafe {
            self.keep_scores::<S>(state, (&mut kept, tiled.as_mut()), scores);
            let mut wide = vec![0.0; stride];
            for row in 0..state.rows {
                let range = self.of.seen[self.queries.start + row / self.of.group()];
                let seen = range.first - first..range.end - first;
                let numbers = &mut kept.numbers[row * stride..(row + 1) * stride];
                weigh::<S, T>(numbers, seen, &mut wide);
            }
            self.use_weights::<S>(state, (&kept, tiled.as_mut()), scores);
        }
        // Weights are divided by their sum already.
        state.weight.fill(1.0);
    }

    #[inline(always)]
    unsafe fn keep_scores<S: Lanes>(
        &self,
        state: &State,
        (kept, mut tiled): (&mut Kept<T>, Option<&mut Tiled>),
        scores: &mut [f32],
    ) {
        let scale = unsafe { S::splat(self.of.scale) };
        let mut block = self.before_all();
        while self.advance(&mut block) {
            match &mut tiled {
                Some(tiled) => tiled.fill_keys(self, &block),
                None => self.fill_keys(&mut block),
            }
            for rows in state.blocks() {
                if rows.clone().all(|row| self.seen(&block, row).is_empty()) {
                    continue;
                }
                // SAFETY: scores have room for these rows; kept numbers reach to the end of the last block's positions.
                unsafe {
                    match &tiled {
                        Some(tiled) => tiled.scores(&block, &rows, scores),
                        None => self.scores(state, &block, &rows, scores),
                    }
                    for (at, row) in rows.enumerate() {
                        let place = row * kept.stride + block.first - kept.first;
                        let kept = &mut kept.numbers[place..place + block.count];
                        for key in (0..block.count).step_by(LANES) {
                            let score = S::load(scores[at * block.count + key..].as_ptr());
                            let score = T::round(score).mul(scale);
                            T::store(kept[key..].as_mut_ptr(), score);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn use_weights<S: Lanes>(
        &self,
        state: &mut State,
        (kept, mut tiled): (&Kept<T>, Option<&mut Tiled>),
        weights: &mut [f32],
    ) {
        let mut block = self.before_all();
        while self.advance(&mut block) {
            match &mut tiled {
                Some(tiled) => tiled.fill_values(self, &block),
                None => self.fill_values(&mut block),
            }
            for rows in state.blocks() {
                if rows.clone().all(|row| self.seen(&block, row).is_empty()) {
                    continue;
                }
                // SAFETY: as above.
                unsafe {
                    if let Some(tiled) = &tiled {
                        let from = rows.start * kept.stride + block.first - kept.first;
                        let weights = (&kept.numbers[from..], kept.stride);
                        tiled.add_values(state, &block, rows, weights);
                        continue;
                    }
                    for (at, row) in rows.clone().enumerate() {
                        let place = row * kept.stride + block.first - kept.first;
                        let kept = &kept.numbers[place..place + block.count];
                        for key in (0..block.count).step_by(LANES) {
                            let weight: S = T::load(kept[key..].as_ptr());
                            weight.store(weights[at * block.count + key..].as_mut_ptr());
                        }
                    }
                    self.add_values(state, &block, rows, weights);
                }
            }
        }
    }
}

/// A row's scores become its weights; those it does not see are 0.
#[inline(always)]
unsafe fn weigh<S: Lanes, T: Number>(
    numbers: &mut [T],
    seen: std::ops::Range<usize>,
    wide: &mut [f32],
) {
    let from = seen.start / LANES * LANES;
    let end = seen.end.next_multiple_of(LANES);
    numbers[..from].fill(T::default());
    numbers[end..].fill(T::default());
    let (numbers, wide) = (&mut numbers[from..end], &mut wide[from..end]);
    let lines = (0..end - from).step_by(LANES);
    unsafe {
        for at in lines.clone() {
            T::load::<S>(numbers[at..].as_ptr()).store(wide[at..].as_mut_ptr());
        }
        wide[..seen.start - from].fill(f32::NEG_INFINITY);
        wide[seen.end - from..].fill(f32::NEG_INFINITY);
        let mut most = S::splat(f32::NEG_INFINITY);
        for at in lines.clone() {
            most = most.max(S::load(wide[at..].as_ptr()));
        }
        let largest = S::splat(most.largest());
        let mut sum = S::splat(0.0);
        for at in lines.clone() {
            let weight = S::load(wide[at..].as_ptr()).sub(largest).exp();
            weight.store(wide[at..].as_mut_ptr());
            sum = sum.add(weight);
        }
        let sum = S::splat(sum.total());
        for at in lines {
            let weight = S::load(wide[at..].as_ptr()).div(sum);
            T::store(numbers[at..].as_mut_ptr(), weight);
        }
    }
}
