//! Which films are of the chest, and how those lie that are looked at.

use dicom_core::VR;
use dicom_core::value::PrimitiveValue;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use medfleet_imaging::Reason;

use crate::contradictions::refused;
use crate::synthetic::{put, put_sequence, set};

#[test]
fn a_chest_film_lies_as_it_is_looked_at_or_is_refused() {
    let film = |part: &str, view: &str, orientation: &str| {
        refused(|object| {
            set(object, tags::BODY_PART_EXAMINED, part);
            set(object, tags::VIEW_POSITION, view);
            set(object, tags::PATIENT_ORIENTATION, orientation);
        })
    };
    for (view, orientation) in [
        ("PA", "L\\F"),
        ("AP", "L\\FA"),
        ("LL", "P\\F"),
        ("RL", "A\\F"),
        ("", "L\\F"),
        ("PA", ""),
        ("PA", "UNKNOWN"),
        ("PA", "\\F"),
    ] {
        assert_eq!(
            film("CHEST", view, orientation),
            None,
            "{view} {orientation}"
        );
    }
    for (view, orientation) in [
        ("PA", "R\\F"),
        ("AP", "L\\H"),
        ("AP", "R\\H"),
        ("PA", "F\\R"),
        ("PA", "P\\F"),
        ("LL", "P\\H"),
        ("LL", "F\\P"),
        ("", "R\\F"),
    ] {
        let found = film("CHEST", view, orientation);
        assert_eq!(found, Some(Reason::NotUpright), "{view} {orientation}");
    }
    assert_eq!(film("HAND", "PA", "R\\F"), None);
    // "TÓRAX" in a character set of one byte a letter is no reason to refuse a film whose pixels are good.
    let in_latin_1 = |part: &'static [u8]| {
        refused(|object| {
            let part = PrimitiveValue::U8(part.to_vec().into());
            put(object, tags::BODY_PART_EXAMINED, VR::UN, part);
            set(object, tags::PATIENT_ORIENTATION, "L\\F");
        })
    };
    assert_eq!(in_latin_1(b"T\xd3RAX "), None);
    assert_eq!(in_latin_1(b"CHEST "), None);
}

/// A film of DX need not name its part; its region has a code. Others add the view to the name.
#[test]
fn a_chest_film_is_known_by_its_region_and_by_longer_names() {
    let film = |part: &str, code: &str, orientation: &str| {
        refused(|object| {
            let mut region = InMemDicomObject::new_empty();
            set(&mut region, tags::CODE_VALUE, code);
            put_sequence(object, tags::ANATOMIC_REGION_SEQUENCE, region);
            set(object, tags::MODALITY, "DX");
            set(object, tags::BODY_PART_EXAMINED, part);
            set(object, tags::PATIENT_ORIENTATION, orientation);
        })
    };
    let mirrored = Some(Reason::NotUpright);
    // The last is of a newborn, whom one film shows from neck to pelvis.
    for code in [
        "T-D3000",
        "51185008",
        "816094009",
        "43799004",
        "39607008",
        "416775004",
        "416319003",
    ] {
        assert_eq!(film("", code, "R\\F"), mirrored, "{code}");
        assert_eq!(film("", code, "L\\F"), None, "{code}");
    }
    for part in ["CHEST PA", "Chest", "CHESTABDOMEN", "NECKCHESTABDPELV"] {
        assert_eq!(film(part, "", "R\\F"), mirrored, "{part}");
    }
    // A hand.
    assert_eq!(film("", "T-D8700", "R\\F"), None);
}
