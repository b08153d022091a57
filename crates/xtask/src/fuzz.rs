//! The long hunt: builds the fuzzer as everything else is built, and lets it run.

use anyhow::Result;

use crate::{options, places, process};

/// How long it runs where the arguments do not say.
const MINUTES: u64 = 60;
/// The seed where the arguments name no other.
const SEED: u64 = 1;

/// `--minutes N`, `--seed S`, in any order.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let known = [("--minutes", MINUTES), ("--seed", SEED)];
    let [minutes, seed] = options::numbers(arguments, known)?;
    process::cargo(&["build", "--locked", "--workspace", "--bin", "medfleet-fuzz"])?;
    let seconds = (minutes * 60).to_string();
    let seed = seed.to_string();
    let fuzzer = places::built("medfleet-fuzz");
    process::run(process::in_root(&fuzzer.to_string_lossy()).args([
        "run",
        "--seconds",
        &seconds,
        "--seed",
        &seed,
    ]))
}
