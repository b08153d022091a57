//! How long a developer waits after changing one line of a service: changes one, builds, takes it back.
//! Prints a figure and judges none, so that it is no part of the gate.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{places, process};

/// The file that is changed: a decision of a service, which the composed binary links too.
const FILE: &str = "services/encode/src/unit.rs";
/// The line that is added; code, so that the compiler cannot see that nothing changed.
const LINE: &str = "\n#[expect(dead_code)]\nconst REBUILT: u32 = 1;\n";

/// Puts the file back, also when the build fails.
struct Restored {
    path: PathBuf,
    text: String,
}

impl Drop for Restored {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.text) {
            eprintln!("{FILE} could not be restored: {error}; `git checkout {FILE}` does it");
        }
    }
}

/// Builds, changes a line, builds again and prints the time of the second build.
pub(crate) fn run() -> Result<()> {
    process::build_workspace()?;
    let path = places::root().join(FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("read {FILE}"))?;
    let restored = Restored { path, text };
    fs::write(&restored.path, format!("{}{LINE}", restored.text)).context("change a line")?;
    let start = Instant::now();
    let built = process::build_workspace();
    let seconds = start.elapsed().as_secs_f64();
    drop(restored);
    built?;
    println!("warm build after a one-line change in a service: {seconds:.1} s");
    // What is left behind is of the committed text.
    process::build_workspace()
}
