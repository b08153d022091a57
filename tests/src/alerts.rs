//! Whether the shipped alert rules fire on the metrics that a process exports, by Prometheus's own `promtool`.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use crate::fleet::http_get;
use crate::prometheus::program;

pub(crate) const RULES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/prometheus/medfleet.rules.yaml"
);

/// The value of a series, named as on the `/metrics` page of the process.
pub async fn told(admin: SocketAddr, series: &str) -> Result<i64> {
    let (status, page) = http_get(admin, "/metrics").await?;
    ensure!(status == 200, "/metrics answered {status}");
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = value.with_context(|| format!("no {series} in {page}"))?;
    value.parse().with_context(|| format!("{series} {value}"))
}

/// Fails unless an alert fires (or is silent, where `fires` is false) 25 minutes after Prometheus has started, if each series had
/// its first value for the first 20 minutes and its second from then on. In `promtool`'s tests time begins in 1970.
pub async fn expect(alert: &str, fires: bool, told: &[(&str, (i64, i64))]) -> Result<()> {
    let series = told.iter().map(|(series, (before, after))| {
        // What a scrape adds.
        let (name, labels) = series
            .strip_suffix('}')
            .map_or((*series, "{"), |labelled| (labelled, ","));
        json!({
            "series": format!("{name}{labels}job=\"fleet\",instance=\"ingest\"}}"),
            "values": format!("{before}x39 {after}x20"),
        })
    });
    let firing = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
    let expected = json!({"labels": "{}", "value": 1});
    // YAML is a superset of JSON.
    let test = json!({
        "rule_files": [RULES],
        "evaluation_interval": "30s",
        "tests": [{
            "interval": "30s",
            "input_series": series.collect::<Vec<_>>(),
            "promql_expr_test": [{
                "expr": format!("count({firing})"),
                "eval_time": "25m",
                "exp_samples": fires.then_some(expected).into_iter().collect::<Vec<_>>(),
            }],
        }],
    });
    let file = tempfile::NamedTempFile::with_suffix(".json")?;
    std::fs::write(file.path(), test.to_string())?;
    let mut promtool = Command::new(program("promtool")?);
    promtool.args(["test", "rules"]).arg(file.path());
    let output = promtool
        .output()
        .await
        .context("no promtool: run `cargo xtask observe`, which brings it")?;
    ensure!(
        output.status.success(),
        "{alert}, {told:?}, should fire: {fires}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
