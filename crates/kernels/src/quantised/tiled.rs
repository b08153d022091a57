//! Many rows of weights of 8 bits by AMX: a block of 32 inputs is a tile as it lies, on both sides. Its exact sums are scaled and
//! added as `few` does it.

use std::mem::offset_of;

use super::layout::{Q8_0, Unit};
use super::{Chunk, LANES, Lanes, Values};
use crate::amx::{self, Blocks, Exact, PANELS, ROWS, TILE_ROWS};
use crate::level::Work;

/// A chunk of outputs for all rows, at a level with tiles.
pub(super) struct Tiled<'a> {
    /// `[rows, blocks]`.
    pub(super) values: &'a [Values],
    pub(super) rows: usize,
    pub(super) chunk: Chunk<'a>,
}

impl Work for Tiled<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let Self {
            values,
            rows,
            chunk,
        } = self;
        let (blocks, stride) = (values.len() / rows, chunk.panels * LANES);
        for row in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - row);
            // SAFETY: who makes one has tiles; rows, panels and their sums are there.
            unsafe {
                let _shaped = amx::shape_blocks(count);
                for panel in (0..chunk.panels).step_by(PANELS) {
                    let panels = PANELS.min(chunk.panels - panel);
                    let units = |at: usize| chunk.weight.panel(chunk.first + panel + at);
                    let corner = Corner {
                        values: &values[row * blocks..(row + count) * blocks],
                        rows: count,
                        panels,
                        units: [units(0), units(panels - 1)],
                    };
                    let sums = &mut chunk.sums[row * stride + panel * LANES..];
                    corner.add_to::<S>(sums, stride);
                }
            }
        }
    }
}

/// As much as the unit has tiles for.
struct Corner<'a> {
    /// `[rows, blocks]`.
    values: &'a [Values],
    rows: usize,
    panels: usize,
    /// Of one panel twice.
    units: [&'a [Unit]; PANELS],
}

impl Corner<'_> {
    /// Sums are sixteen for each row and panel, rows `stride` apart.
    #[inline(always)]
    unsafe fn add_to<S: Lanes>(&self, sums: &mut [f32], stride: usize) {
        const VALUES: usize = size_of::<Values>();
        let blocks = self.values.len() / self.rows;
        let mut exact = Exact([[[0; LANES]; TILE_ROWS]; 4]);
        unsafe {
            let upper = self.values.as_ptr().cast::<i8>();
            let upper = upper.add(offset_of!(Values, values));
            let lower = if self.rows > TILE_ROWS {
                upper.add(TILE_ROWS * blocks * VALUES)
            } else {
                upper
            };
            for block in 0..blocks {
                let units = self.units.map(|units| {
                    let units = units.as_ptr().cast::<i8>();
                    units.add(block * Q8_0.bytes())
                });
                let of = Blocks {
                    upper: upper.add(block * VALUES),
                    lower: lower.add(block * VALUES),
                    row: blocks * VALUES,
                    first: units[0].add(Q8_0.weights),
                    second: units[1].add(Q8_0.weights),
                };
                amx::multiply_blocks(of, &mut exact);
                for (panel, units) in units.into_iter().take(self.panels).enumerate() {
                    let scale = S::load_f16(units.cast());
                    for row in 0..self.rows {
                        let of_row = self.values.get_unchecked(row * blocks + block).scale;
                        let tile = &exact.0[row / TILE_ROWS * PANELS + panel];
                        let exact = S::load_sums(tile[row % TILE_ROWS].as_ptr());
                        let sum = sums[row * stride + panel * LANES..].as_mut_ptr();
                        let scale = scale.mul(S::splat(of_row));
                        let added = S::from_sums(exact).mul_add(scale, S::load(sum));
                        added.store(sum);
                    }
                }
            }
        }
    }
}
