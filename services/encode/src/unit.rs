//! Pure decisions: which frames a chunk has, and whether a stored manifest is still good for them.

use std::ops::Range;

use medfleet_core::Digest;
use medfleet_proto::work::v1::{FrameEntry, FramesManifest, TokensManifest};

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

/// The token blobs of a stored manifest, if it is of these frames and this encoder.
#[must_use]
pub fn still_good(
    stored: &TokensManifest,
    frames: &[FrameEntry],
    encoder: &Digest,
) -> Option<Vec<Digest>> {
    let same_frames = stored.tokens.len() == frames.len()
        && stored
            .tokens
            .iter()
            .zip(frames)
            .all(|(tokens, frame)| tokens.frame_digest == frame.digest);
    if !same_frames || stored.encoder_digest != encoder.as_bytes().as_slice() {
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
    use medfleet_proto::work::v1::TokensEntry;

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
    fn a_stored_manifest_counts_only_for_its_own_frames_and_encoder() {
        let encoder = Digest::new([9; 32]);
        let frame = |byte: u8| FrameEntry {
            digest: vec![byte; 32].into(),
            ..Default::default()
        };
        let entry = |byte: u8| TokensEntry {
            digest: vec![byte + 100; 32].into(),
            frame_digest: vec![byte; 32].into(),
            ..Default::default()
        };
        let stored = TokensManifest {
            tokens: vec![entry(1), entry(2)],
            encoder_digest: vec![9; 32].into(),
            ..Default::default()
        };
        let check = |frames: &[FrameEntry], encoder: &Digest, good: bool| {
            assert_eq!(still_good(&stored, frames, encoder).is_some(), good);
        };
        check(&[frame(1), frame(2)], &encoder, true);
        check(&[frame(2), frame(1)], &encoder, false);
        check(&[frame(1)], &encoder, false);
        check(&[frame(1), frame(2)], &Digest::new([8; 32]), false);
    }
}
