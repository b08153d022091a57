//! What lies between products: norms, rotation, GELU. Each row is one chain of its own; everything is f32 and rounded where the
//! model's reference stores it.

use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::number::Number;
use crate::pieces::{Shared, filled, load, store};
use crate::product::{each, rows_of};

/// Rows that one task takes.
const TASK_ROWS: usize = 16;
/// Numbers below which a second thread does not pay.
const PARALLEL_MIN: usize = 1 << 14;

/// What a norm multiplies with, `[width]`, and its epsilon.
#[derive(Debug, Clone, Copy)]
pub struct Scale<'a> {
    /// `[width]`.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// Cosines and sines of each row, [rows, width / 2].
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a, T> {
    /// Cosines.
    pub cos: &'a [T],
    /// Sines.
    pub sin: &'a [T],
}

impl Kernels {
    /// RMS norm of each row of x `[rows, width]`; then added to `residual` where there is one.
    ///
    /// # Panics
    /// Where sizes do not fit each other.
    pub fn rms_norm<T: Number>(self, x: &[T], of: Scale, residual: Option<&[T]>) -> Vec<T> {
        T::rms_norm(self, x, of, residual)
    }

    pub(crate) fn rms_norm_of<T: Number>(
        self,
        x: &[T],
        of: Scale,
        residual: Option<&[T]>,
    ) -> Vec<T> {
        assert!(residual.is_none_or(|residual| residual.len() == x.len()));
        self.rows(x, of.weight.len(), |rows| RmsNorm { rows, of, residual })
    }

    /// Layer norm of each row of x `[rows, width]`, with weight and bias `[width]`.
    ///
    /// # Panics
    /// Where sizes do not fit each other.
    pub fn layer_norm<T: Number>(self, x: &[T], of: Scale, bias: &[f32]) -> Vec<T> {
        T::layer_norm(self, x, of, bias)
    }

    pub(crate) fn layer_norm_of<T: Number>(self, x: &[T], of: Scale, bias: &[f32]) -> Vec<T> {
        assert_eq!(bias.len(), of.weight.len(), "weight and bias");
        self.rows(x, bias.len(), |rows| LayerNorm { rows, of, bias })
    }

    /// RMS norm of each head of x `[rows, heads, width]`, then rotation: the first half of a head against the second half.
    ///
    /// # Panics
    /// Where sizes do not fit each other, or the width is odd.
    pub fn norm_rotate<T: Number>(self, x: &[T], of: Scale, by: Rotation<T>) -> Vec<T> {
        T::norm_rotate(self, x, of, by)
    }

    pub(crate) fn norm_rotate_of<T: Number>(self, x: &[T], of: Scale, by: Rotation<T>) -> Vec<T> {
        let width = of.weight.len();
        // Of an odd width the last number would belong to neither half, and nothing would be written in its place.
        assert!(width.is_multiple_of(2), "halves of a head");
        let rows = rows_of(by.cos, width / 2);
        assert!(by.sin.len() == by.cos.len() && x.len().is_multiple_of(rows * width));
        let heads = x.len().checked_div(rows * width).unwrap_or_default();
        self.rows(x, width, |rows| NormRotate {
            rows,
            of,
            by,
            heads,
        })
    }

    /// gelu(gate) × up.
    ///
    /// # Panics
    /// Where they are of different sizes.
    pub fn gelu_times<T: Number>(self, gate: &[T], up: &[T]) -> Vec<T> {
        T::gelu_times(self, gate, up)
    }

    pub(crate) fn gelu_times_of<T: Number>(self, gate: &[T], up: &[T]) -> Vec<T> {
        const WIDTH: usize = 1024;
        assert_eq!(gate.len(), up.len(), "gate and up");
        filled(gate.len(), |out| {
            let parallel = gate.len() >= PARALLEL_MIN;
            each(gate.len().div_ceil(WIDTH), parallel, |part| {
                let first = part * WIDTH;
                let end = gate.len().min(first + WIDTH);
                self.run(GeluTimes {
                    gate: &gate[first..end],
                    up: &up[first..end],
                    // SAFETY: this part is this task's alone.
                    out: unsafe { out.at(first) },
                });
            });
        })
    }

    fn rows<'a, T: Number, W: Work>(
        self,
        x: &'a [T],
        width: usize,
        work: impl Fn(Rows<'a, T>) -> W + Sync,
    ) -> Vec<T> {
        let rows = rows_of(x, width);
        filled(x.len(), |out| {
            each(rows.div_ceil(TASK_ROWS), x.len() >= PARALLEL_MIN, |task| {
                let first = task * TASK_ROWS;
                let count = TASK_ROWS.min(rows - first);
                self.run(work(Rows {
                    x,
                    width,
                    first,
                    count,
                    out,
                }));
            });
        })
    }
}

/// Rows of x for one task, and where their results go.
struct Rows<'a, T> {
    x: &'a [T],
    width: usize,
    first: usize,
    count: usize,
    out: Shared<T>,
}

impl<T: Number> Rows<'_, T> {
    /// 1 / √(mean square + eps).
    #[inline(always)]
    unsafe fn inverse_rms<S: Lanes>(&self, row: usize, eps: f32) -> f32 {
        unsafe {
            let mut sum = S::splat(0.0);
            for at in (0..self.width).step_by(LANES) {
                let x = self.load::<S>(row, at);
                sum = x.mul_add(x, sum);
            }
            1.0 / (sum.total() / self.width as f32 + eps).sqrt()
        }
    }

    /// Sixteen numbers of a row, or those there are.
    #[inline(always)]
    unsafe fn load<S: Lanes>(&self, row: usize, at: usize) -> S {
        let from = self.x[row * self.width + at..].as_ptr();
        unsafe { load::<S, T>(from, self.width - at) }
    }

    #[inline(always)]
    unsafe fn store<S: Lanes>(&self, row: usize, at: usize, value: S) {
        unsafe { store::<S, T>(self.out.at(row * self.width + at), value, self.width - at) }
    }
}

struct RmsNorm<'a, T> {
    rows: Rows<'a, T>,
    of: Scale<'a>,
    residual: Option<&'a [T]>,
}

impl<T: Number> Work for RmsNorm<'_, T> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let Self { rows, of, residual } = self;
        for row in rows.first..rows.first + rows.count {
            // SAFETY: each row and the weights are `width` wide, the residual is of the size of x.
            unsafe {
                let inverse = S::splat(rows.inverse_rms::<S>(row, of.eps));
                for at in (0..rows.width).step_by(LANES) {
                    let weight = load::<S, f32>(of.weight[at..].as_ptr(), rows.width - at);
                    let mut y = rows.load::<S>(row, at).mul(inverse).mul(weight);
                    if let Some(residual) = residual {
                        let from = residual[row * rows.width + at..].as_ptr();
                        y = load::<S, T>(from, rows.width - at).add(T::round(y));
                    }
                    rows.store(row, at, y);
                }
            }
        }
    }
}

struct LayerNorm<'a, T> {
    rows: Rows<'a, T>,
    of: Scale<'a>,
    bias: &'a [f32],
}

impl<T: Number> LayerNorm<'_, T> {
    /// x − mean, and zeros behind the row's end.
    #[inline(always)]
    unsafe fn centred<S: Lanes>(&self, row: usize, at: usize, mean: S) -> S {
        unsafe {
            let centred = self.rows.load::<S>(row, at).sub(mean);
            let count = self.rows.width - at;
            if count >= LANES {
                return centred;
            }
            let mut part = [0_f32; LANES];
            store::<S, f32>(part.as_mut_ptr(), centred, count);
            S::load(part.as_ptr())
        }
    }
}

impl<T: Number> Work for LayerNorm<'_, T> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let rows = &self.rows;
        let width = rows.width as f32;
        for row in rows.first..rows.first + rows.count {
            // SAFETY: each row, the weights and the bias are `width` wide.
            unsafe {
                let mut sum = S::splat(0.0);
                for at in (0..rows.width).step_by(LANES) {
                    sum = sum.add(rows.load::<S>(row, at));
                }
                let mean = S::splat(sum.total() / width);
                let mut squares = S::splat(0.0);
                for at in (0..rows.width).step_by(LANES) {
                    let x = self.centred(row, at, mean);
                    squares = x.mul_add(x, squares);
                }
                let inverse = S::splat(1.0 / (squares.total() / width + self.of.eps).sqrt());
                for at in (0..rows.width).step_by(LANES) {
                    let count = rows.width - at;
                    let weight = load::<S, f32>(self.of.weight[at..].as_ptr(), count);
                    let bias = load::<S, f32>(self.bias[at..].as_ptr(), count);
                    let normal = self.centred(row, at, mean).mul(inverse);
                    rows.store(row, at, normal.mul_add(weight, bias));
                }
            }
        }
    }
}

struct NormRotate<'a, T> {
    rows: Rows<'a, T>,
    of: Scale<'a>,
    by: Rotation<'a, T>,
    heads: usize,
}

impl<T: Number> NormRotate<'_, T> {
    /// The norm of sixteen numbers of a head, as stored.
    #[inline(always)]
    unsafe fn normal<S: Lanes>(&self, row: usize, (at, end): (usize, usize), inverse: S) -> S {
        unsafe {
            let from = self.rows.x[row * self.rows.width + at..].as_ptr();
            let weight = load::<S, f32>(self.of.weight[at..].as_ptr(), end - at);
            T::round(load::<S, T>(from, end - at).mul(inverse).mul(weight))
        }
    }
}

impl<T: Number> Work for NormRotate<'_, T> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        let (rows, half) = (&self.rows, self.rows.width / 2);
        for row in rows.first..rows.first + rows.count {
            let angles = row / self.heads * half;
            // SAFETY: each row and the weights are `width` wide, cosines and sines are half as wide.
            unsafe {
                let inverse = S::splat(rows.inverse_rms::<S>(row, self.of.eps));
                for at in (0..half).step_by(LANES) {
                    let count = half - at;
                    let cos = load::<S, T>(self.by.cos[angles + at..].as_ptr(), count);
                    let sin = load::<S, T>(self.by.sin[angles + at..].as_ptr(), count);
                    let a = self.normal::<S>(row, (at, half), inverse);
                    let b = self.normal::<S>(row, (half + at, rows.width), inverse);
                    let first = T::round(a.mul(cos)).sub(T::round(b.mul(sin)));
                    let second = T::round(b.mul(cos)).add(T::round(a.mul(sin)));
                    let place = row * rows.width + at;
                    store::<S, T>(rows.out.at(place), first, count);
                    store::<S, T>(rows.out.at(place + half), second, count);
                }
            }
        }
    }
}

struct GeluTimes<'a, T> {
    gate: &'a [T],
    up: &'a [T],
    out: *mut T,
}

impl<T: Number> Work for GeluTimes<'_, T> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        for at in (0..self.gate.len()).step_by(LANES) {
            let count = self.gate.len() - at;
            // SAFETY: all three are of one size.
            unsafe {
                let gate = load::<S, T>(self.gate[at..].as_ptr(), count);
                let up = load::<S, T>(self.up[at..].as_ptr(), count);
                store::<S, T>(self.out.add(at), T::round(gate.gelu()).mul(up), count);
            }
        }
    }
}
