//! A fleet whose language model is held quantised drafts reports, and every result says so.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use medfleet_tests::fleet::Up;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_quantised_fleet_drafts_a_report_and_says_what_wrote_it() -> Result<()> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo/phantom-demo");
    let flags = [
        OsStr::new("--model"),
        demo.as_os_str(),
        OsStr::new("--quantised"),
    ];
    let up = Up::told(&flags).await?;
    let set = up.folder().join("set");
    let (path, film) = (
        set.display().to_string(),
        set.join("images/000000.png").display().to_string(),
    );
    let make = [
        "phantom", "--count", "1", "--seed", "424242", "--format", "png", "--size", "448", "--out",
        &path,
    ];
    run(&up, &make).await?;

    let printed = run(&up, &["submit", &film, "--task", "report", "--json"]).await?;
    let last = printed.lines().last().unwrap_or_default();
    let last: Value = serde_json::from_str(last)?;
    let draft = &last["result"];
    let text = draft["report"]["text"].as_str().context("a report")?;
    // Sections as the demo model was taught to write them: quantising left it its sense.
    ensure!(text.to_ascii_uppercase().contains("FINDINGS"), "{text:?}");
    let provenance = &draft["provenance"];
    ensure!(
        provenance["weights"] == "q8_0" && provenance["dtype"] == "f32",
        "{provenance}"
    );
    let digest = |name: &str| provenance[name].as_str().map(str::len);
    ensure!(
        digest("model_digest") == Some(64) && digest("encoder_digest") == Some(64),
        "{provenance}"
    );

    let job = draft["job"].as_str().context("a job")?;
    let shown = run(&up, &["get", job]).await?;
    ensure!(shown.contains("f32, matrices q8_0"), "{shown}");
    let listed = run(&up, &["list", "--json"]).await?;
    ensure!(listed.contains("phantom-demo-q8-0"), "{listed}");
    up.stop().await
}

/// Runs `medfleet` and returns what it printed.
async fn run(up: &Up, arguments: &[&str]) -> Result<String> {
    let output = up.command(arguments).await?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}
