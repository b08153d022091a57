//! Who each service is to a NATS that was there before: a user of its own where the values name one, with its secret alone
//! within reach, and the common one otherwise.

use anyhow::Result;
use serde_json::{Value, json};

use super::objects::{Pod, list, pods, text};
use super::{Chart, RELEASE, cases, rules};

/// Component, user, Secret, and the key in it: a role says all, all but the key, the user alone, or nothing.
const EXPECTED: [[&str; 4]; 4] = [
    ["ingest", "ingest", "nats-ingest", "password"],
    ["preprocess", "preprocess", "nats", "password"],
    ["encode", "encode", "nats-users", "of-encode"],
    ["decode", "fleet", "nats", "password"],
];

/// The values for that.
pub(super) fn own() -> Value {
    let roles = json!({
        "ingest": {"userName": "ingest", "secretName": "nats-ingest"},
        "preprocess": {"userName": "preprocess"},
        "encode": {"userName": "encode", "secretName": "nats-users", "key": "of-encode"},
    });
    json!({"kind": "user", "secretName": "nats", "userName": "fleet", "roles": roles})
}

/// Services that show NATS another user than the values say, or whose pods have another's secret.
pub(super) fn check(chart: &Chart) -> Result<Vec<String>> {
    let values = json!({"nats": {"mode": "external", "external": {
        "urls": ["nats://nats.example:4222"], "auth": own(),
    }}});
    let base = chart.values("users-base", &cases::base())?;
    let values = chart.values("users", &values)?;
    let objects = chart.objects(RELEASE, "users", &[base, values])?;
    let pods = pods(&objects).into_iter();
    let found: Vec<[String; 4]> = pods.filter_map(|pod| shown(pod, &objects)).collect();
    let expected = EXPECTED.iter();
    let missing = expected.filter(|one| !found.iter().any(|found| found == *one));
    let missing = missing.map(|one| format!("nats.external.auth.roles: {one:?} not in {found:?}"));
    Ok(missing.collect())
}

/// What a service shows, as [`EXPECTED`]: by its configuration, and by what its pod mounts.
fn shown(pod: Pod<'_>, objects: &[Value]) -> Option<[String; 4]> {
    let config: toml::Table = rules::config_of(pod, objects)?.parse().ok()?;
    let queue = config.get("queue")?;
    let file = queue.get("password")?.get("file")?.as_str()?;
    let key = file.strip_prefix("/etc/medfleet/nats/auth/")?;
    let volume = list(&pod.spec["volumes"]).find(|volume| volume["name"] == "nats-auth")?;
    let secret = &volume["secret"];
    let mut items = list(&secret["items"]);
    let is_there = items.all(|item| item["key"] == key && item["path"] == key);
    is_there.then(|| {
        let user = queue.get("user").and_then(toml::Value::as_str);
        let secret = text(&secret["secretName"]);
        [pod.component(), user.unwrap_or_default(), secret, key].map(str::to_owned)
    })
}
