//! From logits to the next token. Pure: the draw depends on seed and step alone, so that a request gives the same
//! tokens alone, among others, and after it was interrupted and started again.

use crate::error::SamplingError;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token (greedy); otherwise logits are divided by it.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 is no limit.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities sum up to this; 1 is no limit.
    pub top_p: f32,
    /// Starts the draws.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token each time, as all of MedGemma's published figures use.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SamplingError::Parameter`] naming the first value out of range.
    pub fn check(&self) -> Result<(), SamplingError> {
        let refuse = |field, found: f32, allowed| {
            Err(SamplingError::Parameter {
                field,
                found: found.to_string(),
                allowed,
            })
        };
        if !(0.0..=100.0).contains(&self.temperature) {
            return refuse("temperature", self.temperature, "0 to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "above 0, at most 1");
        }
        Ok(())
    }
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its natural log-probability under the model itself: before temperature and limits.
    pub logprob: f32,
}

/// Chooses a token from `logits`, `[vocab]`.
///
/// `step` counts the tokens of this request; `forbidden` are never chosen (an image's soft token stands for an image,
/// and the model may not invent one). Equal logits are decided for the lower id.
///
/// # Errors
/// [`SamplingError`]: values out of range, or no finite logit.
pub fn choose(
    logits: &[f32],
    sampling: &Sampling,
    step: u64,
    forbidden: &[u32],
) -> Result<Choice, SamplingError> {
    sampling.check()?;
    let allowed = |id: usize| !forbidden.iter().any(|f| *f as usize == id);
    let best = (0..logits.len())
        .filter(|id| logits[*id].is_finite() && allowed(*id))
        .reduce(|best, id| if logits[id] > logits[best] { id } else { best })
        .ok_or(SamplingError::NotFinite)?;
    let id = if sampling.temperature == 0.0 {
        best
    } else {
        let candidates: Vec<usize> = (0..logits.len())
            .filter(|id| logits[*id].is_finite() && allowed(*id))
            .collect();
        draw(logits, candidates, sampling, uniform(sampling.seed, step))
    };
    // The vocabulary is far below 2³².
    Ok(Choice {
        token: id as u32,
        logprob: logprob(logits, id),
    })
}

/// Temperature, then top-k, then top-p, then one draw with `u` in [0, 1).
fn draw(logits: &[f32], mut ids: Vec<usize>, sampling: &Sampling, u: f64) -> usize {
    ids.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if sampling.top_k > 0 {
        ids.truncate(sampling.top_k);
    }
    let top = f64::from(logits[ids[0]]);
    let weight =
        |id: &usize| ((f64::from(logits[*id]) - top) / f64::from(sampling.temperature)).exp();
    let weights: Vec<f64> = ids.iter().map(weight).collect();
    let kept = nucleus(&weights, f64::from(sampling.top_p));
    let target = u * weights[..kept].iter().sum::<f64>();
    let mut sum = 0.0;
    for (id, weight) in ids.iter().zip(&weights[..kept]) {
        sum += weight;
        if sum > target {
            return *id;
        }
    }
    // Rounding can leave the sum a hair below the target; the last kept token is the one meant.
    ids[kept - 1]
}

/// How many of the descending `weights` are needed to reach the share `top_p` of their sum; at least one.
fn nucleus(weights: &[f64], top_p: f64) -> usize {
    let target = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= target
    });
    reached.map_or(weights.len(), |index| index + 1)
}

/// ln softmax(logits)[id], summed in f64.
fn logprob(logits: &[f32], id: usize) -> f32 {
    let finite = || {
        logits
            .iter()
            .filter(|x| x.is_finite())
            .map(|x| f64::from(*x))
    };
    let top = finite().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = finite().map(|x| (x - top).exp()).sum();
    (f64::from(logits[id]) - top - sum.ln()) as f32
}

/// A number in [0, 1) from a hash of seed and step: no state to lose, no library whose stream may change.
fn uniform(seed: u64, step: u64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&seed.to_le_bytes())
        .update(&step.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    fn check(sampling: Sampling, forbidden: &[u32], expected: &[u32]) {
        let mut seen: Vec<u32> = (0..400)
            .map(|step| choose(&LOGITS, &sampling, step, forbidden).unwrap().token)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, expected, "{sampling:?}");
    }

    #[test]
    fn limits_leave_what_they_should() {
        let warm = Sampling {
            temperature: 1.0,
            seed: 7,
            ..Sampling::greedy()
        };
        check(Sampling::greedy(), &[], &[1]);
        check(Sampling::greedy(), &[1], &[3]);
        check(warm, &[], &[0, 1, 2, 3]);
        check(Sampling { top_k: 1, ..warm }, &[], &[1]);
        check(Sampling { top_k: 3, ..warm }, &[], &[1, 2, 3]);
        check(
            Sampling {
                top_p: 0.39,
                ..warm
            },
            &[],
            &[1],
        );
        check(Sampling { top_p: 0.7, ..warm }, &[], &[1, 3]);
        check(warm, &[1, 3], &[0, 2]);
    }

    #[test]
    fn frequencies_follow_probabilities() {
        let warm = Sampling {
            temperature: 2.0,
            seed: 1,
            ..Sampling::greedy()
        };
        let hits = (0..4000)
            .filter(|step| choose(&LOGITS, &warm, *step, &[]).unwrap().token == 2)
            .count();
        let sum: f64 = LOGITS.iter().map(|x| f64::from(x / 2.0).exp()).sum();
        let expected = 1f64.exp() / sum * 4000.0;
        assert!(
            (hits as f64 - expected).abs() < 150.0,
            "{hits} of {expected}"
        );
    }

    #[test]
    fn log_probability_is_the_models_own() {
        let cold = Sampling {
            temperature: 0.1,
            top_k: 1,
            ..Sampling::greedy()
        };
        let choice = choose(&LOGITS, &cold, 0, &[]).unwrap();
        let sum: f64 = LOGITS.iter().map(|x| f64::from(*x).exp()).sum();
        assert!((f64::from(choice.logprob) - (3.0 - sum.ln())).abs() < 1e-6);
    }

    #[test]
    fn same_seed_and_step_same_token() {
        let draws = |seed| {
            let warm = Sampling {
                temperature: 1.0,
                seed,
                ..Sampling::greedy()
            };
            (0..50)
                .map(|step| choose(&LOGITS, &warm, step, &[]).unwrap().token)
                .collect::<Vec<_>>()
        };
        assert_eq!(draws(3), draws(3));
        assert_ne!(draws(3), draws(4));
    }

    #[test]
    fn bad_values_are_named() {
        let refused = |sampling: Sampling| match choose(&LOGITS, &sampling, 0, &[]) {
            Err(SamplingError::Parameter { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            refused(Sampling {
                temperature: -1.0,
                ..Sampling::greedy()
            }),
            "temperature"
        );
        assert_eq!(
            refused(Sampling {
                temperature: f32::NAN,
                ..Sampling::greedy()
            }),
            "temperature"
        );
        assert_eq!(
            refused(Sampling {
                top_p: 0.0,
                ..Sampling::greedy()
            }),
            "top_p"
        );
        assert_eq!(
            choose(&[f32::NAN; 3], &Sampling::greedy(), 0, &[]),
            Err(SamplingError::NotFinite)
        );
    }
}
