//! Pure decisions: which frames a chunk has, by what a frame's tokens are found, how long a unit waits for those that others make,
//! and whether a stored manifest is still good.

use std::ops::Range;
use std::time::Duration;

use medfleet_core::{Chunks, Class, Digest};
use medfleet_engine::{Description, Dtype};
use medfleet_proto::work::v1::{FrameEntry, FramesManifest, TokensEntry, TokensManifest};

use crate::error::EncodeError;

/// The frames of a chunk.
pub fn frames_of(manifest: &FramesManifest, chunk: u32) -> Result<&[FrameEntry], EncodeError> {
    let wrong = EncodeError::Manifest("it has no such chunk, or chunks out of order");
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
    let wrong = EncodeError::Manifest("the tokens that came with it are not of its frames");
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

/// The key under which the image tokens of a frame are found again. It names everything that decides their bytes, the device
/// and the release that computes them included. It is longer than the keys of all other lists of tokens
/// ([`medfleet_worker::chunk_key`] and [`medfleet_worker::handed_key`]), so that it never equals one of them.
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
        // Each part is preceded by its length, so that different parts never give the same key.
        key.extend_from_slice(&(part.len() as u64).to_le_bytes());
        key.extend_from_slice(part);
    }
    key
}

/// The URL of the encoder that has all of a chunk's tokens, given that of each; empty where they are at several encoders.
pub(crate) fn fetched_from<'a>(mut encoders: impl Iterator<Item = &'a str>) -> &'a str {
    let first = encoders.next().unwrap_or_default();
    if encoders.all(|other| other == first) {
        first
    } else {
        ""
    }
}

/// Whether a job's text can be written once this chunk is encoded.
pub fn is_last(chunks: Chunks, chunk: u32) -> bool {
    chunks.done() + u32::from(!chunks.is_done(chunk)) >= chunks.total
}

/// Longest wait for tokens that another unit is making: a claim's holder that neither ends nor dies must not stop others.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A unit of class URGENT waits this many times as long as encoding the frames itself would take. That is enough for a unit of
/// its own class that began a little earlier, but not for one of class BULK, which lets all other work go first.
const URGENT_TIMES: u32 = 4;

/// How long a unit waits at most while others encode frames that it needs, before it encodes them itself. A unit of STAT waits no
/// longer than encoding them would take, by what a frame took last, one of URGENT a few times as long, and neither at all where that
/// is not known yet.
pub(crate) fn patience(class: Class, frames: usize, frame_took: Option<Duration>) -> Duration {
    let frames = u32::try_from(frames).unwrap_or(u32::MAX);
    let takes = frame_took.unwrap_or_default().saturating_mul(frames);
    match class {
        Class::Stat => takes.min(WAIT_MAX),
        Class::Urgent => takes.saturating_mul(URGENT_TIMES).min(WAIT_MAX),
        Class::Routine | Class::Bulk => WAIT_MAX,
    }
}

/// Whether every value of a tensor is finite: neither infinite nor NaN.
pub(crate) fn are_numbers(bytes: &[u8], dtype: Dtype) -> bool {
    // Little-endian, so sign and exponent are in the last two bytes; a value that is not finite has every bit of its exponent set.
    let mut values = bytes.chunks_exact(dtype.bytes());
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
mod tests;
