//! Where pods run: copies apart from each other, whatever an operator says besides, devices by the runtime that gives them, and
//! threads on cores of their own where that is asked for.

use anyhow::Result;
use serde_json::{Value, json};

use super::objects::{Pod, list, pods};
use super::{Chart, RELEASE, cases, rules};

const NODES: &str = "kubernetes.io/hostname";

/// What is wrong with where they run.
pub(super) fn check(chart: &Chart) -> Result<Vec<String>> {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let storage = json!([{"key": "storage", "operator": "Exists"}]);
    let nodes =
        json!({"nodeAffinity": {required: {"nodeSelectorTerms": [{"matchExpressions": storage}]}}});
    let objects = render(chart, "placed", &nodes)?;
    let mut violations = Vec::new();
    for pod in pods(&objects) {
        let component = pod.component();
        let spread = list(&pod.spec["topologySpreadConstraints"]);
        if pod.is_lasting()
            && !spread
                .map(|one| &one["topologyKey"])
                .any(|key| key == NODES)
        {
            violations.push(format!(
                "{component}: its pods may share a node with others free"
            ));
        }
        let affinity = &pod.spec["affinity"];
        let apart = &affinity["podAntiAffinity"][required][0]["topologyKey"];
        if component == "nats" && (apart != NODES || affinity["nodeAffinity"].is_null()) {
            violations.push(format!("nats: its servers may share a node, by {affinity}"));
        }
        let given = pod.spec["runtimeClassName"].as_str();
        let expected = (component == "encode").then_some("nvidia");
        if given != expected {
            violations.push(format!("{component}: {given:?} is its RuntimeClass"));
        }
    }
    // Who runs three on one node says so.
    let anywhere =
        json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    let objects = render(chart, "together", &anywhere)?;
    let servers = pods(&objects).into_iter();
    let mut servers = servers.filter(|pod: &Pod<'_>| pod.component() == "nats");
    let is_ours = servers.all(|pod| pod.spec["affinity"] == anywhere);
    violations
        .extend((!is_ours).then(|| "nats.own.affinity: its podAntiAffinity is lost".to_owned()));
    violations.extend(threads(chart)?);
    Ok(violations)
}

/// Pods that keep their threads on cores other than by what they are told.
fn threads(chart: &Chart) -> Result<Vec<String>> {
    let model =
        json!({"kind": "folder", "dtype": "bf16", "path": "m", "volume": {"claimName": "m"}});
    let cores = json!({"cpu": 4, "memory": "8Gi"});
    let cores = json!({"requests": cores, "limits": cores});
    let decode = json!({"device": {"pinThreads": true}, "resources": cores});
    let values = json!({"pools": {"main": {"model": model, "decode": decode}}});
    let base = chart.values("placed-base", &cases::base())?;
    let values = [base, chart.values("pinned", &values)?];
    let objects = chart.objects(RELEASE, "pinned", &values)?;
    let pods = pods(&objects).into_iter();
    let wrong = pods.filter(|pod| {
        let config = rules::config_of(*pod, &objects).unwrap_or_default();
        config.contains("pin_threads = true") != (pod.component() == "decode")
    });
    Ok(wrong
        .map(|pod| format!("{}: wrong about pinned threads", pod.component()))
        .collect())
}

/// Devices that a preset asks for and a node may well not offer: whether GPUs are divided (MIG) is up to their owner.
pub(super) fn devices(objects: &[Value]) -> Vec<String> {
    let mut violations = Vec::new();
    for pod in pods(objects) {
        let limits = pod.containers().map(|one| &one["resources"]["limits"]);
        let asked = limits
            .filter_map(Value::as_object)
            .flat_map(|all| all.keys());
        let slices = asked.filter(|name| name.contains("/mig-"));
        violations.extend(slices.map(|name| {
            let component = pod.component();
            format!("{component}: asks for {name}, and waits for ever where cards are not cut so")
        }));
    }
    violations
}

/// With this affinity of NATS, under a name for the files that are made of it.
fn render(chart: &Chart, name: &str, affinity: &Value) -> Result<Vec<Value>> {
    let values = json!({
        "nats": {"own": {"affinity": affinity}},
        "pools": {"main": {"encode": {"runtimeClassName": "nvidia"}}},
    });
    let base = chart.values("placed-base", &cases::base())?;
    chart.objects(RELEASE, name, &[base, chart.values(name, &values)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_card_is_no_default() {
        let found = |resource: &str| {
            let limits = json!({resource: 1, "memory": "16Gi"});
            let spec = json!({"containers": [{"resources": {"limits": limits}}]});
            let pod =
                json!({"kind": "Deployment", "spec": {"template": {"metadata": {}, "spec": spec}}});
            devices(&[pod]).len()
        };
        assert_eq!(found("nvidia.com/gpu"), 0);
        assert_eq!(found("nvidia.com/mig-1g.10gb"), 1);
    }
}
