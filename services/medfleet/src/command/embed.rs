//! `medfleet embed`: MedSigLIP alone, no queue. Pictures enter as they are; the model's own rule resizes them.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use medfleet_model::{Embedder, Frame};
use serde_json::{Value, json};

use super::{ComputeArgs, picture};
use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// Flags of `embed`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Model folder: config.json, safetensors, spiece.model or tokenizer.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A square PNG or JPEG of any size; repeat for several
    #[arg(long = "image", value_name = "PATH")]
    images: Vec<PathBuf>,
    /// A text or label; repeat for several
    #[arg(long = "text", value_name = "TEXT")]
    texts: Vec<String>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// One JSON object per line: each embedding, then each picture with each text
    #[arg(long)]
    json: bool,
}

/// Something embedded.
struct Embedded {
    name: String,
    values: Vec<f32>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    if args.images.is_empty() && args.texts.is_empty() {
        return Err(Fault::usage(anyhow!(
            "nothing to embed: give --image or --text"
        )));
    }
    let frames: Vec<Frame> = args
        .images
        .iter()
        .map(|path| picture::read(path))
        .collect::<Result<_, _>>()
        .map_err(Fault::usage)?;
    let embedder = Embedder::load(&args.model, args.compute.dtype, args.compute.device)
        .with_context(|| format!("cannot load the model in {}", args.model.display()))
        .map_err(Fault::usage)?;
    let mut images = Vec::new();
    for (path, frame) in args.images.iter().zip(&frames) {
        let name = path.display().to_string();
        let values = embedder
            .image(frame)
            .with_context(|| format!("cannot embed {name}"))?;
        images.push(Embedded { name, values });
    }
    let mut texts = Vec::new();
    for text in &args.texts {
        let values = embedder.text(text).context("cannot embed a text")?;
        let name = text.clone();
        texts.push(Embedded { name, values });
    }
    if args.json {
        print_json(&embedder, &images, &texts)?;
    } else {
        print_lines(&embedder, &images, &texts)?;
    }
    Ok(Exit::Done)
}

fn print_json(embedder: &Embedder, images: &[Embedded], texts: &[Embedded]) -> anyhow::Result<()> {
    let about = |kind: &str, one: &Embedded| -> Value {
        json!({
            "kind": kind,
            kind: one.name,
            "embedding": one.values,
            "weights": embedder.digest().to_string(),
        })
    };
    for image in images {
        show::print_json(&about("image", image))?;
    }
    for text in texts {
        show::print_json(&about("text", text))?;
    }
    for image in images {
        for text in texts {
            show::print_json(&json!({
                "kind": "pair",
                "image": image.name,
                "text": text.name,
                "logit": embedder.logit(&image.values, &text.values),
                "probability": embedder.probability(&image.values, &text.values),
            }))?;
        }
    }
    Ok(())
}

/// For reading: the first numbers of each embedding, and the probability of every pair.
fn print_lines(embedder: &Embedder, images: &[Embedded], texts: &[Embedded]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for one in images.iter().chain(texts) {
        let first: Vec<String> = one
            .values
            .iter()
            .take(4)
            .map(|x| format!("{x:.4}"))
            .collect();
        writeln!(
            out,
            "{} … ({} numbers)  {}",
            first.join(" "),
            one.values.len(),
            one.name
        )?;
    }
    for image in images {
        for text in texts {
            let probability = embedder.probability(&image.values, &text.values);
            writeln!(out, "{probability:.4}  {}  {:?}", image.name, text.name)?;
        }
    }
    Ok(())
}
