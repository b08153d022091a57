//! Objects that leave stay objects of their kind: sequences have the items that they need, and words of the standard are there
//! whatever the patient is called.

use dicom_core::value::PrimitiveValue;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use medfleet_imaging::{DeidentificationKey, Deidentifier, Limits, Profile, Reason};

use crate::synthetic::{file_as, put, put_sequence, set, text};

const SYNTAXES: [&str; 3] = [
    uids::EXPLICIT_VR_LITTLE_ENDIAN,
    uids::IMPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.2",
];
const SECRET_UID: &str = "1.2.999.4711.1";

/// The object of this change without its identity, in each transfer syntax.
fn deidentified(change: fn(&mut InMemDicomObject)) -> Vec<InMemDicomObject> {
    let deidentifier = Deidentifier::new(DeidentificationKey::new([42; 32]), Profile::default());
    let each = SYNTAXES.iter().map(|syntax| {
        let file = file_as(syntax, change);
        let out = deidentifier.deidentify(&file, &Limits::default()).unwrap();
        dicom_object::from_reader(out.bytes.as_slice())
            .unwrap()
            .into_inner()
    });
    each.collect()
}

#[track_caller]
fn only_item(object: &InMemDicomObject, tag: Tag) -> &InMemDicomObject {
    let items = object.element(tag).unwrap().items().unwrap();
    let [item] = items else {
        panic!("{tag} has {} items", items.len())
    };
    item
}

/// A reference to an instance of a class.
fn reference(class: &str) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    set(&mut item, tags::REFERENCED_SOP_CLASS_UID, class);
    set(&mut item, tags::REFERENCED_SOP_INSTANCE_UID, SECRET_UID);
    item
}

fn code(value: &str, scheme: &str, meaning: &str) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    set(&mut item, tags::CODE_VALUE, value);
    set(&mut item, tags::CODING_SCHEME_DESIGNATOR, scheme);
    set(&mut item, tags::CODE_MEANING, meaning);
    item
}

/// Detached Study Management, retired and still found in files.
const RETIRED_STUDY_MANAGEMENT: &str = "1.2.840.10008.3.1.2.3.1";

fn with_sequences(object: &mut InMemDicomObject) {
    let study = reference(RETIRED_STUDY_MANAGEMENT);
    put_sequence(object, tags::REFERENCED_STUDY_SEQUENCE, study);
    let step = reference(uids::MODALITY_PERFORMED_PROCEDURE_STEP);
    put_sequence(
        object,
        tags::REFERENCED_PERFORMED_PROCEDURE_STEP_SEQUENCE,
        step,
    );
    let context = code("51185008", "SCT", "Chest");
    put_sequence(object, tags::ACQUISITION_CONTEXT_SEQUENCE, context);
    let mut operator = InMemDicomObject::new_empty();
    set(&mut operator, tags::INSTITUTION_NAME, "Saint Mary");
    let person = code("4711", "99STAFF", "Nurse Joy");
    put_sequence(
        &mut operator,
        tags::PERSON_IDENTIFICATION_CODE_SEQUENCE,
        person,
    );
    put_sequence(object, tags::OPERATOR_IDENTIFICATION_SEQUENCE, operator);
}

#[test]
fn sequences_that_need_an_item_have_one_or_are_gone() {
    for object in deidentified(with_sequences) {
        let gone = object.element_opt(tags::REFERENCED_STUDY_SEQUENCE).unwrap();
        assert!(gone.is_none());
        // Of type 2: it may be without items, not away.
        let context = object.element(tags::ACQUISITION_CONTEXT_SEQUENCE).unwrap();
        assert_eq!(context.vr(), VR::SQ);
        assert!(context.items().unwrap_or_default().is_empty());
        let step = only_item(&object, tags::REFERENCED_PERFORMED_PROCEDURE_STEP_SEQUENCE);
        assert_eq!(
            text(step, tags::REFERENCED_SOP_CLASS_UID),
            uids::MODALITY_PERFORMED_PROCEDURE_STEP
        );
        assert!(text(step, tags::REFERENCED_SOP_INSTANCE_UID).starts_with("2.25."));
        let operator = only_item(&object, tags::OPERATOR_IDENTIFICATION_SEQUENCE);
        assert_eq!(text(operator, tags::INSTITUTION_NAME), "ANONYMIZED");
        let person = only_item(operator, tags::PERSON_IDENTIFICATION_CODE_SEQUENCE);
        for tag in [
            tags::CODE_VALUE,
            tags::CODING_SCHEME_DESIGNATOR,
            tags::CODE_MEANING,
        ] {
            assert_eq!(text(person, tag), "ANONYMIZED", "{tag}");
        }
    }
}

#[test]
fn text_that_its_writer_called_bytes_is_text() {
    let objects = deidentified(|object| {
        let text = PrimitiveValue::U8(b"Planted fl3d".as_slice().into());
        put(object, tags::PULSE_SEQUENCE_NAME, VR::OB, text);
    });
    for object in objects {
        let left = object.element(tags::PULSE_SEQUENCE_NAME).unwrap();
        let left = left.to_bytes().unwrap();
        assert_eq!(left.trim_ascii_end(), b"[name] fl3d");
    }
}

/// Burned In Annotation keeps the gate open, whatever the modality is.
#[test]
fn codes_are_no_place_for_names() {
    let objects = deidentified(|object| {
        set(object, tags::BURNED_IN_ANNOTATION, "NO");
        set(object, tags::MODALITY, "DOE^JANE");
        set(object, tags::CORRECTED_IMAGE, "DECY\\SMITH_BOB");
        set(object, tags::SCAN_OPTIONS, "HELICAL MODE\\DOE^JANE");
    });
    for object in objects {
        assert_eq!(text(&object, tags::BURNED_IN_ANNOTATION), "NO");
        assert_eq!(text(&object, tags::MODALITY), "");
        assert_eq!(text(&object, tags::CORRECTED_IMAGE), "DECY\\");
        assert_eq!(text(&object, tags::SCAN_OPTIONS), "HELICAL MODE\\");
        let photometric = text(&object, tags::PHOTOMETRIC_INTERPRETATION);
        assert_eq!(photometric, "MONOCHROME2");
    }
}

#[test]
fn numbers_are_no_place_for_names() {
    let objects = deidentified(|object| {
        put(object, tags::ACQUISITION_NUMBER, VR::IS, "DOE^JANE");
        put(object, tags::KVP, VR::DS, "120");
    });
    for object in objects {
        assert_eq!(text(&object, tags::ACQUISITION_NUMBER), "");
        assert_eq!(text(&object, tags::KVP), "120");
    }
}

fn with_words(object: &mut InMemDicomObject) {
    set(object, tags::PATIENT_NAME, "Axial^Hu^Inverse");
    set(object, tags::IMAGE_TYPE, "ORIGINAL\\PRIMARY\\AXIAL\\HU");
    set(object, tags::RESCALE_INTERCEPT, "-1024");
    set(object, tags::RESCALE_SLOPE, "1");
    set(object, tags::RESCALE_TYPE, "HU");
    set(object, tags::PRESENTATION_LUT_SHAPE, "INVERSE");
    set(object, tags::MANUFACTURER, "Axial Hu");
    let region = code("51185008", "SCT", "Chest of Axial");
    put_sequence(object, tags::ANATOMIC_REGION_SEQUENCE, region);
}

#[test]
fn words_of_the_standard_stay_and_names_in_text_go() {
    for object in deidentified(with_words) {
        // What is no word of the standard goes, and it alone.
        assert_eq!(
            text(&object, tags::IMAGE_TYPE),
            "ORIGINAL\\PRIMARY\\AXIAL\\"
        );
        assert_eq!(text(&object, tags::RESCALE_TYPE), "HU");
        assert_eq!(text(&object, tags::PRESENTATION_LUT_SHAPE), "INVERSE");
        let maker = text(&object, tags::MANUFACTURER);
        assert!(
            maker.starts_with("[name]") && !maker.contains("Hu"),
            "{maker}"
        );
        let region = only_item(&object, tags::ANATOMIC_REGION_SEQUENCE);
        assert_eq!(text(region, tags::CODE_VALUE), "51185008");
        assert_eq!(text(region, tags::CODE_MEANING), "Chest of [name]");
    }
}

/// Whoever has the key can say whose a file is without writing the object, and says the same.
#[test]
fn whose_a_file_is_is_what_the_object_says() {
    let key = DeidentificationKey::new([42; 32]);
    let identified = |object: &mut InMemDicomObject| {
        set(object, tags::PATIENT_ID, "PID-4711");
        set(object, tags::STUDY_INSTANCE_UID, SECRET_UID);
    };
    let limits = Limits::default();
    let whose = SYNTAXES.map(|syntax| key.whose(&file_as(syntax, identified), &limits).unwrap());
    for (whose, object) in whose.iter().zip(deidentified(identified)) {
        assert_eq!(whose.patient, text(&object, tags::PATIENT_ID));
        assert_eq!(whose.study, text(&object, tags::STUDY_INSTANCE_UID));
    }
    assert_eq!(whose[0], whose[1]);
    let other = DeidentificationKey::new([43; 32]);
    assert_ne!(
        other
            .whose(&file_as(SYNTAXES[0], identified), &limits)
            .unwrap(),
        whose[0]
    );
    assert!(!format!("{whose:?}").contains(&whose[0].patient));
    let reason = |bytes: &[u8]| key.whose(bytes, &limits).unwrap_err().reason;
    assert_eq!(
        reason(&file_as(SYNTAXES[0], |_| {})),
        Reason::MissingAttribute
    );
    assert_eq!(reason(b"\x89PNG\r\n\x1a\n"), Reason::NotDicom);
}

/// What says how a file is written, and what it is, is no way out either.
#[test]
fn no_text_leaves_as_a_uid_of_the_file_meta_information() {
    let limits = Limits::default();
    let deidentifier = Deidentifier::new(DeidentificationKey::new([42; 32]), Profile::default());
    let named = "1.2.840.4711123.DOE";
    let file = file_as(uids::EXPLICIT_VR_LITTLE_ENDIAN, |object| {
        set(object, tags::SOP_CLASS_UID, named);
    });
    let out = deidentifier.deidentify(&file, &limits).unwrap();
    let object = dicom_object::from_reader(out.bytes.as_slice()).unwrap();
    let class = object.meta().media_storage_sop_class_uid();
    assert!(!class.contains("DOE") && !class.contains("4711123"));
    assert_eq!(class.trim_matches('\0'), text(&object, tags::SOP_CLASS_UID));

    // As long as the one that it stands in the place of.
    let syntax: &[u8] = uids::EXPLICIT_VR_LITTLE_ENDIAN.as_bytes();
    let at = file.windows(syntax.len()).position(|here| here == syntax);
    let at = at.unwrap();
    for other in ["1.2.840.10008.DOE.1", "1.2.840.4711123.1.1"] {
        let mut file = file.clone();
        file[at..at + syntax.len()].copy_from_slice(other.as_bytes());
        let refusal = deidentifier.deidentify(&file, &limits).unwrap_err();
        assert_eq!(refusal.reason, Reason::UnsupportedTransferSyntax);
        assert_eq!(refusal.found, None);
    }
}
