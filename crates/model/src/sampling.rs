//! From logits to the next token. Pure: the draw depends on seed and step alone, so that a request gives the same
//! tokens alone, among others, and after it was interrupted and started again.

use crate::error::SamplingError;
use crate::guide::TokenSet;

mod softmax;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token (greedy); otherwise logits are divided by it.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 is no limit.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities sum up to this; 1 is no limit.
    pub top_p: f32,
    /// Only tokens at least this share as likely as the most likely one; 0 is no limit.
    pub min_p: f32,
    /// Logits of tokens that the prompt or the answer holds already are divided by it where positive and multiplied
    /// where negative, before all else (Keskar et al. 2019, as transformers does it); 1 changes nothing.
    pub repetition_penalty: f32,
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
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }

    /// Whether nothing but the likeliest token is ever chosen, by the logits as they are.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// Checks the ranges.
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
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "0 to 1");
        }
        let penalty = self.repetition_penalty;
        if !(penalty > 0.0 && penalty <= 10.0) {
            return refuse("repetition_penalty", penalty, "above 0, at most 10");
        }
        Ok(())
    }
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its natural log-probability under the model itself: before penalty, temperature and limits.
    pub logprob: f32,
}

/// What a choice depends on besides logits and sampling.
#[derive(Debug, Clone, Copy, Default)]
pub struct Situation<'a> {
    /// Tokens of this request chosen so far.
    pub step: u64,
    /// Never chosen: an image's soft token stands for an image, and the model may not invent one.
    pub forbidden: &'a [u32],
    /// Tokens of prompt and answer, for the repetition penalty.
    pub seen: &'a [u32],
    /// Where given, nothing outside is chosen.
    pub allowed: Option<&'a TokenSet>,
}

impl Situation<'_> {
    fn allows(&self, id: usize) -> bool {
        // The vocabulary is far below 2³².
        let token = id as u32;
        !self.forbidden.contains(&token) && self.allowed.is_none_or(|set| set.contains(token))
    }

    fn candidates(&self, logits: &[f32]) -> Vec<usize> {
        (0..logits.len())
            .filter(|id| logits[*id].is_finite() && self.allows(*id))
            .collect()
    }
}

/// Chooses a token from `logits`, `[vocab]`. Equal logits are decided for the lower id.
pub fn choose(
    logits: &[f32],
    sampling: &Sampling,
    situation: &Situation,
) -> Result<Choice, SamplingError> {
    sampling.check()?;
    let penalised = penalise(logits, sampling.repetition_penalty, situation.seen);
    let scores = penalised.as_deref().unwrap_or(logits);
    let greedy = sampling.temperature == 0.0;
    let id = match softmax::likeliest(scores) {
        Some(top) if greedy && situation.allows(top) => top,
        Some(_) => {
            let candidates = situation.candidates(scores);
            let best = candidates.iter().copied();
            let best = best.reduce(|best, id| if scores[id] > scores[best] { id } else { best });
            let best = best.ok_or(SamplingError::NotFinite)?;
            if greedy {
                best
            } else {
                let u = uniform(sampling.seed, situation.step);
                draw(scores, candidates, sampling, u)
            }
        }
        None => return Err(SamplingError::NotFinite),
    };
    Ok(Choice {
        token: id as u32,
        logprob: logprob(logits[id], softmax::normaliser(logits)),
    })
}

/// The `count` most likely of the tokens that may be chosen, most likely first, with the model's own log-probabilities.
#[must_use]
pub fn likeliest(logits: &[f32], situation: &Situation, count: usize) -> Vec<Choice> {
    let mut ids = situation.candidates(logits);
    keep_top(logits, &mut ids, count);
    let normaliser = softmax::normaliser(logits);
    let choice = |id: usize| Choice {
        token: id as u32,
        logprob: logprob(logits[id], normaliser),
    };
    ids.into_iter().map(choice).collect()
}

/// Logits with the penalty; nothing where it changes none.
fn penalise(logits: &[f32], penalty: f32, seen: &[u32]) -> Option<Vec<f32>> {
    if penalty == 1.0 || seen.is_empty() {
        return None;
    }
    let mut scores = logits.to_vec();
    let mut ids = seen.to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(score) = scores
            .get_mut(id as usize)
            .filter(|score| score.is_finite())
        {
            let moved = if *score > 0.0 {
                *score / penalty
            } else {
                *score * penalty
            };
            // A penalty near 0 would make infinity of it, which reads as a model that makes no numbers.
            *score = moved.clamp(f32::MIN, f32::MAX);
        }
    }
    Some(scores)
}

/// The `count` ids of the highest scores, highest first, equal ones by id; all where `count` is not below their number.
fn keep_top(scores: &[f32], ids: &mut Vec<usize>, count: usize) {
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if count == 0 {
        ids.clear();
    } else if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
}

/// Temperature, then top-k, then top-p, then min-p, then one draw with `u` in [0, 1).
fn draw(logits: &[f32], mut ids: Vec<usize>, sampling: &Sampling, u: f64) -> usize {
    let all = ids.len();
    let top_k = if sampling.top_k == 0 {
        all
    } else {
        sampling.top_k
    };
    keep_top(logits, &mut ids, top_k);
    let top = f64::from(logits[ids[0]]);
    let weight =
        |id: &usize| ((f64::from(logits[*id]) - top) / f64::from(sampling.temperature)).exp();
    let weights: Vec<f64> = ids.iter().map(weight).collect();
    let nucleus = nucleus(&weights, f64::from(sampling.top_p));
    // The first weight is 1: a weight is the share of the most likely token's probability.
    let min_p = f64::from(sampling.min_p);
    let likely = weights.iter().take_while(|weight| **weight >= min_p);
    let kept = nucleus.min(likely.count()).max(1);
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

fn logprob(logit: f32, normaliser: f64) -> f32 {
    (f64::from(logit) - normaliser) as f32
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
mod tests;
