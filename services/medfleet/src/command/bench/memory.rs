//! `medfleet bench memory`: the resident memory of `medfleet-ingest` and `medfleet-preprocess` when they serve and have
//! nothing to do. The two programs have to lie beside this one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use medfleet_queue::QueueConfig;
use medfleet_runtime::SystemRandom;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::local::LocalNats;
use crate::command::{on_one_thread, up};
use crate::exit::{CommandResult, Exit};
use crate::fleet::child;
use crate::fleet::data::{Data, write_whole};
use crate::fleet::tenant::LocalToken;
use crate::show::{self, bytes};

/// How long a program may take until it serves.
const START_MAX: Duration = Duration::from_secs(60);
/// How long it may take to stop.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How often we look.
const POLL: Duration = Duration::from_millis(50);
/// The pool of the idle fleet.
const POOL: &str = "bench-local";

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

/// Resident memory, now and at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resident {
    now: u64,
    pub(super) peak: u64,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> CommandResult {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let data = Data::open(&folder.path().join("data"))?;
    on_one_thread(async {
        let nats = LocalNats::start(data.root(), args.cache.as_deref()).await?;
        let measured = measure(&args, &data, &nats.config()).await;
        nats.stop().await?;
        show_figures(&args, &measured?)?;
        Ok(Exit::Done)
    })
}

async fn measure(
    args: &Args,
    data: &Data,
    queue: &QueueConfig,
) -> Result<BTreeMap<&'static str, Resident>> {
    let token = LocalToken::open(data, &SystemRandom)?;
    let (key, _, _) = data.secret("key", up::random_key)?;
    let mut ingest = toml::Table::new();
    ingest.insert("listen".to_owned(), "127.0.0.1:0".into());
    ingest.insert("tokens".to_owned(), text(&token.hashes)?);
    ingest.insert("default_model".to_owned(), "bench".into());
    ingest.insert(
        "models".to_owned(),
        toml::Table::from_iter([("bench".to_owned(), POOL.into())]).into(),
    );
    let mut preprocess = toml::Table::new();
    preprocess.insert("pool".to_owned(), POOL.into());
    preprocess.insert("frame_side".to_owned(), 896.into());
    let mut measured = BTreeMap::new();
    for (role, part) in [("ingest", ingest), ("preprocess", preprocess)] {
        let admin = free_address()?;
        let mut config = common(data, &key, queue, admin)?;
        config.insert(role.to_owned(), part.into());
        let path = data.root().join(format!("{role}.toml"));
        write_whole(&path, config.to_string().as_bytes())?;
        let mut program = start(role, &path, data.root())?;
        let resident = settle(&mut program, admin, Duration::from_secs(args.idle)).await;
        child::end(&mut program, STOP_MAX)?;
        let log = data.root().join(format!("{role}.log"));
        let resident = resident.with_context(|| {
            format!(
                "medfleet-{role} said:\n{}",
                std::fs::read_to_string(&log).unwrap_or_default()
            )
        })?;
        measured.insert(role, resident);
    }
    Ok(measured)
}

/// What every role's configuration has.
fn common(data: &Data, key: &Path, queue: &QueueConfig, admin: SocketAddr) -> Result<toml::Table> {
    let table = |pairs: Vec<(&str, toml::Value)>| -> toml::Value {
        toml::Table::from_iter(
            pairs
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value)),
        )
        .into()
    };
    let token = queue
        .token
        .as_ref()
        .map(|token| token.expose().to_owned())
        .unwrap_or_default();
    let backend = table(vec![
        ("kind", "folder".into()),
        ("path", text(&data.folder("blobs")?)?),
    ]);
    let key = table(vec![("file", text(key)?)]);
    Ok(toml::Table::from_iter([
        (
            "process".to_owned(),
            table(vec![("admin_listen", admin.to_string().into())]),
        ),
        (
            "queue".to_owned(),
            table(vec![
                ("urls", queue.urls.clone().into()),
                ("token", token.into()),
            ]),
        ),
        (
            "store".to_owned(),
            table(vec![("backend", backend), ("key", key)]),
        ),
    ]))
}

fn text(path: &Path) -> Result<toml::Value> {
    Ok(path
        .to_str()
        .with_context(|| format!("{} is not Unicode", path.display()))?
        .into())
}

fn start(role: &str, config: &Path, folder: &Path) -> Result<Child> {
    let name = format!("medfleet-{role}");
    let beside = std::env::current_exe()
        .context("cannot find this program")?
        .with_file_name(&name);
    if !beside.is_file() {
        bail!(
            "{} is not there: build it with `cargo build --package {name}`",
            beside.display()
        );
    }
    let log =
        std::fs::File::create(folder.join(format!("{role}.log"))).context("cannot make the log")?;
    let mut command = Command::new(&beside);
    command.arg("--config").arg(config);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log);
    child::tie_to_us(&mut command);
    command
        .spawn()
        .with_context(|| format!("cannot start {}", beside.display()))
}

/// Waits until the program serves, lets it idle, and reads its memory.
async fn settle(program: &mut Child, admin: SocketAddr, idle: Duration) -> Result<Resident> {
    let begun = Instant::now();
    while !is_ready(admin).await {
        if let Some(status) = program
            .try_wait()
            .context("cannot look after the program")?
        {
            bail!("it ended with {status}");
        }
        if begun.elapsed() > START_MAX {
            bail!("it did not serve within {} s", START_MAX.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    tokio::time::sleep(idle).await;
    let path = format!("/proc/{}/status", program.id());
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    resident(&status).ok_or_else(|| anyhow!("{path} does not say how much memory is resident"))
}

/// Whether `/readyz` answers 200.
async fn is_ready(admin: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    ask.await
        .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// What `/proc/ID/status` says of it.
pub(super) fn resident(status: &str) -> Option<Resident> {
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Resident {
        now: kibibytes("VmRSS:")? * 1024,
        peak: kibibytes("VmHWM:")? * 1024,
    })
}

fn free_address() -> Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    listener.local_addr().context("no free port on 127.0.0.1")
}

fn show_figures(args: &Args, measured: &BTreeMap<&str, Resident>) -> std::io::Result<()> {
    if args.json {
        let roles: serde_json::Map<_, _> = measured
            .iter()
            .map(|(role, resident)| {
                let figures =
                    json!({"resident_bytes": resident.now, "resident_bytes_peak": resident.peak});
                ((*role).to_owned(), figures)
            })
            .collect();
        return show::print_json(
            &json!({"bench": "memory", "idle_seconds": args.idle, "roles": roles}),
        );
    }
    let rows = measured.iter().map(|(role, resident)| {
        format!(
            "{role:<12}{:>12}{:>12}",
            bytes(resident.now),
            bytes(resident.peak)
        )
    });
    let mut lines = vec![format!("{:<12}{:>12}{:>12}", "idle", "resident", "peak")];
    lines.extend(rows);
    show::print(&lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_status() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(
            resident(status),
            Some(Resident {
                now: 1 << 20,
                peak: 2 << 20
            })
        );
        assert_eq!(resident("Name:\tx\n"), None);
    }
}
