//! Products with weights of 8 bits (GGUF's Q8_0: blocks of 32 with one f16 scale). The other side is quantised too, each
//! row for itself in blocks of 32, so that a block's sum is exact in integers; blocks are added in order, in f32.
//!
//! A panel is sixteen outputs. Of each block of inputs it holds sixteen scales, then eight times sixteen quads: four weights
//! of each output. One row streams weights at the speed of memory; several rows share what is loaded.

use rayon::prelude::*;

use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::number::Number;
use crate::pieces::filled;
use crate::product::{Finish, Then, each, rows_of};
use half::f16;

/// Inputs of a block.
const BLOCK: usize = 32;
/// Bytes of a block of Q8_0: the scale, then the weights.
const STORED_BYTES: usize = 2 + BLOCK;
/// Units of a block in a panel: the scales, then sixteen blocks of weights.
const UNITS: usize = 1 + LANES;
/// Rows that share what is loaded.
const TILE_ROWS: usize = 4;
/// Panels that one task works on.
const CHUNK_PANELS: usize = 4;
/// Multiplications below which a product is not worth a second thread.
const PARALLEL_MIN: usize = 1 << 17;

/// 32 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
struct Unit([i8; BLOCK]);

/// A weight matrix `[outputs, inputs]` of Q8_0.
#[derive(Debug)]
pub struct Quantised {
    outputs: usize,
    inputs: usize,
    units: Vec<Unit>,
}

/// A row's block of inputs.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Values {
    scale: f32,
    values: [i8; BLOCK],
}

impl Quantised {
    /// From the bytes of a GGUF tensor of Q8_0; `None` where they are not as many as the shape needs.
    /// `prepare` is told where the memory is before it is first touched; nothing is there to be read yet.
    #[must_use]
    pub fn q8_0(
        bytes: &[u8],
        [outputs, inputs]: [usize; 2],
        prepare: impl FnOnce(*mut [u8]),
    ) -> Option<Self> {
        let blocks = inputs / BLOCK;
        if inputs == 0
            || !inputs.is_multiple_of(BLOCK)
            || bytes.len() != outputs * blocks * STORED_BYTES
        {
            return None;
        }
        let count = outputs.div_ceil(LANES) * blocks * UNITS;
        let mut units: Vec<Unit> = Vec::with_capacity(count);
        let spare = &mut units.spare_capacity_mut()[..count];
        prepare(std::ptr::slice_from_raw_parts_mut(
            spare.as_mut_ptr().cast(),
            size_of_val(spare),
        ));
        let panels = spare.par_chunks_mut(blocks * UNITS).enumerate();
        panels.for_each(|(panel, units)| {
            for (block, units) in units.chunks_mut(UNITS).enumerate() {
                let of = |lane: usize| {
                    let output = panel * LANES + lane;
                    let first = (output * blocks + block) * STORED_BYTES;
                    (output < outputs).then(|| &bytes[first..first + STORED_BYTES])
                };
                let packed = pack(std::array::from_fn(of));
                for (unit, packed) in units.iter_mut().zip(packed) {
                    unit.write(packed);
                }
            }
        });
        // SAFETY: every panel wrote all of its units.
        unsafe { units.set_len(count) };
        Some(Self {
            outputs,
            inputs,
            units,
        })
    }

    /// Rows of the matrix.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.units.len() * size_of::<Unit>()
    }

    /// Row `output`, dequantised.
    ///
    /// # Panics
    /// Where there is no such row, or `into` is not as wide as one.
    pub fn row<T: Number>(&self, output: usize, into: &mut [T]) {
        assert!(
            output < self.outputs && into.len() == self.inputs,
            "a row of the matrix"
        );
        let lane = output % LANES;
        let blocks = self.panel(output / LANES).chunks_exact(UNITS);
        for (units, into) in blocks.zip(into.chunks_mut(BLOCK)) {
            let scale = &units[0].0[2 * lane..2 * lane + 2];
            let scale = f16::from_le_bytes([scale[0] as u8, scale[1] as u8]).to_f32();
            for (k, value) in into.iter_mut().enumerate() {
                let byte = k / 4 * 4 * LANES + lane * 4 + k % 4;
                let weight = units[1 + byte / BLOCK].0[byte % BLOCK];
                *value = T::rounded(f32::from(weight) * scale);
            }
        }
    }

    fn panel(&self, panel: usize) -> &[Unit] {
        let units = self.inputs / BLOCK * UNITS;
        &self.units[panel * units..(panel + 1) * units]
    }
}

/// A block of sixteen outputs; zeros for those that are missing.
fn pack(stored: [Option<&[u8]>; LANES]) -> [Unit; UNITS] {
    let mut packed = [Unit([0; BLOCK]); UNITS];
    for (lane, stored) in stored.into_iter().enumerate() {
        let Some(stored) = stored else { continue };
        let (scale, weights) = stored.split_at(2);
        for (at, byte) in scale.iter().enumerate() {
            packed[0].0[2 * lane + at] = *byte as i8;
        }
        for (k, weight) in weights.iter().enumerate() {
            let byte = k / 4 * 4 * LANES + lane * 4 + k % 4;
            packed[1 + byte / BLOCK].0[byte % BLOCK] = *weight as i8;
        }
    }
    packed
}

/// A block of inputs: the largest becomes 127 or −127. What is no number makes the whole block none.
fn quantise<T: Number>(block: &[T]) -> Values {
    let mut wide = [0_f32; BLOCK];
    for (wide, value) in wide.iter_mut().zip(block) {
        *wide = value.wide();
    }
    let largest = wide.iter().fold(0_f32, |most, x| most.max(x.abs()));
    let sum: f32 = wide.iter().map(|x| x * 0.0).sum();
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    Values {
        // 0, or none where any of the block is infinite or no number.
        scale: largest / 127.0 + sum,
        values: wide.map(|x| (x * inverse).round_ties_even() as i8),
    }
}

impl Kernels {
    /// x `[rows, inputs]` → `[rows, outputs]`.
    ///
    /// # Panics
    /// Where sizes do not fit each other.
    #[must_use]
    pub fn quantised_product<T: Number>(
        self,
        x: &[T],
        weight: &Quantised,
        then: Then<T>,
    ) -> Vec<T> {
        T::quantised_product(self, x, weight, then)
    }

    pub(crate) fn quantised_product_of<T: Number>(
        self,
        x: &[T],
        weight: &Quantised,
        then: Then<T>,
    ) -> Vec<T> {
        let rows = rows_of(x, weight.inputs);
        then.check(rows, weight.outputs);
        let parallel = rows * weight.inputs * weight.outputs >= PARALLEL_MIN;
        let values: Vec<Values> = if parallel && rows > 1 {
            x.par_chunks(BLOCK).with_min_len(64).map(quantise).collect()
        } else {
            x.chunks(BLOCK).map(quantise).collect()
        };
        filled(rows * weight.outputs, |out| {
            let chunks = weight.outputs.div_ceil(CHUNK_PANELS * LANES);
            each(chunks, parallel, |chunk| {
                let first = chunk * CHUNK_PANELS;
                let panels = CHUNK_PANELS.min(weight.outputs.div_ceil(LANES) - first);
                let mut sums = vec![0.0; rows * panels * LANES];
                let chunk = Chunk {
                    values: &values,
                    weight,
                    first,
                    panels,
                    sums: &mut sums,
                };
                chunk.sum(self);
                self.run(Finish {
                    sums: &sums,
                    panels,
                    first,
                    outputs: weight.outputs,
                    rows: (0, rows),
                    then,
                    out,
                });
            });
        })
    }
}

/// A chunk of outputs for all rows.
struct Chunk<'a> {
    values: &'a [Values],
    weight: &'a Quantised,
    /// First panel.
    first: usize,
    panels: usize,
    /// [rows, panels × LANES].
    sums: &'a mut [f32],
}

impl Chunk<'_> {
    fn sum(self, kernels: Kernels) {
        kernels.run(self);
    }
}

impl Work for Chunk<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let blocks = self.weight.inputs / BLOCK;
        let rows = self.values.len() / blocks;
        for panel in 0..self.panels {
            let units = self.weight.panel(self.first + panel);
            let mut row = 0;
            while row < rows {
                let values = &self.values[row * blocks..];
                let place = &mut self.sums[(row * self.panels + panel) * LANES..];
                let (stride, left) = (self.panels * LANES, rows - row);
                // SAFETY: as many rows are left, and each has a place for this panel's sums.
                unsafe {
                    match left {
                        1 => tile::<S, 1>(units, values, place, stride),
                        2 => tile::<S, 2>(units, values, place, stride),
                        3 => tile::<S, 3>(units, values, place, stride),
                        _ => tile::<S, TILE_ROWS>(units, values, place, stride),
                    }
                }
                row += left.min(TILE_ROWS);
            }
        }
    }
}

/// R rows times one panel.
#[inline(always)]
unsafe fn tile<S: Lanes, const R: usize>(
    units: &[Unit],
    values: &[Values],
    sums: &mut [f32],
    stride: usize,
) {
    let blocks = units.len() / UNITS;
    unsafe {
        let mut totals = [S::splat(0.0); R];
        for block in 0..blocks {
            let units = units.as_ptr().add(block * UNITS);
            let scales = S::load_f16(units.cast());
            let mut exact = [S::no_sums(); R];
            for quad in 0..BLOCK / 4 {
                let weights = S::load_quads(units.add(1 + 2 * quad).cast());
                for (r, exact) in exact.iter_mut().enumerate() {
                    let values = &(*values.as_ptr().add(r * blocks + block)).values;
                    let values = values.as_ptr().add(4 * quad).cast::<i32>().read_unaligned();
                    *exact = S::dot(*exact, weights, values);
                }
            }
            for (r, total) in totals.iter_mut().enumerate() {
                let scale = (*values.as_ptr().add(r * blocks + block)).scale;
                let scale = scales.mul(S::splat(scale));
                *total = S::from_sums(exact[r]).mul_add(scale, *total);
            }
        }
        for (r, total) in totals.into_iter().enumerate() {
            total.store(sums[r * stride..].as_mut_ptr());
        }
    }
}
