//! The pictures of `docs/imaging.md`: inputs that the tests have too, and the frames they become.

use std::path::Path;

use medfleet_imaging::{
    Limits, Modality, Options, Prepared, Slices, decode_slices, frame_to_png, plan_volume, prepare,
};

/// Large enough to be seen, small enough for a repository.
const SIDE: u32 = 192;

/// Name of the picture, its inputs, and which of their frames it is.
const PICTURES: &[(&str, &[&str], usize)] = &[
    ("chest-cr", &["corpora/RG1_UNCR.dcm"], 0),
    ("ct-windows-as-rgb", &["corpora/693_UNCR.dcm"], 0),
    ("mr", &["corpora/MR2_UNCR.dcm"], 0),
    ("mammogram", &["golden/formats/mg-mono1.dcm"], 0),
    ("photograph", &["golden/formats/xc-rgb.dcm"], 0),
    ("tiff", &["golden/formats/rgb-orientation-6.tif"], 0),
    ("nifti-ct", &["golden/formats/ct-right-front-up.nii"], 6),
    (
        "slide-patch",
        &[
            "golden/slides/sparse-deflated.dcm",
            "golden/slides/coarse.dcm",
        ],
        0,
    ),
];

/// Every picture by its file name. `tests`: the folder of that name; `corpora`: where pydicom-data 1.0.0 is.
pub(crate) fn pictures(tests: &Path, corpora: &Path) -> Vec<(String, Vec<u8>)> {
    let options = Options::new(SIDE, Limits::default())
        .expect("a side in range")
        .with_volume_modality(Some(Modality::Ct));
    let picture = |(name, inputs, frame): &(&str, &[&str], usize)| {
        let read = |input: &&str| {
            let path = match input.strip_prefix("corpora/") {
                Some(file) => corpora.join(file),
                None => tests.join(input),
            };
            std::fs::read(&path).unwrap_or_else(|error| panic!("{error}: {}", path.display()))
        };
        let files: Vec<Vec<u8>> = inputs.iter().map(read).collect();
        (format!("{name}.png"), png(&files, *frame, &options))
    };
    PICTURES.iter().map(picture).collect()
}

fn png(files: &[Vec<u8>], frame: usize, options: &Options) -> Vec<u8> {
    let mut slices: Vec<Slices> = Vec::new();
    for file in files {
        match prepare(file, options).expect("the tests decode it") {
            Prepared::Frames(decoded) => {
                return frame_to_png(&decoded.frames[frame].0).expect("a frame is a picture");
            }
            Prepared::Slices(part) => slices.push(*part),
            Prepared::Withheld(refusal) => panic!("{refusal}"),
        }
    }
    let parts: Vec<(usize, &Slices)> = slices.iter().enumerate().collect();
    let plan = plan_volume(&parts, options.convention()).expect("the tests plan it");
    let (file, wanted) = plan.frames[frame];
    let shown =
        decode_slices(&files[file], &[wanted], &plan, options).expect("the tests decode it");
    frame_to_png(&shown[0].0).expect("a frame is a picture")
}
