//! The fields of a JSON object, taken one by one, so that an error names the field that is wrong.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Truth;

/// A field that isn't as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {problem}")]
pub struct FieldError {
    /// Its path, as `findings[2].box`.
    pub field: String,
    pub problem: String,
}

/// An object, and the path to it.
pub(super) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    pub(super) const fn top(map: Map<String, Value>) -> Self {
        Self {
            map,
            path: String::new(),
        }
    }

    /// Whether a field is there, and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// A field that must be there.
    pub(super) fn needed<T>(
        &self,
        name: &str,
        take: impl Fn(&Self, &str) -> Result<Option<T>, FieldError>,
    ) -> Result<T, FieldError> {
        take(self, name)?.ok_or_else(|| self.error(name, "is missing"))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, FieldError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            // Other sets number their pictures, and answer with numbers.
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => Err(self.error(name, &format!("expected text, found {}", kind(other)))),
        }
    }

    /// A field of a type that reads itself.
    pub(super) fn any<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FieldError> {
        self.value(name)
            .map(|value| serde_json::from_value(value.clone()))
            .transpose()
            .map_err(|error| self.error(name, &error.to_string()))
    }

    pub(super) fn list<T>(
        &self,
        name: &str,
        item: impl Fn(&Value) -> Result<T, String>,
    ) -> Result<Vec<T>, FieldError> {
        let values = match self.value(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values,
            Some(other) => {
                return Err(self.error(name, &format!("expected a list, found {}", kind(other))));
            }
        };
        let read = |(number, value)| {
            item(value).map_err(|problem| self.error(&format!("{name}[{number}]"), &problem))
        };
        values.iter().enumerate().map(read).collect()
    }

    pub(super) fn text_item(value: &Value) -> Result<String, String> {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| format!("expected text, found {}", kind(value)))
    }

    pub(super) fn object<T>(
        &self,
        name: &str,
        read: impl Fn(&Self) -> Result<T, FieldError>,
    ) -> Result<Option<T>, FieldError> {
        self.value(name)
            .map(|value| read(&self.inner(name, value)?))
            .transpose()
    }

    pub(super) fn objects<T>(
        &self,
        name: &str,
        read: impl Fn(&Self) -> Result<T, FieldError>,
    ) -> Result<Vec<T>, FieldError> {
        let values = self.list(name, |value| Ok(value.clone()))?;
        let one = |(number, value)| read(&self.inner(&format!("{name}[{number}]"), value)?);
        values.iter().enumerate().map(one).collect()
    }

    /// Names with 1, 0, −1, true, false or null.
    pub(super) fn truths(&self, name: &str) -> Result<BTreeMap<String, Truth>, FieldError> {
        let Some(value) = self.value(name) else {
            return Ok(BTreeMap::new());
        };
        let inner = self.inner(name, value)?;
        let read = |(label, value): (&String, &Value)| {
            let truth = truth_of(value)
                .ok_or_else(|| inner.error(label, "expected 1, 0, -1, true, false or null"))?;
            Ok((label.clone(), truth))
        };
        inner.map.iter().map(read).collect()
    }

    /// The value, unless null.
    fn value(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn inner(&self, name: &str, value: &Value) -> Result<Self, FieldError> {
        match value {
            Value::Object(map) => Ok(Self {
                map: map.clone(),
                path: format!("{}{name}.", self.path),
            }),
            other => Err(self.error(name, &format!("expected an object, found {}", kind(other)))),
        }
    }

    fn error(&self, name: &str, problem: &str) -> FieldError {
        FieldError {
            field: format!("{}{name}", self.path),
            problem: problem.into(),
        }
    }
}

fn truth_of(value: &Value) -> Option<Truth> {
    match value {
        Value::Null | Value::Bool(false) => Some(Truth::Negative),
        Value::Bool(true) => Some(Truth::Positive),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(Truth::Negative),
            Some(1.0) => Some(Truth::Positive),
            Some(-1.0) => Some(Truth::Uncertain),
            _ => None,
        },
        _ => None,
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
