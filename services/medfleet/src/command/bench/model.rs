//! `medfleet bench model`: what one device makes of MedGemma 4B's true shapes. Images encoded, a prompt read, and texts
//! written alone and beside others, without a fleet around it. Prints medians.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use medfleet_model::{
    BlockTable, Chunk, Frame, ImageSpan, ImageTokens, KvOptions, KvPool, LogitRows, Message, Model,
    Prompt, Want,
};
use serde_json::json;

use super::checkpoint::Checkpoint;
use crate::exit::{CommandResult, Exit};
use crate::show::{self, seconds};

/// Positions in a block, as the fleet has it.
const BLOCK_TOKENS: usize = 16;
/// Words of the prompt beside its image: about 300 tokens with it.
const WORDS: usize = 30;
/// Steps before those that count.
const WARM_STEPS: usize = 3;

/// Flags of `bench model`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    checkpoint: Checkpoint,
    /// How often an image is encoded and a prompt is read
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Texts written side by side
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 4, 16])]
    batch: Vec<usize>,
    /// Tokens of each text
    #[arg(long, value_name = "N", default_value_t = 32)]
    steps: usize,
    /// Tokens in front of the image, to see how a long context is read
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What was measured; times are medians.
struct Figures {
    device: String,
    load: Duration,
    encode: Duration,
    prompt_tokens: usize,
    prefill: Duration,
    /// Texts side by side, and the time of one step of all.
    decode: Vec<(usize, Duration)>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    args.checkpoint.prepare()?;
    let (model, load) = args.checkpoint.load()?;
    let (images, encode) = encode(&model, args.repeat)?;
    let prompt = prompt(&model, args.context)?;
    let mut bench = Bench {
        model: &model,
        prompt: &prompt,
        image: &images[0],
        steps: args.steps.max(1),
    };
    let figures = Figures {
        device: model.device(),
        load,
        encode,
        prompt_tokens: prompt.tokens().len(),
        prefill: bench.prefill(args.repeat)?,
        decode: args
            .batch
            .iter()
            .map(|count| Ok((*count, bench.decode(*count)?)))
            .collect::<Result<_>>()?,
    };
    show_figures(&args, &figures)?;
    Ok(Exit::Done)
}

/// Different images, one after the other; the first one warms up.
fn encode(model: &Model, repeat: usize) -> Result<(Vec<ImageTokens>, Duration)> {
    let vision = model.config().vision.as_ref();
    let side = vision.context("the model takes no images")?.image_size;
    let mut times = Vec::new();
    let mut first = Vec::new();
    for turn in 0..=repeat {
        let pixels = (0..side * side).map(|at| ((at + 31 * turn) % 251) as u8);
        let frame = Frame::new(side, 1, pixels.collect()).context("cannot make an image")?;
        let begun = Instant::now();
        let tokens = model.encode(&[frame]).context("cannot encode the image")?;
        if turn == 0 {
            first = tokens;
        } else {
            times.push(begun.elapsed());
        }
    }
    Ok((first, median(times)))
}

/// One image and about [`WORDS`] words, after as many tokens as are asked for.
fn prompt(model: &Model, context: usize) -> Result<Prompt> {
    let words = |count: usize| vec!["lungs"; count].join(" ");
    let build = |before: usize| {
        let mut messages = Vec::new();
        if before > 0 {
            messages.push(Message::user(0, words(before)));
        }
        messages.push(Message::user(1, words(WORDS)));
        let joined = match messages.as_slice() {
            [context, question] => vec![merged(context, question)],
            _ => messages,
        };
        model.prompt(&joined, 1).context("cannot build the prompt")
    };
    // A word is some tokens of this tokenizer: measured, then asked for.
    let bare = build(0)?;
    if context == 0 {
        return Ok(bare);
    }
    let each = (build(100)?.tokens().len() - bare.tokens().len()).max(1) as f64 / 100.0;
    build((context as f64 / each) as usize)
}

fn merged(context: &Message, question: &Message) -> Message {
    let mut parts = context.parts.clone();
    parts.extend(question.parts.iter().cloned());
    Message {
        role: question.role,
        parts,
    }
}

struct Bench<'a> {
    model: &'a Model,
    prompt: &'a Prompt,
    image: &'a ImageTokens,
    steps: usize,
}

impl Bench<'_> {
    fn positions(&self) -> usize {
        self.prompt.tokens().len() + WARM_STEPS + self.steps
    }

    fn pool(&self, count: usize) -> Result<KvPool> {
        let positions = self.positions().next_multiple_of(BLOCK_TOKENS);
        let options = KvOptions {
            block_tokens: BLOCK_TOKENS,
            budget_bytes: count * positions * self.model.kv_position_bytes(),
        };
        self.model.kv_pool(options).context("no room for the cache")
    }

    /// The time until the first logits of a prompt with one image that is encoded already.
    fn prefill(&mut self, repeat: usize) -> Result<Duration> {
        let mut pool = self.pool(1)?;
        let mut times = Vec::new();
        for turn in 0..=repeat {
            let begun = Instant::now();
            let (table, _) = self.read(&mut pool)?;
            if turn > 0 {
                times.push(begun.elapsed());
            }
            pool.release(table);
        }
        Ok(median(times))
    }

    /// Reads the prompt into the pool: the sequence's blocks and its first token.
    fn read(&self, pool: &mut KvPool) -> Result<(BlockTable, u32)> {
        let mut table = BlockTable::default();
        pool.reserve(&mut table, self.positions())?;
        let (tokens, mut start, mut last) = (self.prompt.tokens(), 0, None);
        while start < tokens.len() {
            let range = self.prompt.chunk(start, 512);
            let at = self.prompt.images().iter();
            let images: Vec<ImageSpan> = at
                .filter(|first| range.contains(first))
                .map(|first| ImageSpan {
                    offset: first - range.start,
                    tokens: self.image,
                })
                .collect();
            let chunk = Chunk {
                tokens: &tokens[range.clone()],
                images: &images,
                start,
                table: &table,
                want: if range.end == tokens.len() {
                    Want::Last
                } else {
                    Want::Nothing
                },
            };
            last = self.model.forward(pool, &[chunk])?.pop();
            start = range.end;
        }
        let token = best(&last.context("an empty prompt")?)?;
        Ok((table, token))
    }

    /// The time of one step of `count` texts side by side.
    fn decode(&mut self, count: usize) -> Result<Duration> {
        ensure!(count > 0, "--batch has a 0");
        let mut pool = self.pool(count)?;
        let begun = (0..count).map(|_| self.read(&mut pool));
        let mut texts: Vec<(BlockTable, u32)> = begun.collect::<Result<_>>()?;
        let mut times = Vec::new();
        for step in 0..WARM_STEPS + self.steps {
            let begun = Instant::now();
            let start = self.prompt.tokens().len() + step;
            let chunks: Vec<Chunk> = texts
                .iter()
                .map(|(table, token)| Chunk {
                    tokens: std::slice::from_ref(token),
                    images: &[],
                    start,
                    table,
                    want: Want::Last,
                })
                .collect();
            let logits = self.model.forward(&mut pool, &chunks)?;
            let tokens = logits.iter().map(best).collect::<Result<Vec<_>>>()?;
            for (text, token) in texts.iter_mut().zip(tokens) {
                text.1 = token;
            }
            if step >= WARM_STEPS {
                times.push(begun.elapsed());
            }
        }
        Ok(median(times))
    }
}

/// The likeliest token that stands for text, of the last row.
fn best(logits: &LogitRows) -> Result<u32> {
    let row = logits.rows.last().context("no logits")?;
    // Ids beyond the small tokenizer's are numbers only; those below include the image's, which may not stand alone.
    const FIRST: usize = 1024;
    let mut found = FIRST;
    for (id, value) in row.iter().enumerate().skip(FIRST) {
        if *value > row[found] {
            found = id;
        }
    }
    Ok(u32::try_from(found)?)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn show_figures(args: &Args, figures: &Figures) -> Result<()> {
    let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64();
    if args.json {
        let decode = figures.decode.iter().map(|(count, step)| {
            json!({
                "texts": count,
                "step_seconds": step.as_secs_f64(),
                "tokens_per_second": rate(*count, *step),
            })
        });
        return Ok(show::print_json(&json!({
            "bench": "model",
            "device": figures.device,
            "dtype": args.checkpoint.dtype.to_string(),
            "load_seconds": figures.load.as_secs_f64(),
            "encode_seconds": figures.encode.as_secs_f64(),
            "prompt_tokens": figures.prompt_tokens,
            "prefill_seconds": figures.prefill.as_secs_f64(),
            "decode": decode.collect::<Vec<_>>(),
        }))?);
    }
    let row = |name: &str, value: String| format!("{name:<24}{value:>12}");
    let mut lines = vec![
        format!("{}, {}", figures.device, args.checkpoint.dtype),
        row("load", seconds(figures.load)),
        row("image encoded", seconds(figures.encode)),
        format!(
            "{}  {} tokens, {:.0} a second",
            row("prompt read", seconds(figures.prefill)),
            figures.prompt_tokens,
            rate(figures.prompt_tokens, figures.prefill)
        ),
    ];
    lines.extend(figures.decode.iter().map(|(count, step)| {
        format!(
            "{}  {:.1} tokens a second in all",
            row(&format!("step of {count}"), seconds(*step)),
            rate(*count, *step)
        )
    }));
    Ok(show::print(&lines.join("\n"))?)
}
