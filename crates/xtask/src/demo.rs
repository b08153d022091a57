//! `make demo` and `make up`: the fleet on this machine, with the checkpoint that comes with the repository.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::fleet::Fleet;
use crate::{fetch, places, process};

/// The tiny checkpoint: MedGemma's architecture, weights without medical knowledge.
pub(crate) const MODEL: &str = "deploy/tiny";
/// A real chest radiograph, postero-anterior.
pub(crate) const STUDY: &str = "pydicom-data-1.0.0/RG1_UNCR.dcm";
/// Enough of a text that means nothing.
const TOKENS_MAX: &str = "48";

/// Builds, starts a fleet, submits a real study, shows the draft, stops the fleet.
pub(crate) fn run() -> Result<()> {
    fetch::run()?;
    process::build_workspace()?;
    println!("\nstarting a fleet with the model in {MODEL}");
    let fleet = Fleet::start("demo", &["--model", MODEL])?;
    println!(
        "submitting a chest radiograph to {}\n",
        fleet.address.server
    );
    let outcome = process::run(&mut submit(&fleet)?);
    let stopped = fleet.stop();
    outcome.and(stopped)?;
    println!(
        "\nThe text has no meaning: the checkpoint in {MODEL} has MedGemma's architecture and no knowledge."
    );
    println!(
        "With MedGemma's own weights in a folder: medfleet up --model FOLDER. Every text is a draft, not a diagnosis."
    );
    Ok(())
}

/// A fleet that keeps running, in place of this process: signals reach it directly.
pub(crate) fn up() -> Result<()> {
    fetch::run()?;
    process::build_workspace()?;
    let mut command = Command::new(places::built("medfleet"));
    command
        .current_dir(places::root())
        .args(["up", "--data", ".medfleet", "--model", MODEL]);
    let error = command.exec();
    Err(error).context("start medfleet up")
}

fn submit(fleet: &Fleet) -> Result<Command> {
    let study: PathBuf = fetch::path(STUDY)?;
    let mut command = Command::new(places::built("medfleet"));
    command
        .arg("submit")
        .arg(study)
        .args(["--task", "report", "--max-tokens", TOKENS_MAX])
        .args(["--server", &fleet.address.server]);
    // By the environment and not by an argument: arguments show in the list of processes.
    command.env("MEDFLEET_TOKEN", fleet.address.token()?);
    Ok(command)
}
