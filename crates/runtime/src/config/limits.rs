//! Checks the whole numbers of a configuration, in tables and lists too, against the limits in its own JSON schema. So each limit
//! is stated once, at its field, and the services refuse what the chart refuses.

use std::fmt::Display;

use serde_json::Value;

use super::ConfigError;

/// Whether all numbers are within; `key` is the path of what is looked at, empty for the whole.
pub(super) fn hold(schema: &Value, value: &Value, key: &str) -> Result<(), ConfigError> {
    if let Some(number) = value.as_u64() {
        return hold_number(schema, number, key);
    }
    for kind in ["anyOf", "oneOf"]
        .into_iter()
        .flat_map(|of| list(&schema[of]))
    {
        // Of the forms of a table, the one that it has.
        let tag = &kind["properties"]["kind"]["const"];
        if tag.is_null() || *tag == value["kind"] {
            hold(kind, value, key)?;
        }
    }
    for (place, inner) in list(value).enumerate() {
        // Of a list of given length, each place has a form of its own.
        let form = match &schema["items"] {
            Value::Array(forms) => forms.get(place),
            form => Some(form),
        };
        if let Some(form) = form {
            hold(form, inner, &below(key, place))?;
        }
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let key = below(key, name);
        let setting = schema["properties"].get(name);
        let pattern = schema["patternProperties"].as_object();
        let entry = pattern.and_then(|each| each.values().next());
        if let Some(schema) = setting.or(entry).or(schema.get("additionalProperties")) {
            hold(schema, inner, &key)?;
        }
    }
    Ok(())
}

fn hold_number(schema: &Value, number: u64, key: &str) -> Result<(), ConfigError> {
    let limit = |name: &str| schema[name].as_u64();
    let least = limit("minimum").unwrap_or(0);
    let allowed = match limit("maximum") {
        Some(most) if !(least..=most).contains(&number) => format!("{least} to {most}"),
        None if number < least => format!("at least {least}"),
        _ => return Ok(()),
    };
    Err(ConfigError::relation(format!(
        "{key} must be {allowed}, found {number}"
    )))
}

/// The path of what stands in a table or a list; places of a list count from 0, as in what the loader says.
fn below(key: &str, name: impl Display) -> String {
    match key {
        "" => name.to_string(),
        _ => format!("{key}.{name}"),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_beyond_the_limits_of_its_field_is_named() {
        let count = || json!({"type": "integer", "minimum": 2, "maximum": 9});
        let schema = json!({"properties": {
            "count": count(),
            "least": {"type": "integer", "minimum": 1},
            "table": {"properties": {"count": count()}},
            "named": {"patternProperties": {"^[a-z]+$": count()}, "additionalProperties": false},
            "model": {"oneOf": [
                {"properties": {"kind": {"const": "a"}, "count": count()}},
                {"properties": {"kind": {"const": "b"}, "count": {"type": "integer"}}},
            ]},
            "tables": {"type": "array", "items": {"properties": {"count": count()}}},
            "lists": {"type": "array", "items": {"type": "array", "items": count()}},
            "pair": {"type": "array", "items": [{"type": "integer"}, count()]},
        }});
        let check = |value: Value, expected: Option<&str>| {
            let said = hold(&schema, &value, "").err();
            let said = said.map(|error| error.to_string());
            assert_eq!(said.as_deref(), expected, "{value}");
        };
        check(json!({"count": 2, "least": 1, "table": {"count": 9}}), None);
        check(json!({"count": 1}), Some("count must be 2 to 9, found 1"));
        check(
            json!({"least": 0}),
            Some("least must be at least 1, found 0"),
        );
        let said = "table.count must be 2 to 9, found 10";
        check(json!({"table": {"count": 10}}), Some(said));
        check(json!({"named": {"mary": 3}}), None);
        let said = "named.mary must be 2 to 9, found 0";
        check(json!({"named": {"mary": 0}}), Some(said));
        let model = |kind: &str| json!({"model": {"kind": kind, "count": 0}});
        check(model("a"), Some("model.count must be 2 to 9, found 0"));
        check(model("b"), None);
        check(json!({"tables": [{"count": 2}, {}]}), None);
        let said = "tables.1.count must be 2 to 9, found 0";
        check(json!({"tables": [{"count": 2}, {"count": 0}]}), Some(said));
        let said = "lists.0.2 must be 2 to 9, found 1";
        check(json!({"lists": [[2, 3, 1]]}), Some(said));
        check(json!({"pair": [0, 2, 0]}), None);
        let said = "pair.1 must be 2 to 9, found 0";
        check(json!({"pair": [0, 0]}), Some(said));
    }
}
