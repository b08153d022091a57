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
    for ((frame, info), number) in frames.iter().zip(&numbers) {
        let expected = image::load_from_memory(&read(&format!("patch-{number}.png"))).unwrap();
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
