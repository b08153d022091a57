//! A request that the scheduler has taken on, and what was written of its text so far.

use std::time::{Duration, Instant};

use medfleet_core::Class;

use super::company::Text;
use super::scheduler::Events;
use super::stop::StopFilter;
use super::{DecodeEvent, Haste};
use crate::backend::{Alternative, Decoding, PromptSize, Sequence, Step};
use crate::health::Suspect;
use crate::text::TokenSpan;
use crate::turns::Place;

/// A request that the model has taken on: waiting for memory, or being read or written.
pub(super) struct Taken {
    pub(super) sequence: Sequence,
    pub(super) events: Events,
    pub(super) suspect: Suspect,
    pub(super) size: PromptSize,
    pub(super) arrived: Instant,
    pub(super) haste: Haste,
    pub(super) tokens_max: u32,
    /// How long it was held back for other texts to share its passes.
    pub(super) waited: Duration,
    /// Tokens that the model wrote, also those of which nothing is shown: what it thinks, and the end.
    pub(super) steps: usize,
    pub(super) first_token: Option<Instant>,
    pub(super) filter: StopFilter,
    /// Of the model's text, what is held back included.
    pub(super) text_bytes: u32,
    pub(super) shown_bytes: u32,
    pub(super) tokens: Vec<TokenSpan>,
    pub(super) alternatives: Vec<Vec<Alternative>>,
    pub(super) prefix_tokens: u32,
    pub(super) preemptions: u32,
    pub(super) place: Place,
}

impl Taken {
    /// A request that the model takes on now.
    pub(super) fn new(
        sequence: Sequence,
        events: Events,
        size: PromptSize,
        haste: Haste,
        decoding: Decoding,
    ) -> Self {
        Self {
            sequence,
            events,
            suspect: Suspect::default(),
            size,
            arrived: Instant::now(),
            haste,
            tokens_max: decoding.max_tokens,
            waited: Duration::ZERO,
            steps: 0,
            first_token: None,
            filter: StopFilter::new(decoding.stop),
            text_bytes: 0,
            shown_bytes: 0,
            tokens: Vec::new(),
            alternatives: Vec::new(),
            prefix_tokens: 0,
            preemptions: 0,
            place: Place::new(haste.class, sequence.0),
        }
    }

    /// Its place among all that are there, the first one lowest: by class, within one by arrival.
    pub(super) fn place(&self) -> (Class, u64) {
        self.place.order()
    }

    /// Another one begins while this one waits.
    pub(super) fn passed_by(&mut self, other: Sequence) {
        self.place.passed_by(other.0);
    }

    /// As it counts for company.
    pub(super) fn text(&self) -> Text {
        Text {
            class: self.haste.class,
            written: self.steps,
            tokens_max: self.tokens_max as usize,
            waited: self.waited,
            ends_by: self.arrived.checked_add(self.haste.time_left),
        }
    }

    /// Notes which bytes of the text a step wrote.
    pub(super) fn count(&mut self, step: &Step) {
        self.steps += 1;
        let start = self.text_bytes;
        // Texts are bounded by the context: far below 4 GiB.
        let end = start.saturating_add(u32::try_from(step.text.len()).unwrap_or(u32::MAX));
        self.text_bytes = end;
        if let Some(token) = &step.token {
            self.tokens.push(TokenSpan {
                start,
                end,
                log_probability: token.log_probability,
            });
            if !token.alternatives.is_empty() {
                self.alternatives.push(token.alternatives.clone());
            }
        } else if let Some(last) = self.tokens.last_mut() {
            last.end = end;
        }
    }

    pub(super) fn show(&mut self, text: String) {
        if !text.is_empty() {
            self.shown_bytes += u32::try_from(text.len()).unwrap_or(u32::MAX);
            // A closed stream is a cancellation, which the next turn acts on; a full one cannot be (see `decode`).
            let _ = self.events.try_send(Ok(DecodeEvent::Text(text)));
        }
    }

    /// Leaves of the tokens only what wrote text that was shown.
    pub(super) fn cut(&mut self) {
        let shown = self.shown_bytes;
        let kept = self.tokens.partition_point(|token| token.start < shown);
        self.tokens.truncate(kept);
        self.alternatives.truncate(kept);
        if let Some(last) = self.tokens.last_mut() {
            last.end = last.end.min(shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Token;

    #[test]
    fn what_the_model_thinks_counts_as_written_and_is_not_shown() {
        let (events, _reader) = tokio::sync::mpsc::channel(1);
        let size = PromptSize {
            tokens: 1,
            image_tokens: 0,
        };
        let asked = Decoding::greedy(9);
        let mut taken = Taken::new(Sequence(0), events, size, Haste::STAT, asked);
        let step = |token, text: &str| Step {
            token,
            text: text.to_owned(),
            finish: None,
        };
        let word = Token {
            id: 5,
            log_probability: -1.0,
            alternatives: Vec::new(),
        };
        taken.count(&step(None, ""));
        taken.count(&step(None, ""));
        taken.count(&step(Some(word), "clear"));
        assert_eq!((taken.text().written, taken.tokens.len()), (3, 1));
        assert_eq!(taken.text_bytes, 5);
    }
}
