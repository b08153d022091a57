//! `medfleet infer`: the model alone, no queue. Images enter as they are; the model's own rule resizes them.

mod dump;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use medfleet_model::{
    Continue, Dtype, Finish, Frame, Generation, LoadOptions, Message, Model, Parts, Prompt,
    Request, Sampling,
};
use serde_json::{Value, json};

use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// Flags of `infer`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Model folder: config.json, safetensors, tokenizer.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A square PNG or JPEG of any size; repeat for several, in order (`medfleet frames` makes squares of anything else)
    #[arg(long = "image", value_name = "PATH")]
    images: Vec<PathBuf>,
    /// What to ask
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 is greedy, up to 2
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// What to compute in: f32 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    dtype: Dtype,
    /// One JSON object on stdout: prompt and generated token ids, text, timings
    #[arg(long)]
    json: bool,
    /// Write `logits` [positions, vocab] f32: the last prompt position, then each generated one
    #[arg(long, value_name = "FILE.safetensors")]
    dump_logits: Option<PathBuf>,
}

/// How long each part took.
#[derive(Clone, Copy, Debug)]
struct Spans {
    load: Duration,
    encode: Duration,
    first_token: Duration,
    total: Duration,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let images = args
        .images
        .iter()
        .map(|path| read_image(path))
        .collect::<Result<Vec<_>>>()
        .map_err(Fault::usage)?;
    let begun = Instant::now();
    let options = LoadOptions {
        dtype: args.dtype,
        parts: Parts::All,
    };
    let model = Model::load(&args.model, options)
        .with_context(|| format!("cannot load the model in {}", args.model.display()))
        .map_err(Fault::usage)?;
    let load = begun.elapsed();
    let messages = [Message::user(images.len(), args.prompt.as_str())];
    let prompt = model
        .prompt(&messages, images.len())
        .context("cannot build the prompt")
        .map_err(Fault::usage)?;
    let (generation, mut spans) = generate(&model, &prompt, &images, &args)?;
    spans.load = load;
    if let Some(path) = &args.dump_logits {
        dump::logits(path, &generation.logits)?;
    }
    if args.json {
        show::print_json(&as_json(&prompt, &generation, &spans))?;
    } else {
        print_end(&generation, &spans)?;
    }
    Ok(Exit::Done)
}

/// Encodes the images and generates; text goes to stdout as it comes unless JSON was asked for.
fn generate(
    model: &Model,
    prompt: &Prompt,
    images: &[Frame],
    args: &Args,
) -> Result<(Generation, Spans)> {
    let begun = Instant::now();
    let tokens = if images.is_empty() {
        Vec::new()
    } else {
        model.encode(images).context("cannot encode the images")?
    };
    let encode = begun.elapsed();
    let request = Request {
        sampling: Sampling {
            temperature: args.temperature,
            seed: args.seed,
            ..Sampling::greedy()
        },
        collect_logits: args.dump_logits.is_some(),
        ..Request::greedy(model, prompt, &tokens, args.max_tokens)
    };
    let mut first_token = None;
    let mut broken = None;
    let generation = model
        .generate(&request, &mut |delta| {
            let Some(delta) = delta else {
                return Continue::Yes;
            };
            first_token.get_or_insert_with(|| begun.elapsed());
            if args.json {
                return Continue::Yes;
            }
            match stream(&delta.text) {
                Ok(()) => Continue::Yes,
                Err(error) => {
                    broken = Some(error);
                    Continue::No
                }
            }
        })
        .context("cannot generate")?;
    if let Some(error) = broken {
        return Err(error).context("cannot write the text");
    }
    let total = begun.elapsed();
    let spans = Spans {
        load: Duration::ZERO,
        encode,
        first_token: first_token.unwrap_or(total),
        total,
    };
    Ok((generation, spans))
}

fn stream(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A picture as the model takes it: grey stays grey, everything else is RGB, and it must be square.
fn read_image(path: &Path) -> Result<Frame> {
    let picture = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .with_context(|| format!("cannot read {}", path.display()))?
        .decode()
        .with_context(|| format!("{} is not a PNG or JPEG", path.display()))?;
    let (width, height) = (picture.width(), picture.height());
    if width != height {
        bail!(
            "{} is {width} × {height} pixels; infer takes square images, which `medfleet frames` makes of any other",
            path.display()
        );
    }
    let side =
        usize::try_from(width).map_err(|_too_large| anyhow!("{} is too large", path.display()))?;
    let (channels, pixels) = match picture.color().has_color() {
        false => (1, picture.into_luma8().into_raw()),
        true => (3, picture.into_rgb8().into_raw()),
    };
    Frame::new(side, channels, pixels).with_context(|| format!("cannot use {}", path.display()))
}

fn as_json(prompt: &Prompt, generation: &Generation, spans: &Spans) -> Value {
    let tokens: Vec<u32> = generation
        .choices
        .iter()
        .map(|choice| choice.token)
        .collect();
    let log_probabilities: Vec<f32> = generation
        .choices
        .iter()
        .map(|choice| choice.logprob)
        .collect();
    json!({
        "prompt_tokens": prompt.tokens(),
        "generated_tokens": tokens,
        "log_probabilities": log_probabilities,
        "text": generation.text,
        "finish_reason": finish_word(generation.finish),
        "timings": {
            "load_seconds": spans.load.as_secs_f64(),
            "encode_seconds": spans.encode.as_secs_f64(),
            "time_to_first_token_seconds": spans.first_token.as_secs_f64(),
            "total_seconds": spans.total.as_secs_f64(),
        },
    })
}

fn print_end(generation: &Generation, spans: &Spans) -> io::Result<()> {
    stream("\n")?;
    eprintln!(
        "{} tokens, {}; model loaded in {}, images encoded in {}, first token after {}, all after {}",
        generation.choices.len(),
        finish_word(generation.finish),
        show::seconds(spans.load),
        show::seconds(spans.encode),
        show::seconds(spans.first_token),
        show::seconds(spans.total),
    );
    Ok(())
}

fn finish_word(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "STOP",
        Finish::Length => "LENGTH",
        Finish::Cancelled => "CANCELLED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(width: u32, height: u32, grey: bool, expected: Result<(usize, usize), &str>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("picture.png");
        let saved = if grey {
            image::GrayImage::new(width, height).save(&path)
        } else {
            image::RgbImage::new(width, height).save(&path)
        };
        saved.expect("a picture");
        match (read_image(&path), expected) {
            (Ok(frame), Ok(expected)) => assert_eq!((frame.side(), frame.channels()), expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn squares_come_in_grey_or_colour() {
        check(8, 8, true, Ok((8, 1)));
        check(8, 8, false, Ok((8, 3)));
        check(8, 6, false, Err("8 × 6 pixels"));
    }
}
