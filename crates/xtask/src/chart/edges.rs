//! Who may talk to whom, read out of the NetworkPolicies: for presets exactly the list below, and every connection is allowed at
//! both ends or at neither.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};

use super::objects::{Pod, label, list, of_kind, pods, text};
use super::{Chart, RELEASE, cases};

/// Names are looked up by every pod of ours, which no list repeats.
const DNS: &str = "kubernetes.io/metadata.name=kube-system/k8s-app=kube-dns";

/// The edges of `values-small.yaml`.
pub(crate) const SMALL: &[&str] = &[
    "decode[simulated-main] → encode[simulated-main] 7444",
    "decode[simulated-main] → nats 4222",
    "encode[simulated-main] → nats 4222",
    "ingest → nats 4222",
    "kubernetes.io/metadata.name=monitoring/ → decode[simulated-main] 9464",
    "kubernetes.io/metadata.name=monitoring/ → encode[simulated-main] 9464",
    "kubernetes.io/metadata.name=monitoring/ → ingest 9464",
    "kubernetes.io/metadata.name=monitoring/ → preprocess[simulated-main] 9464",
    "namespace → ingest 8443",
    "preprocess[simulated-main] → nats 4222",
    "test → ingest 8443",
];

/// The edges of `values-hospital-edge.yaml`.
pub(crate) const HOSPITAL_EDGE: &[&str] = &[
    "ingest → 192.0.2.10/32 8443",
    "ingest → nats 4222",
    "kubernetes.io/metadata.name=monitoring/ → ingest 9464",
    "namespace → ingest 8443",
    "test → ingest 8443",
];

/// The edges of `values-gpu.yaml`.
pub(crate) const GPU: &[&str] = &[
    "decode[medgemma-4b-main] → 0.0.0.0/0 443",
    "decode[medgemma-4b-main] → encode[medgemma-4b-main] 7444",
    "decode[medgemma-4b-main] → nats 4222",
    "encode[medgemma-4b-main] → 0.0.0.0/0 443",
    "encode[medgemma-4b-main] → nats 4222",
    "ingest → 0.0.0.0/0 443",
    "ingest → nats 4222",
    "kubernetes.io/metadata.name=monitoring/ → decode[medgemma-4b-main] 9464",
    "kubernetes.io/metadata.name=monitoring/ → encode[medgemma-4b-main] 9464",
    "kubernetes.io/metadata.name=monitoring/ → ingest 9464",
    "kubernetes.io/metadata.name=monitoring/ → preprocess[medgemma-4b-main] 9464",
    "namespace → ingest 8443",
    "nats → nats 6222",
    "preprocess[medgemma-4b-main] → 0.0.0.0/0 443",
    "preprocess[medgemma-4b-main] → nats 4222",
    "test → ingest 8443",
];

/// A call from outside must keep its client's address where the values say so: `networkPolicy.clientPeers` lets it in by that.
pub(super) fn outside(chart: &Chart) -> Result<Vec<String>> {
    let service = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let values = json!({"ingest": {"service": service}});
    let base = chart.values("outside-base", &cases::base())?;
    let values = chart.values("outside", &values)?;
    let objects = chart.objects(RELEASE, "outside", &[base, values])?;
    let is_ours = |service: &&Value| service["spec"]["type"] == "LoadBalancer";
    let policy = of_kind(&objects, "Service").find(is_ours);
    let policy = policy.map(|service| text(&service["spec"]["externalTrafficPolicy"]));
    let is_kept = policy == Some("Local");
    Ok(Vec::from_iter((!is_kept).then(|| {
        format!("ingest.service.externalTrafficPolicy: Local becomes {policy:?}")
    })))
}

/// One direction of one policy.
#[derive(Clone, Copy)]
struct Way {
    rules: &'static str,
    peers: &'static str,
    policy_type: &'static str,
}

const IN: Way = Way {
    rules: "ingress",
    peers: "from",
    policy_type: "Ingress",
};
const OUT: Way = Way {
    rules: "egress",
    peers: "to",
    policy_type: "Egress",
};

/// Violations; none expected means that only the symmetry is checked.
pub(crate) fn check(objects: &[Value], expected: Option<&[&str]>) -> Vec<String> {
    let policies: Vec<&Value> = of_kind(objects, "NetworkPolicy").collect();
    let all_pods = pods(objects);
    if policies.is_empty() {
        return expected
            .map(|_| "no NetworkPolicy".to_owned())
            .into_iter()
            .collect();
    }
    let mut violations = Vec::new();
    for pod in &all_pods {
        let denied = policies.iter().any(|policy| {
            pod.is_selected(&policy["spec"]["podSelector"])
                && [IN, OUT].iter().all(|way| closes(policy, *way))
        });
        if !denied {
            violations.push(format!("{}: no policy closes it", label(pod.owner)));
        }
    }
    let (sent, received) = (
        edges(&policies, &all_pods, OUT),
        edges(&policies, &all_pods, IN),
    );
    let ours: BTreeSet<&str> = all_pods.iter().map(|pod| pod.component()).collect();
    let inner = |edge: &&String| {
        let (from, to) = edge.split_once(" → ").unwrap_or_default();
        ours.contains(component(from))
            && ours.contains(component(to.split_once(' ').unwrap_or_default().0))
    };
    for edge in sent.symmetric_difference(&received).filter(inner) {
        let open = if sent.contains(edge) {
            "sender"
        } else {
            "receiver"
        };
        violations.push(format!("{edge}: only the {open}'s policy has it"));
    }
    if let Some(expected) = expected {
        let found: BTreeSet<&str> = sent.union(&received).map(String::as_str).collect();
        let ports = ["53", "53/UDP"];
        let lookups = all_pods.iter().flat_map(|pod| {
            let from = end(*pod);
            ports.map(|port| format!("{from} → {DNS} {port}"))
        });
        let lookups: Vec<String> = lookups.collect();
        let expected = expected.iter().copied();
        let expected: BTreeSet<&str> = expected.chain(lookups.iter().map(String::as_str)).collect();
        violations.extend(
            found
                .difference(&expected)
                .map(|edge| format!("{edge}: an edge that is not in the list")),
        );
        violations.extend(
            expected
                .difference(&found)
                .map(|edge| format!("{edge}: in the list, but closed")),
        );
    }
    violations
}

/// What pods may send, an edge each.
pub(crate) fn sent(objects: &[Value]) -> BTreeSet<String> {
    let policies: Vec<&Value> = of_kind(objects, "NetworkPolicy").collect();
    edges(&policies, &pods(objects), OUT)
}

/// `decode[main]` → `decode`.
fn component(end: &str) -> &str {
    end.split('[').next().unwrap_or_default()
}

fn closes(policy: &Value, way: Way) -> bool {
    list(&policy["spec"]["policyTypes"]).any(|found| found == way.policy_type)
}

fn edges(policies: &[&Value], all_pods: &[Pod<'_>], way: Way) -> BTreeSet<String> {
    let mut edges = BTreeSet::new();
    for policy in policies {
        let selected = all_pods
            .iter()
            .filter(|pod| pod.is_selected(&policy["spec"]["podSelector"]));
        let us: BTreeSet<String> = selected.map(|pod| end(*pod)).collect();
        for rule in list(&policy["spec"][way.rules]) {
            // A rule without peers opens to everybody.
            let mut them: Vec<String> = list(&rule[way.peers])
                .flat_map(|peer| ends(peer, all_pods))
                .collect();
            if list(&rule[way.peers]).next().is_none() {
                them.push("everybody".to_owned());
            }
            let mut ports: Vec<String> = list(&rule["ports"]).map(port).collect();
            if ports.is_empty() {
                ports.push("every port".to_owned());
            }
            for (us, them) in us
                .iter()
                .flat_map(|us| them.iter().map(move |them| (us, them)))
            {
                let (from, to) = if way.rules == "egress" {
                    (us, them)
                } else {
                    (them, us)
                };
                edges.extend(ports.iter().map(|port| format!("{from} → {to} {port}")));
            }
        }
    }
    edges
}

fn port(port: &Value) -> String {
    match text(&port["protocol"]) {
        "TCP" => port["port"].to_string(),
        protocol => format!("{}/{protocol}", port["port"]),
    }
}

fn end(pod: Pod<'_>) -> String {
    match pod.labels["medfleet.dev/pool"].as_str() {
        Some(pool) => format!("{}[{pool}]", pod.component()),
        None => pod.component().to_owned(),
    }
}

/// Our pods that a peer names, or what it is in words.
fn ends(peer: &Value, all_pods: &[Pod<'_>]) -> Vec<String> {
    let words = |selector: &Value| {
        let labels = selector["matchLabels"].as_object();
        let each = labels
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", text(value)));
        each.collect::<Vec<_>>().join("+")
    };
    if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
        return vec![cidr.to_owned()];
    }
    let selector = &peer["podSelector"];
    match &peer["namespaceSelector"] {
        Value::Null if words(selector).is_empty() => vec!["namespace".to_owned()],
        Value::Null => all_pods
            .iter()
            .filter(|pod| pod.is_selected(selector))
            .map(|pod| end(*pod))
            .collect(),
        namespace => vec![format!("{}/{}", words(namespace), words(selector))],
    }
}
