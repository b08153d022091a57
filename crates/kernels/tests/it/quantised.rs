//! Q8_0 products on every level against exact sums, and the same bits whoever is beside.

use half::f16;
use medfleet_kernels::{Kernels, Quantised, Then};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{bits, close, fuzz, numbers, on, reference};

/// A matrix as GGUF stores it, and what it means.
fn matrix(random: &mut SmallRng, outputs: usize, inputs: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for _ in 0..outputs * inputs / 32 {
        let scale = f16::from_f32(random.random_range(0.001..0.02));
        bytes.extend(scale.to_le_bytes());
        for _ in 0..32 {
            // −128 is never written by a quantiser, and must do no harm.
            let weight: i8 = random.random_range(-128..=127);
            bytes.push(weight as u8);
            values.push(f32::from(weight) * scale.to_f32());
        }
    }
    (bytes, values)
}

fn check(kernels: Kernels, random: &mut SmallRng, [rows, outputs, inputs]: [usize; 3]) {
    let (bytes, w) = matrix(random, outputs, inputs);
    // Multiples of a 127th of each block's largest number: quantising them loses nothing.
    let x: Vec<f32> = (0..rows * inputs)
        .map(|index| match index % 32 {
            0 => 127.0,
            _ => f32::from(random.random_range(-127_i8..=127)),
        })
        .collect();
    let packed = Quantised::q8_0(&bytes, [outputs, inputs], |_| {}).unwrap();
    let expected = reference::product(&x, &w, inputs);
    let found = kernels.quantised_product(&x, &packed, Then::default());
    close(&found, &expected, 1e-5);
    // Any numbers: within half a step of each block's scale.
    let x = numbers(random, rows * inputs);
    let expected = reference::product(&x, &w, inputs);
    let found = kernels.quantised_product(&x, &packed, Then::default());
    close(&found, &expected, 0.02);
    let mut row = vec![0.0; inputs];
    packed.row(outputs - 1, &mut row);
    assert_eq!(row, w[(outputs - 1) * inputs..]);
}

#[test]
fn odd_shapes() {
    for kernels in Kernels::all() {
        let mut random = SmallRng::seed_from_u64(3);
        for shape in [
            [1, 1, 32],
            [2, 16, 64],
            [3, 65, 96],
            [5, 130, 320],
            [19, 33, 2560],
        ] {
            check(kernels, &mut random, shape);
        }
    }
}

#[test]
fn random_shapes() {
    fuzz(|kernels, random| {
        let mut size = |most: usize| random.random_range(1..=most);
        let shape = [size(20), size(100), size(12) * 32];
        check(kernels, random, shape);
    });
}

#[test]
fn a_row_is_the_same_whoever_is_beside_it() {
    for kernels in Kernels::all() {
        let mut random = SmallRng::seed_from_u64(4);
        let (inputs, outputs) = (1024, 200);
        let (bytes, _) = matrix(&mut random, outputs, inputs);
        let packed = Quantised::q8_0(&bytes, [outputs, inputs], |_| {}).unwrap();
        let x = numbers(&mut random, 16 * inputs);
        let first = |rows: usize, threads: usize| {
            let x = &x[..rows * inputs];
            let found = on(threads, || {
                kernels.quantised_product(x, &packed, Then::default())
            });
            bits(&found[..outputs])
        };
        let alone = first(1, 1);
        for rows in [1, 2, 3, 7, 16] {
            for threads in [1, 2] {
                assert_eq!(
                    first(rows, threads),
                    alone,
                    "{rows} rows, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    for kernels in Kernels::all() {
        let mut random = SmallRng::seed_from_u64(5);
        let (bytes, _) = matrix(&mut random, 4, 64);
        let packed = Quantised::q8_0(&bytes, [4, 64], |_| {}).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = numbers(&mut random, 64);
            x[40] = bad;
            let found = kernels.quantised_product(&x, &packed, Then::default());
            assert!(found.iter().all(|y| y.is_nan()), "{bad}: {found:?}");
        }
    }
}

#[test]
fn bytes_of_another_size_are_refused() {
    for (bytes, shape) in [(34, [1, 64]), (68, [1, 32]), (34, [1, 34]), (0, [1, 0])] {
        assert!(Quantised::q8_0(&vec![0; bytes], shape, |_| {}).is_none());
    }
}
