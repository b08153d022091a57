//! Parts of vectors, and results that tasks write side by side.

use crate::lanes::{LANES, Lanes};
use crate::number::Number;

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
