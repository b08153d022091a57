//! A fleet for fault injection: several processes of every service, each with links of its own to each nats-server. What a fault
//! has ended is started again, as an orchestrator would.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use medfleet_queue::Queue;
use medfleet_testkit::{FaultyLink, Member, NODE, NatsServer, own_address, wait_until};
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::sync::Mutex;

use crate::chaos::disk::{Disk, Kind};
use crate::chaos::load::{Clients, TENANTS};
use crate::client::{Client, PATIENCE};
use crate::config::{self, PORTS, Setting};
use crate::fleet::{API_PORT, Model, Options, Pace, Role, files_below, http_get};
use crate::process::{is_ready, log_end, program, signal, start_program};

/// The request for the state of the bucket of claims.
const CLAIMS_INFO: &str = "$JS.API.STREAM.INFO.KV_CLAIMS";
/// Longest wait for an answer of NATS: short, because many are lost, and clients call again.
const REQUEST_TIMEOUT: &str = "3s";
/// More than four times that.
const PENDING_AFTER: &str = "15s";
/// What a slow link adds in each direction.
const SLOW: Duration = Duration::from_millis(100);

/// How a herd is set up.
#[derive(Debug, Clone, Copy)]
pub struct HerdOptions {
    /// 1, or 3 as a cluster with three copies of everything.
    pub nodes: usize,
    pub instances: u16,
    pub record_shards: u8,
    /// What its files lie on.
    pub disk: Kind,
    pub pace: Pace,
    /// Silence after which a unit is delivered again.
    pub ack_wait: &'static str,
}

/// A process of a service.
pub type Id = (Role, u16);

#[derive(Debug)]
struct Process {
    child: Mutex<Option<Child>>,
    program: Mutex<PathBuf>,
    links: Vec<FaultyLink>,
}

/// A running herd. Dropping it kills every process and removes its folder.
#[derive(Debug)]
pub struct Herd {
    address: Ipv4Addr,
    processes: BTreeMap<Id, Process>,
    nodes: Vec<Mutex<NatsServer>>,
    node_urls: Vec<String>,
    record_shards: u8,
    tokens: BTreeMap<&'static str, String>,
    disk: Disk,
    folder: tempfile::TempDir,
}

impl Herd {
    /// Starts everything and waits until every process is ready.
    pub async fn start(options: HerdOptions) -> Result<Self> {
        Self::start_release(options, None).await
    }

    /// As [`Self::start`], with the programs of another release in a folder.
    pub async fn start_release(options: HerdOptions, programs: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir().context("create the herd's folder")?;
        let disk = Disk::make(folder.path().join("disk"), options.disk)?;
        let address = own_address();
        let nodes = nodes(address, options.nodes, &disk.streams()).await?;
        let tokens = config::tokens(folder.path(), TENANTS)?;
        let mut herd = Self {
            address,
            processes: BTreeMap::new(),
            node_urls: nodes.iter().map(NatsServer::url).collect(),
            nodes: nodes.into_iter().map(Mutex::new).collect(),
            record_shards: options.record_shards,
            tokens,
            disk,
            folder,
        };
        herd.probe().await?;
        for instance in 0..options.instances {
            for role in Role::ALL {
                herd.add((role, instance), &options).await?;
                herd.set_release((role, instance), programs).await?;
            }
        }
        let all: Vec<Id> = herd.ids().collect();
        try_join_all(all.into_iter().map(|id| herd.start_service(id))).await?;
        Ok(herd)
    }

    async fn add(&mut self, (role, instance): Id, options: &HerdOptions) -> Result<()> {
        let mut links = Vec::new();
        for node in &self.nodes {
            links.push(FaultyLink::to(node.lock().await.address()).await?);
        }
        let mut queue = toml::Table::from_iter([
            ("ack_wait".to_owned(), options.ack_wait.into()),
            ("request_timeout".to_owned(), REQUEST_TIMEOUT.into()),
        ]);
        if options.record_shards > 1 {
            // An earlier release does not know the key.
            let record_shards = i64::from(options.record_shards);
            queue.insert("record_shards".into(), record_shards.into());
        }
        let accept = config::accept(PENDING_AFTER);
        let fleet = Options {
            model: Model::Simulated(options.pace),
            ingest: toml::Table::from_iter([("accept".to_owned(), accept.into())]),
            queue,
            ..Options::default()
        };
        let setting = Setting {
            address: self.address,
            nats_urls: links.iter().map(FaultyLink::nats_url).collect(),
            replicas: if options.nodes == 1 { 1 } else { 3 },
            folder: self.folder.path(),
            blobs: self.disk.blobs(),
            options: &fleet,
            instance,
        };
        fs::write(
            self.file((role, instance), "toml"),
            config::of(role, &setting),
        )?;
        let process = Process {
            child: Mutex::new(None),
            program: Mutex::new(program(role, None)?),
            links,
        };
        self.processes.insert((role, instance), process);
        Ok(())
    }

    /// Where a process tells how it is.
    pub fn admin(&self, (role, instance): Id) -> SocketAddr {
        SocketAddr::from((self.address, role.admin_port() + PORTS * instance))
    }

    /// Every process.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        self.processes.keys().copied()
    }

    /// Clients of every tenant at every ingest. They connect when they are used.
    pub fn clients(&self) -> Result<Clients> {
        let ingests: Vec<Id> = self
            .ids()
            .filter(|(role, _)| *role == Role::Ingest)
            .collect();
        let mut all = Vec::new();
        for (tenant, token) in &self.tokens {
            let mut clients = Vec::new();
            for (_, instance) in &ingests {
                let port = API_PORT + PORTS * instance;
                let url = format!("http://{}:{port}", self.address);
                let channel = tonic::transport::Channel::from_shared(url)?
                    .connect_timeout(Duration::from_secs(2))
                    .connect_lazy();
                clients.push(Client::over(channel, token)?);
            }
            all.push((*tenant, clients));
        }
        Ok(Clients::new(all))
    }

    /// A connection past all links, for looking at what no client sees.
    pub async fn probe(&self) -> Result<Queue> {
        wait_until(PATIENCE, "NATS to answer", async || {
            let queue = config::queue_at(&self.node_urls, self.record_shards);
            queue.await.ok()
        })
        .await
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The links of a process to every nats-server.
    pub fn links(&self, id: Id) -> Result<&[FaultyLink]> {
        Ok(&self.process(id)?.links)
    }

    /// Lets a process be of another release, whose programs are in a folder, or of the workspace's own, from its next start on.
    pub async fn set_release(&self, id: Id, folder: Option<&Path>) -> Result<()> {
        *self.process(id)?.program.lock().await = program(id.0, folder)?;
        Ok(())
    }

    /// Starts a process and waits until it is ready; one that ends before that is started again, as it may when NATS or
    /// the disk is away.
    pub async fn start_service(&self, id: Id) -> Result<()> {
        let mut child = self.process(id)?.child.lock().await;
        ensure!(child.is_none(), "{id:?} runs already");
        let program = self.process(id)?.program.lock().await.clone();
        let ready = wait_until(PATIENCE, "a process to be ready", async || {
            let running = match &mut *child {
                Some(running) => running,
                None => child.insert(
                    start_program(&program, &self.file(id, "toml"), &self.file(id, "log")).ok()?,
                ),
            };
            if running.try_wait().ok()?.is_some() {
                *child = None;
                return None;
            }
            is_ready(self.admin(id)).await.then_some(())
        });
        ready
            .await
            .with_context(|| format!("{id:?}; {}", self.log_end(id)))
    }

    pub async fn kill9(&self, id: Id) -> Result<()> {
        let mut child = self.take(id).await?;
        child.kill().await.with_context(|| format!("kill {id:?}"))
    }

    pub async fn drain(&self, id: Id) -> Result<Option<i32>> {
        let mut child = self.take(id).await?;
        signal(child.id(), Signal::SIGTERM)?;
        let status = tokio::time::timeout(PATIENCE, child.wait()).await;
        Ok(status
            .with_context(|| format!("{id:?} does not end"))??
            .code())
    }

    /// SIGSTOP.
    pub async fn stop(&self, id: Id) -> Result<()> {
        self.signal(id, Signal::SIGSTOP).await
    }

    /// SIGCONT.
    pub async fn resume(&self, id: Id) -> Result<()> {
        self.signal(id, Signal::SIGCONT).await
    }

    pub async fn kill_node(&self, node: usize) -> Result<()> {
        self.nodes[node].lock().await.kill9().await
    }

    pub async fn restart_node(&self, node: usize) -> Result<()> {
        self.nodes[node].lock().await.restart().await
    }

    /// The nats-server of a cluster that leads the claims, once one does.
    pub async fn claims_leader(&self) -> Result<usize> {
        wait_until(PATIENCE, "the claims to have a leader", async || {
            leader_in(&self.info_of_claims().await?)
        })
        .await
    }

    /// Waits until the claims have a leader, and each server of the cluster has all that it keeps: then the next one may be
    /// restarted. Each is asked itself: to a leader a server that was just started is still what it was before, and whole once it
    /// knows what to fetch.
    pub async fn wait_claims_whole(&self) -> Result<()> {
        let mut said = None;
        let whole = wait_until(PATIENCE, "claims whole on every server", async || {
            for node in &self.nodes {
                let monitor = node.lock().await.monitor()?;
                let (status, answer) = http_get(monitor, "/healthz").await.ok()?;
                said = Some(answer);
                (status == 200).then_some(())?;
            }
            leader_in(&self.info_of_claims().await?).map(|_| ())
        })
        .await;
        whole.with_context(|| format!("a server said last: {said:?}"))
    }

    /// The state of the claims, from the first nats-server that answers.
    async fn info_of_claims(&self) -> Option<serde_json::Value> {
        for node in &self.nodes {
            if let Ok(answer) = node.lock().await.ask(CLAIMS_INFO).await {
                return serde_json::from_slice(&answer).ok();
            }
        }
        None
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub async fn pause_node(&self, node: usize, lasts: Duration) -> Result<()> {
        let pid = self.nodes[node].lock().await.pid();
        signal(pid, Signal::SIGSTOP)?;
        tokio::time::sleep(lasts).await;
        signal(pid, Signal::SIGCONT)
    }

    /// Cuts the power of everything at once, and starts everything again on what had reached the disk.
    pub async fn cut_power(&self) -> Result<()> {
        let nodes = || 0..self.nodes.len();
        let services = try_join_all(self.ids().map(|id| self.kill9(id)));
        let servers = try_join_all(nodes().map(|node| self.kill_node(node)));
        futures::try_join!(services, servers)?;
        self.disk.cut_power()?;
        try_join_all(nodes().map(|node| self.restart_node(node))).await?;
        try_join_all(self.ids().map(|id| self.start_service(id))).await?;
        Ok(())
    }

    /// Delays everything between a process and NATS.
    pub fn slow(&self, id: Id) -> Result<()> {
        self.links(id)?.iter().for_each(|link| link.delay(SLOW));
        Ok(())
    }

    /// Whether a worker has nothing in its hands.
    pub async fn is_idle(&self, id: Id) -> bool {
        let metrics = http_get(self.admin(id), "/metrics").await;
        let name = format!("medfleet_{}_slots_busy", id.0.name());
        metrics.is_ok_and(|(_, text)| {
            let mut lines = text.lines().filter(|line| line.starts_with(&name));
            lines.any(|line| line.split(' ').next_back() == Some("0"))
        })
    }

    /// Checks that every process runs, is ready, and has not panicked since it was first started.
    pub async fn check_alive(&self) -> Result<()> {
        for (id, process) in &self.processes {
            self.check_running(*id, process.child.lock().await.as_mut())?;
            let log = fs::read_to_string(self.file(*id, "log"))?;
            ensure!(
                !log.contains("panicked at"),
                "{id:?} panicked; {}",
                self.log_end(*id)
            );
            let ready = wait_until(PATIENCE, "a process to be ready", async || {
                is_ready(self.admin(*id)).await.then_some(())
            });
            ready
                .await
                .with_context(|| format!("{id:?}; {}", self.log_end(*id)))?;
        }
        Ok(())
    }

    /// The jobs of a tenant that hold references to blobs.
    pub fn referenced_jobs(&self, tenant: &str) -> Result<std::collections::BTreeSet<String>> {
        let folder = self.disk.blobs().join(tenant).join("refs");
        let files = files_below(&folder)?;
        let jobs = files.iter().filter_map(|file| file.parent()?.file_name());
        Ok(jobs.map(|job| job.to_string_lossy().into_owned()).collect())
    }

    /// Lets its folder stay, with the streams, for looking at what went wrong, and says where it is. Ends every process.
    pub fn keep(mut self) -> PathBuf {
        for node in &mut self.nodes {
            node.get_mut().keep_files();
        }
        let Self { folder, .. } = self;
        folder.keep()
    }

    fn process(&self, id: Id) -> Result<&Process> {
        self.processes
            .get(&id)
            .with_context(|| format!("no {id:?}"))
    }

    async fn take(&self, id: Id) -> Result<Child> {
        let mut slot = self.process(id)?.child.lock().await;
        self.check_running(id, slot.as_mut())?;
        slot.take().context("it runs")
    }

    fn check_running(&self, id: Id, child: Option<&mut Child>) -> Result<()> {
        let child = child.with_context(|| format!("{id:?} does not run"))?;
        let ended = child.try_wait()?;
        let log = || self.log_end(id);
        ensure!(ended.is_none(), "{id:?} died: {ended:?}; {}", log());
        Ok(())
    }

    async fn signal(&self, id: Id, what: Signal) -> Result<()> {
        let slot = self.process(id)?.child.lock().await;
        signal(slot.as_ref().and_then(Child::id), what)
    }

    fn file(&self, (role, instance): Id, ending: &str) -> PathBuf {
        let name = format!("{}-{instance}.{ending}", role.name());
        self.folder.path().join(name)
    }

    fn log_end(&self, id: Id) -> String {
        log_end(&self.file(id, "log"))
    }
}

async fn nodes(address: Ipv4Addr, count: usize, folder: &Path) -> Result<Vec<NatsServer>> {
    if count == 1 {
        return Ok(vec![NatsServer::start_in(folder).await?]);
    }
    let members = Member::all(address, u16::try_from(count)?);
    try_join_all(members.map(|member| NatsServer::start_member(folder, member))).await
}

/// The number of the nats-server that leads, by what one says of a stream.
fn leader_in(info: &serde_json::Value) -> Option<usize> {
    let leader = info["cluster"]["leader"].as_str()?;
    leader.strip_prefix(NODE)?.parse().ok()
}
