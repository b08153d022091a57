//! The services as processes of their own, as a cluster runs them, beside a nats-server and blobs of a bench's own: how they
//! are configured, started, watched and ended. Their programs have to lie beside this one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use medfleet_queue::QueueConfig;
use medfleet_runtime::SystemRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use toml::{Table, Value, toml};

use super::usage::Usage;
use crate::client::Fleet;
use crate::command::up;
use crate::fleet::child::{self, free_address};
use crate::fleet::data::{Data, write_whole};
use crate::fleet::tenant::LocalToken;

/// How long a program may take until it serves.
const START_MAX: Duration = Duration::from_secs(60);
/// How long it may take to stop.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How often we look.
const POLL: Duration = Duration::from_millis(50);
/// Lines of a program's log that are shown when it fails.
const TAIL_LINES: usize = 20;
/// The one pool of a bench's fleet.
pub(super) const POOL: &str = "bench-local";

/// What all programs of a fleet share.
pub(super) struct Site {
    data: Data,
    key: PathBuf,
    token: LocalToken,
    queue: QueueConfig,
    blobs: PathBuf,
    api: SocketAddr,
}

/// A service in its own process; killed with us.
pub(super) struct Program {
    name: String,
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
}

impl Site {
    /// In a data folder, on a queue, with blobs in a folder.
    pub(super) fn new(data: Data, queue: QueueConfig, blobs: PathBuf) -> Result<Self> {
        let token = LocalToken::open(&data, &SystemRandom)?;
        let (key, _, _) = data.secret("key", up::random_key)?;
        Ok(Self {
            data,
            key,
            token,
            queue,
            blobs,
            api: free_address()?,
        })
    }

    /// Where ingest answers, and with which token.
    pub(super) fn fleet(&self) -> Result<Fleet> {
        let token = std::fs::read_to_string(&self.token.file).context("cannot read the token")?;
        Ok(Fleet::plain(format!("http://{}", self.api), token.trim()))
    }

    /// The part of ingest's configuration that every bench has.
    pub(super) fn ingest(&self) -> Result<Table> {
        let mut ingest = toml! { default_model = "bench" };
        let models = Table::from_iter([("bench".to_owned(), POOL.into())]);
        ingest.insert("models".into(), models.into());
        ingest.insert("listen".into(), self.api.to_string().into());
        ingest.insert("tokens".into(), text(&self.token.hashes)?);
        Ok(ingest)
    }

    /// Starts a service under a name of its own; `parts` are its own sections of the configuration.
    pub(super) fn start(&self, role: &str, name: &str, parts: Table) -> Result<Program> {
        let program = format!("medfleet-{role}");
        let beside = std::env::current_exe()
            .context("cannot find this program")?
            .with_file_name(&program);
        if !beside.is_file() {
            bail!(
                "{} is not there: build it with `cargo build --package {program}`",
                beside.display()
            );
        }
        let admin = free_address()?;
        let mut config = self.common(admin)?;
        config.extend(parts);
        let (path, log) = (self.file(name, "toml"), self.file(name, "log"));
        write_whole(&path, config.to_string().as_bytes())?;
        let mut command = Command::new(&beside);
        command.arg("--config").arg(path);
        child::log_to(&mut command, &log)?;
        child::tie_to_us(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", beside.display()))?;
        Ok(Program {
            name: name.to_owned(),
            child,
            admin,
            log,
        })
    }

    fn file(&self, name: &str, ending: &str) -> PathBuf {
        self.data.root().join(format!("{name}.{ending}"))
    }

    /// What every role's configuration has.
    fn common(&self, admin: SocketAddr) -> Result<Table> {
        let mut config = toml! {
            [process]
            [queue]
            [store]
            [store.backend]
            kind = "folder"
            [store.key]
        };
        let mut set = |path: [&str; 2], value: Value| {
            if let Some(Value::Table(section)) = config.get_mut(path[0]) {
                match (section.get_mut(path[1]), value) {
                    (Some(Value::Table(inner)), Value::Table(more)) => inner.extend(more),
                    (_, value) => drop(section.insert(path[1].to_owned(), value)),
                }
            }
        };
        let one = |name: &str, value: Value| Table::from_iter([(name.to_owned(), value)]).into();
        let token = self.queue.token.as_ref();
        let token = token.map_or_else(String::new, |token| token.expose().to_owned());
        set(["process", "admin_listen"], admin.to_string().into());
        set(["queue", "urls"], self.queue.urls.clone().into());
        set(["queue", "token"], token.into());
        let record_shards = i64::from(self.queue.record_shards);
        set(["queue", "record_shards"], record_shards.into());
        set(["store", "backend"], one("path", text(&self.blobs)?));
        set(["store", "key"], one("file", text(&self.key)?));
        Ok(config)
    }
}

impl Program {
    /// Waits until it serves.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !answers(self.admin).await {
            let ended = self.child.try_wait();
            if let Some(status) = ended.context("cannot look after the program")? {
                bail!(
                    "{} ended with {status}; it said:\n{}",
                    self.name,
                    self.tail()
                );
            }
            if begun.elapsed() > START_MAX {
                let seconds = START_MAX.as_secs();
                bail!(
                    "{} did not serve within {seconds} s; it said:\n{}",
                    self.name,
                    self.tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// What it has taken so far.
    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id()).with_context(|| format!("{} is gone", self.name))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The end of its log, for an error.
    pub(super) fn tail(&self) -> String {
        tail(&self.log)
    }

    /// Asks it to stop and waits until it has.
    pub(super) fn stop(mut self) -> Result<()> {
        child::end(&mut self.child, STOP_MAX).map(drop)
    }
}

/// The end of a log, for an error.
pub(super) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// A path as a setting.
fn text(path: &Path) -> Result<Value> {
    let path = path
        .to_str()
        .with_context(|| format!("{} is not Unicode", path.display()))?;
    Ok(path.into())
}

/// A section of a configuration.
pub(super) fn section(name: &str, table: Table) -> Table {
    Table::from_iter([(name.to_owned(), Value::Table(table))])
}

/// Whether `/readyz` answers 200.
async fn answers(admin: SocketAddr) -> bool {
    get(admin, "/readyz")
        .await
        .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The whole answer to an HTTP GET: status line, headers, body as it came.
pub(super) async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
