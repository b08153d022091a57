//! JPEG 2000 (lossless and lossy), through the pure-Rust port of OpenJPEG in strict mode.
//! Size, depth and sign are read from the codestream first (ISO 15444-1 A.5.1), so that nothing is allocated by a lie,
//! and a codestream without its end marker is refused: without it the library fills in.

use dicom_dictionary_std::tags;
use jpeg2k::{DecodeParameters, Image};

use super::{Shape, mismatch};
use crate::{Reason, Refusal};

const START_AND_SIZE: &[u8] = &[0xff, 0x4f, 0xff, 0x51];

pub(super) fn decode(bytes: &[u8], shape: Shape) -> Result<Vec<u16>, Refusal> {
    require_end(bytes)?;
    let size = read_size(bytes)?;
    if (size.width, size.height) != (shape.width, shape.height) {
        return Err(mismatch(format_args!(
            "{} x {} in the codestream",
            size.width, size.height
        )));
    }
    if size.components != 1 {
        return Err(mismatch(format_args!(
            "{} components in the codestream",
            size.components
        )));
    }
    if size.bits > shape.cell.bits_allocated || size.signed != shape.cell.signed {
        return Err(mismatch(format_args!(
            "another depth or sign in the codestream"
        )));
    }
    let failed = || Refusal::at(Reason::DecodeFailed, tags::PIXEL_DATA);
    let image = Image::from_bytes_with(bytes, DecodeParameters::new().strict(true))
        .map_err(|_| failed())?;
    let [component] = image.components() else {
        return Err(failed());
    };
    if (component.width(), component.height()) != (shape.width, shape.height) {
        return Err(failed());
    }
    // Two's complement in the low bits, as the other codecs give it.
    Ok(component.data().iter().map(|value| *value as u16).collect())
}

/// A whole codestream ends with the end marker; encapsulation may pad with zeros.
fn require_end(bytes: &[u8]) -> Result<(), Refusal> {
    let unpadded = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(&[][..], |last| &bytes[..=last]);
    if unpadded.ends_with(&[0xff, 0xd9]) {
        Ok(())
    } else {
        Err(Refusal::at(Reason::Truncated, tags::PIXEL_DATA))
    }
}

/// What the SIZ marker says.
struct Size {
    width: u32,
    height: u32,
    components: u16,
    bits: u16,
    signed: bool,
}

fn read_size(bytes: &[u8]) -> Result<Size, Refusal> {
    let malformed = || Refusal::at(Reason::DecodeFailed, tags::PIXEL_DATA);
    // DICOM carries bare codestreams; a JP2 wrapper could bring its own colour rules.
    let rest = bytes.strip_prefix(START_AND_SIZE).ok_or_else(malformed)?;
    let u16_at = |at: usize| {
        rest.get(at..at + 2)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
            .ok_or_else(malformed)
    };
    let u32_at = |at: usize| Ok(u32::from(u16_at(at)?) << 16 | u32::from(u16_at(at + 2)?));
    let (x_end, y_end, x_start, y_start) = (u32_at(4)?, u32_at(8)?, u32_at(12)?, u32_at(16)?);
    let components = u16_at(36)?;
    let [depth_and_sign, x_step, y_step] = rest
        .get(38..41)
        .and_then(|b| b.try_into().ok())
        .ok_or_else(malformed)?;
    if (x_step, y_step) != (1, 1) {
        return Err(malformed());
    }
    Ok(Size {
        width: x_end.checked_sub(x_start).ok_or_else(malformed)?,
        height: y_end.checked_sub(y_start).ok_or_else(malformed)?,
        components,
        bits: u16::from(depth_and_sign & 0x7f) + 1,
        signed: depth_and_sign & 0x80 != 0,
    })
}
