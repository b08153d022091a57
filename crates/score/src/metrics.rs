//! The figures, each by a stated formula and source. All are fractions of 1 (sacrebleu and papers print percentages).
//! Those of many records take one weight a record: how often it counts. All ones give the figure of the set, the counts
//! of a draw with replacement that of a [`bootstrap`] sample.

pub mod answer;
pub mod auc;
pub mod bleu;
pub mod bootstrap;
pub mod boxes;
pub mod laterality;
pub mod multilabel;
pub mod radcliq;
pub mod radgraph;
pub mod rouge;
mod stem;

/// Σ weight × value / Σ weight over the records that have a value; none if no record has.
pub fn mean(values: &[Option<f64>], weights: &[f64]) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for (value, weight) in values.iter().zip(weights) {
        if let Some(value) = value {
            sum += value * weight;
            count += weight;
        }
    }
    (count > 0.0).then(|| sum / count)
}

/// 2PR/(P+R), the harmonic mean; 0 where both are 0.
pub(crate) fn harmonic(precision: f64, recall: f64) -> f64 {
    ratio(2.0 * precision * recall, precision + recall)
}

/// 0 where there is nothing to divide by, as scikit-learn's `zero_division=0`.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
