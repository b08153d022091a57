//! `medfleet bench speculation`: texts about phantoms, written one token a pass and with proposals, in turns in one process
//! (A B A B). Every text is compared: one that differs fails the run. With `--draft` a second model proposes as well.
//!
//! The reports of the demo model follow templates, as a department's reports do. A text-only model (a .gguf) is given
//! earlier reports and goes on; one with random weights (`bench model` writes such a folder) shows what passes cost, not
//! what reports are like.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use medfleet_core::Digest;
use medfleet_engine::{
    DecodeEngine, DecodeLimits, DecodeLoad, DecodeRequest, Decoding, Done, Frame, Haste,
    ImageTokens, Images, LoadedModel, Part, Prompt, Question, Speculation, Verified, real::Loaded,
};
use medfleet_model::{LoadOptions, Model, Parts};
use medfleet_phantom::Phantom;
use serde_json::{Value, json};

use super::sample::median;
use crate::command::{ComputeArgs, on_one_thread};
use crate::exit::{CommandResult, Exit};
use crate::show::{self, seconds};

/// Memory for keys and values of each of the two engines.
const KV_BYTES_MAX: u64 = 256 << 20;
/// Memory for phrases, as a worker has it by default.
const PHRASES_BYTES_MAX: u64 = 16 << 20;
/// Reports in the prompt of a model that sees no pictures.
const EXAMPLES: u64 = 6;

/// Flags of `bench speculation`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Model folder, or a GGUF file with a language model alone
    #[arg(
        long,
        value_name = "DIR|FILE.gguf",
        default_value = "deploy/demo/phantom-demo"
    )]
    model: PathBuf,
    /// A second, smaller model with the same tokens that proposes as well; held and computed as the model is
    #[arg(long, value_name = "DIR|FILE.gguf")]
    draft: Option<PathBuf>,
    /// Hold the language model quantised: a folder's becomes Q8_0, a GGUF's stays as stored
    #[arg(long)]
    quantised: bool,
    /// Texts of a turn
    #[arg(long, value_name = "N", default_value_t = 24)]
    studies: usize,
    /// Texts before the first turn that counts, so that the tenant's phrases are known
    #[arg(long, value_name = "N", default_value_t = 24)]
    warm_up: usize,
    /// Pairs of turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Texts written side by side
    #[arg(long, value_name = "N", default_value_t = 1)]
    texts: usize,
    /// Tokens of each text at most
    #[arg(long, value_name = "N", default_value_t = 150)]
    max_tokens: u32,
    /// Tokens proposed for a text in one pass at most
    #[arg(long, value_name = "N", default_value_t = 15)]
    proposed_max: u32,
    /// Verify whatever is proposed, whether it pays or not
    #[arg(long)]
    always: bool,
    /// 0 is greedy, up to 2
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the phantoms and of the sampling
    #[arg(long, value_name = "S", default_value_t = 770_077)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What one turn of one engine took.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    tokens: usize,
    /// From the first request to the last token, prompts included.
    wall: Duration,
    /// First token to last, of all texts one after the other.
    decode: Duration,
    /// Tokens within that time.
    decoded: usize,
    load: DecodeLoad,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let (loaded, with_draft) = models(&args)?;
    let mut bench = Bench {
        draft_without_kernels: with_draft.draft_without_kernels().to_owned(),
        plain: start(&loaded, &args, None)?,
        proposing: start(
            &with_draft,
            &args,
            Some(Speculation {
                tokens_max: args.proposed_max,
                memory_bytes_max: PHRASES_BYTES_MAX,
                always: args.always,
            }),
        )?,
        loaded,
        args,
        next: 0,
    };
    on_one_thread(async move {
        let warm_up = bench.args.warm_up;
        bench.pair(warm_up).await?;
        let mut turns = Vec::new();
        for _ in 0..bench.args.repeat.max(1) {
            let studies = bench.args.studies.max(1);
            turns.push(bench.pair(studies).await?);
        }
        show_figures(&bench, &turns)?;
        Ok(Exit::Done)
    })
}

/// The model alone, and with the second one, if any, that proposes.
fn models(args: &Args) -> Result<(Loaded, Loaded)> {
    let name = args.model.file_stem().unwrap_or_default();
    let model = load(args, &args.model, Parts::All)?;
    let alone = Loaded::of(model, &name.to_string_lossy());
    if let Some(cause) = alone.verifies_none_because() {
        bail!("nothing is proposed: {cause}");
    }
    let with_draft = match &args.draft {
        Some(draft) => {
            let draft = load(args, draft, Parts::Text)?;
            alone.clone().with_draft(draft)?
        }
        None => alone.clone(),
    };
    Ok((alone, with_draft))
}

fn load(args: &Args, path: &Path, parts: Parts) -> Result<Model> {
    let options = LoadOptions {
        dtype: args.compute.dtype,
        parts,
        device: args.compute.device,
    };
    let model = Model::load_held(path, args.quantised, None, options);
    model.with_context(|| format!("cannot load {}", path.display()))
}

fn start(loaded: &Loaded, args: &Args, speculation: Option<Speculation>) -> Result<DecodeEngine> {
    let limits = DecodeLimits {
        sequences_max: args.texts.max(1),
        queue_max: args.texts.max(1),
        prefill_tokens_max: 512,
        prefill_measured: false,
        speculation,
    };
    let model = LoadedModel::Real(loaded.clone());
    let started = model.start_decode(KV_BYTES_MAX, limits, None)?;
    started.engine().context("the model writes no text")
}

struct Bench {
    plain: DecodeEngine,
    proposing: DecodeEngine,
    loaded: Loaded,
    draft_without_kernels: String,
    args: Args,
    /// Phantoms that were used.
    next: u64,
}

impl Bench {
    /// The same new studies with one engine, then with the other.
    async fn pair(&mut self, studies: usize) -> Result<[Turn; 2]> {
        let requests = (0..studies).map(|_| {
            let number = self.next;
            self.next += 1;
            self.request(number)
        });
        let requests: Vec<DecodeRequest> = requests.collect::<Result<_>>()?;
        let (plain, expected) = self.turn(&self.plain, &requests).await?;
        let (proposing, found) = self.turn(&self.proposing, &requests).await?;
        let same = |((text, done), (expected, plain)): (&Text, &Text)| {
            text == expected && done.tokens == plain.tokens && done.finish == plain.finish
        };
        let differ = found
            .iter()
            .zip(&expected)
            .filter(|pair| !same(*pair))
            .count();
        ensure!(
            differ == 0,
            "{differ} of {studies} texts differ with proposals, which must never be"
        );
        Ok([plain, proposing])
    }

    /// What to write about a phantom.
    fn request(&self, number: u64) -> Result<DecodeRequest> {
        let (seed, side) = (self.args.seed, self.loaded.description().frame_side);
        let (prompt, images) = if side == 0 {
            let first = number * EXAMPLES;
            let earlier = (first..first + EXAMPLES).map(|index| Phantom::draw(seed, index, false));
            let earlier = earlier.map(|phantom| format!("Report: {}", phantom.record().report));
            let text = earlier.collect::<Vec<_>>().join("\n");
            let ask = "Write reports of the same kind about other patients.";
            let prompt = Prompt {
                system: String::new(),
                parts: vec![Part::Text(format!("{text}\n{ask}"))],
            };
            (prompt, Vec::new())
        } else {
            let question = Question::Report {
                clinical_context: String::new(),
            };
            let prompt = question.prompt(&Images::of("DX", 1))?.prompt;
            (prompt, vec![self.image(number)?])
        };
        Ok(DecodeRequest {
            prompt,
            images,
            decoding: Decoding {
                temperature: self.args.temperature,
                seed: seed.wrapping_add(number),
                ..Decoding::greedy(self.args.max_tokens)
            },
            scope: Digest::new([0; 32]),
            haste: Haste::STAT,
        })
    }

    fn image(&self, number: u64) -> Result<ImageTokens> {
        let side = self.loaded.description().frame_side;
        let phantom = Phantom::draw(self.args.seed, number, false);
        let frame = Frame {
            side,
            channels: 1,
            pixels: phantom.render_square(side).grey().into(),
        };
        let tokens = self.loaded.encoder().encode(&[frame])?;
        tokens.into_iter().next().context("no tokens of an image")
    }

    /// All texts, as many side by side as asked for.
    async fn turn(
        &self,
        engine: &DecodeEngine,
        requests: &[DecodeRequest],
    ) -> Result<(Turn, Vec<Text>)> {
        let before = engine.load()();
        let begun = Instant::now();
        let mut texts = Vec::with_capacity(requests.len());
        for requests in requests.chunks(self.args.texts.max(1)) {
            let written = requests
                .iter()
                .map(|request| write(engine, request.clone()));
            texts.extend(try_join_all(written).await?);
        }
        let wall = begun.elapsed();
        let mut turn = Turn {
            wall,
            load: since(before, engine.load()()),
            ..Turn::default()
        };
        for (_, done) in &texts {
            turn.tokens += done.tokens.len();
            turn.decoded += done.steps.saturating_sub(1) as usize;
            turn.decode += done.decode;
        }
        Ok((turn, texts))
    }
}

/// A text and how it ended.
type Text = (String, Done);

async fn write(engine: &DecodeEngine, request: DecodeRequest) -> Result<Text> {
    Ok(engine.decode(request).await?.collect().await?)
}

/// What was counted between two looks.
const fn since(before: DecodeLoad, after: DecodeLoad) -> DecodeLoad {
    DecodeLoad {
        passes: after.passes - before.passes,
        pass_sequences: after.pass_sequences - before.pass_sequences,
        pass_rows: after.pass_rows - before.pass_rows,
        pass_time: after.pass_time.saturating_sub(before.pass_time),
        looked_up: more(before.looked_up, after.looked_up),
        drafted: more(before.drafted, after.drafted),
        ..after
    }
}

const fn more(before: Verified, after: Verified) -> Verified {
    Verified {
        proposed: after.proposed - before.proposed,
        accepted: after.accepted - before.accepted,
    }
}

fn verified_json(verified: Verified) -> Value {
    json!({"proposed": verified.proposed, "accepted": verified.accepted})
}

impl Turn {
    /// Tokens a second while texts are written, of one text.
    fn rate(&self) -> f64 {
        self.decoded as f64 / self.decode.as_secs_f64()
    }

    /// Tokens a second of all texts, prompts included.
    fn rate_with_prompts(&self) -> f64 {
        self.tokens as f64 / self.wall.as_secs_f64()
    }

    fn tokens_of_pass(&self) -> f64 {
        let steps = self.load.pass_sequences.max(1);
        self.tokens as f64 / steps as f64
    }

    fn json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "wall_seconds": self.wall.as_secs_f64(),
            "tokens_per_second": self.rate(),
            "tokens_per_second_with_prompts": self.rate_with_prompts(),
            "passes": self.load.passes,
            "proposed": self.load.verified().proposed,
            "accepted": self.load.verified().accepted,
            "looked_up": verified_json(self.load.looked_up),
            "drafted": verified_json(self.load.drafted),
        })
    }
}

fn show_figures(bench: &Bench, turns: &[[Turn; 2]]) -> Result<()> {
    let ratio = |of: fn(&Turn) -> f64| {
        let each = turns
            .iter()
            .map(|[plain, proposing]| of(proposing) / of(plain));
        median(each)
    };
    let (ratio, with_prompts) = (ratio(Turn::rate), ratio(Turn::rate_with_prompts));
    let sum =
        |of: fn(&DecodeLoad) -> u64| turns.iter().map(|[_, turn]| of(&turn.load)).sum::<u64>();
    let proposed = sum(|load| load.verified().proposed);
    let accepted = sum(|load| load.verified().accepted);
    let acceptance = accepted as f64 / proposed.max(1) as f64;
    let (args, description) = (&bench.args, bench.loaded.description());
    if args.json {
        let turns = turns.iter().map(
            |[plain, proposing]| json!({"plain": plain.json(), "proposing": proposing.json()}),
        );
        return Ok(show::print_json(&json!({
            "bench": "speculation",
            "model": description.model,
            "device": description.device,
            "dtype": args.compute.dtype.to_string(),
            "texts": args.texts,
            "turns": turns.collect::<Vec<_>>(),
            "draft_without_kernels": bench.draft_without_kernels,
            "ratio": ratio,
            "ratio_with_prompts": with_prompts,
            "acceptance": acceptance,
            "same_texts": true,
        }))?);
    }
    let mut lines = vec![
        format!(
            "{}, {}, {}",
            description.model, description.device, args.compute.dtype
        ),
        format!(
            "{:<12}{:>10}{:>12}{:>14}{:>16}",
            "", "tokens", "wall", "tokens a s", "tokens a pass"
        ),
    ];
    for (name, turn) in turns
        .iter()
        .flat_map(|[plain, proposing]| [("plain", plain), ("proposing", proposing)])
    {
        lines.push(format!(
            "{name:<12}{:>10}{:>12}{:>14.1}{:>16.2}",
            turn.tokens,
            seconds(turn.wall),
            turn.rate(),
            turn.tokens_of_pass(),
        ));
    }
    lines.push(format!(
        "{accepted} of {proposed} proposed tokens were right ({:.0} %); the texts are the same",
        acceptance * 100.0
    ));
    let drafted = Verified {
        proposed: sum(|load| load.drafted.proposed),
        accepted: sum(|load| load.drafted.accepted),
    };
    lines.extend(of_draft(bench, drafted));
    lines.push(format!(
        "texts are written {ratio:.2} times as fast, {with_prompts:.2} with their prompts"
    ));
    Ok(show::print(&lines.join("\n"))?)
}

/// What is to be said of a draft model, where there is one.
fn of_draft(bench: &Bench, drafted: Verified) -> Vec<String> {
    if bench.args.draft.is_none() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "of these the draft model proposed {}, and {} were right",
        drafted.proposed, drafted.accepted
    )];
    let forms = &bench.draft_without_kernels;
    if !forms.is_empty() {
        lines.push(format!(
            "it holds matrices in {forms}, for which there are no kernels: it is slow, and without --always it proposes only where that pays all the same"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_leave_out_each_texts_first_token() {
        let turn = Turn {
            tokens: 22,
            wall: Duration::from_secs(4),
            decode: Duration::from_secs(2),
            decoded: 20,
            load: DecodeLoad {
                pass_sequences: 11,
                ..DecodeLoad::default()
            },
        };
        assert!((turn.rate() - 10.0).abs() < 1e-9);
        assert!((turn.rate_with_prompts() - 5.5).abs() < 1e-9);
        assert!((turn.tokens_of_pass() - 2.0).abs() < 1e-9);
    }
}
