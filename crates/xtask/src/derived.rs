//! Files in the tree that are made from what says the same already: compared in the gate, written by `--bless`.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::places;

/// What to do about a derived file that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Fail.
    Check,
    /// Write it.
    Bless,
}

/// Compares a derived file with what it should be, or writes it; `command` is the one that does.
pub(crate) fn settle(mode: Mode, command: &str, path: &str, wanted: &str) -> Result<()> {
    let file = places::root().join(path);
    if fs::read_to_string(&file).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if mode == Mode::Check {
        bail!("{path} is not what its source says: run `cargo xtask {command} --bless`");
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&file, wanted).with_context(|| format!("write {path}"))?;
    println!("{command}: wrote {path}");
    Ok(())
}
