//! `medfleet bench report`: jobs through a real fleet of this program, each followed by the same picture and prompt in this
//! process as `infer` takes them, so that a machine that drifts drifts for both. The median of the differences is what the
//! fleet adds. Each job brings another image: the fleet would find the tokens of a repeated one and skip the very work
//! that it is compared with.
//!
//! With `--otlp` it measures something else: what it costs to send every trace away (`traces`).

mod traces;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use medfleet_engine::{Images, Question};
use medfleet_model::{
    ComputeDevice, Config, Continue, LoadOptions, Message, Model, Parts, Request,
};
use medfleet_proto::v1::{Class, Result as Draft, result::Output};
use serde_json::json;

use super::job::{Asked, SHOWN};
use super::programs::tail;
use super::sample::{Sample, head, median};
use crate::client::{AddressFile, Client, Fleet, Retry};
use crate::command::{on_one_thread, picture, up};
use crate::exit::{CommandResult, Exit};
use crate::fleet::child;
use crate::fleet::settings::quoted_path;
use crate::show;

/// How long the fleet may take to start.
const START_MAX: Duration = Duration::from_secs(300);
/// How long it may take to stop.
const STOP_MAX: Duration = Duration::from_secs(40);
/// How often we look whether it has started.
const POLL: Duration = Duration::from_millis(20);
/// Runs before measuring begins, in the fleet and in the process.
const WARM_UP: u32 = 2;

/// Side of the pictures of a fleet without a model: the simulated one's.
const SIMULATED_SIDE: usize = 896;

/// Flags of `bench report`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Model folder
    #[arg(long, value_name = "DIR", required_unless_present = "simulate")]
    model: Option<PathBuf>,
    /// A second, smaller model that proposes tokens in the fleet, which then writes the same text as the model in this process
    #[arg(
        long,
        value_name = "DIR|FILE.gguf",
        requires = "model",
        conflicts_with = "otlp"
    )]
    draft: Option<PathBuf>,
    /// Jobs to run, one after another; with --otlp, of each fleet in each round
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: u32,
    /// Compare two fleets instead, of which one sends the traces of every job to this collector, such as http://127.0.0.1:4317
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// No model, so that all of the time is the fleet's own
    #[arg(long, conflicts_with = "model", requires = "otlp")]
    simulate: bool,
    /// Rounds, in each of which both fleets take their turn
    #[arg(long, value_name = "N", default_value_t = 9, requires = "otlp", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Jobs under way at a time
    #[arg(long, value_name = "N", default_value_t = 1, requires = "otlp")]
    at_once: usize,
    /// Tokens each job writes at most
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_tokens: u32,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What the fleet measured.
#[derive(Default)]
struct ThroughFleet {
    whole: Vec<Duration>,
    queued: Vec<Duration>,
    preprocess: Vec<Duration>,
    encode: Vec<Duration>,
    first_token: Vec<Duration>,
    decode: Vec<Duration>,
    text: String,
}

/// What the model alone measured.
#[derive(Default)]
struct InProcess {
    whole: Vec<Duration>,
    encode: Vec<Duration>,
    text: String,
}

pub(crate) fn run(args: Args) -> CommandResult {
    if let Some(collector) = &args.otlp {
        return traces::run(&args, collector);
    }
    let model = args.model.as_deref().context("--model is missing")?;
    let side = side(Some(model))?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let pictures = (0..args.jobs + WARM_UP).map(|run| picture(folder.path(), side, run));
    let pictures: Vec<PathBuf> = pictures.collect::<Result<_>>()?;
    let alone = Alone::load(model, &args)?;
    let settings = match &args.draft {
        Some(draft) => draft_settings(draft)?,
        None => Vec::new(),
    };
    let mut fleet = LocalFleet::start(folder.path(), Some(model), &settings)?;
    let measured = measure((&mut fleet, alone), &pictures, &args);
    let log = fleet.log.clone();
    fleet.stop()?;
    let (through, alone) = measured.with_context(|| format!("the fleet said:\n{}", tail(&log)))?;
    show_figures(&args, &through, &alone.measured)?;
    Ok(Exit::Done)
}

/// The settings by which a fleet has a second model that proposes.
fn draft_settings(draft: &Path) -> Result<Vec<String>> {
    let draft = draft
        .canonicalize()
        .with_context(|| format!("cannot open the model {}", draft.display()))?;
    Ok(vec![
        "decode.speculation.mode=auto".to_owned(),
        format!("decode.speculation.draft={}", quoted_path(&draft)?),
    ])
}

/// Side of the images that the model takes, in pixels.
fn side(model: Option<&Path>) -> Result<usize> {
    let Some(model) = model else {
        return Ok(SIMULATED_SIDE);
    };
    let config = Config::read(model).context("cannot read the model's configuration")?;
    let vision = config.vision.as_ref();
    Ok(vision.context("the model takes no images")?.image_size)
}

/// A fleet of this very program, in its own process; killed with us.
pub(super) struct LocalFleet {
    child: Child,
    address: PathBuf,
    pub(super) log: PathBuf,
}

impl LocalFleet {
    /// With a model or a simulated one, and these settings, as of `up --set`.
    pub(super) fn start(folder: &Path, model: Option<&Path>, settings: &[String]) -> Result<Self> {
        let (address, log) = (folder.join("address.json"), folder.join("fleet.log"));
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.arg("up").arg("--data").arg(folder.join("data"));
        match model {
            Some(model) => command.arg("--model").arg(model),
            None => command.arg("--simulate"),
        };
        command
            .args(["--address", "127.0.0.1:0", "--address-file"])
            .arg(&address);
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        child::log_to(&mut command, &log)?;
        child::tie_to_us(&mut command);
        let child = command.spawn().context("cannot start the fleet")?;
        Ok(Self {
            child,
            address,
            log,
        })
    }

    /// Waits until it accepts jobs.
    pub(super) async fn ready(&mut self) -> Result<Fleet> {
        let begun = Instant::now();
        while begun.elapsed() < START_MAX {
            if let Some(status) = self
                .child
                .try_wait()
                .context("cannot look after the fleet")?
            {
                bail!("the fleet ended with {status}");
            }
            if let Ok(bytes) = std::fs::read(&self.address) {
                let file: AddressFile =
                    serde_json::from_slice(&bytes).context("the address file is not JSON")?;
                let token =
                    std::fs::read_to_string(&file.token_file).context("cannot read the token")?;
                return Ok(Fleet::plain(file.server, token.trim()));
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the fleet was not ready after {} s", START_MAX.as_secs())
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn stop(mut self) -> Result<()> {
        child::end(&mut self.child, STOP_MAX).map(drop)
    }
}

fn measure(
    (fleet, mut alone): (&mut LocalFleet, Alone),
    pictures: &[PathBuf],
    args: &Args,
) -> Result<(ThroughFleet, Alone)> {
    let mut through = ThroughFleet::default();
    let outcome = on_one_thread(async {
        let client = Client::new(&fleet.ready().await?, Retry::PATIENT)?;
        for (run, picture) in (0_u32..).zip(pictures) {
            let png = std::fs::read(picture).context("cannot read a picture")?;
            let begun = Instant::now();
            let draft = one_job(&client, png, args, run).await?;
            let whole = begun.elapsed();
            let (model_whole, model_encode) = alone.answer(picture)?;
            if run >= WARM_UP {
                through.add(whole, &draft);
                alone.measured.whole.push(model_whole);
                alone.measured.encode.push(model_encode);
            }
        }
        Ok(Exit::Done)
    });
    outcome.map_err(|fault| fault.error)?;
    Ok((through, alone))
}

async fn one_job(client: &Client, png: Vec<u8>, args: &Args, run: u32) -> Result<Draft> {
    let asked = Asked {
        request_id: format!("bench-{run}"),
        picture: png,
        class: Class::Unspecified,
        tokens_max: args.max_tokens,
    };
    let name = asked.complete(client, &mut |_event| {}).await?;
    Ok(client.draft(&name).await?)
}

impl ThroughFleet {
    fn add(&mut self, whole: Duration, draft: &Draft) {
        self.whole.push(whole);
        if let Some(timings) = draft.timings {
            let stages = [
                (&mut self.queued, timings.queued),
                (&mut self.preprocess, timings.preprocess),
                (&mut self.encode, timings.encode),
                (&mut self.first_token, timings.time_to_first_token),
                (&mut self.decode, timings.decode),
            ];
            for (runs, time) in stages {
                runs.extend(time.and_then(|time| Duration::try_from(time).ok()));
            }
        }
        if let Some(Output::Report(report)) = &draft.output {
            self.text.clone_from(&report.text);
        }
    }
}

/// The model without anything around it, with the fleet's own prompt.
struct Alone {
    model: Model,
    messages: Vec<Message>,
    tokens_max: usize,
    measured: InProcess,
}

impl Alone {
    fn load(model: &Path, args: &Args) -> Result<Self> {
        Ok(Self {
            model: Model::load(model, options(model)).context("cannot load the model")?,
            messages: messages(&Question::Report {
                clinical_context: String::new(),
            })?,
            tokens_max: usize::try_from(args.max_tokens).context("--max-tokens is too large")?,
            measured: InProcess::default(),
        })
    }

    /// The time of the whole answer, with reading the picture, and of its encoding.
    fn answer(&mut self, picture: &Path) -> Result<(Duration, Duration)> {
        let begun = Instant::now();
        let frame = picture::read(picture)?;
        let read = begun.elapsed();
        let prompt = self.model.prompt(&self.messages, 1);
        let prompt = prompt.context("cannot build the prompt")?;
        let images = self.model.encode(std::slice::from_ref(&frame));
        let images = images.context("cannot encode the image")?;
        let encode = begun.elapsed() - read;
        let request = Request::greedy(&self.model, &prompt, &images, self.tokens_max);
        let generation = self
            .model
            .generate(&request, &mut |_delta| Continue::Yes)
            .context("cannot generate")?;
        self.measured.text = generation.text;
        Ok((begun.elapsed(), encode))
    }
}

/// As the fleet loads it: otherwise the two would not do the same work.
fn options(model: &Path) -> LoadOptions {
    LoadOptions {
        dtype: up::dtype_of(model),
        parts: Parts::All,
        device: ComputeDevice::Cpu,
    }
}

/// The fleet's prompt for one image, as the model's messages.
fn messages(question: &Question) -> Result<Vec<Message>> {
    let asked = question.prompt(&Images::of(SHOWN, 1));
    Ok(asked.context("no prompt")?.prompt.messages())
}

fn show_figures(args: &Args, through: &ThroughFleet, alone: &InProcess) -> Result<()> {
    let (fleet, model) = (
        Sample::new(through.whole.clone()),
        Sample::new(alone.whole.clone()),
    );
    let overhead_ms = overhead_ms(&through.whole, &alone.whole);
    let same_text = through.text.trim() == alone.text.trim();
    let stages = [
        ("  queued", &through.queued),
        ("  preprocess", &through.preprocess),
        ("  encode", &through.encode),
        ("  first token", &through.first_token),
        ("  decode", &through.decode),
    ];
    if args.json {
        let stages: serde_json::Map<_, _> = stages
            .into_iter()
            .map(|(name, runs)| {
                (
                    name.trim().replace(' ', "_"),
                    Sample::new(runs.clone()).json(),
                )
            })
            .collect();
        let figures = json!({
            "bench": "report",
            "fleet": fleet.json(),
            "fleet_stages": stages,
            "in_process": model.json(),
            "in_process_encode": Sample::new(alone.encode.clone()).json(),
            "overhead_median_ms": overhead_ms,
            "same_text": same_text,
        });
        return Ok(show::print_json(&figures)?);
    }
    let mut lines = vec![head(), fleet.row("fleet, submit to result")];
    lines.extend(
        stages
            .into_iter()
            .map(|(name, runs)| Sample::new(runs.clone()).row(name)),
    );
    lines.push(model.row("model in process"));
    lines.push(Sample::new(alone.encode.clone()).row("  encode"));
    lines.push(format!("the fleet adds {overhead_ms:.1} ms at the median"));
    if !same_text {
        lines.push("the two texts differ: the figures are not of the same work".to_owned());
    }
    Ok(show::print(&lines.join("\n"))?)
}

/// The median over the pairs of what the fleet took longer than the model, in milliseconds.
fn overhead_ms(fleet: &[Duration], model: &[Duration]) -> f64 {
    let pairs = fleet.iter().zip(model);
    median(pairs.map(|(fleet, model)| (fleet.as_secs_f64() - model.as_secs_f64()) * 1000.0))
}

/// A picture of this side, in grey levels that differ everywhere, and differ from run to run.
fn pattern(side: usize, run: u32) -> Vec<u8> {
    // There are 256 levels to begin with; after as many runs the pattern moves on by a pixel.
    let moved = run as usize / 256;
    (0..side * side)
        .map(|at| (((at + moved) % side * 255 / side) ^ (at / side * 255 / side)) as u8)
        .map(|level| level.wrapping_add(run as u8))
        .collect()
}

/// A PNG of a run's own pattern, of the size that the model takes.
pub(super) fn picture(folder: &Path, side: usize, run: u32) -> Result<PathBuf> {
    let path = folder.join(format!("{run}.png"));
    let side_pixels = u32::try_from(side).context("the model's images are too large")?;
    image::GrayImage::from_raw(side_pixels, side_pixels, pattern(side, run))
        .context("the image is not square")?
        .save(&path)
        .context("cannot write a picture")?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use medfleet_model::Dtype;

    use super::*;

    #[test]
    fn the_model_alone_is_computed_in_what_the_fleet_computes_it_in() {
        let check = |config: &str, expected: Dtype| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            std::fs::write(folder.path().join("config.json"), config).expect("a file");
            assert_eq!(options(folder.path()).dtype, expected, "{config}");
        };
        check(r#"{"dtype": "bfloat16"}"#, Dtype::Bf16);
        check(r#"{"dtype": "float32"}"#, Dtype::F32);
    }
}
