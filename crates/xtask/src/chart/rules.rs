//! What must hold for every rendered object, whatever the values: least rights, probes, limits, a grace period that is
//! longer than the drain, secrets by reference, and references that lead somewhere.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::memory;
use super::objects::{Pod, label, list, name, of_kind, pods, text};

/// What a trigger is told, which KEDA's definition leaves open to each kind of trigger.
const PROMETHEUS_TRIGGER: &[&str] = &[
    "serverAddress",
    "query",
    "threshold",
    "activationThreshold",
    "ignoreNullValues",
];
const NATS_TRIGGER: &[&str] = &[
    "natsServerMonitoringEndpoint",
    "account",
    "stream",
    "consumer",
    "lagThreshold",
    "activationLagThreshold",
    "useHttps",
];

/// Bytes a second that a disk gives a nats-server which reads its streams back.
const READ_PER_SECOND: u64 = 64 << 20;

pub(crate) fn check(objects: &[Value]) -> Vec<String> {
    let mut violations = Vec::new();
    for secret in of_kind(objects, "Secret") {
        violations.push(format!("{}: a secret in the chart", label(secret)));
    }
    for pod in pods(objects) {
        let mut found = pod_rights(pod);
        found.extend(pod_references(pod, objects));
        found.extend(pod_grace(pod, objects));
        found.extend(nats_handover(pod));
        found.extend(nats_memory(pod));
        found.extend(nats_start(pod));
        found.extend(
            pod.containers()
                .flat_map(|container| container_rules(pod, container)),
        );
        violations.extend(
            found
                .into_iter()
                .map(|text| format!("{}: {text}", label(pod.owner))),
        );
    }
    violations.extend(selectors(objects));
    violations.extend(scalers(objects));
    violations.extend(objects.iter().filter_map(open_routes));
    violations
}

/// NATS clusters that anyone who reaches the route port could join, because the clients' token is not asked for there.
fn open_routes(object: &Value) -> Option<String> {
    let config = object["data"]["nats.conf"].as_str()?;
    let (_, cluster) = config.split_once("\ncluster {")?;
    let is_open = !cluster.contains("authorization {");
    is_open.then(|| format!("{}: a cluster that anybody can join", label(object)))
}

/// `what` for each pair that does not hold.
fn unmet(rules: &[(bool, &str)]) -> Vec<String> {
    rules
        .iter()
        .filter(|(holds, _)| !holds)
        .map(|(_, what)| (*what).to_owned())
        .collect()
}

fn pod_rights(pod: Pod<'_>) -> Vec<String> {
    let spec = pod.spec;
    let absent = |key: &str| spec[key].is_null();
    let security = &spec["securityContext"];
    let no_host_paths = list(&spec["volumes"]).all(|volume| volume["hostPath"].is_null());
    unmet(&[
        (
            spec["automountServiceAccountToken"] == false,
            "mounts the token of its service account",
        ),
        (
            spec["enableServiceLinks"] == false,
            "takes variables of other services, which ours read as settings",
        ),
        (security["runAsNonRoot"] == true, "may run as root"),
        (
            security["seccompProfile"]["type"] == "RuntimeDefault",
            "has no seccomp profile",
        ),
        (
            absent("hostNetwork") && absent("hostPID") && absent("hostIPC") && no_host_paths,
            "uses the host",
        ),
        (
            spec["terminationGracePeriodSeconds"].is_u64(),
            "states no grace period",
        ),
    ])
}

fn container_rules(pod: Pod<'_>, container: &Value) -> Vec<String> {
    let security = &container["securityContext"];
    let resources = &container["resources"];
    let image = text(&container["image"]);
    let versioned = image.contains("@sha256:")
        || image
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains(':') && !last.ends_with(":latest"));
    // One that ends before the service starts is asked nothing.
    let is_first = pod.is_first(container);
    let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
    let path = |probe: &str| text(&container[probe]["httpGet"]["path"]);
    let ours = ["ingest", "preprocess", "encode", "decode"].contains(&pod.component());
    let paths = !ours
        || is_first
        || (path("readinessProbe") == "/readyz"
            && path("startupProbe") == "/readyz"
            && path("livenessProbe") == "/healthz");
    let plain = list(&container["env"]).filter(|variable| {
        let name = text(&variable["name"]).to_ascii_lowercase();
        ["token", "password", "secret", "key"]
            .iter()
            .any(|word| name.ends_with(word))
            && variable["value"].is_string()
    });
    let mut violations = unmet(&[
        (
            security["runAsNonRoot"] == true,
            "a container may run as root",
        ),
        (
            security["readOnlyRootFilesystem"] == true,
            "a container may write its root file system",
        ),
        (
            security["allowPrivilegeEscalation"] == false,
            "a container may gain privileges",
        ),
        (security["privileged"] != true, "a privileged container"),
        (
            security["capabilities"] == json!({"drop": ["ALL"]}),
            "a container keeps capabilities",
        ),
        (
            !resources["requests"]["cpu"].is_null() && !resources["requests"]["memory"].is_null(),
            "a container requests no CPU or memory",
        ),
        (
            !resources["limits"]["memory"].is_null(),
            "a container has no memory limit",
        ),
        (versioned, "an image without a version"),
        (
            !pod.is_lasting() || is_first || probes.iter().all(|probe| !container[probe].is_null()),
            "a container lacks a probe",
        ),
        (paths, "probes of other pages than the admin port has"),
    ]);
    violations
        .extend(plain.map(|variable| format!("{}: a secret in plain text", variable["name"])));
    violations
}

/// Mounts name volumes; volumes name objects of the chart, or secrets and claims outside.
fn pod_references(pod: Pod<'_>, objects: &[Value]) -> Vec<String> {
    let volumes: BTreeSet<&str> = list(&pod.spec["volumes"])
        .chain(list(&pod.owner["spec"]["volumeClaimTemplates"]).map(|claim| &claim["metadata"]))
        .map(|volume| text(&volume["name"]))
        .collect();
    let mounted: BTreeSet<&str> = pod
        .containers()
        .flat_map(|container| list(&container["volumeMounts"]))
        .map(|mount| text(&mount["name"]))
        .collect();
    let mut violations: Vec<String> = mounted
        .symmetric_difference(&volumes)
        .map(|volume| format!("volume {volume} is mounted but not there, or there but not mounted"))
        .collect();
    for volume in list(&pod.spec["volumes"]) {
        if let Some(wanted) = volume["configMap"]["name"].as_str()
            && !of_kind(objects, "ConfigMap").any(|map| name(map) == wanted)
        {
            violations.push(format!("config map {wanted} is not in the chart"));
        }
        if volume["secret"].is_object()
            && (text(&volume["secret"]["secretName"]).is_empty()
                || volume["secret"]["items"].is_null())
        {
            violations.push(format!(
                "volume {}: a secret without a name, or all of its keys",
                volume["name"]
            ));
        }
    }
    let account = text(&pod.spec["serviceAccountName"]);
    if !of_kind(objects, "ServiceAccount").any(|found| name(found) == account) {
        violations.push(format!("service account {account} is not in the chart"));
    }
    violations
}

/// The pod's grace period is longer than the drain in its own configuration, with the pause before it.
fn pod_grace(pod: Pod<'_>, objects: &[Value]) -> Vec<String> {
    let Some(config) = config_of(pod, objects) else {
        return Vec::new();
    };
    let Ok(config) = config.parse::<toml::Table>() else {
        return vec!["its configuration is not TOML".to_owned()];
    };
    let drain = config["process"]["drain"]
        .as_str()
        .and_then(seconds)
        .unwrap_or(u64::MAX);
    let pause = pod
        .containers()
        .filter_map(|container| container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64())
        .max()
        .unwrap_or(0);
    let grace = pod.spec["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap_or(0);
    let mut violations = Vec::new();
    if grace <= drain.saturating_add(pause) {
        violations.push(format!(
            "a grace period of {grace} s for a drain of {drain} s after a pause of {pause} s"
        ));
    }
    violations.extend(plain_secrets("", &config));
    violations
}

/// A server of several hands its leaders and clients over before it ends; one alone has nobody to hand them to.
fn nats_handover(pod: Pod<'_>) -> Vec<String> {
    if pod.component() != "nats" {
        return Vec::new();
    }
    let is_one_of_several = pod.owner["spec"]["replicas"].as_u64() > Some(1);
    let hands_over = pod
        .containers()
        .any(|container| container["lifecycle"]["preStop"]["exec"].is_object());
    unmet(&[
        (
            hands_over || !is_one_of_several,
            "a server of several ends without handing over",
        ),
        (
            !hands_over || is_one_of_several,
            "a single server waits before it ends, and nobody takes over",
        ),
    ])
}

/// A nats-server is told its memory limit (`GOMEMLIMIT`), by which it collects garbage; otherwise it may be killed for exceeding
/// it.
fn nats_memory(pod: Pod<'_>) -> Option<String> {
    let mut variables = pod
        .containers()
        .flat_map(|container| list(&container["env"]));
    let origin = json!({"resourceFieldRef": {"resource": "limits.memory"}});
    let is_told = variables.any(|one| one["name"] == "GOMEMLIMIT" && one["valueFrom"] == origin);
    let is_left = pod.component() == "nats" && !is_told;
    is_left.then(|| "a server that knows nothing of its memory's limit".to_owned())
}

/// A nats-server that was killed reads all that its streams hold before it is ready (docs/operations.md). A probe that gives up
/// before kills it again, and the next start begins anew.
fn nats_start(pod: Pod<'_>) -> Option<String> {
    let claim = list(&pod.owner["spec"]["volumeClaimTemplates"]).next()?;
    let storage = text(&claim["spec"]["resources"]["requests"]["storage"]);
    let needed = memory::bytes(storage)? / READ_PER_SECOND;
    let probe = &pod.containers().next()?["startupProbe"];
    let each = probe["periodSeconds"].as_u64()?;
    let given = each.checked_mul(probe["failureThreshold"].as_u64()?)?;
    (given < needed).then(|| format!("is killed after {given} s of a start that may take {needed}"))
}

/// The service's configuration file, where it has one.
pub(crate) fn config_of<'a>(pod: Pod<'_>, objects: &'a [Value]) -> Option<&'a str> {
    let volume = list(&pod.spec["volumes"]).find(|volume| volume["name"] == "config")?;
    let map = of_kind(objects, "ConfigMap")
        .find(|map| map["metadata"]["name"] == volume["configMap"]["name"])?;
    map["data"]["config.toml"].as_str()
}

/// Whole seconds of `25s`, `2m`.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor = [("s", 1), ("m", 60), ("h", 3600)]
        .iter()
        .find(|(name, _)| *name == unit)?
        .1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Settings that are secrets must be tables that name a file.
fn plain_secrets(path: &str, table: &toml::Table) -> Vec<String> {
    const SECRETS: &[&str] = &["token", "password", "access_key_id", "secret_access_key"];
    let mut violations = Vec::new();
    for (key, value) in table {
        let path = format!("{path}.{key}");
        let secret = SECRETS.contains(&key.as_str()) || path == ".store.key";
        match value {
            toml::Value::Table(inner)
                if secret && inner.len() == 1 && inner.contains_key("file") => {}
            toml::Value::Table(inner) if !secret => violations.extend(plain_secrets(&path, inner)),
            _ if secret => violations.push(format!("{path}: a secret in plain text")),
            _ => {}
        }
    }
    violations
}

/// Services, budgets and policies select pods that exist.
fn selectors(objects: &[Value]) -> Vec<String> {
    let pods = pods(objects);
    let mut violations = Vec::new();
    for object in objects {
        let selector = match text(&object["kind"]) {
            "Service" => json!({"matchLabels": object["spec"]["selector"]}),
            "PodDisruptionBudget" | "Deployment" | "StatefulSet" | "PodMonitor" => {
                object["spec"]["selector"].clone()
            }
            "NetworkPolicy" => object["spec"]["podSelector"].clone(),
            _ => continue,
        };
        let selected = pods.iter().filter(|pod| pod.is_selected(&selector)).count();
        let one = matches!(
            text(&object["kind"]),
            "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "Service"
        );
        if selected == 0 || (one && selected != 1) {
            violations.push(format!("{}: selects {selected} workloads", label(object)));
        }
    }
    violations
}

/// What is scaled has one scaler and no fixed number; a scaler has a target.
fn scalers(objects: &[Value]) -> Vec<String> {
    let mut violations = Vec::new();
    let scalers: Vec<&Value> = of_kind(objects, "HorizontalPodAutoscaler")
        .chain(of_kind(objects, "ScaledObject"))
        .collect();
    for scaler in &scalers {
        let target = text(&scaler["spec"]["scaleTargetRef"]["name"]);
        if !of_kind(objects, "Deployment").any(|found| name(found) == target) {
            violations.push(format!(
                "{}: scales {target}, which is not there",
                label(scaler)
            ));
        }
    }
    for deployment in of_kind(objects, "Deployment") {
        let count = scalers
            .iter()
            .filter(|scaler| text(&scaler["spec"]["scaleTargetRef"]["name"]) == name(deployment))
            .count();
        let fixed = !deployment["spec"]["replicas"].is_null();
        if count + usize::from(fixed) != 1 {
            violations.push(format!(
                "{}: {count} scalers, and a fixed number of replicas: {fixed}",
                label(deployment)
            ));
        }
    }
    for scaled in of_kind(objects, "ScaledObject") {
        violations.extend(
            scaled_object(&scaled["spec"])
                .into_iter()
                .map(|text| format!("{}: {text}", label(scaled))),
        );
    }
    violations
}

fn scaled_object(spec: &Value) -> Vec<String> {
    let mut violations = Vec::new();
    let triggers: Vec<&Value> = list(&spec["triggers"]).collect();
    if triggers
        .first()
        .is_none_or(|first| first["type"] != "prometheus")
    {
        violations.push("the first trigger is not the backlog in Prometheus".to_owned());
    }
    let (fallback, most) = (&spec["fallback"]["replicas"], &spec["maxReplicaCount"]);
    if fallback.as_u64() > most.as_u64() {
        violations.push(format!(
            "{fallback} workers where its metric fails, at most {most}"
        ));
    }
    for trigger in triggers {
        let metadata = &trigger["metadata"];
        violations.extend(match text(&trigger["type"]) {
            "prometheus" => unknown(metadata, PROMETHEUS_TRIGGER),
            "nats-jetstream" => unknown(metadata, NATS_TRIGGER),
            other => vec![format!("a trigger of type {other}")],
        });
        let texts = metadata
            .as_object()
            .is_some_and(|all| all.values().all(Value::is_string));
        if !texts {
            violations.push("metadata of a trigger must be texts".to_owned());
        }
    }
    violations
}

fn unknown(table: &Value, known: &[&str]) -> Vec<String> {
    let keys = table.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| !known.contains(&key.as_str()))
        .map(|key| format!("unknown field {key}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Vec<Value> {
        let security = json!({"runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                              "capabilities": {"drop": ["ALL"]}});
        let probe = |path: &str| json!({"httpGet": {"path": path, "port": "admin"}});
        let spec = json!({
            "serviceAccountName": "a", "automountServiceAccountToken": false, "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 40,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"image": "x/y:1", "securityContext": security,
                "resources": {"requests": {"cpu": 1, "memory": 1}, "limits": {"memory": 1}},
                "startupProbe": probe("/readyz"), "readinessProbe": probe("/readyz"), "livenessProbe": probe("/healthz"),
                "volumeMounts": [{"name": "config"}]}],
            "volumes": [{"name": "config", "configMap": {"name": "m"}}],
        });
        let labels = json!({"app.kubernetes.io/component": "encode"});
        let config = "[process]\ndrain = \"25s\"\n[store.key]\nfile = \"/k\"\n";
        vec![
            json!({"kind": "ServiceAccount", "metadata": {"name": "a"}}),
            json!({"kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"config.toml": config}}),
            json!({"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1,
                "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}}),
        ]
    }

    #[test]
    fn a_good_workload_passes_and_each_slip_is_found() {
        assert_eq!(check(&good()), Vec::<String>::new());
        let slips: &[(&str, Value, &str)] = &[
            (
                "/2/spec/template/spec/enableServiceLinks",
                json!(true),
                "variables of other services",
            ),
            (
                "/2/spec/template/spec/terminationGracePeriodSeconds",
                json!(25),
                "grace period of 25 s",
            ),
            (
                "/2/spec/template/spec/containers/0/image",
                json!("x/y:latest"),
                "without a version",
            ),
            (
                "/2/spec/template/spec/containers/0/securityContext/capabilities",
                json!({}),
                "capabilities",
            ),
            (
                "/2/spec/template/spec/containers/0/readinessProbe",
                Value::Null,
                "lacks a probe",
            ),
            (
                "/2/spec/template/spec/containers/0/volumeMounts/0/name",
                json!("other"),
                "mounted but not there",
            ),
            (
                "/2/spec/selector/matchLabels",
                json!({"x": "y"}),
                "selects 0",
            ),
            ("/2/spec/replicas", Value::Null, "0 scalers"),
            (
                "/1/data/config.toml",
                json!("[process]\ndrain = \"25s\"\n[store]\nkey = \"k\"\n"),
                "plain text",
            ),
        ];
        for (pointer, value, expected) in slips {
            let mut objects = Value::from(good());
            *objects.pointer_mut(pointer).expect("is there") = value.clone();
            let found = check(objects.as_array().expect("is a list"));
            assert!(
                found.iter().any(|text| text.contains(expected)),
                "{pointer}: {found:?}"
            );
        }
    }

    #[test]
    fn only_a_server_of_several_hands_over() {
        let found = |replicas: u64, pre_stop: Value| {
            let owner = json!({"spec": {"replicas": replicas}});
            let labels = json!({"app.kubernetes.io/component": "nats"});
            let spec = json!({"containers": [{"lifecycle": {"preStop": pre_stop}}]});
            let pod = Pod {
                owner: &owner,
                labels: &labels,
                spec: &spec,
            };
            nats_handover(pod).len()
        };
        let exec = || json!({"exec": {"command": ["nats-server"]}});
        assert_eq!((found(3, exec()), found(1, Value::Null)), (0, 0));
        assert_eq!((found(3, Value::Null), found(1, exec())), (1, 1));
    }

    #[test]
    fn a_server_knows_how_much_memory_it_has() {
        let found = |component: &str, env: Value| {
            let labels = json!({"app.kubernetes.io/component": component});
            let spec = json!({"containers": [{"env": env}]});
            let pod = Pod {
                owner: &Value::Null,
                labels: &labels,
                spec: &spec,
            };
            nats_memory(pod).is_some()
        };
        let told = |resource: &str| {
            let origin = json!({"resourceFieldRef": {"resource": resource}});
            json!([{"name": "GOMEMLIMIT", "valueFrom": origin}])
        };
        assert!(found("nats", Value::Null) && found("nats", told("limits.cpu")));
        assert!(!found("nats", told("limits.memory")) && !found("encode", Value::Null));
    }

    #[test]
    fn a_server_has_time_to_read_its_streams_back() {
        let found = |storage: &str, failures: u64| {
            let claim = json!({"spec": {"resources": {"requests": {"storage": storage}}}});
            let owner = json!({"spec": {"volumeClaimTemplates": [claim]}});
            let probe = json!({"periodSeconds": 10, "failureThreshold": failures});
            let spec = json!({"containers": [{"startupProbe": probe}]});
            let pod = Pod {
                owner: &owner,
                labels: &Value::Null,
                spec: &spec,
            };
            nats_start(pod).is_some()
        };
        assert!(!found("20Gi", 90) && !found("200Gi", 320));
        assert!(found("200Gi", 90) && found("200Gi", 319));
    }

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("25s"), Some(25));
        assert_eq!(seconds("2m"), Some(120));
        assert_eq!(seconds("25"), None);
    }
}
