//! Which slices of a study are one volume where some were acquired more than once, have one name, were compressed, or lie a little
//! askew, and what beside them is none.

use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use medfleet_imaging::{Fate, Prepared, Reason, Unused, decode_file, prepare};

use crate::options;
use crate::synthetic::{COLUMNS, put, put_cells, put_sequence, set};
use crate::volumes::{AXIAL, plan_of, slice};

/// One file with slices of two rows at these heights.
fn several(acquisition: &str, heights: &[f64]) -> Vec<u8> {
    slice(heights[0], |object| {
        set(object, tags::ACQUISITION_NUMBER, acquisition);
        let instance = format!("2.25.13.{acquisition}");
        set(object, tags::SOP_INSTANCE_UID, instance);
        set(object, tags::ROWS, 2_u16);
        let count = heights.len().to_string();
        set(object, tags::NUMBER_OF_FRAMES, count);
        put_cells(object, vec![900; heights.len() * 2 * usize::from(COLUMNS)]);
        let groups = heights.iter().map(|height| {
            let mut position = InMemDicomObject::new_empty();
            let text = format!("7\\8\\{height}");
            set(&mut position, tags::IMAGE_POSITION_PATIENT, text);
            let mut item = InMemDicomObject::new_empty();
            put_sequence(&mut item, tags::PLANE_POSITION_SEQUENCE, position);
            item
        });
        let groups = DataSetSequence::from(groups.collect::<Vec<_>>());
        let tag = tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE;
        object.put(DataElement::new(tag, VR::SQ, groups));
    })
}

/// All that follows its first one was lost.
#[test]
fn a_later_acquisition_has_every_position_of_a_file_with_several() {
    let first = several("1", &[0.0, 1.0, 2.0]);
    let whole = [first.clone(), several("2", &[0.0, 1.0, 2.0])];
    let plan = plan_of(&whole).unwrap();
    assert_eq!(plan.frames, [(1, 0), (1, 1), (1, 2)]);
    assert_eq!(plan.fates[0].1, Fate::Unused(Unused::OtherAcquisition));
    let part = [first.clone(), several("2", &[0.0, 1.0])];
    assert_eq!(plan_of(&part).unwrap_err(), Reason::SamePosition);
    // One scan in two parts.
    let plan = plan_of(&[first, several("2", &[3.0, 4.0])]).unwrap();
    assert_eq!(plan.frames.len(), 5);
}

/// Of two phases of contrast in one series, the second half a step further, every other slice was of the other phase.
#[test]
fn acquisitions_that_lie_between_each_other_are_no_volume() {
    let of = |modality: &str, acquisition: &str, z: f64| {
        slice(z, |object| {
            set(object, tags::MODALITY, modality);
            set(object, tags::ACQUISITION_NUMBER, acquisition);
        })
    };
    let phases = |modality: &str| {
        let first = [0.0, 2.0, 4.0].map(|z| of(modality, "1", z));
        let second = [1.0, 3.0, 5.0].map(|z| of(modality, "2", z));
        plan_of(&[first, second].concat())
    };
    assert_eq!(phases("CT").unwrap_err(), Reason::MixedSeries);
    // An MR takes every other slice first.
    assert_eq!(phases("MR").unwrap().frames.len(), 6);
    // Stretches, one behind the other, in whatever order of their numbers.
    let stretches = [("2", 0.0), ("2", 1.0), ("3", 2.0), ("1", 3.0), ("1", 4.0)];
    let stretches = stretches.map(|(acquisition, z)| of("CT", acquisition, z));
    assert_eq!(plan_of(&stretches).unwrap().frames.len(), 5);
}

/// Of a second acquisition that was reconstructed around another place the body would jump to the side.
#[test]
fn acquisitions_that_show_other_parts_of_a_cross_section_are_no_volume() {
    let of = |modality: &str, acquisition: &str, [x, y, z]: [f64; 3]| {
        slice(z, |object| {
            set(object, tags::MODALITY, modality);
            set(object, tags::ACQUISITION_NUMBER, acquisition);
            // A picture of 500 by 600 mm.
            set(object, tags::PIXEL_SPACING, "100\\100");
            let position = format!("{x}\\{y}\\{z}");
            set(object, tags::IMAGE_POSITION_PATIENT, position);
        })
    };
    let behind = |modality: &str, [x, y]: [f64; 2]| {
        let first = [0.0, 1.0, 2.0].map(|z| of(modality, "1", [0.0, 0.0, z]));
        let second = [3.0, 4.0, 5.0].map(|z| of(modality, "2", [x, y, z]));
        plan_of(&[second, first].concat()).map(|plan| plan.frames.len())
    };
    assert_eq!(behind("CT", [60.0, 0.0]), Err(Reason::MixedSeries));
    assert_eq!(behind("CT", [0.0, -61.0]), Err(Reason::MixedSeries));
    assert_eq!(behind("CT", [49.0, 59.0]), Ok(6));
    assert_eq!(behind("MR", [60.0, 0.0]), Ok(6));
    // Rows of a gantry tilted by 20 degrees, which moves its slices by the tangent of that; ten of them by more than a jump may be.
    let tilted = (0..10).map(|at| {
        let z = f64::from(at) * 20.0;
        slice(z, |object| {
            let orientation = "1\\0\\0\\0\\0.9397\\0.342";
            set(object, tags::IMAGE_ORIENTATION_PATIENT, orientation);
            set(object, tags::IMAGE_POSITION_PATIENT, format!("0\\0\\{z}"));
        })
    });
    let plan = plan_of(&tilted.collect::<Vec<_>>());
    assert_eq!(plan.unwrap().frames.len(), 10);
}

/// Some that take names away give all of a study one instance UID.
#[test]
fn slices_of_other_series_and_acquisitions_are_no_duplicates() {
    let of = |series: &str, acquisition: &str, z: f64| {
        slice(z, |object| {
            set(object, tags::SOP_INSTANCE_UID, "2.25.12");
            set(object, tags::SERIES_INSTANCE_UID, series);
            set(object, tags::ACQUISITION_NUMBER, acquisition);
        })
    };
    let (short, long) = ("2.25.20", "2.25.21");
    let mut files = vec![of(short, "1", 0.0), of(short, "1", 1.0)];
    files.extend([0.0, 1.0, 2.0, 3.0, 4.0].map(|z| of(long, "1", z)));
    // Without its first two the longer series would still be the longest.
    let plan = plan_of(&files).unwrap();
    assert_eq!(plan.frames, [(2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]);
    assert_eq!(plan.fates[0].1, Fate::Unused(Unused::OtherSeries));
    // The second scan of one series is used as a whole, in whatever order its slices come.
    let files = [
        of(short, "1", 0.0),
        of(short, "2", 0.0),
        of(short, "2", 1.0),
        of(short, "1", 1.0),
    ];
    let plan = plan_of(&files).unwrap();
    assert_eq!(plan.frames, [(1, 0), (2, 0)]);
}

/// Of two echoes the one that came first at each position would be shown, and both mixed.
#[test]
fn echoes_with_one_name_are_no_duplicates() {
    let of = |number: &str, z: f64| {
        slice(z, |object| {
            set(object, tags::SOP_INSTANCE_UID, "2.25.12");
            set(object, tags::INSTANCE_NUMBER, number);
        })
    };
    let (first, second) = (of("1", 0.0), of("2", 0.0));
    let files = [first.clone(), of("4", 1.0), second, of("3", 1.0)];
    assert_eq!(plan_of(&files).unwrap_err(), Reason::SamePosition);
    let plan = plan_of(&[first.clone(), of("3", 1.0), first]).unwrap();
    assert_eq!(plan.fates[2].1, Fate::Unused(Unused::Duplicate));
}

/// The last slices of a volume would be left out, and nothing would show it.
#[test]
fn slices_that_were_compressed_with_loss_stay_in_their_volume() {
    let with = |z: f64, series: &str, kind: &str, lossy: &str| {
        let derived = slice(z, |object| {
            set(object, tags::SERIES_INSTANCE_UID, series);
            set(object, tags::IMAGE_TYPE, kind);
            set(object, tags::LOSSY_IMAGE_COMPRESSION, lossy);
            set(object, tags::SOP_INSTANCE_UID, "2.25.14");
        });
        let mut files = [0.0, 1.0, 2.0].map(|z| slice(z, |_| {})).to_vec();
        files.push(derived);
        plan_of(&files).unwrap().fates[3].1
    };
    let (series, copy) = ("2.25.11", "DERIVED\\PRIMARY\\AXIAL");
    let unused = Fate::Unused(Unused::Derived);
    assert_eq!(with(3.0, series, copy, "01"), Fate::Used);
    // An original is there.
    assert_eq!(with(1.0, series, copy, "01"), unused);
    // Made of several, and of another kind.
    assert_eq!(with(3.0, series, copy, "00"), unused);
    let average = "DERIVED\\PRIMARY\\AXIAL\\AVERAGE";
    assert_eq!(with(3.0, series, average, "01"), unused);
    let other = Fate::Unused(Unused::OtherSeries);
    assert_eq!(with(3.0, "2.25.20", copy, "01"), other);
    assert_eq!(with(1.0, "2.25.20", copy, "01"), unused);
}

/// The few slices that were not compressed would be shown as all that there is.
#[test]
fn a_series_compressed_with_loss_is_the_volume_where_the_originals_are_few() {
    let copy = |z: f64, kind: &str| {
        slice(z, |object| {
            set(object, tags::SERIES_INSTANCE_UID, "2.25.20");
            set(object, tags::SERIES_NUMBER, "-1");
            set(object, tags::IMAGE_TYPE, kind);
            set(object, tags::LOSSY_IMAGE_COMPRESSION, "01");
            set(object, tags::SOP_INSTANCE_UID, format!("2.25.20.{z}"));
        })
    };
    let shown = |originals: &[f64], kind: &str| {
        let mut files: Vec<_> = originals.iter().map(|z| slice(*z, |_| {})).collect();
        files.extend([0.0, 1.0, 2.0, 3.0].map(|z| copy(z, kind)));
        let plan = plan_of(&files).unwrap();
        let first = originals.len();
        (
            plan.frames[0].0 == first,
            plan.fates[0].1,
            plan.fates[first].1,
        )
    };
    let (kind, unused) = ("DERIVED\\PRIMARY\\AXIAL", Fate::Unused(Unused::OtherSeries));
    assert_eq!(shown(&[1.0, 2.0], kind), (true, unused, Fate::Used));
    // All of them are there, or as many others.
    let derived = Fate::Unused(Unused::Derived);
    let all = [0.0, 1.0, 2.0, 3.0];
    assert_eq!(shown(&all, kind), (false, Fate::Used, derived));
    let others = [10.0, 11.0, 12.0, 13.0];
    assert_eq!(shown(&others, kind), (false, Fate::Used, unused));
    // Made of several.
    let average = "DERIVED\\PRIMARY\\AXIAL\\AVERAGE";
    assert_eq!(shown(&[1.0, 2.0], average), (false, Fate::Used, derived));
}

/// By its own normal the second would lie above the third: half a degree is 2 mm where a corner lies 250 mm to the side.
#[test]
fn slices_lie_along_one_normal_though_their_directions_differ_a_little() {
    let of = |z: f64, orientation: &str| {
        slice(z, |object| {
            set(object, tags::IMAGE_ORIENTATION_PATIENT, orientation);
            let position = format!("-250\\-250\\{z}");
            set(object, tags::IMAGE_POSITION_PATIENT, position);
        })
    };
    // Rows half a degree up, which takes the normal to the right.
    let tilted = "0.99996\\0\\0.00873\\0\\1\\0";
    let files = [of(0.0, AXIAL), of(1.0, tilted), of(2.0, AXIAL)];
    let plan = plan_of(&files).unwrap();
    assert_eq!(plan.frames, [(0, 0), (1, 0), (2, 0)]);
}

/// One image that cannot be shown would otherwise refuse a whole study.
#[test]
fn what_is_stretched_or_coloured_beside_the_slices_is_left_out() {
    let coronal = slice(0.0, |object| {
        set(object, tags::SERIES_INSTANCE_UID, "2.25.41");
        set(object, tags::SOP_INSTANCE_UID, "2.25.42");
        let down = "1\\0\\0\\0\\0\\-1";
        set(object, tags::IMAGE_ORIENTATION_PATIENT, down);
        set(object, tags::PIXEL_SPACING, "1\\0.5");
    });
    let alone = plan_of(std::slice::from_ref(&coronal));
    assert_eq!(alone.unwrap_err(), Reason::NonSquarePixels);
    let mut files = vec![coronal];
    files.extend([0.0, 1.0, 2.0].map(|z| slice(z, |_| {})));
    let plan = plan_of(&files).unwrap();
    assert_eq!(plan.frames, [(1, 0), (2, 0), (3, 0)]);
    assert_eq!(plan.fates[0].1, Fate::Unused(Unused::OtherSeries));
    // In the series of the slices, and with a position.
    let coloured = slice(9.0, |object| {
        set(object, tags::PHOTOMETRIC_INTERPRETATION, "RGB");
        set(object, tags::SAMPLES_PER_PIXEL, 3_u16);
        set(object, tags::BITS_ALLOCATED, 8_u16);
        set(object, tags::BITS_STORED, 8_u16);
        set(object, tags::HIGH_BIT, 7_u16);
        let samples = PrimitiveValue::U8((0..90).collect());
        put(object, tags::PIXEL_DATA, VR::OB, samples);
    });
    let expected = Reason::UnsupportedPhotometric;
    let prepared = prepare(&coloured, &options(8)).unwrap();
    assert!(
        matches!(&prepared, Prepared::Withheld(refusal) if refusal.reason == expected),
        "{prepared:?}"
    );
    let alone = decode_file(&coloured, &options(8));
    assert_eq!(alone.unwrap_err().reason, expected);
}
