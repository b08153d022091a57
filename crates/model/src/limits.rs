//! What the CPU could do at most, measured: benches say how near to it they are.

use std::time::{Duration, Instant};

use medfleet_kernels::Kernels;
use rayon::prelude::*;

use crate::pages::prefer_huge_pages;

/// How long each is measured, and how often; the best counts.
const TIME: Duration = Duration::from_millis(300);
const TURNS: usize = 5;
/// What is read, which no cache holds.
const READ_BYTES: usize = 1 << 30;

/// The most that all threads of the pool reach together.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub threads: usize,
    /// Multiplications and additions of f32 a second, in the inner loop of products, over numbers in the first cache.
    pub operations_per_second: f64,
    /// The same of bf16, which is more where there is AMX.
    pub bf16_operations_per_second: f64,
    /// Bytes a second that are read from memory, one after the other.
    pub bytes_per_second: f64,
}

impl Limits {
    /// Measures them with the best kernels of this machine, for some seconds.
    pub fn measure() -> Self {
        let kernels = Kernels::best();
        let threads = rayon::current_num_threads();
        let operations_per_second = rate(|| kernels.inner_loop(1000));
        let bf16_operations_per_second = rate(|| kernels.inner_loop_of_bf16(1000));
        let mut numbers: Vec<f32> = Vec::with_capacity(READ_BYTES / size_of::<f32>());
        let memory: *mut [std::mem::MaybeUninit<f32>] = numbers.spare_capacity_mut();
        let bytes = memory.len() * size_of::<f32>();
        prefer_huge_pages(std::ptr::slice_from_raw_parts_mut(memory.cast(), bytes));
        numbers.resize(READ_BYTES / size_of::<f32>(), 1.0);
        let part = numbers.len() / threads;
        let rates = (0..TURNS).map(|_| {
            let begun = Instant::now();
            let sum: f32 = numbers.par_chunks(part).map(|part| kernels.sum(part)).sum();
            std::hint::black_box(sum);
            READ_BYTES as f64 / begun.elapsed().as_secs_f64()
        });
        Self {
            threads,
            operations_per_second,
            bf16_operations_per_second,
            bytes_per_second: rates.fold(0.0, f64::max),
        }
    }
}

/// What all threads count in a second, the best turn.
fn rate(work: impl Fn() -> u64 + Sync) -> f64 {
    let turn = |_| {
        let counts = rayon::broadcast(|_| {
            let (begun, mut count) = (Instant::now(), 0);
            while begun.elapsed() < TIME {
                count += work();
            }
            count as f64 / begun.elapsed().as_secs_f64()
        });
        counts.iter().sum::<f64>()
    };
    (0..TURNS).map(turn).fold(0.0, f64::max)
}
