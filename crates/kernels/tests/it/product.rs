//! Products with packed weights on every level against a plain reference, and the same bits whoever is beside.

use half::bf16;
use medfleet_kernels::{Kernels, Number, Packed, Then};
use rand::Rng;
use rand::rngs::SmallRng;

use super::{close, fuzz, halves, levels, numbers, on, reference, wide};

/// Around the tiles' and panels' sizes, and beyond a block of rows and of depth.
const SHAPES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [1, 15, 3],
    [2, 16, 64],
    [3, 17, 65],
    [5, 33, 72],
    [6, 64, 255],
    [7, 63, 257],
    [16, 130, 588],
    [241, 49, 33],
    [487, 70, 515],
];

fn check(kernels: Kernels, random: &mut SmallRng, [rows, outputs, inputs]: [usize; 3]) {
    let (x, w) = (
        numbers(random, rows * inputs),
        numbers(random, outputs * inputs),
    );
    let bias = numbers(random, outputs);
    let residual = numbers(random, rows * outputs);
    let expected = reference::product(&x, &w, inputs);
    let packed = Packed::new(&w, [outputs, inputs]);
    close(
        &kernels.product(&x, &packed, Then::default()),
        &expected,
        1e-5,
    );
    let then = Then {
        bias: Some(&bias),
        gelu: true,
        residual: Some(&residual),
    };
    let finish = |(index, sum): (usize, &f64)| {
        let gelu = reference::gelu(sum + f64::from(bias[index % outputs]));
        gelu + f64::from(residual[index])
    };
    let finished: Vec<f64> = expected.iter().enumerate().map(finish).collect();
    close(&kernels.product(&x, &packed, then), &finished, 1e-5);
    // Weights of bf16, whatever the other side is.
    let (x, w) = (halves(&x), halves(&w));
    let packed = Packed::new(&w, [outputs, inputs]);
    let expected = reference::product(&wide(&x), &wide(&w), inputs);
    close(
        &kernels.product(&wide(&x), &packed, Then::default()),
        &expected,
        1e-5,
    );
    let found: Vec<bf16> = kernels.product(&x, &packed, Then::default());
    close(&wide(&found), &expected, 1.0 / 256.0);
}

#[test]
fn odd_shapes() {
    fuzz_once(|kernels, random| {
        for shape in SHAPES {
            check(kernels, random, shape);
        }
    });
}

#[test]
fn random_shapes() {
    fuzz(|kernels, random| {
        let mut size = |most: usize| random.random_range(1..=most);
        let shape = [size(40), size(150), size(700)];
        check(kernels, random, shape);
    });
}

fn fuzz_once(check: impl Fn(Kernels, &mut SmallRng)) {
    use rand::SeedableRng;
    for kernels in levels() {
        check(kernels, &mut SmallRng::seed_from_u64(1));
    }
}

#[test]
fn a_row_is_the_same_whoever_is_beside_it() {
    fuzz_once(|kernels, random| {
        let (inputs, outputs) = (1030, 200);
        let x = numbers(random, 487 * inputs);
        let w = numbers(random, outputs * inputs);
        let half = Packed::new(&halves(&w), [outputs, inputs]);
        beside(kernels, &x, &Packed::new(&w, [outputs, inputs]));
        beside(kernels, &x, &half);
        beside(kernels, &halves(&x), &half);
    });
}

/// The first row's results, with other rows and without.
fn beside<T: Number + PartialEq>(kernels: Kernels, x: &[T], packed: &Packed) {
    let first = |rows: usize, threads: usize| {
        let x = &x[..rows * packed.inputs()];
        let mut found = on(threads, || kernels.product(x, packed, Then::default()));
        found.truncate(packed.outputs());
        found
    };
    let alone = first(1, 1);
    for rows in [1, 2, 3, 4, 5, 6, 7, 16, 17, 33, 240, 256, 487] {
        for threads in [1, 2] {
            assert!(
                first(rows, threads) == alone,
                "{rows} rows, {threads} threads"
            );
        }
    }
}

/// Products of whole numbers are exact at every level: what one off in a place or a tile's edge would not be.
#[test]
fn whole_numbers_are_exact() {
    fuzz_once(|kernels, random| {
        for [rows, outputs, inputs] in SHAPES {
            let mut whole = |count: usize| -> Vec<f32> {
                (0..count)
                    .map(|_| random.random_range(-4..=4) as f32)
                    .collect()
            };
            let (x, w) = (whole(rows * inputs), whole(outputs * inputs));
            let packed = Packed::new(&halves(&w), [outputs, inputs]);
            // Up to 16 × 515: f32 is exact there, and bf16 rounds it.
            let expected = reference::product(&x, &w, inputs);
            let expected: Vec<f32> = expected.iter().map(|x| *x as f32).collect();
            assert_eq!(kernels.product(&x, &packed, Then::default()), expected);
            let found = kernels.product(&halves(&x), &packed, Then::default());
            assert_eq!(found, halves(&expected));
        }
    });
}

#[test]
fn rows_are_read_back() {
    let values: Vec<f32> = (0..37 * 19).map(|x| x as f32).collect();
    let (wide, half) = (
        Packed::new(&values, [37, 19]),
        Packed::new(&halves(&values), [37, 19]),
    );
    for row in [0, 15, 16, 36] {
        let mut found = vec![0.0; 19];
        wide.row(row, &mut found);
        assert_eq!(found, values[row * 19..(row + 1) * 19]);
        let mut found = vec![bf16::ZERO; 19];
        half.row(row, &mut found);
        assert_eq!(found, halves(&values[row * 19..(row + 1) * 19]));
    }
}

#[test]
fn a_reader_that_fails_ends_the_packing() {
    let read = |rows: std::ops::Range<usize>, _: &mut [f32]| {
        if rows.contains(&20) {
            Err("row 20")
        } else {
            Ok(())
        }
    };
    let found = Packed::read([40, 8], |_| {}, read);
    assert_eq!(found.err(), Some("row 20"));
}
