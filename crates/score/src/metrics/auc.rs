//! Area under the ROC curve.
//!
//! The share of pairs of a positive and a negative record in which the positive has the higher score, a tie counting half:
//! the Mann–Whitney U by mid-ranks, equal to the area under the trapezoids of scikit-learn's `roc_auc_score`. Source: Hanley
//! and McNeil, Radiology 143 (1982).

/// The scores of one label, in their order.
#[derive(Debug, Clone)]
pub struct Ranked(Vec<Scored>);

#[derive(Debug, Clone, Copy)]
struct Scored {
    record: usize,
    score: f64,
    truth: bool,
}

impl Ranked {
    /// Of (record's number, score, truth). A score that is not a number counts as the lowest.
    pub fn new(scores: impl IntoIterator<Item = (usize, f64, bool)>) -> Self {
        let mut scored: Vec<Scored> = scores
            .into_iter()
            .map(|(record, score, truth)| Scored {
                record,
                score: if score.is_nan() {
                    f64::NEG_INFINITY
                } else {
                    score
                },
                truth,
            })
            .collect();
        scored.sort_by(|a, b| a.score.total_cmp(&b.score));
        Self(scored)
    }

    /// The area; none if all records are positive or none is. `weights` has one a record.
    pub fn auc(&self, weights: &[f64]) -> Option<f64> {
        let (mut wins, mut positives, mut negatives) = (0.0, 0.0, 0.0);
        for tied in self.0.chunk_by(|a, b| a.score == b.score) {
            let sum = |truth| -> f64 {
                let of = tied.iter().filter(|scored| scored.truth == truth);
                of.map(|scored| weights[scored.record]).sum()
            };
            let (positive, negative) = (sum(true), sum(false));
            wins += positive * (negatives + negative / 2.0);
            positives += positive;
            negatives += negative;
        }
        let pairs = positives * negatives;
        (pairs > 0.0).then(|| wins / pairs)
    }
}
