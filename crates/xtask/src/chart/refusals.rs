//! Bad values are refused: nothing is rendered, and the message names the path and what is allowed.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Chart, cases};

/// Values over the sample's base, and parts of the message they must get.
type Refusal = (Value, &'static [&'static str]);

/// One a line: where the values belong, the values, and the parts.
macro_rules! refusals {
    ($($place:ident $values:tt => $($part:literal),+;)*) => {
        vec![$(($place(json!($values)), &[$($part),+])),*]
    };
}

fn all(values: Value) -> Value {
    values
}

fn external(auth: Value) -> Value {
    json!({"nats": {"mode": "external", "external": {"urls": ["nats://h"], "auth": auth}}})
}

fn pool(main: Value) -> Value {
    json!({"pools": {"main": main}})
}

fn volume(volume: Value) -> Value {
    pool(json!({"model": {"kind": "folder", "path": "m", "dtype": "bf16", "volume": volume}}))
}

/// Beside a model that is fetched as it should be.
fn fetched(more: Value) -> Value {
    let mut values = volume(json!({"prefix": "m", "sizeGiB": 8, "sha256": "a1".repeat(32)}));
    for (key, value) in more.as_object().into_iter().flatten() {
        values[key] = value.clone();
    }
    values
}

fn refused() -> Vec<Refusal> {
    [
        everywhere(),
        ingest(),
        settings(),
        around(),
        certificates(),
        models(),
        threads(),
        pulled(),
        pools(),
    ]
    .concat()
}

fn everywhere() -> Vec<Refusal> {
    refusals![
        all {"process": {"otlpProtocol": "http"}} => "/process/otlpProtocol", "http/protobuf";
        all {"commonLabels": {"app.kubernetes.io/name": "x"}} => "app.kubernetes.io/name", "invalid propertyName";
        all {"podMonitor": {"labels": {"app.kubernetes.io/name": "x"}}} => "app.kubernetes.io/name", "invalid propertyName";
        all {"commonLabels": {"team": "one and two"}} => "/commonLabels/team", "does not match";
    ]
}

fn ingest() -> Vec<Refusal> {
    refusals![
        all {"ingestt": {}} => "ingestt", "not allowed";
        all {"ingest": {"replica": 2}} => "/ingest", "replica", "not allowed";
        all {"ingest": {"replicas": "two"}} => "/ingest/replicas", "want integer";
        all {"ingest": {"defaultModel": "x"}} => "ingest.defaultModel", "allowed: a model, medgemma-4b";
        all {"ingest": {"defaultModel": ""}} => "ingest.defaultModel", "needed where there are several";
        all {"ingest": {"defaultEmbedder": "x"}} => "ingest.defaultEmbedder", "no pool of kind embedder";
        all {"ingest": {"tls": {"enabled": true}}} => "ingest.tls.secretName", "needed";
        all {"tokenPath": {"tls": {"enabled": true}}} => "tokenPath.tls.secretName", "needed";
        all {"ingest": {"edge": {"hub": "http://hub.example"}}} => "/ingest/edge/hub", "does not match";
        all {"ingest": {"edge": {"hub": "https://hub.example"}}} => "ingest.edge.tokens.secretName", "needed";
        all {"ingest": {"edge": {"hub": "https://hub.example", "aliases": ["m"], "tokens": {"secretName": "t"}, "ca": {"secretName": "c"}}}}
            => "pools", "leave pools empty";
        all {"ingest": {"edge": {"hub": "https://hub.example", "aliases": ["m"], "config": {"travels": "tokens"},
                                 "tokens": {"secretName": "t"}, "ca": {"secretName": "c"}}}}
            => "ingest.edge.aliases", "leave it empty where tokens travel";
        all {"ingest": {"service": {"externalTrafficPolicy": "Local"}}} => "ingest.service.externalTrafficPolicy", "LoadBalancer";
        all {"ingest": {"scale": {"min": 9, "max": 2}}} => "ingest.scale.min", "9", "2";
    ]
}

/// Of the services, as each says them of itself.
fn settings() -> Vec<Refusal> {
    refusals![
        all {"ingest": {"config": {"limits": {"images_maxx": 2}}}} => "/ingest/config/limits", "images_maxx";
        all {"ingest": {"config": {"limits": {"images_max": 65537}}}} => "/ingest/config/limits/images_max", "maximum";
        all {"ingest": {"config": {"tokens_reload": "2 seconds"}}} => "/ingest/config/tokens_reload", "does not match";
        all {"ingest": {"config": {"dispatcher": {"decode_reserved": {"bulk": 1}}}}} => "/ingest/config/dispatcher/decode_reserved", "bulk";
        all {"ingest": {"config": {"dispatcher": {"tenant_weights": {"st-mary": 0}}}}}
            => "/ingest/config/dispatcher/tenant_weights/st-mary", "want 1";
        all {"ingest": {"edge": {"config": {"travels": "pixels"}}}} => "/ingest/edge/config/travels", "'files', 'tokens'";
        all {"ingest": {"config": {"listen": "0.0.0.0:1"}}} => "/ingest/config", "listen";
        pool {"decode": {"config": {"kv_bytes_max": "1GB"}}} => "/pools/main/decode/config/kv_bytes_max", "does not match";
        pool {"decode": {"config": {"speculation": {"tokens_max": 32}}}} => "/pools/main/decode/config/speculation/tokens_max", "want 31";
        pool {"preprocess": {"config": {"convention": "medgemma-2"}}} => "/pools/main/preprocess/config/convention", "medsiglip";
        pool {"model": {"simulated": {"kind": "simulated"}}} => "/pools/main/model/simulated", "kind", "not allowed";
    ]
}

fn around() -> Vec<Refusal> {
    refusals![
        all {"images": {"ingest": {"digest": "sha256:1"}}} => "/images/ingest/digest", "does not match";
        all {"prometheusRule": {"runbookBaseUrl": "docs/runbook"}} => "/prometheusRule/runbookBaseUrl", "does not match";
        all {"nats": {"own": {"replicas": 2}}} => "/nats/own/replicas", "1, 3";
        all {"nats": {"own": {"replicas": 1, "syncInterval": "2m"}}} => "nats.own.syncInterval", "always";
        all {"nats": {"own": {"volume": {"sizeGiB": 10}}}} => "nats.own.volume.sizeGiB", "allowed is 17 or more";
        all {"nats": {"mode": "external"}} => "nats.external.urls", "at least one";
        external {"kind": "user", "userName": "u", "roles": {"ingest": {"secretName": "n"}}} => "nats.external.auth.secretName", "roles.preprocess.secretName";
        external {"kind": "user", "secretName": "n", "roles": {"ingest": {"userName": "u"}}}
            => "nats.external.auth.userName", "roles.preprocess.userName";
        external {"kind": "token", "secretName": "n", "roles": {"encode": {"secretName": "n"}}} => "nats.external.auth.roles.encode", "credentials and user";
        external {"secretName": "n", "roles": {"encode": {"userName": "u"}}} => "nats.external.auth.roles.encode.userName", "no meaning";
        external {"roles": {"encoder": {}}} => "/nats/external/auth/roles", "encoder";
        all {"nats": {"external": {"urls": ["nats://u:p@h"]}}} => "/nats/external/urls/0", "does not match";
        all {"store": {"kind": "folder"}} => "/store/kind", "jetstream", "s3";
        all {"store": {"kind": "s3"}} => "store.s3.region", "needed";
        all {"store": {"kind": "s3", "s3": {"region": "x"}}, "networkPolicy": {"storePeers": []}} => "networkPolicy.storePeers", "needed";
        all {"store": {"kind": "s3", "s3": {"region": "x", "endpoint": "http://x"}}} => "store.s3.endpoint", "https://";
        all {"tokenPath": {"direct": false, "tls": {"enabled": true, "secretName": "t"}}} => "tokenPath.tls.enabled", "tokenPath.direct";
        all {"autoscaling": {"keda": {"labels": {"a-b": "x"}}}} => "/autoscaling/keda/labels", "a-b";
        all {"autoscaling": {"workers": "keda"}} => "autoscaling.keda.prometheusAddress", "needed";
        all {"autoscaling": {"workers": "keda", "keda": {"prometheusAddress": "http://p:9090"}}, "podMonitor": {"enabled": true, "interval": "1m"}}
            => "podMonitor.interval", "30s or less";
        all {"autoscaling": {"workers": "keda", "keda": {"prometheusAddress": "http://p:9090"}}, "podMonitor": {"enabled": true, "interval": "45000ms"}}
            => "podMonitor.interval", "30s or less";
        all {"autoscaling": {"workers": "external"}} => "scale.min", "at least 1";
    ]
}

fn certificates() -> Vec<Refusal> {
    refusals![
        all {"certManager": {"enabled": true}} => "certManager.issuer.name", "needed";
        all {"certManager": {"enabled": true, "issuer": {"name": "n"}}} => "certManager.enabled", "nothing has TLS", "tokenPath.tls";
        all {"certManager": {"issuer": {"kind": "Authority"}}} => "/certManager/issuer/kind", "ClusterIssuer";
    ]
}

fn models() -> Vec<Refusal> {
    refusals![
        pool {"model": {"kind": "folder"}} => "pools.main.model.volume", "claimName, image and prefix";
        pool {"model": {"kind": "folder", "volume": {"claimName": "m"}}} => "pools.main.model.path", "needed";
        pool {"model": {"kind": "folder", "dtype": "f16"}} => "/pools/main/model/dtype", "bf16", "f32";
        pool {"model": {"kind": "folder", "weights": "q5_0"}} => "/pools/main/model/weights", "q8_0", "stored";
        pool {"model": {"kind": "folder", "weights": "stored"}} => "pools.main.model.weights", "stored", "q8_0";
        pool {"model": {"weights": "q8_0"}} => "pools.main.model.weights", "simulated", "plain";
        pool {"model": {"kind": "gguf", "path": "t.gguf", "volume": {"claimName": "m"}}} => "pools.main.model.vision", "needed";
        pool {"model": {"cache": {"claimName": "c"}}} => "pools.main.model.cache", "kind simulated";
        pool {"model": {"kind": "folder", "cache": {"claimName": "c", "sizeGiB": 6}}} => "pools.main.model.cache", "one of them";
        pool {"model": {"kind": "folder", "cache": {"storageClassName": "fast"}}} => "pools.main.model.cache.storageClassName", "sizeGiB";
        pool {"model": {"kind": "folder", "vision": "v"}} => "pools.main.model.vision", "no meaning";
        pool {"model": {"kind": "folder", "weights": "q8_0", "path": "m", "dtype": "bf16", "volume": {"claimName": "m"}},
              "decode": {"device": {"compute": "cuda:0", "resource": "nvidia.com/gpu"}}}
            => "pools.main.decode.device.compute", "multiplied on CPUs";
    ]
}

/// Beside a model in a volume, with these resources of a decoder whose threads are pinned.
fn pinned(resources: Value) -> Value {
    let mut values = volume(json!({"claimName": "m"}));
    values["pools"]["main"]["decode"] =
        json!({"device": {"pinThreads": true}, "resources": resources});
    values
}

fn threads() -> Vec<Refusal> {
    refusals![
        pool {"encode": {"device": {"pinThreads": true}}} => "pools.main.encode.device.pinThreads", "there are none";
        pinned {"limits": {"memory": "8Gi"}} => "pools.main.decode.resources.limits.cpu", "needed with";
        pinned {"limits": {"cpu": 4}} => "pools.main.decode.resources.limits.memory", "needed with";
        pinned {"requests": {"cpu": 2}, "limits": {"cpu": 4, "memory": "8Gi"}}
            => "pools.main.decode.resources.requests.cpu", "2 is not the limit, 4";
        pinned {"limits": {"cpu": "2500m", "memory": "8Gi"}} => "pools.main.decode.resources.limits.cpu", "no whole number";
    ]
}

fn pulled() -> Vec<Refusal> {
    refusals![
        volume {"claimName": "m", "prefix": "m"} => "pools.main.model.volume", "2 of claimName", "exactly one";
        volume {"prefix": "m", "sizeGiB": 8} => "pools.main.model.volume.sha256", "medfleet weights list";
        volume {"prefix": "m", "sha256": "a1".repeat(32)} => "pools.main.model.volume.sizeGiB", "needed with prefix";
        volume {"claimName": "m", "sizeGiB": 8} => "pools.main.model.volume.sizeGiB", "no meaning";
        volume {"claimName": "m", "sha256": "sha256:a1"} => "/pools/main/model/volume/sha256", "does not match";
        volume {"prefix": "../m"} => "/pools/main/model/volume/prefix", "does not match";
        fetched {"modelStore": {"bucket": ""}} => "modelStore.bucket", "needed", "pools.main";
        fetched {"modelStore": {"region": ""}} => "modelStore.region", "us-east-1";
        fetched {"modelStore": {"endpoint": "http://s3.example"}} => "modelStore.endpoint", "https://";
        fetched {"networkPolicy": {"modelPeers": []}} => "networkPolicy.modelPeers", "needed";
        all {"networkPolicy": {"dnsPeers": []}} => "networkPolicy.dnsPeers", "to everybody";
    ]
}

fn pools() -> Vec<Refusal> {
    refusals![
        all {"pools": {"Main": {"aliases": ["x"], "kind": "writer", "model": {"kind": "simulated"}}}} => "/pools", "Main";
        pool {"kind": "reader"} => "/pools/main/kind", "writer", "embedder";
        // Of imaging, which preprocess would not start with.
        pool {"frameSide": 5000} => "/pools/main/frameSide", "maximum";
        pool {"encode": {"device": {"compute": "cuda"}}} => "pools.main.encode.device", "nvidia.com/gpu";
        pool {"model": {"kind": "folder", "path": "m", "dtype": "bf16", "volume": {"claimName": "m"}}, "decode": {"config": {"kv_bytes_max": "12GiB"}}}
            => "pools.main.decode.config.kv_bytes_max", "resources.limits.memory", "12Gi,";
        pool {"decode": {"device": {"resource": "nvidia.com/gpu"}}} => "pools.main.decode.device.resource", "never used";
        pool {"preprocess": {"device": {}}} => "/pools/main/preprocess", "device", "not allowed";
        all {"pools": {"other": {"aliases": ["medgemma-4b"], "kind": "writer", "model": {"kind": "simulated"}}}}
            => "pools.other.aliases", "medgemma-4b", "another pool";
        all {"fullnameOverride": "a-very-long-name-for-a-release-of-a-fleet-of-many-workers"} => "characters", "52 are allowed";
    ]
}

pub(crate) fn count() -> usize {
    refused().len() + 2
}

/// Bad values that are taken, or whose message does not say enough.
pub(crate) fn check(chart: &Chart) -> Result<Vec<String>> {
    let base = chart.values("base", &cases::base())?;
    let mut violations = Vec::new();
    for (index, (values, parts)) in refused().iter().enumerate() {
        let bad = chart.values(&format!("bad-{index}"), values)?;
        let said = said(chart, &[base.clone(), bad]);
        violations.extend(lacking(said.as_deref(), parts).map(|what| format!("{values}: {what}")));
    }
    // Without any pool there is no decision to render.
    let parts = &["pools: at least one pool", "values-small.yaml"];
    violations.extend(
        lacking(said(chart, &[]).as_deref(), parts).map(|what| format!("no values: {what}")),
    );
    let parts = &["the name 9fleet-medfleet-", "a letter first"];
    let named = chart.template_as("9fleet", &[base]);
    let said = named.err().map(|error| format!("{error:#}"));
    violations
        .extend(lacking(said.as_deref(), parts).map(|what| format!("the release 9fleet: {what}")));
    Ok(violations)
}

/// What helm says; nothing when it renders.
fn said(chart: &Chart, values: &[std::path::PathBuf]) -> Option<String> {
    chart
        .template(values)
        .err()
        .map(|error| format!("{error:#}"))
}

fn lacking(said: Option<&str>, parts: &[&str]) -> Option<String> {
    let Some(said) = said else {
        return Some("is rendered".to_owned());
    };
    let missing = parts.iter().find(|part| !said.contains(*part))?;
    Some(format!("the message does not say {missing:?}: {said}"))
}
