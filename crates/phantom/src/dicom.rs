//! Pictures as DICOM files: computed or digital radiographs, all of the patient invented.
//!
//! What differs between devices differs here: MONOCHROME1 and MONOCHROME2, 8 to 16 bits, where in the range of values the
//! picture lies. The window of each file shows the picture as it was rendered.

use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

use crate::chance::Chance;
use crate::render::Picture;

/// Bits stored that files have.
const BITS: [u16; 5] = [8, 10, 12, 14, 16];
/// Identifiers of this project's invented studies: 2.25 and a number.
const ROOT: &str = "2.25.6";

/// A picture that can't be written as DICOM.
#[derive(Debug, thiserror::Error)]
pub enum DicomError {
    #[error("a picture of {columns} × {rows} pixels doesn't fit in a DICOM file")]
    TooLarge { columns: usize, rows: usize },
    #[error("can't make the header of the file")]
    Header(#[source] Box<dicom_object::WithMetaError>),
    #[error("can't encode the elements of the file")]
    Encode(#[source] Box<dicom_object::WriteError>),
}

/// Whose picture it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) seed: u64,
    pub(crate) index: u64,
    /// Number of the first picture of the patient.
    pub(crate) patient: u64,
}

/// How values are stored.
#[derive(Clone, Copy, Debug)]
struct Storage {
    bits: u16,
    inverted: bool,
    /// Values of black and white.
    low: u16,
    high: u16,
    digital: bool,
}

impl Storage {
    fn new(chance: &mut Chance) -> Self {
        let bits = *chance.one(&BITS);
        let most = f32::from(u16::MAX >> (16 - bits));
        let whole = bits == 8 || chance.happens(0.2);
        let (low, high) = if whole {
            (0.0, most)
        } else {
            (
                most * chance.between(0.0, 0.12),
                most * chance.between(0.75, 1.0),
            )
        };
        Self {
            bits,
            inverted: chance.happens(0.4),
            low: low as u16,
            high: high as u16,
            // Computed radiographs have 10 bits or more.
            digital: bits == 8 || chance.happens(0.6),
        }
    }

    fn class(self) -> &'static str {
        if self.digital {
            uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION
        } else {
            uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE
        }
    }
}

pub(crate) fn file(
    picture: &Picture,
    identity: Identity,
    chance: &mut Chance,
) -> Result<Vec<u8>, DicomError> {
    let storage = Storage::new(chance);
    let instance = format!("{ROOT}{:020}{:012}", identity.seed, identity.index);
    let mut object = InMemDicomObject::new_empty();
    patient(&mut object, identity);
    study(&mut object, identity, storage, &instance);
    if storage.digital {
        digital(&mut object, storage);
    } else {
        text(&mut object, tags::BODY_PART_EXAMINED, VR::CS, "CHEST");
        text(&mut object, tags::VIEW_POSITION, VR::CS, "PA");
    }
    pixels(&mut object, picture, storage)?;
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(storage.class())
        .media_storage_sop_instance_uid(instance);
    let mut bytes = Vec::new();
    object
        .with_meta(meta)
        .map_err(|error| DicomError::Header(Box::new(error)))?
        .write_all(&mut bytes)
        .map_err(|error| DicomError::Encode(Box::new(error)))?;
    Ok(bytes)
}

fn patient(object: &mut InMemDicomObject, identity: Identity) {
    // Follows from the patient's number alone, so that both pictures of a pair agree.
    let person = identity
        .seed
        .wrapping_mul(31)
        .wrapping_add(identity.patient);
    let age = 20 + person.wrapping_mul(7) % 66;
    let name = format!("PHANTOM^{:04}", identity.patient);
    let id = format!("PHANTOM-{}-{}", identity.seed, identity.patient);
    text(object, tags::PATIENT_NAME, VR::PN, &name);
    text(object, tags::PATIENT_ID, VR::LO, &id);
    text(
        object,
        tags::PATIENT_BIRTH_DATE,
        VR::DA,
        &format!("{}0101", 2025 - age),
    );
    text(
        object,
        tags::PATIENT_SEX,
        VR::CS,
        if person.is_multiple_of(2) { "F" } else { "M" },
    );
    text(object, tags::PATIENT_AGE, VR::AS, &format!("{age:03}Y"));
}

fn study(object: &mut InMemDicomObject, identity: Identity, storage: Storage, instance: &str) {
    let day = 1 + identity.index % 28;
    let date = format!("202506{day:02}");
    let modality = if storage.digital { "DX" } else { "CR" };
    let accession = format!("P{:08}", identity.index);
    text(object, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
    text(object, tags::SOP_CLASS_UID, VR::UI, storage.class());
    text(object, tags::SOP_INSTANCE_UID, VR::UI, instance);
    text(
        object,
        tags::STUDY_INSTANCE_UID,
        VR::UI,
        &format!("{instance}.1"),
    );
    text(
        object,
        tags::SERIES_INSTANCE_UID,
        VR::UI,
        &format!("{instance}.2"),
    );
    text(object, tags::MODALITY, VR::CS, modality);
    text(object, tags::MANUFACTURER, VR::LO, "medfleet phantom");
    text(
        object,
        tags::STUDY_DESCRIPTION,
        VR::LO,
        "Phantom chest, not for clinical use",
    );
    text(object, tags::ACCESSION_NUMBER, VR::SH, &accession);
    text(object, tags::STUDY_ID, VR::SH, "1");
    text(object, tags::SERIES_NUMBER, VR::IS, "1");
    text(object, tags::INSTANCE_NUMBER, VR::IS, "1");
    text(object, tags::REFERRING_PHYSICIAN_NAME, VR::PN, "");
    for tag in [tags::STUDY_DATE, tags::CONTENT_DATE, tags::ACQUISITION_DATE] {
        text(object, tag, VR::DA, &date);
    }
    for tag in [tags::STUDY_TIME, tags::CONTENT_TIME, tags::ACQUISITION_TIME] {
        text(object, tag, VR::TM, "120000");
    }
    text(object, tags::PATIENT_ORIENTATION, VR::CS, "L\\F");
    text(object, tags::BURNED_IN_ANNOTATION, VR::CS, "NO");
    text(object, tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00");
}

/// What digital radiographs must say besides.
fn digital(object: &mut InMemDicomObject, storage: Storage) {
    text(object, tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY");
    text(
        object,
        tags::PRESENTATION_INTENT_TYPE,
        VR::CS,
        "FOR PRESENTATION",
    );
    text(object, tags::BODY_PART_EXAMINED, VR::CS, "CHEST");
    text(object, tags::VIEW_POSITION, VR::CS, "PA");
    text(object, tags::IMAGE_LATERALITY, VR::CS, "U");
    text(object, tags::DETECTOR_TYPE, VR::CS, "DIRECT");
    text(object, tags::IMAGER_PIXEL_SPACING, VR::DS, "0.2\\0.2");
    text(object, tags::PIXEL_INTENSITY_RELATIONSHIP, VR::CS, "LOG");
    // Higher values are less light where bone is white.
    let sign: i16 = if storage.inverted { 1 } else { -1 };
    object.put(DataElement::new(
        tags::PIXEL_INTENSITY_RELATIONSHIP_SIGN,
        VR::SS,
        PrimitiveValue::from(sign),
    ));
    let shape = if storage.inverted {
        "INVERSE"
    } else {
        "IDENTITY"
    };
    text(object, tags::PRESENTATION_LUT_SHAPE, VR::CS, shape);
    text(object, tags::POSITIONER_TYPE, VR::CS, "");
    let chest = coded("43799004", "SCT", "Chest");
    sequence(object, tags::ANATOMIC_REGION_SEQUENCE, vec![chest]);
    let mut view = coded("399348003", "SCT", "postero-anterior");
    sequence(&mut view, tags::VIEW_MODIFIER_CODE_SEQUENCE, Vec::new());
    sequence(object, tags::VIEW_CODE_SEQUENCE, vec![view]);
    sequence(object, tags::ACQUISITION_CONTEXT_SEQUENCE, Vec::new());
}

fn pixels(
    object: &mut InMemDicomObject,
    picture: &Picture,
    storage: Storage,
) -> Result<(), DicomError> {
    let (Ok(rows), Ok(columns)) = (u16::try_from(picture.rows), u16::try_from(picture.columns))
    else {
        return Err(DicomError::TooLarge {
            columns: picture.columns,
            rows: picture.rows,
        });
    };
    let Storage {
        bits, low, high, ..
    } = storage;
    let photometric = if storage.inverted {
        "MONOCHROME1"
    } else {
        "MONOCHROME2"
    };
    number(object, tags::SAMPLES_PER_PIXEL, 1);
    text(
        object,
        tags::PHOTOMETRIC_INTERPRETATION,
        VR::CS,
        photometric,
    );
    number(object, tags::ROWS, rows);
    number(object, tags::COLUMNS, columns);
    number(object, tags::BITS_ALLOCATED, if bits == 8 { 8 } else { 16 });
    number(object, tags::BITS_STORED, bits);
    number(object, tags::HIGH_BIT, bits - 1);
    number(object, tags::PIXEL_REPRESENTATION, 0);
    text(object, tags::RESCALE_INTERCEPT, VR::DS, "0");
    text(object, tags::RESCALE_SLOPE, VR::DS, "1");
    text(object, tags::RESCALE_TYPE, VR::LO, "US");
    // The linear function of the standard: black at centre - 0.5 - (width - 1) / 2, white as far above.
    let width = f64::from(high - low) + 1.0;
    let center = f64::from(low) + (width - 1.0) / 2.0 + 0.5;
    text(object, tags::WINDOW_CENTER, VR::DS, &format!("{center}"));
    text(object, tags::WINDOW_WIDTH, VR::DS, &format!("{width}"));
    let levels = picture.levels(high - low).into_iter();
    let values = levels.map(|level| {
        if storage.inverted {
            high - level
        } else {
            low + level
        }
    });
    let data = if bits == 8 {
        let mut bytes: Vec<u8> = values.map(|value| value as u8).collect();
        if bytes.len() % 2 == 1 {
            bytes.push(0);
        }
        DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(bytes.into()))
    } else {
        let values: Vec<u16> = values.collect();
        DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(values.into()))
    };
    object.put(data);
    Ok(())
}

fn coded(value: &str, scheme: &str, meaning: &str) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    text(&mut item, tags::CODE_VALUE, VR::SH, value);
    text(&mut item, tags::CODING_SCHEME_DESIGNATOR, VR::SH, scheme);
    text(&mut item, tags::CODE_MEANING, VR::LO, meaning);
    item
}

fn text(object: &mut InMemDicomObject, tag: Tag, vr: VR, value: &str) {
    // Several values are several strings.
    let value = if value.contains('\\') {
        PrimitiveValue::Strs(value.split('\\').map(String::from).collect())
    } else {
        PrimitiveValue::from(value)
    };
    object.put(DataElement::new(tag, vr, value));
}

fn number(object: &mut InMemDicomObject, tag: Tag, value: u16) {
    object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
}

fn sequence(object: &mut InMemDicomObject, tag: Tag, items: Vec<InMemDicomObject>) {
    object.put(DataElement::new(tag, VR::SQ, DataSetSequence::from(items)));
}
