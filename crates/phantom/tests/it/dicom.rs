//! DICOM files can be read back, and their window shows the picture that was rendered.

use dicom_dictionary_std::tags;
use dicom_object::{FileDicomObject, InMemDicomObject};
use medfleet_phantom::Phantom;

use crate::{SEED, phantoms};

fn text(object: &FileDicomObject<InMemDicomObject>, tag: dicom_core::Tag) -> String {
    object
        .element(tag)
        .expect("the file has the element")
        .to_str()
        .expect("the file has the element")
        .trim()
        .to_owned()
}

fn number(object: &FileDicomObject<InMemDicomObject>, tag: dicom_core::Tag) -> f64 {
    object
        .element(tag)
        .expect("the file has the element")
        .to_float64()
        .expect("the file has the element")
}

#[test]
fn files_show_the_picture_through_their_window() {
    let mut kinds = Vec::new();
    for phantom in phantoms(40) {
        let bytes = phantom.dicom(97).unwrap();
        let object = dicom_object::from_reader(bytes.as_slice()).unwrap();
        let picture = phantom.render(97);
        assert_eq!(number(&object, tags::COLUMNS), 97.0);
        assert_eq!(number(&object, tags::ROWS), picture.rows as f64);
        assert_eq!(text(&object, tags::RESCALE_SLOPE), "1");
        assert_eq!(text(&object, tags::BURNED_IN_ANNOTATION), "NO");
        assert!(text(&object, tags::PATIENT_NAME).starts_with("PHANTOM^"));
        let bits = number(&object, tags::BITS_STORED) as u32;
        let inverted = text(&object, tags::PHOTOMETRIC_INTERPRETATION) == "MONOCHROME1";
        let data = object.element(tags::PIXEL_DATA).unwrap();
        let stored: Vec<u16> = if bits == 8 {
            data.to_bytes()
                .unwrap()
                .iter()
                .map(|byte| u16::from(*byte))
                .collect()
        } else {
            data.to_multi_int().unwrap()
        };
        let (center, width) = (
            number(&object, tags::WINDOW_CENTER),
            number(&object, tags::WINDOW_WIDTH),
        );
        for (value, brightness) in stored.iter().zip(&picture.values) {
            assert!(u32::from(*value) < 1 << bits);
            let shown = (f64::from(*value) - (center - 0.5)) / (width - 1.0) + 0.5;
            let shown = if inverted { 1.0 - shown } else { shown };
            assert!(
                (shown - f64::from(*brightness)).abs() < 0.005,
                "{shown} {brightness}"
            );
        }
        kinds.push((bits, inverted, text(&object, tags::MODALITY)));
    }
    for bits in [8, 10, 12, 14, 16] {
        assert!(
            kinds.iter().any(|kind| kind.0 == bits),
            "no file of {bits} bits"
        );
    }
    assert!(kinds.iter().any(|kind| kind.1) && kinds.iter().any(|kind| !kind.1));
    assert!(kinds.iter().any(|kind| kind.2 == "CR") && kinds.iter().any(|kind| kind.2 == "DX"));
}

/// A fleet that compares puts two studies in order by their dates, and refuses those of two patients.
#[test]
fn a_pair_is_one_patient_and_the_later_picture_has_the_later_date() {
    let file = |index| {
        let bytes = Phantom::draw(SEED, index, true).dicom(32).unwrap();
        dicom_object::from_reader(bytes.as_slice()).unwrap()
    };
    for index in (0..60).step_by(2) {
        let (before, after) = (file(index), file(index + 1));
        for tag in [
            tags::PATIENT_ID,
            tags::PATIENT_NAME,
            tags::PATIENT_BIRTH_DATE,
        ] {
            assert_eq!(text(&before, tag), text(&after, tag));
        }
        for tag in [tags::STUDY_DATE, tags::ACQUISITION_DATE] {
            assert!(text(&before, tag) < text(&after, tag), "{index}");
        }
    }
}
