//! How a unit of work ends. Every unit ends in exactly one of four verdicts; the queue turns it into an acknowledgement.

use std::fmt;
use std::time::Duration;

/// The end of one delivery of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its effects are durable, or there is nothing left to do: acknowledge.
    Done,
    /// Not now: deliver again after this long.
    Retry {
        /// Least time until the next delivery.
        after: Duration,
    },
    /// Never: copy to the dead-letter stream with the reason, then acknowledge.
    Reject(Failure),
    /// Another worker owns it: neither acknowledge, nor publish, nor hand back.
    Abort,
}

/// Why a job failed: a stable reason and a sentence without patient data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Failure {
    /// The stable reason.
    pub reason: FailureReason,
    /// What happened, what was expected, what to do; cut to [`FAILURE_MESSAGE_BYTES_MAX`].
    pub message: String,
}

/// Longest failure message kept in a record, in bytes.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 300;

impl Failure {
    /// A failure; a message over the limit is cut at a character border.
    #[must_use]
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > FAILURE_MESSAGE_BYTES_MAX {
            let end = (0..=FAILURE_MESSAGE_BYTES_MAX)
                .rev()
                .find(|i| message.is_char_boundary(*i))
                .unwrap_or(0);
            message.truncate(end);
        }
        Self { reason, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

/// Stable reasons of failed jobs; the wire has the same list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// An input was refused before decoding.
    InputRefused,
    /// A declared image could not be given to the decoder.
    ImageMissing,
    /// Stored bytes are not what they were declared to be.
    Integrity,
    /// Started as often as allowed and never finished, or its input ended what looks at it, twice.
    AttemptsExhausted,
    /// Prompt and images do not fit the context.
    PromptTooLong,
    /// A defect of medfleet.
    Internal,
    /// Model or weights are not those asked for.
    ModelMismatch,
    /// What the model wrote is not an answer to the task.
    AnswerUnusable,
}

impl FailureReason {
    /// The stable word, for logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InputRefused => "input_refused",
            Self::ImageMissing => "image_missing",
            Self::Integrity => "integrity",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::PromptTooLong => "prompt_too_long",
            Self::Internal => "internal",
            Self::ModelMismatch => "model_mismatch",
            Self::AnswerUnusable => "answer_unusable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let failure = Failure::new(FailureReason::Internal, "ä".repeat(200));
        assert!(failure.message.len() <= FAILURE_MESSAGE_BYTES_MAX);
        assert!(failure.message.chars().all(|c| c == 'ä'));
    }
}
