//! Attention over blocks of keys. In f32 it never holds a row's scores whole: each row has a running maximum and sum (Milakov
//! and Gimelshein 2018, Dao et al. 2022). In bf16 the model's reference rounds the weights, which needs their sum first:
//! `rounded`, which lays keys and values out in pairs: `pairs`.
//!
//! Blocks begin at multiples of a constant, counted from the sequence's start, wherever a prompt was cut; what a row does not
//! see has weight 0 and changes nothing. So a row's numbers depend on its own keys alone.

mod pairs;
mod rounded;

use crate::amx;
use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::number::Number;
use crate::pieces::{Aligned, Shared, filled, store};
use crate::product::each;
use crate::tile::{Left, Right, Sums, TILE_ROWS, sweep};

/// Rows worked on together, whole tiles of each level; their scores stay in the first caches.
const BLOCK_ROWS: usize = 48;
const _: () =
    assert!(BLOCK_ROWS.is_multiple_of(TILE_ROWS) && BLOCK_ROWS.is_multiple_of(amx::TILE_ROWS));
/// Rows of one task, which brings a block of keys into order once for all of them.
const TASK_ROWS: usize = 1024;
/// Numbers of a block of keys; with as many values a quarter of a megabyte. How many keys that is depends on the model only.
const BLOCK_NUMBERS: usize = 1 << 15;
/// Products of queries and keys below which a second thread does not pay.
const PARALLEL_MIN: usize = 1 << 16;

/// The positions that a query sees: from `first` up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange {
    /// First position seen.
    pub first: usize,
    /// Behind the last one.
    pub end: usize,
}

/// Keys and values where they lie.
#[derive(Debug, Clone, Copy)]
pub struct Cached<'a, T> {
    /// [slots, kv heads, width].
    pub keys: &'a [T],
    /// The same.
    pub values: &'a [T],
    /// Slot of each position from `first` on; without, a position is its own slot.
    pub slots: Option<&'a [u32]>,
    /// The first position that `slots` knows.
    pub first: usize,
}

/// Queries of one sequence; head h reads the keys of kv head h / (heads / kv heads).
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a, T> {
    /// `[rows, heads, width]`.
    pub query: &'a [T],
    /// [heads, kv heads, width].
    pub sizes: [usize; 3],
    /// What products are multiplied with.
    pub scale: f32,
    /// The sequence's keys.
    pub cached: Cached<'a, T>,
    /// What each row sees, at least one position.
    pub seen: &'a [KeyRange],
    /// That this is all positions, as they are stored, for every row of the model's layer, in this call or another: as in an encoder
    /// of pictures. Levels that multiply bf16 in whole numbers do so here only, where no row's numbers depend on what it does not see.
    pub sees_all: bool,
}

impl<T: Number> Attention<'_, T> {
    fn rows(&self) -> usize {
        self.seen.len()
    }

    fn width_all(&self) -> usize {
        self.sizes[0] * self.sizes[2]
    }

    /// Query heads of a kv head.
    fn group(&self) -> usize {
        self.sizes[0] / self.sizes[1]
    }

    fn task_queries(&self) -> usize {
        (TASK_ROWS / self.group()).max(1)
    }

    fn check(&self) {
        let [heads, kv_heads, width] = self.sizes;
        let Cached {
            keys,
            values,
            slots,
            first,
        } = self.cached;
        assert!(
            heads.is_multiple_of(kv_heads) && width > 0,
            "heads of a group"
        );
        assert_eq!(self.query.len(), self.rows() * heads * width, "queries");
        let stored = keys.len() / (kv_heads * width);
        assert!(values.len() == keys.len(), "a value for each key");
        let known = slots.map_or(stored, |slots| first + slots.len());
        let seen = |range: &KeyRange| first <= range.first && range.first < range.end;
        let within = |range: &KeyRange| seen(range) && range.end <= known;
        assert!(self.seen.iter().all(within), "ranges of known positions");
        let all = |range: &KeyRange| (range.first, range.end) == (0, stored);
        assert!(
            !self.sees_all || slots.is_none() && self.seen.iter().all(all),
            "rows that see all positions as they are stored"
        );
        let stored = |slot: &u32| (*slot as usize) < stored;
        assert!(slots.is_none_or(|slots| slots.iter().all(stored)), "slots");
    }
}

impl Kernels {
    /// softmax(q kᵀ × scale) v of several sequences: their rows one after the other, [rows, heads × width].
    /// Scores are rounded to T before and after scaling, then weights, then results.
    ///
    /// # Panics
    /// Where sizes do not fit each other.
    pub fn attend<T: Number>(self, batch: &[Attention<T>]) -> Vec<T> {
        T::attend(self, batch)
    }

    pub(crate) fn attend_of<T: Number>(self, batch: &[Attention<T>]) -> Vec<T> {
        let (mut tasks, mut count, mut work) = (Vec::new(), 0, 0);
        for of in batch {
            of.check();
            for from in (0..of.rows()).step_by(of.task_queries()) {
                tasks.extend((0..of.sizes[1]).map(|kv_head| (of, kv_head, from, count)));
            }
            count += of.query.len();
            let keys = of.seen.iter().map(|range| range.end - range.first);
            work += keys.sum::<usize>() * of.width_all();
        }
        filled(count, |out| {
            each(tasks.len(), work >= PARALLEL_MIN, |task| {
                let (of, kv_head, from, first) = tasks[task];
                let queries = from..of.rows().min(from + of.task_queries());
                self.run(Task {
                    kernels: self,
                    of,
                    kv_head,
                    queries,
                    first,
                    out,
                });
            });
        })
    }
}

/// Some queries of one sequence, for the heads that read one kv head.
struct Task<'a, T> {
    kernels: Kernels,
    of: &'a Attention<'a, T>,
    kv_head: usize,
    queries: std::ops::Range<usize>,
    /// Where the sequence's results begin.
    first: usize,
    out: Shared<T>,
}

/// What a task keeps: rows are queries times the heads of the group.
struct State {
    rows: usize,
    /// `[rows, depth]`.
    query: Vec<f32>,
    /// Numbers of a query, one more, which is zero, where that is odd.
    depth: usize,
    /// [rows, padded width], not yet divided.
    mixed: Aligned,
    padded: usize,
    /// The largest score so far, of each row.
    largest: Vec<f32>,
    /// The sum of weights so far, of each row.
    weight: Vec<f32>,
}

/// A block of keys and values in order for products.
struct Block {
    /// First position.
    first: usize,
    /// Positions, a multiple of [`LANES`].
    count: usize,
    /// Those that any of the task's queries sees.
    known: std::ops::Range<usize>,
    /// Panels of sixteen positions, a line for each number of a key.
    keys: Vec<f32>,
    /// Panels of sixteen numbers, a line for each position.
    values: Vec<f32>,
}

impl<T: Number> Work for Task<'_, T> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let mut state = self.state();
        if T::ROUNDS {
            // SAFETY: the state is this task's.
            unsafe { self.mix_rounded::<S>(&mut state) };
        } else {
            let keys = block_keys(self.of.sizes[2]);
            let mut scores = vec![0.0; BLOCK_ROWS.min(state.rows) * keys];
            let mut block = self.before_all();
            while self.advance(&mut block) {
                self.fill_keys(&mut block);
                self.fill_values(&mut block);
                for rows in state.blocks() {
                    // SAFETY: as above, and the block is as large as `before_all` made it.
                    unsafe { self.mix::<S>(&mut state, &block, rows, &mut scores) };
                }
            }
        }
        // SAFETY: these rows and heads are this task's alone.
        unsafe { self.finish::<S>(&state) };
    }
}

impl State {
    /// The rows, some at a time.
    fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let rows = self.rows;
        (0..rows)
            .step_by(BLOCK_ROWS)
            .map(move |row| row..rows.min(row + BLOCK_ROWS))
    }
}

/// Keys of a block: a multiple of sixteen, between 16 and 256.
fn block_keys(width: usize) -> usize {
    (BLOCK_NUMBERS / width / LANES * LANES).clamp(LANES, 256)
}

impl<T: Number> Task<'_, T> {
    /// Where a row's query begins.
    fn place(&self, row: usize) -> usize {
        let ([heads, _, width], group) = (self.of.sizes, self.of.group());
        let query = self.queries.start + row / group;
        (query * heads + self.kv_head * group + row % group) * width
    }

    fn state(&self) -> State {
        let (width, rows) = (self.of.sizes[2], self.queries.len() * self.of.group());
        let (depth, padded) = (width.next_multiple_of(2), width.next_multiple_of(LANES));
        let mut query = vec![0.0; rows * depth];
        for (row, wide) in query.chunks_exact_mut(depth).enumerate() {
            let values = &self.of.query[self.place(row)..][..width];
            for (wide, value) in wide.iter_mut().zip(values) {
                *wide = value.wide();
            }
        }
        State {
            rows,
            query,
            depth,
            mixed: Aligned::zeros(rows * padded),
            padded,
            largest: vec![f32::NEG_INFINITY; rows],
            weight: vec![0.0; rows],
        }
    }

    /// The positions that any of the queries sees.
    fn span(&self) -> std::ops::Range<usize> {
        let seen = &self.of.seen[self.queries.clone()];
        let first = seen.iter().map(|range| range.first).min().unwrap_or(0);
        first..seen.iter().map(|range| range.end).max().unwrap_or(0)
    }

    /// The empty block in front of all keys.
    fn before_all(&self) -> Block {
        let width = self.of.sizes[2];
        let keys = block_keys(width);
        Block {
            first: self.span().start / keys * keys,
            count: 0,
            known: 0..0,
            keys: vec![0.0; keys * width],
            values: vec![0.0; keys * width.next_multiple_of(LANES)],
        }
    }

    /// Goes on to the next block, whose keys and values are to be filled in; false behind the last.
    fn advance(&self, block: &mut Block) -> bool {
        let (span, keys) = (self.span(), block_keys(self.of.sizes[2]));
        if block.count > 0 {
            block.first += keys;
        }
        if block.first >= span.end {
            return false;
        }
        block.known = span.start.max(block.first)..span.end.min(block.first + keys);
        block.count = (block.known.end - block.first).next_multiple_of(LANES);
        true
    }

    /// Where the numbers of a position's key or value begin.
    fn stored(&self, position: usize) -> usize {
        let cached = &self.of.cached;
        let slot = cached
            .slots
            .map_or(position, |slots| slots[position - cached.first] as usize);
        (slot * self.of.sizes[1] + self.kv_head) * self.of.sizes[2]
    }

    /// Brings the keys of a block into order; zeros in place of those that are not known.
    #[inline(always)]
    fn fill_keys(&self, block: &mut Block) {
        let width = self.of.sizes[2];
        for at in 0..block.count {
            let position = block.first + at;
            let panel = at / LANES * width * LANES + at % LANES;
            let lines = block.keys[panel..].iter_mut().step_by(LANES).take(width);
            if block.known.contains(&position) {
                let key = &self.of.cached.keys[self.stored(position)..];
                for (number, value) in lines.zip(key) {
                    *number = value.wide();
                }
            } else {
                lines.for_each(|number| *number = 0.0);
            }
        }
    }

    /// The same for values.
    #[inline(always)]
    fn fill_values(&self, block: &mut Block) {
        let width = self.of.sizes[2];
        for at in 0..block.count {
            let position = block.first + at;
            let from = block
                .known
                .contains(&position)
                .then(|| self.stored(position));
            for part in 0..width.div_ceil(LANES) {
                let line = (part * block.count + at) * LANES;
                let line = &mut block.values[line..line + LANES];
                let Some(from) = from else {
                    line.fill(0.0);
                    continue;
                };
                let numbers = part * LANES..width.min((part + 1) * LANES);
                let value = &self.of.cached.values[from..from + width][numbers];
                for (number, value) in line.iter_mut().zip(value) {
                    *number = value.wide();
                }
            }
        }
    }

    /// The part of a block that a row sees.
    fn seen(&self, block: &Block, row: usize) -> std::ops::Range<usize> {
        let range = self.of.seen[self.queries.start + row / self.of.group()];
        let first = range.first.saturating_sub(block.first).min(block.count);
        first..range.end.saturating_sub(block.first).min(block.count)
    }

    /// Takes a block of keys into the rows' results.
    #[inline(always)]
    unsafe fn mix<S: Lanes>(
        &self,
        state: &mut State,
        block: &Block,
        rows: std::ops::Range<usize>,
        scores: &mut [f32],
    ) {
        if rows.clone().all(|row| self.seen(block, row).is_empty()) {
            return;
        }
        let count = block.count;
        unsafe {
            self.scores(state, block, &rows, scores);
            for (at, row) in rows.clone().enumerate() {
                let scores = &mut scores[at * count..(at + 1) * count];
                let seen = self.seen(block, row);
                soften::<S>(state, row, scores, (seen, self.of.scale));
            }
            self.add_values(state, block, rows, scores);
        }
    }

    /// Adds a block's values, each times its weight of `[rows, keys]`.
    unsafe fn add_values(
        &self,
        state: &mut State,
        block: &Block,
        rows: std::ops::Range<usize>,
        weights: &[f32],
    ) {
        let (count, width) = (block.count, self.of.sizes[2]);
        let left = Left {
            at: weights.as_ptr(),
            step: 1,
            row: count,
        };
        let right = Right::F32 {
            at: block.values.as_ptr(),
            panel: count,
        };
        let sums = Sums {
            at: state.mixed[rows.start * state.padded..].as_mut_ptr(),
            row: state.padded,
            fresh: false,
        };
        let sizes = (rows.len(), width.div_ceil(LANES), count);
        // SAFETY: the rows' weights, the block's values and the rows' results are there.
        unsafe { sweep(self.kernels, sizes, left, right, sums) };
    }

    /// Products of rows with all keys of a block: `[rows, keys]`.
    unsafe fn scores(
        &self,
        state: &State,
        block: &Block,
        rows: &std::ops::Range<usize>,
        scores: &mut [f32],
    ) {
        let (count, width) = (block.count, self.of.sizes[2]);
        // Panel by panel, so that a panel of keys stays near while all rows use it; a few rows take all panels at once.
        let together = if rows.len() <= TILE_ROWS {
            count / LANES
        } else {
            self.kernels.panels()
        };
        for panel in (0..count / LANES).step_by(together) {
            let panels = together.min(count / LANES - panel);
            let left = Left {
                at: state.query[rows.start * state.depth..].as_ptr(),
                step: 1,
                row: state.depth,
            };
            let right = Right::F32 {
                at: block.keys[panel * width * LANES..].as_ptr(),
                panel: width,
            };
            let sums = Sums {
                at: scores[panel * LANES..].as_mut_ptr(),
                row: count,
                fresh: true,
            };
            // SAFETY: the rows' queries, the block's keys and the rows' scores are there.
            unsafe { sweep(self.kernels, (rows.len(), panels, width), left, right, sums) };
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Lanes>(&self, state: &State) {
        let width = self.of.sizes[2];
        for row in 0..state.rows {
            unsafe {
                let weight = S::splat(state.weight[row]);
                let to = self.out.at(self.first + self.place(row));
                for at in (0..width).step_by(LANES) {
                    let mixed = S::load(state.mixed[row * state.padded + at..].as_ptr());
                    store::<S, T>(to.add(at), mixed.div(weight), width - at);
                }
            }
        }
    }
}

/// A row's scores become weights relative to its largest score so far; what it held before is brought to the same measure.
#[inline(always)]
unsafe fn soften<S: Lanes>(
    state: &mut State,
    row: usize,
    scores: &mut [f32],
    (seen, scale): (std::ops::Range<usize>, f32),
) {
    if seen.is_empty() {
        scores.fill(0.0);
        return;
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    unsafe {
        let (scale, before) = (S::splat(scale), state.largest[row]);
        let mut most = S::splat(before);
        for at in (0..scores.len()).step_by(LANES) {
            let place = scores[at..].as_mut_ptr();
            let score = S::load(place).mul(scale);
            score.store(place);
            most = most.max(score);
        }
        let largest = most.largest();
        let measure = S::splat(largest);
        let mut sum = S::splat(0.0);
        for at in (0..scores.len()).step_by(LANES) {
            let place = scores[at..].as_mut_ptr();
            let weight = S::load(place).sub(measure).exp();
            weight.store(place);
            sum = sum.add(weight);
        }
        let kept = if largest == before {
            1.0
        } else {
            let mut lanes = [0_f32; LANES];
            S::splat(before - largest).exp().store(lanes.as_mut_ptr());
            lanes[0]
        };
        state.largest[row] = largest;
        state.weight[row] = state.weight[row] * kept + sum.total();
        if kept != 1.0 {
            let kept = S::splat(kept);
            for at in (0..state.padded).step_by(LANES) {
                let place = state.mixed[row * state.padded + at..].as_mut_ptr();
                S::load(place).mul(kept).store(place);
            }
        }
    }
}
