//! Decides from the header alone whether a file's pixels are known to come out right: an [`Image`] that says how to decode
//! them, or a refusal with a reason. Nothing here touches a pixel or allocates by a size the file claims.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};

use crate::colour::Palette;
use crate::header::{EXPLICIT_VR_BIG_ENDIAN, Header, PixelData};
use crate::{Decoder, Limits, Photometric, Reason, Refusal};

/// How to decode the frames of an admitted file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    pub(crate) codec: Codec,
    /// Whether the transfer syntax is one of those for compression with loss.
    pub(crate) may_lose: bool,
    pub(crate) photometric: Photometric,
    /// 1 or 3.
    pub(crate) samples: u32,
    /// Native samples lie plane by plane.
    pub(crate) planar: bool,
    pub(crate) big_endian: bool,
    /// Native 8-bit cells of a big-endian file are written as words.
    pub(crate) word_swapped: bool,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) frames: u32,
    pub(crate) cell: Cell,
    /// Bits of a cell that embedded overlays declare as theirs; above those stored, only these may be set.
    pub(crate) overlay_bits: u32,
    pub(crate) palette: Option<Palette>,
    /// Who decodes JPEG 2000.
    pub(crate) codestreams: Decoder,
}

/// How the pixel data is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Native,
    Rle,
    JpegBaseline,
    JpegExtended,
    JpegLossless,
    JpegLs,
    Jpeg2000,
}

/// How a stored value lies in its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// 1, 8, 16 or 32.
    pub(crate) bits_allocated: u16,
    /// 1 to `bits_allocated`, in the low bits.
    pub(crate) bits_stored: u16,
    pub(crate) signed: bool,
}

impl Cell {
    pub(crate) fn mask(self) -> u32 {
        u32::MAX >> (32 - self.bits_stored)
    }

    /// The stored value of a cell, high bits left out, sign extended.
    pub(crate) fn value(self, raw: u32) -> i64 {
        let low = i64::from(raw & self.mask());
        if self.signed && low >> (self.bits_stored - 1) & 1 == 1 {
            low - (1 << self.bits_stored)
        } else {
            low
        }
    }

    /// Smallest and largest stored value that there can be.
    pub(crate) fn range(self) -> (i64, i64) {
        let low = if self.signed {
            -(1_i64 << (self.bits_stored - 1))
        } else {
            0
        };
        (low, low + (1_i64 << self.bits_stored) - 1)
    }
}

impl Image {
    /// Cells of a frame.
    pub(crate) fn values(&self) -> usize {
        self.rows as usize * self.columns as usize * self.samples as usize
    }

    /// Cells of a native frame as stored: chrominance may be at half the width.
    pub(crate) fn stored_values(&self) -> usize {
        if self.photometric == Photometric::YbrFull422 && self.codec == Codec::Native {
            self.values() / 3 * 2
        } else {
            self.values()
        }
    }
}

/// Decides.
pub(crate) fn admit(header: &Header<'_>, limits: &Limits) -> Result<Image, Refusal> {
    let Some(pixel_data) = header.pixel_data else {
        return Err(no_image(header));
    };
    let codec = codec(header, &pixel_data)?;
    let (photometric, samples) = photometric(header, codec)?;
    let cell = cell(header, codec, samples)?;
    let (rows, columns) = size(header, limits)?;
    let frames = frames(header, limits)?;
    let palette = match photometric {
        Photometric::PaletteColor => Some(Palette::read(&header.elements, cell.signed)?),
        _ => None,
    };
    let planar = match header.u16(tags::PLANAR_CONFIGURATION)? {
        // JPEG 2000 and the JPEG family bring their own order; RLE is always by plane.
        _ if samples == 1 || codec != Codec::Native => false,
        Some(0) | None => false,
        Some(1) => true,
        Some(other) => {
            return Err(
                Refusal::at(Reason::InvalidAttribute, tags::PLANAR_CONFIGURATION).found(other),
            );
        }
    };
    let image = Image {
        codec,
        may_lose: may_lose(header, codec),
        photometric,
        samples,
        planar,
        big_endian: header.transfer_syntax == EXPLICIT_VR_BIG_ENDIAN,
        word_swapped: pixel_data.words,
        rows,
        columns,
        frames,
        cell,
        overlay_bits: header.overlay_bits,
        palette,
        codestreams: limits.codestreams,
    };
    if photometric == Photometric::YbrFull422
        && codec == Codec::Native
        && (planar || columns % 2 != 0 || cell.bits_allocated != 8)
    {
        return Err(Refusal::at(
            Reason::UnsupportedPhotometric,
            tags::PHOTOMETRIC_INTERPRETATION,
        ));
    }
    check_length(&pixel_data, &image, limits)?;
    Ok(image)
}

/// Why a file without pixels holds no image. A presentation state is told apart, since a viewer may show the images that it is of by
/// its window, turned, mirrored or inverted.
fn no_image(header: &Header<'_>) -> Refusal {
    let class = header.text(tags::SOP_CLASS_UID, VR::UI).ok().flatten();
    if class.is_some_and(is_presentation_state) {
        Refusal::at(Reason::PresentationState, tags::SOP_CLASS_UID)
    } else {
        Refusal::at(Reason::NoPixelData, tags::PIXEL_DATA)
    }
}

/// Whether a SOP class is one of the presentation states (PS3.4 B.5).
pub(crate) fn is_presentation_state(class: &str) -> bool {
    class.starts_with("1.2.840.10008.5.1.4.1.1.11.")
}

pub(crate) fn missing(tag: Tag) -> Refusal {
    Refusal::at(Reason::MissingAttribute, tag)
}

fn codec(header: &Header<'_>, pixel_data: &PixelData<'_>) -> Result<Codec, Refusal> {
    let syntax = header.transfer_syntax;
    let codec = match syntax {
        uids::IMPLICIT_VR_LITTLE_ENDIAN
        | uids::EXPLICIT_VR_LITTLE_ENDIAN
        | EXPLICIT_VR_BIG_ENDIAN
        | uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => Codec::Native,
        uids::RLE_LOSSLESS => Codec::Rle,
        uids::JPEG_BASELINE8_BIT => Codec::JpegBaseline,
        uids::JPEG_EXTENDED12_BIT => Codec::JpegExtended,
        uids::JPEG_LOSSLESS | uids::JPEG_LOSSLESS_SV1 => Codec::JpegLossless,
        uids::JPEGLS_LOSSLESS | uids::JPEGLS_NEAR_LOSSLESS => Codec::JpegLs,
        uids::JPEG2000_LOSSLESS
        | uids::JPEG2000
        | uids::HTJ2K_LOSSLESS
        | uids::HTJ2K_LOSSLESS_RPCL
        | uids::HTJ2K => Codec::Jpeg2000,
        _ => {
            let reason = if is_video(syntax) {
                Reason::VideoNotSupported
            } else {
                Reason::UnsupportedTransferSyntax
            };
            let standard = syntax.len() <= 64
                && syntax.starts_with("1.2.840.10008.1.2")
                && syntax.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let found = if standard {
                syntax
            } else {
                "a transfer syntax that is not DICOM's"
            };
            return Err(Refusal::at(reason, tags::TRANSFER_SYNTAX_UID).found(found));
        }
    };
    if pixel_data.floating {
        return Err(Refusal::at(Reason::UnsupportedBits, tags::FLOAT_PIXEL_DATA));
    }
    if pixel_data.encapsulated != (codec != Codec::Native) {
        return Err(Refusal::at(Reason::Malformed, tags::PIXEL_DATA));
    }
    Ok(codec)
}

/// MPEG-2, MPEG-4, HEVC and the streaming syntaxes of PS3.5 10.
fn is_video(syntax: &str) -> bool {
    [
        "1.2.840.10008.1.2.4.100",
        "1.2.840.10008.1.2.4.101",
        "1.2.840.10008.1.2.7.",
    ]
    .iter()
    .any(|p| syntax.starts_with(p))
        || (102..=108).any(|n| syntax.starts_with(&format!("1.2.840.10008.1.2.4.{n}")))
}

fn photometric(header: &Header<'_>, codec: Codec) -> Result<(Photometric, u32), Refusal> {
    const OTHER: &[&str] = &[
        "YBR_PARTIAL_420",
        "YBR_PARTIAL_422",
        "HSV",
        "ARGB",
        "CMYK",
        "XYB",
    ];
    let tag = tags::PHOTOMETRIC_INTERPRETATION;
    let text = header.text(tag, VR::CS)?.ok_or_else(|| missing(tag))?;
    let Some(photometric) = Photometric::ALL.iter().find(|p| p.as_str() == text) else {
        let known = OTHER
            .iter()
            .find(|other| **other == text)
            .unwrap_or(&"an unlisted interpretation");
        return Err(Refusal::at(Reason::UnsupportedPhotometric, tag).found(known));
    };
    let contrary = match photometric {
        // Only the decoder of JPEG 2000 undoes its transforms (PS3.5 8.2); elsewhere nothing says what the samples are.
        Photometric::YbrRct | Photometric::YbrIct if codec != Codec::Jpeg2000 => {
            Some("colours of JPEG 2000 in another transfer syntax")
        }
        // The number beside the right one names another colour (PS3.5 8.2).
        Photometric::PaletteColor if may_lose(header, codec) => {
            Some("numbers of colours compressed with loss")
        }
        _ => None,
    };
    if let Some(found) = contrary {
        return Err(Refusal::at(Reason::UnsupportedPhotometric, tag).found(found));
    }
    let samples = header
        .u16(tags::SAMPLES_PER_PIXEL)?
        .ok_or_else(|| missing(tags::SAMPLES_PER_PIXEL))?;
    if samples == photometric.samples() {
        Ok((*photometric, u32::from(samples)))
    } else {
        Err(Refusal::at(Reason::UnsupportedPhotometric, tags::SAMPLES_PER_PIXEL).found(samples))
    }
}

fn cell(header: &Header<'_>, codec: Codec, samples: u32) -> Result<Cell, Refusal> {
    let required = |tag| header.u16(tag)?.ok_or_else(|| missing(tag));
    let refuse = |tag, found: u16| Err(Refusal::at(Reason::UnsupportedBits, tag).found(found));
    let bits_allocated = required(tags::BITS_ALLOCATED)?;
    let allowed: &[u16] = match codec {
        Codec::Native if samples == 1 => &[1, 8, 16, 32],
        Codec::Native | Codec::Rle => &[8, 16, 32],
        _ => &[8, 16],
    };
    if !allowed.contains(&bits_allocated) {
        return refuse(tags::BITS_ALLOCATED, bits_allocated);
    }
    let bits_stored = required(tags::BITS_STORED)?;
    if bits_stored == 0 || bits_stored > bits_allocated {
        return refuse(tags::BITS_STORED, bits_stored);
    }
    let high_bit = required(tags::HIGH_BIT)?;
    if high_bit != bits_stored - 1 {
        return refuse(tags::HIGH_BIT, high_bit);
    }
    let signed = match required(tags::PIXEL_REPRESENTATION)? {
        0 => false,
        // DCT samples are unsigned by definition, as colours are; a signed header over them is a contradiction.
        1 if !is_dct(codec) && samples == 1 => true,
        other => return refuse(tags::PIXEL_REPRESENTATION, other),
    };
    Ok(Cell {
        bits_allocated,
        bits_stored,
        signed,
    })
}

/// Whether the transfer syntax is one of those for compression with loss.
fn may_lose(header: &Header<'_>, codec: Codec) -> bool {
    let lossy = [uids::JPEGLS_NEAR_LOSSLESS, uids::JPEG2000, uids::HTJ2K];
    is_dct(codec) || lossy.contains(&header.transfer_syntax)
}

/// Whether the codec loses something of every image.
pub(crate) fn is_dct(codec: Codec) -> bool {
    matches!(codec, Codec::JpegBaseline | Codec::JpegExtended)
}

fn size(header: &Header<'_>, limits: &Limits) -> Result<(u32, u32), Refusal> {
    let side = |tag| match header.u16(tag)?.ok_or_else(|| missing(tag))? {
        0 => Err(Refusal::at(Reason::InvalidAttribute, tag).found(0)),
        pixels => Ok(u32::from(pixels)),
    };
    let (rows, columns) = (side(tags::ROWS)?, side(tags::COLUMNS)?);
    limits.check_pixels(columns, rows)?;
    Ok((rows, columns))
}

fn frames(header: &Header<'_>, limits: &Limits) -> Result<u32, Refusal> {
    let tag = tags::NUMBER_OF_FRAMES;
    match header.elements.integer(tag)? {
        None => Ok(1),
        Some(frames) if frames > i64::from(limits.frames_max) => {
            Err(Refusal::at(Reason::TooManyFrames, tag).found(frames))
        }
        Some(frames) if frames >= 1 => Ok(frames as u32),
        Some(frames) => Err(Refusal::at(Reason::InvalidAttribute, tag).found(frames)),
    }
}

/// Native pixel data has the length the header implies; compressed data must not unpack beyond the ratio.
fn check_length(data: &PixelData<'_>, image: &Image, limits: &Limits) -> Result<(), Refusal> {
    // At most 2^32 pixels of 12 bytes, for 2^32 frames at the very most.
    let bits = image.stored_values() as u128
        * u128::from(image.cell.bits_allocated)
        * u128::from(image.frames);
    let expected = bits.div_ceil(8);
    let found = data.value.len() as u128;
    if image.codec == Codec::Native {
        // Padding of zeros behind the last cell, to an even length (PS3.5 8.1.1) or beyond, holds nothing.
        let padded = found > expected && data.value[expected as usize..].iter().all(|b| *b == 0);
        if found != expected && !padded && found != expected + expected % 2 {
            return Err(Refusal::at(Reason::PixelDataMismatch, tags::PIXEL_DATA)
                .found(format_args!("{found} bytes instead of {expected}")));
        }
        return Ok(());
    }
    limits.check_ratio(
        u64::try_from(found).unwrap_or(u64::MAX),
        u64::try_from(expected).unwrap_or(u64::MAX),
    )
}
