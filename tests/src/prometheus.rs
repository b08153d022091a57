//! A real Prometheus that watches a fleet with the shipped rules; it is in the package that the gate takes promtool from.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use medfleet_testkit::{cache_dir, wait_until};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::alerts::RULES;
use crate::client::PATIENCE;
use crate::fleet::{Fleet, Role, binary, http_get};
use crate::outside::Outside;

const CONFIG: &str = "prometheus.yaml";
/// How `cargo xtask observe --ask` begins the line of a query without data, and of what is not as the reference says.
const AMISS: [&str; 2] = ["observe: no data: ", "series: "];

/// A running server. Dropping it kills it and removes what it has kept.
#[derive(Debug)]
pub struct Prometheus(Outside);

impl Prometheus {
    /// Starts one that scrapes every process of a fleet each second, as one job, and waits until it has seen all of them.
    pub async fn watching(fleet: &Fleet) -> Result<Self> {
        let targets = Role::ALL.map(|role| fleet.admin(role).to_string());
        // YAML is a superset of JSON.
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES],
            "scrape_configs": [{"job_name": "radiology", "static_configs": [{"targets": targets}]}],
        });
        let server = Outside::start(
            program("prometheus")?,
            1,
            |command, folder, ports| {
                fs::write(folder.join(CONFIG), config.to_string()).context("configure it")?;
                command.arg(format!("--config.file={CONFIG}"));
                command.arg("--storage.tsdb.path=data");
                command.arg(format!("--web.listen-address={}", address(ports)));
                Ok(())
            },
            async |ports: &[u16]| {
                let ready = http_get(address(ports), "/-/ready").await;
                matches!(ready, Ok((200, _)))
            },
        );
        let server = server.await;
        let server = Self(server.context("a Prometheus, which `cargo xtask observe` brings")?);
        let all = format!("count(up == 1) == {}", Role::ALL.len());
        server.wait_for(&all).await?;
        Ok(server)
    }

    /// Waits until a query has an answer.
    pub async fn wait_for(&self, query: &str) -> Result<()> {
        let path = format!("/api/v1/query?query={}", encoded(query));
        wait_until(PATIENCE, query, async || {
            let (_, answer) = http_get(address(&self.0.ports), &path).await.ok()?;
            let answer: Value = serde_json::from_str(&answer).ok()?;
            let series = answer.pointer("/data/result")?.as_array()?;
            (!series.is_empty()).then_some(())
        })
        .await
    }

    /// The queries of dashboards, rules and chart for which it has no data, and the scraped series that differ from the reference
    /// of metrics, a line each.
    pub async fn amiss(&self) -> Result<Vec<String>> {
        let url = format!("http://{}", address(&self.0.ports));
        let mut ask = Command::new(binary("xtask")?);
        ask.args(["observe", "--ask", &url]).kill_on_drop(true);
        let output = ask.output().await.context("start xtask")?;
        let told = String::from_utf8_lossy(&output.stdout);
        let is_amiss = |line: &&str| AMISS.iter().any(|begin| line.starts_with(begin));
        let amiss: Vec<String> = told.lines().filter(is_amiss).map(str::to_owned).collect();
        ensure!(
            output.status.success() == amiss.is_empty(),
            "it could not be asked: {told}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(amiss)
    }
}

fn address(ports: &[u16]) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]))
}

/// A query as a part of an address.
fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A program of the package prometheus: the one that `cargo xtask observe` unpacked; without it, the system's.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let unpacked = cache_dir()?.join("debian-prometheus/usr/bin").join(name);
    Ok(match unpacked.is_file() {
        true => unpacked,
        false => PathBuf::from(name),
    })
}
