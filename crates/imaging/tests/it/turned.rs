//! Films beside presentation states that show them mirrored or turned.

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use medfleet_imaging::{Limits, Patients, Reason, Turned, read_input};
use medfleet_testkit::tar;

use crate::options;
use crate::synthetic::{file, put, put_sequence, set};

/// A film, or another image, with this name.
fn image(modality: &str, instance: &str) -> Vec<u8> {
    file(|object| {
        set(object, tags::MODALITY, modality);
        set(object, tags::SOP_INSTANCE_UID, instance);
    })
}

/// A state that is of the image `2.25.5`.
fn state(change: impl FnOnce(&mut InMemDicomObject)) -> Vec<u8> {
    file(|object| {
        let class = uids::GRAYSCALE_SOFTCOPY_PRESENTATION_STATE_STORAGE;
        set(object, tags::SOP_CLASS_UID, class);
        set(object, tags::SOP_INSTANCE_UID, "2.25.6");
        set(object, tags::MODALITY, "PR");
        drop(object.take_element(tags::PIXEL_DATA));
        let mut named = InMemDicomObject::new_empty();
        set(&mut named, tags::REFERENCED_SOP_INSTANCE_UID, "2.25.5");
        let mut series = InMemDicomObject::new_empty();
        put_sequence(&mut series, tags::REFERENCED_IMAGE_SEQUENCE, named);
        put_sequence(object, tags::REFERENCED_SERIES_SEQUENCE, series);
        change(object);
    })
}

fn mirrors(object: &mut InMemDicomObject) {
    set(object, tags::IMAGE_HORIZONTAL_FLIP, "Y");
}

fn turns(degrees: u16) -> impl FnOnce(&mut InMemDicomObject) {
    move |object| put(object, tags::IMAGE_ROTATION, VR::US, degrees)
}

/// What is said of the files of an archive.
fn read(files: &[&[u8]]) -> Turned {
    let files: Vec<_> = files.iter().map(|file| ("x", *file)).collect();
    let archive = tar(&files);
    let read = read_input(&archive, &options(8), 8, Patients::One, &mut |_, _| {});
    read.unwrap().turned
}

/// In an archive, in one the other way round, and one by one.
#[track_caller]
fn check(image: &[u8], state: &[u8], expected: Option<Reason>) {
    let refused = |all: &Turned, of: &Turned| all.check(of).err().map(|refusal| refusal.reason);
    let both = read(&[image, state]);
    assert_eq!(refused(&both, &both), expected);
    let both = read(&[state, image]);
    assert_eq!(refused(&both, &both), expected);
    let of = |bytes: &[u8]| Turned::of(bytes, &Limits::default()).unwrap();
    let (film, mut all) = (of(image), of(state));
    assert_eq!(refused(&all, &film), expected);
    assert_eq!(refused(&film, &film), None);
    all.merge(&film);
    assert_eq!(refused(&all, &all), expected);
}

/// A film that was stored mirrored and put right by a state was shown with the heart on the right.
#[test]
fn films_that_a_state_shows_mirrored_or_turned_are_refused() {
    let turned = Some(Reason::ShownTurned);
    for modality in ["CR", "DX"] {
        check(&image(modality, "2.25.5"), &state(mirrors), turned);
    }
    let film = image("DX", "2.25.5");
    for degrees in [90, 180, 270] {
        check(&film, &state(turns(degrees)), turned);
    }
    // Only windows, and nothing said.
    check(&film, &state(turns(0)), None);
    let not_mirrored = |object: &mut InMemDicomObject| {
        set(object, tags::IMAGE_HORIZONTAL_FLIP, "N");
    };
    check(&film, &state(not_mirrored), None);
    check(&film, &state(|_| {}), None);
    // Of another film, and of none.
    check(&image("DX", "2.25.7"), &state(mirrors), None);
    let of_none = |object: &mut InMemDicomObject| {
        mirrors(object);
        drop(object.take_element(tags::REFERENCED_SERIES_SEQUENCE));
    };
    check(&film, &state(of_none), None);
    // No state, though it says the same of an image.
    let no_state = |object: &mut InMemDicomObject| {
        mirrors(object);
        set(object, tags::SOP_CLASS_UID, uids::BASIC_TEXT_SR_STORAGE);
    };
    check(&film, &state(no_state), None);
    // Breasts are hung mirrored, back to back.
    check(&image("MG", "2.25.5"), &state(mirrors), None);
    // Slices say in their header how they lie.
    let slice = crate::volumes::slice(0.0, |object| {
        set(object, tags::SOP_INSTANCE_UID, "2.25.5");
    });
    check(&slice, &state(mirrors), None);
}

/// What it says of images would be overlooked. Of what is no state as little is read.
#[test]
fn a_state_that_is_larger_than_a_header_is_refused() {
    let read = |bytes: &[u8], header_bytes_max| {
        let limits = Limits {
            header_bytes_max,
            ..Limits::default()
        };
        let refused = Turned::of(bytes, &limits).err();
        refused.map(|refusal| refusal.reason)
    };
    let remark = |object: &mut InMemDicomObject| {
        set(object, tags::IMAGE_COMMENTS, "a".repeat(2000));
    };
    let film = file(remark);
    let state = state(remark);
    assert_eq!(read(&state, 4000), None);
    assert_eq!(read(&state, 2000), Some(Reason::TooLarge));
    assert_eq!(read(&film, 2000), None);
}

/// Whoever names more images than are kept may have named any.
#[test]
fn a_state_of_more_images_than_are_kept_is_as_if_of_all() {
    let of = |count: usize| {
        state(|object| {
            mirrors(object);
            let named: Vec<InMemDicomObject> = (0..count)
                .map(|at| {
                    let mut item = InMemDicomObject::new_empty();
                    let uid = format!("2.25.8.{at}");
                    set(&mut item, tags::REFERENCED_SOP_INSTANCE_UID, uid);
                    item
                })
                .collect();
            let mut series = InMemDicomObject::new_empty();
            put_items(&mut series, tags::REFERENCED_IMAGE_SEQUENCE, named);
            put_sequence(object, tags::REFERENCED_SERIES_SEQUENCE, series);
        })
    };
    let film = image("DX", "2.25.5");
    check(&film, &of(4096), None);
    check(&film, &of(4097), Some(Reason::ShownTurned));
}

fn put_items(object: &mut InMemDicomObject, tag: Tag, items: Vec<InMemDicomObject>) {
    let items = dicom_core::value::DataSetSequence::from(items);
    object.put(dicom_core::DataElement::new(tag, VR::SQ, items));
}
