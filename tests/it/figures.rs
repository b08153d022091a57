//! The figures that the project promises to stay within, measured and printed, never asserted against a clock.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use medfleet_tests::fleet::binary;
use medfleet_tests::picture;
use tokio::process::Command;

async fn bench(arguments: &[&str]) -> Result<serde_json::Value> {
    let output = Command::new(binary("medfleet")?)
        .args(["bench"])
        .args(arguments)
        .arg("--json")
        .output()
        .await?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "bench {arguments:?}: {errors}");
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().context("bench printed nothing")?;
    serde_json::from_str(last).with_context(|| format!("bench {arguments:?} printed {last:?}"))
}

/// What the fleet adds to `infer` over four stages. Promised: at most 30 ms at the median on a quiet machine.
#[tokio::test(flavor = "multi_thread")]
async fn fleet_overhead() -> Result<()> {
    let model = picture::tiny_model().display().to_string();
    let figures = bench(&["report", "--jobs", "10", "--model", &model]).await?;
    show("fleet overhead", &figures)
}

/// What idle services hold. Promised: ingest below 60 MiB, preprocess below 80 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn idle_memory() -> Result<()> {
    let figures = bench(&["memory"]).await?;
    show("idle memory", &figures)
}

/// Written past the test runner's capture, so that every run of the gate shows its figures.
fn show(name: &str, figures: &serde_json::Value) -> Result<()> {
    ensure!(figures.is_object(), "{figures}");
    writeln!(std::io::stderr(), "{name}: {figures}")?;
    Ok(())
}
