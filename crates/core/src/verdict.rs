//! How a unit of work ends. Every unit ends in exactly one of four verdicts; the queue turns it into an acknowledgement.

use std::fmt;
use std::time::Duration;

use crate::closed_set;

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
        write!(f, "{}: {}", self.reason, self.message)
    }
}

closed_set!(
    /// Stable reasons of failed jobs; the wire has the same list.
    pub enum FailureReason, "failure reason", {
        /// An input was refused before decoding.
        InputRefused = "input_refused",
        /// A declared image could not be given to the decoder.
        ImageMissing = "image_missing",
        /// Stored bytes are not what they were declared to be.
        Integrity = "integrity",
        /// Started as often as allowed and never finished, or its input ended what looks at it, twice.
        AttemptsExhausted = "attempts_exhausted",
        /// Prompt and images do not fit the context.
        PromptTooLong = "prompt_too_long",
        /// A defect of medfleet.
        Internal = "internal",
        /// Model or weights are not those asked for.
        ModelMismatch = "model_mismatch",
        /// What the model wrote is not an answer to the task.
        AnswerUnusable = "answer_unusable",
    }
);

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
