//! `medfleet bench report`: sequential jobs through a real fleet of this program, then the same image and prompt through
//! the model in this process. The difference of the medians is what the fleet adds.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use medfleet_engine::{Part as QuestionPart, Question};
use medfleet_model::{
    Config, Continue, Dtype, Frame, LoadOptions, Message, Model, Part, Parts, Request, Role,
};
use medfleet_proto::v1::{
    DecodingParameters, Input, JobState, ReportTask, Result as Draft, SubmitJobRequest, Task,
    input::Source, result::Output, task::Kind,
};
use serde_json::json;

use super::sample::{Sample, head};
use crate::client::{AddressFile, Client, Cursor, Fleet, Retry};
use crate::command::on_one_thread;
use crate::exit::{CommandResult, Exit};
use crate::fleet::child;
use crate::show;

/// How long the fleet may take to start.
const START_MAX: Duration = Duration::from_secs(120);
/// How long it may take to stop.
const STOP_MAX: Duration = Duration::from_secs(40);
/// How often we look whether it has started.
const POLL: Duration = Duration::from_millis(20);
/// Runs before measuring begins, in the fleet and in the process.
const WARM_UP: u32 = 2;

/// Flags of `bench report`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Jobs to run, one after another
    #[arg(long, value_name = "N", default_value_t = 20)]
    jobs: u32,
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

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let config = Config::read(&args.model).context("cannot read the model's configuration")?;
    let side = config
        .vision
        .as_ref()
        .context("the model takes no images")?
        .image_size;
    let frame = Frame::new(side, 1, gradient(side)).context("cannot make the image")?;
    let png = png(&frame)?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut fleet = LocalFleet::start(folder.path(), &args.model)?;
    let through = on_this_fleet(&mut fleet, &png, &args);
    let log = fleet.log.clone();
    fleet.stop()?;
    let through = through.with_context(|| format!("the fleet said:\n{}", tail(&log)))?;
    let alone = in_process(&frame, &args)?;
    show_figures(&args, &through, &alone)?;
    Ok(Exit::Done)
}

/// A fleet of this very program, in its own process; killed with us.
struct LocalFleet {
    child: Child,
    address: PathBuf,
    log: PathBuf,
}

impl LocalFleet {
    fn start(folder: &Path, model: &Path) -> Result<Self> {
        let (address, log) = (folder.join("address.json"), folder.join("fleet.log"));
        let program = std::env::current_exe().context("cannot find this program")?;
        let file = std::fs::File::create(&log).context("cannot make the fleet's log")?;
        let mut command = Command::new(program);
        command
            .arg("up")
            .arg("--data")
            .arg(folder.join("data"))
            .arg("--model")
            .arg(model);
        command
            .args(["--address", "127.0.0.1:0", "--address-file"])
            .arg(&address);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot share the log")?)
            .stderr(file);
        child::tie_to_us(&mut command);
        let child = command.spawn().context("cannot start the fleet")?;
        Ok(Self {
            child,
            address,
            log,
        })
    }

    /// Waits until it accepts jobs.
    async fn ready(&mut self) -> Result<Fleet> {
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
                return Ok(Fleet {
                    server: file.server,
                    token: token.trim().to_owned(),
                    ca: None,
                });
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the fleet was not ready after {} s", START_MAX.as_secs())
    }

    fn stop(mut self) -> Result<()> {
        child::end(&mut self.child, STOP_MAX).map(drop)
    }
}

fn on_this_fleet(fleet: &mut LocalFleet, png: &[u8], args: &Args) -> Result<ThroughFleet> {
    let mut measured = ThroughFleet::default();
    let outcome = on_one_thread(async {
        let client = Client::new(&fleet.ready().await?, Retry::PATIENT)?;
        for run in 0..args.jobs + WARM_UP {
            let begun = Instant::now();
            let draft = one_job(&client, png, args, run).await?;
            if run >= WARM_UP {
                measured.add(begun.elapsed(), &draft);
            }
        }
        Ok(Exit::Done)
    });
    outcome.map_err(|fault| fault.error)?;
    Ok(measured)
}

async fn one_job(client: &Client, png: &[u8], args: &Args, run: u32) -> Result<Draft> {
    let request = SubmitJobRequest {
        request_id: format!("bench-{run}"),
        task: Some(Task {
            kind: Some(Kind::Report(ReportTask::default())),
        }),
        inputs: vec![Input {
            source: Some(Source::Content(png.to_vec().into())),
        }],
        decoding: Some(DecodingParameters {
            max_tokens: args.max_tokens,
            ..DecodingParameters::default()
        }),
        ..SubmitJobRequest::default()
    };
    let job = client
        .submit(&request)
        .await?
        .job
        .context("the fleet's answer lacks the job")?;
    let job = client
        .watch(&job.name, Cursor::default(), &mut |_event| Ok(()))
        .await?;
    if job.state != i32::from(JobState::Completed) {
        bail!("job {run} ended {}", show::state_word(job.state));
    }
    Ok(client.draft(&job.name).await?)
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

/// The same image and the fleet's own prompt, without anything around the model.
fn in_process(frame: &Frame, args: &Args) -> Result<InProcess> {
    let options = LoadOptions {
        dtype: Dtype::F32,
        parts: Parts::All,
    };
    let model = Model::load(&args.model, options).context("cannot load the model")?;
    let messages = messages(&Question::Report {
        clinical_context: String::new(),
    });
    let tokens_max = usize::try_from(args.max_tokens).context("--max-tokens is too large")?;
    let mut measured = InProcess::default();
    for run in 0..args.jobs + WARM_UP {
        let begun = Instant::now();
        let prompt = model
            .prompt(&messages, 1)
            .context("cannot build the prompt")?;
        let images = model
            .encode(std::slice::from_ref(frame))
            .context("cannot encode the image")?;
        let encode = begun.elapsed();
        let request = Request::greedy(&model, &prompt, &images, tokens_max);
        let generation = model
            .generate(&request, &mut |_delta| Continue::Yes)
            .context("cannot generate")?;
        if run >= WARM_UP {
            measured.whole.push(begun.elapsed());
            measured.encode.push(encode);
        }
        measured.text = generation.text;
    }
    Ok(measured)
}

/// The fleet's prompt for one image, as the model's messages.
fn messages(question: &Question) -> Vec<Message> {
    let prompt = question.prompt(1);
    let mut messages = Vec::new();
    if !prompt.system.is_empty() {
        messages.push(Message {
            role: Role::System,
            parts: vec![Part::Text(prompt.system)],
        });
    }
    let parts = prompt.parts.into_iter().map(|part| match part {
        QuestionPart::Image => Part::Image,
        QuestionPart::Text(text) => Part::Text(text),
    });
    messages.push(Message {
        role: Role::User,
        parts: parts.collect(),
    });
    messages
}

fn show_figures(args: &Args, through: &ThroughFleet, alone: &InProcess) -> Result<()> {
    let (fleet, model) = (
        Sample::new(through.whole.clone()),
        Sample::new(alone.whole.clone()),
    );
    let overhead_ms = (fleet.median().as_secs_f64() - model.median().as_secs_f64()) * 1000.0;
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

/// A picture of this side, in grey levels that differ everywhere.
fn gradient(side: usize) -> Vec<u8> {
    (0..side * side)
        .map(|at| ((at % side * 255 / side) ^ (at / side * 255 / side)) as u8)
        .collect()
}

fn png(frame: &Frame) -> Result<Vec<u8>> {
    let side = u32::try_from(frame.side()).context("the model's images are too large")?;
    let picture = image::GrayImage::from_raw(side, side, frame.pixels().to_vec())
        .context("the image is not square")?;
    let mut out = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut out, image::ImageFormat::Png)
        .context("cannot encode the image")?;
    Ok(out.into_inner())
}

/// The end of a log, for an error.
fn tail(path: &Path) -> String {
    const LINES: usize = 20;
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
