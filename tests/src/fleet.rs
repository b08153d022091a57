//! A fleet of real processes: nats-server and the four services, each with its own configuration file,
//! on a loopback address of its own, so that fleets run side by side on fixed ports.

pub mod extra;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::AtomicU16;

use anyhow::{Context, Result, anyhow, ensure};
use medfleet_core::{PoolName, Stage};
use medfleet_testkit::{NatsServer, own_address, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::client::{Client, PATIENCE};
use crate::config;
use crate::process::{is_ready, log_end, signal, start_service};

mod kept;
mod up;

pub(crate) use kept::{files_below, read_below};
pub use up::Up;

/// A service of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Takes jobs in.
    Ingest,
    /// Makes frames.
    Preprocess,
    /// Makes image tokens.
    Encode,
    /// Makes text.
    Decode,
}

impl Role {
    /// All of them, in the order of a job.
    pub const ALL: [Self; 4] = [Self::Ingest, Self::Preprocess, Self::Encode, Self::Decode];

    /// Its name, as in its binary and its configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Preprocess => "preprocess",
            Self::Encode => "encode",
            Self::Decode => "decode",
        }
    }

    /// The stage whose units it works on.
    pub(crate) const fn stage(self) -> Option<Stage> {
        match self {
            Self::Ingest => None,
            Self::Preprocess => Some(Stage::Preprocess),
            Self::Encode => Some(Stage::Encode),
            Self::Decode => Some(Stage::Decode),
        }
    }

    /// Its admin port on the fleet's address.
    pub const fn admin_port(self) -> u16 {
        match self {
            Self::Ingest => 9001,
            Self::Preprocess => 9002,
            Self::Encode => 9003,
            Self::Decode => 9004,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    pub encode_millis: u64,
    pub prefill_millis: u64,
    pub step_millis: u64,
}

impl Pace {
    /// So many milliseconds a token; all else as by default.
    pub fn writing(step_millis: u64) -> Self {
        Self {
            step_millis,
            ..Self::default()
        }
    }
}

/// What encodes and decodes.
#[derive(Debug, Clone, Copy)]
pub enum Model {
    Tiny,
    /// The simulated backend.
    Simulated(Pace),
    Embedder,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// What encodes and decodes.
    pub model: Model,
    pub nats: &'static str,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
    /// How they are sent, as `process.telemetry.otlp_protocol` has it.
    pub otlp_protocol: &'static str,
    /// Certificate and key of the public API and of the encoder, for `localhost`, PEM; plain HTTP/2 without.
    pub tls: Option<(String, String)>,
    /// The `store.backend` of every role; a folder without.
    pub store: Option<toml::Table>,
    /// More settings of ingest, by their names in its table.
    pub ingest: toml::Table,
    /// More settings of every role's queue.
    pub queue: toml::Table,
    /// Logs at debug level, and nats-server logs everything that it is sent.
    pub talkative: bool,
    /// Each service is a user of NATS that may what `deploy/nats-roles.conf` lets it.
    pub roles: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: Model::Simulated(Pace::default()),
            nats: medfleet_testkit::NATS_DEFAULT,
            otlp_endpoint: None,
            otlp_protocol: "grpc",
            tls: None,
            store: None,
            ingest: toml::Table::new(),
            queue: toml::Table::new(),
            talkative: false,
            roles: false,
        }
    }
}

/// A running fleet. Dropping it kills every process and removes its folder.
#[derive(Debug)]
pub struct Fleet {
    address: Ipv4Addr,
    nats: Mutex<NatsServer>,
    processes: Mutex<BTreeMap<Role, Child>>,
    /// Workers started beside them so far.
    extras: AtomicU16,
    tokens: BTreeMap<&'static str, String>,
    folder: tempfile::TempDir,
}

/// The tenants of every test fleet.
pub(crate) const TENANTS: [&str; 2] = ["st-mary", "st-john"];
/// The tenant of a test fleet whose token is an operator's.
pub const OPERATOR: &str = "night-shift";
pub(crate) const API_PORT: u16 = 8443;
/// The port of the encoder's token service.
pub const TOKEN_PORT: u16 = 8444;

impl Fleet {
    /// Starts everything and waits until every role is ready.
    pub async fn start(options: Options) -> Result<Self> {
        let folder = tempfile::tempdir().context("create the fleet's folder")?;
        let address = own_address();
        let users = match options.roles {
            true => {
                let shards = options.queue.get("record_shards");
                config::users(shards.and_then(toml::Value::as_integer).unwrap_or(1))
            }
            false => String::new(),
        };
        let nats = NatsServer::start_as(options.nats, options.talkative, users).await?;
        let tokens = config::tokens(folder.path(), TENANTS.into_iter().chain([OPERATOR]))?;
        if let Some((certificate, key)) = &options.tls {
            fs::write(folder.path().join("tls.crt"), certificate)?;
            fs::write(folder.path().join("tls.key"), key)?;
        }
        let setting = config::Setting {
            address,
            nats_urls: vec![nats.url()],
            replicas: 1,
            folder: folder.path(),
            blobs: folder.path().join("blobs"),
            options: &options,
            instance: 0,
        };
        for role in Role::ALL {
            fs::write(
                folder.path().join(format!("{}.toml", role.name())),
                config::of(role, &setting),
            )?;
        }
        let fleet = Self {
            address,
            nats: Mutex::new(nats),
            processes: Mutex::new(BTreeMap::new()),
            extras: AtomicU16::new(0),
            tokens,
            folder,
        };
        for role in Role::ALL {
            fleet.spawn(role).await?;
            // A worker that may not say how many shards of records there are wants ingest to have said it.
            if options.roles {
                fleet.wait_ready(role).await?;
            }
        }
        for role in Role::ALL {
            fleet.wait_ready(role).await?;
        }
        Ok(fleet)
    }

    /// Starts everything around a model.
    pub async fn with_model(model: Model) -> Result<Self> {
        Self::start(Options {
            model,
            ..Options::default()
        })
        .await
    }

    /// Starts everything around a simulated model that takes so long.
    pub async fn paced(pace: Pace) -> Result<Self> {
        Self::with_model(Model::Simulated(pace)).await
    }

    /// Starts everything with these settings of ingest beside its own.
    pub async fn with_ingest(ingest: toml::Table) -> Result<Self> {
        Self::start(Options {
            ingest,
            ..Options::default()
        })
        .await
    }

    pub async fn client(&self, tenant: &str) -> Result<Client> {
        Client::connect(&self.url(), &self.token(tenant)).await
    }

    /// Clients of two tenants: `st-mary` and `st-john`.
    pub async fn two_clients(&self) -> Result<(Client, Client)> {
        Ok((self.client("st-mary").await?, self.client("st-john").await?))
    }

    pub fn url(&self) -> String {
        format!("http://{}:{API_PORT}", self.address)
    }

    /// Host and port of the public API.
    pub fn api(&self) -> SocketAddr {
        SocketAddr::from((self.address, API_PORT))
    }

    pub fn token(&self, tenant: &str) -> String {
        self.tokens.get(tenant).cloned().unwrap_or_default()
    }

    /// Runs `medfleet` with these arguments against it, as a tenant.
    pub async fn command(&self, tenant: &str, arguments: &[&str]) -> Result<Output> {
        let output = Command::new(binary("medfleet")?)
            .args(arguments)
            .env("MEDFLEET_SERVER", self.url())
            .env("MEDFLEET_TOKEN", self.token(tenant))
            .output()
            .await?;
        Ok(output)
    }

    /// What `medfleet` prints then, a JSON object a line.
    pub async fn command_json(&self, tenant: &str, arguments: &[&str]) -> Result<Vec<Value>> {
        let output = self.command(tenant, arguments).await?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        let lines = std::str::from_utf8(&output.stdout)?.lines();
        lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    pub fn tokens_file(&self) -> PathBuf {
        self.folder.path().join("tokens.toml")
    }

    pub fn admin(&self, role: Role) -> SocketAddr {
        SocketAddr::from((self.address, role.admin_port()))
    }

    /// Starts a role that is not running and waits until it is ready.
    pub async fn start_role(&self, role: Role) -> Result<()> {
        self.spawn(role).await?;
        self.wait_ready(role).await
    }

    pub async fn kill9(&self, role: Role) -> Result<()> {
        let mut child = self.take(role).await?;
        child
            .kill()
            .await
            .with_context(|| format!("kill {}", role.name()))
    }

    /// Asks a role to stop and returns its exit code.
    pub async fn stop_role(&self, role: Role) -> Result<Option<i32>> {
        let mut child = self.take(role).await?;
        signal(child.id(), Signal::SIGTERM)?;
        let status = tokio::time::timeout(PATIENCE, child.wait())
            .await
            .with_context(|| format!("{} did not stop; {}", role.name(), self.log_end(role)))??;
        Ok(status.code())
    }

    /// Kills nats-server at once and starts it again on the same files and port.
    pub async fn restart_nats(&self) -> Result<()> {
        let mut nats = self.nats.lock().await;
        nats.kill9().await?;
        nats.restart().await
    }

    pub async fn kill_nats(&self) -> Result<()> {
        self.nats.lock().await.kill9().await
    }

    /// Waits until no stage holds or waits for any work.
    pub async fn wait_idle(&self) -> Result<()> {
        let queue = config::queue(&self.nats.lock().await.url()).await?;
        let pool = PoolName::new(config::POOL)?;
        wait_until(PATIENCE, "the queues to be empty", async || {
            for stage in Stage::ALL {
                let outstanding = queue.outstanding(*stage, &pool).await.ok()?;
                if outstanding.total() > 0 {
                    return None;
                }
            }
            Some(())
        })
        .await
    }

    /// Deletes the tokens of one image of `st-mary`, behind the fleet's back.
    pub fn remove_tokens(&self) -> Result<()> {
        fs::remove_file(self.one_blob("st-mary", "tokens")?).context("remove a blob")
    }

    /// Flips a bit in the middle of one blob of a kind of `st-mary`, behind the fleet's back.
    pub fn damage_one_blob(&self, kind: &str) -> Result<()> {
        let path = self.one_blob("st-mary", kind)?;
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("an empty blob")? ^= 1;
        fs::write(path, bytes).context("damage a blob")
    }

    /// Puts a folder in the place of one study of `st-john`, so that it cannot be read for now. Returns what undoes that.
    pub fn hide_study(&self) -> Result<impl FnOnce() -> Result<()>> {
        let path = self.one_blob("st-john", "study")?;
        let aside = self.folder.path().join("hidden");
        fs::rename(&path, &aside).context("hide a blob")?;
        fs::create_dir(&path).context("hide a blob")?;
        Ok(move || {
            fs::remove_dir(&path).context("show a blob again")?;
            fs::rename(&aside, &path).context("show a blob again")
        })
    }

    /// Everything that is stored for a tenant, as `kind/name`.
    pub fn stored(&self, tenant: &str) -> Result<BTreeSet<String>> {
        let root = self.blobs().join(tenant);
        let files = files_below(&root)?;
        let names = files.iter().map(|path| path.strip_prefix(&root));
        let names = names.map(|name| Ok(name?.to_string_lossy().into_owned()));
        names.collect()
    }

    pub fn logs(&self) -> Result<Vec<String>> {
        Role::ALL
            .iter()
            .map(|role| Ok(fs::read_to_string(self.log(*role))?))
            .collect()
    }

    fn blobs(&self) -> PathBuf {
        self.folder.path().join("blobs")
    }

    fn one_blob(&self, tenant: &str, kind: &str) -> Result<PathBuf> {
        let folder = self.blobs().join(tenant).join(kind);
        files_below(&folder)?
            .into_iter()
            .next()
            .with_context(|| format!("no blob below {}", folder.display()))
    }

    fn log(&self, role: Role) -> PathBuf {
        self.folder.path().join(format!("{}.log", role.name()))
    }

    /// The last lines of a role's log, for messages of failed tests.
    pub fn log_end(&self, role: Role) -> String {
        log_end(&self.log(role))
    }

    async fn take(&self, role: Role) -> Result<Child> {
        self.processes
            .lock()
            .await
            .remove(&role)
            .with_context(|| format!("{} is not running", role.name()))
    }

    async fn spawn(&self, role: Role) -> Result<()> {
        let config = self.folder.path().join(format!("{}.toml", role.name()));
        let child = start_service(role, &config, &self.log(role))?;
        ensure!(
            self.processes.lock().await.insert(role, child).is_none(),
            "{} runs already",
            role.name()
        );
        Ok(())
    }

    async fn wait_ready(&self, role: Role) -> Result<()> {
        let ready = wait_until(PATIENCE, "a role to be ready", async || {
            if is_ready(self.admin(role)).await {
                return Some(Ok(()));
            }
            let mut processes = self.processes.lock().await;
            let status = processes.get_mut(&role)?.try_wait().ok()??;
            Some(Err(anyhow!("it ended with {status}")))
        });
        let ready = ready.await.and_then(|ready| ready);
        ready.with_context(|| format!("{} is not ready; {}", role.name(), self.log_end(role)))
    }
}

/// A binary of this workspace, beside the test's own or in the folder above it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the test's own binary")?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("{name} is missing; run `cargo build --workspace`"))
}

/// A plain HTTP GET: status and body.
pub async fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer
        .split(' ')
        .nth(1)
        .context("an HTTP status line")?
        .parse()?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Ok((status, body))
}
