//! The key-value memory (`kv_bytes_max`) in presets and in the compose file: no less than a decoder's default, for which a test
//! of `medfleet` shows that a volume and a slide fit. With less, a job fails only after all of its images are encoded. And the
//! memory that pods may take: as much as their services hold at once, or they are killed only when there is work.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::objects::{Pod, pods, text};
use super::{Chart, RELEASE, cases, rules};
use crate::places;

/// The language model of MedGemma 4B in bf16 (docs/how-to/run-on-a-cpu.md).
const WEIGHTS: u64 = 7_800_000_000;
/// For everything else, as that page says.
const ROOM: u64 = 1 << 30;
/// What preprocessing holds at once, and a decoder's process beside it.
const HELD: [&str; 2] = ["memory_bytes_max", "codec_memory_bytes_max"];

/// Bytes that a decoder has by default.
pub(super) fn by_default() -> Result<u64> {
    said("decode", "kv_bytes_max")
}

/// What a size is by default: the chart's schema has it as the service says it.
fn said(stage: &str, setting: &str) -> Result<u64> {
    let schema = fs::read_to_string(places::root().join("helm/medfleet/values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema).context("the chart's schema")?;
    let place = format!("/definitions/{stage}/properties/config/properties/{setting}/default");
    let said = schema.pointer(&place).and_then(Value::as_str);
    let bytes = said.and_then(bytes);
    bytes.with_context(|| format!("{place} is no size: {said:?}"))
}

/// Preprocessing that may take less memory than it holds at once.
pub(super) fn cramped(objects: &[Value]) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for pod in pods(objects) {
        if pod.component() == "preprocess" {
            let mut held = ROOM;
            for setting in HELD {
                held += match given(pod, objects, setting).as_deref().and_then(bytes) {
                    Some(bytes) => bytes,
                    None => said("preprocess", setting)?,
                };
            }
            violations.extend(less(pod, held));
        }
    }
    Ok(violations)
}

/// A decoder of a model that nobody gave memory may take less than MedGemma 4B needs.
pub(super) fn of_a_model(chart: &Chart) -> Result<Vec<String>> {
    let model =
        json!({"kind": "folder", "dtype": "bf16", "path": "m", "volume": {"claimName": "m"}});
    let values = json!({"pools": {"main": {"model": model}}});
    let base = chart.values("memory-base", &cases::base())?;
    let objects = chart.objects(RELEASE, "memory", &[base, chart.values("memory", &values)?])?;
    let needed = WEIGHTS + by_default()? + ROOM;
    let decoders = pods(&objects).into_iter();
    let decoders = decoders.filter(|pod| pod.component() == "decode");
    Ok(decoders.filter_map(|pod| less(pod, needed)).collect())
}

/// A pod whose container may take less than this.
fn less(pod: Pod<'_>, needed: u64) -> Option<String> {
    let mut lasting = pod.containers().filter(|one| !pod.is_first(one));
    let limit = text(&lasting.next()?["resources"]["limits"]["memory"]);
    (bytes(limit) < Some(needed)).then(|| {
        let component = pod.component();
        format!("{component}: may take {limit} of memory, and needs {needed} bytes")
    })
}

/// The decoders of a rendering that have less.
pub(super) fn check(objects: &[Value], by_default: u64) -> Vec<String> {
    let decoders = pods(objects).into_iter();
    let decoders = decoders.filter(|pod| pod.component() == "decode");
    decoders
        .filter_map(|pod| too_little(&given(pod, objects, "kv_bytes_max")?, by_default))
        .collect()
}

/// What is wrong with this size.
pub(super) fn too_little(given: &str, by_default: u64) -> Option<String> {
    let enough = bytes(given).is_some_and(|bytes| bytes >= by_default);
    (!enough).then(|| {
        format!("kv_bytes_max is {given}: by default it is {by_default} bytes, which a volume or a slide may take")
    })
}

/// A setting of the stage in a pod's configuration file.
fn given(pod: Pod<'_>, objects: &[Value], setting: &str) -> Option<String> {
    let config: toml::Table = rules::config_of(pod, objects)?.parse().ok()?;
    let given = config.get(pod.component())?.get(setting)?.as_str()?;
    Some(given.to_owned())
}

/// A size as settings have it, `2GiB`, or Kubernetes: `2Gi`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u32 = match text.get(digits.len()..)?.trim() {
        "B" => 0,
        "KiB" | "Ki" => 10,
        "MiB" | "Mi" => 20,
        "GiB" | "Gi" => 30,
        "TiB" | "Ti" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preprocessing_has_room_for_what_it_holds() {
        let check = |limit: &str, setting: &str, expected: usize| {
            let labels = json!({"app.kubernetes.io/component": "preprocess"});
            let volume = json!({"name": "config", "configMap": {"name": "m"}});
            let container = json!({"resources": {"limits": {"memory": limit}}});
            let spec = json!({"volumes": [volume], "containers": [container]});
            let config = format!("[preprocess]\npool = \"m\"\n{setting}");
            let objects = [
                json!({"kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"config.toml": config}}),
                json!({"kind": "Deployment", "spec": {"template": {"metadata": {"labels": labels}, "spec": spec}}}),
            ];
            let found = cramped(&objects).expect("the schema");
            assert_eq!(found.len(), expected, "{limit} {setting}: {found:?}");
        };
        check("4Gi", "", 0);
        check("2Gi", "", 1);
        check("", "", 1);
        check("2560Mi", "codec_memory_bytes_max = \"512MiB\"", 0);
        check("4Gi", "memory_bytes_max = \"2GiB\"", 1);
    }

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
