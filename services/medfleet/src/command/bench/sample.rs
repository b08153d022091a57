//! Samples of a duration and their statistics: the median, the 95th percentile, the extremes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::show::seconds;

/// Durations of repeated runs, sorted.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample(Vec<Duration>);

impl Sample {
    pub(super) fn new(mut runs: Vec<Duration>) -> Self {
        runs.sort_unstable();
        Self(runs)
    }

    /// The nearest-rank percentile; zero for no runs.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    pub(super) fn median(&self) -> Duration {
        self.percentile(50)
    }

    pub(super) fn json(&self) -> Value {
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        json!({
            "runs": self.0.len(),
            "median_ms": millis(self.median()),
            "p95_ms": millis(self.percentile(95)),
            "min_ms": millis(self.percentile(0)),
            "max_ms": millis(self.percentile(100)),
        })
    }

    /// One row of a table.
    pub(super) fn row(&self, name: &str) -> String {
        let cells =
            [50, 95, 0, 100].map(|percent| format!("{:>11}", seconds(self.percentile(percent))));
        format!("{name:<24}{}", cells.concat())
    }
}

/// The value in the middle, or the mean of the two there; not a number where there is none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let (below, above) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(below), values.get(above)) {
        (Some(below), Some(above)) => f64::midpoint(*below, *above),
        _ => f64::NAN,
    }
}

/// The head of the table of rows.
pub(super) fn head() -> String {
    let cells = ["median", "p95", "min", "max"].map(|title| format!("{title:>11}"));
    format!("{:<24}{}", "", cells.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(millis: &[u64], median: u64, p95: u64) {
        let sample = Sample::new(millis.iter().copied().map(Duration::from_millis).collect());
        assert_eq!(sample.median(), Duration::from_millis(median));
        assert_eq!(sample.percentile(95), Duration::from_millis(p95));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        check(&[], 0, 0);
        check(&[7], 7, 7);
        check(&[3, 1, 2], 2, 3);
        check(&(1..=100).collect::<Vec<_>>(), 50, 95);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn rows_stand_below_the_head() {
        let row = Sample::new(vec![Duration::from_millis(5)]).row("fleet");
        assert_eq!(row.chars().count(), head().chars().count());
    }
}
