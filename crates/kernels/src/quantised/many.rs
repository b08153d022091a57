//! Many rows: a panel's weights of 256 inputs are taken apart once, into bytes, and stay in the first cache while all rows use
//! them. (Weights of 8 bits are bytes already: only where [`super::wide`] works on them does this pay.)

use rayon::prelude::*;

use super::few::scale_all;
use super::layout::{self, MIN_SCALES, PART_HIGH, PART_NIBBLES, PARTS};
use super::{BLOCK, Chunk, Form, LANES, Lanes, Values};
use crate::level::Work;

/// Rows worked on together at most.
pub(super) const TILE_ROWS: usize = 6;
/// Steps of the inner loop for 32 inputs.
pub(super) const QUADS: usize = BLOCK / 4;
/// Bytes of a block's weights in quads.
pub(super) const PART_BYTES: usize = BLOCK * LANES;

/// Rows in tiles of [`TILE_ROWS`], whose values are side by side; what is used together is together. Each is
/// [blocks / [`PARTS`], tiles, [`PARTS`], …, [`TILE_ROWS`]], the last of the first with as many parts as there are.
pub(super) struct Tiles {
    pub(super) rows: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
    /// What a step of the inner loop takes of each row: four values; [`QUADS`] for each block.
    steps: Vec<i32>,
    /// Scale of each row.
    scales: Vec<f32>,
    /// Scale × sum.
    sums: Vec<f32>,
    /// What makes up for weights that are 32 more than they mean: −32 × the sums of both halves; for weights of 8 bits, which are 128
    /// more, −128 × the whole sum.
    less: Vec<[i32; 2]>,
}

/// −16 × the sums of both halves, two i16, of −32 × them. 16 × 127 × 16 is within an i16.
pub(super) fn half_of(less: [i32; 2]) -> i32 {
    let [first, second] = less.map(|less| less / 2);
    first & 0xffff | second << 16
}

/// −32 × the sums of both halves.
pub(super) fn less(values: &Values) -> [i32; 2] {
    values.halves.map(|sum| -32 * i32::from(sum))
}

impl Tiles {
    /// Of `[rows, blocks]`.
    pub(super) fn new(form: Form, values: &[Values], rows: usize, parallel: bool) -> Self {
        let blocks = values.len() / rows;
        let count = rows.div_ceil(TILE_ROWS) * TILE_ROWS * blocks;
        let mut tiles = Self {
            rows,
            blocks,
            steps: vec![0; count * QUADS],
            scales: vec![0.0; count],
            sums: vec![0.0; count],
            less: vec![[0; 2]; count],
        };
        for (row, values) in values.chunks_exact(blocks).enumerate() {
            for (block, values) in values.iter().enumerate() {
                let at = tiles.first(row / TILE_ROWS, block) + row % TILE_ROWS;
                tiles.scales[at] = values.scale;
                tiles.sums[at] = values.sum;
                tiles.less[at] = match form {
                    Form::Q8_0 => [4 * less(values).iter().sum::<i32>(), 0],
                    Form::Q4K | Form::Q6K => less(values),
                };
            }
        }
        let together = rows.div_ceil(TILE_ROWS) * TILE_ROWS * PARTS * QUADS;
        let fill = |(index, steps): (usize, &mut [i32])| {
            let parts = PARTS.min(blocks - index * PARTS);
            for (row, values) in values.chunks_exact(blocks).enumerate() {
                let values = &values[index * PARTS..][..parts];
                let first = row / TILE_ROWS * parts * QUADS * TILE_ROWS + row % TILE_ROWS;
                let steps = steps[first..].iter_mut().step_by(TILE_ROWS);
                let fours = values.iter().flat_map(|block| block.values.chunks_exact(4));
                for (step, four) in steps.zip(fours) {
                    *step = i32::from_le_bytes(std::array::from_fn(|at| four[at] as u8));
                }
            }
        };
        if parallel {
            let steps = tiles.steps.par_chunks_mut(together).enumerate();
            steps.for_each(fill);
        } else {
            tiles.steps.chunks_mut(together).enumerate().for_each(fill);
        }
        tiles
    }

    /// Where the scales of a tile at a block of inputs begin.
    #[inline(always)]
    fn first(&self, tile: usize, block: usize) -> usize {
        let from = block / PARTS * PARTS;
        let parts = PARTS.min(self.blocks - from);
        let tiles = self.rows.div_ceil(TILE_ROWS);
        (from * tiles + tile * parts + block - from) * TILE_ROWS
    }

    /// A tile at a block of inputs, and where its sums are, rows `stride` apart.
    #[inline(always)]
    pub(super) fn tile(&self, tile: usize, block: usize, sums: &mut [f32], stride: usize) -> Tile {
        let first = self.first(tile, block);
        Tile {
            steps: self.steps[first * QUADS..].as_ptr(),
            scales: self.scales[first..].as_ptr(),
            sums: self.sums[first..].as_ptr(),
            less: self.less[first..].as_ptr(),
            to: sums.as_mut_ptr(),
            stride,
        }
    }
}

/// A chunk of outputs for many rows.
pub(super) struct Many<'a> {
    pub(super) tiles: &'a Tiles,
    pub(super) chunk: Chunk<'a>,
}

/// A panel's weights of up to 256 inputs, for all rows.
#[repr(align(64))]
pub(super) struct Apart {
    /// [parts, quads] of bytes without sign.
    pub(super) weights: [i8; PARTS * PART_BYTES],
    /// [parts]: integer scales, in pairs; for Q6_K those of both halves.
    steps: [i16; PARTS * 2 * LANES],
    /// [parts]: what sums are multiplied with.
    pub(super) scales: [f32; PARTS * LANES],
    /// [parts]: minimums.
    pub(super) mins: [f32; PARTS * LANES],
    /// What minimums are multiplied with.
    pub(super) min_scale: [f32; LANES],
}

impl Work for Many<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        if S::WIDE_DOTS {
            return self.run_wide::<S>();
        }
        let Self { tiles, chunk } = self;
        let form = chunk.weight.form;
        let layout = layout::Layout::of(form);
        let mut apart = Apart::new();
        for from in (0..tiles.blocks).step_by(PARTS) {
            let block = from / PARTS;
            for panel in 0..chunk.panels {
                let units = chunk.weight.panel(chunk.first + panel);
                // SAFETY: the block is there.
                unsafe {
                    let at = units.as_ptr().cast::<i8>().add(block * layout.bytes());
                    match form {
                        Form::Q4K => apart.q4_k::<S>(at),
                        Form::Q6K => apart.q6_k::<S>(at),
                        Form::Q8_0 => unreachable!("a few rows at a time"),
                    }
                    // The panel behind this one, while rows are multiplied.
                    layout.prefetch::<S>(at, tiles.blocks / PARTS, (0, 1));
                }
                let stride = chunk.panels * LANES;
                for index in 0..tiles.rows.div_ceil(TILE_ROWS) {
                    let sums = &mut chunk.sums[index * TILE_ROWS * stride + panel * LANES..];
                    let tile = tiles.tile(index, from, sums, stride);
                    let rows = TILE_ROWS.min(tiles.rows - index * TILE_ROWS);
                    // SAFETY: tiles have all of their rows, and sums a place for each.
                    unsafe { tile.add::<S>(form, rows, &apart) };
                }
            }
        }
    }
}

impl Apart {
    pub(super) fn new() -> Self {
        Self {
            weights: [0; PARTS * PART_BYTES],
            steps: [0; PARTS * 2 * LANES],
            scales: [0.0; PARTS * LANES],
            mins: [0.0; PARTS * LANES],
            min_scale: [0.0; LANES],
        }
    }

    /// As [`Lanes::dot`] takes them, of so many parts.
    #[inline(always)]
    pub(super) unsafe fn q8_0<S: Lanes>(&mut self, at: *const i8, parts: usize) {
        const LAYOUT: layout::Layout = layout::Q8_0;
        unsafe {
            for part in 0..parts {
                let at = at.add(part * LAYOUT.bytes());
                S::load_f16(at.cast()).store(self.scales[part * LANES..].as_mut_ptr());
                let to = self.weights[part * PART_BYTES..].as_mut_ptr();
                for quad in 0..QUADS {
                    let weights = S::load_eights(at.add(LAYOUT.weights + quad * 4 * LANES));
                    S::store_quads(to.add(quad * 4 * LANES), weights);
                }
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn q4_k<S: Lanes>(&mut self, at: *const i8) {
        const LAYOUT: layout::Layout = layout::Q4K;
        let mut to = self.weights.as_mut_ptr();
        unsafe {
            let scale = S::load_f16(at.cast());
            let negative = S::splat(0.0).sub(S::load_f16(at.add(MIN_SCALES).cast()));
            negative.store(self.min_scale.as_mut_ptr());
            for part in 0..PARTS {
                scale.store(self.scales[part * LANES..].as_mut_ptr());
                let min = S::load_u8(at.add(LAYOUT.mins + part * LANES).cast());
                min.store(self.mins[part * LANES..].as_mut_ptr());
                let steps = S::load_twice(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
                S::store_pairs(self.steps[part * 2 * LANES..].as_mut_ptr(), steps);
                let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
                for index in 0..QUADS / 2 {
                    let (low, up) = S::load_nibbles(nibbles.add(index * 4 * LANES));
                    S::store_quads(to, low);
                    S::store_quads(to.add(4 * LANES), up);
                    to = to.add(8 * LANES);
                }
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn q6_k<S: Lanes>(&mut self, at: *const i8) {
        const LAYOUT: layout::Layout = layout::Q6K;
        let mut to = self.weights.as_mut_ptr();
        unsafe {
            let scale = S::load_f16(at.cast());
            for part in 0..PARTS {
                scale.store(self.scales[part * LANES..].as_mut_ptr());
                let steps = S::load_byte_pairs(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
                S::store_pairs(self.steps[part * 2 * LANES..].as_mut_ptr(), steps);
                let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
                let high = at.add(LAYOUT.high + part * PART_HIGH);
                for index in 0..QUADS / 2 {
                    let (low, up) = S::load_sixes(
                        nibbles.add(index * 4 * LANES),
                        high.add(index / 2 * 4 * LANES),
                        index % 2 == 1,
                    );
                    S::store_quads(to, low);
                    S::store_quads(to.add(4 * LANES), up);
                    to = to.add(8 * LANES);
                }
            }
        }
    }
}

/// A tile of rows at a block of inputs, and where its sums are, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) steps: *const i32,
    pub(super) scales: *const f32,
    pub(super) sums: *const f32,
    pub(super) less: *const [i32; 2],
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

impl Tile {
    #[inline(always)]
    unsafe fn add<S: Lanes>(self, form: Form, rows: usize, apart: &Apart) {
        unsafe {
            match (form, rows) {
                (Form::Q4K, 1) => self.q4_k::<S, 1>(apart),
                (Form::Q4K, 2) => self.q4_k::<S, 2>(apart),
                (Form::Q4K, 3) => self.q4_k::<S, 3>(apart),
                (Form::Q4K, 4) => self.q4_k::<S, 4>(apart),
                (Form::Q4K, 5) => self.q4_k::<S, 5>(apart),
                (Form::Q4K, _) => self.q4_k::<S, TILE_ROWS>(apart),
                (Form::Q6K, 1) => self.q6_k::<S, 1>(apart),
                (Form::Q6K, 2) => self.q6_k::<S, 2>(apart),
                (_, _) => {
                    // Three rows at a time: scales and both kinds of weights take registers too.
                    self.q6_k::<S, 3>(apart);
                    let rest = self.behind(3);
                    match rows {
                        3 => (),
                        4 => rest.q6_k::<S, 1>(apart),
                        5 => rest.q6_k::<S, 2>(apart),
                        _ => rest.q6_k::<S, 3>(apart),
                    }
                }
            }
        }
    }

    /// The same without the first rows.
    #[inline(always)]
    unsafe fn behind(self, rows: usize) -> Self {
        unsafe {
            Self {
                steps: self.steps.add(rows),
                scales: self.scales.add(rows),
                sums: self.sums.add(rows),
                less: self.less.add(rows),
                to: self.to.add(rows * self.stride),
                ..self
            }
        }
    }

    #[inline(always)]
    unsafe fn q4_k<S: Lanes, const R: usize>(self, apart: &Apart) {
        unsafe {
            for part in 0..PARTS {
                let weights = apart.weights.as_ptr().add(part * PART_BYTES);
                let steps = self.steps.add(part * QUADS * TILE_ROWS);
                // Eight times two products of at most 15 × 127: within an i16.
                let mut dots = [S::no_dots(); R];
                for quad in 0..QUADS {
                    let weights = S::load_quads(weights.add(quad * 4 * LANES));
                    for (r, dots) in dots.iter_mut().enumerate() {
                        let values = *steps.add(quad * TILE_ROWS + r);
                        *dots = S::add_dots(*dots, weights, values);
                    }
                }
                let scales = S::load_pairs(apart.steps.as_ptr().add(part * 2 * LANES));
                let mut exact = [S::no_sums(); R];
                for (exact, dots) in exact.iter_mut().zip(dots) {
                    *exact = S::scale_dots(*exact, dots, scales);
                }
                self.finish::<S, R>(part, exact, apart);
            }
            let negative = S::load(apart.min_scale.as_ptr());
            for r in 0..R {
                let mut below = S::splat(0.0);
                for part in 0..PARTS {
                    let min = S::load(apart.mins.as_ptr().add(part * LANES));
                    let sum = S::splat(*self.sums.add(part * TILE_ROWS + r));
                    below = min.mul_add(sum, below);
                }
                let to = self.to.add(r * self.stride);
                below.mul_add(negative, S::load(to)).store(to);
            }
        }
    }

    #[inline(always)]
    unsafe fn q6_k<S: Lanes, const R: usize>(self, apart: &Apart) {
        unsafe {
            for part in 0..PARTS {
                let weights = apart.weights.as_ptr().add(part * PART_BYTES);
                let steps = self.steps.add(part * QUADS * TILE_ROWS);
                let scales = S::load_pairs(apart.steps.as_ptr().add(part * 2 * LANES));
                let mut exact = [S::no_sums(); R];
                for (r, exact) in exact.iter_mut().enumerate() {
                    let more = S::splat_pairs(half_of(*self.less.add(part * TILE_ROWS + r)));
                    *exact = S::add_pairs(*exact, scales, more);
                    *exact = S::add_pairs(*exact, scales, more);
                }
                let (first, second) = S::split(scales);
                for (half, scales) in [first, second].into_iter().enumerate() {
                    let mut dots = [S::no_dots(); R];
                    for two in 0..QUADS / 4 {
                        let quad = half * QUADS / 2 + 2 * two;
                        let low = S::load_quads(weights.add(quad * 4 * LANES));
                        let up = S::load_quads(weights.add((quad + 1) * 4 * LANES));
                        for (r, dots) in dots.iter_mut().enumerate() {
                            let steps = steps.add(quad * TILE_ROWS + r);
                            *dots = S::add_dots(*dots, low, *steps);
                            *dots = S::add_dots(*dots, up, *steps.add(TILE_ROWS));
                        }
                        // Two times two products of at most 63 × 127 are within an i16.
                        scale_all::<S, R>(&mut exact, &mut dots, scales);
                    }
                }
                self.finish::<S, R>(part, exact, apart);
            }
        }
    }

    /// Adds a part's sums to those of the parts before.
    #[inline(always)]
    unsafe fn finish<S: Lanes, const R: usize>(
        self,
        part: usize,
        exact: [S::Sums; R],
        apart: &Apart,
    ) {
        unsafe {
            let scale = S::load(apart.scales.as_ptr().add(part * LANES));
            for (r, exact) in exact.into_iter().enumerate() {
                let to = self.to.add(r * self.stride);
                let step = scale.mul(S::splat(*self.scales.add(part * TILE_ROWS + r)));
                S::from_sums(exact).mul_add(step, S::load(to)).store(to);
            }
        }
    }
}
