//! Many rows by AMX: the bytes of a block of 32 inputs are a tile as they lie, on both sides; weights of 4 and 6 bits are taken
//! apart into bytes first, as for [`super::many`]. The unit's sums are exact, and so is all that is done with them before they
//! are scaled and added in the order of [`super::few`]: the numbers are the same to the last bit.

use std::mem::offset_of;
use std::ops::Range;

use super::layout::{Layout, PARTS, Q8_0};
use super::wide::Laid;
use super::{BLOCK, Chunk, Form, LANES, Lanes, Values};
use crate::amx::{self, Blocks, Exact, PANELS, ROWS, TILE_ROWS};
use crate::level::Work;

/// A chunk of outputs for all rows, at a level with tiles.
pub(super) struct Tiled<'a> {
    /// `[rows, blocks]`.
    pub(super) values: &'a [Values],
    pub(super) rows: usize,
    pub(super) chunk: Chunk<'a>,
}

/// As much as the unit has tiles for.
struct Corner<'a> {
    /// `[rows, blocks]`.
    values: &'a [Values],
    rows: usize,
    panels: usize,
    /// Sixteen for each row and panel, rows `stride` apart.
    sums: &'a mut [f32],
    stride: usize,
}

impl Work for Tiled<'_> {
    #[inline(always)]
    fn run<S: Lanes>(mut self) {
        // All whole corners in one pass over the weights, and what remains, which has tiles of another shape, in another.
        let whole = self.rows / ROWS * ROWS;
        for (rows, count) in [(0..whole, ROWS), (whole..self.rows, self.rows - whole)] {
            if rows.is_empty() {
                continue;
            }
            // SAFETY: who makes one has tiles; rows, panels and their sums are there.
            unsafe {
                match self.chunk.weight.form {
                    Form::Q8_0 => self.pass_q8_0::<S>(rows, count),
                    form => self.pass_apart::<S>(form, rows, count),
                }
            }
        }
    }
}

impl Tiled<'_> {
    #[inline(always)]
    unsafe fn pass_q8_0<S: Lanes>(&mut self, rows: Range<usize>, count: usize) {
        unsafe {
            let _shaped = amx::shape_blocks(count, BLOCK);
            for panel in (0..self.chunk.panels).step_by(PANELS) {
                let units = self.units(panel);
                for row in rows.clone().step_by(count) {
                    self.corner(row, count, panel).add_q8_0::<S>(units);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn pass_apart<S: Lanes>(&mut self, form: Form, rows: Range<usize>, count: usize) {
        let layout = Layout::of(form);
        let blocks = self.values.len() / self.rows;
        // Halves of 16 inputs have scales of their own in 6 bits.
        let bytes = match form {
            Form::Q6K => BLOCK / 2,
            _ => BLOCK,
        };
        let mut laid = [Laid::new(), Laid::new()];
        unsafe {
            let _shaped = amx::shape_blocks(count, bytes);
            for from in (0..blocks).step_by(PARTS) {
                for panel in (0..self.chunk.panels).step_by(PANELS) {
                    for (laid, units) in laid.iter_mut().zip(self.units(panel)) {
                        laid.fill::<S>(form, units.add(from / PARTS * layout.bytes()), PARTS);
                    }
                    for row in rows.clone().step_by(count) {
                        let mut corner = self.corner(row, count, panel);
                        match form {
                            Form::Q6K => corner.add_q6_k::<S>(from, &laid),
                            _ => corner.add_q4_k::<S>(from, &laid),
                        }
                    }
                }
            }
        }
    }

    /// Where the weights of two panels begin; where there is one, it stands for both.
    fn units(&self, panel: usize) -> [*const i8; PANELS] {
        let last = self.chunk.panels - 1;
        [panel, last.min(panel + 1)].map(|panel| {
            let units = self.chunk.weight.panel(self.chunk.first + panel);
            units.as_ptr().cast()
        })
    }

    fn corner(&mut self, row: usize, rows: usize, panel: usize) -> Corner<'_> {
        let blocks = self.values.len() / self.rows;
        let stride = self.chunk.panels * LANES;
        Corner {
            values: &self.values[row * blocks..(row + rows) * blocks],
            rows,
            panels: PANELS.min(self.chunk.panels - panel),
            sums: &mut self.chunk.sums[row * stride + panel * LANES..],
            stride,
        }
    }
}

impl Corner<'_> {
    #[inline(always)]
    unsafe fn add_q8_0<S: Lanes>(&mut self, units: [*const i8; PANELS]) {
        let mut exact = Exact::default();
        unsafe {
            for block in 0..self.values.len() / self.rows {
                let units = units.map(|units| units.add(block * Q8_0.bytes()));
                let lines = units.map(|units| units.add(Q8_0.weights));
                self.multiply((block, 0), lines, &mut exact);
                for (panel, units) in units.into_iter().take(self.panels).enumerate() {
                    let scale = S::load_f16(units.cast());
                    for row in 0..self.rows {
                        let step = scale.mul(S::splat(self.value(row, block).scale));
                        self.add((row, panel), sums::<S>(&exact, (row, panel)), step);
                    }
                }
            }
        }
    }

    /// Sums times their scale, at most 32 × 15 × 127 × 63, are exact in f32.
    #[inline(always)]
    unsafe fn add_q4_k<S: Lanes>(&mut self, from: usize, laid: &[Laid; PANELS]) {
        let mut exact = Exact::default();
        unsafe {
            for part in 0..PARTS {
                let lines = [0, 1].map(|panel: usize| laid[panel].lines(part, 0));
                self.multiply((from + part, 0), lines, &mut exact);
                for (panel, laid) in laid.iter().take(self.panels).enumerate() {
                    let scale = S::load(laid.apart.scales[part * LANES..].as_ptr());
                    let near = S::load(laid.near[part * LANES..].as_ptr());
                    for row in 0..self.rows {
                        let step = scale.mul(S::splat(self.value(row, from + part).scale));
                        let exact = sums::<S>(&exact, (row, panel)).mul(near);
                        self.add((row, panel), exact, step);
                    }
                }
            }
            for (panel, laid) in laid.iter().take(self.panels).enumerate() {
                let negative = S::load(laid.apart.min_scale.as_ptr());
                for row in 0..self.rows {
                    let mut below = S::splat(0.0);
                    for part in 0..PARTS {
                        let min = S::load(laid.apart.mins[part * LANES..].as_ptr());
                        let sum = S::splat(self.value(row, from + part).sum);
                        below = min.mul_add(sum, below);
                    }
                    self.add((row, panel), below, negative);
                }
            }
        }
    }

    /// Weights are 32 more than they mean. Without that the sums of both halves times their scales, each at most
    /// 16 × 32 × 127 × 128, are exact in f32.
    #[inline(always)]
    unsafe fn add_q6_k<S: Lanes>(&mut self, from: usize, laid: &[Laid; PANELS]) {
        const MORE: f32 = 32.0;
        let (mut first, mut second) = (Exact::default(), Exact::default());
        unsafe {
            for part in 0..PARTS {
                for (half, exact) in [&mut first, &mut second].into_iter().enumerate() {
                    let lines = [0, 1].map(|panel: usize| laid[panel].lines(part, half));
                    self.multiply((from + part, half * BLOCK / 2), lines, exact);
                }
                for (panel, laid) in laid.iter().take(self.panels).enumerate() {
                    let scale = S::load(laid.apart.scales[part * LANES..].as_ptr());
                    let near = S::load(laid.near[part * LANES..].as_ptr());
                    let far = S::load(laid.far[part * LANES..].as_ptr());
                    for row in 0..self.rows {
                        let value = self.value(row, from + part);
                        let step = scale.mul(S::splat(value.scale));
                        let [more, more_far] = value.halves.map(|sum| MORE * f32::from(sum));
                        let at = (row, panel);
                        let first = sums::<S>(&first, at).sub(S::splat(more)).mul(near);
                        let second = sums::<S>(&second, at).sub(S::splat(more_far)).mul(far);
                        self.add(at, first.add(second), step);
                    }
                }
            }
        }
    }

    /// A block's sums, of its values from `offset` on, with the lines of both panels.
    #[inline(always)]
    unsafe fn multiply(
        &self,
        (block, offset): (usize, usize),
        lines: [*const i8; PANELS],
        into: &mut Exact,
    ) {
        let row = self.values.len() / self.rows * size_of::<Values>();
        unsafe {
            let upper = self.values.as_ptr().add(block).cast::<i8>();
            let upper = upper.add(offset_of!(Values, values) + offset);
            let lower = if self.rows > TILE_ROWS {
                upper.add(TILE_ROWS * row)
            } else {
                upper
            };
            let of = Blocks {
                upper,
                lower,
                row,
                first: lines[0],
                second: lines[1],
            };
            amx::multiply_blocks(of, into);
        }
    }

    #[inline(always)]
    fn value(&self, row: usize, block: usize) -> &Values {
        &self.values[row * (self.values.len() / self.rows) + block]
    }

    /// exact × step to a row's sums of a panel.
    #[inline(always)]
    unsafe fn add<S: Lanes>(&mut self, (row, panel): (usize, usize), exact: S, step: S) {
        let sums = &mut self.sums[row * self.stride + panel * LANES..][..LANES];
        unsafe {
            let added = exact.mul_add(step, S::load(sums.as_ptr()));
            added.store(sums.as_mut_ptr());
        }
    }
}

/// What the unit has summed up for a row and panel.
#[inline(always)]
unsafe fn sums<S: Lanes>(exact: &Exact, (row, panel): (usize, usize)) -> S {
    let tile = &exact.0[row / TILE_ROWS * PANELS + panel];
    unsafe { S::from_sums(S::load_sums(tile[row % TILE_ROWS].as_ptr())) }
}
