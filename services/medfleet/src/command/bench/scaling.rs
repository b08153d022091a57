//! `medfleet bench scaling`: how throughput grows with encoders and, apart from that, with decoders, next to what
//! `medfleet plan` predicts. Every worker is a process of its own with one slot, around a model that takes a set time.

mod figures;
mod plot;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use futures::FutureExt;
use medfleet_core::setting::DurationText;
use medfleet_plan::{Fleet, JobKind, Load, Service, batch_seconds};
use medfleet_queue::server::Sync;

use super::drive::Clients;
use super::local::LocalNats;
use super::simulated::{Shape, SimulatedFleet};
use super::throughput::{MEMORY, temporary};
use crate::exit::{CommandResult, Exit, Fault};
use crate::fleet::data::Data;
use crate::show::Progress;
use figures::{Figures, Point};

/// Connections over which the clients share.
const CONNECTIONS: usize = 4;
/// Jobs before measuring begins, so that every program has done each step once.
const WARM_UP: u64 = 4;
/// Workers of the other pool for each that is needed: it must not be the narrow place.
const SPARE: f64 = 1.5;

/// Flags of `bench scaling`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Which pool grows
    #[arg(long, value_enum, default_value_t = Pool::Decoders)]
    pool: Pool,
    /// Sizes of the pool, each larger than the one before
    #[arg(
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32,64"
    )]
    workers: Vec<u32>,
    /// Time that a frame takes to encode
    #[arg(long, value_name = "TIME", default_value = "200ms")]
    encode: DurationText,
    /// Time that a text takes to write
    #[arg(long, value_name = "TIME", default_value = "2s")]
    decode: DurationText,
    /// Jobs of a point for each worker of the pool
    #[arg(long, value_name = "N", default_value_t = 8)]
    jobs_per_worker: u32,
    /// Write a plot of it, an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Cache of fetched tools [default: ~/.cache/medfleet]
    #[arg(long, value_name = "DIR", env = "MEDFLEET_CACHE", hide = true)]
    cache: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pool {
    Encoders,
    Decoders,
}

impl Pool {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Encoders => "encoders",
            Self::Decoders => "decoders",
        }
    }
}

pub(crate) fn run(args: Args) -> CommandResult {
    if args.workers.is_empty() || !args.workers.is_sorted_by(|a, b| a < b) || args.workers[0] == 0 {
        let error =
            anyhow::anyhow!("--workers must be sizes from 1, each larger than the one before");
        return Err(Fault::usage(error));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let figures = runtime.block_on(measure(&args).boxed_local())?;
    if let Some(path) = &args.svg {
        let svg = plot::svg(&figures, &args);
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    figures.show(&args)?;
    Ok(Exit::Done)
}

async fn measure(args: &Args) -> Result<Figures> {
    let folder = temporary(None)?;
    let blobs = temporary(Some(Path::new(MEMORY)))?;
    let nats =
        LocalNats::start_with(folder.path(), args.cache.as_deref(), Sync::ServersOwn).await?;
    let data = Data::open(&folder.path().join("data"))?;
    let shape = Shape {
        preprocessors: 1,
        encoders: 1,
        decoders: 1,
        slots: 1,
        encode: args.encode.get(),
        decode: args.decode.get(),
    };
    let mut fleet = SimulatedFleet::start(data, nats.config(), blobs.path(), shape).await?;
    let figures = points(args, &mut fleet).await;
    let figures = figures.with_context(|| format!("the fleet said:\n{}", fleet.words()));
    fleet.stop()?;
    nats.stop().await?;
    figures
}

async fn points(args: &Args, fleet: &mut SimulatedFleet) -> Result<Figures> {
    let clients = Clients::new(&fleet.address()?, CONNECTIONS)?;
    clients.run(0..WARM_UP, 1).await?;
    let progress = Progress::new(Instant::now());
    let (mut next, mut figures) = (WARM_UP, Figures::default());
    for workers in &args.workers {
        let (encoders, decoders) = pools(args, *workers);
        fleet.grow(encoders, decoders).await?;
        let jobs = workers.saturating_mul(args.jobs_per_worker.max(1));
        let numbers = next..next + u64::from(jobs);
        next = numbers.end;
        // All of them are submitted at once: what the pools do at most.
        let driven = clients.run(numbers, jobs as usize).await?;
        let point = Point {
            workers: *workers,
            encoders,
            decoders,
            jobs,
            took: driven.took,
            predicted: Duration::from_secs_f64(predicted(args, (encoders, decoders), jobs)),
        };
        progress.line(&format!("{workers} {}: {} jobs", args.pool.as_str(), jobs));
        figures.points.push(point);
    }
    Ok(figures)
}

/// Encoders and decoders when the pool in question has so many workers: the other one has room to spare.
fn pools(args: &Args, workers: u32) -> (u32, u32) {
    let seconds = |time: DurationText| time.get().as_secs_f64().max(1e-3);
    let of = |own: f64, other: f64| {
        let needed = f64::from(workers) * other / own * SPARE;
        (needed.ceil() as u32).clamp(1, 128)
    };
    let (encode, decode) = (seconds(args.encode), seconds(args.decode));
    match args.pool {
        Pool::Encoders => (workers, of(encode, decode)),
        Pool::Decoders => (of(decode, encode), workers),
    }
}

/// Seconds that the planner's simulation takes for as many jobs.
fn predicted(args: &Args, (encoders, decode_slots): (u32, u32), jobs: u32) -> f64 {
    let service = |time: DurationText| Service {
        mean_seconds: time.get().as_secs_f64().max(1e-6),
        variation: 0.0,
    };
    let load = Load {
        jobs_per_second: 1.0,
        kinds: vec![JobKind {
            class: 2,
            share: 1.0,
            chunks: 1,
        }],
        encode: service(args.encode),
        decode: service(args.decode),
        other_seconds: 0.0,
    };
    let fleet = Fleet {
        encoders,
        decode_slots,
    };
    batch_seconds(&load, fleet, jobs, 1)
}
