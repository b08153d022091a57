//! Many rows where sums of products have 32 bits ([`Lanes::WIDE_DOTS`]): two panels at a time, so that each value is loaded for
//! both, and scales as f32. A block's sums times its integer scales are exact in f32; they are scaled and added in the order of
//! [`super::few`], so the numbers are the same to the last bit.

use std::ops::Range;

use super::layout::{self, Layout, PARTS};
use super::many::{Apart, Many, PART_BYTES, QUADS, TILE_ROWS, Tile};
use super::{BLOCK, Form, LANES, Lanes};

/// Panels worked on together at most.
const PANELS: usize = 2;

/// A panel's weights of up to 256 inputs.
pub(super) struct Laid {
    pub(super) apart: Apart,
    /// [parts]: integer scales; for Q6_K those of the first half.
    pub(super) near: [f32; PARTS * LANES],
    /// Those of the second.
    pub(super) far: [f32; PARTS * LANES],
}

impl Laid {
    pub(super) fn new() -> Self {
        Self {
            apart: Apart::new(),
            near: [0.0; PARTS * LANES],
            far: [0.0; PARTS * LANES],
        }
    }

    #[inline(always)]
    pub(super) unsafe fn fill<S: Lanes>(&mut self, form: Form, at: *const i8, parts: usize) {
        unsafe {
            match form {
                Form::Q8_0 => self.apart.q8_0::<S>(at, parts),
                Form::Q4K => {
                    self.apart.q4_k::<S>(at);
                    let (scales, distance) = layout::Q4K.scales;
                    for part in 0..PARTS {
                        let scales = S::load_u8(at.add(scales + part * distance).cast());
                        scales.store(self.near[part * LANES..].as_mut_ptr());
                    }
                }
                Form::Q6K => {
                    self.apart.q6_k::<S>(at);
                    let (scales, distance) = layout::Q6K.scales;
                    for part in 0..PARTS {
                        let both = S::load_byte_pairs(at.add(scales + part * distance));
                        for (one, to) in [(1, &mut self.near), (1 << 16, &mut self.far)] {
                            let one = S::add_pairs(S::no_sums(), both, S::splat_pairs(one));
                            S::from_sums(one).store(to[part * LANES..].as_mut_ptr());
                        }
                    }
                }
            }
        }
    }

    /// A part's lines of weights, from its first or second half on.
    #[inline(always)]
    pub(super) fn lines(&self, part: usize, half: usize) -> *const i8 {
        self.apart.weights[part * PART_BYTES + half * PART_BYTES / 2..].as_ptr()
    }
}

impl Many<'_> {
    /// All rows with all panels.
    #[inline(always)]
    pub(super) fn run_wide<S: Lanes>(self) {
        let Self { tiles, chunk } = self;
        let form = chunk.weight.form;
        let layout = Layout::of(form);
        let stride = chunk.panels * LANES;
        let mut laid = [Laid::new(), Laid::new()];
        for from in (0..tiles.blocks).step_by(PARTS) {
            let parts = PARTS.min(tiles.blocks - from);
            // Of the form's own blocks.
            let [at, count, all] =
                [from, parts, tiles.blocks].map(|blocks| blocks * BLOCK / form.block_inputs());
            for panel in (0..chunk.panels).step_by(PANELS) {
                let panels = PANELS.min(chunk.panels - panel);
                for (index, laid) in laid[..panels].iter_mut().enumerate() {
                    let units = chunk.weight.panel(chunk.first + panel + index);
                    // SAFETY: the blocks are there.
                    unsafe {
                        let at = units.as_ptr().cast::<i8>().add(at * layout.bytes());
                        laid.fill::<S>(form, at, parts);
                        // What comes after these panels, while rows are multiplied.
                        for block in 0..count {
                            let at = at.add(block * layout.bytes());
                            layout.prefetch::<S>(at, panels * all, (0, 1));
                        }
                    }
                }
                for index in 0..tiles.rows.div_ceil(TILE_ROWS) {
                    let rows = TILE_ROWS.min(tiles.rows - index * TILE_ROWS);
                    let sums = &mut chunk.sums[index * TILE_ROWS * stride + panel * LANES..];
                    let tile = tiles.tile(index, from, sums, stride);
                    // SAFETY: tiles have all of their rows, and sums a place for each with each panel.
                    unsafe {
                        match panels {
                            1 => tile.add_wide::<S, 1>(form, (rows, parts), &laid),
                            _ => tile.add_wide::<S, PANELS>(form, (rows, parts), &laid),
                        }
                    }
                }
            }
        }
    }
}

impl Tile {
    #[inline(always)]
    unsafe fn add_wide<S: Lanes, const P: usize>(
        self,
        form: Form,
        (rows, parts): (usize, usize),
        laid: &[Laid; PANELS],
    ) {
        unsafe {
            match rows {
                1 => self.add_rows::<S, P, 1>(form, parts, laid),
                2 => self.add_rows::<S, P, 2>(form, parts, laid),
                3 => self.add_rows::<S, P, 3>(form, parts, laid),
                4 => self.add_rows::<S, P, 4>(form, parts, laid),
                5 => self.add_rows::<S, P, 5>(form, parts, laid),
                _ => self.add_rows::<S, P, TILE_ROWS>(form, parts, laid),
            }
        }
    }

    #[inline(always)]
    unsafe fn add_rows<S: Lanes, const P: usize, const R: usize>(
        self,
        form: Form,
        parts: usize,
        laid: &[Laid; PANELS],
    ) {
        unsafe {
            match form {
                Form::Q4K => self.q4_k_wide::<S, P, R>(laid),
                Form::Q6K => self.q6_k_wide::<S, P, R>(laid),
                Form::Q8_0 => self.q8_0_wide::<S, P, R>(parts, laid),
            }
        }
    }

    #[inline(always)]
    unsafe fn q8_0_wide<S: Lanes, const P: usize, const R: usize>(
        self,
        parts: usize,
        laid: &[Laid; PANELS],
    ) {
        unsafe {
            let mut totals: [[S; R]; P] = self.totals();
            for part in 0..parts {
                let mut sums = [[S::no_sums(); R]; P];
                for r in 0..R {
                    let [first, _] = *self.less.add(part * TILE_ROWS + r);
                    for sums in &mut sums {
                        sums[r] = S::splat_sums(first);
                    }
                }
                self.multiply::<S, P, R>((part, 0..QUADS), laid, &mut sums);
                for ((totals, sums), laid) in totals.iter_mut().zip(sums).zip(laid) {
                    let scale = S::load(laid.apart.scales[part * LANES..].as_ptr());
                    for (r, (total, sums)) in totals.iter_mut().zip(sums).enumerate() {
                        let step = scale.mul(S::splat(*self.scales.add(part * TILE_ROWS + r)));
                        *total = S::from_sums(sums).mul_add(step, *total);
                    }
                }
            }
            self.store_totals(totals);
        }
    }

    /// Sums times their scale, at most 32 × 15 × 127 × 63, are exact in f32.
    #[inline(always)]
    unsafe fn q4_k_wide<S: Lanes, const P: usize, const R: usize>(self, laid: &[Laid; PANELS]) {
        unsafe {
            let mut totals: [[S; R]; P] = self.totals();
            for part in 0..PARTS {
                let mut sums = [[S::no_sums(); R]; P];
                self.multiply::<S, P, R>((part, 0..QUADS), laid, &mut sums);
                for ((totals, sums), laid) in totals.iter_mut().zip(sums).zip(laid) {
                    let scale = S::load(laid.apart.scales[part * LANES..].as_ptr());
                    let near = S::load(laid.near[part * LANES..].as_ptr());
                    for (r, (total, sums)) in totals.iter_mut().zip(sums).enumerate() {
                        let step = scale.mul(S::splat(*self.scales.add(part * TILE_ROWS + r)));
                        *total = S::from_sums(sums).mul(near).mul_add(step, *total);
                    }
                }
            }
            for (totals, laid) in totals.iter_mut().zip(laid) {
                let negative = S::load(laid.apart.min_scale.as_ptr());
                for (r, total) in totals.iter_mut().enumerate() {
                    let mut below = S::splat(0.0);
                    for part in 0..PARTS {
                        let min = S::load(laid.apart.mins[part * LANES..].as_ptr());
                        let sum = S::splat(*self.sums.add(part * TILE_ROWS + r));
                        below = min.mul_add(sum, below);
                    }
                    *total = below.mul_add(negative, *total);
                }
            }
            self.store_totals(totals);
        }
    }

    /// Weights are 32 more than they mean. Without that the sums of both halves times their scales, each at most
    /// 16 × 32 × 127 × 128, are exact in f32, and so are both together.
    #[inline(always)]
    unsafe fn q6_k_wide<S: Lanes, const P: usize, const R: usize>(self, laid: &[Laid; PANELS]) {
        unsafe {
            let mut totals: [[S; R]; P] = self.totals();
            for part in 0..PARTS {
                let mut first = [[S::no_sums(); R]; P];
                let mut second = first;
                for r in 0..R {
                    let [near, far] = *self.less.add(part * TILE_ROWS + r);
                    for p in 0..P {
                        first[p][r] = S::splat_sums(near);
                        second[p][r] = S::splat_sums(far);
                    }
                }
                self.multiply::<S, P, R>((part, 0..QUADS / 2), laid, &mut first);
                self.multiply::<S, P, R>((part, QUADS / 2..QUADS), laid, &mut second);
                for (p, totals) in totals.iter_mut().enumerate() {
                    let laid = &laid[p];
                    let scale = S::load(laid.apart.scales[part * LANES..].as_ptr());
                    let near = S::load(laid.near[part * LANES..].as_ptr());
                    let far = S::load(laid.far[part * LANES..].as_ptr());
                    for (r, total) in totals.iter_mut().enumerate() {
                        let step = scale.mul(S::splat(*self.scales.add(part * TILE_ROWS + r)));
                        let first = S::from_sums(first[p][r]).mul(near);
                        let exact = S::from_sums(second[p][r]).mul_add(far, first);
                        *total = exact.mul_add(step, *total);
                    }
                }
            }
            self.store_totals(totals);
        }
    }

    /// Adds the products of a part's quads.
    #[inline(always)]
    unsafe fn multiply<S: Lanes, const P: usize, const R: usize>(
        self,
        (part, quads): (usize, Range<usize>),
        laid: &[Laid; PANELS],
        sums: &mut [[S::Sums; R]; P],
    ) {
        unsafe {
            let steps = self.steps.add(part * QUADS * TILE_ROWS);
            for quad in quads {
                let at = part * PART_BYTES + quad * 4 * LANES;
                let mut weights = [S::load_quads(laid[0].apart.weights.as_ptr().add(at)); P];
                for p in 1..P {
                    weights[p] = S::load_quads(laid[p].apart.weights.as_ptr().add(at));
                }
                for r in 0..R {
                    let values = *steps.add(quad * TILE_ROWS + r);
                    for (sums, weights) in sums.iter_mut().zip(weights) {
                        sums[r] = S::dot(sums[r], weights, values);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn totals<S: Lanes, const P: usize, const R: usize>(self) -> [[S; R]; P] {
        unsafe {
            let mut totals = [[S::splat(0.0); R]; P];
            for (p, totals) in totals.iter_mut().enumerate() {
                for (r, total) in totals.iter_mut().enumerate() {
                    *total = S::load(self.to.add(r * self.stride + p * LANES));
                }
            }
            totals
        }
    }

    #[inline(always)]
    unsafe fn store_totals<S: Lanes, const P: usize, const R: usize>(self, totals: [[S; R]; P]) {
        for (p, totals) in totals.into_iter().enumerate() {
            for (r, total) in totals.into_iter().enumerate() {
                unsafe { total.store(self.to.add(r * self.stride + p * LANES)) };
            }
        }
    }
}
