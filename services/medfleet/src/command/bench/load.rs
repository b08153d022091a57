//! `medfleet bench load`: a checkpoint of MedGemma 4B's true shapes is loaded as a worker loads it. Prints the time, and how
//! much memory the weights take beside the mapped files.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use medfleet_model::{Continue, Frame, Message, Model, Request};
use serde_json::json;

use super::checkpoint::Checkpoint;
use crate::exit::{CommandResult, Exit};
use crate::show::{self, bytes, seconds};

/// Flags of `bench load`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    checkpoint: Checkpoint,
    /// Also answer about one image with this many tokens, which takes minutes on a small machine
    #[arg(long, value_name = "N")]
    answer: Option<usize>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Resident memory of this process, in bytes.
#[derive(Clone, Copy)]
struct Resident {
    /// Its own: what it has allocated.
    anonymous: u64,
    /// Pages of files it has mapped; the system takes them back when it needs them.
    file: u64,
}

/// What was measured.
struct Figures {
    weights_bytes: u64,
    written: Option<Duration>,
    first: Duration,
    again: Duration,
    resident: Resident,
    answer: Option<Answer>,
}

struct Answer {
    encode: Duration,
    first_token: Duration,
    each_token: Duration,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let written = args.checkpoint.prepare()?;
    let (form, device) = args.checkpoint.only()?;
    let before = resident()?;
    let (model, first) = args.checkpoint.load(form, device)?;
    drop(model);
    // The files are in memory now, and the digests are known: as for a worker that starts again.
    let (model, again) = args.checkpoint.load(form, device)?;
    let after = resident()?;
    let answer = match args.answer {
        Some(tokens) => Some(answer(&model, tokens)?),
        None => None,
    };
    let figures = Figures {
        weights_bytes: args.checkpoint.weights_bytes(form),
        written,
        first,
        again,
        resident: Resident {
            anonymous: after.anonymous.saturating_sub(before.anonymous),
            file: after.file.saturating_sub(before.file),
        },
        answer,
    };
    show_figures(&args, &figures)?;
    Ok(Exit::Done)
}

fn answer(model: &Model, tokens: usize) -> Result<Answer> {
    let side = model
        .config()
        .vision
        .as_ref()
        .context("the model takes no images")?
        .image_size;
    let pixels = (0..side * side).map(|at| (at % 251) as u8).collect();
    let frame = Frame::new(side, 1, pixels).context("cannot make an image")?;
    let prompt = model.prompt(&[Message::user(1, "Describe the image.")], 1);
    let prompt = prompt.context("cannot build the prompt")?;
    let begun = Instant::now();
    let images = model.encode(&[frame]).context("cannot encode the image")?;
    let encode = begun.elapsed();
    let request = Request::greedy(model, &prompt, &images, tokens);
    let (begun, mut first, mut written) = (Instant::now(), None, 0_u32);
    let generation = model.generate(&request, &mut |delta| {
        // Without a token it is only asked whether to go on.
        if delta.is_some() {
            first.get_or_insert_with(|| begun.elapsed());
            written += 1;
        }
        Continue::Yes
    });
    generation.context("cannot generate")?;
    let first_token = first.unwrap_or_default();
    Ok(Answer {
        encode,
        first_token,
        each_token: (begun.elapsed() - first_token) / written.saturating_sub(1).max(1),
    })
}

fn resident() -> Result<Resident> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("cannot read this process's memory, which needs Linux")?;
    let of = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: u64 = kib
            .and_then(|kib| kib.trim().parse().ok())
            .with_context(|| format!("/proc/self/status has no {name}"))?;
        Ok(kib << 10)
    };
    Ok(Resident {
        anonymous: of("RssAnon:")?,
        file: of("RssFile:")?,
    })
}

fn show_figures(args: &Args, figures: &Figures) -> Result<()> {
    let share = figures.resident.anonymous as f64 / figures.weights_bytes as f64;
    if args.json {
        let answer = figures.answer.as_ref().map(|answer| {
            json!({
                "encode_seconds": answer.encode.as_secs_f64(),
                "time_to_first_token_seconds": answer.first_token.as_secs_f64(),
                "token_seconds": answer.each_token.as_secs_f64(),
            })
        });
        let figures = json!({
            "bench": "load",
            "dtype": args.checkpoint.dtype[0].to_string(),
            "weights_bytes": figures.weights_bytes,
            "write_seconds": figures.written.map(|time| time.as_secs_f64()),
            "first_load_seconds": figures.first.as_secs_f64(),
            "load_seconds": figures.again.as_secs_f64(),
            "resident_anonymous_bytes": figures.resident.anonymous,
            "resident_file_bytes": figures.resident.file,
            "resident_anonymous_share": share,
            "answer": answer,
        });
        return Ok(show::print_json(&figures)?);
    }
    let row = |name: &str, value: String| format!("{name:<24}{value:>12}");
    let mut lines = vec![row("weights", bytes(figures.weights_bytes))];
    lines.extend(figures.written.map(|time| row("written in", seconds(time))));
    lines.push(row("first load", seconds(figures.first)));
    lines.push(row("load again", seconds(figures.again)));
    lines.push(format!(
        "{}  {share:.2} of the weights",
        row("own memory", bytes(figures.resident.anonymous))
    ));
    lines.push(row("mapped files", bytes(figures.resident.file)));
    if let Some(answer) = &figures.answer {
        lines.push(row("image encoded", seconds(answer.encode)));
        lines.push(row("first token", seconds(answer.first_token)));
        lines.push(row("each token", seconds(answer.each_token)));
    }
    Ok(show::print(&lines.join("\n"))?)
}
