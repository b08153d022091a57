//! `medfleet bench throughput`: jobs through a whole fleet of real processes around a model that takes no time, next to the
//! same JetStream writes without a fleet. Both are measured in turn in one run, so that a machine that drifts drifts for
//! both. Says where the processor's time goes, and how much memory each process has as jobs go by.

mod figures;
mod raw;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use futures::FutureExt;
use medfleet_queue::QueueConfig;
use medfleet_queue::server::Sync;

use super::drive::{Clients, Driven};
use super::local::LocalNats;
use super::simulated::{Shape, SimulatedFleet};
use super::usage::Usage;
use crate::exit::{CommandResult, Exit};
use crate::fleet::data::Data;
use crate::show::Progress;
use figures::{Figures, Moment, Round};
use raw::Raw;

/// A file system in memory, which Linux always has.
pub(super) const MEMORY: &str = "/dev/shm";
/// Connections over which the clients share.
const CONNECTIONS: usize = 4;
/// Jobs before measuring begins, of the fleet and raw.
const WARM_UP: u64 = 200;

/// Flags of `bench throughput`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Jobs in all
    #[arg(long, value_name = "N", default_value_t = 6_000, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Parts in which they are run, each followed by as many jobs' raw writes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Clients at a time, each with one job under way; as many writers of the raw writes
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    clients: usize,
    /// Units that each worker process works on at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    slots: u32,
    /// Streams that the job records are divided over (1 to 32), of the fleet and of the raw writes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    record_shards: u8,
    /// When nats-server syncs: as it does by itself (every 2 minutes), or before each confirmation
    #[arg(long, value_enum, default_value_t = SyncArg::Default)]
    sync: SyncArg,
    /// Where blobs are: in memory, so that the queue alone is measured, or on the disk beside the streams
    #[arg(long, value_enum, default_value_t = BlobsArg::Memory)]
    blobs: BlobsArg,
    /// Folder for the streams [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Cache of fetched tools [default: ~/.cache/medfleet]
    #[arg(long, value_name = "DIR", env = "MEDFLEET_CACHE", hide = true)]
    cache: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl Args {
    /// How to connect to a server, and what its streams are.
    fn queue_at(&self, nats: &LocalNats) -> QueueConfig {
        QueueConfig {
            record_shards: self.record_shards,
            ..nats.config()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SyncArg {
    Default,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BlobsArg {
    Memory,
    Disk,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let figures = runtime.block_on(measure(&args).boxed_local())?;
    figures.show(&args)?;
    Ok(Exit::Done)
}

async fn measure(args: &Args) -> Result<Figures> {
    let folder = temporary(args.folder.as_deref())?;
    let blobs = match args.blobs {
        BlobsArg::Memory => temporary(Some(Path::new(MEMORY)))?,
        BlobsArg::Disk => temporary(args.folder.as_deref())?,
    };
    let sync = match args.sync {
        SyncArg::Default => Sync::ServersOwn,
        SyncArg::Always => Sync::Always,
    };
    let cache = args.cache.as_deref();
    let nats = LocalNats::start_with(&folder.path().join("fleet"), cache, sync).await?;
    let raw_nats = LocalNats::start_with(&folder.path().join("raw"), cache, sync).await?;
    let data = Data::open(&folder.path().join("data"))?;
    let shape = Shape {
        preprocessors: 1,
        encoders: 1,
        decoders: 1,
        slots: args.slots,
        encode: Duration::ZERO,
        decode: Duration::ZERO,
    };
    let queue = args.queue_at(&nats);
    let fleet = SimulatedFleet::start(data, queue, blobs.path(), shape).await?;
    let both = Both {
        fleet: &fleet,
        nats: &nats,
        raw_nats: &raw_nats,
    };
    let figures = both.run(args).await;
    let figures = figures.with_context(|| format!("the fleet said:\n{}", fleet.words()));
    fleet.stop()?;
    nats.stop().await?;
    raw_nats.stop().await?;
    figures
}

/// A folder that goes when it is dropped; in the system's place for such without another.
pub(super) fn temporary(folder: Option<&Path>) -> Result<tempfile::TempDir> {
    let made = match folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    made.context("cannot make a temporary folder")
}

/// The fleet and the server of the raw writes.
struct Both<'a> {
    fleet: &'a SimulatedFleet,
    nats: &'a LocalNats,
    raw_nats: &'a LocalNats,
}

impl Both<'_> {
    async fn run(&self, args: &Args) -> Result<Figures> {
        let clients = Clients::new(&self.fleet.address()?, CONNECTIONS)?;
        let raw = Raw::connect(&args.queue_at(self.raw_nats)).await?;
        let mut next = WARM_UP.min(args.jobs);
        clients.run(0..next, args.clients).await?;
        raw.run(0..next, args.clients).await?;
        let mut figures = Figures::default();
        figures.moments.push(self.moment(0)?);
        let progress = Progress::new(Instant::now());
        let rounds = args.rounds.min(args.jobs);
        for round in 0..rounds {
            let many = args.jobs * (round + 1) / rounds - args.jobs * round / rounds;
            let numbers = next..next + many;
            next += many;
            let before = self.taken()?;
            let said = self.nats.messages().await?;
            let Driven { took, turnarounds } = clients.run(numbers.clone(), args.clients).await?;
            let between = self.taken()?;
            let saying = self.nats.messages().await?;
            let raw_took = raw.run(numbers, args.clients).await?;
            let after = self.taken()?;
            figures.turnarounds.extend(turnarounds);
            figures.rounds.push(Round {
                jobs: many,
                fleet: took,
                raw: raw_took,
                fleet_took: since(&before, &between),
                raw_writes_took: since(&between, &after),
                messages_in: saying.in_msgs - said.in_msgs,
                messages_out: saying.out_msgs - said.out_msgs,
            });
            let done = figures.rounds.iter().map(|round| round.jobs).sum();
            figures.moments.push(self.moment(done)?);
            progress.line(&format!("{done} of {} jobs", args.jobs));
        }
        raw.close().await;
        Ok(figures)
    }

    /// What each process has taken so far.
    fn taken(&self) -> Result<Vec<(String, Usage)>> {
        let mut usages = self.fleet.usages()?;
        usages.push(("nats-server".to_owned(), Usage::of(self.nats.pid()?)?));
        usages.push((
            "raw nats-server".to_owned(),
            Usage::of(self.raw_nats.pid()?)?,
        ));
        usages.push(("clients".to_owned(), Usage::of_this()?));
        Ok(usages)
    }

    fn moment(&self, jobs: u64) -> Result<Moment> {
        let resident = self.taken()?.into_iter();
        let resident = resident.map(|(name, usage)| (name, usage.resident));
        Ok(Moment {
            jobs,
            resident: resident.collect(),
        })
    }
}

/// Processor time between two moments, by process.
fn since(before: &[(String, Usage)], after: &[(String, Usage)]) -> Vec<(String, Duration)> {
    let pairs = before.iter().zip(after);
    pairs
        .map(|((name, before), (_, after))| {
            let took = after.processor.saturating_sub(before.processor);
            (name.clone(), took)
        })
        .collect()
}
