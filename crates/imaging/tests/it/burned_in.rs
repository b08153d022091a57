//! The gate before pixels that may carry text, on files that differ in what they say, and on the public corpora.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use medfleet_imaging::{
    BurnedIn, DeidentificationKey, Deidentifier, Limits, Note, Prepared, Profile, Reason,
    decode_file, prepare,
};

use crate::corpus::cache;
use crate::options;
use crate::synthetic::{file, set};

/// What a file says, and whether it passes.
#[track_caller]
fn check(says: &[(Tag, &str)], passes: bool) {
    let bytes = file(|object| say(object, says));
    let refused = decode_file(&bytes, &options(8))
        .err()
        .map(|refusal| refusal.reason);
    assert_eq!(
        refused,
        (!passes).then_some(Reason::BurnedInAnnotation),
        "{says:?}"
    );
    let allowing = options(8).burned_in(BurnedIn::Allow);
    let allowed = decode_file(&bytes, &allowing).unwrap();
    let (_, info) = &allowed.frames[0];
    let warned = info
        .notes
        .iter()
        .any(|note| matches!(note, Note::BurnedInAnnotation | Note::BurnedInPossible));
    assert_eq!(warned, !passes, "{says:?}");
}

fn say(object: &mut InMemDicomObject, says: &[(Tag, &str)]) {
    for (tag, value) in says {
        set(object, *tag, *value);
    }
}

const STATED: Tag = tags::BURNED_IN_ANNOTATION;
const CAPTURE: (Tag, &str) = (tags::SOP_CLASS_UID, uids::SECONDARY_CAPTURE_IMAGE_STORAGE);

#[test]
fn radiographs_pass_unless_they_say_so_and_captures_only_if_they_say_not() {
    check(&[], true);
    check(&[(STATED, "")], true);
    check(&[(STATED, "NO")], true);
    check(&[(STATED, "YES")], false);
    check(&[(STATED, "MAYBE")], false);
    check(&[(tags::MODALITY, "DX")], true);
    check(&[CAPTURE], false);
    check(&[CAPTURE, (STATED, "MAYBE")], false);
    check(&[CAPTURE, (STATED, "NO")], true);
    check(&[(tags::CONVERSION_TYPE, "DF")], false);
    check(&[(tags::CONVERSION_TYPE, "DI")], true);
    check(
        &[(tags::IMAGE_TYPE, "DERIVED\\SECONDARY\\SCREEN SAVE")],
        false,
    );
    check(&[(tags::IMAGE_TYPE, "ORIGINAL\\PRIMARY\\AXIAL")], true);
}

/// Of several kinds all but the first came without the note.
#[test]
fn secondary_captures_of_every_kind_have_their_note() {
    for class in [
        uids::SECONDARY_CAPTURE_IMAGE_STORAGE,
        uids::MULTI_FRAME_SINGLE_BIT_SECONDARY_CAPTURE_IMAGE_STORAGE,
        uids::MULTI_FRAME_GRAYSCALE_BYTE_SECONDARY_CAPTURE_IMAGE_STORAGE,
        uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE,
        uids::MULTI_FRAME_TRUE_COLOR_SECONDARY_CAPTURE_IMAGE_STORAGE,
    ] {
        let says = [(tags::SOP_CLASS_UID, class), (STATED, "NO")];
        let bytes = file(|object| say(object, &says));
        let decoded = decode_file(&bytes, &options(8)).unwrap();
        let notes = &decoded.frames[0].1.notes;
        assert!(notes.contains(&Note::SecondaryCapture), "{class}");
    }
}

#[test]
fn a_dose_sheet_is_withheld_from_its_volume() {
    let sheet = file(|object| {
        say(object, &[(tags::MODALITY, "CT"), CAPTURE]);
    });
    let prepared = prepare(&sheet, &options(8)).unwrap();
    assert!(
        matches!(&prepared, Prepared::Withheld(refusal) if refusal.reason == Reason::BurnedInAnnotation),
        "{prepared:?}"
    );
    let slice = file(|object| say(object, &[(tags::MODALITY, "CT")]));
    assert!(matches!(
        prepare(&slice, &options(8)).unwrap(),
        Prepared::Slices(_)
    ));
}

/// What became of the corpora's files of one modality.
#[derive(Debug, Default)]
struct Counts {
    /// By the gate alone.
    passed: u32,
    stopped: u32,
    /// Of those with pixels, by all of admission and decoding.
    shown: u32,
    refused: u32,
}

#[test]
fn no_kind_of_radiograph_or_slice_is_refused_wholesale() {
    let deidentifier = Deidentifier::new(DeidentificationKey::new([1; 32]), Profile::default());
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    for path in corpora() {
        let bytes = std::fs::read(&path).unwrap();
        let outcome = deidentifier.deidentify(&bytes, &Limits::default());
        let Ok(object) = dicom_object::from_reader(bytes.as_slice()) else {
            continue;
        };
        let modality = object.element(tags::MODALITY).ok();
        let Some(modality) = modality.and_then(|element| element.to_str().ok()) else {
            continue;
        };
        let count = counts.entry(modality.trim().to_owned()).or_default();
        match outcome {
            Ok(object) => {
                count.passed += 1;
                let again = deidentifier.deidentify(&object.bytes, &Limits::default());
                assert!(again.is_ok(), "{}: {again:?}", path.display());
            }
            Err(refusal) if refusal.reason == Reason::BurnedInAnnotation => count.stopped += 1,
            Err(_) => {}
        }
        match prepare(&bytes, &options(8)) {
            Ok(Prepared::Frames(_) | Prepared::Slices(_)) => count.shown += 1,
            Err(refusal) if refusal.leaves_out() => {}
            Ok(Prepared::Withheld(_)) | Err(_) => count.refused += 1,
        }
    }
    let of = |modality: &str| counts.get(modality);
    for modality in ["CR", "CT", "MR"] {
        let most = of(modality).is_some_and(|of| {
            of.passed >= 3 * of.stopped && of.passed > 0 && of.shown > of.refused
        });
        assert!(most, "{modality}: {counts:?}");
    }
    assert!(
        of("US").is_some_and(|of| of.passed * 3 <= of.stopped),
        "{counts:?}"
    );
}

/// The corpora that hold radiographs and slices as devices make them.
fn corpora() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["pydicom-3.0.2", "pydicom-data-1.0.0", "nibabel-nicom-5.4.2"]
        .iter()
        .map(|corpus| cache().join(corpus))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension() == Some(Path::new("dcm").as_os_str()) {
                found.push(path);
            }
        }
    }
    found
}
