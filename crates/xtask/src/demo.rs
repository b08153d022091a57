//! `make demo` and `make up`: the fleet on this machine, with the demo model that comes with the repository.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::fetch::pins::Set;
use crate::fleet::Fleet;
use crate::{fetch, places, process};

/// A small model of MedGemma's architecture that was trained on phantoms: made-up chest films with known findings.
pub(crate) const MODEL: &str = "deploy/demo/phantom-demo";
/// Its MedSigLIP, for zero-shot and embeddings.
pub(crate) const EMBEDDER: &str = "deploy/demo/phantom-siglip";
/// A real chest radiograph, postero-anterior.
pub(crate) const STUDY: &str = "pydicom-data-1.0.0/RG1_UNCR.dcm";
/// The phantom that is shown: a seed that training never used.
const SEED: &str = "20261126";
const PHANTOM: usize = 0;

/// What is true of a phantom.
#[derive(Deserialize)]
struct Truth {
    image: String,
    report: String,
    findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct Finding {
    label: String,
    side: String,
}

/// Builds, starts a fleet, asks about a phantom whose findings are known and about a real film, stops the fleet.
pub(crate) fn run() -> Result<()> {
    fetch::of(Set::Demo)?;
    build()?;
    println!("\nstarting a fleet with the model in {MODEL}");
    let fleet = Fleet::start("demo", &["--model", MODEL])?;
    let shown = show(&fleet);
    let stopped = fleet.stop();
    shown.and(stopped)?;
    println!(
        "\nThe demo model was trained on phantoms and knows nothing else: what it says of a real film means nothing."
    );
    println!(
        "With MedGemma's own weights in a folder: medfleet up --model FOLDER. Every text is a draft, not a diagnosis."
    );
    Ok(())
}

/// Says first what is to come: a person who starts this for the first time waits here for nearly all of the time.
fn build() -> Result<()> {
    if !places::built("medfleet").is_file() {
        println!(
            "building the fleet: cargo shows how far it is, and the next start finds it built"
        );
    }
    process::build_workspace()
}

fn show(fleet: &Fleet) -> Result<()> {
    let folder = places::scratch("demo-phantoms")?;
    let truth = phantom(&folder)?;
    let film = folder.join(&truth.image);
    println!("\n1. A phantom: a report ({})\n", film.display());
    process::run(submit(fleet, &film)?.args(["--task", "report"]))?;
    println!("\nwhat is true of it: {}", truth.report);
    if let Some(finding) = truth.findings.first() {
        let side = match finding.side.as_str() {
            "midline" | "bilateral" => "",
            side => side,
        };
        let target = format!("{side} {}", finding.label.replace('_', " "));
        let picture = folder.join("boxes.png");
        println!("\n2. The same: where is the {}?\n", target.trim());
        let mut asked = submit(fleet, &film)?;
        asked.args(["--task", "localise", "--question", target.trim(), "--draw"]);
        process::run(asked.arg(&picture))?;
        println!("\nthe picture with the model's box: {}", picture.display());
    }
    println!("\n3. A real chest radiograph, which the demo model cannot read\n");
    let study: PathBuf = fetch::path(STUDY)?;
    process::run(submit(fleet, &study)?.args(["--task", "report"]))
}

/// Makes a few phantoms and takes one.
fn phantom(folder: &Path) -> Result<Truth> {
    let count = (PHANTOM + 1).to_string();
    let mut make = process::in_root(&places::built("medfleet").to_string_lossy());
    make.args(["phantom", "--seed", SEED, "--count", &count, "--out"]);
    process::run(make.arg(folder))?;
    let records = fs::read_to_string(folder.join("set.jsonl")).context("read set.jsonl")?;
    let line = records.lines().nth(PHANTOM).context("the phantom's line")?;
    serde_json::from_str(line).context("what is true of the phantom")
}

/// A fleet that keeps running, in place of this process: signals reach it directly.
pub(crate) fn up() -> Result<()> {
    fetch::of(Set::Fleet)?;
    build()?;
    let mut command = Command::new(places::built("medfleet"));
    command.current_dir(places::root()).args([
        "up",
        "--data",
        ".medfleet",
        "--model",
        MODEL,
        "--embedder",
        EMBEDDER,
    ]);
    let error = command.exec();
    Err(error).context("start medfleet up")
}

fn submit(fleet: &Fleet, study: &Path) -> Result<Command> {
    let mut command = Command::new(places::built("medfleet"));
    command
        .arg("submit")
        .arg(study)
        .args(["--server", &fleet.address.server]);
    // By the environment and not by an argument: arguments show in the list of processes.
    command.env("MEDFLEET_TOKEN", fleet.address.token()?);
    Ok(command)
}
