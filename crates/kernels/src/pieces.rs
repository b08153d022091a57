//! Parts of vectors, and results that tasks write side by side.

use std::ops::{Deref, DerefMut};
use std::slice;

use crate::lanes::{LANES, Lanes};
use crate::number::Number;
use crate::pack::Line;

/// A result that several tasks fill, each its own part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever makes one sees to it that no two tasks touch the same part, and that it outlives them.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// What lies `offset` numbers in.
    ///
    /// # Safety
    /// As for pointers; the part that is written through it is the caller's alone.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, offset: usize) -> *mut T {
        unsafe { self.0.add(offset) }
    }
}

/// A vector of `count` numbers that `fill` writes, every one of them.
pub(crate) fn filled<T: Copy>(count: usize, fill: impl FnOnce(Shared<T>)) -> Vec<T> {
    let mut values = Vec::with_capacity(count);
    fill(Shared(values.as_mut_ptr()));
    // SAFETY: the capacity is there, and all callers write all of it.
    unsafe { values.set_len(count) };
    values
}

/// Numbers that begin where a line of cache does, so that no vector of them lies in two.
#[derive(Debug)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// Zeros, and some more behind them where they are not whole lines.
    pub(crate) fn zeros(count: usize) -> Self {
        Self {
            lines: vec![Line([0; LANES]); count.div_ceil(LANES)],
        }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is sixteen words, which are as good as f32.
        unsafe { slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LANES) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        let count = self.lines.len() * LANES;
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), count) }
    }
}

/// Sixteen numbers, or `count` of them and zeros.
#[inline(always)]
pub(crate) unsafe fn load<S: Lanes, T: Number>(from: *const T, count: usize) -> S {
    unsafe {
        if count >= LANES {
            return T::load(from);
        }
        let mut part = [T::default(); LANES];
        std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), count);
        T::load(part.as_ptr())
    }
}

/// Writes sixteen numbers, or the first `count` of them.
#[inline(always)]
pub(crate) unsafe fn store<S: Lanes, T: Number>(to: *mut T, value: S, count: usize) {
    unsafe {
        if count >= LANES {
            return T::store(to, value);
        }
        let mut part = [T::default(); LANES];
        T::store(part.as_mut_ptr(), value);
        std::ptr::copy_nonoverlapping(part.as_ptr(), to, count);
    }
}
