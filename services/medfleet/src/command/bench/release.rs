//! `medfleet bench release`: how long a new leader of the dispatcher takes to know what waits. Units of many tenants are put
//! into the intake of a nats-server of its own, then read into the dispatcher's index by the code that a leader runs.

use std::path::PathBuf;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{Class, Cost, JobId, JobKey, PoolName, Stage, TenantId, UnixMillis, WorkUnit};
use medfleet_runtime::config::{Sources, load};
use medfleet_runtime::{Clock, SystemClock};
use serde_json::json;

use super::local::LocalNats;
use super::programs::POOL;
use crate::command::on_one_thread;
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Publishes under way at a time.
const PUBLISHES: usize = 64;
/// Tenants that the units are of.
const TENANTS: u32 = 50;
/// Time to live of the units.
const TTL_MILLIS: i64 = 86_400_000;
/// Units taken in turn after the reading.
const TAKE: usize = 1_000;

/// Flags of `bench release`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Jobs that wait
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    jobs: u32,
    /// Cache of fetched tools [default: ~/.cache/medfleet]
    #[arg(long, value_name = "DIR", env = "MEDFLEET_CACHE", hide = true)]
    cache: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    on_one_thread(async {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let nats = LocalNats::start(folder.path(), args.cache.as_deref()).await?;
        let measured = measure(&nats, args.jobs).await;
        nats.stop().await?;
        let (read, turns) = measured?;
        let taken = taken(args.jobs);
        if args.json {
            show::print_json(&json!({
                "bench": "release",
                "jobs": args.jobs,
                "read_seconds": read,
                "turns": taken,
                "turns_seconds": turns,
            }))?;
        } else {
            show::print(&format!(
                "{} waiting jobs of {TENANTS} tenants read into the index in {read:.2} s; the first {taken} turns took {turns:.3} s",
                args.jobs
            ))?;
        }
        Ok(Exit::Done)
    })
}

/// How many turns there are: no more than units wait.
fn taken(jobs: u32) -> usize {
    TAKE.min(jobs as usize)
}

async fn measure(nats: &LocalNats, jobs: u32) -> Result<(f64, f64)> {
    let (queue, pool) = nats.queue().await?;
    let publishes = stream::iter(0..jobs).map(|number| {
        let (queue, unit) = (&queue, unit(number, &pool));
        async move {
            queue
                .publish_intake(&unit?, &Vec::new())
                .await
                .context("cannot publish")
        }
    });
    publishes
        .buffer_unordered(PUBLISHES)
        .try_for_each(async |_| Ok(()))
        .await?;
    let settings = ["tokens=none", "default_model=bench"].map(str::to_owned);
    let sources = Sources {
        overrides: settings
            .into_iter()
            .chain([format!("models.bench={POOL}")])
            .collect(),
        ..Sources::default()
    };
    let config: medfleet_ingest::Config =
        load(&sources).context("the bench's own configuration")?;
    let what = (u64::from(jobs), taken(jobs));
    let measured = medfleet_ingest::rebuild(&config, &queue, what).await;
    queue.drain().await;
    let (read, turns) = measured.context("cannot read what waits")?;
    Ok((read.as_secs_f64(), turns.as_secs_f64()))
}

/// Every tenth unit is of another class than routine, and every seventh a long series.
fn unit(number: u32, pool: &PoolName) -> Result<WorkUnit> {
    let tenant =
        TenantId::new(format!("tenant-{}", number % TENANTS)).context("a tenant's name")?;
    let job = JobId::from_bytes(u128::from(number).to_be_bytes());
    let classes = [Class::Stat, Class::Urgent, Class::Bulk];
    let class = match number % 10 {
        0 => classes[(number / 10) as usize % classes.len()],
        _ => Class::Routine,
    };
    Ok(WorkUnit {
        key: JobKey { tenant, job },
        stage: Stage::Preprocess,
        pool: pool.clone(),
        class,
        unit: 0,
        epoch: 0,
        expires: UnixMillis(SystemClock.now().0.saturating_add(TTL_MILLIS)),
        cost: Cost {
            preprocess_millis: 100,
            frames: if number.is_multiple_of(7) { 85 } else { 1 },
            encode_millis_per_frame: 200,
            decode_millis_per_frame: 50,
            decode_millis: 6_000,
        },
    })
}
