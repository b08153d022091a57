//! Small DICOM files written with `dicom-object`, one element away from a good one.

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

pub(crate) const ROWS: u16 = 6;
pub(crate) const COLUMNS: u16 = 5;

/// A good 12-bit CR, MONOCHROME2, explicit little endian, with the values 0, 100, 200, …
pub(crate) fn object() -> InMemDicomObject {
    let pixels: Vec<u16> = (0..ROWS * COLUMNS).map(|index| index * 100).collect();
    let mut object = InMemDicomObject::new_empty();
    let class = uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE;
    set(&mut object, tags::SOP_CLASS_UID, class);
    set(&mut object, tags::SOP_INSTANCE_UID, "2.25.1");
    set(&mut object, tags::MODALITY, "CR");
    set(&mut object, tags::PATIENT_NAME, "Planted^Name");
    set(&mut object, tags::SAMPLES_PER_PIXEL, 1_u16);
    set(&mut object, tags::PHOTOMETRIC_INTERPRETATION, "MONOCHROME2");
    set(&mut object, tags::ROWS, ROWS);
    set(&mut object, tags::COLUMNS, COLUMNS);
    set(&mut object, tags::BITS_ALLOCATED, 16_u16);
    set(&mut object, tags::BITS_STORED, 12_u16);
    set(&mut object, tags::HIGH_BIT, 11_u16);
    set(&mut object, tags::PIXEL_REPRESENTATION, 0_u16);
    put_cells(&mut object, pixels);
    object
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

/// An element of the kind that the standard gives it.
pub(crate) fn set(object: &mut InMemDicomObject, tag: Tag, value: impl Into<PrimitiveValue>) {
    let entry = StandardDataDictionary.by_tag(tag).unwrap();
    put(object, tag, entry.vr().exact().unwrap(), value);
}

/// The pixels, each in a cell of 16 bits.
pub(crate) fn put_cells(object: &mut InMemDicomObject, cells: Vec<u16>) {
    let cells = PrimitiveValue::U16(cells.into());
    put(object, tags::PIXEL_DATA, VR::OW, cells);
}

/// An element of another kind than the standard's, or of one that depends on others.
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
