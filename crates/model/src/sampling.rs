//! From logits to the next token. Pure: the draw depends on seed and step alone, so that a request gives the same
//! tokens alone, among others, and after it was interrupted and started again.

use std::borrow::Cow;

use crate::error::SamplingError;
use crate::guide::TokenSet;

mod rank;
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

    /// −∞ in place of what may not be chosen.
    fn mask<'a>(&self, scores: Cow<'a, [f32]>) -> Cow<'a, [f32]> {
        if self.forbidden.is_empty() && self.allowed.is_none() {
            return scores;
        }
        let mut scores = scores.into_owned();
        if let Some(allowed) = self.allowed {
            allowed.mask(&mut scores);
        }
        for token in self.forbidden {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
        Cow::Owned(scores)
    }
}

/// Chooses a token from `logits`, `[vocab]`. Equal logits are decided for the lower id.
pub fn choose(
    logits: &[f32],
    sampling: &Sampling,
    situation: &Situation,
) -> Result<Choice, SamplingError> {
    sampling.check()?;
    let scores = penalise(logits, sampling.repetition_penalty, situation.seen);
    let top = softmax::likeliest(&scores).ok_or(SamplingError::NotFinite)?;
    let greedy = sampling.temperature == 0.0;
    let id = if greedy && situation.allows(top) {
        top
    } else {
        let scores = situation.mask(scores);
        let top = softmax::likeliest(&scores).ok_or(SamplingError::NotFinite)?;
        if greedy {
            top
        } else {
            rank::draw(&scores, sampling, uniform(sampling.seed, situation.step)).unwrap_or(top)
        }
    };
    Ok(Choice {
        token: id as u32,
        logprob: logprob(logits[id], softmax::normaliser(logits)),
    })
}

/// The `count` most likely of the tokens that may be chosen, most likely first, with the model's own log-probabilities.
pub fn likeliest(logits: &[f32], situation: &Situation, count: usize) -> Vec<Choice> {
    let ids = rank::first(&situation.mask(Cow::Borrowed(logits)), count);
    let normaliser = softmax::normaliser(logits);
    let choice = |id: usize| Choice {
        token: id as u32,
        logprob: logprob(logits[id], normaliser),
    };
    ids.into_iter().map(choice).collect()
}

/// Logits with the penalty.
fn penalise<'a>(logits: &'a [f32], penalty: f32, seen: &[u32]) -> Cow<'a, [f32]> {
    if penalty == 1.0 || seen.is_empty() {
        return Cow::Borrowed(logits);
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
    Cow::Owned(scores)
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
