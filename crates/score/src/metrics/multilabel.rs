//! Several yes/no labels a record: precision, recall and F1 of each, and their macro and micro means.
//!
//! F1 = 2tp / (2tp + fp + fn); macro is the mean of the labels' F1, micro the F1 of the labels' summed counts. A label that
//! is neither there nor named has F1 0, as scikit-learn's `f1_score(..., zero_division=0)`.

use serde::Serialize;

use super::ratio;

/// What is true of a label of a record, and what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub truth: bool,
    /// Whether it was said to be there.
    pub said: bool,
}

/// Records × labels; none where the truth isn't known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    pub labels: Vec<String>,
    /// One a record, each as long as `labels`.
    pub rows: Vec<Vec<Option<Cell>>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Counts {
    /// There, and said.
    pub true_positive: f64,
    /// Not there, but said.
    pub false_positive: f64,
    /// There, but not said.
    pub false_negative: f64,
    /// Not there, and not said.
    pub true_negative: f64,
}

impl Counts {
    /// tp / (tp + fp).
    pub fn precision(&self) -> f64 {
        ratio(self.true_positive, self.true_positive + self.false_positive)
    }

    /// tp / (tp + fn).
    pub fn recall(&self) -> f64 {
        ratio(self.true_positive, self.true_positive + self.false_negative)
    }

    /// 2tp / (2tp + fp + fn).
    pub fn f1(&self) -> f64 {
        let twice = 2.0 * self.true_positive;
        ratio(twice, twice + self.false_positive + self.false_negative)
    }

    /// Precision; none where the label was never said.
    pub(crate) fn precision_if_any(&self) -> Option<f64> {
        (self.true_positive + self.false_positive > 0.0).then(|| self.precision())
    }

    /// Recall; none where no record has the label.
    pub(crate) fn recall_if_any(&self) -> Option<f64> {
        (self.support() > 0.0).then(|| self.recall())
    }

    /// F1; none where the label is neither there nor said.
    pub(crate) fn f1_if_any(&self) -> Option<f64> {
        let any = self.true_positive + self.false_positive + self.false_negative > 0.0;
        any.then(|| self.f1())
    }

    /// How many records have it.
    pub fn support(&self) -> f64 {
        self.true_positive + self.false_negative
    }

    /// The sum over weighted records.
    pub fn sum(records: &[Self], weights: &[f64]) -> Self {
        let mut sum = Self::default();
        for (counts, weight) in records.iter().zip(weights) {
            sum.true_positive += counts.true_positive * weight;
            sum.false_positive += counts.false_positive * weight;
            sum.false_negative += counts.false_negative * weight;
            sum.true_negative += counts.true_negative * weight;
        }
        sum
    }

    /// Counts one more cell.
    pub fn add(&mut self, cell: Cell, weight: f64) {
        let count = match (cell.truth, cell.said) {
            (true, true) => &mut self.true_positive,
            (false, true) => &mut self.false_positive,
            (true, false) => &mut self.false_negative,
            (false, false) => &mut self.true_negative,
        };
        *count += weight;
    }
}

impl Table {
    /// The counts of one label.
    pub(crate) fn counts_of(&self, column: usize, weights: &[f64]) -> Counts {
        let mut counts = Counts::default();
        for (row, weight) in self.rows.iter().zip(weights) {
            if let Some(cell) = row[column] {
                counts.add(cell, *weight);
            }
        }
        counts
    }

    pub fn counts(&self, weights: &[f64]) -> Vec<Counts> {
        let mut counts = vec![Counts::default(); self.labels.len()];
        for (row, weight) in self.rows.iter().zip(weights) {
            for (count, cell) in counts.iter_mut().zip(row) {
                if let Some(cell) = cell {
                    count.add(*cell, *weight);
                }
            }
        }
        counts
    }
}

/// The mean of the labels' F1; none without labels.
pub fn macro_f1(counts: &[Counts]) -> Option<f64> {
    let sum: f64 = counts.iter().map(Counts::f1).sum();
    (!counts.is_empty()).then(|| sum / counts.len() as f64)
}

/// The F1 of the labels' summed counts; none without labels.
pub fn micro_f1(counts: &[Counts]) -> Option<f64> {
    let mut all = Counts::default();
    for count in counts {
        all.true_positive += count.true_positive;
        all.false_positive += count.false_positive;
        all.false_negative += count.false_negative;
        all.true_negative += count.true_negative;
    }
    (!counts.is_empty()).then(|| all.f1())
}
