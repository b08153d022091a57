//! Display shutters: what a viewer would not show of a radiograph is not shown, and takes no part in its contrast.

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use medfleet_imaging::{Note, Reason, decode_file};

use crate::synthetic::{file, set};
use crate::{decode, options};

const EDGES: [Tag; 4] = [
    tags::SHUTTER_UPPER_HORIZONTAL_EDGE,
    tags::SHUTTER_LOWER_HORIZONTAL_EDGE,
    tags::SHUTTER_LEFT_VERTICAL_EDGE,
    tags::SHUTTER_RIGHT_VERTICAL_EDGE,
];

/// Rows and columns 2 to 4 are shown: the values 600 to 1800.
fn put_rectangle(object: &mut InMemDicomObject) {
    set(object, tags::SHUTTER_SHAPE, "RECTANGULAR");
    for (edge, value) in EDGES.into_iter().zip(["2", "4", "2", "4"]) {
        set(object, edge, value);
    }
}

/// Of a 5 × 6 picture within a square of 6 × 6, without a window.
fn shown(photometric: &str, value: Option<u16>) -> Vec<u8> {
    let bytes = file(|object| {
        set(object, tags::PHOTOMETRIC_INTERPRETATION, photometric);
        put_rectangle(object);
        if let Some(value) = value {
            set(object, tags::SHUTTER_PRESENTATION_VALUE, value);
        }
    });
    let (frame, info) = decode(&bytes, 6).frames.remove(0);
    assert!(info.notes.contains(&Note::ShutterApplied));
    assert_eq!(info.window.unwrap().width, 1200.0);
    frame.pixels
}

#[test]
fn what_is_covered_has_one_level_and_no_part_in_the_contrast() {
    let level = |level: u8, pixels: &[u8]| {
        for row in 0..6 {
            for column in 0..5 {
                let is_shown = (1..4).contains(&row) && (1..4).contains(&column);
                assert!(is_shown || pixels[row * 6 + column] == level);
            }
        }
        [pixels[7], pixels[14], pixels[21]]
    };
    assert_eq!(level(0, &shown("MONOCHROME2", None)), [0, 128, 255]);
    // A P-value is what is shown, so that it is not inverted.
    for (value, expected) in [(0, 0), (0x8000, 128), (0xffff, 255)] {
        let of = |photometric| level(expected, &shown(photometric, Some(value)));
        assert_eq!(of("MONOCHROME2"), [0, 128, 255]);
        assert_eq!(of("MONOCHROME1"), [255, 127, 0]);
    }
}

fn refused(change: impl FnOnce(&mut InMemDicomObject)) -> Option<Reason> {
    let decoded = decode_file(&file(change), &options(8));
    decoded.err().map(|refusal| refusal.reason)
}

#[test]
fn a_window_that_differs_only_under_the_shutter_leaves_one_level() {
    let with = |center: &str| {
        refused(|object| {
            put_rectangle(object);
            set(object, tags::WINDOW_CENTER, center);
            set(object, tags::WINDOW_WIDTH, "200");
        })
    };
    assert_eq!(with("1200"), None);
    assert_eq!(with("200"), Some(Reason::FlatImage));
}

#[test]
fn a_shutter_is_whole_and_leaves_something_or_is_refused() {
    let with = |shape: &str, numbers: &[(Tag, &str)]| {
        refused(|object| {
            set(object, tags::SHUTTER_SHAPE, shape);
            for (tag, number) in numbers {
                set(object, *tag, *number);
            }
        })
    };
    let edges = |numbers: [&'static str; 4]| -> Vec<(Tag, &'static str)> {
        EDGES.into_iter().zip(numbers).collect()
    };
    let circle = |middle: &'static str, radius: &'static str| {
        vec![
            (tags::CENTER_OF_CIRCULAR_SHUTTER, middle),
            (tags::RADIUS_OF_CIRCULAR_SHUTTER, radius),
        ]
    };
    let corners = |text: &'static str| vec![(tags::VERTICES_OF_THE_POLYGONAL_SHUTTER, text)];
    for (shape, numbers) in [
        ("", edges(["2", "2", "9", "9"])),
        ("RECTANGULAR", edges(["1", "6", "1", "5"])),
        ("CIRCULAR", circle("3\\3", "2")),
        ("POLYGONAL", corners("1\\1\\6\\1\\1\\5")),
    ] {
        assert_eq!(with(shape, &numbers), None, "{shape}");
    }
    for (shape, numbers) in [
        ("BITMAP", vec![]),
        ("RECTANGULAR", vec![]),
        ("RECTANGULAR", edges(["1", "6", "1", ""])),
        ("RECTANGULAR", edges(["1", "6", "1", "half"])),
        ("RECTANGULAR", edges(["0", "0", "0", "0"])),
        ("RECTANGULAR", edges(["7", "9", "1", "5"])),
        ("CIRCULAR", circle("3\\3", "")),
        ("CIRCULAR", circle("3", "2")),
        ("CIRCULAR", circle("3\\-9", "2")),
        ("POLYGONAL", corners("1\\1\\6\\1")),
        ("POLYGONAL", corners("1\\1\\6\\1\\1")),
        (
            "RECTANGULAR\\RECTANGULAR\\RECTANGULAR\\RECTANGULAR",
            edges(["1", "6", "1", "5"]),
        ),
        ("RECTANGULAR\\BITMAP", edges(["1", "6", "1", "5"])),
    ] {
        let found = with(shape, &numbers);
        assert_eq!(found, Some(Reason::UnsupportedShutter), "{shape}");
    }
}

#[test]
fn only_radiographs_have_a_shutter() {
    for (modality, expected) in [
        ("CR", None),
        ("MG", None),
        ("CT", Some(Reason::UnsupportedShutter)),
        ("MR", Some(Reason::UnsupportedShutter)),
        ("XC", Some(Reason::UnsupportedShutter)),
    ] {
        let found = refused(|object| {
            set(object, tags::MODALITY, modality);
            put_rectangle(object);
        });
        assert_eq!(found, expected, "{modality}");
    }
}
