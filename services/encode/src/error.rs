//! What can go wrong with a chunk, and the single function from that to how its unit ends.

use medfleet_core::{BlobKind, FailureReason};
use medfleet_engine::EngineError;
use medfleet_runtime::Stop;
use medfleet_store::StoreError;
use medfleet_worker::{ConnectionError, Ending, PemError};

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the token service has no address")]
    Listener(#[source] std::io::Error),
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the token service cannot take the certificate and key of encode.tls")]
    Tls(#[source] tonic::transport::Error),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl StartError {
    /// How the process ends by it. What is in a file that a setting names is part of the configuration.
    pub fn into_stop(self) -> Stop {
        match self {
            Self::Pem(_) | Self::Tls(_) => Stop::usage(self),
            Self::Listener(_) | Self::Connection(_) => self.into(),
        }
    }
}

/// A chunk did not become tokens.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("the frames manifest is not what preprocess made: {0}")]
    Manifest(&'static str),
    #[error(
        "the images were encoded by {made_by}, and the model here takes tokens of {here}; run the same weights at the edge, or another model here"
    )]
    OtherEncoder {
        /// Theirs: digest of the weights, shape and type of the tokens.
        made_by: String,
        here: String,
    },
    #[error("the tokens of image {image} that came encoded are not {what}")]
    Tokens {
        /// Which image, from 0.
        image: usize,
        what: &'static str,
    },
    #[error("tokens that came with the encoded study are gone")]
    Gone,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<EncodeError> for Ending {
    fn from(error: EncodeError) -> Self {
        let said = error.to_string();
        match error {
            EncodeError::Manifest(_) => Self::fail(FailureReason::Integrity, said),
            EncodeError::Gone => Self::missing(FailureReason::Integrity, said),
            EncodeError::OtherEncoder { .. } => Self::fail(FailureReason::ModelMismatch, said),
            EncodeError::Tokens { .. } => Self::fail(FailureReason::InputRefused, said),
            EncodeError::Engine(error) => match error {
                EngineError::Frame { .. } => Self::fail(FailureReason::ModelMismatch, said),
                EngineError::Tokens { .. }
                | EngineError::TooLong { .. }
                | EngineError::Parameter { .. }
                | EngineError::Constraint(_)
                | EngineError::NoPrompt { .. }
                | EngineError::StillThinking(_) => Self::fail(FailureReason::Internal, said),
                EngineError::Model(_)
                | EngineError::NotFinite
                | EngineError::Panicked
                | EngineError::Hung => Self::wrong(error),
                EngineError::Damaged | EngineError::Stopped => Self::retry(error),
            },
            // The tokens were there a moment ago, made for a job that has been erased since. The next try makes them again; this
            // start counts as gone wrong, in case they vanish every time.
            EncodeError::Store(
                error @ StoreError::Missing {
                    kind: BlobKind::Tokens | BlobKind::TokensOfChunk,
                    ..
                },
            ) => Self::wrong(error),
            EncodeError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::Exit;

    use super::*;

    #[test]
    fn what_a_file_of_the_settings_lacks_ends_as_a_wrong_setting_does() {
        let no_certificate = StartError::from(PemError::NoCertificate {
            setting: "encode.tls.cert",
            path: "tls.pem".into(),
        });
        assert_eq!(no_certificate.into_stop().exit, Exit::Usage);
    }
}
