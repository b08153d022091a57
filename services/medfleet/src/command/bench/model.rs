//! `medfleet bench model`: what devices make of MedGemma 4B's true shapes. Images encoded, a prompt read, and texts written
//! alone and beside others, without a fleet around it. Several devices take turns, so that what else the machine does falls
//! on all of them. Prints medians, ratios, and how near they are to what the machine could do at most.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use medfleet_model::{Dtype, Limits, Model};
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::form::Form;
use super::sample::Sample;
use super::side::{Amounts, Samples, Side, Work};
use crate::exit::{CommandResult, Exit};
use crate::show::{self, seconds};

/// Flags of `bench model`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    checkpoint: Checkpoint,
    /// How often a prompt is read in each turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// How often an image is encoded in each turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    images: usize,
    /// Turns of each device
    #[arg(long, value_name = "N", default_value_t = 2)]
    turns: usize,
    /// Texts written side by side
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 4, 16])]
    batch: Vec<usize>,
    /// Tokens of each text in each turn
    #[arg(long, value_name = "N", default_value_t = 16)]
    steps: usize,
    /// Tokens in front of the image, to see how a long context is read
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
    /// Keep each thread on a core of its own, as `model.pin_threads` does for a worker
    #[arg(long)]
    pin_threads: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What one model was measured at.
struct Figures {
    form: Form,
    device: String,
    load_seconds: f64,
    prompt_tokens: usize,
    samples: BTreeMap<Work, Samples>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    if args.pin_threads {
        medfleet_model::can_pin_threads().context("--pin-threads")?;
    }
    args.checkpoint.prepare()?;
    let amounts = Amounts {
        repeat: args.repeat.max(1),
        images: args.images,
        batch: args.batch.clone(),
        steps: args.steps.max(1),
        turns: args.turns.max(1),
        context: args.context,
    };
    let limits = Limits::measure();
    let mut all = Vec::new();
    for form in &args.checkpoint.dtype {
        let of_form = measure(&args, *form, &amounts)?;
        if !args.json {
            show::print(&table(&args, &limits, &of_form).join("\n"))?;
        }
        all.extend(of_form);
    }
    if args.json {
        show::print_json(&as_json(&args, &limits, &all))?;
    }
    Ok(Exit::Done)
}

/// All devices in one form, turn by turn.
fn measure(args: &Args, form: Form, amounts: &Amounts) -> Result<Vec<Figures>> {
    let (checkpoint, mut sides) = (&args.checkpoint, Vec::new());
    for device in &checkpoint.device {
        sides.push(Side::new(checkpoint.load(form, *device)?, amounts)?);
    }
    if args.pin_threads {
        medfleet_model::pin_threads().context("--pin-threads")?;
    }
    for turn in 0..amounts.turns {
        for side in &mut sides {
            side.turn(turn, amounts)?;
        }
    }
    let figures = sides.iter().map(|side| Figures {
        form,
        device: Model::device(&side.model),
        load_seconds: side.load.as_secs_f64(),
        prompt_tokens: side.prompt_tokens(),
        samples: side.samples(),
    });
    Ok(figures.collect())
}

impl Work {
    fn name(self) -> String {
        match self {
            Self::Encode => "image encoded".to_owned(),
            Self::Prefill => "prompt read".to_owned(),
            Self::Step(count) => format!("step of {count}"),
        }
    }

    /// Multiplications and additions of all products, attention of images among them.
    fn operations(self, checkpoint: &Checkpoint, figures: &Figures) -> f64 {
        let text = |rows: usize, logits: usize| {
            let (layers, head) = checkpoint.text_weights();
            2.0 * (layers as f64 * rows as f64 + head as f64 * logits as f64)
        };
        match self {
            Self::Encode => checkpoint.image_operations(),
            Self::Prefill => text(figures.prompt_tokens, 1),
            Self::Step(count) => text(count, count),
        }
    }

    /// What is read of the weights at least; nothing for images, whose weights are used for thousands of patches.
    fn bytes(self, checkpoint: &Checkpoint, figures: &Figures) -> Option<f64> {
        match self {
            Self::Step(_) => Some(checkpoint.text_bytes(figures.form)),
            Self::Encode | Self::Prefill => None,
        }
    }
}

/// A table of one form: a row for each work, columns for each device.
fn table(args: &Args, limits: &Limits, all: &[Figures]) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{}, {} and {} layers, prompt {} tokens, {} turns; {} threads{}, {:.0} GFLOP/s in the inner loop, {:.1} GB/s read",
            all[0].form,
            args.checkpoint.vision_layers(),
            args.checkpoint.layers(),
            all[0].prompt_tokens,
            args.turns,
            limits.threads,
            if args.pin_threads { ", pinned" } else { "" },
            peak(limits, all[0].form) * 1e-9,
            limits.bytes_per_second * 1e-9
        ),
        all.iter().fold(format!("{:<16}", ""), |line, figures| {
            let device = figures.device.rsplit(' ').next().unwrap_or_default();
            line + &format!("{device:>12}{:>8}{:>8}", "of peak", "of read")
        }),
    ];
    if all.len() > 1 {
        lines[1] += &format!("{:>10}{:>10}", "clock", "processor");
    }
    for (work, first) in &all[0].samples {
        let mut line = format!("{:<16}", work.name());
        for figures in all {
            let time = figures.samples[work].clock.median();
            let share = |amount: f64, limit: f64| {
                format!("{:.0} %", 100.0 * amount / time.as_secs_f64() / limit)
            };
            let peak = share(
                work.operations(&args.checkpoint, figures),
                peak(limits, figures.form),
            );
            let read = work.bytes(&args.checkpoint, figures);
            let read = read.map_or("".to_owned(), |bytes| share(bytes, limits.bytes_per_second));
            line += &format!("{:>12}{peak:>8}{read:>8}", seconds(time));
        }
        for figures in &all[1..] {
            let of = &figures.samples[work];
            let ratio = |a: &Sample, b: &Sample| {
                let median = |sample: &Sample| sample.median().as_secs_f64();
                format!("{:>8.2} ×", median(a) / median(b))
            };
            line += &ratio(&of.clock, &first.clock);
            line += &ratio(&of.processor, &first.processor);
        }
        lines.push(line);
    }
    lines.push(String::new());
    lines
}

/// Multiplications and additions a second at most, by what the form's numbers are multiplied as.
fn peak(limits: &Limits, form: Form) -> f64 {
    match form {
        Form::Plain(Dtype::Bf16) => limits.bf16_operations_per_second,
        _ => limits.operations_per_second,
    }
}

fn as_json(args: &Args, limits: &Limits, all: &[Figures]) -> Value {
    let figures = all.iter().map(|figures| {
        let work = figures.samples.iter().map(|(work, sample)| {
            let median = sample.clock.median().as_secs_f64();
            json!({
                "work": work.name(),
                "clock": sample.clock.json(),
                "processor": sample.processor.json(),
                "operations": work.operations(&args.checkpoint, figures),
                "bytes": work.bytes(&args.checkpoint, figures),
                "share_of_peak": work.operations(&args.checkpoint, figures) / median / peak(limits, figures.form),
                "share_of_read": work.bytes(&args.checkpoint, figures).map(|bytes| bytes / median / limits.bytes_per_second),
            })
        });
        json!({
            "dtype": figures.form.to_string(),
            "device": figures.device,
            "load_seconds": figures.load_seconds,
            "prompt_tokens": figures.prompt_tokens,
            "work": work.collect::<Vec<_>>(),
        })
    });
    json!({
        "bench": "model",
        "layers": args.checkpoint.layers(),
        "vision_layers": args.checkpoint.vision_layers(),
        "turns": args.turns,
        "threads": limits.threads,
        "pinned": args.pin_threads,
        "peak_operations_per_second": limits.operations_per_second,
        "peak_bf16_operations_per_second": limits.bf16_operations_per_second,
        "read_bytes_per_second": limits.bytes_per_second,
        "models": figures.collect::<Vec<_>>(),
    })
}
