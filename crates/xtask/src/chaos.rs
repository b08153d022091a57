//! Long chaos: builds the workspace, runs many seeds in virtual time and then storm after storm over real processes.
//! `tests/src/virtual_time.rs` and `tests/src/chaos.rs` say what a run does.

use anyhow::Result;

use crate::{places, process};

/// Seeds in virtual time, unless the arguments say another number.
const VIRTUAL_SEEDS: &str = "500";

/// Runs the seeds that the ledger does not have yet; the arguments are those of `medfleet-trial chaos`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    process::build_workspace()?;
    let ledger = places::scratch("chaos")?.join("ledger.jsonl");
    let binary = places::built("medfleet-trial").display().to_string();
    let ledger = ledger.display().to_string();
    let mut all = vec!["chaos", "--ledger", &ledger];
    all.extend(["--virtual-seeds", VIRTUAL_SEEDS]);
    all.extend(arguments);
    process::run(&mut process::with_open_files(&binary, &all))
}
