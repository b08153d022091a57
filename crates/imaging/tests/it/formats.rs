//! Photographs, TIFF and NIfTI against the frames that `tests/formats.py` made with other software: within 1 of 255.

use std::path::{Path, PathBuf};

use medfleet_imaging::{
    BurnedIn, Convention, Decoded, Fate, Format, FrameInfo, Limits, Modality, Note, Options,
    Prepared, Reason, Refusal, Unused, decode_file, decode_slices, plan_volume, prepare,
};

const DIFFERENCE_MAX: u8 = 1;
/// Chrominance at half the width may be spread out in more than one right way.
const SPREAD_DIFFERENCE_MAX: u8 = 3;
const SIDE: u32 = 32;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/formats")
        .join(name)
}

fn options() -> Options {
    Options::new(SIDE, Limits::default()).unwrap()
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap_or_else(|error| panic!("{error}: {name}"))
}

/// The `place`-th frame of a file is this golden one.
#[track_caller]
fn compare(decoded: &Decoded, place: usize, expected: &str, difference_max: u8) -> FrameInfo {
    let (frame, info) = &decoded.frames[place];
    let expected = image::open(golden(&format!("{expected}.png"))).unwrap();
    assert_eq!(
        (frame.side, frame.channels),
        (
            expected.width(),
            u32::from(expected.color().channel_count())
        )
    );
    assert_eq!(frame.pixels.len(), expected.as_bytes().len());
    let pairs = frame.pixels.iter().zip(expected.as_bytes());
    let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= difference_max, "differs by {worst}");
    info.clone()
}

#[track_caller]
fn check(file: &str, difference_max: u8) -> FrameInfo {
    let decoded =
        decode_file(&read(file), &options()).unwrap_or_else(|why| panic!("{file}: {why}"));
    assert_eq!(decoded.frames.len(), 1);
    let (name, _) = file.rsplit_once('.').unwrap();
    compare(&decoded, 0, name, difference_max)
}

#[test]
fn photographs() {
    let info = check("xc-rgb.dcm", DIFFERENCE_MAX);
    assert_eq!((info.modality, info.window), (Some(Modality::Xc), None));
    assert_eq!(info.notes, []);
    // Endoscopes write into their pictures; this one does not say that it has not.
    let es = read("es-rgb-profile.dcm");
    let refused = decode_file(&es, &options()).unwrap_err();
    assert_eq!(refused.reason, Reason::BurnedInAnnotation);
    let decoded = decode_file(&es, &options().burned_in(BurnedIn::Allow)).unwrap();
    let info = compare(&decoded, 0, "es-rgb-profile", DIFFERENCE_MAX);
    assert_eq!(info.notes, [Note::BurnedInPossible]);
    assert_eq!(
        check("dms-rgb-adobe.dcm", DIFFERENCE_MAX).notes,
        [Note::ProfileNotApplied]
    );
    check("gm-rgb-planes.dcm", DIFFERENCE_MAX);
    assert_eq!(
        check("op-rgb-16bit.dcm", DIFFERENCE_MAX).notes,
        [Note::DeepPhotograph]
    );
    check("gm-palette.dcm", DIFFERENCE_MAX);
    let info = check("op-jpeg.dcm", SPREAD_DIFFERENCE_MAX);
    assert_eq!(info.notes, [Note::LossyCompressed]);
}

#[test]
fn grey_photographs_and_mammograms() {
    assert_eq!(check("gm-grey.dcm", DIFFERENCE_MAX).notes, []);
    assert_eq!(
        check("opt-grey-12bit.dcm", DIFFERENCE_MAX).notes,
        [Note::DeepPhotograph]
    );
    let info = check("mg-mono1.dcm", DIFFERENCE_MAX);
    assert_eq!(info.modality, Some(Modality::Mg));
    assert_eq!(info.notes, [Note::Inverted]);
    assert_eq!(info.window.unwrap().width, 3000.0);
}

#[test]
fn tiff_without_loss() {
    for name in [
        "grey-strips",
        "grey16-lzw-big-endian",
        "grey16-deflate-tiles",
        "rgb-lzw",
        "rgb-deflate-tiles",
        "rgb-packbits",
        "rgb16-planes",
        "rgb-big-tiff",
        "palette-packbits",
    ] {
        let info = check(&format!("{name}.tif"), DIFFERENCE_MAX);
        assert_eq!((info.format, info.modality), (Format::Tiff, None));
        assert_eq!(
            info.notes.contains(&Note::SixteenBitPicture),
            name.contains("16")
        );
    }
    let notes = |name: &str| check(name, DIFFERENCE_MAX).notes;
    assert_eq!(notes("grey-min-is-white.tif"), [Note::WhiteIsZero]);
    assert_eq!(notes("rgb-orientation-6.tif"), [Note::ExifOrientation]);
    assert_eq!(notes("rgba-unassociated.tif"), [Note::AlphaOverBlack]);
}

#[test]
fn tiff_with_jpeg() {
    for name in ["ybr-jpeg", "ybr-jpeg-420-tiles", "rgb-jpeg-tables"] {
        let info = check(&format!("{name}.tif"), SPREAD_DIFFERENCE_MAX);
        assert_eq!(info.notes, [Note::LossyCompressed], "{name}");
    }
}

#[track_caller]
fn refuses(bytes: &[u8], reason: Reason) {
    let found = decode_file(bytes, &options()).map_err(|refusal| refusal.reason);
    assert_eq!(found.map(|_| ()), Err(reason));
}

#[test]
fn tiff_of_several_pages_is_refused() {
    refuses(&read("two-pages.tif"), Reason::MultiFrameNotSupportedYet);
}

/// The place of the value of a tag in a little-endian TIFF of one directory.
fn value_of(bytes: &[u8], tag: u16) -> usize {
    let at = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()));
    let entries = (0..count).map(|index| at + 2 + index * 12);
    entries
        .clone()
        .find(|entry| bytes[*entry..entry + 2] == tag.to_le_bytes())
        .unwrap_or_else(|| panic!("no tag {tag}"))
        + 8
}

#[test]
fn what_a_tiff_claims_is_checked_before_anything_is_allocated() {
    let whole = read("grey-strips.tif");
    let with = |tag: u16, value: u16| {
        let mut bytes = whole.clone();
        let at = value_of(&bytes, tag);
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    // Width and height, compression, photometric interpretation, bits.
    refuses(&with(256, u16::MAX), Reason::TooManyPixels);
    refuses(&with(257, u16::MAX), Reason::TooManyPixels);
    refuses(&with(259, 50_000), Reason::UnsupportedCompression);
    refuses(&with(262, 5), Reason::UnsupportedColour);
    refuses(&with(258, 4), Reason::UnsupportedColour);
    // More rows than there is data for.
    refuses(&with(257, 60), Reason::Malformed);
    refuses(&whole[..whole.len() / 2], Reason::Truncated);
}

/// The first of them would be shown for all.
#[test]
fn a_tiff_of_several_grey_channels_is_refused() {
    let mut bytes = read("rgb-lzw.tif");
    assert!(decode_file(&bytes, &options()).is_ok());
    let at = value_of(&bytes, 262);
    bytes[at] = 1;
    refuses(&bytes, Reason::UnsupportedColour);
}

/// Writers that know colours of 8 bits put them into a palette of 16, where each is nearly black.
#[test]
fn a_tiff_whose_palette_stays_black_is_refused() {
    let mut bytes = read("palette-packbits.tif");
    let at = value_of(&bytes, 320);
    let at = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    for entry in bytes[at..at + 3 * 256 * 2].chunks_exact_mut(2) {
        entry[0] = entry[1];
        entry[1] = 0;
    }
    refuses(&bytes, Reason::UnsupportedColour);
}

/// Values of 12 bits in a picture of 16 would be nearly black.
#[test]
fn a_tiff_of_sixteen_bits_that_nobody_scaled_is_refused() {
    let with = |sample: u16| {
        let mut bytes = one_tile(1, 1, 16);
        // Not packed, 16 bits, at the end.
        for (tag, value) in [(259, 1_u32), (258, 16), (325, 512), (324, 134)] {
            let at = value_of(&bytes, tag);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend(sample.to_le_bytes().repeat(256));
        bytes
    };
    refuses(&with(4095), Reason::UnsupportedColour);
    let decoded = decode_file(&with(40_000), &options()).unwrap();
    assert_eq!(decoded.frames[0].1.notes, [Note::SixteenBitPicture]);
}

/// A page of one pixel in one deflated tile.
fn one_tile(ink: u32, samples: u32, side: u32) -> Vec<u8> {
    let entries = [
        (256_u16, 1),
        (257, 1),
        (258, 8),
        (259, 8),
        (262, ink),
        (277, samples),
        (322, side),
        (323, side),
        (324, 8),
        (325, 8),
    ];
    let mut bytes = b"II*\0\x08\0\0\0\x0a\0".to_vec();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(b"\x04\0\x01\0\0\0");
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes
}

#[test]
fn a_tile_larger_than_its_picture_is_measured_whole() {
    // Grey, 16 MiB out of 134 bytes; the eight bytes that are said to be the tile are no deflate stream.
    refuses(&one_tile(1, 1, 4096), Reason::CompressionRatio);
    refuses(&one_tile(1, 1, 256), Reason::DecodeFailed);
    // RGB: five samples of 64 Mi pixels, and one sample too many.
    refuses(&one_tile(2, 5, 8192), Reason::TooManyPixels);
    refuses(&one_tile(2, 6, 16), Reason::UnsupportedColour);
}

#[test]
fn no_cut_and_no_flipped_bit_of_a_tiff_panics_or_hangs() {
    for name in [
        "grey16-lzw-big-endian.tif",
        "rgb-deflate-tiles.tif",
        "ybr-jpeg-420-tiles.tif",
    ] {
        let whole = read(name);
        for at in (0..whole.len()).step_by(61) {
            // Whatever comes out, it comes out.
            drop(decode_file(&whole[..at], &options()));
            let mut flipped = whole.clone();
            flipped[at] ^= 0x11;
            drop(decode_file(&flipped, &options()));
        }
    }
}

/// Every slice of a NIfTI file that has a golden frame, and what is said of the first.
#[track_caller]
fn check_volume(name: &str, last: usize) -> FrameInfo {
    let bytes = read(&format!("{name}.nii"));
    let decoded = decode_file(&bytes, &options()).unwrap_or_else(|why| panic!("{name}: {why}"));
    assert_eq!(decoded.frames.len(), last + 1);
    compare(&decoded, last, &format!("{name}-{last}"), DIFFERENCE_MAX);
    compare(&decoded, 0, &format!("{name}-0"), DIFFERENCE_MAX)
}

#[test]
fn volumes_lie_as_dicom_shows_them() {
    for name in [
        "ct-left-back-up",
        "ct-right-front-up",
        "ct-right-front-down-float",
        "ct-scaled",
    ] {
        let info = check_volume(name, 6);
        assert_eq!(
            (info.format, info.modality),
            (Format::Nifti, Some(Modality::Ct))
        );
        assert_eq!((info.original_width, info.original_height), (24, 20));
        assert_eq!(info.channel_windows.len(), 3);
    }
    // One volume, written in four ways, is one volume.
    let frames = |name: &str| decode_file(&read(name), &options()).unwrap().frames;
    let pixels = |name: &str| {
        frames(name)
            .into_iter()
            .map(|(frame, _)| frame)
            .collect::<Vec<_>>()
    };
    let first = pixels("ct-left-back-up.nii");
    for name in [
        "ct-right-front-up.nii",
        "ct-right-front-down-float.nii",
        "ct-scaled.nii",
    ] {
        assert!(pixels(name) == first, "{name}");
    }
}

#[test]
fn slices_of_a_volume_are_the_same_on_any_number_of_threads() {
    for name in ["ct-scaled.nii", "mr-tilted-i32.nii"] {
        let [first, others @ ..] = [1, 2, 7].map(|threads| {
            let options = options().on_threads(threads);
            decode_file(&read(name), &options).unwrap().frames
        });
        assert_eq!(first.len(), 7, "{name}");
        assert!(others.iter().all(|other| *other == first), "{name}");
    }
}

#[test]
fn mr_volumes_take_their_own_range() {
    let info = check_volume("mr-sagittal-u8", 6);
    assert_eq!(
        info.window.unwrap().source.to_owned(),
        medfleet_imaging::WindowSource::Volume
    );
    check_volume("mr-tilted-i32", 6);
}

/// Grey levels that a window made of a CT are called CT, and so are shares of a range and values without their shift.
#[test]
fn a_ct_volume_has_negative_values() {
    let unsigned = |name: &str| {
        let mut bytes = read(name);
        // 16 bits, as before.
        bytes[70..72].copy_from_slice(&512_u16.to_le_bytes());
        let decoded = decode_file(&bytes, &options());
        decoded.map(drop).map_err(|refusal| refusal.reason)
    };
    let refused = unsigned("ct-left-back-up.nii");
    assert_eq!(refused, Err(Reason::NotHounsfield));
    assert_eq!(unsigned("ct-scaled.nii"), Ok(()));
    // From -1000 on, by this slope and intercept.
    let scaled = |slope: f32, intercept: f32| {
        let mut bytes = read("ct-right-front-down-float.nii");
        bytes[112..116].copy_from_slice(&slope.to_le_bytes());
        bytes[116..120].copy_from_slice(&intercept.to_le_bytes());
        let decoded = decode_file(&bytes, &options());
        decoded.map(drop).map_err(|refusal| refusal.reason)
    };
    assert_eq!(scaled(1.0, 24.0), Ok(()));
    assert_eq!(scaled(1.0, 1000.0), Err(Reason::NotHounsfield));
    assert_eq!(scaled(1.0 / 1024.0, 1.0), Err(Reason::NotHounsfield));
}

fn unsaid(modality: Option<Modality>) -> Result<usize, Refusal> {
    let options = options().with_volume_modality(modality);
    decode_file(&read("unsaid-big-endian.nii"), &options).map(|decoded| decoded.frames.len())
}

#[test]
fn the_modality_of_a_volume_is_never_guessed() {
    assert_eq!(unsaid(None).unwrap_err().reason, Reason::ModalityUnknown);
    assert_eq!(unsaid(Some(Modality::Ct)), Ok(7));
    assert_eq!(unsaid(Some(Modality::Mr)), Ok(7));
    let contrary = options().with_volume_modality(Some(Modality::Mr));
    let refusal = decode_file(&read("ct-left-back-up.nii"), &contrary).unwrap_err();
    assert_eq!(refusal.reason, Reason::ModalityUnknown);
}

/// A file with some bytes of its header changed is refused.
#[track_caller]
fn refuses_volume(at: usize, bytes: &[u8], reason: Reason) {
    let mut file = read("ct-left-back-up.nii");
    file[at..at + bytes.len()].copy_from_slice(bytes);
    refuses(&file, reason);
}

#[test]
fn volumes_that_are_not_known_to_come_out_right_are_refused() {
    let short = |value: i16| value.to_le_bytes();
    // Four-dimensional, a fourth axis, an empty axis, more than the file holds.
    refuses_volume(40, &short(2), Reason::UnsupportedVoxels);
    refuses_volume(
        40,
        &[short(4), short(24), short(20), short(7), short(2)].concat(),
        Reason::MultiFrameNotSupportedYet,
    );
    refuses_volume(42, &short(0), Reason::Malformed);
    refuses_volume(42, &short(25), Reason::Truncated);
    refuses_volume(46, &short(5000), Reason::TooManyFrames);
    refuses_volume(46, &short(i16::MAX), Reason::TooManyPixels);
    // Complex numbers, and bits that contradict the type.
    refuses_volume(70, &short(32), Reason::UnsupportedVoxels);
    refuses_volume(72, &short(8), Reason::UnsupportedVoxels);
    // Neither sform nor qform; both, one mirrored.
    refuses_volume(
        252,
        &[short(0), short(0)].concat(),
        Reason::OrientationUnknown,
    );
    refuses_volume(280, &0.7_f32.to_le_bytes(), Reason::MixedOrientation);
    // Voxels that are not square, data within the header, another file.
    refuses_volume(280, &(-0.8_f32).to_le_bytes(), Reason::NonSquarePixels);
    refuses_volume(108, &12_f32.to_le_bytes(), Reason::Malformed);
    refuses_volume(344, b"ni1\0", Reason::NotAnImage);
    let mut floating = read("ct-right-front-down-float.nii");
    let end = floating.len();
    floating[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    refuses(&floating, Reason::UnsupportedVoxels);
}

#[test]
fn of_two_volumes_one_is_shown() {
    let files = ["ct-left-back-up.nii", "ct-scaled.nii"].map(read);
    let slices = files
        .each_ref()
        .map(|bytes| match prepare(bytes, &options()).unwrap() {
            Prepared::Slices(slices) => slices,
            Prepared::Frames(_) | Prepared::Withheld(_) => panic!("slices"),
        });
    let plan = plan_volume(&[(0, &slices[0]), (1, &slices[1])], Convention::newest()).unwrap();
    assert_eq!(
        plan.fates,
        [(0, Fate::Used), (1, Fate::Unused(Unused::OtherSeries))]
    );
    let missing = decode_slices(&files[0], &[7], &plan, &options()).unwrap_err();
    assert_eq!(missing.reason, Reason::Malformed);
}
