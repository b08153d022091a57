//! `medfleet bench queue`: units one after another through a nats-server of its own. Every publish and every settle is
//! confirmed only once it is on disk, as in a real fleet.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use medfleet_core::{
    Class, Cost, JobId, JobKey, PoolName, Stage, TenantId, UnixMillis, Verdict, WorkUnit,
};
use medfleet_runtime::{Clock, SystemClock};
use serde_json::json;

use super::local::LocalNats;
use super::sample::{Sample, head};
use crate::command::on_one_thread;
use crate::exit::{CommandResult, Exit};
use crate::show;

/// Units before measuring begins.
const WARM_UP: u32 = 10;
/// Time to live of the units.
const TTL_MILLIS: i64 = 3_600_000;

/// Flags of `bench queue`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Units to send, one after another
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    units: u32,
    /// Cache of fetched tools [default: ~/.cache/medfleet]
    #[arg(long, value_name = "DIR", env = "MEDFLEET_CACHE", hide = true)]
    cache: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Default)]
struct Measured {
    publish: Vec<Duration>,
    deliver: Vec<Duration>,
    settle: Vec<Duration>,
    server: String,
}

pub(crate) fn run(args: Args) -> CommandResult {
    on_one_thread(async {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let nats = LocalNats::start(folder.path(), args.cache.as_deref()).await?;
        let measured = measure(&nats, args.units).await;
        nats.stop().await?;
        show_figures(&args, measured?)?;
        Ok(Exit::Done)
    })
}

async fn measure(nats: &LocalNats, units: u32) -> Result<Measured> {
    let (queue, pool) = nats.queue().await?;
    let mut puller = queue.puller(Stage::Decode, pool.clone());
    let mut measured = Measured {
        server: queue.server_version().to_owned(),
        ..Measured::default()
    };
    for number in 0..units + WARM_UP {
        let unit = unit(number, &pool)?;
        let begun = Instant::now();
        queue
            .publish_work(&unit, &Vec::new())
            .await
            .context("cannot publish")?;
        let published = Instant::now();
        let delivery = puller.next().await.context("cannot take the unit")?;
        let delivered = Instant::now();
        delivery
            .settle(Verdict::Done)
            .await
            .context("cannot settle")?;
        if number >= WARM_UP {
            measured.publish.push(published - begun);
            measured.deliver.push(delivered - published);
            measured.settle.push(delivered.elapsed());
        }
    }
    puller.close().await.context("cannot close the puller")?;
    queue.drain().await;
    Ok(measured)
}

fn unit(number: u32, pool: &PoolName) -> Result<WorkUnit> {
    let tenant = TenantId::new("bench").context("the tenant's name")?;
    let job = JobId::from_bytes(u128::from(number).to_be_bytes());
    Ok(WorkUnit {
        key: JobKey { tenant, job },
        stage: Stage::Decode,
        pool: pool.clone(),
        class: Class::Routine,
        unit: 0,
        epoch: 0,
        expires: UnixMillis(SystemClock.now().0.saturating_add(TTL_MILLIS)),
        cost: Cost::default(),
    })
}

fn show_figures(args: &Args, measured: Measured) -> std::io::Result<()> {
    let rows = [
        ("publish", Sample::new(measured.publish)),
        ("deliver", Sample::new(measured.deliver)),
        ("settle", Sample::new(measured.settle)),
    ];
    if args.json {
        let rows: serde_json::Map<_, _> = rows
            .iter()
            .map(|(name, sample)| ((*name).to_owned(), sample.json()))
            .collect();
        return show::print_json(
            &json!({"bench": "queue", "server": measured.server, "operations": rows}),
        );
    }
    let mut lines = vec![head()];
    lines.extend(rows.iter().map(|(name, sample)| sample.row(name)));
    lines.push(format!(
        "nats-server {}, sync_interval always",
        measured.server
    ));
    show::print(&lines.join("\n"))
}
