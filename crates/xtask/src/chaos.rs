//! Long chaos: builds the workspace and runs storm after storm over it. What a run is, `tests/src/chaos.rs` says.

use anyhow::Result;

use crate::{places, process};

/// Runs the seeds that the ledger does not have yet; the arguments are those of the `medfleet-chaos` binary.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    process::build_workspace()?;
    let ledger = places::scratch("chaos")?.join("ledger.jsonl");
    let binary = places::built("medfleet-chaos").display().to_string();
    let ledger = ledger.display().to_string();
    let mut all = vec!["--ledger", &ledger];
    all.extend(arguments);
    process::run(&mut process::with_open_files(&binary, &all))
}
