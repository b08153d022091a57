//! A real nats-server for one test, with its own folder and port and the durability of the shipped configuration. Dropping the
//! value ends it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use medfleet_queue::server::{ServerSettings, server_config};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::address::own_address;
use crate::cache::nats_server;
use crate::wait::wait_until;

/// The version that `medfleet up` uses.
pub const NATS_DEFAULT: &str = "2.14.0";
/// The oldest version that is tested.
pub const NATS_OLDEST: &str = "2.12.8";
/// The newest version that is tested.
pub const NATS_NEWEST: &str = "2.15.1";

/// What the name of a member of a cluster begins with; then comes its number.
pub const NODE: &str = "node-";
const CLIENT_PORT: u16 = 4222;
const ROUTE_PORT: u16 = 6222;
const MONITOR_PORT: u16 = 7222;

/// Longest time for a server to start, on a loaded machine.
const START: Duration = Duration::from_secs(60);
/// Longest time for an answer of JetStream's; without a leader there is none.
const ANSWER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct NatsServer {
    binary: PathBuf,
    folder: TempDir,
    /// Where clients connect; the port is 0 until the server has taken one.
    address: SocketAddr,
    /// Its place in a cluster.
    member: Option<Member>,
    /// Whether it logs everything it is sent.
    traced: bool,
    /// What its configuration has besides that of every server.
    more: String,
    child: Option<Child>,
}

/// A server's place in a cluster, each on an address of its own.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where clients connect.
    pub clients: SocketAddr,
    /// Where the other servers connect.
    pub route: SocketAddr,
    /// The routes of all members.
    pub routes: Vec<SocketAddr>,
    /// Where it says how it is.
    pub monitor: SocketAddr,
}

impl Member {
    /// The members of a cluster of so many servers on an address of its own; the name of each ends with its number.
    pub fn all(address: Ipv4Addr, count: u16) -> impl Iterator<Item = Self> {
        let place = move |port: u16, node: u16| SocketAddr::from((address, port + node));
        let routes: Vec<SocketAddr> = (0..count).map(|node| place(ROUTE_PORT, node)).collect();
        (0..count).map(move |node| Self {
            name: format!("{NODE}{node}"),
            clients: place(CLIENT_PORT, node),
            route: place(ROUTE_PORT, node),
            routes: routes.clone(),
            monitor: place(MONITOR_PORT, node),
        })
    }

    /// What the configuration of a member has besides that of a single server. Members do not tell clients of each other,
    /// so that clients stay on the links that a test gave them.
    fn config(&self) -> String {
        let routes = self.routes.iter().map(|route| format!("nats://{route}"));
        let routes = routes.collect::<Vec<_>>().join(", ");
        let Self {
            name,
            route,
            monitor,
            ..
        } = self;
        format!(
            "server_name: {name}\nhttp: \"{monitor}\"\ncluster {{\n  name: test\n  listen: \"{route}\"\n  no_advertise: true\n  routes: [{routes}]\n}}\n"
        )
    }
}

impl NatsServer {
    pub async fn start() -> Result<Self> {
        Self::start_in(&std::env::temp_dir()).await
    }

    /// Starts a version that, if `traced`, logs the subject and the payload of everything that it is sent.
    pub async fn start_with(version: &str, traced: bool) -> Result<Self> {
        Self::start_as(version, traced, String::new()).await
    }

    /// The same, with `more` in its configuration.
    pub async fn start_as(version: &str, traced: bool, more: String) -> Result<Self> {
        Self::start_at(version, &std::env::temp_dir(), traced, more).await
    }

    /// Starts the default version with its files below a folder.
    pub async fn start_in(folder: &Path) -> Result<Self> {
        Self::start_at(NATS_DEFAULT, folder, false, String::new()).await
    }

    async fn start_at(version: &str, folder: &Path, traced: bool, more: String) -> Result<Self> {
        let mut server = Self {
            binary: nats_server(version)?,
            folder: tempfile::tempdir_in(folder).context("a temporary folder")?,
            address: SocketAddr::from((own_address(), 0)),
            member: None,
            traced,
            more,
            child: None,
        };
        server.spawn(-1)?;
        let port = wait_until(START, "the server's port", async || {
            server
                .ended()
                .map(Err)
                .or_else(|| ports_of(server.folder.path()).map(Ok))
        })
        .await?
        .map_err(|ended| server.failure(&ended))?;
        server.address.set_port(port);
        server.wait_ready().await?;
        Ok(server)
    }

    /// Starts a member of a cluster, of the default version, with its files below a folder; it is of use once most members
    /// run, see [`Member::all`].
    pub async fn start_member(folder: &Path, member: Member) -> Result<Self> {
        let mut server = Self {
            binary: nats_server(NATS_DEFAULT)?,
            folder: tempfile::tempdir_in(folder).context("a temporary folder")?,
            address: member.clients,
            member: Some(member),
            traced: false,
            more: String::new(),
            child: None,
        };
        server.spawn(i32::from(server.address.port()))?;
        server.wait_ready().await?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// The address for clients, as a socket's.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The answer to an empty request on this subject, over a direct connection and none of the links.
    pub async fn ask(&self, subject: &str) -> Result<Vec<u8>> {
        let asked = tokio::time::timeout(ANSWER, answer(self.address, subject));
        asked
            .await
            .with_context(|| format!("no answer to {subject}"))?
    }

    /// Where a member of a cluster says how it is.
    pub fn monitor(&self) -> Option<SocketAddr> {
        Some(self.member.as_ref()?.monitor)
    }

    /// Keeps its files after it is dropped, to find out what went wrong.
    pub fn keep_files(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// Kills it at once, as a crash or the kernel would.
    pub async fn kill9(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        child.kill().context("kill nats-server")?;
        child.wait().context("wait for nats-server")?;
        Ok(())
    }

    /// Starts it again on the same port and store; kills it first if it runs.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill9().await?;
        self.spawn(i32::from(self.address.port()))?;
        self.wait_ready().await
    }

    fn spawn(&mut self, port: i32) -> Result<()> {
        let folder = self.folder.path();
        let settings = ServerSettings {
            host: self.address.ip().to_string(),
            ports_dir: (port == -1).then(|| folder.to_owned()),
            ..ServerSettings::local(folder.join("store"), port)
        };
        let mut text = server_config(&settings) + &self.more;
        if let Some(member) = &self.member {
            text.push_str(&member.config());
        }
        let config = folder.join("nats.conf");
        fs::write(&config, text).context("write the configuration")?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .context("open the log")?;
        let child = Command::new(&self.binary)
            .arg("-c")
            .arg(&config)
            .args(self.traced.then_some("-V"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Signals meant for the test run do not reach it: the test decides when it ends.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let address = self.address;
        let greeted = wait_until(START, "the server to greet", async || {
            if let Some(ended) = self.ended() {
                return Some(Err(ended));
            }
            let stream = TcpStream::connect(address).await.ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.ok()?;
            line.starts_with("INFO").then_some(Ok(()))
        })
        .await?;
        greeted.map_err(|ended| self.failure(&ended))
    }

    /// How the process ended, if it did.
    fn ended(&mut self) -> Option<String> {
        let child = self.child.as_mut()?;
        let status = child.try_wait().ok()??;
        Some(status.to_string())
    }

    fn failure(&self, ended: &str) -> anyhow::Error {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        anyhow::anyhow!("nats-server ended with {ended}; the end of its log:\n{tail}")
    }

    /// Runs `nats-server -t` on a configuration text.
    pub fn check_config(text: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("nats.conf");
        fs::write(&path, text)?;
        let output = Command::new(nats_server(NATS_DEFAULT)?)
            .arg("-t")
            .arg("-c")
            .arg(&path)
            .output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words}");
        Ok(())
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Nothing more can be done in a drop; a server that is gone already is what we want.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn answer(server: SocketAddr, subject: &str) -> Result<Vec<u8>> {
    let stream = TcpStream::connect(server).await?;
    // Of this connection's own, in a whole cluster.
    let inbox = format!("_INBOX.{}", stream.local_addr()?.port());
    let (from, mut to) = stream.into_split();
    let request = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB {inbox} 1\r\nPUB {subject} {inbox} 0\r\n\r\n"
    );
    to.write_all(request.as_bytes()).await?;
    let mut from = BufReader::new(from);
    loop {
        let mut line = String::new();
        let read = from.read_line(&mut line).await?;
        ensure!(read > 0, "nats-server closed the connection");
        ensure!(!line.starts_with("-ERR"), "nats-server says {line}");
        if let Some(message) = line.strip_prefix("MSG ") {
            let bytes = message.split_whitespace().next_back();
            let bytes: usize = bytes.context("a message without a length")?.parse()?;
            let mut payload = vec![0; bytes];
            from.read_exact(&mut payload).await?;
            return Ok(payload);
        }
    }
}

/// The port that a server wrote into its `*.ports` file, once it has.
fn ports_of(folder: &Path) -> Option<u16> {
    let file = fs::read_dir(folder).ok()?.find_map(|entry| {
        let path = entry.ok()?.path();
        (path.extension()? == "ports").then_some(path)
    })?;
    let text = fs::read_to_string(file).ok()?;
    port_in(&text).ok()
}

fn port_in(ports: &str) -> Result<u16> {
    // {"nats":["nats://127.0.0.1:43210"], …}
    let Some((_, rest)) = ports.split_once("nats://") else {
        bail!("no address");
    };
    let address = rest.split('"').next().unwrap_or(rest);
    let (_, port) = address.rsplit_once(':').context("no port")?;
    port.parse().context("not a port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read() {
        let text = "{\n \"nats\": [\n  \"nats://127.0.0.1:43210\"\n ]\n}";
        assert_eq!(port_in(text).expect("a port"), 43210);
        assert!(port_in("{}").is_err());
    }

    #[test]
    fn the_shipped_configuration_is_accepted() {
        let settings = ServerSettings {
            monitor_port: Some(8222),
            token: Some(medfleet_core::setting::Secret::new("a \"quoted\" token")),
            ..ServerSettings::local("/tmp/some where/nats".into(), 4222)
        };
        NatsServer::check_config(&server_config(&settings)).expect("a configuration");
    }

    #[tokio::test]
    async fn starts_dies_and_comes_back_on_its_port() {
        let mut server = NatsServer::start().await.expect("a server");
        let url = server.url();
        server.kill9().await.expect("killed");
        assert!(TcpStream::connect(server.address()).await.is_err());
        server.restart().await.expect("restarted");
        assert_eq!(server.url(), url);
    }
}
