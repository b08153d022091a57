//! `medfleet infer`: the model alone, no queue. Images enter as they are; the model's own rule resizes them.

mod draft;
mod dump;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use medfleet_engine::Verified;
use medfleet_model::{
    Continue, Finish, FolderSource, Frame, Generation, GgufSource, ImageTokens, LoadOptions,
    Message, Model, Parts, Prompt, Request, Sampling,
};
use serde_json::{Value, json};

use super::{ComputeArgs, picture};
use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// Flags of `infer`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Model folder (config.json, safetensors, tokenizer.json), or a GGUF file with the language model
    #[arg(long, value_name = "DIR|FILE.gguf")]
    model: PathBuf,
    /// With a GGUF file: the vision tower, an mmproj GGUF or a model folder; without it images are refused
    #[arg(long, value_name = "FILE.gguf|DIR")]
    vision: Option<PathBuf>,
    /// With a GGUF file: tokenizer.json; else the one beside the file, or the vocabulary inside it
    #[arg(long, value_name = "FILE.json")]
    tokenizer: Option<PathBuf>,
    /// Hold the language model quantised, for less memory: a folder's becomes Q8_0; a GGUF's stays as stored, else it is
    /// dequantised
    #[arg(long)]
    quantised: bool,
    /// A second, smaller model with the same tokens, which proposes what the model verifies: the same text, greedy only
    #[arg(long, value_name = "DIR|FILE.gguf", conflicts_with = "dump_logits")]
    draft: Option<PathBuf>,
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
    #[command(flatten)]
    compute: ComputeArgs,
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

impl Spans {
    /// Of what began then and has just ended, without the loading before it.
    fn of(begun: Instant, encode: Duration, first_token: Option<Duration>) -> Self {
        let total = begun.elapsed();
        Self {
            load: Duration::ZERO,
            encode,
            first_token: first_token.unwrap_or(total),
            total,
        }
    }
}

pub(crate) fn run(args: Args) -> CommandResult {
    let images = args
        .images
        .iter()
        .map(|path| picture::read(path))
        .collect::<Result<Vec<_>>>()
        .map_err(Fault::usage)?;
    if args.draft.is_some() && args.temperature > 0.0 {
        let error = anyhow!("--draft writes greedily here: leave --temperature out");
        return Err(Fault::usage(error));
    }
    let begun = Instant::now();
    let options = LoadOptions {
        dtype: args.compute.dtype,
        parts: Parts::All,
        device: args.compute.device,
    };
    let model = load(&args, options).map_err(Fault::usage)?;
    let draft = match &args.draft {
        Some(path) => Some(load_draft(path, &args, options).map_err(Fault::usage)?),
        None => None,
    };
    let load = begun.elapsed();
    let messages = [Message::user(images.len(), args.prompt.as_str())];
    let prompt = model
        .prompt(&messages, images.len())
        .context("cannot build the prompt")
        .map_err(Fault::usage)?;
    let (generation, mut spans, verified) = match draft {
        Some(draft) => {
            let (generation, spans, verified) =
                draft::generate((model, draft), &prompt, &images, &args)?;
            (generation, spans, Some(verified))
        }
        None => {
            let (generation, spans) = generate(&model, &prompt, &images, &args)?;
            (generation, spans, None)
        }
    };
    spans.load = load;
    if let Some(path) = &args.dump_logits {
        dump::logits(path, &generation.logits)?;
    }
    if args.json {
        let mut json = as_json(&prompt, &generation, &spans);
        if let Some(Verified { proposed, accepted }) = verified {
            json["proposals"] = json!({"proposed": proposed, "accepted": accepted});
        }
        show::print_json(&json)?;
    } else {
        print_end(&generation, &spans)?;
        if let Some(Verified { proposed, accepted }) = verified {
            eprintln!("{accepted} of {proposed} proposed tokens were right");
        }
    }
    Ok(Exit::Done)
}

fn load(args: &Args, options: LoadOptions) -> Result<Model> {
    let is_gguf = args.model.extension().is_some_and(|end| end == "gguf");
    let model = if is_gguf {
        let source = GgufSource {
            text: args.model.clone(),
            vision: args.vision.clone(),
            tokenizer: args.tokenizer.clone(),
            quantised: args.quantised,
            digest_cache: None,
        };
        Model::load_gguf(&source, options)
    } else if args.vision.is_some() || args.tokenizer.is_some() {
        bail!("--vision and --tokenizer go with a .gguf file; a model folder has its own");
    } else {
        let source = FolderSource {
            quantised: args.quantised,
            ..FolderSource::new(&args.model)
        };
        Model::load_folder(&source, options)
    };
    model.with_context(|| format!("cannot load the model in {}", args.model.display()))
}

/// The text half of the second model, held and computed as the first one is.
fn load_draft(path: &Path, args: &Args, options: LoadOptions) -> Result<Model> {
    let options = LoadOptions {
        parts: Parts::Text,
        ..options
    };
    let model = Model::load_held(path, args.quantised, None, options);
    model.with_context(|| format!("cannot load the draft model in {}", path.display()))
}

/// Tokens of the images; a model without a vision tower has none to make of none.
fn encode(model: &Model, images: &[Frame]) -> Result<Vec<ImageTokens>> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    model.encode(images).context("cannot encode the images")
}

/// Encodes the images and generates; text goes to stdout as it comes unless JSON was asked for.
fn generate(
    model: &Model,
    prompt: &Prompt,
    images: &[Frame],
    args: &Args,
) -> Result<(Generation, Spans)> {
    let begun = Instant::now();
    let tokens = encode(model, images)?;
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
    Ok((generation, Spans::of(begun, encode, first_token)))
}

fn stream(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
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
