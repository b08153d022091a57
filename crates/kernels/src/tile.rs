//! The inner loop of all products: a few rows times a few panels, each result one chain of multiply-adds over the depth, in
//! order. How many rows and panels are worked on together changes no chain, so it changes no number.

use std::sync::atomic::{Ordering, compiler_fence};

use crate::amx::PairLines;
use crate::lanes::{LANES, Lanes, MANY_PANELS};
use crate::level::{Kernels, Work};
use crate::pack::Line;

/// Rows worked on together at most; with them all sixteen registers of AVX2 are in use, and with four panels those of AVX-512.
pub(crate) const TILE_ROWS: usize = 6;

/// How many lines ahead of their use pairs are asked for. (For f32 it does not pay.)
pub(crate) const AHEAD: usize = 32;

/// The left side: f32 at `at + k × step + r × row`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) at: *const f32,
    pub(crate) step: usize,
    pub(crate) row: usize,
}

/// The right side: panels of [`LANES`] columns, `panel` lines apart; a line is one k, or two in pairs of bf16.
#[derive(Clone, Copy)]
pub(crate) enum Right {
    F32 { at: *const f32, panel: usize },
    Pairs { at: *const u32, panel: usize },
}

/// The result, f32 at `at + r × row + column`; where it is not `fresh`, chains go on from what it holds.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) at: *mut f32,
    pub(crate) row: usize,
    pub(crate) fresh: bool,
}

/// rows × panels over `depth`, as many panels at a time as keep the registers busy.
///
/// # Safety
/// All three reach as far as rows, panels and depth say; with pairs the left side does so for an even depth.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Lanes>(
    (rows, panels, depth): (usize, usize, usize),
    left: Left,
    right: Right,
    sums: Sums,
) {
    unsafe {
        if S::PANELS == MANY_PANELS {
            return match rows {
                1 => strip::<S, 1, MANY_PANELS>(panels, depth, left, right, sums),
                2 => strip::<S, 2, MANY_PANELS>(panels, depth, left, right, sums),
                3 => strip::<S, 3, MANY_PANELS>(panels, depth, left, right, sums),
                4 => strip::<S, 4, MANY_PANELS>(panels, depth, left, right, sums),
                5 => strip::<S, 5, MANY_PANELS>(panels, depth, left, right, sums),
                _ => strip::<S, 6, MANY_PANELS>(panels, depth, left, right, sums),
            };
        }
        match rows {
            1 => strip::<S, 1, 4>(panels, depth, left, right, sums),
            2 => strip::<S, 2, 2>(panels, depth, left, right, sums),
            3 => strip::<S, 3, 2>(panels, depth, left, right, sums),
            4 => strip::<S, 4, 1>(panels, depth, left, right, sums),
            5 => strip::<S, 5, 1>(panels, depth, left, right, sums),
            _ => strip::<S, 6, 1>(panels, depth, left, right, sums),
        }
    }
}

#[inline(always)]
unsafe fn strip<S: Lanes, const R: usize, const P: usize>(
    panels: usize,
    depth: usize,
    left: Left,
    right: Right,
    sums: Sums,
) {
    let mut done = 0;
    unsafe {
        while done + P <= panels {
            block::<S, R, P>(depth, left, right.from(done), sums.from(done));
            done += P;
        }
        while done < panels {
            block::<S, R, 1>(depth, left, right.from(done), sums.from(done));
            done += 1;
        }
    }
}

impl Right {
    #[inline(always)]
    unsafe fn from(self, panels: usize) -> Self {
        unsafe {
            match self {
                Self::F32 { at, panel } => Self::F32 {
                    at: at.add(panels * panel * LANES),
                    panel,
                },
                Self::Pairs { at, panel } => Self::Pairs {
                    at: at.add(panels * panel * LANES),
                    panel,
                },
            }
        }
    }
}

impl Sums {
    #[inline(always)]
    unsafe fn from(self, panels: usize) -> Self {
        Self {
            at: unsafe { self.at.add(panels * LANES) },
            ..self
        }
    }
}

#[inline(always)]
unsafe fn block<S: Lanes, const R: usize, const P: usize>(
    depth: usize,
    left: Left,
    right: Right,
    sums: Sums,
) {
    unsafe {
        let mut chains = [[S::splat(0.0); P]; R];
        if !sums.fresh {
            for (r, row) in chains.iter_mut().enumerate() {
                for (p, chain) in row.iter_mut().enumerate() {
                    *chain = S::load(sums.at.add(r * sums.row + p * LANES));
                }
            }
        }
        match right {
            Right::F32 { at, panel } => {
                for k in 0..depth {
                    let mut columns = [S::splat(0.0); P];
                    for (p, column) in columns.iter_mut().enumerate() {
                        *column = S::load(at.add((p * panel + k) * LANES));
                    }
                    step(&mut chains, left, k, &columns);
                }
            }
            Right::Pairs { at, panel } => {
                for pair in 0..depth.div_ceil(2) {
                    let mut columns = [S::splat(0.0); P];
                    for (p, column) in columns.iter_mut().enumerate() {
                        let line = at.add((p * panel + pair) * LANES);
                        S::prefetch(line.wrapping_add(AHEAD * LANES).cast());
                        *column = S::load_bf16_low(line);
                    }
                    step(&mut chains, left, 2 * pair, &columns);
                    apart::<R>();
                    for (p, column) in columns.iter_mut().enumerate() {
                        *column = S::load_bf16_high(at.add((p * panel + pair) * LANES));
                    }
                    step(&mut chains, left, 2 * pair + 1, &columns);
                    apart::<R>();
                }
            }
        }
        for (r, row) in chains.iter().enumerate() {
            for (p, chain) in row.iter().enumerate() {
                chain.store(sums.at.add(r * sums.row + p * LANES));
            }
        }
    }
}

/// Keeps the compiler from fetching what the next step needs before this one is done, where there are no registers for both.
#[inline(always)]
fn apart<const R: usize>() {
    if R > 2 {
        compiler_fence(Ordering::SeqCst);
    }
}

#[inline(always)]
unsafe fn step<S: Lanes, const R: usize, const P: usize>(
    chains: &mut [[S; P]; R],
    left: Left,
    k: usize,
    columns: &[S; P],
) {
    unsafe {
        for (r, row) in chains.iter_mut().enumerate() {
            let value = S::splat(*left.at.add(k * left.step + r * left.row));
            for (chain, column) in row.iter_mut().zip(columns) {
                *chain = value.mul_add(*column, *chain);
            }
        }
    }
}

/// [`multiply`] for any number of rows, in tiles; compiled once for each level.
///
/// # Safety
/// As there.
pub(crate) unsafe fn sweep(
    kernels: Kernels,
    sizes: (usize, usize, usize),
    left: Left,
    right: Right,
    sums: Sums,
) {
    kernels.run(Sweep {
        sizes,
        left,
        right,
        sums,
    });
}

struct Sweep {
    sizes: (usize, usize, usize),
    left: Left,
    right: Right,
    sums: Sums,
}

impl Work for Sweep {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let (rows, panels, depth) = self.sizes;
        // Five panels and four rows keep as many registers busy as four and six, and leave no single panel over.
        let five = S::PANELS == MANY_PANELS && panels == MANY_PANELS + 1;
        let together = if five { 4 } else { TILE_ROWS };
        for at in (0..rows).step_by(together) {
            // SAFETY: what the caller of `sweep` promised, for these rows.
            unsafe {
                let left = Left {
                    at: self.left.at.add(at * self.left.row),
                    ..self.left
                };
                let sums = Sums {
                    at: self.sums.at.add(at * self.sums.row),
                    ..self.sums
                };
                let rows = together.min(rows - at);
                if five && rows == 4 {
                    block::<S, 4, { MANY_PANELS + 1 }>(depth, left, self.right, sums);
                } else {
                    multiply::<S>((rows, panels, depth), left, self.right, sums);
                }
            }
        }
    }
}

/// Pairs of bf16 become lines of f32, once for many rows: `sizes` are panels, an even depth, and how many `lines` apart the panels
/// are put. The pair `ahead` of each is asked for.
///
/// # Safety
/// `from` has these panels, of pairs for all of this depth.
pub(crate) unsafe fn widen(
    kernels: Kernels,
    from: PairLines,
    sizes: (usize, usize, usize),
    ahead: usize,
    lines: &mut [Line],
) {
    kernels.run(Widen {
        from,
        sizes,
        ahead,
        lines,
    });
}

struct Widen<'a> {
    from: PairLines,
    sizes: (usize, usize, usize),
    ahead: usize,
    lines: &'a mut [Line],
}

impl Work for Widen<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let (panels, depth, apart) = self.sizes;
        for panel in 0..panels {
            let to = &mut self.lines[panel * apart..][..depth];
            for (pair, to) in to.chunks_exact_mut(2).enumerate() {
                // SAFETY: what the caller of `widen` promised.
                unsafe {
                    let line = self.from.at.add((panel * self.from.panel + pair) * LANES);
                    S::prefetch(line.wrapping_add(self.ahead * LANES).cast());
                    S::load_bf16_low(line).store(to[0].0.as_mut_ptr().cast());
                    S::load_bf16_high(line).store(to[1].0.as_mut_ptr().cast());
                }
            }
        }
    }
}
