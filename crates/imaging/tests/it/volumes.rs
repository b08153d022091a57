//! CT and MR: which slices of a study are shown, in which order and windows, and what makes no volume.

use dicom_core::value::PrimitiveValue;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use medfleet_imaging::{
    Convention, Fate, Frame, FrameInfo, Limits, Note, Options, Prepared, Reason, SlicePlan, Slices,
    Unused, decode_file, decode_slices, plan_volume, prepare, refuse_air,
};

use crate::synthetic::{COLUMNS, ROWS, file, put, put_cells, put_sequence, set};

pub(crate) const AXIAL: &str = "1\\0\\0\\0\\1\\0";

/// An axial slice at `z` mm whose pixels have Hounsfield units from -1000 on in steps of 100.
pub(crate) fn slice(z: f64, change: impl FnOnce(&mut InMemDicomObject)) -> Vec<u8> {
    file(|object| {
        set(object, tags::MODALITY, "CT");
        set(object, tags::IMAGE_TYPE, "ORIGINAL\\PRIMARY\\AXIAL");
        set(object, tags::STUDY_INSTANCE_UID, "2.25.10");
        set(object, tags::SERIES_INSTANCE_UID, "2.25.11");
        set(
            object,
            tags::SOP_INSTANCE_UID,
            format!("2.25.12.{}", z.to_bits()),
        );
        set(object, tags::IMAGE_ORIENTATION_PATIENT, AXIAL);
        set(object, tags::IMAGE_POSITION_PATIENT, format!("7\\8\\{z}"));
        set(object, tags::PIXEL_SPACING, "0.5\\0.5");
        set(object, tags::RESCALE_SLOPE, "1");
        set(object, tags::RESCALE_INTERCEPT, "-1000");
        change(object);
    })
}

fn options() -> Options {
    Options::new(6, Limits::default()).unwrap()
}

fn read(bytes: &[u8]) -> Slices {
    match prepare(bytes, &options()).unwrap() {
        Prepared::Slices(slices) => *slices,
        Prepared::Frames(_) | Prepared::Withheld(_) => panic!("slices"),
    }
}

pub(crate) fn plan_of(files: &[Vec<u8>]) -> Result<SlicePlan, Reason> {
    let slices: Vec<Slices> = files.iter().map(|bytes| read(bytes)).collect();
    let files: Vec<(usize, &Slices)> = slices.iter().enumerate().collect();
    plan_volume(&files, Convention::newest()).map_err(|refusal| refusal.reason)
}

fn frames_of(files: &[Vec<u8>]) -> Vec<(Frame, FrameInfo)> {
    let plan = plan_of(files).unwrap();
    let frames = plan.frames.iter();
    frames
        .flat_map(|(index, frame)| {
            decode_slices(&files[*index], &[*frame], &plan, &options()).unwrap()
        })
        .collect()
}

/// Slices at these heights are shown in this order.
#[track_caller]
fn check_order(heights: &[f64], expected: &[usize]) {
    let files: Vec<_> = heights.iter().map(|z| slice(*z, |_| {})).collect();
    let plan = plan_of(&files).unwrap();
    let order: Vec<usize> = plan.frames.iter().map(|(index, _)| *index).collect();
    assert_eq!(order, expected);
    assert!(plan.fates.iter().all(|(_, fate)| *fate == Fate::Used));
}

#[test]
fn slices_go_along_the_normal_whatever_the_order_of_files() {
    check_order(&[5.0, 0.0, 2.5], &[1, 2, 0]);
    check_order(&[-10.0, -12.0, -14.0], &[2, 1, 0]);
    check_order(&[3.0], &[0]);
}

#[test]
fn ct_windows_become_red_green_and_blue() {
    let (frame, info) = &frames_of(&[slice(0.0, |_| {})])[0];
    assert_eq!(frame.channels, 3);
    // Row 1, column 0 of the 5 × 6 image is its value 500: -500 HU; the square has no column before it.
    let at = |column: usize, row: usize| &frame.pixels[(row * 6 + column) * 3..][..3];
    // numpy: round((-500 + 1024) / 2048 * 255) = 65; below both other windows.
    assert_eq!(at(0, 1), [65, 0, 0]);
    // 1000 stored in row 2: 0 HU: 127.5 → 128, 135 / 350 * 255 = 98.36, 0.
    assert_eq!(at(0, 2), [128, 98, 0]);
    // 1100: 100 HU.
    assert_eq!(at(1, 2), [140, 171, 255]);
    assert_eq!((info.window, info.channel_windows.len()), (None, 3));
    assert_eq!(info.channel_windows[1].center, 40.0);
    assert_eq!(info.preprocessing_version, "medgemma-1.5-5");
}

#[test]
fn mr_goes_from_the_volume_s_smallest_to_its_largest_value() {
    let mr = |z: f64, scale: &str| {
        slice(z, |object| {
            set(object, tags::MODALITY, "MR");
            set(object, tags::RESCALE_INTERCEPT, "0");
            set(object, tags::RESCALE_SLOPE, scale);
        })
    };
    let frames = frames_of(&[mr(0.0, "1"), mr(1.0, "2")]);
    // Stored 0 to 2900; the volume goes to 5800.
    assert_eq!((frames[0].0.channels, frames[1].0.channels), (1, 1));
    let largest = |frame: &Frame| *frame.pixels.iter().max().unwrap();
    assert_eq!((largest(&frames[0].0), largest(&frames[1].0)), (128, 255));
    assert_eq!(frames[0].1.window.unwrap().width, 5800.0);
}

/// Values of a range without end would all be black.
#[test]
fn an_mr_by_a_slope_beyond_all_numbers_is_refused() {
    let file = slice(0.0, |object| {
        set(object, tags::MODALITY, "MR");
        set(object, tags::RESCALE_INTERCEPT, "0");
        set(object, tags::RESCALE_SLOPE, "1e306");
    });
    let refused = decode_file(&file, &options()).unwrap_err();
    assert_eq!(refused.reason, Reason::FlatImage);
}

/// Read anew for each frame, a million items would take hours.
#[test]
fn what_all_frames_share_is_read_once() {
    let orientation = format!("{AXIAL} ");
    let mut items = b"\xfe\xff\0\xe0\x14\0\0\0\x20\0\x37\0\x0c\0\0\0".to_vec();
    items.extend(orientation.as_bytes());
    items.extend(b"\xfe\xff\0\xe0\0\0\0\0".repeat(1_000_000));
    let file = slice(0.0, |object| {
        set(object, tags::ROWS, 1_u16);
        set(object, tags::NUMBER_OF_FRAMES, "4096");
        put_cells(object, vec![900; 4096 * usize::from(COLUMNS)]);
        let mut groups = InMemDicomObject::new_empty();
        // A sequence that its writer did not know, in implicit encoding.
        let items = PrimitiveValue::U8(items.into());
        put(&mut groups, tags::PLANE_ORIENTATION_SEQUENCE, VR::UN, items);
        put_sequence(object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, groups);
    });
    assert_eq!(read(&file).count(), 4096);
}

/// All of them are decoded before anything is shown, which may take hours of what a small file unpacks to.
#[test]
fn pixels_of_mr_slices_have_a_limit_together_and_those_of_ct_none() {
    let check = |modality: &str, most: u64, expected: Option<Reason>| {
        let limits = Limits {
            volume_pixels_max: most,
            ..Limits::default()
        };
        let options = Options::new(6, limits).unwrap();
        let bytes = slice(0.0, |object| set(object, tags::MODALITY, modality));
        let refused = prepare(&bytes, &options).err();
        assert_eq!(
            refused.map(|refusal| refusal.reason),
            expected,
            "{modality}"
        );
    };
    let pixels = u64::from(ROWS) * u64::from(COLUMNS);
    check("MR", pixels, None);
    check("MR", pixels - 1, Some(Reason::TooManyPixels));
    check("CT", 0, None);
}

#[test]
fn what_is_no_slice_is_left_out_with_a_reason() {
    let mut files: Vec<_> = [0.0, 1.0, 2.0].iter().map(|z| slice(*z, |_| {})).collect();
    files.push(slice(9.0, |object| {
        set(object, tags::IMAGE_TYPE, "ORIGINAL\\PRIMARY\\LOCALIZER");
    }));
    files.push(slice(10.0, |object| {
        set(object, tags::IMAGE_TYPE, "DERIVED\\SECONDARY");
    }));
    files.push(files[1].clone());
    files.push(slice(50.0, |object| {
        set(object, tags::SERIES_INSTANCE_UID, "2.25.99");
    }));
    let plan = plan_of(&files).unwrap();
    let unused: Vec<_> = plan
        .fates
        .iter()
        .filter(|(_, fate)| *fate != Fate::Used)
        .copied()
        .collect();
    let expected = [
        (3, Unused::Localiser),
        (4, Unused::Derived),
        (5, Unused::Duplicate),
        (6, Unused::OtherSeries),
    ];
    assert_eq!(
        unused,
        expected.map(|(index, why)| (index, Fate::Unused(why)))
    );
    assert_eq!(plan.frames, [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(plan.notes, [Note::FewSlices]);
}

/// All but one would be left out, and that one shown as all there is.
#[test]
fn slices_with_one_name_are_slices_all_the_same() {
    let of = |z: f64| slice(z, |object| set(object, tags::SOP_INSTANCE_UID, "2.25.12"));
    let plan = plan_of(&[of(0.0), of(1.0), of(2.0), of(1.0)]).unwrap();
    assert_eq!(plan.frames, [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(plan.fates[3].1, Fate::Unused(Unused::Duplicate));
}

#[test]
fn the_last_acquisition_of_a_series_is_used() {
    let of = |z: f64, acquisition: &str| {
        slice(z, |object| {
            set(object, tags::ACQUISITION_NUMBER, acquisition);
            set(
                object,
                tags::SOP_INSTANCE_UID,
                format!("2.25.{acquisition}.{z}"),
            );
        })
    };
    let files = [of(0.0, "1"), of(1.0, "1"), of(0.0, "2"), of(1.0, "2")];
    let plan = plan_of(&files).unwrap();
    assert_eq!(plan.frames, [(2, 0), (3, 0)]);
    assert_eq!(plan.fates[0].1, Fate::Unused(Unused::OtherAcquisition));
    // Parts of one scan are one volume.
    let plan = plan_of(&[of(0.0, "1"), of(1.0, "2")]).unwrap();
    assert_eq!(plan.frames.len(), 2);
    // A second scan of a part of the body is not all of it.
    let files = [of(0.0, "1"), of(1.0, "1"), of(1.0, "2")];
    assert_eq!(plan_of(&files).unwrap_err(), Reason::SamePosition);
}

/// A slice of one file, with other text in one element.
fn check_alone((tag, text): (Tag, &str), expected: Option<Reason>) {
    let file = slice(0.0, |object| set(object, tag, text));
    assert_eq!(plan_of(&[file]).err(), expected, "{text}");
}

/// A slice with a table that names this unit in the place of the rescale.
fn by_table(kind: &str) -> Vec<u8> {
    let mut item = InMemDicomObject::new_empty();
    let words = |words: &[u16]| PrimitiveValue::U16(words.to_vec().into());
    put(&mut item, tags::LUT_DESCRIPTOR, VR::US, words(&[3, 0, 16]));
    set(&mut item, tags::MODALITY_LUT_TYPE, kind);
    put(&mut item, tags::LUT_DATA, VR::OW, words(&[1, 2, 3]));
    slice(0.0, |object| {
        drop(object.take_element(tags::RESCALE_SLOPE));
        drop(object.take_element(tags::RESCALE_INTERCEPT));
        put_sequence(object, tags::MODALITY_LUT_SEQUENCE, item);
    })
}

/// Maps of iodine are CT, and files whose rescale was lost are not known to be in Hounsfield units.
#[test]
fn a_ct_is_in_hounsfield_units_or_refused() {
    let says = |text| (tags::RESCALE_TYPE, text);
    for unit in ["HU", "US", "hu", "Hounsfield", "Hounsfield Units"] {
        check_alone(says(unit), None);
    }
    for other in ["MGML", "Z_EFF", "HU_MOD", "ED", "Hounsfield Units mod"] {
        check_alone(says(other), Some(Reason::NotHounsfield));
    }
    let lost = slice(0.0, |object| {
        drop(object.take_element(tags::RESCALE_SLOPE));
        drop(object.take_element(tags::RESCALE_INTERCEPT));
    });
    assert_eq!(plan_of(&[lost]).unwrap_err(), Reason::NotHounsfield);
    let blank = slice(0.0, |object| {
        set(object, tags::RESCALE_SLOPE, "  ");
        set(object, tags::RESCALE_INTERCEPT, "  ");
    });
    assert_eq!(plan_of(&[blank]).unwrap_err(), Reason::NotHounsfield);
    // The default of who does not know it: stored values from 0 on would be water and bone.
    let with = |intercept: &str, signed: u16| {
        let file = slice(0.0, |object| {
            set(object, tags::RESCALE_INTERCEPT, intercept);
            set(object, tags::PIXEL_REPRESENTATION, signed);
        });
        plan_of(&[file]).err()
    };
    assert_eq!(with("0", 0), Some(Reason::NotHounsfield));
    assert_eq!(with("0", 1), None);
    assert_eq!(with("-1", 0), None);
    // Eight bits of it, from -1024 to -769 by the rescale of twelve: all of a head would be air.
    let of_8_bits = |slope: &str| {
        let file = slice(0.0, |object| {
            set(object, tags::BITS_STORED, 8_u16);
            set(object, tags::HIGH_BIT, 7_u16);
            set(object, tags::RESCALE_SLOPE, slope);
            set(object, tags::RESCALE_INTERCEPT, "-1024");
            put_cells(object, (0..30).map(|at| at * 8).collect());
        });
        plan_of(&[file]).err()
    };
    assert_eq!(of_8_bits("1"), Some(Reason::NotHounsfield));
    assert_eq!(of_8_bits("8"), None);
    // Of a table no entry is negative, so that none is air.
    for kind in ["HU", "US", "OD"] {
        let refused = plan_of(&[by_table(kind)]).unwrap_err();
        assert_eq!(refused, Reason::NotHounsfield, "{kind}");
    }
}

/// Signed cells say only that there may be negative values; padding is none.
#[test]
fn a_ct_by_a_rescale_that_takes_nothing_away_has_a_negative_value() {
    let with = |intercept: &str, lowest: i16| {
        let file = slice(0.0, |object| {
            set(object, tags::RESCALE_INTERCEPT, intercept);
            set(object, tags::PIXEL_REPRESENTATION, 1_u16);
            set(object, tags::BITS_STORED, 16_u16);
            set(object, tags::HIGH_BIT, 15_u16);
            let padding = PrimitiveValue::I16(vec![-2000].into());
            put(object, tags::PIXEL_PADDING_VALUE, VR::SS, padding);
            let mut cells: Vec<i16> = (0..30).map(|at| at * 100).collect();
            cells[0] = lowest;
            cells[1] = -2000;
            let cells = cells.into_iter().map(|cell| cell as u16);
            put_cells(object, cells.collect());
        });
        let plan = plan_of(std::slice::from_ref(&file)).unwrap();
        let frames = decode_slices(&file, &[0], &plan, &options());
        frames.err().map(|refusal| refusal.reason)
    };
    assert_eq!(with("0", -1), None);
    assert_eq!(with("0", 0), Some(Reason::NotHounsfield));
    assert_eq!(with("0", -2000), Some(Reason::NotHounsfield));
    // What was shifted may be cut out of bone.
    assert_eq!(with("-1", 1), None);
}

/// Eight bits in cells of more, with the rescale of twelve, lie between -1024 and -769 HU. A slice by itself may lie beyond the body,
/// and the marks of padding are no bone.
#[test]
fn a_ct_has_a_value_above_water_in_one_of_its_slices() {
    let up_to = |z: f64, highest: u16| {
        slice(z, |object| {
            set(object, tags::RESCALE_INTERCEPT, "-1024");
            put(object, tags::PIXEL_PADDING_VALUE, VR::US, 4000_u16);
            let mut cells: Vec<u16> = (0..30).map(|at| at * 8).collect();
            cells[0] = 4000;
            cells[1] = highest;
            put_cells(object, cells);
        })
    };
    let alone = |highest: u16| {
        let decoded = decode_file(&up_to(0.0, highest), &options());
        decoded.err().map(|refusal| refusal.reason)
    };
    assert_eq!(alone(255), Some(Reason::NotHounsfield));
    assert_eq!(alone(1024), Some(Reason::NotHounsfield));
    assert_eq!(alone(4000), Some(Reason::NotHounsfield));
    assert_eq!(alone(1025), None);
    let together = |highest: [u16; 2]| {
        let frames = frames_of(&[up_to(0.0, highest[0]), up_to(1.0, highest[1])]);
        refuse_air(frames.iter().map(|(_, info)| info.above_water)).is_ok()
    };
    assert!(together([255, 1064]) && together([1064, 255]));
    assert!(!together([255, 255]));
    // An MR has no water's value.
    let mr = slice(0.0, |object| set(object, tags::MODALITY, "MR"));
    assert_eq!(frames_of(&[mr])[0].1.above_water, None);
    assert!(refuse_air([None, None]).is_ok());
}

/// A scanner's slice of one energy has no unit but Hounsfield's; a map that was derived, or made of several energies, has any.
#[test]
fn a_ct_of_no_named_unit_is_taken_where_the_standard_leaves_no_other() {
    let of = |kind: &str, energies: &str, unit: &str| {
        let file = slice(0.0, |object| {
            set(object, tags::IMAGE_TYPE, kind);
            set(object, tags::MULTIENERGY_CT_ACQUISITION, energies);
            set(object, tags::RESCALE_TYPE, unit);
        });
        plan_of(&[file]).err()
    };
    let (original, derived) = ("ORIGINAL\\PRIMARY\\AXIAL", "DERIVED\\PRIMARY\\PERFUSION");
    let refused = Some(Reason::NotHounsfield);
    for energies in ["", "NO"] {
        assert_eq!(of(original, energies, "US"), None);
        assert_eq!(of(original, energies, ""), None);
        assert_eq!(of(derived, energies, ""), None);
        assert_eq!(of(derived, energies, "HU"), None);
        assert_eq!(of(derived, energies, "US"), refused);
        assert_eq!(of("", energies, "US"), refused);
        let localiser = "ORIGINAL\\PRIMARY\\LOCALIZER";
        assert_eq!(of(localiser, energies, "US"), refused);
    }
    for kind in [original, derived] {
        assert_eq!(of(kind, "YES", "HU"), None);
        assert_eq!(of(kind, "YES", "US"), refused);
        assert_eq!(of(kind, "YES", ""), refused);
    }
}

/// Tiles of a mosaic would be shown as one slice, and the numbers of colours as bone.
#[test]
fn what_is_no_grey_slice_is_refused() {
    let kind = |text| (tags::IMAGE_TYPE, text);
    check_alone(kind("ORIGINAL\\PRIMARY\\DIFFUSION\\NONE\\ND"), None);
    let refused = Some(Reason::MultiFrameNotSupportedYet);
    check_alone(
        kind("ORIGINAL\\PRIMARY\\DIFFUSION\\NONE\\ND\\MOSAIC"),
        refused,
    );
    let presented = |text| (tags::PIXEL_PRESENTATION, text);
    check_alone(presented("MONOCHROME"), None);
    for other in ["COLOR", "MIXED"] {
        check_alone(presented(other), Some(Reason::UnsupportedLut));
    }
}

#[test]
fn a_map_beside_the_images_does_not_refuse_them_though_it_has_more_slices() {
    let of = |z: f64, unit: &str, series: &str| {
        slice(z, |object| {
            set(object, tags::RESCALE_TYPE, unit);
            set(object, tags::SERIES_INSTANCE_UID, series);
            let instance = format!("{series}.{z}");
            set(object, tags::SOP_INSTANCE_UID, instance);
        })
    };
    let files = [
        of(0.0, "MGML", "2.25.20"),
        of(1.0, "MGML", "2.25.20"),
        of(2.0, "MGML", "2.25.20"),
        of(0.0, "HU", "2.25.21"),
        of(1.0, "HU", "2.25.21"),
    ];
    let plan = plan_of(&files).unwrap();
    assert_eq!(plan.frames, [(3, 0), (4, 0)]);
    assert_eq!(plan.fates[0].1, Fate::Unused(Unused::OtherSeries));
}

#[test]
fn an_mr_whose_low_values_are_bright_is_refused() {
    let mr = |photometric: &str| {
        slice(0.0, |object| {
            set(object, tags::MODALITY, "MR");
            set(object, tags::PHOTOMETRIC_INTERPRETATION, photometric);
        })
    };
    assert!(plan_of(&[mr("MONOCHROME2")]).is_ok());
    let refused = plan_of(&[mr("MONOCHROME1")]).unwrap_err();
    assert_eq!(refused, Reason::UnsupportedPhotometric);
    // A viewer that follows it shows the negative.
    let with_shape = |shape: &str| {
        slice(0.0, |object| {
            set(object, tags::MODALITY, "MR");
            set(object, tags::PRESENTATION_LUT_SHAPE, shape);
        })
    };
    assert!(plan_of(&[with_shape("IDENTITY")]).is_ok());
    let refused = plan_of(&[with_shape("INVERSE")]).unwrap_err();
    assert_eq!(refused, Reason::UnsupportedLut);
}

/// Left and right change places in a slice that is mirrored, or lies on its belly.
#[test]
fn slices_that_are_mirrored_or_turned_are_refused_or_another_series_is_used() {
    let of = |z: f64, orientation: &str, series: &str| {
        slice(z, |object| {
            set(object, tags::IMAGE_ORIENTATION_PATIENT, orientation);
            set(object, tags::SERIES_INSTANCE_UID, series);
            let instance = format!("{series}.{z}");
            set(object, tags::SOP_INSTANCE_UID, instance);
        })
    };
    let series = "2.25.30";
    for orientation in [
        "-1\\0\\0\\0\\1\\0",
        "1\\0\\0\\0\\-1\\0",
        "-1\\0\\0\\0\\-1\\0",
    ] {
        let files: Vec<_> = [0.0, 1.0, 2.0].map(|z| of(z, orientation, series)).to_vec();
        assert_eq!(plan_of(&files).unwrap_err(), Reason::NotUpright);
        assert_eq!(plan_of(&files[..1]).unwrap_err(), Reason::NotUpright);
        let other = [files, vec![of(0.0, AXIAL, "2.25.31")]].concat();
        assert_eq!(plan_of(&other).unwrap().frames, [(3, 0)]);
    }
    // A coronal slice by itself.
    let files = [of(0.0, "1\\0\\0\\0\\0\\-1", series)];
    assert!(plan_of(&files).is_ok());
    // One that does not say where it lies, and how all the same.
    let alone = |orientation: &str| {
        slice(0.0, |object| {
            set(object, tags::IMAGE_ORIENTATION_PATIENT, orientation);
            drop(object.take_element(tags::IMAGE_POSITION_PATIENT));
        })
    };
    assert!(plan_of(&[alone(AXIAL)]).is_ok());
    let mirrored = plan_of(&[alone("-1\\0\\0\\0\\1\\0")]);
    assert_eq!(mirrored.unwrap_err(), Reason::NotUpright);
}

#[test]
fn too_many_slices_are_thinned_evenly() {
    let files: Vec<_> = (0..100).map(|z| slice(f64::from(z), |_| {})).collect();
    let plan = plan_of(&files).unwrap();
    let order: Vec<usize> = plan.frames.iter().map(|(index, _)| *index).collect();
    assert_eq!((order.len(), &order[..5]), (85, &[1, 2, 3, 5, 6][..]));
    assert_eq!(plan.fates[0].1, Fate::Unused(Unused::NotSelected));
    assert_eq!(plan.notes, [Note::SlicesSelected]);
}

/// Three slices, the last of them changed, are refused.
#[track_caller]
fn check_refused(change: impl FnOnce(&mut InMemDicomObject), expected: Reason) {
    let files = [slice(0.0, |_| {}), slice(1.0, |_| {}), slice(2.0, change)];
    assert_eq!(plan_of(&files).unwrap_err(), expected);
}

#[test]
fn what_makes_no_volume_is_refused() {
    check_refused(
        |object| set(object, tags::IMAGE_ORIENTATION_PATIENT, "1\\0\\0\\0\\0\\-1"),
        Reason::MixedOrientation,
    );
    check_refused(
        |object| set(object, tags::IMAGE_POSITION_PATIENT, "7\\8\\20"),
        Reason::SliceGap,
    );
    check_refused(
        |object| set(object, tags::IMAGE_POSITION_PATIENT, "7\\8\\1"),
        Reason::SamePosition,
    );
    check_refused(
        |object| set(object, tags::RESCALE_INTERCEPT, "-1024"),
        Reason::MixedSeries,
    );
    check_refused(
        |object| set(object, tags::PIXEL_SPACING, "0.6\\0.6"),
        Reason::MixedSeries,
    );
    check_refused(
        |object| set(object, tags::STUDY_INSTANCE_UID, "2.25.77"),
        Reason::SeveralStudies,
    );
    check_refused(
        |object| drop(object.take_element(tags::IMAGE_POSITION_PATIENT)),
        Reason::MissingAttribute,
    );
    let sagittal = [0.0, 1.0, 2.0].map(|x| {
        slice(x, |object| {
            set(object, tags::IMAGE_ORIENTATION_PATIENT, "0\\1\\0\\0\\0\\-1");
            set(object, tags::IMAGE_POSITION_PATIENT, format!("{x}\\8\\9"));
        })
    });
    assert_eq!(plan_of(&sagittal).unwrap_err(), Reason::NotAxial);
}

/// Without its last part a volume ends early, and no gap shows it.
#[test]
fn a_volume_that_was_cut_into_files_is_whole_or_refused() {
    let part = |z: f64, of: u16| {
        slice(z, |object| {
            set(object, tags::CONCATENATION_UID, "2.25.40");
            set(object, tags::IN_CONCATENATION_TOTAL_NUMBER, of);
        })
    };
    let whole = [part(0.0, 3), part(1.0, 3), part(2.0, 3)];
    assert_eq!(plan_of(&whole).unwrap().frames.len(), 3);
    assert_eq!(plan_of(&whole[..2]).unwrap_err(), Reason::SliceGap);
}

/// Around the image of a MONOCHROME1 slice lies the largest value, and none of it is bone.
#[test]
fn padding_that_is_brighter_than_all_is_black() {
    let frame = |padding: u16| {
        let file = slice(0.0, |object| {
            set(object, tags::PHOTOMETRIC_INTERPRETATION, "MONOCHROME1");
            put(object, tags::PIXEL_PADDING_VALUE, VR::US, padding);
        });
        frames_of(&[file]).remove(0).0
    };
    let at = |frame: &Frame, column: usize, row: usize| {
        let first = (row * 6 + column) * 3;
        frame.pixels[first..first + 3].to_vec()
    };
    // 2900 and 2800 are 1900 and 1800 HU.
    let bright = frame(2900);
    assert_eq!(at(&bright, 4, 5), [0, 0, 0]);
    assert_eq!(at(&bright, 3, 5), [255, 255, 255]);
    // -500 HU may be lung.
    assert_eq!(at(&frame(500), 0, 1), [65, 0, 0]);
    assert_eq!(at(&frame(500), 4, 5), [255, 255, 255]);
}
