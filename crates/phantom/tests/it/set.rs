//! Sets: the same bytes for a seed whatever the number of threads.

use std::path::Path;

use medfleet_phantom::labels::Label;
use medfleet_phantom::{Format, Phantom, PhantomError, Picture, SetOptions, write_set};

use crate::SEED;

fn options(format: Format) -> SetOptions {
    SetOptions {
        count: 70,
        seed: SEED,
        format,
        size: Some(64),
        rendered: None,
        pairs: true,
        often: Vec::new(),
    }
}

fn write(options: &SetOptions, threads: usize, dir: &Path) -> Result<(), PhantomError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("threads can be started")
        .install(|| write_set(options, dir, &|_| ()))
}

#[test]
fn threads_do_not_matter() {
    for format in [Format::Raw, Format::Png, Format::Dicom] {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut options = options(format);
        if format != Format::Raw {
            options.count = 9;
        }
        for (dir, threads) in dirs.iter().zip([1, 3]) {
            write(&options, threads, dir.path()).unwrap();
        }
        let names: Vec<String> = match format {
            Format::Raw => vec!["images.u8".into()],
            Format::Png => (0..9)
                .map(|index| format!("images/{index:06}.png"))
                .collect(),
            Format::Dicom => (0..9)
                .map(|index| format!("images/{index:06}.dcm"))
                .collect(),
        };
        for name in names.iter().map(String::as_str).chain(["set.jsonl"]) {
            let [one, three] =
                [0, 1].map(|dir| std::fs::read(dirs[dir].path().join(name)).unwrap());
            assert!(one == three, "{name} differs");
        }
    }
}

#[test]
fn a_raw_set_has_a_picture_and_a_line_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let last = std::cell::Cell::new(0);
    write_set(&options(Format::Raw), dir.path(), &|count| last.set(count)).unwrap();
    assert_eq!(last.get(), 70);
    let pixels = std::fs::read(dir.path().join("images.u8")).unwrap();
    assert_eq!(pixels.len(), 70 * 64 * 64);
    let lines = std::fs::read_to_string(dir.path().join("set.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 70);
    let phantom = Phantom::draw(SEED, 69, true);
    let picture: Picture = phantom.render_square(64);
    assert_eq!(picture.grey(), &pixels[69 * 64 * 64..]);
    for line in lines.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(record["image"].is_null());
        assert_eq!(record["labels"].as_object().unwrap().len(), 9);
        assert_eq!(
            record["prior"].is_null(),
            record["index"].as_u64().unwrap().is_multiple_of(2)
        );
    }
}

#[test]
fn a_png_is_what_is_rendered() {
    let dir = tempfile::tempdir().unwrap();
    let options = SetOptions {
        count: 2,
        ..options(Format::Png)
    };
    write_set(&options, dir.path(), &|_| ()).unwrap();
    let read = image::open(dir.path().join("images/000001.png"))
        .unwrap()
        .into_luma8();
    let picture = Phantom::draw(SEED, 1, true).render(64);
    assert_eq!(read.into_raw(), picture.grey());
}

#[test]
fn impossible_sizes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = SetOptions {
        size: Some(5),
        ..options(Format::Raw)
    };
    let refused = write_set(&options, dir.path(), &|_| ());
    assert!(matches!(refused, Err(PhantomError::Size { size: 5 })));
    let options = SetOptions {
        size: None,
        rendered: Some(5000),
        ..options
    };
    let refused = write_set(&options, dir.path(), &|_| ());
    assert!(matches!(refused, Err(PhantomError::Size { size: 5000 })));
    let options = SetOptions {
        format: Format::Png,
        rendered: Some(64),
        ..options
    };
    let refused = write_set(&options, dir.path(), &|_| ());
    assert!(matches!(refused, Err(PhantomError::Rendered)));
}

#[test]
fn what_is_asked_for_is_drawn_more_often() {
    let share = |often: &[Label]| {
        let findings: Vec<_> = (0..400)
            .flat_map(|index| {
                let phantom = Phantom::draw_often(SEED, index, false, often);
                phantom.record().findings.clone()
            })
            .collect();
        let rare = |label| matches!(label, Label::Nodule | Label::Fracture);
        let count = findings.iter().filter(|finding| rare(finding.label));
        count.count() as f64 / findings.len() as f64
    };
    let (alike, often) = (share(&[]), share(&[Label::Nodule, Label::Fracture]));
    assert!((0.15..0.3).contains(&alike), "{alike}");
    assert!((0.65..0.85).contains(&often), "{often}");
}
