//! Tells formats apart by their first bytes; names and extensions are never believed.

use crate::{Format, Reason, Refusal};

/// Length of the DICOM preamble in bytes (PS3.10 7.1).
pub(crate) const PREAMBLE_BYTES: usize = 128;
/// What follows the preamble.
pub(crate) const DICOM_MAGIC: &[u8] = b"DICM";
/// The first element of the file meta group, (0002,0000) UL, in explicit little endian.
pub(crate) const META_START: &[u8] = &[0x02, 0x00, 0x00, 0x00, b'U', b'L'];

const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG_MAGIC: &[u8] = &[0xff, 0xd8, 0xff];

/// The format of a file.
///
/// # Errors
/// [`Reason::Empty`], [`Reason::NotAnImage`], or [`Reason::Truncated`] for a beginning that is too short to tell.
pub fn sniff(bytes: &[u8]) -> Result<Format, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::new(Reason::Empty));
    }
    // The preamble may itself be another format's beginning (dual-personality files), so DICOM goes first.
    if bytes
        .get(PREAMBLE_BYTES..)
        .is_some_and(|rest| rest.starts_with(DICOM_MAGIC))
        || bytes.starts_with(DICOM_MAGIC)
        || bytes.starts_with(META_START)
    {
        return Ok(Format::Dicom);
    }
    if bytes.starts_with(PNG_MAGIC) {
        return Ok(Format::Png);
    }
    if bytes.starts_with(JPEG_MAGIC) {
        return Ok(Format::Jpeg);
    }
    if PNG_MAGIC.starts_with(bytes)
        || JPEG_MAGIC.starts_with(bytes)
        || DICOM_MAGIC.starts_with(bytes)
    {
        return Err(Refusal::new(Reason::Truncated));
    }
    Err(Refusal::new(Reason::NotAnImage))
}
