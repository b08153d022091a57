//! `medfleet phantom`: synthetic chest radiographs with known findings, for demos, evaluation and training.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use medfleet_phantom::labels::Label;
use medfleet_phantom::{Format, SetOptions, write_set};

use crate::exit::{CommandResult, Exit};

/// Flags of `phantom`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How many pictures
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// The same seed makes the same bytes
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Folder to write: pictures, and set.jsonl with what is true of each
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// dicom: files with windows, both photometric interpretations, 8 to 16 bits; png: as shown; raw: one file of squares
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "dicom")]
    format: FormatName,
    /// Columns of a picture, or the side of a raw square [default: 224 raw, 1024 png, each its own in dicom]
    #[arg(long, value_name = "PIXELS")]
    size: Option<u32>,
    /// Columns at which raw pictures are rendered before they are brought to their side as the fleet does [default: their side]
    #[arg(long, value_name = "PIXELS")]
    rendered: Option<u32>,
    /// Every second picture is a later one of the patient before it
    #[arg(long)]
    pairs: bool,
    /// Findings to draw more often, for training: of new ones, 7 of 10 are from these, as `nodule,fracture`
    #[arg(long, value_name = "FINDINGS", value_delimiter = ',', value_parser = finding)]
    often: Vec<Label>,
}

/// A finding by its name in records.
fn finding(name: &str) -> Result<Label, String> {
    let known = || Label::ALL.map(Label::name).join(", ");
    Label::ALL
        .into_iter()
        .find(|label| label.name() == name)
        .ok_or_else(|| format!("no such finding; known are {}", known()))
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatName {
    Dicom,
    Png,
    Raw,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let options = SetOptions {
        count: args.count,
        seed: args.seed,
        format: match args.format {
            FormatName::Dicom => Format::Dicom,
            FormatName::Png => Format::Png,
            FormatName::Raw => Format::Raw,
        },
        size: args.size,
        rendered: args.rendered,
        pairs: args.pairs,
        often: args.often,
    };
    let bar = ProgressBar::new(args.count);
    let style = ProgressStyle::with_template("{pos} of {len} phantoms {wide_bar} {eta}");
    bar.set_style(style.context("the progress bar's template")?);
    write_set(&options, &args.out, &|written| {
        bar.set_position(written as u64);
    })
    .with_context(|| format!("cannot write the set to {}", args.out.display()))?;
    bar.finish_and_clear();
    eprintln!(
        "{} phantoms and set.jsonl in {}; made up, not for clinical use",
        args.count,
        args.out.display()
    );
    Ok(Exit::Done)
}
