//! A real S3 server for one test: SeaweedFS, all its parts in one process, with a bucket and a key of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use toml::{Table, toml};

use crate::fleet::http_get;
use crate::outside::{Outside, fetched};

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

/// A running server. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct S3Server {
    server: Outside,
    has_tls: bool,
}

impl S3Server {
    /// Starts one and waits until it answers.
    pub async fn start() -> Result<Self> {
        Self::start_one(false).await
    }

    /// The same behind TLS, with a certificate that no machine trusts by itself: [`S3Server::authority`].
    pub async fn start_with_tls() -> Result<Self> {
        Self::start_one(true).await
    }

    async fn start_one(has_tls: bool) -> Result<Self> {
        let server = Outside::start(
            fetched(BINARY)?,
            PORTS.len(),
            |command, folder, ports| prepare(command, folder, ports, has_tls),
            async |ports: &[u16]| answers(ports[0], has_tls).await,
        );
        Ok(Self {
            server: server.await?,
            has_tls,
        })
    }

    /// The server's certificate, which signs itself.
    pub fn authority(&self) -> PathBuf {
        self.server.folder.path().join(CERTIFICATE)
    }

    /// The flags of `medfleet weights` for a model in a folder of the bucket. The keys are in files beside the server's own.
    pub fn flags(&self, prefix: &str) -> Result<Vec<String>> {
        let file = |name: &str, content: &str| -> Result<String> {
            let path = self.server.folder.path().join(name);
            std::fs::write(&path, content).with_context(|| format!("write {name}"))?;
            Ok(path.display().to_string())
        };
        let scheme = if self.has_tls { "https" } else { "http" };
        Ok(vec![
            format!("--bucket={BUCKET}"),
            format!("--prefix={prefix}"),
            "--region=eu-central-1".to_owned(),
            format!("--endpoint={scheme}://127.0.0.1:{}", self.server.ports[0]),
            format!("--access-key-id-file={}", file("key-id", KEY_ID)?),
            format!("--secret-access-key-file={}", file("secret", KEY)?),
        ])
    }

    /// The `store.backend` of a configuration that keeps its blobs here.
    pub fn backend(&self) -> Table {
        let mut table = toml! {
            kind = "s3"
            region = "eu-central-1"
            allow_http = true
        };
        let endpoint = format!("http://127.0.0.1:{}", self.server.ports[0]);
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

fn prepare(command: &mut Command, folder: &Path, ports: &[u16], has_tls: bool) -> Result<()> {
    command.arg("mini").arg("-dir").arg(folder);
    command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false"]);
    command.arg(format!("-bucket={BUCKET}"));
    let named = PORTS.iter().zip(ports);
    command.args(named.map(|(flag, port)| format!("{flag}={port}")));
    if has_tls {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let (certificate, key) = (folder.join(CERTIFICATE), folder.join("key"));
        std::fs::write(&certificate, made.cert.pem()).context("write the certificate")?;
        std::fs::write(&key, made.signing_key.serialize_pem()).context("write its key")?;
        command.arg(format!("-s3.cert.file={}", certificate.display()));
        command.arg(format!("-s3.key.file={}", key.display()));
    }
    command.env("AWS_ACCESS_KEY_ID", KEY_ID);
    command.env("AWS_SECRET_ACCESS_KEY", KEY);
    Ok(())
}

/// Whether the bucket exists: an unsigned request is then refused (403), before that it is not found. Behind TLS the bucket is
/// not seen: a request without it is told so (400) as soon as the server listens.
async fn answers(port: u16, has_tls: bool) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let expected = if has_tls { 400 } else { 403 };
    matches!(http_get(address, &format!("/{BUCKET}")).await, Ok((status, _)) if status == expected)
}
