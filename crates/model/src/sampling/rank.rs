//! The highest of a quarter of a million scores, in order. Nearly always a few hundred of them matter, so only those near the top
//! are sorted, and more where they turn out not to be enough: how many were sorted changes no choice.

use super::{Sampling, softmax};

/// How far below the top scores are put in order, in temperatures.
const REACHES: [f32; 5] = [3.0, 6.0, 12.0, 24.0, f32::INFINITY];

/// Scores that are passed over together where none is high enough.
const LANES: usize = 16;

/// The ids of the `count` highest finite scores of `[vocab]`, highest first, equal ones by id.
pub(super) fn first(scores: &[f32], count: usize) -> Vec<usize> {
    let top = softmax::largest(scores);
    let mut ids = Vec::new();
    for reach in REACHES {
        if ids.len() < count {
            ids = from(scores, top - reach);
        }
    }
    sorted(scores, ids, count)
}

/// Temperature, then top-k, then top-p, then min-p, then one draw with `u` in [0, 1); nothing where no score is finite.
pub(super) fn draw(scores: &[f32], sampling: &Sampling, u: f64) -> Option<usize> {
    let (top, temperature) = (softmax::largest(scores), sampling.temperature);
    let below = |score: f32| (score - top) / temperature;
    let top_k = match sampling.top_k {
        0 => usize::MAX,
        top_k => top_k,
    };
    let total = (sampling.top_k == 0).then(|| softmax::total(scores, below));
    REACHES.iter().find_map(|reach| {
        let ids = from(scores, top - reach * temperature);
        let is_whole = reach.is_infinite() || ids.len() >= top_k;
        let ids = sorted(scores, ids, top_k);
        // The first weight is 1: a weight is the share of the most likely token's probability.
        let weight = |id: &usize| f64::from(softmax::exp(below(scores[*id])));
        let head = Head {
            weights: ids.iter().map(weight).collect(),
            is_whole,
        };
        let at = head.draw(sampling, total, u)?;
        ids.get(at).copied()
    })
}

/// The ids of all finite scores that are at least `least`, ascending.
fn from(scores: &[f32], least: f32) -> Vec<usize> {
    let mut ids = Vec::new();
    for (chunk, sixteen) in scores.chunks(LANES).enumerate() {
        let mut any = false;
        for score in sixteen {
            any |= *score >= least;
        }
        if any {
            let enough = |score: f32| score >= least && score.is_finite();
            let found = sixteen.iter().enumerate();
            let found = found.filter(|(_, score)| enough(**score));
            ids.extend(found.map(|(lane, _)| chunk * LANES + lane));
        }
    }
    ids
}

/// The `count` of these whose scores are the highest, highest first, equal ones by id; all where there are no more.
fn sorted(scores: &[f32], mut ids: Vec<usize>, count: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// The largest weights, descending.
struct Head {
    weights: Vec<f64>,
    /// Whether there are no others.
    is_whole: bool,
}

impl Head {
    /// The index that `u` means, of weights that add up to `total`, those of the head where it is not given; nothing where that
    /// takes more of them.
    fn draw(&self, sampling: &Sampling, total: Option<f64>, u: f64) -> Option<usize> {
        let own = || self.is_whole.then(|| self.weights.iter().sum());
        let total = total.or_else(own)?;
        let (kept, sum) = self.kept(sampling, total)?;
        let target = u * sum;
        let mut sum = 0.0;
        let found = self.weights[..kept].iter().position(|weight| {
            sum += weight;
            sum > target
        });
        // Rounding can leave the sum a hair below the target; the last kept token is the one meant.
        let is_last_known = self.is_whole || kept < self.weights.len();
        found.or(is_last_known.then(|| kept.saturating_sub(1)))
    }

    /// How many top-p and min-p keep, at least one, and their sum.
    fn kept(&self, sampling: &Sampling, total: f64) -> Option<(usize, f64)> {
        if sampling.top_p == 1.0 && sampling.min_p == 0.0 {
            return Some((self.weights.len(), total));
        }
        let (share, min_p) = (f64::from(sampling.top_p) * total, f64::from(sampling.min_p));
        let mut sum = 0.0;
        for (at, weight) in self.weights.iter().enumerate() {
            if at > 0 && *weight < min_p {
                return Some((at, sum));
            }
            sum += weight;
            if sum >= share {
                return Some((at + 1, sum));
            }
        }
        self.is_whole.then_some((self.weights.len(), sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 5_003;

    /// Scores from −20 to 20, some of them equal, some no numbers.
    fn scores() -> Vec<f32> {
        let at = |i: usize| (i.wrapping_mul(2_654_435_761) >> 8) as u16;
        let score = |i| match at(i) {
            0..100 => f32::NAN,
            number => f32::from(number / 8) / 204.8 - 20.0,
        };
        (0..VOCAB).map(score).collect()
    }

    /// By sorting everything.
    fn draw_of_all(scores: &[f32], sampling: &Sampling, u: f64) -> usize {
        let mut ids: Vec<usize> = (0..VOCAB).filter(|id| scores[*id].is_finite()).collect();
        ids.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        if sampling.top_k > 0 {
            ids.truncate(sampling.top_k);
        }
        let top = f64::from(scores[ids[0]]);
        let weight =
            |id: &usize| ((f64::from(scores[*id]) - top) / f64::from(sampling.temperature)).exp();
        let weights: Vec<f64> = ids.iter().map(weight).collect();
        let share = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
        let (mut kept, mut sum) = (0, 0.0);
        for weight in &weights {
            if kept > 0 && (sum >= share || *weight < f64::from(sampling.min_p)) {
                break;
            }
            (kept, sum) = (kept + 1, sum + weight);
        }
        let target = u * sum;
        let mut sum = 0.0;
        let found = weights[..kept].iter().position(|weight| {
            sum += weight;
            sum > target
        });
        ids[found.unwrap_or(kept - 1)]
    }

    #[test]
    fn a_draw_is_that_of_all_scores_in_order() {
        let scores = scores();
        let (top, mut sorted_more) = (softmax::largest(&scores), false);
        for temperature in [0.2, 1.0, 1.7, 30.0] {
            for (top_k, top_p, min_p) in [
                (0, 1.0, 0.0),
                (0, 0.9, 0.0),
                (0, 1.0, 0.05),
                (0, 0.999_999, 1e-9),
                (7, 1.0, 0.0),
                (3_000, 0.8, 0.0),
                (10_000, 1.0, 0.0),
            ] {
                let sampling = Sampling {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    ..Sampling::greedy()
                };
                for step in 0..200 {
                    let u = f64::from(step) / 200.0 + 0.002_3;
                    let found = draw(&scores, &sampling, u).expect("finite");
                    let expected = draw_of_all(&scores, &sampling, u);
                    assert_eq!(found, expected, "{sampling:?}, {u}");
                    sorted_more |= top - scores[found] > REACHES[0] * temperature;
                }
            }
        }
        assert!(sorted_more, "no draw needed more than the nearest");
    }

    #[test]
    fn the_first_are_those_of_all_scores_in_order() {
        let scores = scores();
        let mut ids: Vec<usize> = (0..VOCAB).filter(|id| scores[*id].is_finite()).collect();
        ids.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        for count in [0, 1, 20, 2_000, VOCAB] {
            assert_eq!(first(&scores, count), ids[..count.min(ids.len())]);
        }
    }

    #[test]
    fn of_no_numbers_there_is_none() {
        assert_eq!(draw(&[f32::NAN; 3], &Sampling::greedy(), 0.5), None);
        assert!(first(&[f32::NEG_INFINITY; 3], 2).is_empty());
    }
}
