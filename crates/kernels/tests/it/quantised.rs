//! Products with quantised weights on every level against a plain reference, and the same bits whoever is beside.

use half::f16;
use medfleet_kernels::{Form, Kernels, Quantised, Then, store_q8_0};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{bits, close, fuzz, levels, numbers, on, reference};

/// A matrix as GGUF stores it, any bits but those of the f16, and what ggml's description makes of it.
fn matrix(random: &mut SmallRng, form: Form, outputs: usize, inputs: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for _ in 0..outputs * inputs / form.block_inputs() {
        let mut block: Vec<u8> = (0..form.block_bytes()).map(|_| random.random()).collect();
        let mut scale = |at: usize| {
            let scale = f16::from_f32(random.random_range(0.001..0.02));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        };
        match form {
            Form::Q8_0 => scale(0),
            Form::Q4K => (scale(0), scale(2)).0,
            Form::Q6K => scale(208),
        }
        match form {
            Form::Q8_0 => q8_0(&block, &mut values),
            Form::Q4K => q4_k(&block, &mut values),
            Form::Q6K => q6_k(&block, &mut values),
        }
        bytes.extend(block);
    }
    (bytes, values)
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn q8_0(block: &[u8], values: &mut Vec<f32>) {
    let scale = half(block);
    values.extend(
        block[2..]
            .iter()
            .map(|weight| f32::from(*weight as i8) * scale),
    );
}

fn q4_k(block: &[u8], values: &mut Vec<f32>) {
    let (scale, min_scale, packed) = (half(block), half(&block[2..]), &block[4..16]);
    for part in 0..8 {
        let (step, min) = if part < 4 {
            (packed[part] & 63, packed[part + 4] & 63)
        } else {
            (
                packed[part + 4] & 0x0f | packed[part - 4] >> 6 << 4,
                packed[part + 4] >> 4 | packed[part] >> 6 << 4,
            )
        };
        let bytes = &block[16 + part / 2 * 32..][..32];
        values.extend(bytes.iter().map(|byte| {
            let weight = byte >> (4 * (part % 2)) & 15;
            scale * f32::from(step) * f32::from(weight) - min_scale * f32::from(min)
        }));
    }
}

fn q6_k(block: &[u8], values: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(&block[208..]);
    for part in 0..2 {
        let (low, high) = (&low[64 * part..], &high[32 * part..]);
        for at in 0..128 {
            let l = at % 32;
            let nibble = match at / 32 {
                0 => low[l] & 15,
                1 => low[l + 32] & 15,
                2 => low[l] >> 4,
                _ => low[l + 32] >> 4,
            };
            let weight = i32::from(nibble | (high[l] >> (at / 32 * 2) & 3) << 4) - 32;
            let step = f32::from(scales[8 * part + at / 16] as i8);
            values.push(scale * step * weight as f32);
        }
    }
}

fn check(kernels: Kernels, random: &mut SmallRng, form: Form, [rows, outputs, inputs]: [usize; 3]) {
    let (bytes, w) = matrix(random, form, outputs, inputs);
    // Multiples of a 127th of each block's largest number: quantising them loses nothing.
    let x: Vec<f32> = (0..rows * inputs)
        .map(|index| match index % 32 {
            0 => 127.0,
            _ => f32::from(random.random_range(-127_i8..=127)),
        })
        .collect();
    let packed = Quantised::new(form, &bytes, [outputs, inputs], |_| {}).unwrap();
    let expected = reference::product(&x, &w, inputs);
    let found = kernels.quantised_product(&x, &packed, Then::default());
    close(&found, &expected, 2e-5);
    // Any numbers: within half a step of each block's scale.
    let x = numbers(random, rows * inputs);
    let expected = reference::product(&x, &w, inputs);
    let found = kernels.quantised_product(&x, &packed, Then::default());
    close(&found, &expected, 0.02);
    let mut row = vec![0.0; inputs];
    packed.row(outputs - 1, &mut row);
    let expected: Vec<f64> = w[(outputs - 1) * inputs..]
        .iter()
        .map(|x| f64::from(*x))
        .collect();
    close(&row, &expected, 1e-6);
}

#[test]
fn odd_shapes() {
    for kernels in levels() {
        for form in Form::ALL {
            let mut random = SmallRng::seed_from_u64(3);
            for [rows, outputs, blocks] in [
                [1, 1, 1],
                [2, 16, 2],
                [3, 65, 3],
                [5, 130, 4],
                [19, 33, 10],
                [490, 17, 1],
            ] {
                let shape = [rows, outputs, blocks * form.block_inputs()];
                check(kernels, &mut random, form, shape);
            }
        }
    }
}

#[test]
fn random_shapes() {
    for form in Form::ALL {
        fuzz(|kernels, random| {
            let mut size = |most: usize| random.random_range(1..=most);
            let blocks = 1024 / form.block_inputs();
            let shape = [size(20), size(100), size(blocks) * form.block_inputs()];
            check(kernels, random, form, shape);
        });
    }
}

/// Weights and values as large as they can be, with all signs alike: no integer may overflow on the way.
#[test]
fn the_largest_sums_are_exact() {
    for kernels in levels() {
        for (form, weight) in [
            (Form::Q8_0, 0x80),
            (Form::Q4K, 0xff),
            (Form::Q6K, 0xff),
            (Form::Q6K, 0),
        ] {
            let mut block = vec![weight; form.block_bytes()];
            let halves: &[usize] = match form {
                Form::Q8_0 => &[0],
                Form::Q4K => &[0, 2],
                Form::Q6K => &[208],
            };
            for at in halves {
                block[*at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
            }
            if form == Form::Q6K {
                block[192..208].fill(0x80);
            }
            let bytes = block.repeat(2 * 256 / form.block_inputs());
            let mut w = Vec::new();
            for block in bytes.chunks(form.block_bytes()) {
                match form {
                    Form::Q8_0 => q8_0(block, &mut w),
                    Form::Q4K => q4_k(block, &mut w),
                    Form::Q6K => q6_k(block, &mut w),
                }
            }
            let packed = Quantised::new(form, &bytes, [2, 256], |_| {}).unwrap();
            for value in [127.0, -127.0] {
                for rows in [1, 3, 20] {
                    let x = vec![value; rows * 256];
                    let expected = reference::product(&x, &w, 256);
                    let found = kernels.quantised_product(&x, &packed, Then::default());
                    close(&found, &expected, 1e-6);
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_whoever_is_beside_it() {
    for (kernels, form) in all() {
        let mut random = SmallRng::seed_from_u64(4);
        let (inputs, outputs) = (1024, 200);
        let (bytes, _) = matrix(&mut random, form, outputs, inputs);
        let packed = Quantised::new(form, &bytes, [outputs, inputs], |_| {}).unwrap();
        let x = numbers(&mut random, 500 * inputs);
        let part = |row: usize, rows: usize, threads: usize| {
            let x = &x[row * inputs..(row + rows) * inputs];
            on(threads, || {
                kernels.quantised_product(x, &packed, Then::default())
            })
        };
        let alone: Vec<Vec<u32>> = (0..20).map(|row| bits(&part(row, 1, 1))).collect();
        for rows in [1, 2, 3, 4, 5, 6, 7, 16, 500] {
            for threads in [1, 2] {
                let found = part(0, rows, threads);
                for (row, found) in found.chunks(outputs).take(20).enumerate() {
                    let what = format!("{form:?}, row {row} of {rows}, {threads} threads");
                    assert_eq!(bits(found), alone[row], "{what}");
                }
            }
        }
    }
}

fn all() -> Vec<(Kernels, Form)> {
    let of = |kernels| Form::ALL.map(|form| (kernels, form));
    levels().into_iter().flat_map(of).collect()
}

#[test]
fn what_is_no_number_stays_none() {
    for (kernels, form) in all() {
        let mut random = SmallRng::seed_from_u64(5);
        let inputs = 2 * form.block_inputs();
        let (bytes, _) = matrix(&mut random, form, 4, inputs);
        let packed = Quantised::new(form, &bytes, [4, inputs], |_| {}).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            for rows in [1, 2] {
                let mut x = numbers(&mut random, rows * inputs);
                x[40] = bad;
                let found = kernels.quantised_product(&x, &packed, Then::default());
                assert!(found[..4].iter().all(|y| y.is_nan()), "{bad}: {found:?}");
                assert!(found[4..].iter().all(|y| y.is_finite()), "{bad}: {found:?}");
            }
        }
    }
}

#[test]
fn bytes_of_another_size_are_refused() {
    for (form, bytes, shape) in [
        (Form::Q8_0, 34, [1, 64]),
        (Form::Q8_0, 68, [1, 32]),
        (Form::Q8_0, 34, [1, 34]),
        (Form::Q8_0, 0, [1, 0]),
        (Form::Q4K, 144, [1, 512]),
        (Form::Q4K, 144, [1, 128]),
        (Form::Q6K, 144, [1, 256]),
    ] {
        assert!(Quantised::new(form, &vec![0; bytes], shape, |_| {}).is_none());
    }
}

#[test]
fn rows_are_stored_as_ggml_stores_them() {
    // The largest is 127 steps of 1/4; half a step goes away from zero.
    let mut row = vec![0.0; 64];
    row[..6].copy_from_slice(&[31.75, -31.75, 0.125, -0.125, 0.12, 1.0]);
    let mut bytes = vec![0xff; 68];
    store_q8_0(&row, &mut bytes);
    let mut expected = f16::from_f32(0.25).to_le_bytes().to_vec();
    expected.extend([127_i8, -127, 1, -1, 0, 4].map(|weight| weight as u8));
    expected.resize(68, 0);
    assert_eq!(bytes, expected);

    let mut random = SmallRng::seed_from_u64(6);
    let row = numbers(&mut random, 1024);
    let mut bytes = vec![0; Form::Q8_0.row_bytes(row.len()).unwrap()];
    store_q8_0(&row, &mut bytes);
    let mut found = Vec::new();
    for block in bytes.chunks(34) {
        q8_0(block, &mut found);
    }
    assert_eq!(found.len(), row.len());
    for (found, stored) in found.chunks(32).zip(row.chunks(32)) {
        let largest = stored.iter().fold(0_f32, |most, x| most.max(x.abs()));
        for (found, stored) in found.iter().zip(stored) {
            // Half a step, and what the scale loses as f16.
            let allowed = largest / 127.0 * 0.5 + largest / 1024.0;
            assert!((found - stored).abs() <= allowed, "{found} for {stored}");
        }
    }
}

#[test]
fn weights_that_are_no_numbers_are_not_stored_as_numbers() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = vec![1.0; 64];
        row[3] = bad;
        let mut bytes = vec![0; 68];
        store_q8_0(&row, &mut bytes);
        assert!(half(&bytes).is_nan(), "{bad}");
        assert!(half(&bytes[34..]).is_finite(), "{bad}");
    }
}

#[test]
fn rows_that_are_fetched_are_those_of_one_piece() {
    let (outputs, inputs) = (37, 64);
    let mut random = SmallRng::seed_from_u64(7);
    let (bytes, _) = matrix(&mut random, Form::Q8_0, outputs, inputs);
    let row_bytes = Form::Q8_0.row_bytes(inputs).unwrap();
    let fetch = |rows: std::ops::Range<usize>, into: &mut [u8]| {
        into.copy_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
        Ok::<_, String>(())
    };
    let shape = [outputs, inputs];
    let whole = Quantised::new(Form::Q8_0, &bytes, shape, |_| {}).unwrap();
    let fetched = Quantised::read(Form::Q8_0, shape, |_| {}, fetch).unwrap();
    for output in 0..outputs {
        let (mut a, mut b) = (vec![0.0_f32; inputs], vec![0.0_f32; inputs]);
        whole.row(output, &mut a);
        fetched.row(output, &mut b);
        assert_eq!(bits(&a), bits(&b), "row {output}");
    }
    let fail = |rows: std::ops::Range<usize>, _: &mut [u8]| match rows.contains(&20) {
        true => Err("row 20".to_owned()),
        false => Ok(()),
    };
    let failed = Quantised::read(Form::Q8_0, shape, |_| {}, fail);
    assert_eq!(failed.map(|_| ()), Err("row 20".to_owned()));
}
