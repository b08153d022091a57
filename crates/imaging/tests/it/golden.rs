//! Frames against those that `tests/oracle.py` made with pydicom, numpy and Pillow: within 1 of 255.

use std::path::{Path, PathBuf};

use medfleet_imaging::{
    Age, AgeUnit, ClinicalHeader, Convention, FrameInfo, Modality, Note, Photometric, Sex,
    ViewPosition, WindowFunction, WindowSource, decode_file,
};

use crate::{decode, options};

const DIFFERENCE_MAX: u8 = 1;
const SYNTHETIC_SIDE: u32 = 56;
const REAL_SIDE: u32 = 112;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// Decodes the file for the newest model and compares it with the golden frame `expected`.png.
#[track_caller]
fn check_file(file: &Path, expected: &str, side: u32) -> FrameInfo {
    check_for(Convention::newest(), file, expected, side)
}

#[track_caller]
fn check_for(model: &'static Convention, file: &Path, expected: &str, side: u32) -> FrameInfo {
    let bytes = std::fs::read(file).unwrap_or_else(|error| {
        panic!(
            "{error}: {} is missing; `make test` fetches pydicom-data 1.0.0 there",
            file.display()
        )
    });
    let decoded = decode_file(&bytes, &options(side).following(model)).unwrap();
    let [(frame, info)] = decoded.frames.as_slice() else {
        panic!("one frame")
    };
    let png = std::fs::read(golden(&format!("{expected}.png"))).unwrap();
    let expected = image::load_from_memory(&png).unwrap();
    assert_eq!(
        (frame.side, frame.side, frame.channels),
        (
            expected.width(),
            expected.height(),
            u32::from(expected.color().channel_count())
        )
    );
    assert_eq!(frame.pixels.len(), expected.as_bytes().len());
    let worst = frame
        .pixels
        .iter()
        .zip(expected.as_bytes())
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap();
    assert!(
        worst <= DIFFERENCE_MAX,
        "{} differs by {worst}",
        file.display()
    );
    info.clone()
}

#[track_caller]
fn check(name: &str) -> FrameInfo {
    check_file(&golden(&format!("{name}.dcm")), name, SYNTHETIC_SIDE)
}

#[test]
fn windows() {
    let info = check("mono1-12bit-linear");
    assert_eq!(info.photometric, Some(Photometric::Monochrome1));
    assert_eq!(info.notes, [Note::Inverted]);
    let window = info.window.unwrap();
    assert_eq!((window.center, window.width), (2000.0, 3000.0));
    assert_eq!(
        (window.function, window.source),
        (WindowFunction::Linear, WindowSource::Header)
    );
    assert_eq!(
        check("mono1-sigmoid").window.unwrap().function,
        WindowFunction::Sigmoid
    );
    assert_eq!(
        check("mono2-signed-rescale-exact").window.unwrap().function,
        WindowFunction::LinearExact
    );
    assert_eq!(check("mono2-several-windows").notes, [Note::SeveralWindows]);
    check("mono2-negative-slope");
    check("mono2-8bit");
}

#[test]
fn an_inverse_shape_does_not_invert_twice() {
    check("mono1-inverse-shape");
}

#[test]
fn no_window() {
    let info = check("mono2-implicit-no-window");
    assert_eq!(info.notes, [Note::NoWindow]);
    assert_eq!(info.window.unwrap().source, WindowSource::MinMax);
    assert_eq!(
        check("mono2-padding").notes,
        [Note::NoWindow, Note::PaddingExcluded]
    );
}

#[test]
fn lookup_tables() {
    assert_eq!(
        check("mono2-voi-lut").window.unwrap().function,
        WindowFunction::Lut
    );
    check("mono2-voi-lut-signed");
}

#[test]
fn transfer_syntaxes() {
    for name in [
        "deflated",
        "rle",
        "rle-8bit",
        "j2k",
        "j2k-signed",
        "jpeg-lossless",
        "jpeg-lossless-sv1",
    ] {
        check(&format!("mono2-{name}"));
    }
    assert!(
        check("mono2-jpeg-baseline")
            .notes
            .contains(&Note::LossyCompressed)
    );
}

#[test]
fn lossless_syntaxes_give_one_frame() {
    let pixels = |name: &str| {
        decode(&std::fs::read(golden(name)).unwrap(), SYNTHETIC_SIDE).frames[0]
            .0
            .pixels
            .clone()
    };
    let first = pixels("mono2-deflated.dcm");
    for name in [
        "mono2-rle.dcm",
        "mono2-j2k.dcm",
        "mono2-jpeg-lossless.dcm",
        "mono2-jpeg-lossless-sv1.dcm",
    ] {
        assert_eq!(pixels(name), first, "{name}");
    }
}

#[test]
fn the_clinical_header_is_typed() {
    let decoded = decode(
        &std::fs::read(golden("mono2-rle.dcm")).unwrap(),
        SYNTHETIC_SIDE,
    );
    let expected = ClinicalHeader {
        age: Some(Age {
            value: 45,
            unit: AgeUnit::Years,
        }),
        sex: Some(Sex::Female),
        view_position: Some(ViewPosition::Pa),
    };
    assert_eq!(decoded.clinical, expected);
    let manifest = serde_json::to_string(&decoded.frames[0].1).unwrap();
    assert!(!manifest.contains("Phantom") && !manifest.contains("PHANTOM"));
}

fn radiograph(name: &str) -> PathBuf {
    crate::corpus::cache().join("pydicom-data-1.0.0").join(name)
}

#[test]
fn a_real_chest_radiograph() {
    let info = check_file(&radiograph("RG1_UNCR.dcm"), "RG1_UNCR", REAL_SIDE);
    assert_eq!(info.modality, Some(Modality::Cr));
    assert_eq!((info.original_width, info.original_height), (1841, 1955));
    assert_eq!(
        (
            info.placement.pad_left_pixels,
            info.placement.pad_top_pixels
        ),
        (57, 0)
    );
    check_file(&radiograph("RG1_J2KR.dcm"), "RG1_UNCR", REAL_SIDE);
    // Lossy: the frame is still within the tolerance of the original's.
    check_file(&radiograph("RG1_J2KI.dcm"), "RG1_UNCR", REAL_SIDE);
}

#[test]
fn a_real_ankle_radiograph() {
    check_file(&radiograph("RG3_UNCR.dcm"), "RG3_UNCR", REAL_SIDE);
    check_file(&radiograph("RG3_J2KR.dcm"), "RG3_UNCR", REAL_SIDE);
}

#[test]
fn a_real_ct_slice() {
    let info = check_file(&radiograph("693_UNCR.dcm"), "693_UNCR", REAL_SIDE);
    assert_eq!(info.modality, Some(Modality::Ct));
    check_file(&radiograph("693_J2KR.dcm"), "693_UNCR", REAL_SIDE);
}

#[test]
fn a_real_mr_slice() {
    let info = check_file(&radiograph("MR2_UNCR.dcm"), "MR2_UNCR", REAL_SIDE);
    assert_eq!(info.window.unwrap().source, WindowSource::Volume);
    check_file(&radiograph("MR2_J2KR.dcm"), "MR2_UNCR", REAL_SIDE);
}

/// Other windows, and a resize without antialiasing.
#[test]
fn a_real_film_and_ct_slice_for_other_models() {
    let check = |model: &str, file: &str| {
        let convention = Convention::named(model).unwrap();
        let path = radiograph(&format!("{file}.dcm"));
        check_for(convention, &path, &format!("{file}-{model}"), REAL_SIDE)
    };
    let first = |info: &FrameInfo| {
        (
            info.channel_windows[0].center,
            info.channel_windows[0].width,
        )
    };
    assert_eq!(first(&check("medgemma-1.0", "693_UNCR")), (-100.0, 2250.0));
    assert_eq!(first(&check("medsiglip", "693_UNCR")), (0.0, 2048.0));
    let info = check("medsiglip", "RG1_UNCR");
    assert_eq!(info.preprocessing_version, "medsiglip-5");
}
