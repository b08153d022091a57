//! Norms, rotation and gates on every level against a plain reference.

use medfleet_kernels::{Rotation, Scale};
use rand::Rng;
use rand::rngs::SmallRng;

use super::{bits, close, fuzz, halves, levels, numbers, on, reference, wide};

const EPS: f32 = 1e-6;

fn rms(row: &[f32]) -> f64 {
    let squares = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    (squares / row.len() as f64 + f64::from(EPS)).sqrt()
}

fn sizes(random: &mut SmallRng) -> (usize, usize) {
    (random.random_range(1..40), random.random_range(1..300))
}

#[test]
fn rms_norm() {
    fuzz(|kernels, random| {
        let (rows, width) = sizes(random);
        let (x, weight) = (numbers(random, rows * width), numbers(random, width));
        let of = Scale {
            weight: &weight,
            eps: EPS,
        };
        let mut expected = Vec::new();
        for row in x.chunks(width) {
            let rms = rms(row);
            let scaled = row.iter().zip(&weight);
            expected.extend(scaled.map(|(x, w)| f64::from(*x) / rms * f64::from(*w)));
        }
        close(&kernels.rms_norm(&x, of, None), &expected, 1e-5);
        let residual = numbers(random, x.len());
        for (expected, residual) in expected.iter_mut().zip(&residual) {
            *expected += f64::from(*residual);
        }
        close(&kernels.rms_norm(&x, of, Some(&residual)), &expected, 1e-5);
        let found = kernels.rms_norm(&halves(&x), of, Some(&halves(&residual)));
        close(&wide(&found), &expected, 0.02);
    });
}

#[test]
fn layer_norm() {
    fuzz(|kernels, random| {
        let (rows, width) = sizes(random);
        let x: Vec<f32> = numbers(random, rows * width)
            .iter()
            .map(|x| x + 3.0)
            .collect();
        let (weight, bias) = (numbers(random, width), numbers(random, width));
        let of = Scale {
            weight: &weight,
            eps: EPS,
        };
        let mut expected = Vec::new();
        for row in x.chunks(width) {
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let variance = row
                .iter()
                .map(|x| (f64::from(*x) - mean).powi(2))
                .sum::<f64>();
            let deviation = (variance / width as f64 + f64::from(EPS)).sqrt();
            for (column, x) in row.iter().enumerate() {
                let normal = (f64::from(*x) - mean) / deviation;
                expected.push(normal * f64::from(weight[column]) + f64::from(bias[column]));
            }
        }
        // A row of one number is its own mean: 0 / √eps, where the last digit of the mean counts a thousandfold.
        let tolerance = if width < 3 { 1e-2 } else { 1e-4 };
        close(&kernels.layer_norm(&x, of, &bias), &expected, tolerance);
    });
}

#[test]
fn norm_and_rotation() {
    fuzz(|kernels, random| {
        let (rows, heads) = (random.random_range(1..12), random.random_range(1..5));
        let half: usize = random.random_range(1..140);
        let width = 2 * half;
        let (x, weight) = (
            numbers(random, rows * heads * width),
            numbers(random, width),
        );
        let angles = numbers(random, rows * half);
        let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
        let of = Scale {
            weight: &weight,
            eps: EPS,
        };
        let mut expected = Vec::new();
        for (index, head) in x.chunks(width).enumerate() {
            let row = index / heads;
            let rms = rms(head);
            let normal = |at: usize| f64::from(head[at]) / rms * f64::from(weight[at]);
            let angle = |at: usize| {
                let at = row * half + at % half;
                (f64::from(cos[at]), f64::from(sin[at]))
            };
            for at in 0..width {
                let (cos, sin) = angle(at);
                expected.push(if at < half {
                    normal(at) * cos - normal(at + half) * sin
                } else {
                    normal(at) * cos + normal(at - half) * sin
                });
            }
        }
        let by = Rotation {
            cos: &cos,
            sin: &sin,
        };
        close(&kernels.norm_rotate(&x, of, by), &expected, 1e-5);
        let (cos, sin) = (halves(&cos), halves(&sin));
        let by = Rotation {
            cos: &cos,
            sin: &sin,
        };
        let found = kernels.norm_rotate(&halves(&x), of, by);
        close(&wide(&found), &expected, 0.03);
    });
}

#[test]
fn a_head_without_halves_is_refused() {
    let of = Scale {
        weight: &[1.0; 7],
        eps: EPS,
    };
    let by = Rotation {
        cos: &[1.0_f32; 3],
        sin: &[0.0; 3],
    };
    for kernels in levels() {
        let rotated = std::panic::catch_unwind(|| kernels.norm_rotate(&[1.0; 7], of, by));
        assert!(rotated.is_err(), "{}", kernels.level());
    }
}

#[test]
fn no_rows_make_none() {
    let none: &[f32] = &[];
    let of = Scale {
        weight: &[1.0; 6],
        eps: EPS,
    };
    let by = Rotation {
        cos: none,
        sin: none,
    };
    for kernels in levels() {
        assert!(kernels.rms_norm(none, of, Some(none)).is_empty());
        assert!(kernels.layer_norm(none, of, &[0.0; 6]).is_empty());
        assert!(kernels.norm_rotate(none, of, by).is_empty());
        assert!(kernels.gelu_times(none, none).is_empty());
    }
}

#[test]
fn gelu_times() {
    for kernels in levels() {
        // From far below to far above, some more than fill registers, and what is no number.
        let gate: Vec<f32> = (-40_000..40_007).map(|x| x as f32 / 1000.0).collect();
        let up: Vec<f32> = gate.iter().map(|x| x.sin()).collect();
        let found = kernels.gelu_times(&gate, &up);
        assert_eq!(found.len(), gate.len());
        for ((gate, up), found) in gate.iter().zip(&up).zip(found) {
            let expected = reference::gelu(f64::from(*gate)) * f64::from(*up);
            let off = (f64::from(found) - expected).abs();
            let allowed = 1e-6 * f64::from(gate.abs() * up.abs()) + 1e-30;
            assert!(
                off <= allowed,
                "gelu({gate}) × {up} is {found}, not {expected}"
            );
        }
        let found = kernels.gelu_times(&[f32::NAN, 1.0], &[1.0, f32::NAN]);
        assert!(matches!(found[..], [one, other] if one.is_nan() && other.is_nan()));
    }
}

#[test]
fn a_row_is_the_same_whoever_is_beside_it() {
    fuzz(|kernels, random| {
        let width = random.random_range(1..700);
        let (x, weight) = (numbers(random, 40 * width), numbers(random, width));
        let of = Scale {
            weight: &weight,
            eps: EPS,
        };
        let norm = |rows: usize, threads: usize| {
            let x = &x[..rows * width];
            on(threads, || {
                (
                    kernels.rms_norm(x, of, None),
                    kernels.layer_norm(x, of, &weight),
                )
            })
        };
        let (rms, layer) = norm(40, 2);
        for rows in [1, 2, 7, 16] {
            let (rms_part, layer_part) = norm(rows, 1);
            assert_eq!(bits(&rms_part), bits(&rms[..rows * width]));
            assert_eq!(bits(&layer_part), bits(&layer[..rows * width]));
        }
    });
}
