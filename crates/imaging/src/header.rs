//! Opens a DICOM file: file meta information, the header elements that decoding needs, and the bytes of the pixel data.
//! Only the elements of [`KEPT`] are parsed; names, identifiers and private elements are stepped over unread.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::ops::Range;

use dicom_core::header::HasLength;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use dicom_object::mem::InMemElement;
use dicom_object::meta::FileMetaTable;
use dicom_transfer_syntax_registry::entries;

use crate::elements::{Elements, Extent, VrEncoding};
use crate::sniff::{DICOM_MAGIC, META_START, PREAMBLE_BYTES};
use crate::{Limits, Reason, Refusal};

/// The header elements that are parsed.
const KEPT: &[Tag] = &[
    tags::SOP_CLASS_UID,
    tags::MODALITY,
    tags::PRESENTATION_INTENT_TYPE,
    tags::PATIENT_SEX,
    tags::PATIENT_AGE,
    tags::IMAGER_PIXEL_SPACING,
    tags::VIEW_POSITION,
    tags::SAMPLES_PER_PIXEL,
    tags::PHOTOMETRIC_INTERPRETATION,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::PIXEL_SPACING,
    tags::PIXEL_ASPECT_RATIO,
    tags::BITS_ALLOCATED,
    tags::BITS_STORED,
    tags::HIGH_BIT,
    tags::PIXEL_REPRESENTATION,
    tags::PIXEL_PADDING_VALUE,
    tags::PIXEL_PADDING_RANGE_LIMIT,
    tags::BURNED_IN_ANNOTATION,
    tags::WINDOW_CENTER,
    tags::WINDOW_WIDTH,
    tags::RESCALE_INTERCEPT,
    tags::RESCALE_SLOPE,
    tags::VOILUT_FUNCTION,
    tags::LOSSY_IMAGE_COMPRESSION,
    tags::VOILUT_SEQUENCE,
    tags::PRESENTATION_LUT_SHAPE,
];

/// Retired, and unlike every other syntax not little endian.
const EXPLICIT_VR_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

/// Everything admission looks at.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) transfer_syntax: String,
    pub(crate) encoding: VrEncoding,
    /// The kept elements.
    pub(crate) elements: InMemDicomObject,
    /// Tags that matter by being there.
    pub(crate) modality_lut: bool,
    pub(crate) presentation_lut: bool,
    /// Overlay planes: separate ones, and bit positions inside the pixel cells.
    pub(crate) overlays: bool,
    /// Those bits of a pixel cell that embedded overlays declare as theirs.
    pub(crate) overlay_bits: u16,
    /// Length in bytes of the pixel data's value, and whether it is encapsulated. `None` without pixel data.
    pub(crate) pixel_data: Option<PixelData>,
    pub(crate) preamble: bool,
}

/// Where the pixel data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PixelData {
    pub(crate) value: Range<usize>,
    pub(crate) encapsulated: bool,
    pub(crate) floating: bool,
}

impl Header {
    /// The element, if it is there and has a value.
    pub(crate) fn element(&self, tag: Tag) -> Option<&InMemElement> {
        self.elements.get(tag).filter(|element| !element.is_empty())
    }

    /// Trimmed text of an element with VR `vr`; `None` if absent or empty.
    pub(crate) fn text(&self, tag: Tag, vr: VR) -> Result<Option<String>, Refusal> {
        let Some(element) = self.element(tag) else {
            return Ok(None);
        };
        let invalid = || Refusal::at(Reason::InvalidAttribute, tag);
        if element.vr() != vr {
            return Err(invalid());
        }
        let text = element.to_str().map_err(|_| invalid())?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// The single unsigned 16-bit value of an element; `None` if absent or empty.
    pub(crate) fn u16(&self, tag: Tag) -> Result<Option<u16>, Refusal> {
        let Some(element) = self.element(tag) else {
            return Ok(None);
        };
        let invalid = || Refusal::at(Reason::InvalidAttribute, tag);
        if element.vr() != VR::US {
            return Err(invalid());
        }
        match element
            .to_multi_int::<u16>()
            .map_err(|_| invalid())?
            .as_slice()
        {
            [value] => Ok(Some(*value)),
            _ => Err(invalid()),
        }
    }

    /// The numbers of an element of decimal text; empty if absent or empty.
    pub(crate) fn decimals(&self, tag: Tag, wrong_vr: Reason) -> Result<Vec<f64>, Refusal> {
        let Some(element) = self.element(tag) else {
            return Ok(Vec::new());
        };
        if element.vr() != VR::DS {
            return Err(Refusal::at(wrong_vr, tag));
        }
        let text = element
            .to_str()
            .map_err(|_| Refusal::at(Reason::InvalidAttribute, tag))?;
        if text
            .trim_matches(|c: char| c.is_whitespace() || c == '\0')
            .is_empty()
        {
            return Ok(Vec::new());
        }
        let numbers = element
            .to_multi_float64()
            .map_err(|_| Refusal::at(Reason::InvalidAttribute, tag))?;
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(Refusal::at(Reason::InvalidAttribute, tag));
        }
        Ok(numbers)
    }
}

/// Opens a file that `sniff` called DICOM. Returns the header, and the data set that `PixelData::value` points into.
pub(crate) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
) -> Result<(Header, Cow<'a, [u8]>), Refusal> {
    let (meta_bytes, preamble) = skip_preamble(bytes);
    let (transfer_syntax, data_set) = read_meta(meta_bytes, limits)?;
    let (encoding, data_set) = match transfer_syntax.as_str() {
        uids::IMPLICIT_VR_LITTLE_ENDIAN => (VrEncoding::Implicit, Cow::Borrowed(data_set)),
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => {
            (VrEncoding::Explicit, Cow::Owned(inflate(data_set, limits)?))
        }
        EXPLICIT_VR_BIG_ENDIAN => {
            return Err(
                Refusal::at(Reason::UnsupportedTransferSyntax, tags::TRANSFER_SYNTAX_UID)
                    .found(transfer_syntax),
            );
        }
        // Every other standard syntax writes its header in explicit little endian (PS3.5 A.4).
        _ => (VrEncoding::Explicit, Cow::Borrowed(data_set)),
    };
    let header = read_data_set(&data_set, transfer_syntax, encoding, preamble, limits)?;
    Ok((header, data_set))
}

/// The bytes from where the file meta information starts, the magic word left out.
fn skip_preamble(bytes: &[u8]) -> (&[u8], bool) {
    match bytes
        .get(PREAMBLE_BYTES..)
        .and_then(|rest| rest.strip_prefix(DICOM_MAGIC))
    {
        Some(rest) => (rest, true),
        None => (bytes.strip_prefix(DICOM_MAGIC).unwrap_or(bytes), false),
    }
}

/// The transfer syntax, and the bytes after the file meta information.
fn read_meta<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(String, &'a [u8]), Refusal> {
    const GROUP_LENGTH_ELEMENT_BYTES: usize = 12;
    let head = bytes
        .get(..GROUP_LENGTH_ELEMENT_BYTES)
        .ok_or_else(|| Refusal::new(Reason::Truncated))?;
    let malformed = || Refusal::at(Reason::Malformed, tags::FILE_META_INFORMATION_GROUP_LENGTH);
    let Some([4, 0, a, b, c, d]) = head.strip_prefix(META_START) else {
        return Err(malformed());
    };
    let group_bytes = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
    let end = GROUP_LENGTH_ELEMENT_BYTES + group_bytes;
    if group_bytes as u64 > limits.header_bytes_max {
        return Err(
            Refusal::new(Reason::TooLarge).found(format_args!("{group_bytes} header bytes"))
        );
    }
    let group = bytes
        .get(..end)
        .ok_or_else(|| Refusal::new(Reason::Truncated))?;
    for element in Elements::new(group, VrEncoding::Explicit) {
        // A length that leaves the group is a lie about the group, not a short file.
        let element = element.map_err(|_| malformed())?;
        if element.tag.group() != 2 {
            return Err(malformed());
        }
    }
    let meta = FileMetaTable::from_reader(DICOM_MAGIC.chain(group)).map_err(|_| malformed())?;
    Ok((meta.transfer_syntax().to_owned(), &bytes[end..]))
}

/// Unpacks a deflated data set (PS3.5 A.5: a raw deflate stream).
fn inflate(bytes: &[u8], limits: &Limits) -> Result<Vec<u8>, Refusal> {
    // Two bytes a pixel is the most an admitted image has.
    let by_size = limits
        .header_bytes_max
        .saturating_add(limits.frame_pixels_max.saturating_mul(2));
    let by_ratio = (bytes.len() as u64).saturating_mul(u64::from(limits.compression_ratio_max));
    let bytes_max = by_size.min(by_ratio);
    let mut out = Vec::new();
    let mut reader =
        flate2::bufread::DeflateDecoder::new(Cursor::new(bytes)).take(bytes_max.saturating_add(1));
    reader
        .read_to_end(&mut out)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Refusal::new(Reason::Truncated),
            _ => Refusal::new(Reason::DecodeFailed),
        })?;
    if out.len() as u64 > bytes_max {
        return Err(Refusal::new(Reason::CompressionRatio)
            .found(format_args!("more than {bytes_max} bytes")));
    }
    Ok(out)
}

fn read_data_set(
    data_set: &[u8],
    transfer_syntax: String,
    encoding: VrEncoding,
    preamble: bool,
    limits: &Limits,
) -> Result<Header, Refusal> {
    let mut kept = Vec::new();
    let mut pixel_data = None;
    let (mut modality_lut, mut presentation_lut) = (false, false);
    let mut overlays = Overlays::default();
    for element in Elements::new(data_set, encoding) {
        let element = element?;
        match element.tag {
            tags::PIXEL_DATA | tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA => {
                pixel_data = Some(PixelData {
                    value: element.value,
                    encapsulated: element.undefined_length,
                    floating: element.tag != tags::PIXEL_DATA,
                });
                break;
            }
            tags::MODALITY_LUT_SEQUENCE => modality_lut |= !element.value.is_empty(),
            tags::PRESENTATION_LUT_SEQUENCE => presentation_lut |= !element.value.is_empty(),
            // Overlay groups are 6000 to 601E, even (PS3.3 C.9.2); the attributes alone already say that there is one.
            tag if (0x6000..=0x601e).contains(&tag.group()) => {
                overlays.add(tag, &data_set[element.value.clone()]);
            }
            // Measured as one kind and parsed as another would defeat the measuring.
            tag if KEPT.contains(&tag) && !has_expected_shape(&element) => {
                return Err(Refusal::at(Reason::Malformed, tag));
            }
            tag if KEPT.contains(&tag) => kept.extend_from_slice(&data_set[element.whole.clone()]),
            _ => {}
        }
        if element.whole.end as u64 > limits.header_bytes_max {
            return Err(Refusal::new(Reason::TooLarge)
                .found(format_args!("{} header bytes", element.whole.end)));
        }
    }
    let elements = parse(&kept, encoding)?;
    Ok(Header {
        transfer_syntax,
        encoding,
        elements,
        modality_lut,
        presentation_lut,
        overlays: overlays.found,
        overlay_bits: overlays.embedded_bits(),
        pixel_data,
        preamble,
    })
}

/// What the overlay groups say about the pixel cells (PS3.3 C.9.2).
#[derive(Debug, Default)]
struct Overlays {
    found: bool,
    /// One for each group: whether its plane lies outside the pixel cells, and the bit it declares.
    planes: [(bool, u16); 16],
}

impl Overlays {
    /// `tag` is in the groups 6000 to 601E.
    fn add(&mut self, tag: Tag, value: &[u8]) {
        self.found = true;
        let (separate, bit) = &mut self.planes[usize::from(tag.group() - 0x6000) / 2];
        match (tag.group() % 2, tag.element(), value) {
            (0, 0x3000, _) => *separate = true,
            // A bit beyond the cell marks none.
            (0, 0x0102, [low, high]) => {
                let position = u32::from(u16::from_le_bytes([*low, *high]));
                *bit = 1u16.checked_shl(position).unwrap_or(0);
            }
            _ => {}
        }
    }

    fn embedded_bits(&self) -> u16 {
        self.planes
            .iter()
            .filter(|(separate, _)| !separate)
            .fold(0, |bits, (_, bit)| bits | bit)
    }
}

/// Sequences are written as such, everything else has a defined length.
fn has_expected_shape(element: &Extent) -> bool {
    if element.tag == tags::VOILUT_SEQUENCE {
        element.sequence
    } else {
        !element.sequence && !element.undefined_length
    }
}

/// Parses elements that were measured.
fn parse(kept: &[u8], encoding: VrEncoding) -> Result<InMemDicomObject, Refusal> {
    let syntax = match encoding {
        VrEncoding::Implicit => entries::IMPLICIT_VR_LITTLE_ENDIAN.erased(),
        VrEncoding::Explicit => entries::EXPLICIT_VR_LITTLE_ENDIAN.erased(),
    };
    InMemDicomObject::read_dataset_with_ts(kept, &syntax)
        .map_err(|_| Refusal::new(Reason::Malformed))
}
