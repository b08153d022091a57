//! A real S3 server for one test: SeaweedFS, all its parts in one process, with a bucket and a key of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use medfleet_testkit::{cache_dir, wait_until};
use tempfile::TempDir;
use toml::{Table, toml};

use crate::client::PATIENCE;
use crate::fleet::http_get;

/// The server's binary, below the cache.
const BINARY: &str = "bin/weed-4.48";
/// The flags that name a port; the server gets a free one for each.
const PORTS: [&str; 13] = [
    "-s3.port",
    "-s3.port.grpc",
    "-s3.port.iceberg",
    "-s3.port.lance",
    "-master.port",
    "-master.port.grpc",
    "-volume.port",
    "-volume.port.grpc",
    "-filer.port",
    "-filer.port.grpc",
    "-admin.port",
    "-admin.port.grpc",
    "-metricsPort",
];
const BUCKET: &str = "blobs";
const CERTIFICATE: &str = "certificate.pem";
const KEY_ID: &str = "medfleet-test";
const KEY: &str = "a-key-for-one-test";
/// Starts until one finds its ports still free.
const TRIES: usize = 3;

/// A running server. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct S3Server {
    child: Child,
    port: u16,
    folder: TempDir,
    has_tls: bool,
}

impl S3Server {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it is not in the cache, or does not come up; then with the end of its log.
    pub async fn start() -> Result<Self> {
        Self::start_one(false).await
    }

    /// The same behind TLS, with a certificate that no machine trusts by itself: [`S3Server::authority`].
    ///
    /// # Errors
    /// As [`S3Server::start`].
    pub async fn start_with_tls() -> Result<Self> {
        Self::start_one(true).await
    }

    async fn start_one(has_tls: bool) -> Result<Self> {
        let binary = cache_dir()?.join(BINARY);
        if !binary.is_file() {
            bail!("{BINARY} is not in the cache: run `cargo xtask fetch`");
        }
        let mut failure = None;
        for _ in 0..TRIES {
            match Self::try_start(&binary, has_tls).await {
                Ok(server) => return Ok(server),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no try was made")?)
    }

    async fn try_start(binary: &PathBuf, has_tls: bool) -> Result<Self> {
        let folder = tempfile::tempdir().context("a temporary folder")?;
        let log_path = folder.path().join("log");
        let log = std::fs::File::create(&log_path).context("create the log")?;
        let ports = free_ports(PORTS.len())?;
        let mut command = Command::new(binary);
        command.arg("mini").arg("-dir").arg(folder.path());
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false"]);
        command.arg(format!("-bucket={BUCKET}"));
        command.args(
            PORTS
                .iter()
                .zip(&ports)
                .map(|(flag, port)| format!("{flag}={port}")),
        );
        if has_tls {
            let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
            let (certificate, key) = (folder.path().join(CERTIFICATE), folder.path().join("key"));
            std::fs::write(&certificate, made.cert.pem()).context("write the certificate")?;
            std::fs::write(&key, made.signing_key.serialize_pem()).context("write its key")?;
            command.arg(format!("-s3.cert.file={}", certificate.display()));
            command.arg(format!("-s3.key.file={}", key.display()));
        }
        let child = command
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", KEY)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            // Signals meant for the test run do not reach it: the test decides when it ends.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let mut server = Self {
            child,
            port: ports[0],
            folder,
            has_tls,
        };
        let ready = wait_until(PATIENCE, "the S3 server", async || {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Some(Err(anyhow::anyhow!("the S3 server ended with {status}")));
            }
            server.answers().await.then_some(Ok(()))
        });
        ready.await.and_then(|ready| ready).with_context(|| {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        })?;
        Ok(server)
    }

    /// Whether the bucket exists: an unsigned request is then refused (403), before that it is not found. Behind TLS the bucket
    /// is not seen: a request without it is told so (400) as soon as the server listens.
    async fn answers(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let expected = if self.has_tls { 400 } else { 403 };
        matches!(http_get(address, &format!("/{BUCKET}")).await, Ok((status, _)) if status == expected)
    }

    /// The server's certificate, which signs itself.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join(CERTIFICATE)
    }

    /// The flags of `medfleet weights` for a model in a folder of the bucket. The keys are in files beside the server's own.
    ///
    /// # Errors
    /// When these cannot be written.
    pub fn flags(&self, prefix: &str) -> Result<Vec<String>> {
        let file = |name: &str, content: &str| -> Result<String> {
            let path = self.folder.path().join(name);
            std::fs::write(&path, content).with_context(|| format!("write {name}"))?;
            Ok(path.display().to_string())
        };
        let scheme = if self.has_tls { "https" } else { "http" };
        Ok(vec![
            format!("--bucket={BUCKET}"),
            format!("--prefix={prefix}"),
            "--region=eu-central-1".to_owned(),
            format!("--endpoint={scheme}://127.0.0.1:{}", self.port),
            format!("--access-key-id-file={}", file("key-id", KEY_ID)?),
            format!("--secret-access-key-file={}", file("secret", KEY)?),
        ])
    }

    /// The `store.backend` of a configuration that keeps its blobs here.
    #[must_use]
    pub fn backend(&self) -> Table {
        let mut table = toml! {
            kind = "s3"
            region = "eu-central-1"
            allow_http = true
        };
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        for (key, value) in [
            ("bucket", BUCKET),
            ("access_key_id", KEY_ID),
            ("secret_access_key", KEY),
            ("endpoint", &endpoint),
        ] {
            table.insert(key.into(), value.into());
        }
        table
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Ports that were free a moment ago, all different.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: std::io::Result<Vec<_>> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect();
    listeners
        .context("find free ports")?
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
