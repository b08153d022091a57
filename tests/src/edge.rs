//! A hospital's edge beside a fleet: one ingest with its own nats-server, its own store and key, a link to the hub's public API
//! that can be cut, and, where images stay, its own preprocess and encode.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use medfleet_queue::Queue;
use medfleet_testkit::{FaultyLink, NatsServer, own_address, wait_until};
use tokio::process::Child;
use tokio::sync::Mutex;
use toml::{Table, Value};

use crate::client::{Client, PATIENCE};
use crate::config;
use crate::fleet::{API_PORT, Fleet, Options, Role, TENANTS, http_get, read_below};
use crate::process::{is_ready, start_service};

/// Its own key: nothing of the hub's is known here but the tokens.
const KEY: &str = "99112233445566778899aabbccddeeff00112233445566778899aabbccddee99";

/// A running edge. Dropping it kills its processes and removes its folder.
#[derive(Debug)]
pub struct Edge {
    address: Ipv4Addr,
    nats: Mutex<NatsServer>,
    /// The same after each of its restarts.
    nats_url: String,
    process: Mutex<Option<Child>>,
    /// Its own preprocess and encode, where they were started.
    stages: Mutex<Vec<Child>>,
    link: FaultyLink,
    tokens: BTreeMap<&'static str, String>,
    folder: tempfile::TempDir,
}

impl Edge {
    /// Starts an edge of a hub and waits until it is ready; the hub need not be. `more` goes into its table `ingest.edge`.
    pub async fn start(hub: &Fleet, more: Table) -> Result<Self> {
        let folder = tempfile::tempdir().context("create the edge's folder")?;
        let address = own_address();
        let nats = NatsServer::start().await?;
        let link = FaultyLink::to(hub.api()).await?;
        let tokens = config::tokens(folder.path(), TENANTS)?;
        let edge = Self {
            address,
            process: Mutex::new(None),
            stages: Mutex::default(),
            link,
            tokens,
            folder,
            nats_url: nats.url(),
            nats: Mutex::new(nats),
        };
        edge.know(&TENANTS.map(|tenant| (tenant, hub.token(tenant))))?;
        edge.configure(more)?;
        edge.start_again().await?;
        Ok(edge)
    }

    /// Starts a preprocess and an encode at this site, of the simulated model, and waits until they are ready.
    pub async fn start_stages(&self) -> Result<()> {
        for role in [Role::Preprocess, Role::Encode] {
            let file = self.file_of(role)?;
            let path = self.folder.path().join(format!("{}.toml", role.name()));
            let log = self.folder.path().join(format!("{}.log", role.name()));
            fs::write(&path, file.to_string())?;
            let child = start_service(role, &path, &log)?;
            self.stages.lock().await.push(child);
            let ready = self.wait_ready(role).await;
            ready.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        }
        Ok(())
    }

    /// The blobs of a kind, all of a tenant's.
    pub fn blobs_of(&self, tenant: &str, kind: &str) -> Result<Vec<Vec<u8>>> {
        read_below(&self.folder.path().join("blobs").join(tenant).join(kind))
    }

    /// The configuration of a service of this site.
    fn file_of(&self, role: Role) -> Result<Table> {
        let options = Options::default();
        let setting = config::Setting {
            address: self.address,
            nats_urls: vec![self.nats_url.clone()],
            replicas: 1,
            folder: self.folder.path(),
            blobs: self.folder.path().join("blobs"),
            options: &options,
            instance: 0,
        };
        let mut file: Table = config::of(role, &setting).parse()?;
        let store = file.get_mut("store").and_then(Value::as_table_mut);
        store.context("[store]")?.insert("key".into(), KEY.into());
        Ok(file)
    }

    async fn wait_ready(&self, role: Role) -> Result<()> {
        let admin = SocketAddr::from((self.address, role.admin_port()));
        wait_until(PATIENCE, "a service of the edge to be ready", async || {
            is_ready(admin).await.then_some(())
        })
        .await
    }

    /// Sets its table `ingest.edge`, from its next start on.
    pub fn configure(&self, more: Table) -> Result<()> {
        fs::write(self.config(), self.settings(more)?).context("write the edge's configuration")
    }

    fn settings(&self, more: Table) -> Result<String> {
        let mut file = self.file_of(Role::Ingest)?;
        let link = self.link.nats_url();
        let port = link.rsplit(':').next().context("the link's port")?;
        let scheme = match more.contains_key("ca_file") {
            true => "https",
            false => "http",
        };
        let mut edge = Table::from_iter([
            (
                "hub".to_owned(),
                format!("{scheme}://127.0.0.1:{port}").into(),
            ),
            (
                "tokens_file".to_owned(),
                self.hub_tokens().display().to_string().into(),
            ),
            ("pause_least".to_owned(), "100ms".into()),
            ("pause_most".to_owned(), "1s".into()),
            ("probe_every".to_owned(), "1s".into()),
            ("answer_max".to_owned(), "5s".into()),
        ]);
        edge.extend(more);
        let ingest = file.get_mut("ingest").and_then(Value::as_table_mut);
        let ingest = ingest.context("[ingest]")?;
        ingest.insert("edge".into(), Value::Table(edge));
        let models = ingest.get_mut("models").and_then(Value::as_table_mut);
        // One that the hub does not have.
        models
            .context("[ingest.models]")?
            .insert("unknown".into(), config::POOL.into());
        Ok(file.to_string())
    }

    /// Sets the tokens by which the hub knows the tenants.
    pub fn know(&self, tokens: &[(&str, String)]) -> Result<()> {
        let table: Table = tokens
            .iter()
            .map(|(tenant, token)| ((*tenant).to_owned(), Value::from(token.as_str())))
            .collect();
        let file = Table::from_iter([("tokens".to_owned(), Value::Table(table))]);
        fs::write(self.hub_tokens(), file.to_string()).context("write the hub's tokens")
    }

    /// A connection to its queue, for what no client can see or do.
    pub async fn queue(&self) -> Result<Queue> {
        config::queue(&self.nats_url).await
    }

    /// The request id that a job of this edge has at the hub.
    pub async fn request_id_at_hub(&self, job: &str) -> Result<String> {
        let queue = self.queue().await?;
        for tenant in TENANTS {
            let key = config::job_key(tenant, job)?;
            if let Some((record, _)) = queue.record(&key).await? {
                let body = record.body.to_string();
                let meaning = body.get(32..).context("a digest")?;
                return Ok(format!("edge/{}/{}/{meaning}", key.job, record.epoch));
            }
        }
        bail!("the edge has no job {job}")
    }

    /// A client of a tenant at the edge.
    pub async fn client(&self, tenant: &str) -> Result<Client> {
        let token = self.tokens.get(tenant).context("a tenant of the edge")?;
        Client::connect(&format!("http://{}:{API_PORT}", self.address), token).await
    }

    pub const fn link(&self) -> &FaultyLink {
        &self.link
    }

    /// Kills its nats-server at once and starts it again on the same files and port.
    pub async fn restart_nats(&self) -> Result<()> {
        self.nats.lock().await.restart().await
    }

    pub async fn kill9(&self) -> Result<()> {
        let mut child = self.process.lock().await.take().context("it runs")?;
        child.kill().await.context("kill the edge")
    }

    /// Starts the edge's ingest and waits until it is ready.
    pub async fn start_again(&self) -> Result<()> {
        let child = start_service(Role::Ingest, &self.config(), &self.log_path())?;
        ensure!(
            self.process.lock().await.replace(child).is_none(),
            "it runs already"
        );
        let ready = self.wait_ready(Role::Ingest).await;
        ready.with_context(|| self.log().unwrap_or_default())
    }

    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.log_path()).context("read the edge's log")
    }

    /// The value of one of its metrics, by name and labels as it is exported.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = http_get(self.admin(), "/metrics").await?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.with_context(|| format!("no {name}"))?;
        value.trim().parse().context("a number")
    }

    /// Waits until a metric is as wanted.
    pub async fn wait_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        let waited = wait_until(PATIENCE, "a metric of the edge", async || {
            let value = self.metric(name).await.ok()?;
            wanted(value).then_some(())
        });
        waited.await.with_context(|| name.to_owned())
    }

    /// Waits until so many of its jobs wait for the hub.
    pub async fn wait_waiting(&self, jobs: u32) -> Result<()> {
        let name = "medfleet_ingest_edge_waiting_jobs";
        self.wait_metric(name, |waiting| waiting == f64::from(jobs))
            .await
    }

    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }

    fn admin(&self) -> SocketAddr {
        SocketAddr::from((self.address, Role::Ingest.admin_port()))
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("ingest.toml")
    }

    fn hub_tokens(&self) -> PathBuf {
        self.folder.path().join("hub-tokens.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("ingest.log")
    }
}
