//! A model that is fetched from a bucket, or checked in its volume, before a service starts: by whom, from where, and by which
//! digest. And what a start keeps of it for the next.

use anyhow::Result;
use serde_json::{Value, json};

use super::objects::{Pod, list, name, of_kind, pods, text};
use super::{Chart, RELEASE, edges, rules};

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
    violations.extend(cache(chart)?);
    Ok(violations)
}

/// What starts keep: in a pod by default, and in a claim where one is asked for, which the chart makes or which is there. Only a
/// decoder that quantises keeps what it made, and only where there is room for it.
fn cache(chart: &Chart) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for (name, weights, cache, claim) in [
        ("kept-nowhere", "q8_0", json!({}), None),
        ("kept-plain", "plain", json!({"claimName": "c"}), Some("c")),
        ("kept-there", "q8_0", json!({"claimName": "c"}), Some("c")),
        (
            "kept-made",
            "q8_0",
            json!({"sizeGiB": 6}),
            Some("y-medfleet-cache-main"),
        ),
    ] {
        let model = json!({
            "kind": "folder", "dtype": "bf16", "path": "m", "volume": {"claimName": "m"}, "weights": weights, "cache": cache,
        });
        let pools =
            json!({"pools": {"main": {"aliases": ["m"], "kind": "writer", "model": model}}});
        let objects = chart.objects(RELEASE, name, &[chart.values(name, &pools)?])?;
        for pod in pods(&objects).into_iter().filter(|pod| has_model(*pod)) {
            let volume = list(&pod.spec["volumes"]).find(|volume| volume["name"] == "digests");
            let kept =
                volume.and_then(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
            let config = rules::config_of(pod, &objects).unwrap_or_default();
            let quantised = config.contains("quantised_cache = ");
            let expected = pod.component() == "decode" && weights == "q8_0" && claim.is_some();
            if kept != claim || quantised != expected {
                let component = pod.component();
                violations.push(format!(
                    "{name}: {component} keeps digests in {kept:?}, and what it quantised: {quantised}"
                ));
            }
        }
        let made = of_kind(&objects, "PersistentVolumeClaim").map(self::name);
        let expected = claim.filter(|claim| *claim != "c");
        if made.collect::<Vec<_>>() != Vec::from_iter(expected) {
            violations.push(format!("{name}: another claim than {expected:?} is made"));
        }
    }
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
