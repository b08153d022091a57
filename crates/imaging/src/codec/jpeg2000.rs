//! JPEG 2000 and its high-throughput form (lossless and lossy).
//! Size, depth and sign are read from the codestream first (ISO 15444-1 A.5.1), so that nothing is allocated by a lie,
//! and a codestream without its end marker is refused: without it the library fills in.
//! Who decodes, and in which process, the caller decides (`codestream`).

use dicom_dictionary_std::tags;

use super::{Cells, check_precision, check_size, mismatch, refuse_made_of_8_bits};
use crate::admission::{Cell, Image};
use crate::{CodestreamError, Photometric, Reason, Refusal};

const START_AND_SIZE: &[u8] = &[0xff, 0x4f, 0xff, 0x51];

pub(super) fn decode(bytes: &[u8], image: &Image) -> Result<Cells, Refusal> {
    require_end(bytes)?;
    let size = read_size(bytes)?;
    check_size(size.width, size.height, image)?;
    if u32::from(size.components) != image.samples {
        return Err(mismatch(format_args!(
            "{} components in the codestream",
            size.components
        )));
    }
    check_precision(size.bits, image)?;
    refuse_made_of_8_bits(size.bits, image)?;
    let Cell {
        bits_stored,
        signed,
        ..
    } = image.cell;
    // An unsigned codestream of exactly the stored bits holds the same bits as a signed one; nothing else is sure.
    if size.signed != signed && (size.signed || size.bits != bits_stored) {
        return Err(mismatch(format_args!(
            "another depth or sign in the codestream"
        )));
    }
    check_transform(bytes, image)?;
    let failed = || Refusal::at(Reason::DecodeFailed, tags::PIXEL_DATA);
    let planes = image.codestreams.decode(bytes).map_err(|error| {
        let reason = match error {
            CodestreamError::Broken => Reason::DecodeFailed,
            CodestreamError::Crashed => Reason::DecoderCrashed,
            CodestreamError::TooSlow => Reason::DecoderTooSlow,
            CodestreamError::Overdue => Reason::DecoderOverdue,
            // No fault of the file either; nobody hears of it.
            CodestreamError::Unavailable | CodestreamError::Stopped => Reason::DecoderUnavailable,
        };
        Refusal::at(reason, tags::PIXEL_DATA)
    })?;
    let right = planes
        .iter()
        .all(|plane| (plane.width, plane.height) == (image.columns, image.rows));
    let pixels = image.rows as usize * image.columns as usize;
    let whole = planes.iter().all(|plane| plane.samples.len() == pixels);
    if planes.len() != image.samples as usize || !right || !whole {
        return Err(failed());
    }
    // Two's complement in the allocated bits, as the other codecs give it.
    let mask = u32::MAX >> (32 - image.cell.bits_allocated);
    let values = match planes.as_slice() {
        [plane] => plane
            .samples
            .iter()
            .map(|value| *value as u32 & mask)
            .collect(),
        planes => (0..pixels)
            .flat_map(|at| {
                planes
                    .iter()
                    .map(move |plane| plane.samples[at] as u32 & mask)
            })
            .collect(),
    };
    Ok(Cells {
        values,
        // The decoder has undone the codestream's own colour transform (ISO 15444-1 annex G).
        rgb: matches!(
            image.photometric,
            Photometric::YbrRct | Photometric::YbrIct | Photometric::Rgb
        ),
    })
}

/// A stream that transforms its colours is one of the photometric interpretations that say so (PS3.5 8.2.4), else either its
/// colours or the header's are others than they are called. Of RGB writers do either.
fn check_transform(bytes: &[u8], image: &Image) -> Result<(), Refusal> {
    let expected = match image.photometric {
        Photometric::YbrRct | Photometric::YbrIct => true,
        Photometric::YbrFull | Photometric::YbrFull422 => false,
        _ => return Ok(()),
    };
    if is_transformed(bytes)? == expected {
        Ok(())
    } else {
        Err(mismatch(format_args!(
            "other colours in the codestream than the header says"
        )))
    }
}

/// Whether the default coding style (COD, ISO 15444-1 A.6.1) has a transform of components.
fn is_transformed(bytes: &[u8]) -> Result<bool, Refusal> {
    const CODING_STYLE: [u8; 2] = [0xff, 0x52];
    /// Of the style's own byte, progression and layers.
    const TRANSFORM_AT: usize = 2 + 2 + 1 + 1 + 2;
    let malformed = || Refusal::at(Reason::DecodeFailed, tags::PIXEL_DATA);
    let mut rest = bytes.get(2..).ok_or_else(malformed)?;
    loop {
        let &[0xff, marker, high, low, ..] = rest else {
            return Err(malformed());
        };
        if [0xff, marker] == CODING_STYLE {
            let transform = rest.get(TRANSFORM_AT).ok_or_else(malformed)?;
            return Ok(*transform != 0);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        rest = rest.get(2 + length..).ok_or_else(malformed)?;
    }
}

/// A whole codestream ends with the end marker; encapsulation pads with zeros, or to an even length with any byte.
fn require_end(bytes: &[u8]) -> Result<(), Refusal> {
    let unpadded = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(&[][..], |last| &bytes[..=last]);
    match unpadded {
        [.., 0xff, 0xd9] | [.., 0xff, 0xd9, _] => Ok(()),
        _ => Err(Refusal::at(Reason::Truncated, tags::PIXEL_DATA)),
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
    let parts = rest
        .get(38..38 + usize::from(components) * 3)
        .ok_or_else(malformed)?;
    // Every component as deep as the first, and as fine as the image.
    let [depth_and_sign, 1, 1] = *parts.get(..3).ok_or_else(malformed)? else {
        return Err(malformed());
    };
    if parts
        .chunks_exact(3)
        .any(|part| part != [depth_and_sign, 1, 1])
    {
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

#[cfg(test)]
mod tests {
    use super::is_transformed;

    /// Start, a comment, the coding style with this transform, and what follows.
    fn stream(transform: u8) -> Vec<u8> {
        let comment = b"\xff\x64\0\x05\0\x01x";
        let style = [0xff, 0x52, 0, 12, 0, 2, 0, 1, transform, 5, 4, 4, 0, 1];
        [&b"\xff\x4f"[..], comment, &style, b"\xff\x90"].concat()
    }

    #[test]
    fn the_transform_of_colours_is_found() {
        assert!(is_transformed(&stream(1)).unwrap());
        assert!(!is_transformed(&stream(0)).unwrap());
        for end in 0..stream(1).len() - 8 {
            assert!(is_transformed(&stream(1)[..end]).is_err(), "{end}");
        }
    }
}
