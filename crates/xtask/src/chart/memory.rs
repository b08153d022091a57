//! The key-value memory (`kv_bytes_max`) in presets and in the compose file: no less than a decoder's default, for which a test
//! of `medfleet` shows that a volume and a slide fit. With less, a job fails only after all of its images are encoded.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::objects::{Pod, pods};
use super::rules;
use crate::places;

/// Where the chart's schema has the setting, as the service says it.
const SETTING: &str = "/definitions/decode/properties/config/properties/kv_bytes_max/default";

/// Bytes that a decoder has by default.
pub(super) fn by_default() -> Result<u64> {
    let schema = fs::read_to_string(places::root().join("helm/medfleet/values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema).context("the chart's schema")?;
    let said = schema.pointer(SETTING).and_then(Value::as_str);
    let bytes = said.and_then(bytes);
    bytes.with_context(|| format!("{SETTING} is no size: {said:?}"))
}

/// The decoders of a rendering that have less.
pub(super) fn check(objects: &[Value], by_default: u64) -> Vec<String> {
    let decoders = pods(objects).into_iter();
    let decoders = decoders.filter(|pod| pod.component() == "decode");
    decoders
        .filter_map(|pod| too_little(&given(pod, objects)?, by_default))
        .collect()
}

/// What is wrong with this size.
pub(super) fn too_little(given: &str, by_default: u64) -> Option<String> {
    let enough = bytes(given).is_some_and(|bytes| bytes >= by_default);
    (!enough).then(|| {
        format!("kv_bytes_max is {given}: by default it is {by_default} bytes, which a volume or a slide may take")
    })
}

/// The setting in a pod's configuration file.
fn given(pod: Pod<'_>, objects: &[Value]) -> Option<String> {
    let config: toml::Table = rules::config_of(pod, objects)?.parse().ok()?;
    let given = config.get("decode")?.get("kv_bytes_max")?.as_str()?;
    Some(given.to_owned())
}

/// A size as settings have it: `2GiB`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u32 = match text.get(digits.len()..)?.trim() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn less_than_the_default_is_found() {
        let check = |setting: &str, expected: usize| {
            let labels = json!({"app.kubernetes.io/component": "decode"});
            let spec = json!({"volumes": [{"name": "config", "configMap": {"name": "m"}}]});
            let config = format!("[decode]\npool = \"m\"\n{setting}");
            let objects = [
                json!({"kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"config.toml": config}}),
                json!({"kind": "Deployment", "spec": {"template": {"metadata": {"labels": labels}, "spec": spec}}}),
            ];
            let found = super::check(&objects, 2 << 30);
            assert_eq!(found.len(), expected, "{setting}: {found:?}");
        };
        check("", 0);
        check("kv_bytes_max = \"24GiB\"", 0);
        check("kv_bytes_max = \"2048 MiB\"", 0);
        check("kv_bytes_max = \"1GiB\"", 1);
        check("kv_bytes_max = \"much\"", 1);
        assert!(by_default().expect("is in the schema") > 1 << 30);
    }
}
