//! `medfleet bench report --otlp URL`: two fleets of this program, alike but that one sends the traces of every job to a
//! collector. They work in turns, a block of jobs each, so that a machine that drifts drifts for both; each round gives one
//! ratio of their throughputs, and the median of these is what tracing takes. The processor time of the fleets says it
//! once more, without what the collector and others take of a machine that they share.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use serde_json::json;

use super::super::programs::tail;
use super::super::sample::median;
use super::super::usage::Usage;
use super::{Args, LocalFleet, WARM_UP, one_job, picture, side};
use crate::client::{Client, Retry};
use crate::command::on_one_thread;
use crate::exit::{CommandResult, Exit};
use crate::fleet::settings::quoted;
use crate::show;

/// After a block: longer than spans wait to be sent, so that none are sent in the other fleet's turn.
const SENDING: Duration = Duration::from_secs(2);
/// What a fleet logs when the collector does not take its spans; nothing is measured then.
const AWAY: &str = "the trace collector is away";

/// One of the two fleets.
struct Runner {
    fleet: LocalFleet,
    /// Blocks, in the order of the rounds.
    blocks: Vec<Block>,
}

/// What one turn took.
#[derive(Debug, Clone, Copy)]
struct Block {
    jobs_per_second: f64,
    /// Of the fleet's process, for each job, with sending its spans; NATS has a process of its own.
    processor_ms: f64,
}

/// Both fleets' medians, and what the second one takes more.
#[derive(Debug, Clone, PartialEq)]
struct Figures {
    jobs_per_second: [f64; 2],
    processor_ms: [f64; 2],
    /// Of the throughput, in percent: the median of the rounds, the least and the most.
    throughput_percent: [f64; 3],
    /// Of the processor time, likewise.
    processor_percent: [f64; 3],
}

/// Runs the comparison.
pub(super) fn run(args: &Args, collector: &str) -> CommandResult {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let model = args.model.as_deref();
    let side = side(model)?;
    let count = args.jobs.checked_mul(args.rounds);
    let count = count.and_then(|count| count.checked_add(WARM_UP));
    let runs = 0..count.context("--jobs and --rounds are too large")?;
    let pictures: Vec<PathBuf> = runs
        .map(|run| picture(folder.path(), side, run))
        .collect::<Result<_>>()?;
    let mut runners = [
        Runner::start(&folder.path().join("plain"), model, None)?,
        Runner::start(&folder.path().join("traced"), model, Some(collector))?,
    ];
    let measured = on_one_thread(async {
        measure(&mut runners, &pictures, args).await?;
        Ok(Exit::Done)
    });
    let [plain, traced] = runners;
    let log = std::fs::read_to_string(&traced.fleet.log).unwrap_or_default();
    let said = tail(&traced.fleet.log);
    let blocks = [plain.stop()?, traced.stop()?];
    measured.map_err(|fault| {
        let context = format!("the fleet with traces said:\n{said}");
        fault.error.context(context)
    })?;
    if log.contains(AWAY) {
        return Err(anyhow::anyhow!("no collector takes spans at {collector}").into());
    }
    show_figures(args, &figures(&blocks[0], &blocks[1]))?;
    Ok(Exit::Done)
}

impl Runner {
    fn start(folder: &Path, model: Option<&Path>, collector: Option<&str>) -> Result<Self> {
        std::fs::create_dir(folder).context("cannot make a fleet's folder")?;
        let endpoint = collector.map(quoted).transpose()?;
        let endpoint = endpoint.map(|to| format!("process.telemetry.otlp_endpoint={to}"));
        Ok(Self {
            fleet: LocalFleet::start(folder, model, endpoint.as_slice())?,
            blocks: Vec::new(),
        })
    }

    fn stop(self) -> Result<Vec<Block>> {
        self.fleet.stop()?;
        Ok(self.blocks)
    }

    /// A turn: jobs of which each brings its own picture, and the time in which the last spans are sent.
    async fn turn(&mut self, client: &Client, jobs: &[(u32, &PathBuf)], args: &Args) -> Result<()> {
        let (begun, processor) = (Instant::now(), self.processor()?);
        work(client, jobs, args).await?;
        let whole = begun.elapsed();
        tokio::time::sleep(SENDING).await;
        let processor = self.processor()?.saturating_sub(processor);
        let count = jobs.len() as f64;
        self.blocks.push(Block {
            jobs_per_second: count / whole.as_secs_f64(),
            processor_ms: processor.as_secs_f64() * 1000.0 / count,
        });
        Ok(())
    }

    /// What the fleet's process has had of the processors so far.
    fn processor(&self) -> Result<Duration> {
        Ok(Usage::of(self.fleet.child.id())?.processor)
    }
}

async fn measure(runners: &mut [Runner; 2], pictures: &[PathBuf], args: &Args) -> Result<()> {
    let [plain, traced] = runners;
    let plain_client = Client::new(&plain.fleet.ready().await?, Retry::PATIENT)?;
    let traced_client = Client::new(&traced.fleet.ready().await?, Retry::PATIENT)?;
    let jobs: Vec<(u32, &PathBuf)> = (0..).zip(pictures).collect();
    let (warm_up, jobs) = jobs.split_at(WARM_UP as usize);
    work(&plain_client, warm_up, args).await?;
    work(&traced_client, warm_up, args).await?;
    for (round, block) in jobs.chunks(args.jobs as usize).enumerate() {
        // Who begins takes turns, too.
        if round % 2 == 0 {
            plain.turn(&plain_client, block, args).await?;
            traced.turn(&traced_client, block, args).await?;
        } else {
            traced.turn(&traced_client, block, args).await?;
            plain.turn(&plain_client, block, args).await?;
        }
    }
    Ok(())
}

/// Jobs to their ends, `--at-once` at a time.
async fn work(client: &Client, jobs: &[(u32, &PathBuf)], args: &Args) -> Result<()> {
    let mut work = futures::stream::iter(jobs)
        .map(|(run, picture)| job(client, *run, picture, args))
        .buffer_unordered(args.at_once.max(1));
    while let Some(done) = work.next().await {
        done?;
    }
    Ok(())
}

async fn job(client: &Client, run: u32, picture: &Path, args: &Args) -> Result<()> {
    let png = std::fs::read(picture).context("cannot read a picture")?;
    let draft = one_job(client, png, args, run).await?;
    if draft.output.is_none() {
        bail!("job {run} has no draft");
    }
    Ok(())
}

fn figures(plain: &[Block], traced: &[Block]) -> Figures {
    let speed = |blocks: &[Block]| median(blocks.iter().map(|block| block.jobs_per_second));
    let time = |blocks: &[Block]| median(blocks.iter().map(|block| block.processor_ms));
    let rounds = || plain.iter().zip(traced);
    let slower =
        rounds().map(|(plain, traced)| 1.0 - traced.jobs_per_second / plain.jobs_per_second);
    let busier = rounds().map(|(plain, traced)| traced.processor_ms / plain.processor_ms - 1.0);
    Figures {
        jobs_per_second: [speed(plain), speed(traced)],
        processor_ms: [time(plain), time(traced)],
        throughput_percent: spread(slower.collect()),
        processor_percent: spread(busier.collect()),
    }
}

/// The median, the least and the most of shares, in percent.
fn spread(shares: Vec<f64>) -> [f64; 3] {
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let most = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [median(shares), least, most].map(|share| share * 100.0)
}

fn show_figures(args: &Args, figures: &Figures) -> Result<()> {
    let Figures {
        jobs_per_second: [plain_rate, traced_rate],
        processor_ms: [plain_ms, traced_ms],
        throughput_percent,
        processor_percent,
    } = figures;
    if args.json {
        let named = |of: &[f64; 3]| json!({"median": of[0], "min": of[1], "max": of[2]});
        return Ok(show::print_json(&json!({
            "bench": "report traces",
            "simulated": args.simulate,
            "jobs": args.jobs,
            "rounds": args.rounds,
            "at_once": args.at_once,
            "jobs_per_second": {"without": plain_rate, "with": traced_rate},
            "processor_ms_per_job": {"without": plain_ms, "with": traced_ms},
            "throughput_lost_percent": named(throughput_percent),
            "processor_more_percent": named(processor_percent),
        }))?);
    }
    let row = |name: &str, rate: f64, ms: f64| format!("{name:<24}{rate:>11.2}{ms:>15.1} ms");
    let said = |of: &[f64; 3]| format!("{:.1} % ({:.1} to {:.1})", of[0], of[1], of[2]);
    let lines = [
        format!("{:<24}{:>11}{:>18}", "", "jobs/s", "processor/job"),
        row("without traces", *plain_rate, *plain_ms),
        row("with every trace", *traced_rate, *traced_ms),
        format!(
            "throughput lost, median of {} rounds: {}",
            args.rounds,
            said(throughput_percent)
        ),
        format!("processor time more: {}", said(processor_percent)),
    ];
    Ok(show::print(&lines.join("\n"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_the_median_of_the_rounds() {
        let block = |jobs_per_second: f64, processor_ms: f64| Block {
            jobs_per_second,
            processor_ms,
        };
        // The machine becomes half as fast in the middle: no round has both speeds in it.
        let plain = [block(8.0, 100.0), block(4.0, 200.0), block(4.0, 200.0)];
        let traced = [block(6.0, 125.0), block(3.0, 250.0), block(4.0, 200.0)];
        let figures = figures(&plain, &traced);
        assert_eq!(figures.throughput_percent, [25.0, 0.0, 25.0]);
        assert_eq!(figures.processor_percent, [25.0, 0.0, 25.0]);
        assert_eq!(figures.jobs_per_second, [4.0, 4.0]);
    }
}
