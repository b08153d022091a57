//! Whether texts wait for company. Pure.
//!
//! Where both halves of a model compute on one device, an image and a pass that go side by side only slow each other down,
//! so that in front of a busy encoder every text would be written alone. A pass takes hardly longer for a few texts than for
//! one, since most of it is what it takes whoever is in it. So the encoder goes first, and the texts that are there wait for
//! the next one and are written together, as long as that makes noticeably more reports of the same time.
//!
//! What decides was measured: what passes of so many texts took, what images take, how long texts were. The device is never
//! idle meanwhile: what waits is the order of the work. In all its time a text waits for no more than the images that a full
//! company takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use medfleet_core::Class;

use crate::encoding::Coming;

/// Least gain for which texts wait for one more: the share of a report's time that it has to save each of them.
const GAIN_MIN: f64 = 0.025;
/// Texts that are written together as long as no pass was measured. On every machine measured so far a pass of four texts takes
/// less time than two passes of one.
const UNMEASURED: usize = 4;
/// A text may wait only if it has this many times the time left that writing it takes: an encoder beside it about doubles that
/// time.
const SPARE: f64 = 2.0;
/// Weight of a newer and slower pass in the running mean of a pass's time. A faster one weighs 0.5, as disturbances only ever add
/// time.
const SLOWER_FOLLOWED: f64 = 0.125;
/// Weight of a new text of the usual length in the running mean of lengths. Others weigh in proportion to their length, 0.5 at
/// most: passes are made of tokens, and a list of labels is many short texts.
const LENGTH_FOLLOWED: f64 = 0.125;

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Company {
    /// By number of texts, the seconds of a pass that reads no prompt.
    passes: BTreeMap<usize, f64>,
    /// Usual tokens of a text.
    length: Option<f64>,
}

/// A text that could be written now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    pub(super) class: Class,
    /// Tokens that are written.
    pub(super) written: usize,
    /// Tokens that it may have in all.
    pub(super) tokens_max: usize,
    /// How long it has waited for company so far.
    pub(super) waited: Duration,
    /// When the time of its job ends.
    pub(super) ends_by: Option<Instant>,
}

/// What a pass of n texts takes: `fixed` + n × `each`, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    fixed: f64,
    each: f64,
}

impl Company {
    /// Notes how long a pass took that read no prompt and had the device to itself.
    pub(super) fn passed(&mut self, texts: usize, took: Duration) {
        let took = took.as_secs_f64();
        let known = self.passes.entry(texts.max(1)).or_insert(took);
        let part = if took < *known { 0.5 } else { SLOWER_FOLLOWED };
        *known += (took - *known) * part;
    }

    /// Notes the length of a text that has ended.
    pub(super) fn ended(&mut self, tokens: usize) {
        let tokens = tokens as f64;
        let known = self.length.get_or_insert(tokens);
        let part = (LENGTH_FOLLOWED * tokens / known.max(1.0)).min(0.5);
        *known += (tokens - *known) * part;
    }

    /// Until when all `texts` wait for the one that is coming; `None` if they do not wait. At most `texts_max` are written
    /// together.
    pub(super) fn waits(
        &self,
        now: Instant,
        texts: &[Text],
        texts_max: usize,
        coming: Coming,
    ) -> Option<Instant> {
        let may_wait = |text: &Text| text.class != Class::Stat && coming.class <= text.class;
        if texts.is_empty() || texts.len() >= texts_max || !texts.iter().all(may_wait) {
            return None;
        }
        let left = texts.iter().map(|text| self.left(text));
        let longest = left.fold(0.0, f64::max);
        if !self.pays(texts.len(), longest, coming.usual) {
            return None;
        }
        let patience = self.patience(longest, texts_max, coming.usual);
        let ends = texts
            .iter()
            .map(|text| now + patience.saturating_sub(text.waited));
        let until = ends.min()?;
        let pass = self
            .line()
            .map_or(0.0, |line| line.fixed + line.each * texts_max as f64);
        let has_time = |text: &Text| {
            let needed = patience.as_secs_f64() + SPARE * self.left(text) * pass;
            let end = text.ends_by.map(|end| end.saturating_duration_since(until));
            end.is_none_or(|left| left.as_secs_f64() >= needed)
        };
        (until > now && texts.iter().all(has_time)).then_some(until)
    }

    /// Longest that a text waits in all: what it takes to encode the images of as many texts as are worth waiting for.
    fn patience(&self, longest: f64, texts_max: usize, image: Duration) -> Duration {
        let length = self.length.unwrap_or(longest);
        let full = (1..texts_max).find(|texts| !self.pays(*texts, length, image));
        let full = full.unwrap_or(texts_max);
        image.saturating_mul(u32::try_from(full).unwrap_or(u32::MAX))
    }

    /// Whether `texts` texts, the longest of which has `longest` tokens left, gain enough by waiting for one more.
    /// Among n texts a report takes the time of its image and, for each token, `each + fixed / n`. One more makes that
    /// `each + fixed / (n + 1)` for the tokens that they write together.
    fn pays(&self, texts: usize, longest: f64, image: Duration) -> bool {
        let Some(Line { fixed, each }) = self.line() else {
            return texts < UNMEASURED;
        };
        let (texts, length) = (texts as f64, self.length.unwrap_or(longest));
        let report = image.as_secs_f64() + length * (each + fixed / texts);
        let spared = longest.min(length) * fixed / (texts * (texts + 1.0));
        spared >= GAIN_MIN * report
    }

    /// Estimated tokens that a text has still to be written: up to the usual length, and no more than it may have.
    fn left(&self, text: &Text) -> f64 {
        let most = text.tokens_max.saturating_sub(text.written) as f64;
        let usual = self.length.map(|length| length - text.written as f64);
        usual.map_or(most, |usual| usual.clamp(0.0, most))
    }

    /// The line nearest to what was measured, by least squares with a weight of 1 / n² for n texts: small numbers of texts count
    /// most, since the decision is about them.
    fn line(&self) -> Option<Line> {
        let points = self.passes.iter().map(|(texts, seconds)| {
            let texts = *texts as f64;
            (1.0 / (texts * texts), texts, *seconds)
        });
        let sum = |of: &dyn Fn((f64, f64, f64)) -> f64| points.clone().map(of).sum::<f64>();
        let weights = sum(&|(weight, _, _)| weight);
        if weights == 0.0 {
            return None;
        }
        let texts = sum(&|(weight, texts, _)| weight * texts) / weights;
        let seconds = sum(&|(weight, _, seconds)| weight * seconds) / weights;
        let spread = sum(&|(weight, x, _)| weight * (x - texts).powi(2));
        let slope = sum(&|(weight, x, y)| weight * (x - texts) * (y - seconds));
        // Passes of one number of texts say nothing about what each text adds.
        let each = if self.passes.len() > 1 {
            (slope / spread).max(0.0)
        } else {
            0.0
        };
        let fixed = (seconds - each * texts).max(0.0);
        Some(Line { fixed, each })
    }
}

#[cfg(test)]
mod tests;
