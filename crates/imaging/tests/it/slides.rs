//! Whole slides against the patches that `tests/slides.py` cut out of the same slide: within 1 of 255, or 3 where JPEG lost some.

use std::path::Path;

use medfleet_imaging::{
    Convention, Fate, Format, Frame, FrameInfo, Limits, Modality, Note, Options, Prepared, Reason,
    Region, SlicePlan, Slices, Unused, decode_slices, plan_volume, prepare,
};

const SIDE: u32 = 32;

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/slides")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{error}: {}", path.display()))
}

fn options() -> Options {
    Options::new(SIDE, Limits::default()).unwrap()
}

fn parts(files: &[Vec<u8>]) -> Vec<Slices> {
    let prepared = files
        .iter()
        .map(|bytes| prepare(bytes, &options()).unwrap());
    let slices = prepared.map(|prepared| match prepared {
        Prepared::Slices(slices) => *slices,
        Prepared::Frames(_) | Prepared::Withheld(_) => panic!("part of a slide"),
    });
    slices.collect()
}

fn plan(files: &[Vec<u8>]) -> Result<SlicePlan, Reason> {
    let parts = parts(files);
    let files: Vec<(usize, &Slices)> = parts.iter().enumerate().collect();
    plan_volume(&files, Convention::newest()).map_err(|refusal| refusal.reason)
}

fn golden() -> serde_json::Value {
    serde_json::from_slice(&read("patches.json")).unwrap()
}

/// The patches of these files are the golden ones.
#[track_caller]
fn check(names: &[&str], difference_max: u8) -> (SlicePlan, Vec<(Frame, FrameInfo)>) {
    let files: Vec<Vec<u8>> = names.iter().map(|name| read(name)).collect();
    let plan = plan(&files).unwrap();
    let numbers: Vec<u32> = serde_json::from_value(golden()["numbers"].clone()).unwrap();
    assert!(
        numbers.len() > 1 && numbers.len() < 4,
        "some patches have tissue, and some do not"
    );
    let shown: Vec<u32> = plan.frames.iter().map(|(_, number)| *number).collect();
    assert_eq!(shown, numbers);
    let file = plan.frames[0].0;
    let frames = decode_slices(&files[file], &numbers, &plan, &options()).unwrap();
    assert_eq!(frames.len(), numbers.len());
    for ((frame, info), number) in frames.iter().zip(&numbers) {
        let expected = image::load_from_memory(&read(&format!("patch-{number}.png"))).unwrap();
        assert_eq!(frame.pixels.len(), expected.as_bytes().len());
        let pairs = frame.pixels.iter().zip(expected.as_bytes());
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= difference_max, "patch {number} differs by {worst}");
        let region = Region {
            left: number % 2 * 896,
            top: number / 2 * 896,
            level_width: 2304,
            level_height: 1920,
        };
        assert_eq!(
            (info.region, info.modality),
            (Some(region), Some(Modality::Sm))
        );
        assert_eq!((info.frame_index, frame.channels), (*number, 3));
    }
    (plan, frames)
}

#[test]
fn levels_in_files_of_their_own_are_one_slide() {
    let (plan, frames) = check(&["label.dcm", "coarse.dcm", "sparse-deflated.dcm"], 1);
    assert_eq!(
        plan.fates,
        [
            (0, Fate::Unused(Unused::LabelOrOverview)),
            (1, Fate::Unused(Unused::OtherLevel)),
            (2, Fate::Used)
        ]
    );
    assert_eq!(
        (frames[0].1.format, frames[0].1.notes.as_slice()),
        (Format::Dicom, &[][..])
    );
    let (_, jpeg) = check(&["full-jpeg.dcm", "coarse.dcm"], 3);
    assert_eq!(jpeg[0].1.notes, [Note::LossyCompressed]);
    let (_, lossless) = check(&["full-j2k.dcm", "coarse.dcm"], 1);
    for (sparse, full) in frames.iter().zip(&lossless) {
        assert_eq!(sparse.0, full.0, "the same pixels are the same frame");
    }
}

#[test]
fn pixels_that_were_looked_at_for_tissue_are_counted() {
    let names = ["label.dcm", "sparse-deflated.dcm", "pyramid-deflate.tif"];
    let parts = parts(&names.map(read));
    let largest = 2304 * 1920;
    assert_eq!((parts[0].pixels(), parts[1].pixels()), (0, largest));
    // Of a file with several levels, the smallest alone.
    assert!((1..largest).contains(&parts[2].pixels()));
}

#[test]
fn a_tiff_holds_every_level() {
    let (plan, frames) = check(&["pyramid-deflate.tif"], 1);
    assert_eq!(plan.fates, [(0, Fate::Used)]);
    assert_eq!(frames[0].1.format, Format::Tiff);
    let (_, aperio) = check(&["aperio-jpeg.tif"], 3);
    assert_eq!(aperio[0].1.notes, [Note::LossyCompressed]);
    assert_eq!(aperio[0].1.format, Format::Tiff);
}

#[test]
fn a_slide_alone_is_looked_at_for_tissue_itself() {
    let (_, frames) = check(&["sparse-deflated.dcm"], 1);
    assert_eq!(frames.len(), 2);
}

#[test]
fn slides_without_the_magnification_or_without_tissue_are_refused() {
    assert_eq!(
        plan(&[read("coarse.dcm")]),
        Err(Reason::NoSuchMagnification)
    );
    assert_eq!(plan(&[read("label.dcm")]), Err(Reason::NoTissue));
}

#[test]
fn models_that_know_no_slides_refuse_them() {
    let options = options().following(Convention::named("medgemma-1.0").unwrap());
    for name in ["sparse-deflated.dcm", "pyramid-deflate.tif"] {
        let refusal = prepare(&read(name), &options).unwrap_err();
        assert_eq!(refusal.reason, Reason::ModalityNotSupportedYet);
    }
}

/// The only place of these bytes.
#[track_caller]
fn only(bytes: &[u8], wanted: &[u8]) -> usize {
    let mut found = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(wanted));
    let at = found.next().expect("it is there");
    assert_eq!(found.next(), None, "and only once");
    at
}

#[test]
fn whatever_hints_at_a_label_is_not_shown() {
    let whole = read("full-jpeg.dcm");
    let mut by_type = whole.clone();
    let at = only(&whole, b"ORIGINAL\\PRIMARY\\VOLUME\\NONE");
    by_type[at..at + 28].copy_from_slice(b"ORIGINAL\\OVERVIEW\\NONE\\LABEL");
    // Behind the rows of the matrix, (0048,0007).
    let at = only(&whole, b"\x48\0\x07\0UL\x04\0") + 12;
    let with_specimen = |value: &[u8; 4]| {
        let mut bytes = whole.clone();
        let element = [b"\x48\0\x10\0CS\x04\0".as_slice(), value].concat();
        bytes.splice(at..at, element);
        bytes
    };
    for bytes in [by_type, with_specimen(b"YES ")] {
        assert_eq!(plan(&[bytes]), Err(Reason::NoTissue));
    }
    assert!(plan(&[with_specimen(b"NO  ")]).is_ok());
}

#[test]
fn tiles_that_were_not_scanned_are_counted() {
    let mut bytes = read("full-jpeg.dcm");
    let at = only(&bytes, b"TILED_FULL");
    bytes[at..at + 10].copy_from_slice(b"TILED_NONE");
    let at = only(&bytes, b"\x48\0\x06\0UL\x04\0") + 8;
    bytes[at..at + 4].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    let refusal = prepare(&bytes, &options()).unwrap_err();
    assert_eq!(refusal.reason, Reason::TooManyFrames);
}

#[test]
fn a_slide_that_begins_as_a_tiff_does_stays_dicom() {
    let mut bytes = read("sparse-deflated.dcm");
    bytes[..4].copy_from_slice(b"II*\0");
    let files = [bytes];
    let plan = plan(&files).unwrap();
    let frames = decode_slices(&files[0], &[plan.frames[0].1], &plan, &options()).unwrap();
    assert_eq!(frames[0].1.format, Format::Dicom);
}

#[test]
fn tiled_pictures_that_are_no_pyramid_are_refused() {
    let whole = read("pyramid-deflate.tif");
    // Width and height of the second directory.
    let at = [(0_u8, 576_u32), (1, 480)].map(|(tag, side)| {
        let entry = [&[tag, 1, 4, 0, 1, 0, 0, 0], side.to_le_bytes().as_slice()].concat();
        only(&whole, &entry) + 8
    });
    for (width, height) in [(2304_u32, 1920_u32), (576, 300), (576, 500), (720, 480)] {
        let mut bytes = whole.clone();
        bytes[at[0]..at[0] + 4].copy_from_slice(&width.to_le_bytes());
        bytes[at[1]..at[1] + 4].copy_from_slice(&height.to_le_bytes());
        let refusal = prepare(&bytes, &options()).unwrap_err();
        assert_eq!(
            refusal.reason,
            Reason::MultiFrameNotSupportedYet,
            "{width} x {height}"
        );
    }
}

#[test]
fn patches_are_the_same_on_any_number_of_threads() {
    for name in ["sparse-deflated.dcm", "aperio-jpeg.tif"] {
        let files = [read(name)];
        let plan = plan(&files).unwrap();
        let [first, others @ ..] = [1, 2, 7].map(|threads| {
            let options = options().on_threads(threads);
            decode_slices(&files[0], &[3, 0, 1, 2, 0], &plan, &options).unwrap()
        });
        let numbers: Vec<u32> = first.iter().map(|(_, info)| info.frame_index).collect();
        assert_eq!(numbers, [3, 0, 1, 2, 0], "{name}");
        assert!(others.iter().all(|other| *other == first), "{name}");
    }
}

#[test]
fn a_patch_that_is_not_there_is_refused() {
    let files = [read("pyramid-deflate.tif")];
    let plan = plan(&files).unwrap();
    for number in [4, 9, u32::MAX] {
        let refusal = decode_slices(&files[0], &[number], &plan, &options()).unwrap_err();
        assert_eq!(refusal.reason, Reason::Malformed, "{number}");
    }
}

#[test]
fn what_a_slide_claims_costs_nothing() {
    let whole = read("sparse-deflated.dcm");
    for end in [200, whole.len() / 2] {
        assert!(prepare(&whole[..end], &options()).is_err());
    }
    let pyramid = read("pyramid-deflate.tif");
    for at in (0..pyramid.len()).step_by(997) {
        let mut flipped = pyramid.clone();
        flipped[at] ^= 0x24;
        // Refused or not, it ends.
        drop(prepare(&flipped, &options()));
    }
}
