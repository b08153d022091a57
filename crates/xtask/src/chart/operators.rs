//! Objects of KEDA, the Prometheus operator and cert-manager against these projects' own schemas, which only npm's registry has.
//! The schemas know types and what is needed, and let unknown fields pass, as the API server does; `rules` knows the fields.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::WITHOUT_SCHEMA;
use super::objects::{label, text};
use crate::{interpreters, places, process};

/// What these schemas say against the objects; each is asked about once.
pub(crate) fn check<'a>(objects: impl Iterator<Item = &'a Value>) -> Result<Vec<String>> {
    let (mut seen, mut asked) = (BTreeSet::new(), Vec::new());
    for object in objects.filter(|object| WITHOUT_SCHEMA.contains(&text(&object["kind"]))) {
        if seen.insert(object.to_string()) {
            asked.push(object.clone());
        }
    }
    let mut violations = Vec::new();
    // One of each kind that is wrong, so that a schema which takes everything is found.
    let mut broken = Vec::new();
    for kind in WITHOUT_SCHEMA {
        match asked.iter().find(|object| object["kind"] == *kind) {
            Some(object) => {
                let mut object = object.clone();
                object["spec"] = json!("not a table");
                broken.push(object);
            }
            None => violations.push(format!("no rendering has a {kind}")),
        }
    }
    let all = [asked.as_slice(), broken.as_slice()].concat();
    let said = ask(&all)?;
    ensure!(said.len() == all.len(), "one answer for each object");
    let (about_asked, about_broken) = said.split_at(asked.len());
    for (object, said) in asked.iter().zip(about_asked) {
        if !said.is_empty() {
            violations.push(format!("{}: {said}", label(object)));
        }
    }
    for (object, said) in broken.iter().zip(about_broken) {
        if said.is_empty() {
            violations.push(format!(
                "{}: the schema takes a text for its spec",
                label(object)
            ));
        }
    }
    Ok(violations)
}

/// What is wrong with each object; nothing where all is well.
fn ask(objects: &[Value]) -> Result<Vec<String>> {
    let folder = installed()?;
    let list = folder.join("objects.json");
    fs::write(&list, serde_json::to_vec(objects)?)
        .with_context(|| format!("write {}", list.display()))?;
    let mut node = Command::new(interpreters::node()?.0);
    let lines = process::capture(node.arg(folder.join("validate.js")).arg(list))?;
    serde_json::from_str(&lines).context("what validate.js says")
}

/// The folder with our program and the packages it needs; npm is asked only where the list of packages has changed.
fn installed() -> Result<PathBuf> {
    let source = places::root().join("crates/xtask/src/chart/operators");
    let folder = places::scratch("chart-operators")?;
    let lock = fs::read(source.join("package-lock.json"))?;
    let done = folder.join("installed.json");
    for name in ["package.json", "package-lock.json", "validate.js"] {
        fs::copy(source.join(name), folder.join(name)).with_context(|| format!("copy {name}"))?;
    }
    if fs::read(&done).is_ok_and(|installed| installed == lock) {
        return Ok(folder);
    }
    let mut install = interpreters::node()?.1;
    install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    process::run(install.args(["--loglevel", "error"]).current_dir(&folder))?;
    fs::write(&done, lock)?;
    Ok(folder)
}
