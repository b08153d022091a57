//! Checks objects of KEDA, the Prometheus operator and cert-manager strictly against these projects' own resource definitions. No
//! package registry has the definitions, but one has Python models generated from them, which `definitions.py` reads.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::objects::{label, text};
use super::python;
use crate::{fetch, places, process};

/// Kinds that Kubernetes' own schemas do not have, and what is fetched for their projects'.
const MODELS: &[(&str, &str)] = &[
    ("Certificate", "cert-manager-models"),
    ("PodMonitor", "prometheus-operator-models"),
    ("PrometheusRule", "prometheus-operator-models"),
    ("ScaledObject", "keda-models"),
];

/// Whether a kind is looked at here.
pub(crate) fn has(kind: &str) -> bool {
    MODELS.iter().any(|(known, _)| *known == kind)
}

/// What these definitions say against the objects; each is asked about once.
pub(crate) fn check<'a>(objects: impl Iterator<Item = &'a Value>) -> Result<Vec<String>> {
    let (mut seen, mut asked) = (BTreeSet::new(), Vec::new());
    for object in objects.filter(|object| has(text(&object["kind"]))) {
        if seen.insert(object.to_string()) {
            asked.push(object.clone());
        }
    }
    let mut violations = Vec::new();
    // Two wrong objects of each kind, to find a definition that accepts everything.
    let mut broken = Vec::new();
    for (kind, _) in MODELS {
        match asked.iter().find(|object| object["kind"] == *kind) {
            Some(object) => {
                let (mut without_table, mut with_unknown) = (object.clone(), object.clone());
                without_table["spec"] = json!("not a table");
                with_unknown["spec"]["unknown"] = json!(true);
                broken.extend([without_table, with_unknown]);
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
            let (label, spec) = (label(object), &object["spec"]);
            violations.push(format!("{label}: the definition takes this spec: {spec}"));
        }
    }
    Ok(violations)
}

/// What a cluster has of a kind where its project is installed.
pub(crate) fn definition(kind: &str) -> Result<Value> {
    let mut program = python("definitions.py")?;
    program.arg("define").args(models(|known| known == kind)?);
    let said = process::capture(&mut program)?;
    serde_json::from_str(&said).context("what definitions.py says")
}

/// What is wrong with each object; nothing where all is well.
fn ask(objects: &[Value]) -> Result<Vec<String>> {
    let list = places::scratch("chart-operators")?.join("objects.json");
    fs::write(&list, serde_json::to_vec(objects)?)
        .with_context(|| format!("write {}", list.display()))?;
    let mut program = python("definitions.py")?;
    program.arg("check").arg(list).args(models(|_| true)?);
    let lines = process::capture(&mut program)?;
    serde_json::from_str(&lines).context("what definitions.py says")
}

/// Kinds with the file that their models are in.
fn models(is_wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let wanted = MODELS.iter().filter(|(kind, _)| is_wanted(kind));
    wanted
        .map(|(kind, models)| Ok(format!("{kind}={}", fetch::file(models)?.display())))
        .collect()
}
