//! What a choice asks of all logits, a quarter of a million for each token: written so that the compiler does many at once on every
//! CPU, in one order and without fused operations, so that the numbers are the same on all of them.

use std::f32::consts::LOG2_E;

/// Numbers that are worked on side by side.
const LANES: usize = 16;

/// The id of the largest finite logit of `[vocab]`, the lower one of equal ones.
pub(super) fn likeliest(logits: &[f32]) -> Option<usize> {
    let top = largest(logits);
    if top == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|logit| *logit == top)
}

/// ln Σ exp(logit) over the finite ones of `[vocab]`: summed in f64, each term within 2⁻²² of itself; −∞ where there is none.
pub(super) fn normaliser(logits: &[f32]) -> f64 {
    let top = largest(logits);
    if top == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    f64::from(top) + total(logits, |logit| logit - top).ln()
}

/// Σ exp(`of`(logit)) over `[vocab]`, where `of` is at most 0, in f64. What is not finite counts as −∞ and is next to nothing.
#[inline(always)]
pub(super) fn total(logits: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0_f64; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            sums[lane] += f64::from(exp(of(finite(chunk[lane]))));
        }
    }
    for (sum, logit) in sums.iter_mut().zip(rest) {
        *sum += f64::from(exp(of(finite(*logit))));
    }
    sums.iter().sum()
}

/// −∞ where nothing is finite.
pub(super) fn largest(logits: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            tops[lane] = larger(finite(chunk[lane]), tops[lane]);
        }
    }
    let rest = rest.iter().map(|logit| finite(*logit));
    rest.chain(tops).fold(f32::NEG_INFINITY, larger)
}

/// Of two that are numbers; `f32::max` minds others, which costs.
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The logit, or −∞ in place of one that is no finite number.
fn finite(logit: f32) -> f32 {
    if logit.is_finite() {
        logit
    } else {
        f32::NEG_INFINITY
    }
}

/// e^x for x ≤ 0; 1.6 × 10⁻³⁸ for all below −87. e^x = 2^n · e^r with |r| ≤ ln 2 / 2; ln 2 in two parts, so that r is exact; e^r by
/// its Taylor series.
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const SERIES: [f32; 7] = [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
        1.0,
        1.0,
    ];
    // 1.5 × 2²³: what is added to it is rounded to a whole number, which is in the lowest bits then.
    const ROUNDING: f32 = 12_582_912.0;
    let x = larger(x, LEAST);
    let shifted = x * LOG2_E + ROUNDING;
    let n = shifted - ROUNDING;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut y = 1.0 / 5040.0;
    for factor in SERIES {
        y = y * r + factor;
    }
    let power = (shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits());
    y * f32::from_bits(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of many sizes, of a length that is no multiple of the lanes.
    fn logits() -> Vec<f32> {
        let at = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 65_536.0 - 200.0;
        (0..5_003).map(at).collect()
    }

    #[test]
    fn exponentials_are_near() {
        for step in 0..=870_000 {
            let x = -(step as f32) / 10_000.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            let apart = (found - expected).abs() / expected;
            assert!(apart < 2_f64.powi(-22), "e^{x}: {found}, not {expected}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn a_normaliser_is_that_of_f64() {
        let logits = logits();
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let wide = logits.iter().map(|x| f64::from(*x) - f64::from(top));
        let expected = f64::from(top) + wide.map(f64::exp).sum::<f64>().ln();
        let apart = (normaliser(&logits) - expected).abs();
        assert!(apart < 1e-6, "{apart}");
    }

    #[test]
    fn what_is_no_number_counts_for_nothing() {
        let plain = logits();
        let mut damaged = plain.clone();
        let top = likeliest(&plain).unwrap();
        for (at, bad) in [
            (7, f32::NAN),
            (8, f32::INFINITY),
            (5_002, f32::NEG_INFINITY),
        ] {
            assert_ne!(at, top);
            damaged[at] = bad;
        }
        assert_eq!(likeliest(&damaged), Some(top));
        assert!((normaliser(&damaged) - normaliser(&plain)).abs() < 1e-6);
        let nothing = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(likeliest(&nothing), None);
        assert_eq!(normaliser(&nothing), f64::NEG_INFINITY);
    }

    #[test]
    fn of_equal_ones_the_lower_id_is_likeliest() {
        let mut logits = vec![1.0; 40];
        logits[33] = 2.0;
        logits[19] = 2.0;
        assert_eq!(likeliest(&logits), Some(19));
    }
}
