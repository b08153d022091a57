//! The file that a hospital's edge sends in place of images that stay there: an encoded study.
//!
//! A preamble of fixed size (magic, version, length and checksum of the head), the head ([`EncodedStudy`]), then the tokens of
//! each frame in the head's order; the head has their checksums. A reader trusts nothing: every length is checked before it is
//! used, every byte is covered by a checksum, and every text has the form of a word of a closed list. What a reader cannot check
//! is whether tokens belong to the images that they claim to be of: so they count for their own job alone, under names of their
//! own ([`frame_name`]).

use bytes::{BufMut, Bytes, BytesMut};
use medfleet_core::{Digest, TenantId};
use medfleet_proto::v1;
use medfleet_proto::work::v1::{EncodedFrame, EncodedStudy, TextScreening};
use medfleet_store::FleetKey;
use prost::{Message, decode_length_delimiter};

/// What an encoded study begins with.
const MAGIC: [u8; 8] = *b"MFENCODE";
/// The only version there is.
const VERSION: u32 = 1;
/// Magic, version, length of the head, its checksum.
const BEGIN_BYTES: usize = 8 + 4 + 4 + 32;
/// Bytes of a head: some 500 a frame.
const HEAD_BYTES_MAX: usize = 4 << 20;
/// Frames of a study.
const FRAMES_MAX: usize = 4096;
/// Images of a job, as many as an ingest may be told to take.
const IMAGES_MAX: u32 = 65_536;
/// Fields of a head and of all that is in it: of a frame its notes and some 30 others, of an image its digest and what is said
/// of a refused file, of the screening its kinds of texts, and the single ones.
const FIELDS_MAX: usize =
    FRAMES_MAX * (NOTES_MAX + 48) + 5 * IMAGES_MAX as usize + 3 * NOTES_MAX + 16;
/// Tokens a frame and values a token.
const TOKENS_MAX: u32 = 4096;
const WIDTH_MAX: u32 = 16_384;
/// Bytes of a word, and of a line about a file or a device.
const WORD_BYTES_MAX: usize = 64;
const LINE_BYTES_MAX: usize = 1024;
/// Notes of a frame, windows of one, kinds of masked texts.
const NOTES_MAX: usize = 32;

/// A file that is not an encoded study, or one that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodedError {
    #[error("it is no encoded study: {0}")]
    Form(&'static str),
    #[error("it is an encoded study of version {found}; version {VERSION} is read")]
    Version { found: u32 },
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("its head is wrong: {0}")]
    Head(&'static str),
}

/// An encoded study that was read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub study: EncodedStudy,
    /// The tokens of each frame: `tokens_per_frame` × `token_width` values of `dtype`, row-major, little-endian.
    pub tokens: Vec<Bytes>,
}

/// What a frame's tokens are checked by.
pub fn checksum(tokens: &[u8]) -> Bytes {
    Bytes::copy_from_slice(blake3::hash(tokens).as_bytes())
}

/// The file up to the tokens, which follow in the order of the head's frames.
///
/// # Errors
/// [`EncodedError::Head`] for a head that no reader would take.
pub fn beginning(study: &EncodedStudy) -> Result<Bytes, EncodedError> {
    check(study)?;
    let head = study.encode_to_vec();
    if head.len() > HEAD_BYTES_MAX {
        return Err(EncodedError::Head("it is too long"));
    }
    let mut bytes = BytesMut::with_capacity(BEGIN_BYTES + head.len());
    bytes.put_slice(&MAGIC);
    bytes.put_u32_le(VERSION);
    // At most HEAD_BYTES_MAX.
    bytes.put_u32_le(head.len() as u32);
    bytes.put_slice(blake3::hash(&head).as_bytes());
    bytes.put_slice(&head);
    Ok(bytes.freeze())
}

/// Reads a whole file. The tokens share its memory.
pub fn read(file: &Bytes) -> Result<Encoded, EncodedError> {
    let begin = file.get(..BEGIN_BYTES);
    let begin = begin.ok_or(EncodedError::Form("it is too short"))?;
    if begin[..8] != MAGIC {
        return Err(EncodedError::Form("it begins otherwise"));
    }
    let number = |at: usize| {
        let bytes = [begin[at], begin[at + 1], begin[at + 2], begin[at + 3]];
        u32::from_le_bytes(bytes)
    };
    let found = number(8);
    if found != VERSION {
        return Err(EncodedError::Version { found });
    }
    let head_bytes = number(12) as usize;
    if head_bytes > HEAD_BYTES_MAX {
        return Err(EncodedError::Head("it is too long"));
    }
    let tokens_at = BEGIN_BYTES + head_bytes;
    let head = file.get(BEGIN_BYTES..tokens_at);
    let head = head.ok_or(EncodedError::Form("it ends within its head"))?;
    if begin[16..] != *blake3::hash(head).as_bytes() {
        return Err(EncodedError::Damaged("its head has another checksum"));
    }
    if !has_fields_of_a_head(head) {
        return Err(EncodedError::Head("it has too many fields"));
    }
    let study = EncodedStudy::decode(head).map_err(|_| EncodedError::Head("it does not decode"))?;
    let each = check(&study)?;
    // Both are bounded by what was checked.
    if file.len() != tokens_at + each * study.frames.len() {
        return Err(EncodedError::Form(
            "it has another length than its head says",
        ));
    }
    let mut tokens = Vec::with_capacity(study.frames.len());
    for (frame, index) in study.frames.iter().zip(0..) {
        let begin = tokens_at + each * index;
        let bytes = file.slice(begin..begin + each);
        if frame.tokens_checksum != blake3::hash(&bytes).as_bytes().as_slice() {
            return Err(EncodedError::Damaged(
                "the tokens of a frame have another checksum",
            ));
        }
        tokens.push(bytes);
    }
    Ok(Encoded { study, tokens })
}

/// The name of a frame of which only the tokens are here. It is a hash of the tokens, for a purpose of its own, so that it never
/// equals the name of a frame's pixels, whatever the tokens claim to be of.
pub fn frame_name(key: &FleetKey, tenant: &TenantId, tokens: &Digest) -> Digest {
    // A change of meaning needs a new purpose.
    let parts: [&[u8]; 2] = [tenant.as_str().as_bytes(), tokens.as_bytes()];
    key.keyed_hash("frame known by its tokens v1", &parts)
}

/// Which fields of a message are messages themselves, by their numbers.
struct Parts(&'static [(usize, Parts)]);

const PLAIN: Parts = Parts(&[]);
/// The number of [`EncodedStudy::frames`].
const FRAMES: usize = 2;
const HEAD: Parts = Parts(&[(FRAMES, FRAME), (3, PLAIN), (6, SCREENING)]);
const FRAME: Parts = Parts(&[(3, INFO)]);
/// Windows, the windows of channels, and the placement.
const INFO: Parts = Parts(&[(4, PLAIN), (10, PLAIN), (16, PLAIN)]);
const SCREENING: Parts = Parts(&[(1, TASK), (2, PLAIN)]);
/// The tasks that have a list.
const TASK: Parts = Parts(&[(3, PLAIN), (8, PLAIN)]);

/// Whether the head, with all messages in it, has no more fields than a head can have. Checked before decoding, because an empty
/// frame is two bytes here and hundreds in memory, and an empty window or note forty and more. What is no valid message is left
/// for the decoder to refuse.
fn has_fields_of_a_head(head: &[u8]) -> bool {
    let frames = fields(head).filter(|(number, _)| *number == FRAMES);
    let mut left = FIELDS_MAX;
    frames.count() <= FRAMES_MAX && has_at_most(&mut left, head, &HEAD)
}

/// Whether a message, and what is in it, have no more fields than are left, and how many are left then.
fn has_at_most(left: &mut usize, message: &[u8], parts: &Parts) -> bool {
    fields(message).all(|(number, contents)| {
        let Some(less) = left.checked_sub(1) else {
            return false;
        };
        *left = less;
        let mut parts = parts.0.iter();
        let part = parts.find(|(of, _)| *of == number);
        part.is_none_or(|(_, parts)| has_at_most(left, contents, parts))
    })
}

/// The fields of a message: their numbers, and the contents of those that have a length. Ends where the message is not valid.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    std::iter::from_fn(move || {
        let key = decode_length_delimiter(&mut message).ok()?;
        let bytes = match key & 7 {
            0 => {
                decode_length_delimiter(&mut message).ok()?;
                0
            }
            1 => 8,
            2 => decode_length_delimiter(&mut message).ok()?,
            // The beginning and the end of a group, whose fields are counted as the others are.
            3 | 4 => 0,
            5 => 4,
            _ => return None,
        };
        let (contents, behind) = message.split_at_checked(bytes)?;
        message = behind;
        Some((key >> 3, contents))
    })
}

/// Checks everything that a head says. Returns the length of one frame's tokens in bytes.
fn check(study: &EncodedStudy) -> Result<usize, EncodedError> {
    let wrong = EncodedError::Head;
    if !(1..=FRAMES_MAX).contains(&study.frames.len()) {
        return Err(wrong("it has no frame, or too many"));
    }
    if !(1..=IMAGES_MAX).contains(&study.image_count) {
        return Err(wrong("it stands for no image, or too many"));
    }
    if study.encoder_digest.len() != 32 {
        return Err(wrong("it does not say which encoder made the tokens"));
    }
    let (count, width) = (study.tokens_per_frame, study.token_width);
    if !(1..=TOKENS_MAX).contains(&count) || !(1..=WIDTH_MAX).contains(&width) {
        return Err(wrong("its tokens have no shape, or one too large"));
    }
    let value = match study.dtype.as_str() {
        "f32" => 4,
        "bf16" => 2,
        _ => return Err(wrong("its tokens are neither f32 nor bf16")),
    };
    let version = &study.preprocessing_version;
    if version.is_empty() || !is_word(version) || !is_line(&study.device) {
        return Err(wrong(
            "its preprocessing version is no word, or its device no line",
        ));
    }
    let inputs = &study.input_digests;
    if inputs.len() != study.image_count as usize || inputs.iter().any(|one| one.len() != 32) {
        return Err(wrong("it has not one digest an image"));
    }
    let screening = study.screening.as_ref();
    let screening = screening.ok_or(wrong("its job's texts were not screened"))?;
    if !is_screening(screening) {
        return Err(wrong("it says of the screening what it must not"));
    }
    if !study
        .frames
        .iter()
        .all(|frame| is_frame(frame, study.image_count))
    {
        return Err(wrong("a frame is not described as frames are"));
    }
    let mut refused = study.files_refused.iter();
    let is_refused = |file: &v1::FileRefused| {
        let is_input = file.input_index < study.image_count;
        is_input && is_word(&file.reason) && is_line(&file.message)
    };
    if study.files_refused.len() > IMAGES_MAX as usize || !refused.all(is_refused) {
        return Err(wrong("a refused file is not described as such files are"));
    }
    // At most 4096 × 16384 × 4: it fits.
    Ok(count as usize * width as usize * value)
}

fn is_frame(frame: &EncodedFrame, image_count: u32) -> bool {
    let Some(info) = &frame.info else {
        return false;
    };
    let mut windows = info.window.iter().chain(&info.channel_windows);
    let is_window = |window: &v1::Window| {
        is_word(&window.function) && window.center.is_finite() && window.width.is_finite()
    };
    frame.width > 0
        && matches!(frame.channels, 1 | 3)
        && frame.tokens_checksum.len() == 32
        && info.input_index < image_count
        && info.channel_windows.len() <= 3
        && info.notes.len() <= NOTES_MAX
        && info.token_digest.is_empty()
        && is_word(&info.modality)
        && is_word(&info.frame_digest)
        && info.notes.iter().all(is_word)
        && windows.all(is_window)
}

fn is_screening(screening: &TextScreening) -> bool {
    let masked = &screening.masked;
    screening.masked_task.is_none()
        && masked.len() <= NOTES_MAX
        && masked.iter().all(|masked| is_word(&masked.kind))
}

/// A word of a closed list, a version or a digest: nothing that could say more.
fn is_word(text: impl AsRef<str>) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    text.as_ref().len() <= WORD_BYTES_MAX && text.as_ref().bytes().all(is_part)
}

/// A line that names a device, or says what is wrong with a file.
fn is_line(text: &str) -> bool {
    text.len() <= LINE_BYTES_MAX && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests;
