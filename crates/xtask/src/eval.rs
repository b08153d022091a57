//! `make eval`: what the demo model can do, asked of a fleet about phantoms of a seed that training never used, as
//! `deploy/demo/README.md` has it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::demo::{EMBEDDER, MODEL};
use crate::fetch::pins::Set;
use crate::fleet::Fleet;
use crate::{fetch, options, places, process};

/// What is asked about films, each with a set of its own answers.
const TASKS: [&str; 4] = ["report", "answer", "localise", "zero-shot"];
/// Columns of a film, as they were for the figures in the README.
const COLUMNS: &str = "1024";
/// What the model was computed in for them; `up` would take what its weights are in.
const DTYPE: &str = "model.dtype=\"f32\"";
/// Phantoms of a set where the arguments name no other number.
const COUNT: u64 = 500;
/// Their seed where the arguments name no other.
const SEED: u64 = 770_077;

/// Makes the phantoms, starts a fleet, asks it everything, stops it. Tables and pages stay in the build folder.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let known = [("--count", COUNT), ("--seed", SEED)];
    let [count, seed] = options::numbers(arguments, known)?;
    fetch::of(Set::Fleet)?;
    process::build_workspace()?;
    let name = format!("eval-{seed}-{count}");
    // Answers that lie there may be of other weights.
    fs::remove_dir_all(places::scratch(&name)?)?;
    let folder = places::scratch(&name)?;
    let (films, pairs) = (folder.join("films"), folder.join("pairs"));
    phantoms(&films, count, seed, &[])?;
    phantoms(&pairs, count, seed.wrapping_add(1), &["--pairs"])?;
    let models = ["--model", MODEL, "--embedder", EMBEDDER];
    let fleet = Fleet::start("eval", &[&models[..], &["--set", DTYPE]].concat())?;
    let asked = TASKS
        .iter()
        .try_for_each(|task| ask(&fleet, &films, task, &folder))
        .and_then(|()| ask(&fleet, &pairs, "compare", &folder));
    let stopped = fleet.stop();
    asked.and(stopped)
}

fn phantoms(folder: &Path, count: u64, seed: u64, more: &[&str]) -> Result<()> {
    let mut make = Command::new(places::built("medfleet"));
    make.args(["phantom", "--format", "dicom", "--size", COLUMNS]);
    make.args(["--count", &count.to_string(), "--seed", &seed.to_string()]);
    process::run(make.args(more).arg("--out").arg(folder))
}

fn ask(fleet: &Fleet, set: &Path, task: &str, folder: &Path) -> Result<()> {
    println!("\n=== {task} ===");
    let mut eval = Command::new(places::built("medfleet"));
    eval.args(["eval", "--task", task, "--set"]).arg(set);
    eval.arg("--out").arg(folder.join(task));
    eval.args(["--server", &fleet.address.server]);
    // By the environment and not by an argument: arguments show in the list of processes.
    eval.env("MEDFLEET_TOKEN", fleet.address.token()?);
    process::run(&mut eval)
}
