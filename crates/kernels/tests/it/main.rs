//! Every kernel against a plain reference in f64, on every level of this machine, over odd shapes and seeded random ones; and
//! that a row's numbers do not depend on its company.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper fails its test by panicking"
)]

mod attention;
mod product;
mod quantised;
mod reference;
mod rows;

use half::bf16;
use medfleet_kernels::Kernels;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Random shapes tried for each kernel; each prints its seed when it fails.
const SHAPES: u64 = 40;

/// Every level of this machine, or the one that KERNEL_LEVEL names: an emulator takes minutes for one.
#[expect(
    clippy::disallowed_methods,
    reason = "a test's own switch, not a setting"
)]
fn levels() -> Vec<Kernels> {
    let Ok(name) = std::env::var("KERNEL_LEVEL") else {
        return Kernels::all();
    };
    let of = Kernels::at(name.parse().unwrap());
    assert!(of.is_some(), "this machine does not have {name}");
    of.into_iter().collect()
}

/// On every level, with random numbers of a seed each.
fn fuzz(check: impl Fn(Kernels, &mut SmallRng)) {
    for kernels in levels() {
        for seed in 0..SHAPES {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                check(kernels, &mut SmallRng::seed_from_u64(seed));
            }));
            assert!(caught.is_ok(), "{}, seed {seed}", kernels.level());
        }
    }
}

fn numbers(random: &mut SmallRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn halves(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|x| bf16::from_f32(*x)).collect()
}

fn wide(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

/// Within `tolerance` of the largest expected number, everywhere.
#[track_caller]
fn close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-3_f64, |most, x| most.max(x.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs() / largest;
        assert!(
            off <= tolerance,
            "{index}: {found} is not {expected}, off by {off:e}"
        );
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// On so many threads.
fn on<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}
