//! Keys and values of a task in bf16, laid out once in pairs, and the rows' two products with them: by tiles where the machine
//! has them, else by multiply-adds. Either way a result is one chain over its pairs in order, of tiles in steps that begin at
//! multiples counted from the sequence's start ([`whole`]).

use std::mem::MaybeUninit;
use std::ops::Range;

use super::rounded::CHUNK;
use super::{LANES, Lanes, Left, Number, Right, State, Sums, TILE_ROWS, Task, sweep};
use crate::amx::{self, Halves, PairLines};
use crate::bfp::{self, Weights};
use crate::level::Kernels;
use crate::pack::{Line, interleave};
use crate::pieces::Aligned;
use crate::tile::{AHEAD, widen};

/// From so many rows on keys and values are widened once for all of them.
const WIDENED_ROWS: usize = 4 * TILE_ROWS;

/// What the queries of a task read: the positions from `first` on.
pub(super) struct Pairs {
    /// A multiple of [`amx::STEP`].
    pub(super) first: usize,
    /// A multiple of [`LANES`].
    pub(super) count: usize,
    /// Numbers of a query, one more where that is odd.
    depth: usize,
    /// Panels of sixteen positions, a line for two numbers of each.
    keys: Box<[MaybeUninit<Line>]>,
    /// Panels of sixteen numbers, a line for two positions.
    values: Box<[MaybeUninit<Line>]>,
    /// `[rows, depth]`, bf16; for tiles and for whole numbers.
    query: Option<Vec<u16>>,
    /// For whole numbers.
    steps: Option<Steps>,
}

/// The steps of keys and values, [`bfp::steps`] of each panel. What a block of values has in common depends on all of its
/// positions, so only rows that see all may be multiplied with them.
struct Steps {
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// Some of a task's rows, and some positions counted from the first one.
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    /// From a multiple of [`amx::STEP`] to one of [`LANES`].
    pub(super) positions: Range<usize>,
}

/// Where a part's numbers are widened.
pub(super) struct Wide {
    /// `[rows, positions]`: scores, later weights.
    pub(super) numbers: Aligned,
    /// Keys or values of some panels, a line for each number of a key or each position; none where pairs are widened in registers.
    lines: Vec<Line>,
    /// The same as whole numbers.
    whole: Option<Box<Whole>>,
}

struct Whole {
    query: bfp::Rows,
    weights: bfp::Rows,
    panels: bfp::Whole,
}

impl Wide {
    pub(super) fn new(kernels: Kernels, pairs: &Pairs, numbers: usize) -> Self {
        let whole = pairs.steps.as_ref().map(|_| {
            Box::new(Whole {
                query: bfp::Rows::empty(pairs.depth),
                weights: bfp::Rows::empty(CHUNK),
                panels: bfp::Whole::new(kernels),
            })
        });
        let widens = kernels.panels() > 1 && !kernels.has_tiles() && whole.is_none();
        let lines = if widens {
            (kernels.panels() + 1) * CHUNK
        } else {
            0
        };
        Self {
            numbers: Aligned::zeros(numbers),
            lines: vec![Line([0; LANES]); lines],
            whole,
        }
    }

    /// How many of so many panels of values are worked on at once.
    fn together(&self, panels: usize) -> usize {
        match self.lines.len() / CHUNK {
            0 => panels,
            room if panels <= room => panels,
            room => room - 1,
        }
    }

    /// The right side of a product with `rows` rows; widened once for all of them where there are many.
    ///
    /// # Safety
    /// `from` has these panels, of pairs for all of the depth.
    unsafe fn right(
        &mut self,
        kernels: Kernels,
        from: PairLines,
        (rows, panels, depth): (usize, usize, usize),
    ) -> Right {
        if rows < WIDENED_ROWS || panels * depth > self.lines.len() {
            return Right::Pairs {
                at: from.at,
                panel: from.panel,
            };
        }
        // SAFETY: as said.
        unsafe {
            widen(
                kernels,
                from,
                (panels, depth, depth),
                AHEAD,
                &mut self.lines,
            )
        };
        Right::F32 {
            at: self.lines.as_ptr().cast(),
            panel: depth,
        }
    }
}

/// These positions and some before and behind them, so that no step of a tile begins elsewhere because of where a row's window
/// does, or that of a row beside it.
pub(super) fn whole(seen: Range<usize>) -> Range<usize> {
    seen.start / amx::STEP * amx::STEP..seen.end.next_multiple_of(LANES)
}

impl Pairs {
    pub(super) fn new<T: Number>(task: &Task<'_, T>, state: &State) -> Self {
        let (span, width) = (task.span(), task.of.sizes[2]);
        let all = whole(span.clone());
        let (first, count) = (all.start, all.len());
        let as_whole = task.kernels.has_blocks() && task.of.sees_all;
        let mut pairs = Self {
            first,
            count,
            depth: state.depth,
            keys: Box::new_uninit_slice(count / LANES * state.depth / 2),
            values: Box::new_uninit_slice(count / 2 * width.div_ceil(LANES)),
            query: (task.kernels.has_tiles() || as_whole).then(|| query(task, state)),
            steps: None,
        };
        pairs.lay_keys(task, &span);
        pairs.lay_values(task, &span);
        // SAFETY: both were just laid, all of them.
        let (keys, values) =
            unsafe { (pairs.keys.assume_init_ref(), pairs.values.assume_init_ref()) };
        pairs.steps = as_whole.then(|| Steps {
            keys: bfp::steps(keys, state.depth, false),
            values: bfp::steps(values, count, false),
        });
        pairs
    }

    /// Before the scores of some rows: their queries, where those are multiplied as whole numbers.
    pub(super) fn begin(&self, kernels: Kernels, rows: &Range<usize>, wide: &mut Wide) {
        if let (Some(whole), Some(query)) = (&mut wide.whole, &self.query) {
            let query = &query[rows.start * self.depth..rows.end * self.depth];
            let sizes = (rows.len(), self.depth, self.depth);
            whole.query.refill(kernels, query, sizes);
        }
    }

    /// Zeros in place of keys that no query sees.
    fn lay_keys<T: Number>(&mut self, task: &Task<'_, T>, span: &Range<usize>) {
        let of = T::halves(task.of.cached.keys).unwrap_or_default();
        let (width, words) = (task.of.sizes[2], self.depth / 2);
        let mut sixteen = vec![0; LANES * words];
        for (panel, lines) in self.keys.chunks_exact_mut(words).enumerate() {
            for (at, row) in sixteen.chunks_exact_mut(words).enumerate() {
                let position = self.first + panel * LANES + at;
                if !span.contains(&position) {
                    row.fill(0);
                    continue;
                }
                let key = &of[task.stored(position)..][..width];
                let (pairs, odd) = key.as_chunks::<2>();
                for (word, [first, second]) in row.iter_mut().zip(pairs) {
                    *word = both(*first, *second);
                }
                if let [last] = odd {
                    row[words - 1] = both(*last, 0);
                }
            }
            interleave(&sixteen, words, lines);
        }
    }

    /// The same for values.
    fn lay_values<T: Number>(&mut self, task: &Task<'_, T>, span: &Range<usize>) {
        let of = T::halves(task.of.cached.values).unwrap_or_default();
        let (width, pairs) = (task.of.sizes[2], self.count / 2);
        let value = |position: usize| -> &[u16] {
            if span.contains(&position) {
                &of[task.stored(position)..][..width]
            } else {
                &[]
            }
        };
        for pair in 0..pairs {
            let first = self.first + 2 * pair;
            let (even, odd) = (value(first), value(first + 1));
            for part in 0..width.div_ceil(LANES) {
                let (even, odd) = (sixteen(even, part), sixteen(odd, part));
                let line = Line(std::array::from_fn(|at| both(even[at], odd[at])));
                self.values[part * pairs + pair].write(line);
            }
        }
    }

    /// Products of the part's queries and keys: `[rows, positions]`.
    ///
    /// # Safety
    /// The part is of the task, and `scores` has room for it.
    pub(super) unsafe fn scores<T: Number>(
        &self,
        task: &Task<'_, T>,
        state: &State,
        part: &Part,
        wide: &mut Wide,
    ) {
        let (rows, count) = (part.rows.len(), part.positions.len());
        let (words, panels) = (self.depth / 2, count / LANES);
        let query = part.rows.start * self.depth;
        let keys = self.keys[part.positions.start / LANES * words..].as_ptr();
        if let (Some(steps), Some(whole)) = (&self.steps, &mut wide.whole) {
            let step_panel = bfp::blocks(self.depth) * LANES;
            let steps = steps.keys[part.positions.start / LANES * step_panel..].as_ptr();
            let right = Weights {
                pairs: PairLines {
                    at: keys.cast(),
                    panel: words,
                },
                steps,
                step_panel,
            };
            let sums = sums(&mut wide.numbers, count, true);
            let sizes = (rows, panels, self.depth);
            // SAFETY: `begin` laid the queries; keys and scores are there.
            unsafe { whole.panels.multiply(&whole.query, right, sizes, sums) };
            return;
        }
        if let Some(queries) = &self.query {
            let left = Halves {
                at: queries[query..].as_ptr(),
                row: self.depth,
            };
            let right = PairLines {
                at: keys.cast(),
                panel: words,
            };
            let sums = sums(&mut wide.numbers, count, true);
            // SAFETY: there are tiles where queries are; keys and scores are there.
            unsafe { amx::sweep((rows, panels, self.depth), left, right, sums) };
            return;
        }
        let left = Left {
            at: state.query[query..].as_ptr(),
            step: 1,
            row: self.depth,
        };
        // Panel by panel, so that a panel of keys stays near while all rows use it; a few rows take all panels at once.
        let together = if rows <= TILE_ROWS {
            panels
        } else {
            task.kernels.panels()
        };
        for panel in (0..panels).step_by(together) {
            let from = PairLines {
                at: keys.wrapping_add(panel * words).cast(),
                panel: words,
            };
            let sizes = (rows, together.min(panels - panel), self.depth);
            // SAFETY: as above; a query is as deep as two numbers of each line.
            unsafe {
                let right = wide.right(task.kernels, from, sizes);
                let sums = sums(&mut wide.numbers[panel * LANES..], count, true);
                sweep(task.kernels, sizes, left, right, sums);
            }
        }
    }

    /// Adds the part's values to the rows' results, each times its weight. Weights begin with the part's first and lie
    /// `stride` apart from row to row; `wide` is where they are widened.
    ///
    /// # Safety
    /// The part is of the task, and `weights` and `wide` have one for each of its rows and positions.
    #[inline(always)]
    pub(super) unsafe fn add_values<S: Lanes, T: Number>(
        &self,
        (kernels, state): (Kernels, &mut State),
        part: &Part,
        (weights, stride): (&[T], usize),
        wide: &mut Wide,
    ) {
        let (rows, count) = (part.rows.len(), part.positions.len());
        let values = self.values[part.positions.start / 2..].as_ptr();
        let panel = self.count / 2;
        let sizes = (rows, state.padded / LANES, count);
        let mixed = &mut state.mixed[part.rows.start * state.padded..];
        let sums = sums(mixed, state.padded, false);
        if let (Some(steps), Some(whole)) = (&self.steps, &mut wide.whole) {
            let weights = T::halves(weights).unwrap_or_default();
            whole
                .weights
                .refill(kernels, weights, (rows, count, stride));
            let right = Weights {
                pairs: PairLines {
                    at: values.cast(),
                    panel,
                },
                steps: steps.values[part.positions.start / bfp::BLOCK * LANES..].as_ptr(),
                step_panel: bfp::blocks(self.count) * LANES,
            };
            // SAFETY: weights were just laid; values and results are there.
            unsafe { whole.panels.multiply(&whole.weights, right, sizes, sums) };
            return;
        }
        if self.query.is_some() {
            let left = Halves {
                at: weights.as_ptr().cast(),
                row: stride,
            };
            let at = values.cast();
            // SAFETY: there are tiles where queries are; values and results are there, weights by the caller's word.
            unsafe { amx::sweep(sizes, left, PairLines { at, panel }, sums) };
            return;
        }
        for (weights, wide) in weights
            .chunks(stride)
            .zip(wide.numbers.chunks_exact_mut(count))
            .take(rows)
        {
            for at in (0..count).step_by(LANES) {
                // SAFETY: of whole lines, `wide` has as many as it is long, and weights have as many.
                unsafe { T::load::<S>(weights[at..].as_ptr()).store(wide[at..].as_mut_ptr()) };
            }
        }
        let left = Left {
            at: wide.numbers.as_ptr(),
            step: 1,
            row: count,
        };
        let mut done = 0;
        while done < sizes.1 {
            let panels = wide.together(sizes.1 - done);
            let from = PairLines {
                at: values.wrapping_add(done * panel).cast(),
                panel,
            };
            let sums = Sums {
                at: sums.at.wrapping_add(done * LANES),
                ..sums
            };
            let sizes = (rows, panels, count);
            // SAFETY: as above.
            unsafe {
                let right = wide.right(kernels, from, sizes);
                sweep(kernels, sizes, left, right, sums);
            }
            done += panels;
        }
    }
}

/// The queries as they lie, one row after the other.
fn query<T: Number>(task: &Task<'_, T>, state: &State) -> Vec<u16> {
    let (of, width) = (
        T::halves(task.of.query).unwrap_or_default(),
        task.of.sizes[2],
    );
    let mut query = vec![0; state.rows * state.depth];
    for (row, query) in query.chunks_exact_mut(state.depth).enumerate() {
        query[..width].copy_from_slice(&of[task.place(row)..][..width]);
    }
    query
}

/// Numbers `part × 16` on; zeros behind the last.
fn sixteen(of: &[u16], part: usize) -> [u16; LANES] {
    let of = &of[of.len().min(part * LANES)..];
    if let Some(numbers) = of.first_chunk() {
        return *numbers;
    }
    let mut numbers = [0; LANES];
    numbers[..of.len()].copy_from_slice(of);
    numbers
}

/// Two bf16 in a word, the first in the lower half.
fn both(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

fn sums(at: &mut [f32], row: usize, fresh: bool) -> Sums {
    Sums {
        at: at.as_mut_ptr(),
        row,
        fresh,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_begin_at_multiples_wherever_a_window_does() {
        for start in 0..100 {
            let all = whole(start..start + 45);
            assert!(all.start <= start && start < all.start + amx::STEP);
            assert!(all.start.is_multiple_of(amx::STEP) && all.len().is_multiple_of(LANES));
            assert!((start + 45..start + 45 + LANES).contains(&all.end));
        }
    }
}
