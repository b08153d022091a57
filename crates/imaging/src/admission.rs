//! Decides from the header alone whether a file is known to come out right: Admit with a plan, or Refuse with a reason.
//! Nothing here touches a pixel or allocates by a size the file claims.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};

use crate::header::{Header, PixelData};
use crate::voi::{Voi, read_voi};
use crate::{Limits, Modality, Note, Photometric, Reason, Refusal};

/// How to decode an admitted file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) codec: Codec,
    pub(crate) modality: Modality,
    pub(crate) photometric: Photometric,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) cell: Cell,
    pub(crate) rescale: Rescale,
    pub(crate) voi: Voi,
    /// Stored values, smallest to largest, that are padding.
    pub(crate) padding: Option<(i32, i32)>,
    /// Bits of a cell that embedded overlays declare as theirs; above those stored, only these may be set.
    pub(crate) overlay_bits: u16,
    pub(crate) notes: Vec<Note>,
}

/// How the pixel data is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Native,
    Rle,
    JpegBaseline,
    JpegLossless,
    Jpeg2000,
}

/// How a stored value lies in its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// 8 or 16.
    pub(crate) bits_allocated: u16,
    /// 1 to `bits_allocated`, in the low bits.
    pub(crate) bits_stored: u16,
    pub(crate) signed: bool,
}

impl Cell {
    pub(crate) fn mask(self) -> u16 {
        u16::MAX >> (16 - self.bits_stored)
    }

    /// The stored value of a cell, high bits left out, sign extended.
    pub(crate) fn value(self, raw: u16) -> i32 {
        let low = i32::from(raw & self.mask());
        if self.signed && low >> (self.bits_stored - 1) & 1 == 1 {
            low - (1 << self.bits_stored)
        } else {
            low
        }
    }
}

/// Stored value → modality value: `slope * stored + intercept` (PS3.3 C.11.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rescale {
    pub(crate) slope: f64,
    pub(crate) intercept: f64,
}

/// Decides.
pub(crate) fn admit(header: &Header, limits: &Limits) -> Result<Plan, Refusal> {
    let pixel_data = header
        .pixel_data
        .as_ref()
        .ok_or_else(|| Refusal::at(Reason::NoPixelData, tags::PIXEL_DATA))?;
    let modality = modality(header)?;
    refuse_raw_and_multi_frame(header)?;
    let codec = codec(header, pixel_data)?;
    let photometric = photometric(header)?;
    let cell = cell(header, codec)?;
    let (rows, columns) = size(header, limits)?;
    refuse_non_square(header)?;
    check_length(
        pixel_data,
        codec,
        cell,
        u64::from(rows) * u64::from(columns),
        limits,
    )?;
    let rescale = rescale(header)?;
    refuse_other_luts(header, photometric)?;
    let mut notes = notes(header, codec, photometric)?;
    let voi = read_voi(header, cell, rescale, &mut notes)?;
    Ok(Plan {
        codec,
        modality,
        photometric,
        rows,
        columns,
        cell,
        rescale,
        voi,
        padding: padding(header, cell)?,
        overlay_bits: header.overlay_bits,
        notes,
    })
}

fn missing(tag: Tag) -> Refusal {
    Refusal::at(Reason::MissingAttribute, tag)
}

fn modality(header: &Header) -> Result<Modality, Refusal> {
    /// Defined terms of (0008,0060) that a refusal may name; any other text could be anything, so it is not repeated.
    const OTHER: &[&str] = &[
        "CT", "MR", "MG", "US", "XA", "RF", "NM", "PT", "OT", "SC", "IO", "PX", "SM", "GM", "ES",
        "XC", "OP", "OPT", "OCT", "BMD", "IVUS", "BI", "DG", "LS", "RG", "HC", "ECG", "SEG", "SR",
        "PR", "KO", "DOC", "RTIMAGE", "RTDOSE", "RTPLAN", "RTSTRUCT", "REG",
    ];
    let text = header
        .text(tags::MODALITY, VR::CS)?
        .ok_or_else(|| missing(tags::MODALITY))?;
    if let Some(modality) = Modality::ALL
        .iter()
        .find(|modality| modality.as_str() == text)
    {
        return Ok(*modality);
    }
    let known = OTHER
        .iter()
        .find(|other| **other == text)
        .unwrap_or(&"an unlisted modality");
    Err(Refusal::at(Reason::ModalityNotSupportedYet, tags::MODALITY).found(known))
}

fn refuse_raw_and_multi_frame(header: &Header) -> Result<(), Refusal> {
    let sop_class = header.text(tags::SOP_CLASS_UID, VR::UI)?;
    let intent = header.text(tags::PRESENTATION_INTENT_TYPE, VR::CS)?;
    if sop_class.as_deref() == Some(uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PROCESSING)
        || intent.as_deref() == Some("FOR PROCESSING")
    {
        return Err(Refusal::at(
            Reason::NotForPresentation,
            tags::PRESENTATION_INTENT_TYPE,
        ));
    }
    match header
        .text(tags::NUMBER_OF_FRAMES, VR::IS)?
        .map(|text| text.parse::<i64>())
    {
        None | Some(Ok(1)) => Ok(()),
        Some(Ok(frames)) if frames > 1 => Err(Refusal::at(
            Reason::MultiFrameNotSupportedYet,
            tags::NUMBER_OF_FRAMES,
        )
        .found(frames)),
        Some(_) => Err(Refusal::at(
            Reason::InvalidAttribute,
            tags::NUMBER_OF_FRAMES,
        )),
    }
}

fn codec(header: &Header, pixel_data: &PixelData) -> Result<Codec, Refusal> {
    let syntax = header.transfer_syntax.as_str();
    let codec = match syntax {
        uids::IMPLICIT_VR_LITTLE_ENDIAN
        | uids::EXPLICIT_VR_LITTLE_ENDIAN
        | uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => Codec::Native,
        uids::RLE_LOSSLESS => Codec::Rle,
        uids::JPEG_BASELINE8_BIT => Codec::JpegBaseline,
        uids::JPEG_LOSSLESS | uids::JPEG_LOSSLESS_SV1 => Codec::JpegLossless,
        uids::JPEG2000_LOSSLESS | uids::JPEG2000 => Codec::Jpeg2000,
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

fn photometric(header: &Header) -> Result<Photometric, Refusal> {
    const OTHER: &[&str] = &[
        "RGB",
        "PALETTE COLOR",
        "YBR_FULL",
        "YBR_FULL_422",
        "YBR_PARTIAL_420",
        "YBR_PARTIAL_422",
        "YBR_RCT",
        "YBR_ICT",
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
    match header
        .u16(tags::SAMPLES_PER_PIXEL)?
        .ok_or_else(|| missing(tags::SAMPLES_PER_PIXEL))?
    {
        1 => Ok(*photometric),
        samples => {
            Err(Refusal::at(Reason::UnsupportedPhotometric, tags::SAMPLES_PER_PIXEL).found(samples))
        }
    }
}

fn cell(header: &Header, codec: Codec) -> Result<Cell, Refusal> {
    let required = |tag| header.u16(tag)?.ok_or_else(|| missing(tag));
    let refuse = |tag, found: u16| Err(Refusal::at(Reason::UnsupportedBits, tag).found(found));
    let bits_allocated = required(tags::BITS_ALLOCATED)?;
    if !matches!(bits_allocated, 8 | 16) || (codec == Codec::JpegBaseline && bits_allocated != 8) {
        return refuse(tags::BITS_ALLOCATED, bits_allocated);
    }
    let bits_stored = required(tags::BITS_STORED)?;
    if bits_stored == 0
        || bits_stored > bits_allocated
        || (codec == Codec::JpegBaseline && bits_stored != 8)
    {
        return refuse(tags::BITS_STORED, bits_stored);
    }
    let high_bit = required(tags::HIGH_BIT)?;
    if high_bit != bits_stored - 1 {
        return refuse(tags::HIGH_BIT, high_bit);
    }
    let signed = match required(tags::PIXEL_REPRESENTATION)? {
        0 => false,
        // Baseline JPEG samples are unsigned by definition; a signed header over them is a contradiction.
        1 if codec != Codec::JpegBaseline => true,
        other => return refuse(tags::PIXEL_REPRESENTATION, other),
    };
    Ok(Cell {
        bits_allocated,
        bits_stored,
        signed,
    })
}

fn size(header: &Header, limits: &Limits) -> Result<(u32, u32), Refusal> {
    let side = |tag| match header.u16(tag)?.ok_or_else(|| missing(tag))? {
        0 => Err(Refusal::at(Reason::InvalidAttribute, tag).found(0)),
        pixels => Ok(u32::from(pixels)),
    };
    let (rows, columns) = (side(tags::ROWS)?, side(tags::COLUMNS)?);
    limits.check_pixels(columns, rows)?;
    Ok((rows, columns))
}

fn refuse_non_square(header: &Header) -> Result<(), Refusal> {
    const RATIO_ERROR_MAX: f64 = 0.01;
    for tag in [tags::PIXEL_SPACING, tags::IMAGER_PIXEL_SPACING] {
        check_ratio(&header.decimals(tag, Reason::InvalidAttribute)?, tag)?;
    }
    let tag = tags::PIXEL_ASPECT_RATIO;
    let numbers = match header.element(tag) {
        Some(element) => element
            .to_multi_float64()
            .map_err(|_| Refusal::at(Reason::InvalidAttribute, tag))?,
        None => Vec::new(),
    };
    return check_ratio(&numbers, tag);

    fn check_ratio(numbers: &[f64], tag: Tag) -> Result<(), Refusal> {
        match numbers {
            // Writers that do not know the spacing leave it out or put zeros.
            [] | [0.0, 0.0] => Ok(()),
            [vertical, horizontal] if *vertical > 0.0 && *horizontal > 0.0 => {
                if (vertical / horizontal - 1.0).abs() <= RATIO_ERROR_MAX {
                    Ok(())
                } else {
                    Err(Refusal::at(Reason::NonSquarePixels, tag)
                        .found(format_args!("{vertical}:{horizontal}")))
                }
            }
            _ => Err(Refusal::at(Reason::InvalidAttribute, tag)),
        }
    }
}

/// Native pixel data has exactly the length the header implies; compressed data must not unpack beyond the ratio.
fn check_length(
    data: &PixelData,
    codec: Codec,
    cell: Cell,
    pixels: u64,
    limits: &Limits,
) -> Result<(), Refusal> {
    let expected = pixels * u64::from(cell.bits_allocated / 8);
    let found = data.value.len() as u64;
    if codec == Codec::Native {
        // An odd length is padded to even (PS3.5 8.1.1).
        if found != expected && found != expected + expected % 2 {
            return Err(Refusal::at(Reason::PixelDataMismatch, tags::PIXEL_DATA)
                .found(format_args!("{found} bytes instead of {expected}")));
        }
        return Ok(());
    }
    limits.check_ratio(found, expected)
}

fn rescale(header: &Header) -> Result<Rescale, Refusal> {
    let one = |tag| match header.decimals(tag, Reason::RescaleUnknownType)?.as_slice() {
        [] => Ok(None),
        [number] => Ok(Some(*number)),
        _ => Err(Refusal::at(Reason::InvalidRescale, tag)),
    };
    match (one(tags::RESCALE_SLOPE)?, one(tags::RESCALE_INTERCEPT)?) {
        (None, None) => Ok(Rescale {
            slope: 1.0,
            intercept: 0.0,
        }),
        (Some(slope), Some(intercept)) if slope != 0.0 => Ok(Rescale { slope, intercept }),
        (None, Some(_)) | (Some(_), Some(_)) => {
            Err(Refusal::at(Reason::InvalidRescale, tags::RESCALE_SLOPE))
        }
        (Some(_), None) => Err(Refusal::at(Reason::InvalidRescale, tags::RESCALE_INTERCEPT)),
    }
}

fn refuse_other_luts(header: &Header, photometric: Photometric) -> Result<(), Refusal> {
    if header.modality_lut {
        return Err(Refusal::at(
            Reason::UnsupportedLut,
            tags::MODALITY_LUT_SEQUENCE,
        ));
    }
    if header.presentation_lut {
        return Err(Refusal::at(
            Reason::UnsupportedLut,
            tags::PRESENTATION_LUT_SEQUENCE,
        ));
    }
    // INVERSE goes with MONOCHROME1 and says the same thing (PS3.3 C.8.11.3.1.2), so it is not a second inversion;
    // where the two contradict each other, there is no known right reading.
    let shape = header.text(tags::PRESENTATION_LUT_SHAPE, VR::CS)?;
    match (photometric, shape.as_deref()) {
        (_, None)
        | (Photometric::Monochrome1, Some("INVERSE"))
        | (Photometric::Monochrome2, Some("IDENTITY")) => Ok(()),
        _ => Err(Refusal::at(
            Reason::UnsupportedLut,
            tags::PRESENTATION_LUT_SHAPE,
        )),
    }
}

fn padding(header: &Header, cell: Cell) -> Result<Option<(i32, i32)>, Refusal> {
    let value = |tag| -> Result<Option<i32>, Refusal> {
        let Some(element) = header.element(tag) else {
            return Ok(None);
        };
        let invalid = || Refusal::at(Reason::InvalidAttribute, tag);
        if !matches!(element.vr(), VR::US | VR::SS) {
            return Err(invalid());
        }
        let number: i32 = element.to_int().map_err(|_| invalid())?;
        // Pixel Representation decides the sign, whatever the writer chose as VR; the bits are the same.
        Ok(Some(if cell.signed {
            i32::from(number as u16 as i16)
        } else {
            i32::from(number as u16)
        }))
    };
    let first = value(tags::PIXEL_PADDING_VALUE)?;
    let last = value(tags::PIXEL_PADDING_RANGE_LIMIT)?;
    Ok(first.map(|first| {
        let last = last.unwrap_or(first);
        (first.min(last), first.max(last))
    }))
}

fn notes(header: &Header, codec: Codec, photometric: Photometric) -> Result<Vec<Note>, Refusal> {
    let is = |tag, word| {
        header
            .text(tag, VR::CS)
            .map(|text| text.as_deref() == Some(word))
    };
    let mut notes = Vec::new();
    if !header.preamble {
        notes.push(Note::NoPreamble);
    }
    if header.text(tags::SOP_CLASS_UID, VR::UI)?.as_deref()
        == Some(uids::SECONDARY_CAPTURE_IMAGE_STORAGE)
    {
        notes.push(Note::SecondaryCapture);
    }
    if is(tags::LOSSY_IMAGE_COMPRESSION, "01")? || codec == Codec::JpegBaseline {
        notes.push(Note::LossyCompressed);
    }
    if is(tags::BURNED_IN_ANNOTATION, "YES")? {
        notes.push(Note::BurnedInAnnotation);
    }
    if header.overlays {
        notes.push(Note::OverlaysNotDrawn);
    }
    if photometric == Photometric::Monochrome1 {
        notes.push(Note::Inverted);
    }
    Ok(notes)
}
