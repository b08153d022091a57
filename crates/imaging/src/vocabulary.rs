//! What the dictionary of DICOM (PS3.6) says about an element whose header does not say it itself.

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};

use crate::elements::Extent;

/// The value representation that the standard gives a tag; `None` for private tags and those it does not have.
pub(crate) fn standard_vr(tag: Tag) -> Option<VR> {
    if tag.group() % 2 == 1 {
        return None;
    }
    StandardDataDictionary
        .by_tag(tag)
        .map(|entry| entry.vr().relaxed())
}

/// As written, or as the standard says where it is not written or unknown to the writer.
pub(crate) fn vr_of(element: &Extent) -> Option<VR> {
    match element.vr {
        Some(vr) if &vr != b"UN" => VR::from_binary(vr),
        _ => standard_vr(element.tag),
    }
}

/// Whether the value is made of items, but is not compressed pixels.
pub(crate) fn is_sequence(element: &Extent) -> bool {
    element.tag != tags::PIXEL_DATA
        && (element.sequence || element.undefined_length || vr_of(element) == Some(VR::SQ))
}
