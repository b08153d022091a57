//! The wire contract: lint, breaking changes against the committed image, and the API reference made from it.
//!
//! `proto/medfleet.binpb` is the contract as last accepted, a `FileDescriptorSet` with its comments; `proto/build.rs` generates
//! code from it, so that a build needs no compiler of `.proto` files. A change that only adds is accepted by `--bless`; one that
//! breaks clients needs `--bless-breaking`.

mod reference;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use prost::Message;
use prost_types::FileDescriptorSet;

use crate::{fetch, places, process};

const IMAGE: &str = "proto/medfleet.binpb";
const REFERENCE: &str = "docs/reference/api.md";

/// What to do about a contract that differs from the accepted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Check,
    /// Accept it if it only adds.
    Bless,
    /// Accept it whatever it is.
    BlessBreaking,
}

/// Checks the contract, or accepts its present state.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let buf = fetch::file("buf")?;
    let root = places::root();
    process::run(buf_command(&buf).args(["lint", "proto"]))
        .context("the contract breaks buf's standard rules")?;
    let image = root.join(IMAGE);
    if mode != Mode::BlessBreaking && image.is_file() {
        process::run(buf_command(&buf).args(["breaking", "proto", "--against", IMAGE]))
            .context("the contract breaks clients of the accepted one")?;
    }

    let scratch = places::scratch("proto")?;
    let current = build(&buf, &scratch.join("current.binpb"))?;
    let set =
        FileDescriptorSet::decode(current.as_slice()).context("read the image that buf built")?;
    let silent = reference::silent(&set);
    if !silent.is_empty() {
        bail!(
            "{}: the comment's `Errors:` does not say when it answers UNAVAILABLE, as every method may",
            silent.join(", ")
        );
    }
    let page = reference::page(&set);

    settle(mode, &image, &current)?;
    settle(mode, &root.join(REFERENCE), page.as_bytes())?;
    println!("proto: the contract is linted, compatible and documented");
    Ok(())
}

/// Compares a derived file with what it should be, or writes it.
fn settle(mode: Mode, path: &Path, wanted: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if mode == Mode::Check {
        bail!(
            "{} is not what the .proto files say: run `cargo xtask proto --bless`",
            path.display()
        );
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, wanted).with_context(|| format!("write {}", path.display()))?;
    println!("proto: wrote {}", path.display());
    Ok(())
}

fn build(buf: &Path, out: &Path) -> Result<Vec<u8>> {
    process::run(
        buf_command(buf)
            .args(["build", "proto", "--as-file-descriptor-set", "-o"])
            .arg(out),
    )?;
    fs::read(out).with_context(|| format!("read {}", out.display()))
}

fn buf_command(buf: &Path) -> Command {
    let mut command = Command::new(buf);
    command.current_dir(places::root());
    command
}
