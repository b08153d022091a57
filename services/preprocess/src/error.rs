//! What can go wrong with a study, and the single function from that to how its unit ends.

use std::path::PathBuf;

use medfleet_core::FailureReason;
use medfleet_imaging::{OptionsError, Reason, Refusal, TextReaderError};
use medfleet_store::StoreError;
use medfleet_worker::{ConnectionError, Ending};

use crate::config::conventions;

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("no conventions of a model are called {name:?}, allowed: {}", conventions().join(", "))]
    Convention { name: String },
    #[error(
        "{} does not look at a picture; it must be Tesseract 5 or newer, with a model for each of the languages",
        program.display()
    )]
    TextReader {
        program: PathBuf,
        #[source]
        error: TextReaderError,
    },
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// A study did not become frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreprocessError {
    /// A file is not right for the model; imaging says why.
    #[error("input {index} was refused: {}: {refusal}", refusal.reason)]
    Refused { index: usize, refusal: Refusal },
    /// The files together are nothing that a model could be shown, as slices that are no volume; imaging says why.
    #[error("the study was refused: {}: {refusal}", refusal.reason)]
    Volume { refusal: Refusal },
    #[error(
        "the study was refused: TOO_MANY_FRAMES: its files have more than {max} frames, preprocess.frames_max; send fewer files, or the slices of one series"
    )]
    Frames { max: u32 },
    #[error(
        "the study was refused: TOO_MANY_IDENTIFIERS: its headers name more people and numbers than belong to one patient"
    )]
    Identifiers,
    /// The decoder broke off: a defect of medfleet, whatever the file is.
    #[error("input {index} was not read to its end: DECODER_PANIC: medfleet's decoder broke off")]
    DecoderPanic { index: usize },
    /// The screening of the task's texts broke off: a defect of medfleet as well.
    #[error(
        "the texts of the study were not screened: SCREENING_PANIC: medfleet's screening broke off"
    )]
    ScreeningPanic,
    /// The file is not the encoded study that it was declared to be; only a hospital's edge declares one.
    #[error("the encoded study was refused: {0}")]
    Encoded(String),
    #[error(
        "the edge made its frames by {made_by}, and this pool's model is shown {here}; set the edge's pool as this one"
    )]
    OtherRules { made_by: String, here: String },
    #[error("the study manifest is not what was accepted: {0}")]
    Manifest(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PreprocessError {
    /// [`PreprocessError::Manifest`], by what is wrong with it.
    pub(crate) fn manifest(reason: &str) -> Self {
        Self::Manifest(reason.to_owned())
    }
}

impl From<PreprocessError> for Ending {
    fn from(error: PreprocessError) -> Self {
        let said = error.to_string();
        match error {
            // The file may be good; a start is counted, so that a file that always ends so is given up.
            PreprocessError::Refused { ref refusal, .. }
                if matches!(
                    refusal.reason,
                    Reason::DecoderUnavailable
                        | Reason::DecoderOverdue
                        | Reason::TextReaderUnavailable
                        | Reason::TextReaderOverdue
                ) =>
            {
                Self::wrong(error)
            }
            // The file crashed its decoder or reader twice: its unit waits among the dead letters until somebody has found out
            // why.
            PreprocessError::Refused { ref refusal, .. }
                if matches!(
                    refusal.reason,
                    Reason::DecoderCrashed | Reason::TextReaderFailed
                ) =>
            {
                Self::fail(FailureReason::AttemptsExhausted, said)
            }
            PreprocessError::Refused { .. }
            | PreprocessError::Volume { .. }
            | PreprocessError::Frames { .. }
            | PreprocessError::Identifiers
            | PreprocessError::Encoded(_) => Self::fail(FailureReason::InputRefused, said),
            // The same input ends the same way again. A dead letter is left, by which the job is started over once that is mended.
            PreprocessError::DecoderPanic { .. } | PreprocessError::ScreeningPanic => {
                Self::fail(FailureReason::Internal, said)
            }
            PreprocessError::OtherRules { .. } => Self::fail(FailureReason::ModelMismatch, said),
            PreprocessError::Manifest(_) => Self::fail(FailureReason::Integrity, said),
            PreprocessError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::Verdict;
    use medfleet_core::protocol::verdict_of_failure;

    use super::*;

    #[test]
    fn only_what_the_file_is_to_blame_for_is_final() {
        let check = |reason, again: bool| {
            let refusal = Refusal::new(reason);
            let ending = Ending::from(PreprocessError::Refused { index: 0, refusal });
            assert_eq!(matches!(ending, Ending::Wrong(_)), again, "{reason}");
            assert_eq!(matches!(ending, Ending::Fail(_)), !again, "{reason}");
        };
        check(Reason::DecoderUnavailable, true);
        check(Reason::DecoderOverdue, true);
        check(Reason::DecoderTooSlow, false);
        check(Reason::TextReaderUnavailable, true);
        check(Reason::TextReaderOverdue, true);
        check(Reason::TextReaderTooSlow, false);
        check(Reason::TextReaderFailed, false);
    }

    #[test]
    fn what_ends_its_decoder_is_kept_for_somebody_to_look_at() {
        let check = |reason, expected| {
            let refusal = Refusal::new(reason);
            let ending = Ending::from(PreprocessError::Refused { index: 0, refusal });
            let Ending::Fail(failure) = ending else {
                panic!("{reason}")
            };
            assert_eq!(failure.reason, expected, "{reason}");
        };
        check(Reason::DecoderCrashed, FailureReason::AttemptsExhausted);
        check(Reason::TextReaderFailed, FailureReason::AttemptsExhausted);
        check(Reason::DecoderTooSlow, FailureReason::InputRefused);
        check(Reason::DecodeFailed, FailureReason::InputRefused);
    }

    #[test]
    fn what_breaks_off_here_is_no_fault_of_the_input_and_leaves_a_dead_letter() {
        for error in [
            PreprocessError::DecoderPanic { index: 0 },
            PreprocessError::ScreeningPanic,
        ] {
            let Ending::Fail(failure) = Ending::from(error) else {
                panic!("another try would end the same way")
            };
            assert_eq!(failure.reason, FailureReason::Internal);
            let verdict = verdict_of_failure(failure);
            assert!(matches!(verdict, Verdict::Reject(_)), "{verdict:?}");
        }
    }
}
