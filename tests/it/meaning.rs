//! Drafts say what the pictures show: phantoms with known findings go through a whole fleet with the demo model, and the texts
//! are scored. As a check of the check, a mirrored film must change the sides, and a blank one must have no findings.
//!
//! The figures of a large set are in `deploy/demo/README.md`; here is a small one, whose numbers are fixed by its seed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use medfleet_imaging::{Limits, Options, decode_file};
use medfleet_phantom::{Format, SetOptions, write_set};
use medfleet_tests::fleet::Up;
use serde_json::Value;

/// Phantoms of the set.
const COUNT: &str = "40";
/// Phantoms of the set of pairs.
const PAIRED: &str = "16";
/// A seed that training never used.
const SEED: &str = "424242";

fn demo(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join("deploy/demo").join(name)
}

/// Scores a set; `name` keeps its answers apart from another's.
async fn eval(up: &Up, set: &Path, task: &str, name: &str) -> Result<Value> {
    let (set, out) = (set.display().to_string(), up.folder().join(name));
    let out = out.display().to_string();
    let arguments = [
        "eval", "--set", &set, "--task", task, "--out", &out, "--json",
    ];
    let printed = up.run(&arguments).await?;
    let evaluation: Value = serde_json::from_str(printed.trim())?;
    ensure!(
        evaluation["failures"] == Value::Array(Vec::new()),
        "{evaluation}"
    );
    Ok(evaluation)
}

fn figure(evaluation: &Value, name: &str) -> Result<f64> {
    let figures = evaluation["figures"].as_array().context("figures")?;
    let found = figures.iter().find(|figure| figure["name"] == name);
    found
        .and_then(|figure| figure["value"].as_f64())
        .with_context(|| format!("no figure {name} in {figures:?}"))
}

/// The set with every picture changed.
fn changed(set: &Path, to: &Path, change: impl Fn(&mut image::GrayImage)) -> Result<()> {
    std::fs::create_dir_all(to.join("images"))?;
    std::fs::copy(set.join("set.jsonl"), to.join("set.jsonl"))?;
    for entry in std::fs::read_dir(set.join("images"))? {
        let path = entry?.path();
        let mut picture = image::open(&path)?.into_luma8();
        change(&mut picture);
        let name = path.file_name().context("a name")?;
        picture.save(to.join("images").join(name))?;
    }
    Ok(())
}

/// Pairs go through the fleet as comparisons, and what is said of them is scored. How well is not asked here.
async fn comparisons(up: &Up) -> Result<()> {
    let set = up.folder().join("pairs");
    let path = set.display().to_string();
    let make = [
        "phantom", "--count", PAIRED, "--seed", SEED, "--pairs", "--format", "png", "--size",
        "448", "--out", &path,
    ];
    up.run(&make).await?;
    let compared = eval(up, &set, "compare", "compared").await?;
    let accuracy = figure(&compared, "change_accuracy")?;
    eprintln!("comparisons: changes said rightly {accuracy:.2}");
    ensure!(compared["scored"] == 8, "{compared}");
    let rows = compared["confusion"]["counts"].as_array();
    ensure!(rows.is_some_and(|rows| rows.len() == 6), "{compared}");
    Ok(())
}

/// One box is asked for each finding, and lies where the finding was drawn.
async fn boxes(up: &Up, set: &Path) -> Result<()> {
    let localised = eval(up, set, "localise", "localised").await?;
    let overlap = figure(&localised, "mean_iou")?;
    eprintln!("boxes: mean overlap {overlap:.2}");
    ensure!(overlap >= 0.5, "boxes lie elsewhere: {overlap}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_say_what_the_pictures_show() -> Result<()> {
    let siglip = demo("phantom-siglip");
    let up = Up::with(&demo("phantom-demo"), Some(&siglip)).await?;
    let set = up.folder().join("set");
    let path = set.display().to_string();
    let make = [
        "phantom", "--count", COUNT, "--seed", SEED, "--format", "png", "--size", "448", "--out",
        &path,
    ];
    up.run(&make).await?;

    let as_it_is = eval(&up, &set, "report", "as-it-is").await?;
    let (f1, sides) = (
        figure(&as_it_is, "micro_f1")?,
        figure(&as_it_is, "laterality")?,
    );
    eprintln!("micro F1 {f1:.2}, sides right {sides:.2}");
    ensure!(f1 >= 0.7 && sides >= 0.95, "F1 {f1}, sides {sides}");

    let mirrored = up.folder().join("mirrored");
    changed(&set, &mirrored, image::imageops::flip_horizontal_in_place)?;
    let of_mirrored = eval(&up, &mirrored, "report", "of-mirrored").await?;
    let wrong = figure(&of_mirrored, "laterality")?;
    eprintln!("mirrored: sides right {wrong:.2}");
    ensure!(wrong <= 0.2, "mirrored films keep their sides: {wrong}");

    let blank = up.folder().join("blank");
    changed(&set, &blank, |picture| {
        picture.fill(128);
    })?;
    let of_blank = eval(&up, &blank, "report", "of-blank").await?;
    let nothing = figure(&of_blank, "micro_f1")?;
    eprintln!("blank: micro F1 {nothing:.2}");
    ensure!(nothing <= f1 / 2.0, "blank films have findings: {nothing}");

    let scores = eval(&up, &set, "zero-shot", "zero-shot").await?;
    let auc = figure(&scores, "mean_auc")?;
    eprintln!("zero-shot: mean AUC {auc:.2}");
    ensure!(auc >= 0.75, "zero-shot is guessing: {auc}");

    boxes(&up, &set).await?;
    comparisons(&up).await?;
    up.stop().await
}

/// A model trained on pictures that were brought down sees in a fleet what it saw in training.
#[test]
fn raw_phantoms_that_are_brought_down_are_the_frames_of_files() -> Result<()> {
    const SIDE: u32 = 56;
    const PICTURES: usize = 6;
    let dir = tempfile::tempdir()?;
    let raw = SetOptions {
        count: PICTURES as u64,
        seed: 424_242,
        format: Format::Raw,
        size: Some(SIDE),
        rendered: Some(301),
        pairs: true,
        often: Vec::new(),
    };
    write_set(&raw, dir.path(), &|_| ())?;
    let files = SetOptions {
        format: Format::Png,
        size: raw.rendered,
        rendered: None,
        ..raw
    };
    write_set(&files, dir.path(), &|_| ())?;
    let pixels = std::fs::read(dir.path().join("images.u8"))?;
    ensure!(
        pixels.len() == PICTURES * (SIDE * SIDE) as usize,
        "every picture"
    );
    let options = Options::new(SIDE, Limits::default())?;
    for (index, raw) in pixels.chunks((SIDE * SIDE) as usize).enumerate() {
        let bytes = std::fs::read(dir.path().join(format!("images/{index:06}.png")))?;
        let decoded = decode_file(&bytes, &options)
            .map_err(|refusal| anyhow::anyhow!("picture {index}: {refusal:?}"))?;
        ensure!(decoded.frames[0].0.pixels == raw, "picture {index} differs");
    }
    Ok(())
}
