//! What can go wrong with a decode, and the single function from that to how its unit ends.

use medfleet_core::{Digest, FailureReason};
use medfleet_engine::{ConstraintError, Dtype, EngineError};
use medfleet_runtime::Stop;
use medfleet_store::StoreError;
use medfleet_worker::{ConnectionError, Ending, PemError};

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("encoders cannot be known by decode.fetch_tls")]
    FetchTls(#[source] tonic::transport::Error),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl StartError {
    /// How the process ends by it. What is in a file that a setting names is part of the configuration.
    pub fn into_stop(self) -> Stop {
        match self {
            Self::Pem(_) | Self::FetchTls(_) => Stop::usage(self),
            Self::Connection(_) => self.into(),
        }
    }
}

/// A decode did not become a result. Where an image is named, it is by its position, from 0.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("image {image} of {declared} has no tokens of encoder {encoder}; no text was written")]
    ImageMissing {
        image: usize,
        declared: u32,
        encoder: Digest,
    },
    #[error("{found} images for {declared} declared ones; no text was written")]
    ImageCount { found: usize, declared: u32 },
    #[error("the tokens of image {image} are not what was declared: {what}; no text was written")]
    Tokens { image: usize, what: &'static str },
    /// An image's tokens are of the model's own weights, but of another type of numbers: the pool's was changed, or is not
    /// the same for encode and decode. Nothing is wrong with what is stored.
    #[error(
        "the tokens of image {image} are {found}, and the pool's model takes {expected}: encode and decode need the same model.dtype, and a job of before it was changed has to be replayed; no text was written"
    )]
    Dtype {
        image: usize,
        found: String,
        expected: Dtype,
    },
    #[error("{0} is not what was stored")]
    Manifest(&'static str),
    /// What the model wrote is not an answer to the task.
    #[error("{0}")]
    Answer(&'static str),
    #[error("{task} takes exactly {expected} frames; the inputs have {found}")]
    Frames {
        task: &'static str,
        expected: usize,
        found: usize,
    },
    /// The pool's model cannot do the task: ingest and this pool do not agree on what it is.
    #[error("the task needs a model that {needs}, and the pool runs another")]
    Model { needs: &'static str },
    #[error("the task is not one that this release does")]
    Task,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DecodeError> for Ending {
    fn from(error: DecodeError) -> Self {
        let said = error.to_string();
        match error {
            DecodeError::ImageMissing { .. } => Self::missing(FailureReason::ImageMissing, said),
            DecodeError::ImageCount { .. } => Self::fail(FailureReason::ImageMissing, said),
            DecodeError::Tokens { .. } | DecodeError::Manifest(_) => {
                Self::fail(FailureReason::Integrity, said)
            }
            DecodeError::Answer(_) => Self::fail(FailureReason::AnswerUnusable, said),
            DecodeError::Frames { .. } => Self::fail(FailureReason::InputRefused, said),
            DecodeError::Model { .. } | DecodeError::Dtype { .. } => {
                Self::fail(FailureReason::ModelMismatch, said)
            }
            DecodeError::Task => Self::fail(FailureReason::Internal, said),
            DecodeError::Engine(error) => match error {
                EngineError::TooLong { .. } => Self::fail(FailureReason::PromptTooLong, said),
                EngineError::StillThinking(_) => Self::fail(FailureReason::AnswerUnusable, said),
                EngineError::Parameter { .. }
                | EngineError::Constraint(
                    ConstraintError::Json { .. }
                    | ConstraintError::Schema { .. }
                    | ConstraintError::Regex,
                ) => Self::fail(FailureReason::InputRefused, said),
                EngineError::NoPrompt { .. } | EngineError::Constraint(_) => {
                    Self::fail(FailureReason::Internal, said)
                }
                EngineError::Tokens { .. } | EngineError::Frame { .. } => {
                    Self::fail(FailureReason::ModelMismatch, said)
                }
                EngineError::Model(_)
                | EngineError::NotFinite
                | EngineError::Panicked
                | EngineError::Hung => Self::wrong(error),
                EngineError::Damaged | EngineError::Stopped => Self::retry(error),
            },
            DecodeError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use medfleet_engine::StillThinking;
    use medfleet_runtime::Exit;

    use super::*;

    #[test]
    fn what_a_file_of_the_settings_lacks_ends_as_a_wrong_setting_does() {
        let no_certificate = StartError::from(PemError::NoCertificate {
            setting: "decode.fetch_tls.ca",
            path: "tls.pem".into(),
        });
        assert_eq!(no_certificate.into_stop().exit, Exit::Usage);
    }

    #[test]
    fn a_text_that_is_only_thinking_fails_the_job() {
        let error = DecodeError::from(EngineError::from(StillThinking));
        let Ending::Fail(failure) = Ending::from(error) else {
            panic!("another try would think as long");
        };
        assert_eq!(failure.reason, FailureReason::AnswerUnusable);
        assert!(failure.message.contains("raise max_tokens"));
    }

    #[test]
    fn a_unit_whose_pass_hung_counts_as_begun_in_vain() {
        // Handed back, it could end one worker after the other.
        let error = DecodeError::from(EngineError::Hung);
        assert!(matches!(Ending::from(error), Ending::Wrong(_)));
    }

    #[test]
    fn a_unit_that_met_a_damaged_model_is_handed_back_and_one_without_numbers_counts() {
        let of = |error: EngineError| Ending::from(DecodeError::from(error));
        assert!(matches!(of(EngineError::Damaged), Ending::Retry(_)));
        assert!(matches!(of(EngineError::NotFinite), Ending::Wrong(_)));
    }

    #[test]
    fn tokens_of_another_type_of_numbers_are_no_damage() {
        let error = DecodeError::Dtype {
            image: 0,
            found: "bf16".to_owned(),
            expected: Dtype::F32,
        };
        let Ending::Fail(failure) = Ending::from(error) else {
            panic!("nobody makes others");
        };
        assert_eq!(failure.reason, FailureReason::ModelMismatch);
        assert!(
            failure
                .message
                .contains("bf16, and the pool's model takes f32")
        );
    }

    #[test]
    fn a_schema_that_cannot_be_enforced_is_the_callers() {
        let error = ConstraintError::Schema {
            reason: "look at uniqueItems".to_owned(),
        };
        let error = DecodeError::from(EngineError::from(error));
        let Ending::Fail(failure) = Ending::from(error) else {
            panic!("another try would not enforce it either");
        };
        assert_eq!(failure.reason, FailureReason::InputRefused);
        assert!(failure.message.contains("uniqueItems"));
    }
}
