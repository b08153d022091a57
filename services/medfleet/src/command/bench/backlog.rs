//! `medfleet bench backlog`: reports an hour. A whole fleet of this program, nats-server included, is given jobs all at once,
//! each with another image: the fleet would find the tokens of a repeated one. Before that it writes some reports one after the
//! other, which says what a single one takes while nothing else is asked for.
//!
//! It is for models with random weights as `bench model` writes them, whose texts never end by themselves: a report that is
//! shorter than the limit fails the run, because it would be less work than what it is compared with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures::future::try_join_all;
use medfleet_model::Config;
use medfleet_proto::v1::{Class, Result as Draft};
use serde_json::{Value, json};

use super::checkpoint::gguf_of;
use super::form::Form;
use super::job::Asked;
use super::programs::tail;
use super::report::{self, LocalFleet};
use super::sample::{Sample, head};
use super::side::processor;
use super::spent::spent;
use crate::client::{Client, Retry};
use crate::command::on_one_thread;
use crate::exit::{CommandResult, Exit, Fault};
use crate::fleet::settings::quoted_path;
use crate::show;

/// Reports before those that count.
const WARM_UP: u32 = 1;
/// How many different pictures there are.
const PICTURES_MAX: u32 = 256;

/// Flags of `bench backlog`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Model folder, with random weights as `bench model` writes them
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What it computes in: bf16 or f32; or the form that its language model is held in, of the folder's GGUF that
    /// `bench model` wrote: q8_0, q4_k, q6_k, q4_k_m, with the rest in bf16
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    dtype: Form,
    /// Jobs queued at once
    #[arg(long, value_name = "N", default_value_t = 32)]
    jobs: u32,
    /// Tokens of each report
    #[arg(long, value_name = "N", default_value_t = 150)]
    tokens: u32,
    /// Reports one after the other, before that
    #[arg(long, value_name = "N", default_value_t = 3)]
    alone: u32,
    /// Reports written side by side at most
    #[arg(long, value_name = "N", default_value_t = 16)]
    slots: u32,
    /// Another setting of the fleet, as of `medfleet up`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A JSON object on stdout after each part; the last one has all
    #[arg(long)]
    json: bool,
}

/// A time by the clock, and what all processes took of the processor in it.
#[derive(Clone, Copy, Debug)]
struct Time {
    clock: Duration,
    processor: Duration,
}

/// What was measured.
#[derive(Debug, Default)]
struct Figures {
    alone: Vec<Time>,
    queued: Option<Time>,
    prompt_tokens: u32,
    device: String,
    dtype: String,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let count = WARM_UP.saturating_add(args.alone).saturating_add(args.jobs);
    if count > PICTURES_MAX || args.jobs == 0 {
        return Err(Fault::usage(anyhow!(
            "--jobs and --alone take 1 to {PICTURES_MAX} together"
        )));
    }
    let config = Config::read(&args.model).context("cannot read the model's configuration")?;
    let vision = config.vision.as_ref();
    let side = vision.context("the model takes no images")?.image_size;
    let (weights, settings) = settings(&args).map_err(Fault::usage)?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let pictures = (0..count).map(|number| {
        let path = report::picture(folder.path(), side, number)?;
        std::fs::read(path).context("cannot read a picture")
    });
    let pictures: Vec<Vec<u8>> = pictures.collect::<Result<_>>()?;
    let mut fleet = LocalFleet::start(folder.path(), Some(&weights), &settings)?;
    let measured = on_one_thread(async {
        measure(&mut fleet, &pictures, &args).await?;
        Ok(Exit::Done)
    });
    let log = fleet.log.clone();
    fleet.stop()?;
    let measured = measured.map_err(|fault| fault.error);
    Ok(measured.with_context(|| format!("the fleet said:\n{}", tail(&log)))?)
}

/// The weights, and further settings of the fleet. Speculation is off: random weights write one token over and over, so that
/// every proposal would be right, which says nothing about reports.
fn settings(args: &Args) -> Result<(PathBuf, Vec<String>)> {
    let mut settings = vec![
        format!("decode.worker.slots={}", args.slots),
        "decode.speculation.mode=off".to_owned(),
    ];
    let weights = match args.dtype {
        Form::Plain(dtype) => {
            settings.push(format!("model.dtype={dtype}"));
            args.model.clone()
        }
        form @ Form::Quantised(_) => {
            let file = gguf_of(&args.model, form);
            ensure!(
                file.is_file(),
                "{} is not there: `medfleet bench model --dir {} --dtype {form}` writes it",
                file.display(),
                args.model.display()
            );
            // The vision tower and the tokenizer are the folder's.
            settings.push(format!(
                "model.vision={}",
                quoted_path(&whole(&args.model)?)?
            ));
            settings.push("model.weights=stored".to_owned());
            settings.push("model.dtype=bf16".to_owned());
            file
        }
    };
    settings.extend(args.set.iter().cloned());
    Ok((weights, settings))
}

fn whole(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}

async fn measure(fleet: &mut LocalFleet, pictures: &[Vec<u8>], args: &Args) -> Result<()> {
    let client = Client::new(&fleet.ready().await?, Retry::PATIENT)?;
    let bench = Bench {
        client,
        fleet: fleet.id(),
        args,
    };
    let mut figures = Figures::default();
    let (warm_up, rest) = pictures.split_at(WARM_UP as usize);
    let (alone, queued) = rest.split_at(args.alone as usize);
    for (number, picture) in warm_up.iter().enumerate() {
        let draft = bench.report(number, picture, Class::Stat).await?;
        figures.describe(&draft);
    }
    for (number, picture) in (warm_up.len()..).zip(alone) {
        let report = bench.report(number, picture, Class::Stat);
        let (_draft, time) = bench.timed(report).await?;
        figures.alone.push(time);
    }
    if args.json {
        show::print_json(&figures.json(args))?;
    }
    let first = warm_up.len() + alone.len();
    let reports = (first..)
        .zip(queued)
        .map(|(number, picture)| bench.report(number, picture, Class::Routine));
    let (_drafts, time) = bench.timed(try_join_all(reports)).await?;
    figures.queued = Some(time);
    if args.json {
        show::print_json(&figures.json(args))?;
    } else {
        show::print(&figures.lines(args).join("\n"))?;
    }
    Ok(())
}

/// A fleet at work.
struct Bench<'a> {
    client: Client,
    /// The process of the fleet.
    fleet: u32,
    args: &'a Args,
}

impl Bench<'_> {
    /// One report, from submit to result.
    async fn report(&self, number: usize, picture: &[u8], class: Class) -> Result<Draft> {
        let asked = Asked {
            request_id: format!("backlog-{number}"),
            picture: picture.to_vec(),
            class,
            tokens_max: self.args.tokens,
        };
        let name = asked.complete(&self.client, &mut |_event| {}).await?;
        let draft = self.client.draft(&name).await?;
        let written = draft.usage.as_ref().map_or(0, |usage| usage.output_tokens);
        ensure!(
            written == self.args.tokens,
            "report {number} ended by itself after {written} tokens: a checkpoint as `bench model` writes it never does"
        );
        Ok(draft)
    }

    /// Does this, and how long it took.
    async fn timed<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, Time)> {
        let (begun, before) = (Instant::now(), self.processor()?);
        let done = work.await?;
        let clock = begun.elapsed();
        let processor = self.processor()?.saturating_sub(before);
        Ok((done, Time { clock, processor }))
    }

    /// What the fleet, its nats-server and this process took of the processor until now.
    fn processor(&self) -> Result<Duration> {
        Ok(spent(self.fleet)? + processor()?)
    }
}

impl Figures {
    /// Notes what made a report.
    fn describe(&mut self, draft: &Draft) {
        if let Some(usage) = &draft.usage {
            self.prompt_tokens = usage.prompt_tokens;
        }
        if let Some(provenance) = &draft.provenance {
            self.device.clone_from(&provenance.device);
            self.dtype = show::numbers(provenance);
        }
    }

    fn about(&self, args: &Args) -> String {
        format!(
            "whole fleet with {} slots, prompts of {} tokens",
            args.slots, self.prompt_tokens
        )
    }

    /// In the form of the programs that it is compared with.
    fn json(&self, args: &Args) -> Value {
        let work = |name: String, jobs: Option<u32>, times: &[Time]| {
            let of = |time: fn(&Time) -> Duration| Sample::new(times.iter().map(time).collect());
            json!({
                "work": name,
                "jobs": jobs,
                "clock": of(|time| time.clock).json(),
                "processor": of(|time| time.processor).json(),
            })
        };
        let mut works = Vec::new();
        if !self.alone.is_empty() {
            let name = format!("report alone, {} tokens", args.tokens);
            works.push(work(name, None, &self.alone));
        }
        if let Some(time) = self.queued {
            let name = format!("{} reports queued, {} tokens", args.jobs, args.tokens);
            works.push(work(name, Some(args.jobs), &[time]));
        }
        json!({
            "bench": "backlog",
            "version": self.device,
            "dtype": self.dtype,
            "about": self.about(args),
            "prompt_tokens": self.prompt_tokens,
            "reports_an_hour": self.queued.map(|time| an_hour(args.jobs, time.clock)),
            "work": works,
        })
    }

    fn lines(&self, args: &Args) -> Vec<String> {
        let of = |time: fn(&Time) -> Duration| Sample::new(self.alone.iter().map(time).collect());
        let about = self.about(args);
        let mut lines = vec![format!("{}, {}, {about}", self.device, self.dtype)];
        if !self.alone.is_empty() {
            lines.push(head());
            lines.push(of(|time| time.clock).row("report alone"));
            lines.push(of(|time| time.processor).row("  processor"));
        }
        if let Some(Time { clock, processor }) = self.queued {
            lines.push(format!(
                "{} reports of {} tokens queued: {}, processor {}, {:.1} reports an hour",
                args.jobs,
                args.tokens,
                show::seconds(clock),
                show::seconds(processor),
                an_hour(args.jobs, clock)
            ));
        }
        lines
    }
}

fn an_hour(jobs: u32, clock: Duration) -> f64 {
    f64::from(jobs) * 3600.0 / clock.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::parsed;

    #[test]
    fn without_reports_alone_nothing_is_said_of_them() {
        let args: Args = parsed(&["--model", "m"]).expect("the flags exist");
        let none = Figures::default().lines(&args).join("\n");
        assert!(!none.contains("report alone"), "{none}");
    }

    #[test]
    fn reports_an_hour() {
        assert!((an_hour(4, Duration::from_secs(60)) - 240.0).abs() < 1e-9);
    }
}
