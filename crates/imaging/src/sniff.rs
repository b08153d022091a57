//! Tells formats apart by their first bytes; names and extensions are never believed.

use crate::elements::VrEncoding;
use crate::{Format, Reason, Refusal, nifti, tiff};

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
        || bare_encoding(bytes).is_some()
    {
        return Ok(Format::Dicom);
    }
    if bytes.starts_with(PNG_MAGIC) {
        return Ok(Format::Png);
    }
    if bytes.starts_with(JPEG_MAGIC) {
        return Ok(Format::Jpeg);
    }
    if nifti::is_nifti(bytes) {
        return Ok(Format::Nifti);
    }
    if tiff::is_tiff(bytes) {
        return Ok(Format::Tiff);
    }
    if PNG_MAGIC.starts_with(bytes)
        || JPEG_MAGIC.starts_with(bytes)
        || DICOM_MAGIC.starts_with(bytes)
    {
        return Err(Refusal::new(Reason::Truncated));
    }
    Err(Refusal::new(Reason::NotAnImage))
}

/// How a bare data set is written, one without preamble and file meta information: its first element is in group 0008,
/// by the standard below (0008,0020), and its header has one of three forms.
pub(crate) fn bare_encoding(bytes: &[u8]) -> Option<VrEncoding> {
    // Value representations of the elements (0008,0000) to (0008,001F).
    const FIRST: &[&[u8]] = &[b"UL", b"CS", b"UI", b"DA", b"TM", b"SH", b"LO"];
    let head: &[u8; 8] = bytes.first_chunk()?;
    let known = FIRST.contains(&&head[4..6]);
    match head {
        [0x08, 0x00, 0x00..=0x1f, 0x00, ..] if known => Some(VrEncoding::Explicit),
        [0x00, 0x08, 0x00, 0x00..=0x1f, ..] if known => Some(VrEncoding::ExplicitBigEndian),
        // A length below 64 KiB.
        [0x08, 0x00, 0x00..=0x1f, 0x00, _, _, 0x00, 0x00] => Some(VrEncoding::Implicit),
        _ => None,
    }
}
