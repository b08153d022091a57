//! Small DICOM files written with `dicom-object`, one element away from a good one.

use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

pub(crate) const ROWS: u16 = 6;
pub(crate) const COLUMNS: u16 = 5;

/// A good 12-bit CR, MONOCHROME2, explicit little endian, with the values 0, 100, 200, …
pub(crate) fn object() -> InMemDicomObject {
    let pixels: Vec<u16> = (0..ROWS * COLUMNS).map(|index| index * 100).collect();
    let text = |tag, vr, value: &str| DataElement::new(tag, vr, PrimitiveValue::from(value));
    let number = |tag, value: u16| DataElement::new(tag, VR::US, PrimitiveValue::from(value));
    InMemDicomObject::from_element_iter([
        text(
            tags::SOP_CLASS_UID,
            VR::UI,
            uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE,
        ),
        text(tags::SOP_INSTANCE_UID, VR::UI, "2.25.1"),
        text(tags::MODALITY, VR::CS, "CR"),
        text(tags::PATIENT_NAME, VR::PN, "Planted^Name"),
        number(tags::SAMPLES_PER_PIXEL, 1),
        text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        number(tags::ROWS, ROWS),
        number(tags::COLUMNS, COLUMNS),
        number(tags::BITS_ALLOCATED, 16),
        number(tags::BITS_STORED, 12),
        number(tags::HIGH_BIT, 11),
        number(tags::PIXEL_REPRESENTATION, 0),
        DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into())),
    ])
}

/// The bytes of a file with the changed object.
pub(crate) fn file_as(syntax: &str, change: impl FnOnce(&mut InMemDicomObject)) -> Vec<u8> {
    let mut object = object();
    change(&mut object);
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(syntax)
        .media_storage_sop_class_uid(uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE)
        .media_storage_sop_instance_uid("2.25.1");
    let mut bytes = Vec::new();
    object
        .with_meta(meta)
        .unwrap()
        .write_all(&mut bytes)
        .unwrap();
    bytes
}

pub(crate) fn file(change: impl FnOnce(&mut InMemDicomObject)) -> Vec<u8> {
    file_as(uids::EXPLICIT_VR_LITTLE_ENDIAN, change)
}

pub(crate) fn put(
    object: &mut InMemDicomObject,
    tag: Tag,
    vr: VR,
    value: impl Into<PrimitiveValue>,
) {
    object.put(DataElement::new(tag, vr, value.into()));
}

pub(crate) fn put_sequence(object: &mut InMemDicomObject, tag: Tag, item: InMemDicomObject) {
    object.put(DataElement::new(
        tag,
        VR::SQ,
        DataSetSequence::from(vec![item]),
    ));
}

/// What an element says, which must be there.
pub(crate) fn text(object: &InMemDicomObject, tag: Tag) -> String {
    let element = object
        .element(tag)
        .unwrap_or_else(|error| panic!("{tag}: {error}"));
    let text = element.to_str().unwrap();
    text.trim_matches(['\0', ' ']).to_owned()
}
