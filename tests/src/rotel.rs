//! A third-party collector between a fleet and the test's own: rotel, which takes traces over OTLP, batches them anew and
//! forwards them over OTLP, compressed.

use std::net::Ipv4Addr;

use anyhow::Result;
use tokio::net::TcpStream;

use crate::outside::{Outside, fetched};

/// The collector's binary, below the cache.
const BINARY: &str = "bin/rotel-0.0.1a8";

/// A running collector. Dropping it kills it.
#[derive(Debug)]
pub struct Rotel(Outside);

impl Rotel {
    /// Starts one that hands on to this endpoint over HTTP, and waits until it listens.
    pub async fn start(to: &str) -> Result<Self> {
        let server = Outside::start(
            fetched(BINARY)?,
            2,
            |command, _, ports| {
                // Its settings can also be variables.
                command.env_clear().arg("start");
                for (protocol, port) in ["grpc", "http"].iter().zip(ports) {
                    command.arg(format!("--otlp-{protocol}-endpoint=127.0.0.1:{port}"));
                }
                command.arg(format!("--otlp-exporter-endpoint={to}"));
                // This release compresses with gzip whatever its settings say, and our gRPC receiver does not take that.
                command.arg("--otlp-exporter-protocol=http");
                Ok(())
            },
            listens,
        );
        Ok(Self(server.await?))
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.ports[0])
    }

    /// Asks it to stop, which hands on what it still has.
    pub async fn stop(self) -> Result<()> {
        self.0.stop().await
    }
}

async fn listens(ports: &[u16]) -> bool {
    for port in ports {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, *port))
            .await
            .is_err()
        {
            return false;
        }
    }
    true
}
