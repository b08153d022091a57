//! What this machine could do at most, by the same instructions that the kernels use: for benches that say how near they are.

use crate::amx::{self, Halves, PairLines};
use crate::lanes::{LANES, Lanes};
use crate::level::{Kernels, Work};
use crate::pack::Line;
use crate::tile::{Left, Right, Sums, TILE_ROWS, multiply};

/// Inputs of a product that stays in the first cache.
const DEPTH: usize = 256;

impl Kernels {
    /// The inner loop of products `rounds` times, over numbers that stay in the first cache. Returns the multiplications
    /// and additions done.
    pub fn inner_loop(self, rounds: usize) -> u64 {
        self.run(InnerLoop { rounds });
        (2 * TILE_ROWS * LANES * DEPTH * rounds) as u64
    }

    /// The same for products of bf16, which AMX has instructions of its own for.
    pub fn inner_loop_of_bf16(self, rounds: usize) -> u64 {
        if !self.has_tiles() {
            return self.inner_loop(rounds);
        }
        let left = vec![0_u16; amx::ROWS * DEPTH];
        let right = vec![Line([0; LANES]); amx::PANELS * DEPTH / 2];
        let mut sums = vec![0.0; amx::ROWS * amx::PANELS * LANES];
        for _ in 0..rounds {
            let left = Halves {
                at: left.as_ptr(),
                row: DEPTH,
            };
            let right = PairLines {
                at: right.as_ptr().cast(),
                panel: DEPTH / 2,
            };
            let to = Sums {
                at: sums.as_mut_ptr(),
                row: amx::PANELS * LANES,
                fresh: true,
            };
            // SAFETY: the level has tiles, and the sizes are those of the three.
            unsafe { amx::sweep((amx::ROWS, amx::PANELS, DEPTH), left, right, to) };
            std::hint::black_box(&mut sums);
        }
        (2 * amx::ROWS * amx::PANELS * LANES * DEPTH * rounds) as u64
    }

    /// The sum of all numbers, read as fast as the memory gives them.
    pub fn sum(self, numbers: &[f32]) -> f32 {
        let mut sum = 0.0;
        self.run(Sum {
            numbers,
            sum: &mut sum,
        });
        sum
    }
}

struct InnerLoop {
    rounds: usize,
}

impl Work for InnerLoop {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        // As many numbers and multiplications, however many panels.
        let depth = DEPTH / S::PANELS;
        let left = vec![0.5_f32; TILE_ROWS * depth];
        let right = vec![0.5_f32; LANES * DEPTH];
        let mut sums = vec![0.0; TILE_ROWS * S::PANELS * LANES];
        for _ in 0..self.rounds {
            let left = Left {
                at: left.as_ptr(),
                step: TILE_ROWS,
                row: 1,
            };
            let right = Right::F32 {
                at: right.as_ptr(),
                panel: depth,
            };
            let to = Sums {
                at: sums.as_mut_ptr(),
                row: S::PANELS * LANES,
                fresh: true,
            };
            // SAFETY: the sizes are those of the three.
            unsafe { multiply::<S>((TILE_ROWS, S::PANELS, depth), left, right, to) };
            std::hint::black_box(&mut sums);
        }
    }
}

struct Sum<'a> {
    numbers: &'a [f32],
    sum: &'a mut f32,
}

impl Work for Sum<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self) {
        const LINES: usize = 4;
        // SAFETY: whole chunks are read.
        unsafe {
            let mut sums = [S::splat(0.0); LINES];
            for chunk in self.numbers.chunks_exact(LINES * LANES) {
                for (line, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(S::load(chunk.as_ptr().add(line * LANES)));
                }
            }
            let all = sums[0].add(sums[1]).add(sums[2].add(sums[3]));
            let rest = self.numbers.chunks_exact(LINES * LANES).remainder();
            *self.sum = all.total() + rest.iter().sum::<f32>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_counts() {
        for kernels in Kernels::all() {
            assert_eq!(kernels.inner_loop(3), 2 * 6 * 16 * 256 * 3);
            assert!(kernels.inner_loop_of_bf16(3) >= 2 * 6 * 16 * 256 * 3);
            for count in [0, 1, 63, 64, 200] {
                let numbers: Vec<f32> = (0..count).map(|x| x as f32).collect();
                assert_eq!(kernels.sum(&numbers), numbers.iter().sum::<f32>());
            }
        }
    }
}
