//! `medfleet bench memory`: the resident memory of `medfleet-ingest` and `medfleet-preprocess` when they serve and have
//! nothing to do. The two programs have to lie beside this one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use medfleet_queue::QueueConfig;
use serde_json::json;
use toml::toml;

use super::local::LocalNats;
use super::programs::{POOL, Program, Site, section};
use super::usage::Usage;
use crate::command::on_one_thread;
use crate::exit::{CommandResult, Exit};
use crate::fleet::data::Data;
use crate::show::{self, bytes};

/// Flags of `bench memory`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Seconds to idle before memory is read
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    idle: u64,
    /// Cache of fetched tools [default: ~/.cache/medfleet]
    #[arg(long, value_name = "DIR", env = "MEDFLEET_CACHE", hide = true)]
    cache: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let data = Data::open(&folder.path().join("data"))?;
    on_one_thread(async {
        let nats = LocalNats::start(data.root(), args.cache.as_deref()).await?;
        let measured = measure(&args, data, &nats.config()).await;
        nats.stop().await?;
        show_figures(&args, &measured?)?;
        Ok(Exit::Done)
    })
}

async fn measure(
    args: &Args,
    data: Data,
    queue: &QueueConfig,
) -> Result<Vec<(&'static str, Usage)>> {
    let blobs = data.folder("blobs")?;
    let site = Site::new(data, queue.clone(), blobs)?;
    let ingest = site.ingest()?;
    let mut preprocess = toml! { frame_side = 896 };
    preprocess.insert("pool".to_owned(), POOL.into());
    let mut measured = Vec::new();
    for (role, config) in [("ingest", ingest), ("preprocess", preprocess)] {
        let mut program = site.start(role, role, section(role, config))?;
        let usage = settle(&mut program, Duration::from_secs(args.idle)).await;
        program.stop()?;
        measured.push((role, usage?));
    }
    Ok(measured)
}

/// Waits until the program serves, lets it idle, and reads its memory.
async fn settle(program: &mut Program, idle: Duration) -> Result<Usage> {
    program.ready().await?;
    tokio::time::sleep(idle).await;
    program.usage()
}

fn show_figures(args: &Args, measured: &[(&str, Usage)]) -> std::io::Result<()> {
    if args.json {
        let roles: serde_json::Map<_, _> = measured
            .iter()
            .map(|(role, usage)| {
                let figures =
                    json!({"resident_bytes": usage.resident, "resident_bytes_peak": usage.peak});
                ((*role).to_owned(), figures)
            })
            .collect();
        return show::print_json(
            &json!({"bench": "memory", "idle_seconds": args.idle, "roles": roles}),
        );
    }
    let rows = measured.iter().map(|(role, usage)| {
        format!(
            "{role:<12}{:>12}{:>12}",
            bytes(usage.resident),
            bytes(usage.peak)
        )
    });
    let mut lines = vec![format!("{:<12}{:>12}{:>12}", "idle", "resident", "peak")];
    lines.extend(rows);
    show::print(&lines.join("\n"))
}
