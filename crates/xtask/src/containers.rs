//! The images, and the pods of the small preset as containers of this machine: real processes with the user, the read-only root,
//! the rights, the limits, the mounts and the probes that the chart renders.
//!
//! No cluster is there. What of a pod is translated, and that the rest is refused, is in `pod`; a network of namespaces takes the
//! place of a network plugin, hosts files that of DNS, and this program that of the kubelet. A trial container that has nothing
//! to do with ours shows whether this machine can run containers at all; if not, the step is skipped. Where containers are known
//! to work, `MEDFLEET_CONTAINERS=must` makes that an error, so that a fault in the trial itself is noticed.
//!
//! Reading order: `kit` (the programs), `images`, `node` (namespaces and networks), `pod` and `cluster` (what is rendered),
//! `bundle` (a pod as the runtime reads it), `orders` (what must hold).

mod bundle;
mod cluster;
mod images;
mod kit;
mod node;
mod orders;
mod pod;
mod probe;
mod seccomp;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{chart, fetch, places, process};
use kit::Kit;
use node::Node;

/// The preset that needs no GPU, no model and no other program.
const PRESET: &str = "small";
/// Its objects, in the step's folder.
const OBJECTS: &str = "objects.json";

/// Set to `must` on a machine that is known to start containers: what would skip the step is an error there.
const SWITCH: &str = "MEDFLEET_CONTAINERS";

/// Builds and runs everything, where this machine can.
pub(crate) fn run() -> Result<()> {
    let must = must()?;
    let mut nothing = Command::new(node::APART[0]);
    if let Some(reason) = refused(nothing.args(&node::APART[1..]).arg("true")) {
        return skipped(&reason, must);
    }
    // Two runs in one folder would disturb each other, and each would conclude that the machine cannot run containers.
    let _alone = fetch::lock(&places::scratch("containers-lock")?)?;
    let folder = places::scratch("containers")?;
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    let folder = places::scratch("containers")?;
    // Within, there is no network to fetch by.
    Kit::find()?;
    fetch::file("nats-server")?;
    let objects = serde_json::to_string(&chart::preset(PRESET)?)?;
    if let Some(reason) = refused(&mut apart("trial")?) {
        return skipped(&reason, must);
    }
    node::sweep();
    fs::write(folder.join(OBJECTS), objects)?;
    let tried = process::run(&mut apart("pods")?);
    // Half a gigabyte, however it ended; what the containers said stays.
    let images = folder.join("images");
    let removed = match images.exists() {
        true => fs::remove_dir_all(&images),
        false => Ok(()),
    };
    tried?;
    removed.with_context(|| format!("remove {}", images.display()))
}

/// One part of it, as the first process of namespaces of its own.
pub(crate) fn within(part: &str) -> Result<()> {
    // Outside namespaces of its own, its mounts would change the machine: one over /run, and one of / into a folder that the next
    // run removes.
    ensure!(
        std::process::id() == 1,
        "`containers --within` is started by `cargo xtask containers` alone, in namespaces of its own"
    );
    let (part, run) = part.split_once('-').context("expected PART-RUN")?;
    let folder = places::scratch("containers")?;
    let node = Node::start(Kit::find()?, folder.clone(), run.to_owned())?;
    match part {
        "trial" => node::try_out(&node),
        "pods" => {
            let path = folder.join(OBJECTS);
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let objects: Vec<Value> = serde_json::from_slice(&text)?;
            let seen = orders::run(&node, objects)?;
            println!("containers: {seen}");
            Ok(())
        }
        other => bail!("{other} is no part of this step; there are: trial, pods"),
    }
}

/// This program again, in namespaces of its own.
fn apart(part: &str) -> Result<Command> {
    let own: PathBuf = std::env::current_exe().context("this program's own path")?;
    let mut command = process::in_root(node::APART[0]);
    command.args(&node::APART[1..]);
    // What is made there is for the pods' users, also where this one keeps new files to itself.
    command.args(["sh", "-c", "umask 022 && exec \"$@\"", "sh"]);
    command.arg(own);
    command.args(["containers", "--within"]);
    command.arg(format!("{part}-{}", std::process::id()));
    Ok(command)
}

/// Whether a skip is an error here.
#[expect(
    clippy::disallowed_methods,
    reason = "the automation is started by a person or by CI, and has no runtime"
)]
fn must() -> Result<bool> {
    match std::env::var_os(SWITCH) {
        None => Ok(false),
        Some(set) if set == "must" => Ok(true),
        Some(set) => bail!("{SWITCH} is {set:?}, expected must, or nothing"),
    }
}

/// Why this machine does not do it; nothing where it does.
fn refused(command: &mut Command) -> Option<String> {
    images::quietly(command)
        .err()
        .map(|error| format!("{error:#}"))
}

fn skipped(reason: &str, must: bool) -> Result<()> {
    ensure!(
        !must,
        "this machine starts no container, and by MEDFLEET_CONTAINERS it must: {reason}"
    );
    println!("containers: SKIPPED, this machine starts no container: {reason}");
    println!(
        "containers: it takes Linux, root, and the right to make namespaces and control groups"
    );
    Ok(())
}
