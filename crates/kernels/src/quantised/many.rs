//! Many rows of weights of 4 or 6 bits: a panel's weights of 256 inputs are taken apart once, into bytes, and stay in the
//! first cache while all rows use them. (Weights of 8 bits are bytes already: `few` is no slower for any number of rows.)

use rayon::prelude::*;

use super::few::scale_all;
use super::layout::{self, MIN_SCALES, PART_HIGH, PART_NIBBLES, PARTS};
use super::{BLOCK, Chunk, Form, LANES, Lanes, Values};
use crate::level::Work;

/// Rows worked on together at most.
pub(super) const TILE_ROWS: usize = 6;
const QUADS: usize = BLOCK / 4;
/// Bytes of a block's weights in quads.
pub(super) const PART_BYTES: usize = BLOCK * LANES;

/// Rows in tiles: tile t has its rows' values side by side, at ((t × blocks + block) × … + …) × TILE_ROWS.
pub(super) struct Tiles {
    rows: usize,
    /// Blocks of a row.
    blocks: usize,
    /// What a step of the inner loop takes of each row: four values.
    steps: Vec<i32>,
    /// Scale of each row.
    scales: Vec<f32>,
    /// Scale × sum.
    sums: Vec<f32>,
    /// −16 × the sums of both halves, two i16: what makes up for weights that are 32 more than they mean.
    more: Vec<i32>,
}

/// −16 × the sums of both halves. 16 × 127 × 16 is within an i16.
pub(super) fn more(values: &Values) -> i32 {
    let [first, second] = values.halves.map(|sum| i32::from(-16 * sum));
    first & 0xffff | second << 16
}

impl Tiles {
    /// Of `[rows, blocks]`.
    pub(super) fn new(values: &[Values], rows: usize, parallel: bool) -> Self {
        let blocks = values.len() / rows;
        let tile_blocks = blocks * TILE_ROWS;
        let count = rows.div_ceil(TILE_ROWS) * tile_blocks;
        let mut tiles = Self {
            rows,
            blocks,
            steps: vec![0; count * QUADS],
            scales: vec![0.0; count],
            sums: vec![0.0; count],
            more: vec![0; count],
        };
        for (row, values) in values.chunks_exact(blocks).enumerate() {
            let first = row / TILE_ROWS * tile_blocks + row % TILE_ROWS;
            for (block, values) in values.iter().enumerate() {
                let at = first + block * TILE_ROWS;
                tiles.scales[at] = values.scale;
                tiles.sums[at] = values.sum;
                tiles.more[at] = more(values);
            }
        }
        let fill = |(tile, steps): (usize, &mut [i32])| {
            for row in tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS) {
                let values = &values[row * blocks..(row + 1) * blocks];
                let steps = steps.iter_mut().skip(row % TILE_ROWS).step_by(TILE_ROWS);
                let fours = values.iter().flat_map(|block| block.values.chunks_exact(4));
                for (step, four) in steps.zip(fours) {
                    *step = i32::from_le_bytes(std::array::from_fn(|at| four[at] as u8));
                }
            }
        };
        let tile = tile_blocks * QUADS;
        if parallel && rows > TILE_ROWS {
            let tiles = tiles.steps.par_chunks_mut(tile).enumerate();
            tiles.for_each(fill);
        } else {
            tiles.steps.chunks_mut(tile).enumerate().for_each(fill);
        }
        tiles
    }
}

/// Which forms these are.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// [`Form::Q4K`].
    Four,
    /// [`Form::Q6K`].
    Six,
}

impl Kind {
    /// `None` for a form that is not worked on so.
    pub(super) const fn of(form: Form) -> Option<Self> {
        match form {
            Form::Q8_0 => None,
            Form::Q4K => Some(Self::Four),
            Form::Q6K => Some(Self::Six),
        }
    }
}

/// A chunk of outputs for many rows.
pub(super) struct Many<'a> {
    pub(super) kind: Kind,
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
        let Self { kind, tiles, chunk } = self;
        let layout = layout::Layout::of(chunk.weight.form);
        let mut apart = Apart::new();
        for from in (0..tiles.blocks).step_by(PARTS) {
            let block = from / PARTS;
            for panel in 0..chunk.panels {
                let units = chunk.weight.panel(chunk.first + panel);
                // SAFETY: the block is there.
                unsafe {
                    let at = units.as_ptr().cast::<i8>().add(block * layout.bytes());
                    match kind {
                        Kind::Four => apart.q4_k::<S>(at),
                        Kind::Six => apart.q6_k::<S>(at),
                    }
                    // The panel behind this one, while rows are multiplied.
                    layout.prefetch::<S>(at, tiles.blocks / PARTS, (0, 1));
                }
                let stride = chunk.panels * LANES;
                for index in 0..tiles.rows.div_ceil(TILE_ROWS) {
                    let first = (index * tiles.blocks + from) * TILE_ROWS;
                    let sums = &mut chunk.sums[index * TILE_ROWS * stride + panel * LANES..];
                    let tile = Tile {
                        steps: tiles.steps[first * QUADS..].as_ptr(),
                        scales: tiles.scales[first..].as_ptr(),
                        sums: tiles.sums[first..].as_ptr(),
                        more: tiles.more[first..].as_ptr(),
                        to: sums.as_mut_ptr(),
                        stride,
                    };
                    let rows = TILE_ROWS.min(tiles.rows - index * TILE_ROWS);
                    // SAFETY: tiles have all of their rows, and sums a place for each.
                    unsafe { tile.add::<S>(kind, rows, &apart) };
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
struct Tile {
    steps: *const i32,
    scales: *const f32,
    sums: *const f32,
    more: *const i32,
    to: *mut f32,
    stride: usize,
}

impl Tile {
    #[inline(always)]
    unsafe fn add<S: Lanes>(self, kind: Kind, rows: usize, apart: &Apart) {
        unsafe {
            match (kind, rows) {
                (Kind::Four, 1) => self.q4_k::<S, 1>(apart),
                (Kind::Four, 2) => self.q4_k::<S, 2>(apart),
                (Kind::Four, 3) => self.q4_k::<S, 3>(apart),
                (Kind::Four, 4) => self.q4_k::<S, 4>(apart),
                (Kind::Four, 5) => self.q4_k::<S, 5>(apart),
                (Kind::Four, _) => self.q4_k::<S, TILE_ROWS>(apart),
                (Kind::Six, 1) => self.q6_k::<S, 1>(apart),
                (Kind::Six, 2) => self.q6_k::<S, 2>(apart),
                (Kind::Six, _) => {
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
                more: self.more.add(rows),
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
                    let more = S::splat_pairs(*self.more.add(part * TILE_ROWS + r));
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
                        if !S::WIDE_DOTS || two % 2 == 1 {
                            scale_all::<S, R>(&mut exact, &mut dots, scales);
                        }
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
