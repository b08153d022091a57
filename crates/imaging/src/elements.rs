//! Walks the elements of a data set without decoding a value, and proves that every length fits into the bytes that are there.
//! The parser of `dicom-object` allocates what a length field claims, so it only ever sees elements that were measured here first.
//!
//! Encoding rules: DICOM PS3.5 chapter 7.

use std::ops::Range;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::{Reason, Refusal};

/// Sequences within sequences; real headers stay below five.
pub(crate) const NESTING_MAX: u32 = 16;
const UNDEFINED: u32 = 0xffff_ffff;
pub(crate) const ITEM: Tag = Tag(0xfffe, 0xe000);
const ITEM_END: Tag = Tag(0xfffe, 0xe00d);
const SEQUENCE_END: Tag = Tag(0xfffe, 0xe0dd);
pub(crate) const ITEM_HEADER_BYTES: usize = 8;

/// How element headers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VrEncoding {
    Implicit,
    Explicit,
    /// Retired, but archives still hold it.
    ExplicitBigEndian,
}

impl VrEncoding {
    pub(crate) fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::ExplicitBigEndian => u16::from_be_bytes(bytes),
            Self::Implicit | Self::Explicit => u16::from_le_bytes(bytes),
        }
    }

    pub(crate) fn u16_bytes(self, value: u16) -> [u8; 2] {
        match self {
            Self::ExplicitBigEndian => value.to_be_bytes(),
            Self::Implicit | Self::Explicit => value.to_le_bytes(),
        }
    }

    pub(crate) fn u32_bytes(self, value: u32) -> [u8; 4] {
        match self {
            Self::ExplicitBigEndian => value.to_be_bytes(),
            Self::Implicit | Self::Explicit => value.to_le_bytes(),
        }
    }

    pub(crate) fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::ExplicitBigEndian => u32::from_be_bytes(bytes),
            Self::Implicit | Self::Explicit => u32::from_le_bytes(bytes),
        }
    }
}

/// The sequences that this crate looks into. Implicit headers do not name sequences, so that these are known by their tag.
const SEQUENCES: &[Tag] = &[
    tags::VOILUT_SEQUENCE,
    tags::MODALITY_LUT_SEQUENCE,
    tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
    tags::FRAME_VOILUT_SEQUENCE,
    tags::PLANE_POSITION_SEQUENCE,
    tags::PLANE_ORIENTATION_SEQUENCE,
    tags::PIXEL_MEASURES_SEQUENCE,
    tags::OPTICAL_PATH_SEQUENCE,
    tags::PLANE_POSITION_SLIDE_SEQUENCE,
    tags::ANATOMIC_REGION_SEQUENCE,
];

/// One top-level element: where it lies, measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) tag: Tag,
    pub(crate) whole: Range<usize>,
    /// Value alone; for an undefined length, from the first item to the end of the sequence delimiter.
    pub(crate) value: Range<usize>,
    pub(crate) undefined_length: bool,
    /// Whether the header says SQ; in implicit encoding, whether it is one of the sequences that this crate reads.
    pub(crate) sequence: bool,
    /// The value representation as written; `None` in implicit encoding.
    pub(crate) vr: Option<[u8; 2]>,
    /// How elements inside this one are written.
    pub(crate) inner: VrEncoding,
}

/// Iterates over the top-level elements of `bytes`; ends after the first error.
#[derive(Debug)]
pub(crate) struct Elements<'a> {
    bytes: &'a [u8],
    position: usize,
    encoding: VrEncoding,
    failed: bool,
}

impl<'a> Elements<'a> {
    pub(crate) fn new(bytes: &'a [u8], encoding: VrEncoding) -> Self {
        Self {
            bytes,
            position: 0,
            encoding,
            failed: false,
        }
    }
}

impl Iterator for Elements<'_> {
    type Item = Result<Extent, Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.position == self.bytes.len() {
            return None;
        }
        let element = measure(self.bytes, self.position, self.encoding, 0);
        match &element {
            Ok(extent) => self.position = extent.whole.end,
            Err(_) => self.failed = true,
        }
        Some(element)
    }
}

/// A header as read, before its value is measured.
struct Header {
    tag: Tag,
    value_start: usize,
    length: u32,
    sequence: bool,
    vr: Option<[u8; 2]>,
    /// How elements inside this one are written.
    inner: VrEncoding,
}

fn measure(
    bytes: &[u8],
    start: usize,
    encoding: VrEncoding,
    depth: u32,
) -> Result<Extent, Refusal> {
    let header = read_header(bytes, start, encoding)?;
    let refuse = |reason| Refusal::at(reason, header.tag);
    let value_end = if header.length == UNDEFINED {
        measure_items(bytes, header.value_start, header.inner, header.tag, depth)?
    } else {
        let end = header.value_start + header.length as usize;
        if end > bytes.len() {
            return Err(refuse(Reason::Truncated));
        }
        if header.sequence {
            measure_sequence(
                &bytes[..end],
                header.value_start,
                header.inner,
                header.tag,
                depth,
            )?;
        }
        end
    };
    Ok(Extent {
        tag: header.tag,
        whole: start..value_end,
        value: header.value_start..value_end,
        undefined_length: header.length == UNDEFINED,
        sequence: header.sequence,
        vr: header.vr,
        inner: header.inner,
    })
}

fn read_header(bytes: &[u8], start: usize, encoding: VrEncoding) -> Result<Header, Refusal> {
    let truncated = || Refusal::new(Reason::Truncated);
    let tag = read_tag(bytes, start, encoding).ok_or_else(truncated)?;
    if tag.group() == 0xfffe {
        return Err(Refusal::at(Reason::Malformed, tag));
    }
    if encoding == VrEncoding::Implicit {
        let length = read_u32(bytes, start + 4, encoding).ok_or_else(truncated)?;
        return Ok(Header {
            tag,
            value_start: start + 8,
            length,
            sequence: SEQUENCES.contains(&tag),
            vr: None,
            inner: encoding,
        });
    }
    let vr: [u8; 2] = bytes
        .get(start + 4..start + 6)
        .and_then(|vr| vr.try_into().ok())
        .ok_or_else(truncated)?;
    let (length, value_start) = match &vr {
        b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR"
        | b"UT" | b"UV" => (
            read_u32(bytes, start + 8, encoding).ok_or_else(truncated)?,
            start + 12,
        ),
        b"AE" | b"AS" | b"AT" | b"CS" | b"DA" | b"DS" | b"DT" | b"FL" | b"FD" | b"IS" | b"LO"
        | b"LT" | b"PN" | b"SH" | b"SL" | b"SS" | b"ST" | b"TM" | b"UI" | b"UL" | b"US" => {
            let length = bytes
                .get(start + 6..start + 8)
                .and_then(|l| l.try_into().ok())
                .ok_or_else(truncated)?;
            (u32::from(encoding.u16(length)), start + 8)
        }
        _ => return Err(Refusal::at(Reason::Malformed, tag)),
    };
    // An UN of undefined length holds a sequence in implicit encoding (PS3.5 6.2.2, note 7).
    let inner = if &vr == b"UN" {
        VrEncoding::Implicit
    } else {
        encoding
    };
    Ok(Header {
        tag,
        value_start,
        length,
        sequence: &vr == b"SQ",
        vr: Some(vr),
        inner,
    })
}

/// The items of a sequence of undefined length (or the fragments of encapsulated pixel data, which have the same shape).
/// Returns the end of the sequence delimiter.
fn measure_items(
    bytes: &[u8],
    start: usize,
    inner: VrEncoding,
    owner: Tag,
    depth: u32,
) -> Result<usize, Refusal> {
    let mut position = start;
    loop {
        let (tag, length) = read_item_header(bytes, position, owner, inner)?;
        position += ITEM_HEADER_BYTES;
        match tag {
            SEQUENCE_END => return Ok(position),
            ITEM => position = measure_item(bytes, position, length, inner, (owner, depth))?,
            _ => return Err(Refusal::at(Reason::Malformed, owner)),
        }
    }
}

/// The items of a sequence of defined length, which ends where `bytes` ends.
fn measure_sequence(
    bytes: &[u8],
    start: usize,
    inner: VrEncoding,
    owner: Tag,
    depth: u32,
) -> Result<(), Refusal> {
    let mut position = start;
    while position < bytes.len() {
        let (tag, length) = read_item_header(bytes, position, owner, inner)?;
        if tag != ITEM {
            return Err(Refusal::at(Reason::Malformed, owner));
        }
        position = measure_item(
            bytes,
            position + ITEM_HEADER_BYTES,
            length,
            inner,
            (owner, depth),
        )?;
    }
    Ok(())
}

/// One item, its header already read. Returns its end.
fn measure_item(
    bytes: &[u8],
    start: usize,
    length: u32,
    inner: VrEncoding,
    (owner, depth): (Tag, u32),
) -> Result<usize, Refusal> {
    if depth == NESTING_MAX {
        return Err(Refusal::at(Reason::Malformed, owner));
    }
    let is_pixel_data = owner == tags::PIXEL_DATA;
    if length == UNDEFINED {
        let mut position = start;
        loop {
            if read_tag(bytes, position, inner) == Some(ITEM_END) {
                read_item_header(bytes, position, owner, inner)?;
                return Ok(position + ITEM_HEADER_BYTES);
            }
            position = measure(bytes, position, inner, depth + 1)?.whole.end;
        }
    }
    let end = start + length as usize;
    if end > bytes.len() {
        return Err(Refusal::at(Reason::Truncated, owner));
    }
    if !is_pixel_data {
        let mut position = start;
        while position < end {
            position = measure(&bytes[..end], position, inner, depth + 1)?
                .whole
                .end;
        }
    }
    Ok(end)
}

/// The contents of a sequence's items. `value` is the extent's value, and was measured.
pub(crate) fn items(value: &[u8], owner: Tag, inner: VrEncoding) -> Result<Vec<&[u8]>, Refusal> {
    let mut found = Vec::new();
    each_item(value, owner, inner, |item| found.push(item))?;
    Ok(found)
}

/// The same one by one: where nothing limits their number, a list of them may be larger than they are. Those before a fault are
/// given.
pub(crate) fn each_item<'a>(
    value: &'a [u8],
    owner: Tag,
    inner: VrEncoding,
    mut each: impl FnMut(&'a [u8]),
) -> Result<(), Refusal> {
    let mut position = 0;
    while position < value.len() {
        let (tag, length) = read_item_header(value, position, owner, inner)?;
        position += ITEM_HEADER_BYTES;
        match tag {
            SEQUENCE_END => break,
            ITEM => {
                let end = measure_item(value, position, length, inner, (owner, 0))?;
                let content_end = if length == UNDEFINED {
                    end - ITEM_HEADER_BYTES
                } else {
                    end
                };
                each(&value[position..content_end]);
                position = end;
            }
            _ => return Err(Refusal::at(Reason::Malformed, owner)),
        }
    }
    Ok(())
}

/// Encapsulated pixel data (PS3.5 A.4): the basic offset table, and the fragments. `value` is the extent's value.
pub(crate) fn fragments(value: &[u8]) -> Result<(&[u8], Vec<&[u8]>), Refusal> {
    let owner = tags::PIXEL_DATA;
    let mut found = Vec::new();
    let mut position = 0;
    loop {
        let (tag, length) = read_item_header(value, position, owner, VrEncoding::Explicit)?;
        position += ITEM_HEADER_BYTES;
        match tag {
            SEQUENCE_END => break,
            ITEM if length != UNDEFINED => {
                let end = position + length as usize;
                found.push(
                    value
                        .get(position..end)
                        .ok_or_else(|| Refusal::at(Reason::Truncated, owner))?,
                );
                position = end;
            }
            _ => return Err(Refusal::at(Reason::Malformed, owner)),
        }
    }
    if found.is_empty() {
        return Err(Refusal::at(Reason::Malformed, owner));
    }
    let table = found.remove(0);
    Ok((table, found))
}

fn read_item_header(
    bytes: &[u8],
    start: usize,
    owner: Tag,
    encoding: VrEncoding,
) -> Result<(Tag, u32), Refusal> {
    read_tag(bytes, start, encoding)
        .zip(read_u32(bytes, start + 4, encoding))
        .ok_or_else(|| Refusal::at(Reason::Truncated, owner))
}

fn read_tag(bytes: &[u8], start: usize, encoding: VrEncoding) -> Option<Tag> {
    let [a, b, c, d] = bytes.get(start..start.checked_add(4)?)?.try_into().ok()?;
    Some(Tag(encoding.u16([a, b]), encoding.u16([c, d])))
}

fn read_u32(bytes: &[u8], start: usize, encoding: VrEncoding) -> Option<u32> {
    let four = bytes.get(start..start.checked_add(4)?)?.try_into().ok()?;
    Some(encoding.u32(four))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(bytes: &[u8], encoding: VrEncoding) -> Result<Vec<Tag>, Reason> {
        Elements::new(bytes, encoding)
            .map(|e| e.map(|e| e.tag).map_err(|r| r.reason))
            .collect()
    }

    #[track_caller]
    fn check(bytes: &[u8], encoding: VrEncoding, expected: Result<&[Tag], Reason>) {
        assert_eq!(walk(bytes, encoding), expected.map(<[Tag]>::to_vec));
    }

    #[test]
    fn measures_explicit_and_implicit_elements() {
        check(
            b"\x28\0\x10\0US\x02\0\x05\0",
            VrEncoding::Explicit,
            Ok(&[Tag(0x28, 0x10)]),
        );
        check(
            b"\x28\0\x10\0\x02\0\0\0\x05\0",
            VrEncoding::Implicit,
            Ok(&[Tag(0x28, 0x10)]),
        );
        check(b"", VrEncoding::Explicit, Ok(&[]));
    }

    #[test]
    fn measures_big_endian_elements() {
        check(
            b"\0\x28\0\x10US\0\x02\0\x05",
            VrEncoding::ExplicitBigEndian,
            Ok(&[Tag(0x28, 0x10)]),
        );
        check(
            b"\0\x28\0\x10US\x02\0\0\x05",
            VrEncoding::ExplicitBigEndian,
            Err(Reason::Truncated),
        );
    }

    #[test]
    fn gives_the_contents_of_items() {
        let defined = b"\xfe\xff\0\xe0\x0a\0\0\0\x28\0\x10\0US\x02\0\x05\0";
        let inside = &defined[8..];
        assert_eq!(
            items(defined, tags::VOILUT_SEQUENCE, VrEncoding::Explicit).unwrap(),
            [inside]
        );
        let undefined = b"\xfe\xff\0\xe0\xff\xff\xff\xff\x28\0\x10\0US\x02\0\x05\0\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0";
        assert_eq!(
            items(undefined, tags::VOILUT_SEQUENCE, VrEncoding::Explicit).unwrap(),
            [inside]
        );
    }

    #[test]
    fn gives_items_one_by_one_up_to_a_fault() {
        let item = b"\xfe\xff\0\xe0\0\0\0\0";
        let given = |value: &[u8]| {
            let mut count = 0;
            let owner = tags::VOILUT_SEQUENCE;
            let ended = each_item(value, owner, VrEncoding::Implicit, |_| count += 1);
            (count, ended.map_err(|refusal| refusal.reason))
        };
        assert_eq!(given(&item.repeat(3)), (3, Ok(())));
        let broken = [&item.repeat(2)[..], b"\xfe\xff\0\xe0\x01\0\0\0"].concat();
        assert_eq!(given(&broken), (2, Err(Reason::Truncated)));
    }

    #[test]
    fn refuses_lengths_beyond_the_end_before_anything_is_allocated() {
        check(
            b"\x28\0\x10\0US\x02\0\x05",
            VrEncoding::Explicit,
            Err(Reason::Truncated),
        );
        check(
            b"\x28\0\x10\0UT\0\0\xfe\xff\xff\xff",
            VrEncoding::Explicit,
            Err(Reason::Truncated),
        );
        check(b"\x28\0\x10", VrEncoding::Implicit, Err(Reason::Truncated));
    }

    #[test]
    fn refuses_unknown_value_representations() {
        check(
            b"\x28\0\x10\0ZZ\x02\0\x05\0",
            VrEncoding::Explicit,
            Err(Reason::Malformed),
        );
    }

    #[test]
    fn walks_into_sequences_of_both_kinds() {
        let defined =
            b"\x08\0\x40\x11SQ\0\0\x12\0\0\0\xfe\xff\0\xe0\x0a\0\0\0\x28\0\x10\0US\x02\0\x05\0";
        check(defined, VrEncoding::Explicit, Ok(&[Tag(0x8, 0x1140)]));
        let undefined = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff\x28\0\x10\0US\x02\0\x05\0\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0";
        check(undefined, VrEncoding::Explicit, Ok(&[Tag(0x8, 0x1140)]));
        check(
            &undefined[..undefined.len() - 8],
            VrEncoding::Explicit,
            Err(Reason::Truncated),
        );
        let lying =
            b"\x08\0\x40\x11SQ\0\0\x12\0\0\0\xfe\xff\0\xe0\x0a\0\0\0\x28\0\x10\0US\xff\0\x05\0";
        check(lying, VrEncoding::Explicit, Err(Reason::Truncated));
    }

    #[test]
    fn refuses_bottomless_nesting() {
        let bytes =
            b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff".repeat(1000);
        check(&bytes, VrEncoding::Explicit, Err(Reason::Malformed));
    }

    #[test]
    fn collects_fragments_without_the_offset_table() {
        let value = b"\xfe\xff\0\xe0\0\0\0\0\xfe\xff\0\xe0\x02\0\0\0ab\xfe\xff\0\xe0\x02\0\0\0cd\xfe\xff\xdd\xe0\0\0\0\0";
        assert_eq!(
            fragments(value).unwrap(),
            (&[][..], vec![&b"ab"[..], &b"cd"[..]])
        );
    }
}
