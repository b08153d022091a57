//! Products with weights as GGUF stores them in 8, 4 and 6 bits ([`Form`]). The other side is quantised too, each row for
//! itself in blocks of 32, so that a block's sum is exact in integers; blocks are added in order, in f32.
//!
//! A panel is sixteen outputs; `layout` says how it lies in memory. A few rows stream weights at the speed of memory and take
//! them apart in registers (`few`). For many rows a panel's weights are taken apart once and stay in the first cache while all rows
//! use them (`many`, and `wide` with AVX-512); where there is AMX it multiplies many rows (`tiled`). All sum the same integers, so all give
//! the same.

mod few;
mod layout;
mod many;
mod store;
mod tiled;
mod wide;

use std::ops::Range;

use rayon::prelude::*;

use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::number::Number;
use crate::pieces::filled;
use crate::product::{Finish, Then, each, rows_of};
use few::{FEW_ROWS, Few, MORE_ROWS};
use layout::{Layout, Unit};
use many::{Many, Tiles};
use tiled::Tiled;

pub use store::store_q8_0;

/// Inputs that share one scale on the other side.
const BLOCK: usize = 32;
/// Panels that one task works on.
const CHUNK_PANELS: usize = 4;
/// Rows worked on between two passes over the weights; with a block of 256 inputs a quarter of a megabyte.
const BLOCK_ROWS: usize = 80 * many::TILE_ROWS;
/// Blocks that one task quantises.
const TASK_BLOCKS: usize = 64;
/// Multiplications below which a product is not worth a second thread.
const PARALLEL_MIN: usize = 1 << 17;

/// A form of GGUF's (ggml's block formats of these names).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// 32 weights of 8 bits with one f16 scale.
    Q8_0,
    /// 256 weights of 4 bits in eight parts; each part has a scale and a minimum of 6 bits, the block two f16 for those.
    Q4K,
    /// 256 weights of 6 bits in sixteen parts; each part has a scale of 8 bits, the block one f16 for those.
    Q6K,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q4K, Self::Q6K];

    /// Weights of a block.
    pub const fn block_inputs(self) -> usize {
        match self {
            Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block as it is stored.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of so many weights as it is stored; `None` where they are no whole blocks.
    pub fn row_bytes(self, inputs: usize) -> Option<usize> {
        if inputs == 0 || !inputs.is_multiple_of(self.block_inputs()) {
            return None;
        }
        Some(inputs / self.block_inputs() * self.block_bytes())
    }
}

/// A weight matrix `[outputs, inputs]`, quantised.
#[derive(Debug)]
pub struct Quantised {
    form: Form,
    outputs: usize,
    inputs: usize,
    units: Vec<Unit>,
}

/// A row's block of inputs.
#[derive(Clone, Copy, Default)]
#[repr(C, align(4))]
struct Values {
    scale: f32,
    /// Scale × the sum of all values.
    sum: f32,
    /// The sums of both halves, the first in the lower half.
    halves: [i16; 2],
    values: [i8; BLOCK],
}

impl Quantised {
    /// From the bytes of a GGUF tensor; `None` where they are not as many as the shape needs.
    /// `prepare` is told where the memory is before it is first touched; nothing is there to be read yet.
    pub fn new(
        form: Form,
        bytes: &[u8],
        [outputs, inputs]: [usize; 2],
        prepare: impl FnOnce(*mut [u8]),
    ) -> Option<Self> {
        let row_bytes = form.row_bytes(inputs)?;
        if bytes.len() != outputs * row_bytes {
            return None;
        }
        let read = |rows: Range<usize>, into: &mut [u8]| {
            into.copy_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
            Ok::<_, std::convert::Infallible>(())
        };
        match Self::read(form, [outputs, inputs], prepare, read) {
            Ok(weight) => Some(weight),
            Err(never) => match never {},
        }
    }

    /// Of a matrix whose rows `read` fetches as a GGUF tensor has them, at most sixteen at a time, in any order and from
    /// several threads. `prepare` is as for [`Quantised::new`].
    ///
    /// # Errors
    /// The first that `read` gave.
    ///
    /// # Panics
    /// Where a row is no whole blocks ([`Form::row_bytes`]).
    pub fn read<E: Send>(
        form: Form,
        [outputs, inputs]: [usize; 2],
        prepare: impl FnOnce(*mut [u8]),
        read: impl Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        let row_bytes = form.row_bytes(inputs).unwrap_or_default();
        assert!(row_bytes > 0, "a row of whole blocks");
        let blocks = inputs / form.block_inputs();
        let block_units = Layout::of(form).units;
        let count = outputs.div_ceil(LANES) * blocks * block_units;
        let mut units: Vec<Unit> = Vec::with_capacity(count);
        let spare = &mut units.spare_capacity_mut()[..count];
        prepare(std::ptr::slice_from_raw_parts_mut(
            spare.as_mut_ptr().cast(),
            size_of_val(spare),
        ));
        let panels = spare.par_chunks_mut(blocks * block_units).enumerate();
        panels.try_for_each_init(
            || vec![0_u8; LANES * row_bytes],
            |rows, (panel, units)| {
                let first = panel * LANES;
                let lanes = LANES.min(outputs - first);
                read(first..first + lanes, &mut rows[..lanes * row_bytes])?;
                for (block, units) in units.chunks_mut(block_units).enumerate() {
                    // SAFETY: zeros are units.
                    let units = unsafe {
                        units.as_mut_ptr().write_bytes(0, units.len());
                        units.assume_init_mut()
                    };
                    for lane in 0..lanes {
                        let from = lane * row_bytes + block * form.block_bytes();
                        let stored = &rows[from..from + form.block_bytes()];
                        layout::put(form, stored, lane, Unit::bytes_mut(units));
                    }
                }
                Ok(())
            },
        )?;
        // SAFETY: every panel wrote all of its units.
        unsafe { units.set_len(count) };
        Ok(Self {
            form,
            outputs,
            inputs,
            units,
        })
    }

    /// Rows of the matrix.
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
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
        let blocks = self
            .panel(output / LANES)
            .chunks_exact(Layout::of(self.form).units);
        let mut wide = [0.0; 256];
        for (units, into) in blocks.zip(into.chunks_mut(self.form.block_inputs())) {
            layout::get(self.form, Unit::bytes(units), output % LANES, &mut wide);
            for (value, wide) in into.iter_mut().zip(wide) {
                *value = T::rounded(wide);
            }
        }
    }

    fn panel(&self, panel: usize) -> &[Unit] {
        let units = self.inputs / self.form.block_inputs() * Layout::of(self.form).units;
        &self.units[panel * units..(panel + 1) * units]
    }
}

/// Blocks of inputs, quantised.
struct Quantise<'a, T> {
    x: &'a [T],
    values: &'a mut [Values],
}

impl<T: Number> Work for Quantise<'_, T> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        for (values, block) in self.values.iter_mut().zip(self.x.chunks_exact(BLOCK)) {
            *values = quantise(block);
        }
    }
}

/// A block of inputs: the largest becomes 127 or −127. What is no number makes the whole block none.
#[inline(always)]
fn quantise<T: Number>(block: &[T]) -> Values {
    /// 3 × 2^22: added to a number below 2^22 it rounds it to a whole one, ties to even, whose last byte is that of the sum.
    const ROUND: f32 = 12_582_912.0;
    const INFINITE: u32 = f32::INFINITY.to_bits();
    let mut wide = [0_f32; BLOCK];
    for (wide, value) in wide.iter_mut().zip(block) {
        *wide = value.wide();
    }
    // As integers: numbers without sign have the order of their bits, in which what is none comes last.
    let bits = wide.iter().map(|x| x.abs().to_bits());
    let largest = match bits.fold(0, u32::max) {
        INFINITE.. => f32::NAN,
        bits => f32::from_bits(bits),
    };
    // Numbers so small that this is beyond f32 would saturate to -128, one more than the sums have room for.
    let inverse = if largest > 0.0 {
        (127.0 / largest).min(f32::MAX)
    } else {
        0.0
    };
    let scale = largest / 127.0;
    let mut values = [0_i8; BLOCK];
    for (value, x) in values.iter_mut().zip(wide) {
        *value = (x * inverse + ROUND).to_bits() as i8;
    }
    let half = |part: &[i8]| part.iter().map(|x| i16::from(*x)).sum::<i16>();
    let halves = [half(&values[..BLOCK / 2]), half(&values[BLOCK / 2..])];
    Values {
        scale,
        sum: scale * (f32::from(halves[0]) + f32::from(halves[1])),
        halves,
        values,
    }
}

impl Kernels {
    /// x `[rows, inputs]` → `[rows, outputs]`.
    ///
    /// # Panics
    /// Where sizes do not fit each other.
    pub fn quantised_product<T: Number>(
        self,
        x: &[T],
        weight: &Quantised,
        then: Then<T>,
    ) -> Vec<T> {
        T::quantised_product(self, x, weight, then)
    }

    /// `[rows, blocks]` of `[rows, inputs]`.
    fn quantised_rows<T: Number>(self, x: &[T], parallel: bool) -> Vec<Values> {
        let mut values = vec![Values::default(); x.len() / BLOCK];
        if parallel {
            let parts = values.par_chunks_mut(TASK_BLOCKS);
            parts
                .zip(x.par_chunks(TASK_BLOCKS * BLOCK))
                .for_each(|(values, x)| self.run(Quantise { x, values }));
        } else {
            let values = &mut values;
            self.run(Quantise { x, values });
        }
        values
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
        filled(rows * weight.outputs, |out| {
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let count = BLOCK_ROWS.min(rows - first);
                let x = &x[first * weight.inputs..(first + count) * weight.inputs];
                let values = self.quantised_rows(x, parallel && count > 1);
                let left = match weight.form {
                    _ if count <= FEW_ROWS => Left::Few(values),
                    _ if self.has_tiles() => Left::Tiled(values),
                    // Bytes already: taking them apart pays for more than two tiles of them, and two panels at a time.
                    Form::Q8_0 if count <= 2 * MORE_ROWS || !self.has_wide_dots() => {
                        Left::Few(values)
                    }
                    form => Left::Many(Tiles::new(form, &values, count, parallel)),
                };
                each(
                    weight.outputs.div_ceil(CHUNK_PANELS * LANES),
                    parallel,
                    |chunk| {
                        let first_panel = chunk * CHUNK_PANELS;
                        let panels = CHUNK_PANELS.min(weight.outputs.div_ceil(LANES) - first_panel);
                        let mut sums = vec![0.0; count * panels * LANES];
                        let chunk = Chunk {
                            weight,
                            first: first_panel,
                            panels,
                            sums: &mut sums,
                        };
                        match &left {
                            Left::Few(values) => self.run(Few {
                                values,
                                rows: count,
                                chunk,
                            }),
                            Left::Tiled(values) => self.run(Tiled {
                                values,
                                rows: count,
                                chunk,
                            }),
                            Left::Many(tiles) => self.run(Many { tiles, chunk }),
                        }
                        self.run(Finish {
                            sums: &sums,
                            panels,
                            first: first_panel,
                            outputs: weight.outputs,
                            rows: (first, count),
                            then,
                            out,
                        });
                    },
                );
            }
        })
    }
}

/// Rows in the order in which they are used.
enum Left {
    /// `[rows, blocks]`.
    Few(Vec<Values>),
    /// The same.
    Tiled(Vec<Values>),
    Many(Tiles),
}

/// A chunk of outputs for all rows.
struct Chunk<'a> {
    weight: &'a Quantised,
    /// First panel.
    first: usize,
    panels: usize,
    /// [rows, panels × LANES], zeros.
    sums: &'a mut [f32],
}
