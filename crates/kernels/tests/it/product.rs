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

/// Rows and weights in which some inputs are up to 2^12 times as large as others: what levels that multiply bf16 in whole numbers
/// lose beside a large one stays below 2^−15 of it.
#[test]
fn what_is_small_beside_what_is_large() {
    const SHARED: usize = 64;
    fuzz_once(|kernels, random| {
        let (rows, outputs, inputs) = (9, 40, 333);
        let mut uneven = |count: usize| -> Vec<bf16> {
            let mut some = numbers(random, count);
            for value in &mut some {
                *value *= f32::powi(2.0, random.random_range(0..=12));
            }
            halves(&some)
        };
        let (x, w) = (uneven(rows * inputs), uneven(outputs * inputs));
        let packed = Packed::new(&w, [outputs, inputs]);
        let found = wide(&kernels.product(&x, &packed, Then::default()));
        let (x, w) = (wide(&x), wide(&w));
        let exact = reference::product(&x, &w, inputs);
        for (index, (found, exact)) in found.iter().zip(exact).enumerate() {
            let row = &x[index / outputs * inputs..][..inputs];
            let output = &w[index % outputs * inputs..][..inputs];
            let sum = |values: &[f32]| values.iter().map(|x| f64::from(x.abs())).sum::<f64>();
            let lost = |(row, output): (&[f32], &[f32])| {
                let largest = row.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                sum(output) * (f64::from(largest) + sum(row)) / 32_767.0
            };
            let blocks = row.chunks(SHARED).zip(output.chunks(SHARED));
            let allowed = blocks.map(lost).sum::<f64>() + exact.abs() / 512.0;
            let off = (f64::from(*found) - exact).abs();
            assert!(off <= allowed, "{found} is {exact}, within {allowed}");
        }
    });
}

/// Blocks whose values are all alike are as long as they can be, and so are their sums.
#[test]
fn blocks_of_one_value_are_exact() {
    fuzz_once(|kernels, _| {
        for (mantissa, sign) in
            (128_u8..=255).flat_map(|mantissa| [(mantissa, 1.0), (mantissa, -1.0)])
        {
            for inputs in [63, 64, 128] {
                let value = f32::from(mantissa) / 128.0;
                let (x, w) = (vec![value; 7 * inputs], vec![sign * value; 17 * inputs]);
                let packed = Packed::new(&halves(&w), [17, inputs]);
                let found = kernels.product(&halves(&x), &packed, Then::default());
                let expected = bf16::from_f32(sign * value * value * inputs as f32);
                assert!(
                    found.iter().all(|found| *found == expected),
                    "{mantissa}, {inputs} inputs"
                );
            }
        }
    });
}

/// Very large and very small numbers by powers of two change no digit.
#[test]
fn powers_of_two_are_exact() {
    fuzz_once(|kernels, random| {
        let (rows, outputs, inputs) = (7, 17, 130);
        let (x, w) = (
            numbers(random, rows * inputs),
            numbers(random, outputs * inputs),
        );
        let product = |x: &[f32], w: &[f32]| {
            let packed = Packed::new(&halves(w), [outputs, inputs]);
            wide(&kernels.product(&halves(x), &packed, Then::default()))
        };
        let times = |values: &[f32], power: i32| -> Vec<f32> {
            values.iter().map(|x| x * f32::powi(2.0, power)).collect()
        };
        let plain = product(&x, &w);
        for (left, right) in [(100, -100), (-90, 90), (40, 40), (-30, -30)] {
            let found = product(&times(&x, left), &times(&w, right));
            assert_eq!(found, times(&plain, left + right), "{left}, {right}");
        }
        assert_eq!(
            product(&times(&x, 0), &vec![0.0; w.len()]),
            vec![0.0; plain.len()]
        );
        assert_eq!(product(&vec![0.0; x.len()], &w), vec![0.0; plain.len()]);
    });
}

/// What is no finite number stays none, and spoils no other result.
#[test]
fn what_is_not_finite_shows() {
    fuzz_once(|kernels, random| {
        let (rows, outputs, inputs) = (8, 35, 150);
        let (mut x, mut w) = (
            halves(&numbers(random, rows * inputs)),
            halves(&numbers(random, outputs * inputs)),
        );
        for bad in [bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY] {
            x[2 * inputs + 149] = bad;
            w[20 * inputs + 70] = bad;
            let packed = Packed::new(&w, [outputs, inputs]);
            let found: Vec<bf16> = kernels.product(&x, &packed, Then::default());
            for (index, value) in found.iter().enumerate() {
                let spoilt = index / outputs == 2 || index % outputs == 20;
                assert_eq!(value.is_finite(), !spoilt, "{bad} at result {index}");
            }
        }
    });
}

/// However large a weight beside it is: infinity would look like a number that is only too large, or too small to count.
#[test]
fn what_is_no_number_beside_what_is_large() {
    fuzz_once(|kernels, _| {
        let (outputs, inputs) = (70, 130);
        let mut w = vec![bf16::ONE; outputs * inputs];
        for output in 0..outputs {
            w[output * inputs + 64] = bf16::NAN;
            w[output * inputs + 65] = bf16::from_f32(f32::powi(-2.0, 127));
        }
        let packed = Packed::new(&w, [outputs, inputs]);
        for rows in [1, 7] {
            let x = vec![bf16::ONE; rows * inputs];
            let found: Vec<bf16> = kernels.product(&x, &packed, Then::default());
            assert!(found.iter().all(|found| found.is_nan()), "{rows} rows");
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
