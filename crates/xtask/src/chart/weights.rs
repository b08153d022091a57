//! A model that is fetched from a bucket, or checked in its volume, before a service starts: by whom, from where, and by which
//! digest.

use anyhow::Result;
use serde_json::{Value, json};

use super::objects::{Pod, list, pods, text};
use super::{Chart, RELEASE, edges};

/// Where the bucket is.
const PEER: &str = "192.0.2.7/32";

/// What is wrong with how models come into pods.
pub(crate) fn check(chart: &Chart) -> Result<Vec<String>> {
    let sha256 = "b2".repeat(32);
    let pulled = json!({"prefix": "models/m", "sizeGiB": 8, "sha256": sha256});
    let objects = render(chart, ("pulled", "folder"), &pulled)?;
    let mut violations = containers(&objects, "fetch", &sha256);
    for pod in pods(&objects).into_iter().filter(|pod| has_model(*pod)) {
        let volume = list(&pod.spec["volumes"]).find(|volume| volume["name"] == "model");
        if volume.is_none_or(|volume| volume["emptyDir"]["sizeLimit"] != "8Gi") {
            violations.push(format!(
                "{}: no room of its own for the model",
                pod.component()
            ));
        }
    }
    for container in pods(&objects).into_iter().flat_map(Pod::containers) {
        let asked = &container["resources"]["requests"]["ephemeral-storage"];
        if container["name"] == "weights" && *asked != "8Gi" {
            violations.push(format!("a node with room for {asked} is good for 8 GiB"));
        }
    }
    let expected = ["decode", "encode"].map(|stage| format!("{stage}[main] → {PEER} 9000"));
    let sent = edges::sent(&objects).into_iter();
    let found: Vec<String> = sent.filter(|edge| edge.contains(PEER)).collect();
    if found != expected {
        violations.push(format!(
            "the models' bucket is reached by {found:?}, not {expected:?}"
        ));
    }
    let claimed = json!({"claimName": "models", "sha256": sha256});
    let objects = render(chart, ("checked", "folder"), &claimed)?;
    violations.extend(containers(&objects, "check", &sha256));
    let objects = render(
        chart,
        ("trusted", "folder"),
        &json!({"claimName": "models"}),
    )?;
    violations.extend(pods(&objects).into_iter().filter_map(|pod| {
        let first = &pod.spec["initContainers"];
        (!first.is_null()).then(|| format!("{}: checks a model by no digest", pod.component()))
    }));
    let objects = render(chart, ("unused", "simulated"), &pulled)?;
    let sent = edges::sent(&objects).into_iter();
    violations.extend(sent.filter(|edge| edge.ends_with(" 9000")).map(|edge| {
        format!("{edge}: a simulated model is fetched from nowhere, whatever its volume says")
    }));
    Ok(violations)
}

/// A pool whose model comes so, under a name for the files that are made of it.
fn render(chart: &Chart, (name, kind): (&str, &str), volume: &Value) -> Result<Vec<Value>> {
    let model = json!({"kind": kind, "dtype": "bf16", "path": "m", "volume": volume});
    let values = json!({
        "modelStore": {"bucket": "models", "region": "eu-central-1", "endpoint": "https://s3.example:9000"},
        "networkPolicy": {"modelPeers": [{"ipBlock": {"cidr": PEER}}]},
        "pools": {"main": {"aliases": ["m"], "kind": "writer", "model": model}},
    });
    chart.objects(RELEASE, name, &[chart.values(name, &values)?])
}

fn has_model(pod: Pod<'_>) -> bool {
    ["encode", "decode"].contains(&pod.component())
}

/// Encode and decode have one container that does it with that digest, and mount the model without writing to it.
fn containers(objects: &[Value], what: &str, sha256: &str) -> Vec<String> {
    let mut violations = Vec::new();
    for pod in pods(objects) {
        let first: Vec<&Value> = list(&pod.spec["initContainers"]).collect();
        let does = |container: &&Value| {
            let arguments: Vec<&str> = list(&container["args"]).map(text).collect();
            arguments.starts_with(&["weights", what, "/models/m"])
                && arguments.contains(&format!("--sha256={sha256}").as_str())
        };
        let good = match has_model(pod) {
            true => first.len() == 1 && first.iter().all(does),
            false => first.is_empty(),
        };
        if !good {
            violations.push(format!(
                "{}: {what} of its model: {first:?}",
                pod.component()
            ));
        }
        let services = list(&pod.spec["containers"]);
        let mounts = services.flat_map(|container| list(&container["volumeMounts"]));
        for mount in mounts.filter(|mount| mount["name"] == "model") {
            if mount["readOnly"] != true {
                violations.push(format!("{}: may write its model", pod.component()));
            }
        }
    }
    violations
}
