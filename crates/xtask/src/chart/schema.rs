//! The chart's schema of values, made from two sources: `helm/values.base.json` has what is the chart's own, and the services
//! say by `--print-schema` what their settings are. And what `values.yaml` repeats of it: defaults, and lists of settings.
//!
//! In the base, `{"$settings": "SERVICE/STEP/…", "without": […]}` stands for a setting, or a table of them, of a service, without
//! what the chart decides itself. A table that lists its keys takes no others, in both sources, so that nothing has to say so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::built;
use super::objects::list;
use super::settings::SERVICES;
use crate::derived::{Mode, settle};
use crate::{places, process};

/// What is the chart's own.
const BASE: &str = "helm/values.base.json";
/// What Helm reads.
const SCHEMA: &str = "helm/medfleet/values.schema.json";

/// The tables of settings in `values.yaml`, in its order, and where the schema has them.
const LISTED: [&str; 8] = [
    "/properties/queue/properties/config",
    "/properties/store/properties/config",
    "/properties/ingest/properties/edge/properties/config",
    "/properties/ingest/properties/config",
    "/definitions/model/properties/simulated",
    "/definitions/preprocess/properties/config",
    "/definitions/encode/properties/config",
    "/definitions/decode/properties/config",
];

/// The schema of each service's configuration.
type Services = BTreeMap<&'static str, Value>;

/// Compares or writes the schema, and says which defaults and lists the chart no longer repeats rightly.
pub(crate) fn check(mode: Mode) -> Result<Vec<String>> {
    let services = services()?;
    let read = |path: &str| {
        fs::read_to_string(places::root().join(path)).with_context(|| format!("read {path}"))
    };
    let mut schema: Value = serde_json::from_str(&read(BASE)?).with_context(|| BASE.to_owned())?;
    complete(&mut schema, &services)?;
    // Otherwise the order would depend on the features that other packages of the build choose for serde_json.
    schema.sort_all_objects();
    settle(mode, "chart", SCHEMA, &format!("{schema:#}\n"))?;
    let values = read("helm/medfleet/values.yaml")?;
    let mut violations = lists(&schema, &values);
    for (service, schema) in &services {
        violations.extend(defaults(service, schema, &values)?);
    }
    Ok(violations)
}

fn services() -> Result<Services> {
    let each = SERVICES.into_iter().map(|service| {
        let mut command = Command::new(built(&format!("medfleet-{service}"))?);
        let printed = process::capture(command.arg("--print-schema"))?;
        let schema: Value = serde_json::from_str(&printed)
            .with_context(|| format!("the schema that medfleet-{service} prints"))?;
        Ok((service, schema))
    });
    each.collect()
}

/// Puts the services' settings where they stand, and closes every table that lists its keys.
fn complete(node: &mut Value, services: &Services) -> Result<()> {
    if let Some(place) = node["$settings"].as_str() {
        *node = settings(place, &node["without"], services)?;
    }
    let Some(schema) = node.as_object_mut() else {
        return Ok(());
    };
    let lists = |key: &str| schema.get(key).is_some_and(Value::is_object);
    if lists("properties") || lists("patternProperties") {
        let shut = [
            ("type", json!("object")),
            ("additionalProperties", json!(false)),
        ];
        for (key, value) in shut {
            schema.entry(key).or_insert(value);
        }
    }
    // As one list, Helm's refusal is one line.
    if let Some(words) = words(schema) {
        schema.remove("oneOf");
        schema.insert("enum".to_owned(), words);
    }
    // What a table is by default its settings say one by one, but where it has others.
    if schema.contains_key("default") && schema.get("default") == said_within(schema).as_ref() {
        schema.remove("default");
    }
    let mut all = inner(schema).into_iter();
    all.try_for_each(|one| complete(one, services))
}

/// The words of a setting that has one of several, each with a description of its own.
fn words(schema: &Map<String, Value>) -> Option<Value> {
    let each = schema.get("oneOf")?.as_array()?.iter();
    let words = each.map(|one| one.get("const").cloned());
    words.collect::<Option<Vec<_>>>().map(Value::Array)
}

/// What the settings of a table are by default, as the table; nothing where it is none.
fn said_within(schema: &Map<String, Value>) -> Option<Value> {
    let settings = schema.get("properties")?.as_object()?.iter();
    let said = settings.filter_map(|(key, one)| Some((key.clone(), one.get("default")?.clone())));
    Some(Value::Object(said.collect()))
}

/// The schemas directly within one.
fn inner(schema: &mut Map<String, Value>) -> Vec<&mut Value> {
    let mut found = Vec::new();
    for (key, value) in schema {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "definitions", Value::Object(named)) => {
                found.extend(named.values_mut());
            }
            ("anyOf" | "oneOf", Value::Array(each)) => found.extend(each),
            ("additionalProperties" | "items", value) => found.push(value),
            _ => {}
        }
    }
    found
}

/// What a service says of a setting, without some that are in it.
fn settings(place: &str, without: &Value, services: &Services) -> Result<Value> {
    let unknown = |step: &str| format!("{BASE}: $settings {place}: there is no {step}");
    let mut steps = place.split('/');
    let service = steps.next().unwrap_or_default();
    let mut node = services.get(service).with_context(|| unknown(service))?;
    for step in steps {
        node = below(node, step).with_context(|| unknown(step))?;
    }
    let mut node = node.clone();
    for key in list(without).filter_map(Value::as_str) {
        let settings = node.get_mut("properties").and_then(Value::as_object_mut);
        if settings.and_then(|all| all.remove(key)).is_none() {
            bail!("{}: take it out of `without`", unknown(key));
        }
    }
    let Some(table) = node.as_object_mut() else {
        return Ok(node);
    };
    // By default it is what values.yaml says, and nothing that the chart decides is required.
    table.remove("default");
    if let Some(Value::Array(mut required)) = table.remove("required") {
        required.retain(|key| list(without).all(|other| other != key));
        if !required.is_empty() {
            table.insert("required".to_owned(), required.into());
        }
    }
    Ok(node)
}

/// A setting of a table, or the table of a kind where there are several.
fn below<'a>(node: &'a Value, step: &str) -> Option<&'a Value> {
    let is_kind = |kind: &&Value| kind["properties"]["kind"]["const"] == step;
    let setting = node["properties"].get(step);
    setting.or_else(|| list(&node["oneOf"]).find(is_kind))
}

/// Which comments of `values.yaml` list other settings than there are. A list stands behind its empty table, or in the line
/// before it.
fn lists(schema: &Value, values: &str) -> Vec<String> {
    let lines = values
        .lines()
        .map(|line| line.trim_start_matches([' ', '#']));
    let lines: Vec<&str> = lines.collect();
    let is_table = |line: &str| line.starts_with("config: {}") || line.starts_with("simulated: {}");
    let tables = (0..lines.len()).filter(|at| is_table(lines[*at]));
    let told = tables.map(|at| {
        let before = at.checked_sub(1).map_or("", |at| lines[at]);
        let behind = lines[at].split_once("# ");
        behind.map_or(before, |(_, behind)| behind)
    });
    let told: Vec<&str> = told.collect();
    if told.len() != LISTED.len() {
        let (found, expected) = (told.len(), LISTED.len());
        return vec![format!(
            "values.yaml has {found} empty tables of settings, expected {expected}"
        )];
    }
    let wrong = LISTED.into_iter().zip(told).filter_map(|(place, told)| {
        let table = schema.pointer(place).unwrap_or(&Value::Null);
        let settings = table["properties"].as_object();
        let settings = settings.into_iter().flat_map(|all| all.keys());
        let settings: BTreeSet<&str> = settings.map(String::as_str).collect();
        let named: BTreeSet<&str> = told.split(", ").collect();
        (named != settings).then(|| {
            let settings: Vec<&str> = settings.into_iter().collect();
            let settings = settings.join(", ");
            format!("values.yaml lists {told:?} where {place} has {settings}")
        })
    });
    wrong.collect()
}

/// Defaults of a service that the chart repeats because it computes with them.
fn defaults(service: &str, schema: &Value, values: &str) -> Result<Vec<String>> {
    let default = |place: &[&str]| {
        let node = place
            .iter()
            .try_fold(schema, |node, step| below(node, step));
        let default = node.and_then(|node| node.get("default"));
        default.with_context(|| format!("{service} has no default of {}", place.join(".")))
    };
    let mut violations = Vec::new();
    let drain = default(&["process", "drain"])?.as_str().unwrap_or_default();
    if !values.contains(&format!("drainSeconds: {}\n", drain.trim_end_matches('s'))) {
        violations.push(format!("{service} drains {drain} by default, process.drainSeconds in values.yaml says otherwise"));
    }
    let streams = default(&["queue", "stream_bytes_max"])?.as_object();
    for (stream, size) in streams.into_iter().flatten() {
        let size = size.as_str().unwrap_or_default();
        let mib = match size.strip_suffix("GiB") {
            Some(gib) => gib.parse::<u64>().unwrap_or(0) * 1024,
            None => size.trim_end_matches("MiB").parse().unwrap_or(0),
        };
        if !values.contains(&format!("    {stream}: {mib}\n")) {
            violations.push(format!(
                "queue.streamsMiB.{stream} in values.yaml is not {mib}, the services' default"
            ));
        }
    }
    // `_stage.tpl` repeats the slots to compute thresholds, also where the table of the worker has other settings alone.
    let slots = [("encode", 1_i64), ("decode", 4)];
    if let Some((_, slots)) = slots.into_iter().find(|(stage, _)| *stage == service)
        && *default(&[service, "worker", "slots"])? != slots
    {
        violations.push(format!(
            "{service} no longer has {slots} slots by default: change medfleet.stage.slots"
        ));
    }
    Ok(violations)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a part of the base.
    fn completed(mut base: Value) -> Result<Value, String> {
        let count = |default: u32| json!({"type": "integer", "default": default});
        let limits = json!({"properties": {"most": count(4)}, "default": {"most": 4}});
        let worker = json!({"properties": {"slots": count(1)}, "default": {"slots": 4}});
        let mode = json!({"oneOf": [{"const": "auto"}, {"const": "off"}], "default": "off"});
        let simulated = json!({"properties": {"kind": {"const": "simulated"}, "words": count(9)}, "required": ["kind"]});
        let decode = json!({"properties": {
            "decode": {
                "properties": {"pool": {"type": "string"}, "limits": limits, "worker": worker, "mode": mode},
                "required": ["pool"],
            },
            "model": {"oneOf": [{"properties": {"kind": {"const": "folder"}}}, simulated]},
        }});
        let services = Services::from([("decode", decode)]);
        let done = complete(&mut base, &services);
        done.map(|()| base).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_table_that_lists_its_keys_is_closed_wherever_it_stands() {
        let base = json!({
            "properties": {"one": {"items": {"properties": {}}}, "free": {"type": "object"}},
            "definitions": {"two": {"patternProperties": {"^a$": {"oneOf": [{"properties": {}}]}}}},
        });
        let done = completed(base).expect("is whole");
        let closed = [
            "",
            "/properties/one/items",
            "/definitions/two",
            "/definitions/two/patternProperties/^a$/oneOf/0",
        ];
        for place in closed {
            let table = done.pointer(place).expect(place);
            assert_eq!(table["additionalProperties"], false, "{place}");
            assert_eq!(table["type"], "object", "{place}");
        }
        // What Kubernetes defines stays open.
        assert_eq!(done["properties"]["free"], json!({"type": "object"}));
    }

    #[test]
    fn settings_stand_for_what_the_service_says_of_them() {
        let done = completed(json!({"$settings": "decode/decode", "without": ["pool"]}));
        let expected = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "limits": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {"most": {"type": "integer", "default": 4}},
                },
                "worker": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {"slots": {"type": "integer", "default": 1}},
                    "default": {"slots": 4},
                },
                "mode": {"enum": ["auto", "off"], "default": "off"},
            },
        });
        assert_eq!(done, Ok(expected));
        let words = json!({"properties": {"words": {"type": "integer", "default": 9}}});
        let kind = completed(json!({"$settings": "decode/model/simulated", "without": ["kind"]}));
        assert_eq!(kind.expect("is there")["properties"], words["properties"]);
    }

    #[test]
    fn settings_that_are_gone_are_named() {
        let check = |base: Value, expected: &str| {
            let refused = completed(base).expect_err("is refused");
            assert!(refused.contains(expected), "{refused}");
        };
        check(json!({"$settings": "encoder"}), "there is no encoder");
        check(
            json!({"$settings": "decode/model/gguf"}),
            "there is no gguf",
        );
        check(
            json!({"$settings": "decode/decode", "without": ["pol"]}),
            "there is no pol: take it out of `without`",
        );
    }

    #[test]
    fn comments_list_the_settings_that_there_are() {
        let read = |path: &str| fs::read_to_string(places::root().join(path)).expect("is there");
        let (schema, values) = (read(SCHEMA), read("helm/medfleet/values.yaml"));
        let schema: Value = serde_json::from_str(&schema).expect("is JSON");
        let check = |values: &str, expected: &[&str]| {
            let found = lists(&schema, values);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found}");
            }
        };
        check(&values, &[]);
        let unnamed = values.replace("blob_bytes_max, ", "");
        check(&unnamed, &["/properties/store/properties/config"]);
        let gone = values.replace(
            "{}                    # cache_bytes_max",
            "{}  # cache_max, cache_bytes_max",
        );
        check(&gone, &["/definitions/encode/properties/config"]);
        let without = values.replace("simulated: {}", "simulated:");
        check(&without, &["7 empty tables"]);
    }

    #[test]
    fn a_default_that_the_chart_no_longer_repeats_is_found() {
        let schema = json!({"properties": {
            "process": {"properties": {"drain": {"default": "25s"}}},
            "queue": {"properties": {"stream_bytes_max": {"default": {"work": "1GiB"}}}},
            "encode": {"properties": {"worker": {"properties": {"slots": {"default": 1}}}}},
            "decode": {"properties": {"worker": {"properties": {"slots": {"default": 1}}, "default": {"slots": 4}}}},
        }});
        let check = |service: &str, values: &str, expected: usize| {
            let found = defaults(service, &schema, values).expect("are there");
            assert_eq!(found.len(), expected, "{found:?}");
        };
        check("encode", "  drainSeconds: 25\n    work: 1024\n", 0);
        check("encode", "  drainSeconds: 20\n    work: 1024\n", 1);
        check("encode", "  drainSeconds: 25\n    work: 256\n", 1);
        // By default four, but one where the table says something else.
        check("decode", "  drainSeconds: 25\n    work: 1024\n", 1);
    }
}
