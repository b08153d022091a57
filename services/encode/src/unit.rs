//! Pure decisions: which frames a chunk has, by what a frame's tokens are found, and whether a stored manifest is still good.

use std::ops::Range;

use medfleet_core::{Chunks, Digest};
use medfleet_engine::{Description, Dtype};
use medfleet_proto::work::v1::{FrameEntry, FramesManifest, TokensEntry, TokensManifest};

use crate::error::EncodeError;

/// The frames of a chunk.
///
/// # Errors
/// [`EncodeError::Manifest`] when there is no such chunk.
pub fn frames_of(manifest: &FramesManifest, chunk: u32) -> Result<&[FrameEntry], EncodeError> {
    let wrong = EncodeError::Manifest {
        reason: "it has no such chunk, or chunks out of order",
    };
    range(&manifest.chunk_starts, manifest.frames.len(), chunk)
        .and_then(|range| manifest.frames.get(range))
        .ok_or(wrong)
}

fn range(starts: &[u32], frames: usize, chunk: u32) -> Option<Range<usize>> {
    let chunk = chunk as usize;
    let start = *starts.get(chunk)? as usize;
    let end = starts.get(chunk + 1).map_or(frames, |next| *next as usize);
    (start < end).then_some(start..end)
}

/// The tokens of a chunk whose images came encoded, if they are what this encoder would have made; `None` where the frames
/// are to be encoded here.
///
/// # Errors
/// [`EncodeError::OtherEncoder`], or [`EncodeError::Manifest`] for a list that is not of these frames.
pub(crate) fn came_encoded(
    manifest: &FramesManifest,
    chunk: u32,
    model: &Description,
) -> Result<Option<TokensManifest>, EncodeError> {
    let Some(encoded) = &manifest.encoded else {
        return Ok(None);
    };
    let wrong = EncodeError::Manifest {
        reason: "the tokens that came with it are not of its frames",
    };
    let frames = frames_of(manifest, chunk)?;
    let tokens = range(&manifest.chunk_starts, manifest.frames.len(), chunk)
        .and_then(|range| encoded.tokens.get(range))
        .filter(|tokens| {
            let mut pairs = tokens.iter().zip(frames);
            pairs.all(|(tokens, frame)| tokens.frame_digest == frame.digest)
        });
    let tokens = tokens.ok_or(wrong)?;
    let is_ours = |entry: &TokensEntry| is_as_made(entry, model);
    let is_same = encoded.encoder_digest == model.encoder_digest.as_bytes().as_slice();
    if !is_same || !tokens.iter().all(is_ours) {
        let encoder = Digest::from_slice(&encoded.encoder_digest);
        let encoder = encoder.map_or_else(|_| "nobody".to_owned(), |digest| digest.to_string());
        let shape = tokens
            .iter()
            .find(|&entry| !is_ours(entry))
            .or(tokens.first());
        let shape = shape.map_or_else(String::new, |entry| {
            format!(" ({}x{} {})", entry.count, entry.width, entry.dtype)
        });
        return Err(EncodeError::OtherEncoder {
            made_by: format!("{encoder}{shape}"),
            here: format!(
                "{} ({}x{} {})",
                model.encoder_digest, model.tokens_per_image, model.token_width, model.dtype
            ),
        });
    }
    Ok(Some(TokensManifest {
        tokens: tokens.to_vec(),
        encoder_digest: encoded.encoder_digest.clone(),
        encoder_url: String::new(),
        device: encoded.device.clone(),
    }))
}

/// The key under which the image tokens of a frame are found again: by everything that decides their bytes, the device and the
/// code that computes them included. Longer than the keys of other lists of tokens ([`medfleet_worker::chunk_key`] and its
/// like), of which none is this one.
#[must_use]
pub fn frame_key(frame: &FrameEntry, preprocessing_version: &str, model: &Description) -> Vec<u8> {
    let numbers = [
        frame.width,
        frame.channels,
        model.tokens_per_image,
        model.token_width,
    ];
    let numbers = numbers.map(u32::to_le_bytes).concat();
    let parts: [&[u8]; 8] = [
        b"image tokens of a frame v1",
        &frame.digest,
        model.encoder_digest.as_bytes(),
        &numbers,
        model.dtype.as_str().as_bytes(),
        preprocessing_version.as_bytes(),
        model.device.as_bytes(),
        env!("CARGO_PKG_VERSION").as_bytes(),
    ];
    let mut key = Vec::new();
    for part in parts {
        // With its length, so that no two lists of parts are the same bytes.
        key.extend_from_slice(&(part.len() as u64).to_le_bytes());
        key.extend_from_slice(part);
    }
    key
}

/// Where a decoder can fetch all of a chunk's tokens, of which each has its encoder: with one of them, or nowhere.
#[must_use]
pub(crate) fn fetched_from<'a>(mut encoders: impl Iterator<Item = &'a str>) -> &'a str {
    let first = encoders.next().unwrap_or_default();
    if encoders.all(|other| other == first) {
        first
    } else {
        ""
    }
}

/// Whether a job's text can be written once this chunk is encoded.
#[must_use]
pub fn is_last(chunks: Chunks, chunk: u32) -> bool {
    chunks.done() + u32::from(!chunks.is_done(chunk)) >= chunks.total
}

/// Whether every value of a tensor is a number, neither infinite nor none.
pub(crate) fn are_numbers(bytes: &[u8], dtype: Dtype) -> bool {
    // Little-endian: sign and exponent are in the last two bytes.
    let mut values = bytes.chunks_exact(dtype.size_bytes());
    let exponent = |value: &[u8]| match dtype {
        Dtype::F32 => [value[2], value[3]],
        Dtype::Bf16 => [value[0], value[1]],
    };
    values.all(|value| u16::from_le_bytes(exponent(value)) & 0x7f80 != 0x7f80)
}

/// Whether tokens have the shape and the type of those that this encoder makes: the same weights computed in another type
/// have the same digest.
fn is_as_made(entry: &TokensEntry, model: &Description) -> bool {
    (entry.count, entry.width) == (model.tokens_per_image, model.token_width)
        && entry.dtype == model.dtype.as_str()
}

/// The token blobs of a stored manifest, if it is of these frames and what this encoder would make of them: a decoder of this
/// pool takes no other type of numbers.
#[must_use]
pub fn still_good(
    stored: &TokensManifest,
    frames: &[FrameEntry],
    model: &Description,
) -> Option<Vec<Digest>> {
    let same_frames = stored.tokens.len() == frames.len()
        && stored.tokens.iter().zip(frames).all(|(tokens, frame)| {
            tokens.frame_digest == frame.digest && is_as_made(tokens, model)
        });
    if !same_frames || stored.encoder_digest != model.encoder_digest.as_bytes().as_slice() {
        return None;
    }
    stored
        .tokens
        .iter()
        .map(|tokens| Digest::from_slice(&tokens.digest).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use medfleet_proto::work::v1::EncodedImages;

    use super::*;

    #[test]
    fn chunks_cover_frames_and_nothing_else() {
        let check = |starts: &[u32], frames, chunk, expected| {
            assert_eq!(range(starts, frames, chunk), expected, "{starts:?} {chunk}");
        };
        check(&[0, 2, 4], 5, 0, Some(0..2));
        check(&[0, 2, 4], 5, 2, Some(4..5));
        check(&[0, 2, 4], 5, 3, None);
        check(&[0, 2, 2], 5, 1, None);
        check(&[], 0, 0, None);
    }

    #[test]
    fn a_text_follows_the_chunk_without_which_all_are_done() {
        let check = |total, done_bitmap, chunk, expected| {
            let chunks = Chunks { total, done_bitmap };
            assert_eq!(is_last(chunks, chunk), expected, "{chunks:?} {chunk}");
        };
        check(1, 0, 0, true);
        check(3, 0b001, 1, false);
        check(3, 0b101, 1, true);
        // It is done again, and another one is missing.
        check(3, 0b011, 1, false);
        check(3, 0b111, 1, true);
    }

    fn model() -> Description {
        Description {
            model: "tiny".to_owned(),
            model_digest: Digest::new([8; 32]),
            encoder_digest: Digest::new([9; 32]),
            device: "cpu".to_owned(),
            dtype: Dtype::Bf16,
            weights: String::new(),
            frame_side: 8,
            tokens_per_image: 2,
            token_width: 4,
            context_tokens_max: 100,
        }
    }

    /// Three frames in two chunks that came encoded.
    fn encoded() -> FramesManifest {
        let frame = |byte: u8| FrameEntry {
            digest: vec![byte; 32].into(),
            ..Default::default()
        };
        let entry = |byte: u8| TokensEntry {
            digest: vec![byte + 100; 32].into(),
            count: 2,
            width: 4,
            dtype: "bf16".to_owned(),
            frame_digest: vec![byte; 32].into(),
            made_for: vec![5; 16].into(),
        };
        FramesManifest {
            frames: vec![frame(0), frame(1), frame(2)],
            chunk_starts: vec![0, 2],
            encoded: Some(EncodedImages {
                image_count: 3,
                encoder_digest: vec![9; 32].into(),
                device: "cuda".to_owned(),
                tokens: vec![entry(0), entry(1), entry(2)],
            }),
            ..Default::default()
        }
    }

    #[test]
    fn what_came_encoded_is_taken_for_its_own_frames() {
        let taken = came_encoded(&encoded(), 1, &model()).expect("it is ours");
        let taken = taken.expect("it came encoded");
        assert_eq!(
            taken.tokens,
            encoded().encoded.expect("encoded").tokens[2..]
        );
        assert_eq!(taken.device, "cuda");
        let frames = &encoded().frames[2..];
        assert!(still_good(&taken, frames, &model()).is_some());
        let plain = FramesManifest {
            encoded: None,
            ..encoded()
        };
        assert!(matches!(came_encoded(&plain, 0, &model()), Ok(None)));
        let mut swapped = encoded();
        swapped.frames.swap(0, 1);
        let refused = came_encoded(&swapped, 0, &model());
        assert!(matches!(refused, Err(EncodeError::Manifest { .. })));
        let mut short = encoded();
        short.encoded.as_mut().expect("encoded").tokens.pop();
        let refused = came_encoded(&short, 1, &model());
        assert!(matches!(refused, Err(EncodeError::Manifest { .. })));
    }

    #[test]
    fn what_another_encoder_made_is_refused_and_both_are_named() {
        let check = |change: &dyn Fn(&mut EncodedImages), named: &str| {
            let mut manifest = encoded();
            change(manifest.encoded.as_mut().expect("encoded"));
            let refused = came_encoded(&manifest, 0, &model());
            let Err(error @ EncodeError::OtherEncoder { .. }) = refused else {
                panic!("{refused:?}");
            };
            let text = error.to_string();
            assert!(
                text.contains(named) && text.contains(&"09".repeat(32)),
                "{text}"
            );
        };
        check(
            &|it| it.encoder_digest = vec![7; 32].into(),
            &"07".repeat(32),
        );
        check(&|it| it.tokens[1].count = 3, "3x4 bf16");
        check(&|it| it.tokens[0].width = 5, "2x5 bf16");
        check(&|it| it.tokens[0].dtype = "f32".to_owned(), "2x4 f32");
    }

    #[test]
    fn tokens_of_a_frame_are_found_by_all_that_decides_them() {
        let frame = FrameEntry {
            digest: vec![1; 32].into(),
            width: 8,
            channels: 1,
            ..Default::default()
        };
        let mine = frame_key(&frame, "rules-1", &model());
        assert_eq!(mine, frame_key(&frame, "rules-1", &model()));
        // Where it lay in its file and how it was windowed is not in its pixels, or is in them already.
        let elsewhere = FrameEntry {
            info: Some(medfleet_proto::v1::FrameUsed::default()),
            ..frame.clone()
        };
        assert_eq!(mine, frame_key(&elsewhere, "rules-1", &model()));
        let with_frame = |change: &dyn Fn(&mut FrameEntry)| {
            let mut frame = frame.clone();
            change(&mut frame);
            frame_key(&frame, "rules-1", &model())
        };
        let with_model = |change: &dyn Fn(&mut Description)| {
            let mut model = model();
            change(&mut model);
            frame_key(&frame, "rules-1", &model)
        };
        let others = [
            frame_key(&frame, "rules-2", &model()),
            with_frame(&|frame| frame.digest = vec![2; 32].into()),
            with_frame(&|frame| frame.width = 9),
            with_frame(&|frame| frame.channels = 3),
            with_model(&|model| model.encoder_digest = Digest::new([8; 32])),
            with_model(&|model| model.dtype = Dtype::F32),
            with_model(&|model| model.device = "cuda".to_owned()),
            with_model(&|model| model.tokens_per_image = 3),
            with_model(&|model| model.token_width = 5),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(mine, *other, "{index}");
        }
        // The vision half alone makes them.
        let mine_too = with_model(&|model| model.model_digest = Digest::new([7; 32]));
        assert_eq!(mine, mine_too);
        let job = medfleet_core::JobId::from_bytes([1; 16]);
        let handed = medfleet_worker::handed_key((&job, 0), &Digest::new([1; 32]), 0);
        assert!(mine.len() > handed.len(), "no other list has its name");
    }

    #[test]
    fn tokens_are_fetched_from_the_one_encoder_that_has_all_of_them() {
        let check = |encoders: &[&str], expected: &str| {
            assert_eq!(fetched_from(encoders.iter().copied()), expected);
        };
        check(&[], "");
        check(&["http://a"], "http://a");
        check(&["http://a", "http://a"], "http://a");
        check(&["http://a", "http://b"], "");
        check(&["", "http://b"], "");
    }

    #[test]
    fn only_numbers_are_numbers() {
        let f32s = |values: &[f32]| -> Vec<u8> {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        assert!(are_numbers(
            &f32s(&[0.0, -1.5, f32::MAX, 1e-40]),
            Dtype::F32
        ));
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!are_numbers(&f32s(&[1.0, wrong]), Dtype::F32));
            let half = &f32s(&[wrong])[2..];
            assert!(!are_numbers(half, Dtype::Bf16));
        }
        assert!(are_numbers(&[0x80, 0x3f], Dtype::Bf16));
    }

    #[test]
    fn a_stored_manifest_counts_only_for_its_own_frames_and_for_what_made_it() {
        let frame = |byte: u8| FrameEntry {
            digest: vec![byte; 32].into(),
            ..Default::default()
        };
        let entry = |byte: u8| TokensEntry {
            digest: vec![byte + 100; 32].into(),
            count: 2,
            width: 4,
            dtype: "bf16".to_owned(),
            frame_digest: vec![byte; 32].into(),
            made_for: vec![5; 16].into(),
        };
        let stored = TokensManifest {
            tokens: vec![entry(1), entry(2)],
            encoder_digest: vec![9; 32].into(),
            ..Default::default()
        };
        let check = |frames: &[FrameEntry], model: &Description, good: bool| {
            assert_eq!(still_good(&stored, frames, model).is_some(), good);
        };
        let frames = [frame(1), frame(2)];
        check(&frames, &model(), true);
        check(&[frame(2), frame(1)], &model(), false);
        check(&[frame(1)], &model(), false);
        // Other weights; the same ones in another type, or pooled to another shape.
        let with = |change: &dyn Fn(&mut Description)| {
            let mut model = model();
            change(&mut model);
            check(&frames, &model, false);
        };
        with(&|model| model.encoder_digest = Digest::new([8; 32]));
        with(&|model| model.dtype = Dtype::F32);
        with(&|model| model.tokens_per_image = 3);
        with(&|model| model.token_width = 5);
    }
}
