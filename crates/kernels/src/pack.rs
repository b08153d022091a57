//! Weight matrices laid out for [`crate::tile`]: panels of sixteen outputs, within a panel one line of memory for each input
//! (f32) or each two inputs (bf16). They are packed once, row by row as they are read, so that there is never a second copy.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use crate::amx::PairLines;
use crate::bfp::{self, Weights};
use crate::lanes::LANES;
use crate::level::Kernels;
use crate::number::Number;
use crate::tile::Right;

#[cfg(target_endian = "big")]
compile_error!("two bf16 in a word are packed as they lie in memory, the first in the lower half");

/// A line of cache: sixteen words.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Line(pub(crate) [u32; LANES]);

/// A weight matrix `[outputs, inputs]`.
#[derive(Debug)]
pub struct Packed {
    outputs: usize,
    inputs: usize,
    /// Whether a line holds two inputs.
    pairs: bool,
    lines: Vec<Line>,
    /// Of pairs, for each panel: [`bfp::steps`]; found by [`Self::prepare`], or else when they are first asked for.
    steps: OnceLock<Vec<u8>>,
}

impl Packed {
    /// Of a matrix in memory, `[outputs, inputs]` in rows.
    ///
    /// # Panics
    /// Where `values` is of another size.
    pub fn new<T: Number>(values: &[T], [outputs, inputs]: [usize; 2]) -> Self {
        assert_eq!(values.len(), outputs * inputs, "values of a matrix");
        let read = |rows: Range<usize>, into: &mut [T]| {
            into.copy_from_slice(&values[rows.start * inputs..rows.end * inputs]);
            Ok::<_, std::convert::Infallible>(())
        };
        match Self::read([outputs, inputs], |_| {}, read) {
            Ok(packed) => packed,
            Err(never) => match never {},
        }
    }

    /// Of a matrix whose rows `read` fetches, at most sixteen at a time, in any order and from several threads.
    /// `prepare` is told where the memory is before it is first touched; nothing is there to be read yet.
    pub fn read<T: Number, E: Send>(
        [outputs, inputs]: [usize; 2],
        prepare: impl FnOnce(*mut [u8]),
        read: impl Fn(Range<usize>, &mut [T]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        let pairs = size_of::<T>() == 2;
        let panel_lines = if pairs { inputs.div_ceil(2) } else { inputs };
        let count = outputs.div_ceil(LANES) * panel_lines;
        let mut lines: Vec<Line> = Vec::with_capacity(count);
        let spare = &mut lines.spare_capacity_mut()[..count];
        prepare(std::ptr::slice_from_raw_parts_mut(
            spare.as_mut_ptr().cast(),
            size_of_val(spare),
        ));
        let panels = spare.par_chunks_mut(panel_lines.max(1)).enumerate();
        panels.try_for_each_init(
            || vec![0_u32; LANES * panel_lines],
            |words, (panel, lines)| {
                let first = panel * LANES;
                let count = LANES.min(outputs - first);
                let (rows, absent) = words.split_at_mut(count * panel_lines);
                absent.fill(0);
                // Rows of whole words lie in them without gaps; of an odd number of halves the last one stays zero.
                let at_once = if panel_lines * 4 == inputs * size_of::<T>() {
                    count
                } else {
                    1
                };
                for (index, rows) in rows.chunks_mut(at_once * panel_lines).enumerate() {
                    let from = first + index * at_once;
                    let numbers: &mut [T] = numbers(rows);
                    read(from..from + at_once, &mut numbers[..at_once * inputs])?;
                }
                interleave(words, panel_lines, lines);
                Ok(())
            },
        )?;
        // SAFETY: every panel wrote all of its lines.
        unsafe { lines.set_len(count) };
        Ok(Self {
            outputs,
            inputs,
            pairs,
            lines,
            steps: OnceLock::new(),
        })
    }

    /// Finds what products of this level need beside the weights now, on all threads. At the first product one thread would, and
    /// all others would wait for it.
    pub fn prepare(&mut self, kernels: Kernels) {
        if self.pairs && kernels.has_blocks() {
            self.steps = OnceLock::from(bfp::steps(&self.lines, self.inputs, true));
        }
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
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>() + self.steps.get().map_or(0, Vec::len)
    }

    /// Row `output` as it was packed.
    ///
    /// # Panics
    /// Where there is no such row, or `into` is not as wide as one.
    pub fn row<T: Number>(&self, output: usize, into: &mut [T]) {
        assert!(
            output < self.outputs && into.len() == self.inputs,
            "a row of the matrix"
        );
        let (panel, column) = (output / LANES, output % LANES);
        let lines = &self.lines[panel * self.panel_lines()..];
        for (k, value) in into.iter_mut().enumerate() {
            let bits = match (self.pairs, k % 2) {
                (false, _) => lines[k].0[column],
                (true, 0) => lines[k / 2].0[column] << 16,
                (true, _) => lines[k / 2].0[column] & 0xffff_0000,
            };
            *value = T::rounded(f32::from_bits(bits));
        }
    }

    pub(crate) const fn panel_lines(&self) -> usize {
        if self.pairs {
            self.inputs.div_ceil(2)
        } else {
            self.inputs
        }
    }

    /// Whether a line holds two inputs, so that the depth of products is even.
    pub(crate) const fn pairs(&self) -> bool {
        self.pairs
    }

    /// Pairs from this panel and input on, which is even.
    pub(crate) fn pair_lines(&self, panel: usize, input: usize) -> PairLines {
        let line = panel * self.panel_lines() + input / 2;
        PairLines {
            at: self.lines[line..].as_ptr().cast(),
            panel: self.panel_lines(),
        }
    }

    /// The same with their steps, of an input that begins a block.
    pub(crate) fn weights(&self, panel: usize, input: usize) -> Weights {
        let step_panel = bfp::blocks(self.inputs) * LANES;
        let step = panel * step_panel + input / bfp::BLOCK * LANES;
        Weights {
            pairs: self.pair_lines(panel, input),
            steps: self.steps()[step..].as_ptr(),
            step_panel,
        }
    }

    /// Not on several threads: whoever waits for it may be a thread that this would wait for.
    fn steps(&self) -> &[u8] {
        self.steps
            .get_or_init(|| bfp::steps(&self.lines, self.inputs, false))
    }

    /// From this panel and input on, which is even in pairs.
    pub(crate) fn right(&self, panel: usize, input: usize) -> Right {
        let line = panel * self.panel_lines() + if self.pairs { input / 2 } else { input };
        let (at, panel) = (self.lines[line..].as_ptr(), self.panel_lines());
        if self.pairs {
            Right::Pairs {
                at: at.cast(),
                panel,
            }
        } else {
            Right::F32 {
                at: at.cast(),
                panel,
            }
        }
    }
}

/// Words seen as the numbers that they hold: one f32, or two bf16.
fn numbers<T: Number>(words: &mut [u32]) -> &mut [T] {
    let count = size_of_val(words) / size_of::<T>();
    // SAFETY: `Number` is f32 and bf16, which are as good in any bits and aligned no more than u32; the size is the words'.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), count) }
}

/// Puts sixteen rows of `width` words beside each other: a line has one word of each. Sixteen lines at a time, so that what is
/// fetched of a row is used at once, however far apart the rows are.
pub(crate) fn interleave(rows: &[u32], width: usize, lines: &mut [MaybeUninit<Line>]) {
    let mut block = [[0_u32; LANES]; LANES];
    for (index, lines) in lines.chunks_mut(LANES).enumerate() {
        let from = index * LANES;
        for (column, row) in rows.chunks_exact(width).enumerate() {
            for (line, word) in block.iter_mut().zip(&row[from..from + lines.len()]) {
                line[column] = *word;
            }
        }
        for (line, words) in lines.iter_mut().zip(block) {
            line.write(Line(words));
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::Level;

    #[test]
    fn what_is_prepared_is_what_is_found_when_asked_for() {
        let Some(kernels) = Kernels::at(Level::Avx512Bfp) else {
            return;
        };
        let (outputs, inputs) = (35, 200);
        let values: Vec<bf16> = (0..outputs * inputs)
            .map(|value| bf16::from_f32(value as f32))
            .collect();
        let asked = Packed::new(&values, [outputs, inputs]);
        let mut prepared = Packed::new(&values, [outputs, inputs]);
        prepared.prepare(kernels);
        assert!(asked.steps.get().is_none() && prepared.steps.get().is_some());
        assert_eq!(prepared.steps(), asked.steps());
    }
}
