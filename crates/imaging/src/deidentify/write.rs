//! Elements and file meta information as bytes, and what the profile has an object say about itself.

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::Profile;
use crate::elements::{ITEM, VrEncoding};
use crate::sniff::PREAMBLE_BYTES;

/// Names this software in file meta information (PS3.10 7.1).
const IMPLEMENTATION_CLASS: &str = "2.25.137462840923710458126374509817263540917";
const IMPLEMENTATION_NAME: &str = "MEDFLEET";
/// Value representations with a length of 32 bits (PS3.5 7.1.2).
const LONG: &[&[u8; 2]] = &[
    b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV",
];

/// One element. `value` has an even length; `vr` as in the file, `None` in implicit encoding.
pub(super) fn element(
    tag: Tag,
    vr: Option<[u8; 2]>,
    value: &[u8],
    encoding: VrEncoding,
) -> Vec<u8> {
    let mut out = tag_bytes(tag, encoding);
    // A value of a data set that was measured fits into 32 bits, and one with a mask is shorter than its own limit.
    let length = value.len() as u32;
    match vr {
        None => out.extend(encoding.u32_bytes(length)),
        Some(vr) if LONG.contains(&&vr) => {
            out.extend(vr);
            out.extend([0, 0]);
            out.extend(encoding.u32_bytes(length));
        }
        Some(vr) => {
            out.extend(vr);
            out.extend(encoding.u16_bytes(value.len() as u16));
        }
    }
    out.extend_from_slice(value);
    out
}

/// One item of a sequence.
pub(super) fn item(content: &[u8], encoding: VrEncoding) -> Vec<u8> {
    let mut out = tag_bytes(ITEM, encoding);
    out.extend(encoding.u32_bytes(content.len() as u32));
    out.extend_from_slice(content);
    out
}

fn tag_bytes(tag: Tag, encoding: VrEncoding) -> Vec<u8> {
    let (group, element) = (
        encoding.u16_bytes(tag.group()),
        encoding.u16_bytes(tag.element()),
    );
    [group, element].concat()
}

/// The transfer syntax of the file that is written: deflated data sets were inflated. `None` for what the standard does not have,
/// which could be any text.
pub(super) fn transfer_syntax(syntax: &str) -> Option<&str> {
    // All others begin with it (PS3.6 A); none has a longer end than this one.
    const FIRST: &str = uids::IMPLICIT_VR_LITTLE_ENDIAN;
    const END_BYTES_MAX: usize = ".4.102.1".len();
    let end = syntax.strip_prefix(FIRST)?;
    let written = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    if end.len() > END_BYTES_MAX || !end.bytes().all(written) {
        return None;
    }
    Some(if syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        uids::EXPLICIT_VR_LITTLE_ENDIAN
    } else {
        syntax
    })
}

/// Everything before the data set. Nothing of the original's is taken over but what the arguments say.
pub(super) fn file_meta(class: &str, instance: &str, syntax: &str) -> Vec<u8> {
    let explicit = VrEncoding::Explicit;
    let group = |element: u16| Tag(0x0002, element);
    let mut meta = element(group(0x0001), Some(*b"OB"), &[0, 1], explicit);
    let texts = [
        (0x0002, class),
        (0x0003, instance),
        (0x0010, syntax),
        (0x0012, IMPLEMENTATION_CLASS),
    ];
    for (number, value) in texts {
        meta.extend(text(group(number), b"UI", value, explicit));
    }
    meta.extend(text(group(0x0013), b"SH", IMPLEMENTATION_NAME, explicit));
    let length = (meta.len() as u32).to_le_bytes();
    let mut out = vec![0; PREAMBLE_BYTES];
    out.extend(b"DICM");
    out.extend(element(group(0), Some(*b"UL"), &length, explicit));
    out.extend(meta);
    out
}

/// That identity was removed, and how (PS3.15 E.1.1; codes of CID 7050).
pub(super) fn statements(profile: &Profile, encoding: VrEncoding) -> Vec<(Tag, Vec<u8>)> {
    let methods = [
        (true, "113100", "Basic Application Confidentiality Profile"),
        (
            profile.clean_descriptors,
            "113105",
            "Clean Descriptors Option",
        ),
        (
            profile.modified_dates,
            "113107",
            "Retain Longitudinal Temporal Information Modified Dates Option",
        ),
        (
            profile.patient_characteristics,
            "113108",
            "Retain Patient Characteristics Option",
        ),
    ];
    let mut sequence = Vec::new();
    for (_, code, meaning) in methods.iter().filter(|(used, ..)| *used) {
        let mut content = text(tags::CODE_VALUE, b"SH", code, encoding);
        content.extend(text(tags::CODING_SCHEME_DESIGNATOR, b"SH", "DCM", encoding));
        content.extend(text(tags::CODE_MEANING, b"LO", meaning, encoding));
        sequence.extend(item(&content, encoding));
    }
    let codes = tags::DEIDENTIFICATION_METHOD_CODE_SEQUENCE;
    let temporal = if profile.modified_dates {
        "MODIFIED"
    } else {
        "REMOVED"
    };
    let texts: [(Tag, &[u8; 2], &str); 3] = [
        (tags::PATIENT_IDENTITY_REMOVED, b"CS", "YES"),
        (
            tags::DEIDENTIFICATION_METHOD,
            b"LO",
            "medfleet, PS3.15 2024b Basic Profile",
        ),
        (
            tags::LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED,
            b"CS",
            temporal,
        ),
    ];
    let texts = texts.into_iter();
    let mut out: Vec<(Tag, Vec<u8>)> = texts
        .map(|(tag, vr, value)| (tag, text(tag, vr, value, encoding)))
        .collect();
    out.push((
        codes,
        element(codes, vr(b"SQ", encoding), &sequence, encoding),
    ));
    out
}

fn text(tag: Tag, name: &[u8; 2], value: &str, encoding: VrEncoding) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(if name == b"UI" { 0 } else { b' ' });
    }
    element(tag, vr(name, encoding), &bytes, encoding)
}

fn vr(name: &[u8; 2], encoding: VrEncoding) -> Option<[u8; 2]> {
    (encoding != VrEncoding::Implicit).then_some(*name)
}
