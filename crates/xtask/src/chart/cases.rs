//! What is rendered: every preset as it is, and a sample of values in which every two choices of different axes meet.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Chart, edges, users};

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) values: Vec<PathBuf>,
    pub(crate) is_preset: bool,
    /// The exact edges it must have, where they are written down.
    pub(crate) edges: Option<&'static [&'static str]>,
}

/// An axis: its name and its choices, each a name and values.
type Axis = (&'static str, Vec<(&'static str, Value)>);

pub(crate) fn all(chart: &Chart) -> Result<Vec<Case>> {
    let presets = [
        ("small", Some(edges::SMALL)),
        ("gpu", Some(edges::GPU)),
        ("airgap", None),
        ("hospital-edge", Some(edges::HOSPITAL_EDGE)),
    ];
    let mut cases: Vec<Case> = presets
        .map(|(name, edges)| Case {
            name: name.to_owned(),
            values: vec![chart.folder.join(format!("values-{name}.yaml"))],
            is_preset: true,
            edges,
        })
        .into();
    cases.push(Case {
        name: "hospital-edge-tokens".to_owned(),
        values: vec![
            chart.folder.join("values-hospital-edge.yaml"),
            chart.values("tokens-travel", &tokens_travel())?,
        ],
        is_preset: false,
        edges: None,
    });
    let axes = axes();
    let base = chart.values("base", &base())?;
    for (index, picks) in pairwise(&axes).iter().enumerate() {
        let mut values = vec![base.clone()];
        let mut names = Vec::new();
        for ((axis, choices), pick) in axes.iter().zip(picks) {
            let (choice, given) = &choices[*pick];
            values.push(chart.values(&format!("{axis}-{choice}"), given)?);
            names.push(*choice);
        }
        cases.push(Case {
            name: format!("sample-{index}-{}", names.join("-")),
            values,
            is_preset: false,
            edges: None,
        });
    }
    Ok(cases)
}

/// An edge where the images of a tenant stay.
fn tokens_travel() -> Value {
    json!({
        "ingest": {"edge": {"aliases": [], "config": {"tenants": {"st-mary": {"travels": "tokens"}}}}},
        "pools": {"site": {"aliases": ["medgemma-4b"], "kind": "writer", "model": {"kind": "simulated"}}},
    })
}

/// What every sample has: peers for whatever it may reach, and a pool.
pub(crate) fn base() -> Value {
    let peers = json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}]);
    json!({
        "process": {"otlpEndpoint": "http://collector.observability:4318", "otlpProtocol": "http/protobuf"},
        "networkPolicy": {"storePeers": peers, "modelPeers": peers, "natsPeers": peers, "otlpPeers": peers},
        "modelStore": {"bucket": "models", "region": "us-east-1"},
        "pools": {"main": {"aliases": ["a model", "medgemma-4b"], "kind": "writer", "model": {"kind": "simulated"}}},
        "ingest": {"defaultModel": "medgemma-4b"},
    })
}

fn axes() -> Vec<Axis> {
    let s3 = json!({"kind": "s3", "s3": {"region": "eu-central-1", "endpoint": "https://s3.example:9000",
                    "credentials": {"secretName": "s3"}, "ca": {"secretName": "s3-ca"}}});
    let role = json!({"kind": "s3", "s3": {"region": "eu-central-1"}});
    // Certificates with `client_ca` are made by cert-manager, those of the other axes, too.
    let tls = |client_ca: bool| {
        json!({"ingest": {"tls": {"enabled": true, "secretName": "api-tls", "clientCa": client_ca}},
               "certManager": {"enabled": client_ca, "issuer": {"kind": "ClusterIssuer", "name": "n"}, "ingestNames": ["fleet.example"]},
               "helmTest": {"enabled": !client_ca, "ca": {"secretName": "api-tls"}}})
    };
    let none = || json!({});
    vec![
        ("nats", nats()),
        (
            "store",
            vec![
                ("jetstream", none()),
                ("s3", json!({"store": s3})),
                ("role", json!({"store": role})),
            ],
        ),
        (
            "api",
            vec![("plain", none()), ("tls", tls(false)), ("mtls", tls(true))],
        ),
        ("scale", scale()),
        ("model", model()),
        (
            "policy",
            vec![
                ("deny", none()),
                ("open", json!({"networkPolicy": {"enabled": false}})),
            ],
        ),
        (
            "tokens",
            vec![
                ("direct", none()),
                (
                    "tls",
                    json!({"tokenPath": {"tls": {"enabled": true, "secretName": "token-tls"}}}),
                ),
                ("stored", json!({"tokenPath": {"direct": false}})),
            ],
        ),
        ("more", vec![("none", none()), ("all", everything())]),
    ]
}

fn nats() -> Vec<(&'static str, Value)> {
    let external = |auth: Value, tls: Value| {
        json!({"nats": {"mode": "external", "external": {
            "urls": ["tls://nats-a.example:4222", "tls://nats-b.example"], "auth": auth, "tls": tls,
        }}})
    };
    let own = |own: Value| json!({"nats": {"own": own}});
    let one = json!({"replicas": 1, "volume": {"sizeGiB": 20, "storageClassName": "fast"}});
    let mutual = json!({"enabled": true, "secretName": "nats-tls", "clientCertificate": true});
    let by_file = json!({"kind": "credentials", "secretName": "n"});
    vec![
        ("three", json!({})),
        (
            "tls",
            own(json!({"tls": {"enabled": true, "secretName": "nats-tls"}})),
        ),
        ("one", own(one)),
        ("credentials", external(by_file, json!({}))),
        ("mutual", external(users::own(), mutual)),
        (
            "open",
            external(json!({"kind": "none"}), json!({"enabled": false})),
        ),
    ]
}

fn scale() -> Vec<(&'static str, Value)> {
    let keda = |nats: bool| {
        json!({"autoscaling": {"workers": "keda", "keda": {
            "prometheusAddress": "http://prometheus:9090", "activateFromNats": nats, "fallback": {"replicas": 9},
        }}})
    };
    let at_least_one = json!({"scale": {"min": 1}});
    let adapter = json!({"autoscaling": {"workers": "external", "metric": "units", "externalLabels": {"fleet": "y"}},
                         "pools": {"main": {"encode": at_least_one, "decode": at_least_one}}});
    vec![
        ("fixed", json!({})),
        ("keda", keda(false)),
        ("wake", keda(true)),
        ("adapter", adapter),
    ]
}

fn model() -> Vec<(&'static str, Value)> {
    let folder = |volume: Value, device: Value| {
        json!({"pools": {"main": {
            "model": {"kind": "folder", "dtype": "bf16", "path": "medgemma", "volume": volume},
            "encode": {"device": device}, "decode": {"device": device},
        }}})
    };
    let cuda = json!({"compute": "cuda:0", "resource": "nvidia.com/gpu"});
    let held = |model: Value, volume: Value, encode: Value| {
        let mut model = model;
        model["dtype"] = json!("bf16");
        model["volume"] = volume;
        json!({"pools": {"main": {"model": model, "encode": {"device": encode}}}})
    };
    let sha256 = "a1".repeat(32);
    let pulled = json!({"prefix": "models/medgemma", "sizeGiB": 8, "sha256": sha256});
    let checked = json!({"claimName": "models", "sha256": sha256});
    let gguf = json!({"kind": "gguf", "path": "text.gguf", "vision": "mmproj.gguf", "tokenizer": "t/tokenizer.json", "weights": "stored"});
    let cores = json!({"cpu": 4, "memory": "8Gi"});
    let cores = json!({"requests": cores, "limits": cores});
    let pinned = json!({"device": {"pinThreads": true}, "resources": cores});
    let cache = json!({"sizeGiB": 6, "storageClassName": "fast"});
    let quantised =
        json!({"kind": "folder", "path": "medgemma", "weights": "q8_0", "cache": cache});
    vec![
        ("simulated", json!({})),
        ("claim", folder(json!({"claimName": "models"}), json!({}))),
        (
            "image",
            folder(json!({"image": "example/m@sha256:1"}), json!({})),
        ),
        ("cuda", folder(json!({"claimName": "models"}), cuda.clone())),
        (
            "pinned",
            json!({"pools": {"main": {
                "model": {"kind": "folder", "dtype": "bf16", "path": "medgemma", "volume": {"claimName": "models"}},
                "encode": pinned, "decode": pinned,
            }}}),
        ),
        ("gguf", held(gguf, pulled, json!({}))),
        // Images on a GPU, text on CPUs.
        ("quantised", held(quantised, checked, cuda)),
    ]
}

/// What is off or empty by default, and a second pool of the other kind.
fn everything() -> Value {
    let scale = json!({"enabled": true, "min": 1, "max": 3});
    let embedder = json!({
        "aliases": ["medsiglip"], "kind": "embedder",
        "model": {"kind": "folder", "dtype": "f32", "path": "medsiglip", "volume": {"claimName": "models"}},
        "encode": {"scale": {"min": 1}}, "decode": {"scale": {"min": 1}},
        "preprocess": {"scale": scale, "config": {"decodes_max": 4, "worker": {"slots": 2}}},
    });
    json!({
        "commonLabels": {"team": "on", "cost": "7"},
        "podMonitor": {"enabled": true, "labels": {"release": "y", "team": "off"}},
        "prometheusRule": {"enabled": true, "labels": {"release": "y", "team": "off"}, "runbookBaseUrl": "https://pages.example/of"},
        "process": {"listenAddress": "[::]", "drainSeconds": 120, "logFormat": "text"},
        "queue": {"config": {"ack_wait": "45s", "heartbeat": "5s", "in_flight_max": 100}},
        "store": {"config": {"blob_bytes_max": "128MiB", "capacity_bytes": "1TiB"}},
        "images": {"registry": "mirror.example/x/", "pullSecrets": ["pull"]},
        "modelStore": {"endpoint": "https://s3.example", "credentials": {"secretName": "models"}, "ca": {"secretName": "s3-ca"}},
        "serviceAccount": {"annotations": {"example.com/role": "fleet"}},
        "ingest": {
            "scale": scale, "podAnnotations": {"a": "b"}, "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "k", "operator": "Exists"}], "priorityClassName": "high",
            "service": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "annotations": {"x": "1"}}, "preStopSeconds": 0,
            "config": {"dispatcher": {"tenant_weights": {"north": 3}}, "limits": {"images_max": 10}},
        },
        "pools": {"siglip": embedder, "main": {"decode": {"config": {"kv_bytes_max": "2GiB", "worker": {"slots": 8}}}}},
    })
}

/// Combinations of choices, as few as a greedy search finds, in which every allowed pair of choices occurs.
fn pairwise(axes: &[Axis]) -> Vec<Vec<usize>> {
    let all: Vec<Vec<usize>> = combinations(&axes.iter().map(|(_, c)| c.len()).collect::<Vec<_>>())
        .into_iter()
        .filter(|picks| allowed(axes, picks))
        .collect();
    let mut missing: std::collections::BTreeSet<_> =
        all.iter().flat_map(|picks| pairs(picks)).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let gain = |picks: &&Vec<usize>| {
            pairs(picks)
                .iter()
                .filter(|pair| missing.contains(pair))
                .count()
        };
        let Some(best) = all.iter().max_by_key(gain) else {
            break;
        };
        for pair in pairs(best) {
            missing.remove(&pair);
        }
        chosen.push(best.clone());
    }
    chosen
}

/// KEDA reads the monitoring page of our own NATS only.
fn allowed(axes: &[Axis], picks: &[usize]) -> bool {
    let choice = |name: &str| {
        let found = axes.iter().zip(picks).find(|((axis, _), _)| *axis == name);
        found.map_or("", |((_, choices), pick)| choices[*pick].0)
    };
    choice("scale") != "wake" || ["three", "tls", "one"].contains(&choice("nats"))
}

fn combinations(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![Vec::new()], |all, size| {
        let grown = all.iter().flat_map(|picks: &Vec<usize>| {
            (0..*size).map(move |pick| picks.iter().copied().chain([pick]).collect())
        });
        grown.collect()
    })
}

/// Every two choices of a combination.
fn pairs(picks: &[usize]) -> Vec<(usize, usize, usize, usize)> {
    let mut pairs = Vec::new();
    for (second, pick) in picks.iter().enumerate() {
        for (first, other) in picks[..second].iter().enumerate() {
            pairs.push((first, *other, second, *pick));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_pair_is_sampled() {
        let axes = axes();
        let chosen = pairwise(&axes);
        let sampled: std::collections::BTreeSet<_> =
            chosen.iter().flat_map(|picks| pairs(picks)).collect();
        assert!(chosen.len() < 48, "{}", chosen.len());
        for (first, (_, ours)) in axes.iter().enumerate() {
            for (second, (_, theirs)) in axes.iter().enumerate().skip(first + 1) {
                for (a, b) in (0..ours.len()).flat_map(|a| (0..theirs.len()).map(move |b| (a, b))) {
                    let wakes = theirs[b].0 == "wake"
                        && ["credentials", "mutual", "open"].contains(&ours[a].0);
                    assert!(
                        wakes || sampled.contains(&(first, a, second, b)),
                        "{first} {a} {second} {b}"
                    );
                }
            }
        }
    }
}
