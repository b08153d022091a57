//! Pure: the frames manifest of an encoded study, whose images a hospital's edge has encoded and kept. Nothing that it says is
//! taken to be about an image of this fleet: its frames have names of their own, and its tokens are only ever found by these.

use bytes::Bytes;
use medfleet_core::Digest;
use medfleet_proto::work::v1 as wire;

use crate::error::PreprocessError;

/// What this fleet would have made the frames by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    /// Version of the preprocessing rules.
    pub(crate) version: &'a str,
    /// Width and height of a frame, in pixels.
    pub(crate) frame_side: u32,
    /// Frames of a job.
    pub(crate) frames_max: u32,
}

/// A frame as it is known here, and its tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub(crate) frame: Digest,
    pub(crate) tokens: Digest,
}

/// The input that stands for the images of its job, where there is one.
pub(crate) fn input(
    study: &wire::StudyManifest,
) -> Result<Option<&wire::StudyInput>, PreprocessError> {
    match study.inputs.as_slice() {
        [input] if input.encoded_images > 0 => Ok(Some(input)),
        inputs if inputs.iter().any(|input| input.encoded_images > 0) => {
            let reason = "it is not the only input of its job".to_owned();
            Err(PreprocessError::Encoded(reason))
        }
        _ => Ok(None),
    }
}

/// Whether the study is the one that was declared, and one that this fleet could have made.
pub(crate) fn check(
    study: &wire::EncodedStudy,
    declared: u32,
    rules: Rules<'_>,
) -> Result<(), PreprocessError> {
    let found = study.image_count;
    if found != declared {
        let reason = format!("it stands for {found} images; {declared} were declared");
        return Err(PreprocessError::Encoded(reason));
    }
    let max = rules.frames_max;
    if study.frames.len() > max as usize {
        return Err(PreprocessError::Frames { max });
    }
    let side = rules.frame_side;
    let other = study.frames.iter().find(|frame| frame.width != side);
    if study.preprocessing_version != rules.version || other.is_some() {
        let theirs = other.map_or(side, |frame| frame.width);
        return Err(PreprocessError::OtherRules {
            made_by: format!("{} at {theirs} pixels", study.preprocessing_version),
            here: format!("{} at {side} pixels", rules.version),
        });
    }
    Ok(())
}

/// The frames manifest of a study that was checked, with the names of its frames in order. All of it is one chunk, as
/// nothing of it is computed.
pub(crate) fn manifest(study: wire::EncodedStudy, names: &[Names]) -> wire::FramesManifest {
    let bytes = |digest: &Digest| Bytes::copy_from_slice(digest.as_bytes());
    let (count, width) = (study.tokens_per_frame, study.token_width);
    let tokens = names.iter().map(|names| wire::TokensEntry {
        digest: bytes(&names.tokens),
        count,
        width,
        dtype: study.dtype.clone(),
        frame_digest: bytes(&names.frame),
        // By an encoder at the edge, for a job there.
        made_for: Bytes::new(),
    });
    let encoded = wire::EncodedImages {
        image_count: study.image_count,
        encoder_digest: study.encoder_digest.clone(),
        device: study.device.clone(),
        tokens: tokens.collect(),
    };
    let frames = study.frames.into_iter().zip(names);
    let frames = frames.map(|(frame, names)| wire::FrameEntry {
        digest: bytes(&names.frame),
        width: frame.width,
        channels: frame.channels,
        info: frame.info,
    });
    wire::FramesManifest {
        frames: frames.collect(),
        files_refused: study.files_refused,
        preprocessing_version: study.preprocessing_version,
        chunk_starts: vec![0],
        input_digests: study.input_digests,
        screening: study.screening,
        encoded: Some(encoded),
    }
}

#[cfg(test)]
mod tests {
    use medfleet_proto::v1;

    use super::*;

    const RULES: Rules<'_> = Rules {
        version: "medgemma-1.5-5",
        frame_side: 64,
        frames_max: 2,
    };

    fn study() -> wire::EncodedStudy {
        let frame = |input_index| wire::EncodedFrame {
            width: 64,
            channels: 1,
            info: Some(v1::FrameUsed {
                input_index,
                ..v1::FrameUsed::default()
            }),
            tokens_checksum: Bytes::from_static(&[3; 32]),
        };
        wire::EncodedStudy {
            image_count: 2,
            frames: vec![frame(1), frame(0)],
            preprocessing_version: "medgemma-1.5-5".to_owned(),
            screening: Some(wire::TextScreening::default()),
            encoder_digest: Bytes::from_static(&[9; 32]),
            device: "cpu".to_owned(),
            tokens_per_frame: 2,
            token_width: 4,
            dtype: "bf16".to_owned(),
            ..wire::EncodedStudy::default()
        }
    }

    #[test]
    fn a_study_that_this_fleet_could_not_have_made_is_refused() {
        let check = |change: &dyn Fn(&mut wire::EncodedStudy), expected: Option<&str>| {
            let mut study = study();
            change(&mut study);
            let found = check(&study, 2, RULES).err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(found, None),
                Some(expected) => {
                    let found = found.expect("it is refused");
                    assert!(found.contains(expected), "{found}");
                }
            }
        };
        check(&|_| {}, None);
        check(&|study| study.image_count = 3, Some("3 images; 2"));
        check(
            &|study| study.frames.push(wire::EncodedFrame::default()),
            Some("TOO_MANY_FRAMES"),
        );
        check(
            &|study| study.preprocessing_version = "medgemma-1.0-5".to_owned(),
            Some("medgemma-1.0-5 at 64 pixels"),
        );
        check(
            &|study| study.frames[1].width = 896,
            Some("medgemma-1.5-5 at 896 pixels"),
        );
    }

    #[test]
    fn only_the_one_input_of_a_job_stands_for_images() {
        let check = |images: &[u32], expected: Option<bool>| {
            let inputs = images.iter().map(|images| wire::StudyInput {
                encoded_images: *images,
                ..wire::StudyInput::default()
            });
            let study = wire::StudyManifest {
                inputs: inputs.collect(),
                ..wire::StudyManifest::default()
            };
            let found = input(&study).ok().map(|input| input.is_some());
            assert_eq!(found, expected, "{images:?}");
        };
        check(&[], Some(false));
        check(&[0], Some(false));
        check(&[0, 0], Some(false));
        check(&[2], Some(true));
        check(&[2, 0], None);
        check(&[1, 1], None);
    }

    #[test]
    fn the_manifest_says_of_each_frame_its_own_tokens() {
        let names = [(1, 11), (2, 12)].map(|(frame, tokens)| Names {
            frame: Digest::new([frame; 32]),
            tokens: Digest::new([tokens; 32]),
        });
        let manifest = manifest(study(), &names);
        let encoded = manifest.encoded.expect("it says so");
        let pairs = manifest.frames.iter().zip(&encoded.tokens).zip(&names);
        for ((frame, tokens), names) in pairs {
            assert_eq!(frame.digest, names.frame.as_bytes().as_slice());
            assert_eq!(tokens.frame_digest, frame.digest);
            assert_eq!(tokens.digest, names.tokens.as_bytes().as_slice());
        }
        assert_eq!((manifest.frames.len(), encoded.tokens.len()), (2, 2));
        assert_eq!(manifest.chunk_starts, [0]);
        assert!(manifest.screening.is_some());
    }
}
