//! Opens a DICOM file: file meta information, the header elements that decoding needs, and the place of the pixel data.

use std::borrow::Cow;
use std::ops::Range;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use flate2::bufread::DeflateDecoder;

use crate::dataset::{DataSet, keep};
use crate::elements::{Elements, Extent, VrEncoding};
use crate::sniff::{DICOM_MAGIC, META_START, PREAMBLE_BYTES, bare_encoding};
use crate::{Limits, Reason, Refusal, archive};

/// Retired, and unlike every other syntax not little endian.
pub(crate) const EXPLICIT_VR_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

/// A file whose data set is found and unpacked.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    transfer_syntax: String,
    encoding: VrEncoding,
    data_set: Cow<'a, [u8]>,
    preamble: bool,
    meta: bool,
    directory: bool,
}

impl Opened<'_> {
    /// Whether it is a DICOMDIR (PS3.3 F), by the class that its file meta information names.
    pub(crate) fn is_directory(&self) -> bool {
        self.directory
    }
}

/// Everything admission looks at.
#[derive(Clone, Debug)]
pub(crate) struct Header<'a> {
    pub(crate) transfer_syntax: &'a str,
    pub(crate) elements: DataSet<'a>,
    /// Tags that matter by being there.
    pub(crate) presentation_lut: bool,
    /// Overlay planes: separate ones, and bit positions inside the pixel cells.
    pub(crate) overlays: bool,
    /// Those bits of a pixel cell that embedded overlays declare as theirs.
    pub(crate) overlay_bits: u32,
    pub(crate) pixel_data: Option<PixelData<'a>>,
    pub(crate) preamble: bool,
    pub(crate) meta: bool,
}

/// The pixel data as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PixelData<'a> {
    pub(crate) value: &'a [u8],
    pub(crate) encapsulated: bool,
    pub(crate) floating: bool,
    /// Whether it is written as 16-bit words (OW).
    pub(crate) words: bool,
}

/// Opens a file that `sniff` called DICOM.
pub(crate) fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Opened<'a>, Refusal> {
    let (meta_bytes, preamble) = skip_preamble(bytes);
    if !preamble && let Some(encoding) = bare_encoding(bytes) {
        let transfer_syntax = match encoding {
            VrEncoding::Implicit => uids::IMPLICIT_VR_LITTLE_ENDIAN,
            VrEncoding::Explicit => uids::EXPLICIT_VR_LITTLE_ENDIAN,
            VrEncoding::ExplicitBigEndian => EXPLICIT_VR_BIG_ENDIAN,
        };
        return Ok(Opened {
            transfer_syntax: transfer_syntax.to_owned(),
            encoding,
            data_set: Cow::Borrowed(bytes),
            preamble: false,
            meta: false,
            directory: false,
        });
    }
    let (transfer_syntax, directory, data_set) = read_meta(meta_bytes, limits)?;
    let (encoding, data_set) = match transfer_syntax.as_str() {
        uids::IMPLICIT_VR_LITTLE_ENDIAN => (VrEncoding::Implicit, Cow::Borrowed(data_set)),
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => {
            (VrEncoding::Explicit, Cow::Owned(inflate(data_set, limits)?))
        }
        EXPLICIT_VR_BIG_ENDIAN => (VrEncoding::ExplicitBigEndian, Cow::Borrowed(data_set)),
        // Every other standard syntax writes its header in explicit little endian (PS3.5 A.4).
        _ => (VrEncoding::Explicit, Cow::Borrowed(data_set)),
    };
    Ok(Opened {
        transfer_syntax,
        encoding,
        data_set,
        preamble,
        meta: true,
        directory,
    })
}

impl Opened<'_> {
    /// The data set's bytes, and how they are written.
    pub(crate) fn data_set(&self) -> (&[u8], VrEncoding) {
        (&self.data_set, self.encoding)
    }
}

/// Whether an element ends within what a header may have. Those behind are not read: without a value representation a value may be
/// as long as the file, and as text takes a multiple of that.
pub(crate) fn is_within(element: &Extent, limits: &Limits) -> bool {
    element.whole.end as u64 <= limits.header_bytes_max
}

pub(crate) fn too_large(bytes: usize) -> Refusal {
    Refusal::new(Reason::TooLarge).found(format_args!("{bytes} header bytes"))
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

/// The transfer syntax, whether the file is a DICOMDIR, and the bytes after the file meta information. The group ends where its elements end: a group
/// length that says otherwise, or none, is a known fault of writers and changes no value.
fn read_meta<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(String, bool, &'a [u8]), Refusal> {
    let malformed = |tag| Refusal::at(Reason::Malformed, tag);
    let (mut syntax, mut directory) = (None, false);
    let mut end = 0;
    while bytes.get(end..end + 2) == Some(&META_START[..2]) {
        let element = Elements::new(&bytes[end..], VrEncoding::Explicit)
            .next()
            .ok_or_else(|| Refusal::new(Reason::Truncated))??;
        if element.tag == tags::TRANSFER_SYNTAX_UID {
            let value = &bytes[end..][element.value.clone()];
            let text = std::str::from_utf8(value).map_err(|_| malformed(element.tag))?;
            syntax = Some(text.trim_matches(['\0', ' ']).to_owned());
        }
        if element.tag == tags::MEDIA_STORAGE_SOP_CLASS_UID {
            let value = &bytes[end..][element.value.clone()];
            directory = value.starts_with(uids::MEDIA_STORAGE_DIRECTORY_STORAGE.as_bytes());
        }
        end += element.whole.end;
        if end as u64 > limits.header_bytes_max {
            return Err(Refusal::new(Reason::TooLarge).found(format_args!("{end} header bytes")));
        }
    }
    if end == 0 {
        return Err(malformed(tags::FILE_META_INFORMATION_GROUP_LENGTH));
    }
    let syntax = syntax.ok_or_else(|| {
        // Not even the tag of another element follows.
        if end + 4 > bytes.len() {
            Refusal::new(Reason::Truncated)
        } else {
            Refusal::at(Reason::MissingAttribute, tags::TRANSFER_SYNTAX_UID)
        }
    })?;
    Ok((syntax, directory, &bytes[end..]))
}

/// Unpacks a deflated data set (PS3.5 A.5: a raw deflate stream).
fn inflate(bytes: &[u8], limits: &Limits) -> Result<Vec<u8>, Refusal> {
    let by_ratio = (bytes.len() as u64).saturating_mul(u64::from(limits.compression_ratio_max));
    let bytes_max = limits.file_bytes_max.min(by_ratio);
    archive::unpack(DeflateDecoder::new(bytes), bytes_max, limits)
}

/// Whether reading a file makes a copy of it that is not packed.
pub(crate) fn is_deflated(bytes: &[u8]) -> bool {
    let (meta_bytes, _) = skip_preamble(bytes);
    read_meta(meta_bytes, &Limits::default()).is_ok_and(|(transfer_syntax, ..)| {
        transfer_syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
    })
}

/// Walks the data set up to the pixel data. What has none may be larger than a header: contours, a document, a scanner's raw data.
pub(crate) fn read<'a>(opened: &'a Opened<'_>, limits: &Limits) -> Result<Header<'a>, Refusal> {
    let (data_set, encoding) = (&*opened.data_set, opened.encoding);
    let mut kept = Vec::new();
    let mut pixel_data = None;
    let mut presentation_lut = false;
    let mut beyond = None;
    let mut overlays = Overlays::default();
    for element in Elements::new(data_set, encoding) {
        let element = element?;
        let value = |extent: &Extent| -> Range<usize> { extent.value.clone() };
        match element.tag {
            tags::PIXEL_DATA | tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA => {
                if let Some(end) = beyond {
                    return Err(too_large(end));
                }
                pixel_data = Some(PixelData {
                    value: &data_set[value(&element)],
                    encapsulated: element.undefined_length,
                    floating: element.tag != tags::PIXEL_DATA,
                    words: element.vr == Some(*b"OW"),
                });
                break;
            }
            _ if !is_within(&element, limits) => beyond = Some(element.whole.end),
            tags::PRESENTATION_LUT_SEQUENCE => presentation_lut |= !element.value.is_empty(),
            // Overlay groups are 6000 to 601E, even (PS3.3 C.9.2); the attributes alone already say that there is one.
            tag if (0x6000..=0x601e).contains(&tag.group()) => {
                overlays.add(tag, &data_set[value(&element)], encoding);
            }
            _ => keep(&mut kept, &element, data_set)?,
        }
    }
    Ok(Header {
        transfer_syntax: &opened.transfer_syntax,
        elements: DataSet::new(data_set, encoding, kept),
        presentation_lut,
        overlays: overlays.found,
        overlay_bits: overlays.embedded_bits(),
        pixel_data,
        preamble: opened.preamble,
        meta: opened.meta,
    })
}

impl<'a> Header<'a> {
    pub(crate) fn text(&self, tag: Tag, vr: VR) -> Result<Option<&'a str>, Refusal> {
        self.elements.text(tag, vr)
    }

    pub(crate) fn u16(&self, tag: Tag) -> Result<Option<u16>, Refusal> {
        self.elements.u16(tag)
    }
}

/// What the overlay groups say about the pixel cells (PS3.3 C.9.2).
#[derive(Debug, Default)]
struct Overlays {
    found: bool,
    /// One for each group: whether its plane lies outside the pixel cells, and the bit it declares.
    planes: [(bool, u32); 16],
}

impl Overlays {
    /// `tag` is in the groups 6000 to 601E.
    fn add(&mut self, tag: Tag, value: &[u8], encoding: VrEncoding) {
        self.found = true;
        let (separate, bit) = &mut self.planes[usize::from(tag.group() - 0x6000) / 2];
        match (tag.group() % 2, tag.element(), value) {
            (0, 0x3000, _) => *separate = true,
            // A bit beyond the cell marks none.
            (0, 0x0102, [first, second]) => {
                let position = u32::from(encoding.u16([*first, *second]));
                *bit = 1u32.checked_shl(position).unwrap_or(0);
            }
            _ => {}
        }
    }

    fn embedded_bits(&self) -> u32 {
        self.planes
            .iter()
            .filter(|(separate, _)| !separate)
            .fold(0, |bits, (_, bit)| bits | bit)
    }
}
