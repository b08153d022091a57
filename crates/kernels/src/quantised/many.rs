//! Several rows: a panel's weights become 16 bits once, times their integer scales, and stay near while all rows use them.

use rayon::prelude::*;

use super::layout::{self, MIN_SCALES, PART_HIGH, PART_NIBBLES};
use super::{BLOCK, Chunk, Form, LANES, Lanes, Values};
use crate::level::Work;

/// Rows worked on together at most.
pub(super) const TILE_ROWS: usize = 6;
/// Blocks of 32 inputs worked on together: 256 inputs, of which a panel takes 8 KiB in 16 bits.
const PARTS: usize = 8;
/// Lines of a block: two inputs of sixteen outputs.
const LINES: usize = BLOCK / 2;

/// Rows in tiles: tile t has its rows' values side by side.
pub(super) struct Tiles {
    rows: usize,
    /// Blocks of a row.
    blocks: usize,
    /// Two values of each row of a tile, at ((t × blocks + block) × LINES + line) × TILE_ROWS.
    pairs: Vec<i32>,
    /// Scale of each row of a tile, at (t × blocks + block) × TILE_ROWS.
    scales: Vec<f32>,
    /// The same of scale × sum.
    sums: Vec<f32>,
}

impl Tiles {
    /// Of `[rows, blocks]`.
    pub(super) fn new(values: &[Values], rows: usize, parallel: bool) -> Self {
        let blocks = values.len() / rows;
        let tile_blocks = blocks * TILE_ROWS;
        let count = rows.div_ceil(TILE_ROWS) * tile_blocks;
        let (mut scales, mut sums) = (vec![0.0; count], vec![0.0; count]);
        let mut pairs = vec![0; count * LINES];
        for (row, values) in values.chunks_exact(blocks).enumerate() {
            let first = row / TILE_ROWS * tile_blocks + row % TILE_ROWS;
            for (block, values) in values.iter().enumerate() {
                scales[first + block * TILE_ROWS] = values.scale;
                sums[first + block * TILE_ROWS] = values.sum;
            }
        }
        let fill = |(tile, pairs): (usize, &mut [i32])| {
            for row in tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS) {
                let values = &values[row * blocks..(row + 1) * blocks];
                let lines = pairs.iter_mut().skip(row % TILE_ROWS).step_by(TILE_ROWS);
                let twos = values.iter().flat_map(|block| block.values.chunks_exact(2));
                for (line, two) in lines.zip(twos) {
                    *line = i32::from(two[0]) & 0xffff | i32::from(two[1]) << 16;
                }
            }
        };
        let tile = tile_blocks * LINES;
        if parallel && rows > TILE_ROWS {
            pairs.par_chunks_mut(tile).enumerate().for_each(fill);
        } else {
            pairs.chunks_mut(tile).enumerate().for_each(fill);
        }
        Self {
            rows,
            blocks,
            pairs,
            scales,
            sums,
        }
    }
}

/// A chunk of outputs for several rows.
pub(super) struct Many<'a> {
    pub(super) tiles: &'a Tiles,
    pub(super) chunk: Chunk<'a>,
}

/// A panel's weights of up to 256 inputs, for all rows.
#[repr(align(64))]
struct Wide {
    /// [parts, lines]: the next two inputs of sixteen outputs.
    weights: [i16; PARTS * LINES * 2 * LANES],
    /// [parts]: what sums are multiplied with.
    scales: [f32; PARTS * LANES],
    /// [parts]: minimums, where there are any.
    mins: [f32; PARTS * LANES],
    /// What minimums are multiplied with.
    min_scale: [f32; LANES],
}

impl Work for Many<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let Self { tiles, chunk } = self;
        let form = chunk.weight.form;
        let block_bytes = layout::Layout::of(form).units * 32;
        let mut wide = Wide {
            weights: [0; PARTS * LINES * 2 * LANES],
            scales: [0.0; PARTS * LANES],
            mins: [0.0; PARTS * LANES],
            min_scale: [0.0; LANES],
        };
        for from in (0..tiles.blocks).step_by(PARTS) {
            let parts = PARTS.min(tiles.blocks - from);
            for panel in 0..chunk.panels {
                let units = chunk.weight.panel(chunk.first + panel);
                let block = from * BLOCK / form.block_inputs();
                // SAFETY: the block is there with all of its parts, tiles have all of its rows, and sums a place for each.
                unsafe {
                    let at = units.as_ptr().cast::<i8>().add(block * block_bytes);
                    match form {
                        Form::Q8_0 => wide.q8_0::<S>(at, parts),
                        Form::Q4K => wide.q4_k::<S>(at),
                        Form::Q6K => wide.q6_k::<S>(at),
                    }
                    let stride = chunk.panels * LANES;
                    for tile in 0..tiles.rows.div_ceil(TILE_ROWS) {
                        let first = (tile * tiles.blocks + from) * TILE_ROWS;
                        let sums = &mut chunk.sums[tile * TILE_ROWS * stride + panel * LANES..];
                        let tile = Tile {
                            pairs: tiles.pairs[first * LINES..].as_ptr(),
                            scales: tiles.scales[first..].as_ptr(),
                            sums: tiles.sums[first..].as_ptr(),
                            to: (sums.as_mut_ptr(), stride),
                            parts,
                            has_mins: form == Form::Q4K,
                        };
                        match tiles.rows - first / (tiles.blocks * TILE_ROWS) * TILE_ROWS {
                            1 => tile.add::<S, 1>(&wide),
                            2 => tile.add::<S, 2>(&wide),
                            3 => tile.add::<S, 3>(&wide),
                            4 => tile.add::<S, 4>(&wide),
                            5 => tile.add::<S, 5>(&wide),
                            _ => tile.add::<S, TILE_ROWS>(&wide),
                        }
                    }
                }
            }
        }
    }
}

impl Wide {
    #[inline(always)]
    unsafe fn q8_0<S: Lanes>(&mut self, mut at: *const i8, parts: usize) {
        const LAYOUT: layout::Layout = layout::Q8_0;
        let mut to = self.weights.as_mut_ptr();
        unsafe {
            for part in 0..parts {
                S::load_f16(at.cast()).store(self.scales[part * LANES..].as_mut_ptr());
                for quad in 0..BLOCK / 4 {
                    let quads = S::load_quads(at.add(LAYOUT.weights + quad * 4 * LANES));
                    let (first, second) = S::widen(quads);
                    S::store_pairs(to, first);
                    S::store_pairs(to.add(2 * LANES), second);
                    to = to.add(4 * LANES);
                }
                at = at.add(LAYOUT.units * 32);
            }
        }
    }

    #[inline(always)]
    unsafe fn q4_k<S: Lanes>(&mut self, at: *const i8) {
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
                let scales = S::load_twice(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
                let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
                for index in 0..BLOCK / 8 {
                    let (low, up) = S::load_nibbles(nibbles.add(index * 4 * LANES));
                    for quads in [low, up] {
                        let (first, second) = S::widen(quads);
                        S::store_pairs(to, S::mul_pairs(first, scales));
                        S::store_pairs(to.add(2 * LANES), S::mul_pairs(second, scales));
                        to = to.add(4 * LANES);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn q6_k<S: Lanes>(&mut self, at: *const i8) {
        const LAYOUT: layout::Layout = layout::Q6K;
        let mut to = self.weights.as_mut_ptr();
        unsafe {
            let scale = S::load_f16(at.cast());
            let more = S::splat_pairs(32 | 32 << 16);
            for part in 0..PARTS {
                scale.store(self.scales[part * LANES..].as_mut_ptr());
                let scales = S::load_byte_pairs(at.add(LAYOUT.scales.0 + part * LAYOUT.scales.1));
                let halves = S::split(scales);
                let nibbles = at.add(LAYOUT.weights + part * PART_NIBBLES);
                let high = at.add(LAYOUT.high + part * PART_HIGH);
                for index in 0..BLOCK / 8 {
                    let (low, up) = S::load_sixes(
                        nibbles.add(index * 4 * LANES),
                        high.add(index / 2 * 4 * LANES),
                        index % 2 == 1,
                    );
                    let scales = if index < 2 { halves.0 } else { halves.1 };
                    for quads in [low, up] {
                        let (first, second) = S::widen(quads);
                        let first = S::mul_pairs(S::sub_pairs(first, more), scales);
                        let second = S::mul_pairs(S::sub_pairs(second, more), scales);
                        S::store_pairs(to, first);
                        S::store_pairs(to.add(2 * LANES), second);
                        to = to.add(4 * LANES);
                    }
                }
            }
        }
    }
}

/// A tile of rows at a block of inputs, and where its sums are, with the distance of rows.
struct Tile {
    pairs: *const i32,
    scales: *const f32,
    sums: *const f32,
    to: (*mut f32, usize),
    parts: usize,
    has_mins: bool,
}

impl Tile {
    /// R rows times one panel.
    #[inline(always)]
    unsafe fn add<S: Lanes, const R: usize>(self, wide: &Wide) {
        let (to, stride) = self.to;
        unsafe {
            for part in 0..self.parts {
                let weights = wide.weights.as_ptr().add(part * LINES * 2 * LANES);
                let pairs = self.pairs.add(part * LINES * TILE_ROWS);
                let mut exact = [S::no_sums(); R];
                for line in 0..LINES {
                    let weights = S::load_pairs(weights.add(line * 2 * LANES));
                    for (r, exact) in exact.iter_mut().enumerate() {
                        let values = S::splat_pairs(*pairs.add(line * TILE_ROWS + r));
                        *exact = S::add_pairs(*exact, weights, values);
                    }
                }
                let scale = S::load(wide.scales.as_ptr().add(part * LANES));
                for (r, exact) in exact.into_iter().enumerate() {
                    let to = to.add(r * stride);
                    let step = scale.mul(S::splat(*self.scales.add(part * TILE_ROWS + r)));
                    S::from_sums(exact).mul_add(step, S::load(to)).store(to);
                }
            }
            if self.has_mins {
                let negative = S::load(wide.min_scale.as_ptr());
                for r in 0..R {
                    let mut below = S::splat(0.0);
                    for part in 0..PARTS {
                        let min = S::load(wide.mins.as_ptr().add(part * LANES));
                        let sum = S::splat(*self.sums.add(part * TILE_ROWS + r));
                        below = min.mul_add(sum, below);
                    }
                    let to = to.add(r * stride);
                    below.mul_add(negative, S::load(to)).store(to);
                }
            }
        }
    }
}
