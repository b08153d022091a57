//! A fleet whose language model is held quantised drafts reports, and every result says so. It writes the same whether a
//! folder was quantised while it was read or a GGUF has the same blocks.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use medfleet_tests::fleet::Up;
use medfleet_tests::gguf;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_quantised_fleet_drafts_a_report_and_says_what_wrote_it() -> Result<()> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo/phantom-demo");
    let folder = tempfile::tempdir()?;
    let model = OsStr::new("--model");
    let quantised = OsStr::new("--quantised");
    let up = Up::told(&[model, demo.as_os_str(), quantised]).await?;
    let films = folder.path().join("films").display().to_string();
    let make = [
        "phantom", "--count", "1", "--seed", "424242", "--format", "png", "--size", "448", "--out",
        &films,
    ];
    up.run(&make).await?;
    let film = format!("{films}/images/000000.png");
    let draft = draft(&up, &film).await?;
    let provenance = &draft["provenance"];
    ensure!(
        provenance["weights"] == "q8_0" && provenance["dtype"] == "bf16",
        "{provenance}"
    );
    // A section as the demo model was taught to write it: quantising left it its sense.
    let text = text_of(&draft)?;
    ensure!(text.contains("Findings"), "{text:?}");
    let job = draft["job"].as_str().context("a job")?;
    let shown = up.run(&["get", job]).await?;
    ensure!(shown.contains("bf16, matrices q8_0"), "{shown}");
    let listed = up.run(&["list", "--json"]).await?;
    ensure!(listed.contains("phantom-demo-q8-0"), "{listed}");
    up.stop().await?;

    let file = folder.path().join("text.gguf");
    gguf::write_q8_0(&demo, &file)?;
    let tokenizer = demo.join("tokenizer.json").display().to_string();
    let tokenizer = format!("model.tokenizer=\"{tokenizer}\"");
    let flags = [
        model,
        file.as_os_str(),
        OsStr::new("--vision"),
        demo.as_os_str(),
        quantised,
        OsStr::new("--set"),
        OsStr::new(&tokenizer),
        OsStr::new("--set"),
        OsStr::new("model.dtype=\"bf16\""),
    ];
    let up = Up::told(&flags).await?;
    let stored = self::draft(&up, &film).await?;
    ensure!(text_of(&stored)? == text, "{stored} after {text:?}");
    let of_stored = &stored["provenance"];
    ensure!(of_stored["weights"] == "q8_0", "{of_stored}");
    let same = |name: &str| of_stored[name] == provenance[name];
    ensure!(
        same("encoder_digest") && !same("model_digest"),
        "{of_stored} and {provenance}"
    );
    up.stop().await
}

/// The draft of a report about one film.
async fn draft(up: &Up, film: &str) -> Result<Value> {
    let printed = up
        .run(&[
            "submit",
            film,
            "--task",
            "report",
            "--modality",
            "dx",
            "--json",
        ])
        .await?;
    let last = printed.lines().last().unwrap_or_default();
    let mut last: Value = serde_json::from_str(last)?;
    Ok(last["result"].take())
}

fn text_of(draft: &Value) -> Result<&str> {
    draft["report"]["text"]
        .as_str()
        .with_context(|| format!("no report in {draft}"))
}
