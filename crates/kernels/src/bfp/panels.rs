//! Weights as whole numbers while they pass by, and the loops that multiply rows with them.

use super::rows::{Left, Rows};
use super::{BLOCK, PAIRS};
use crate::amx::PairLines;
use crate::lanes::{LANES, Lanes, MANY_PANELS};
use crate::level::{Kernels, Work};
use crate::pack::Line;
use crate::tile::{AHEAD, Sums, TILE_ROWS};

/// Panels that are worked on together at most: five with four rows keep as many registers busy as four with six, and leave no
/// single panel over.
const PANELS: usize = MANY_PANELS + 1;
/// Rows that are worked on together with so many panels.
const ROWS: usize = 4;
/// So many rows take weights from registers, where they become whole numbers; more take them from the first cache.
const FEW_ROWS: usize = 4;
/// Inputs whose weights are kept as whole numbers at a time.
pub(crate) const DEPTH: usize = 2 * BLOCK;

/// A panel's weights of [`DEPTH`] inputs as whole numbers.
#[derive(Clone, Copy)]
struct Panel {
    pairs: [Line; DEPTH / 2],
    steps: [[f32; LANES]; DEPTH / BLOCK],
}

/// Those of several panels, and the kernels that multiply them.
pub(crate) struct Whole {
    kernels: Kernels,
    panels: [Panel; PANELS],
}

impl Whole {
    pub(crate) const fn new(kernels: Kernels) -> Self {
        let panel = Panel {
            pairs: [Line([0; LANES]); DEPTH / 2],
            steps: [[0.0; LANES]; DEPTH / BLOCK],
        };
        Self {
            kernels,
            panels: [panel; PANELS],
        }
    }

    /// Rows × panels × depth.
    ///
    /// # Safety
    /// As for [`Self::sweep`].
    pub(crate) unsafe fn multiply(
        &mut self,
        rows: &Rows,
        weights: Weights,
        (count, panels, depth): (usize, usize, usize),
        sums: Sums,
    ) {
        let mut panel = 0;
        while panel < panels {
            let together = match panels - panel {
                PANELS => PANELS,
                left => left.min(MANY_PANELS),
            };
            for input in (0..depth).step_by(DEPTH) {
                let sizes = (together, input, DEPTH.min(depth - input));
                let sums = Sums {
                    at: sums.at.wrapping_add(panel * LANES),
                    fresh: sums.fresh && input == 0,
                    ..sums
                };
                // SAFETY: as said.
                unsafe { self.sweep((rows, count), weights.from(panel, input), sizes, sums) };
            }
            panel += together;
        }
    }

    /// All rows, counted, times panels, at most [`PANELS`]; from an input on, which begins a block, over a depth of [`DEPTH`]
    /// inputs at most.
    ///
    /// # Safety
    /// Rows and weights reach that far, and sums have a place for each result.
    pub(crate) unsafe fn sweep(
        &mut self,
        rows: (&Rows, usize),
        weights: Weights,
        sizes: (usize, usize, usize),
        sums: Sums,
    ) {
        self.kernels.run(Sweep {
            rows,
            weights,
            sizes,
            sums,
            whole: self,
        });
    }
}

/// Weights as they lie: pairs from a block on, and the steps of the same blocks, panels `step_panel` apart.
#[derive(Clone, Copy)]
pub(crate) struct Weights {
    pub(crate) pairs: PairLines,
    pub(crate) steps: *const u8,
    pub(crate) step_panel: usize,
}

impl Weights {
    fn from(self, panel: usize, input: usize) -> Self {
        let line = panel * self.pairs.panel + input / 2;
        let step = panel * self.step_panel + input / BLOCK * LANES;
        Self {
            pairs: PairLines {
                at: self.pairs.at.wrapping_add(line * LANES),
                ..self.pairs
            },
            steps: self.steps.wrapping_add(step),
            ..self
        }
    }
}

struct Sweep<'a> {
    rows: (&'a Rows, usize),
    weights: Weights,
    /// Panels, first input and depth.
    sizes: (usize, usize, usize),
    sums: Sums,
    whole: &'a mut Whole,
}

impl Work for Sweep<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let (panels, input, depth) = self.sizes;
        let (rows, count) = self.rows;
        let pairs = depth.div_ceil(2);
        let whole = self.whole;
        // SAFETY: what the caller of `sweep` promised.
        unsafe {
            if panels == MANY_PANELS && count <= FEW_ROWS && rows.tile_rows == count {
                let left = rows.from(0, input);
                return match count {
                    1 => left.add_passing::<S, 1>(self.weights, pairs, self.sums),
                    2 => left.add_passing::<S, 2>(self.weights, pairs, self.sums),
                    3 => left.add_passing::<S, 3>(self.weights, pairs, self.sums),
                    _ => left.add_passing::<S, FEW_ROWS>(self.weights, pairs, self.sums),
                };
            }
            whole.fill::<S>(self.weights, panels, pairs);
            let together = match (rows.tile_rows, panels) {
                (1, PANELS) => ROWS,
                (1, _) => TILE_ROWS,
                (tile, _) => tile,
            };
            for at in (0..count).step_by(together) {
                let left = rows.from(at, input);
                let sums = Sums {
                    at: self.sums.at.add(at * self.sums.row),
                    ..self.sums
                };
                let sizes = (together.min(count - at), pairs);
                let panels = &whole.panels[..panels];
                if rows.tile_rows == 1 {
                    left.panels::<S, false>(panels, sizes, sums);
                } else {
                    left.panels::<S, true>(panels, sizes, sums);
                }
            }
        }
    }
}

/// Sixteen pairs of weights as whole numbers, `many` steps to one.
#[inline(always)]
unsafe fn whole_line<S: Lanes>(from: *const u32, many: S) -> S::Pairs {
    unsafe {
        S::prefetch(from.wrapping_add(AHEAD * LANES).cast());
        S::whole_pairs(S::load_bf16_low(from), S::load_bf16_high(from), many)
    }
}

/// The steps of sixteen outputs' weights, and how many make one: none of [`super::NO_STEP`], so that all whole numbers are zero,
/// and zero times infinity is no number. A sum with a sign would be −∞, which softmax and samplers take for what counts nothing.
#[inline(always)]
unsafe fn steps_of<S: Lanes>(exponents: *const u8) -> (S, S) {
    unsafe {
        let exponent = S::load_u8(exponents).sub(S::splat(127.0));
        let many = S::splat(-127.0).max(S::splat(0.0).sub(exponent));
        (exponent.power_of_two(), many.power_of_two())
    }
}

impl Whole {
    #[inline(always)]
    unsafe fn fill<S: Lanes>(&mut self, weights: Weights, panels: usize, pairs: usize) {
        unsafe {
            for (panel, whole) in self.panels[..panels].iter_mut().enumerate() {
                let from = weights.pairs.at.add(panel * weights.pairs.panel * LANES);
                let steps = weights.steps.add(panel * weights.step_panel);
                for (block, lines) in whole.pairs[..pairs].chunks_mut(PAIRS).enumerate() {
                    let (step, many) = steps_of::<S>(steps.add(block * LANES));
                    step.store(whole.steps[block].as_mut_ptr());
                    for (pair, line) in lines.iter_mut().enumerate() {
                        let from = from.add((block * PAIRS + pair) * LANES);
                        let pairs = whole_line(from, many);
                        S::store_pairs(line.0.as_mut_ptr().cast(), pairs);
                    }
                }
            }
        }
    }
}

impl Left {
    /// Rows and pairs times panels, as many at a time as there are registers for.
    #[inline(always)]
    unsafe fn panels<S: Lanes, const TILED: bool>(
        self,
        panels: &[Panel],
        sizes: (usize, usize),
        sums: Sums,
    ) {
        unsafe {
            if let Some(panels) = panels.as_array() {
                return self.multiply::<S, MANY_PANELS, TILED>(panels, sizes, sums);
            }
            if let (Some(panels), ROWS) = (panels.as_array::<PANELS>(), sizes.0) {
                return self.add::<S, PANELS, ROWS, TILED>(panels, sizes.1, sums);
            }
            for (index, panel) in panels.iter().enumerate() {
                let sums = Sums {
                    at: sums.at.add(index * LANES),
                    ..sums
                };
                self.multiply::<S, 1, TILED>(std::array::from_ref(panel), sizes, sums);
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Lanes, const P: usize, const TILED: bool>(
        self,
        panels: &[Panel; P],
        (rows, pairs): (usize, usize),
        sums: Sums,
    ) {
        unsafe {
            match rows {
                1 => self.add::<S, P, 1, TILED>(panels, pairs, sums),
                2 => self.add::<S, P, 2, TILED>(panels, pairs, sums),
                3 => self.add::<S, P, 3, TILED>(panels, pairs, sums),
                4 => self.add::<S, P, 4, TILED>(panels, pairs, sums),
                5 => self.add::<S, P, 5, TILED>(panels, pairs, sums),
                _ => self.add::<S, P, TILE_ROWS, TILED>(panels, pairs, sums),
            }
        }
    }

    /// Adds the products of blocks to what `sums` hold, one block after the other.
    #[inline(always)]
    unsafe fn add<S: Lanes, const P: usize, const R: usize, const TILED: bool>(
        self,
        panels: &[Panel; P],
        pairs: usize,
        sums: Sums,
    ) {
        unsafe {
            for block in 0..pairs.div_ceil(PAIRS) {
                let mut exact = [[S::no_sums(); P]; R];
                for pair in block * PAIRS..pairs.min((block + 1) * PAIRS) {
                    let mut weights = [S::splat_pairs(0); P];
                    for (weights, panel) in weights.iter_mut().zip(panels) {
                        *weights = S::load_pairs(panel.pairs[pair].0.as_ptr().cast());
                    }
                    for (r, exact) in exact.iter_mut().enumerate() {
                        let values = S::splat_pairs(self.pair::<TILED>(pair, r));
                        for (exact, weights) in exact.iter_mut().zip(weights) {
                            *exact = S::add_pairs(*exact, weights, values);
                        }
                    }
                }
                let steps = panels
                    .each_ref()
                    .map(|panel| S::load(panel.steps[block].as_ptr()));
                self.fold::<S, P, R, TILED>(block, exact, steps, sums);
            }
        }
    }

    /// The same with weights as they lie, of [`MANY_PANELS`].
    #[inline(always)]
    unsafe fn add_passing<S: Lanes, const R: usize>(
        self,
        weights: Weights,
        pairs: usize,
        sums: Sums,
    ) {
        let lines: [_; MANY_PANELS] = std::array::from_fn(|panel| {
            let lines = weights.pairs.at;
            lines.wrapping_add(panel * weights.pairs.panel * LANES)
        });
        unsafe {
            for block in 0..pairs.div_ceil(PAIRS) {
                let mut exact = [[S::no_sums(); MANY_PANELS]; R];
                let mut steps = [S::splat(0.0); MANY_PANELS];
                let mut many = steps;
                for (panel, (step, many)) in steps.iter_mut().zip(&mut many).enumerate() {
                    let exponents = weights.steps.add(panel * weights.step_panel);
                    (*step, *many) = steps_of(exponents.add(block * LANES));
                }
                for pair in block * PAIRS..pairs.min((block + 1) * PAIRS) {
                    let values: [_; R] =
                        std::array::from_fn(|r| S::splat_pairs(self.pair::<true>(pair, r)));
                    for p in 0..MANY_PANELS {
                        let weights = whole_line(lines[p].add(pair * LANES), many[p]);
                        for (exact, values) in exact.iter_mut().zip(values) {
                            exact[p] = S::add_pairs(exact[p], weights, values);
                        }
                    }
                }
                self.fold::<S, MANY_PANELS, R, true>(block, exact, steps, sums);
            }
        }
    }

    /// Adds a block's exact sums, scaled.
    #[inline(always)]
    unsafe fn fold<S: Lanes, const P: usize, const R: usize, const TILED: bool>(
        self,
        block: usize,
        exact: [[S::Sums; P]; R],
        steps: [S; P],
        sums: Sums,
    ) {
        let fresh = sums.fresh && block == 0;
        for (r, exact) in exact.into_iter().enumerate() {
            unsafe {
                let value_step = S::splat(self.step::<TILED>(block, r));
                for (p, (exact, step)) in exact.into_iter().zip(steps).enumerate() {
                    let to = sums.at.add(r * sums.row + p * LANES);
                    let before = if fresh { S::splat(0.0) } else { S::load(to) };
                    let sum = S::from_sums(exact).mul_add(step.mul(value_step), before);
                    sum.store(to);
                }
            }
        }
    }
}
