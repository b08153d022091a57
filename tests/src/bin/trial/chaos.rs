//! Long chaos, as `make chaos` runs it: many seeds in virtual time first, then seed after seed over real processes, with a
//! ledger that a stopped run continues from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use medfleet_tests::chaos::disk::{Disk, Kind};
use medfleet_tests::chaos::run::{Options, Report, run as storm};
use medfleet_tests::chaos::table::table;
use medfleet_tests::virtual_time::{self, Plant};

pub(crate) const USAGE: &str = "usage: medfleet-trial chaos --ledger FILE [--seeds N] [--jobs N] [--first-seed S] [--nodes 1|3] [--seconds N] [--power yes] [--virtual-seeds N]";

struct Arguments {
    ledger: PathBuf,
    seeds: u64,
    first: u64,
    /// Seeds in virtual time, before the others.
    virtual_seeds: u64,
    options: Options,
}

/// Runs the seeds that the ledger does not have yet.
pub(crate) fn run(options: &[String]) -> Result<()> {
    let arguments = read(options)?;
    in_virtual_time(arguments.first, arguments.virtual_seeds)?;
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    runtime.block_on(all(&arguments))
}

fn read(arguments: &[String]) -> Result<Arguments> {
    let mut read = Arguments {
        ledger: PathBuf::new(),
        seeds: 30,
        first: 1,
        virtual_seeds: 0,
        options: Options {
            jobs: 2_000,
            horizon: Duration::ZERO,
            nodes: 1,
            instances: 2,
            disk: Kind::Plain,
        },
    };
    let (mut seconds, mut power) = (None, false);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { bail!(USAGE) };
        let number = || {
            value
                .parse::<u64>()
                .with_context(|| format!("{name} {value}"))
        };
        match name.as_str() {
            "--ledger" => read.ledger = PathBuf::from(value),
            "--seeds" => read.seeds = number()?,
            "--jobs" => read.options.jobs = usize::try_from(number()?)?,
            "--first-seed" => read.first = number()?,
            "--nodes" => read.options.nodes = usize::try_from(number()?)?,
            "--virtual-seeds" => read.virtual_seeds = number()?,
            "--power" if value == "yes" => power = true,
            "--seconds" => seconds = Some(number()?),
            _ => bail!(USAGE),
        }
    }
    if read.ledger.as_os_str().is_empty() || ![1, 3].contains(&read.options.nodes) {
        bail!(USAGE);
    }
    // By default as fast as two processes of each service manage beside the faults.
    let jobs = read.options.jobs as u64;
    let disk = if power {
        Kind::Image((512 << 20) + jobs * (1 << 20))
    } else {
        Kind::Memory((256 << 20) + jobs * (1 << 20))
    };
    match Disk::can_make(disk) {
        Ok(()) => read.options.disk = disk,
        Err(error) if power => {
            let what = "this machine does not let us mount an image, whose power could be cut";
            return Err(error.context(what));
        }
        // Said before the runs.
        Err(_) => {}
    }
    read.options.horizon = Duration::from_secs(seconds.unwrap_or(jobs / 8 + 10));
    Ok(read)
}

async fn all(arguments: &Arguments) -> Result<()> {
    if arguments.options.disk == Kind::Plain {
        println!(
            "this machine does not let us mount a small tmpfs: the store is never full in these runs"
        );
    }
    for seed in arguments.first..arguments.first + arguments.seeds {
        let Options {
            jobs, nodes, disk, ..
        } = arguments.options;
        let power = matches!(disk, Kind::Image(_));
        let is_done = |report: &Report| {
            (report.seed, report.nodes, report.power) == (seed, nodes, power)
                && report.completed == jobs
        };
        if ledger(&arguments.ledger)?.iter().any(is_done) {
            println!("seed {seed}: in the ledger");
            continue;
        }
        let report = storm(seed, &arguments.options).await.with_context(|| {
            format!("replay with: cargo xtask chaos --seeds 1 --first-seed {seed} --jobs {jobs} --nodes {nodes}{}", if power { " --power yes" } else { "" })
        })?;
        println!(
            "seed {seed}: {} jobs, {} faults, {:.0} s: all right",
            report.completed,
            report.faults.values().map(|(hits, _)| hits).sum::<u64>(),
            report.seconds
        );
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&arguments.ledger)?;
        writeln!(file, "{}", serde_json::to_string(&report)?)?;
        file.sync_all()?;
    }
    println!("\n{}", table(&ledger(&arguments.ledger)?));
    Ok(())
}

/// Seeds that take no time of the machine but what their steps take; each is looked at anew in every call.
fn in_virtual_time(first: u64, seeds: u64) -> Result<()> {
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        let report = virtual_time::run(seed, Plant::Nothing).with_context(|| {
            format!(
                "replay with: cargo xtask chaos --seeds 0 --virtual-seeds 1 --first-seed {seed}"
            )
        })?;
        for (state, jobs) in report.ends {
            *ends.entry(state).or_default() += jobs;
        }
        for (fault, hits) in report.faults {
            *faults.entry(fault).or_default() += hits;
        }
    }
    if seeds > 0 {
        println!("{seeds} seeds in virtual time: all right; jobs {ends:?}, faults {faults:?}");
    }
    Ok(())
}

/// Every run that held, of this and of earlier calls.
fn ledger(path: &Path) -> Result<Vec<Report>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path)?;
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).context("a line of the ledger"))
        .collect()
}
