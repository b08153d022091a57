//! Confidence intervals by the percentile bootstrap: records are drawn with replacement, the statistic is taken of each
//! draw, and the interval lies between two quantiles of these. Source: Efron, "Bootstrap methods", Ann. Statist. 7 (1979);
//! scipy's `stats.bootstrap(method="percentile")`.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// How a bootstrap is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bootstrap {
    pub resamples: usize,
    /// Share of the draws inside the interval.
    pub level: f64,
    /// Of the random numbers. Every statistic sees the same draws.
    pub seed: u64,
}

impl Bootstrap {
    /// 1000 draws, 95 %.
    pub const fn seeded(seed: u64) -> Self {
        Self {
            resamples: 1000,
            level: 0.95,
            seed,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// Of the whole set.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// The weights of each draw, made once for all statistics of a set.
#[derive(Debug, Clone)]
pub struct Draws {
    level: f64,
    whole: Vec<f64>,
    /// How often each record counts; nobody is drawn 255 times.
    draws: Vec<Vec<u8>>,
}

impl Draws {
    /// Draws from `count` records.
    pub fn new(plan: &Bootstrap, count: usize) -> Self {
        let mut random = StdRng::seed_from_u64(plan.seed);
        let resamples = if count == 0 { 0 } else { plan.resamples };
        let draws = (0..resamples)
            .map(|_| {
                let mut weights = vec![0u8; count];
                for _ in 0..count {
                    let drawn = &mut weights[random.random_range(0..count)];
                    *drawn = drawn.saturating_add(1);
                }
                weights
            })
            .collect();
        Self {
            level: plan.level,
            whole: vec![1.0; count],
            draws,
        }
    }

    /// The weights of the whole set: one for each record.
    pub fn whole(&self) -> &[f64] {
        &self.whole
    }

    /// The statistic of the whole set, and its interval. None if the whole set has no value; draws that have none (no
    /// positive record in an AUC) are left out of the quantiles.
    pub fn figure(&self, statistic: impl Fn(&[f64]) -> Option<f64>) -> Option<Figure> {
        let value = statistic(&self.whole)?;
        let mut weights = vec![0.0; self.whole.len()];
        let mut values: Vec<f64> = Vec::with_capacity(self.draws.len());
        for draw in &self.draws {
            for (weight, times) in weights.iter_mut().zip(draw) {
                *weight = f64::from(*times);
            }
            values.extend(statistic(&weights));
        }
        values.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        Some(Figure {
            value,
            low: quantile(&values, tail).unwrap_or(value),
            high: quantile(&values, 1.0 - tail).unwrap_or(value),
        })
    }
}

/// The quantile of sorted values, between two by their distance (numpy's `linear`).
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    Some((sorted[high] - sorted[low]).mul_add(place - place.floor(), sorted[low]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::mean;

    #[test]
    fn the_interval_of_a_mean_is_as_wide_as_theory_says() {
        let values: Vec<Option<f64>> = (0..400).map(|n| Some(f64::from(n % 2))).collect();
        let draws = Draws::new(&Bootstrap::seeded(1), values.len());
        let figure = draws.figure(|weights| mean(&values, weights)).unwrap();
        assert_eq!(figure.value, 0.5);
        // 1.96 × 0.5 / √400 = 0.049.
        assert!((figure.high - 0.549).abs() < 0.01, "{figure:?}");
        assert!((figure.low - 0.451).abs() < 0.01, "{figure:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values: Vec<Option<f64>> = (0..50).map(|n| Some(f64::from(n * n % 7))).collect();
        let figure = |seed| {
            Draws::new(&Bootstrap::seeded(seed), 50).figure(|weights| mean(&values, weights))
        };
        assert_eq!(figure(3), figure(3));
        assert_ne!(figure(3), figure(4));
    }

    #[test]
    fn a_constant_has_no_width_and_nothing_has_no_figure() {
        let draws = Draws::new(&Bootstrap::seeded(1), 3);
        let one = draws.figure(|_| Some(1.0)).unwrap();
        assert_eq!((one.low, one.high), (1.0, 1.0));
        assert_eq!(draws.figure(|_| None), None);
        assert_eq!(
            Draws::new(&Bootstrap::seeded(1), 0).figure(|w| mean(&[], w)),
            None
        );
    }
}
