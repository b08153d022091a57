//! GGUF metadata: typed values by key, with the few readings that a model's configuration needs.

use std::collections::BTreeMap;

use crate::error::GgufError;

/// What a count or size must be.
const SIZE: &str = "an integer from 1 to 16777216";

/// A metadata value. Numbers keep no more of their width than the configuration asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Any integer type; unsigned 64-bit values beyond i64 are clamped, no key has one.
    Integer(i64),
    /// f32 or f64.
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
    /// An array of booleans or of single bytes, which no key of ours has: skipped, with its length.
    Other(u64),
}

/// All metadata of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Metadata {
    pub(crate) file: String,
    pub(crate) values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(crate) fn error(&self, key: &str, found: impl Into<String>, expected: &str) -> GgufError {
        GgufError::Metadata {
            file: self.file.clone(),
            key: key.to_owned(),
            found: found.into(),
            expected: expected.to_owned(),
        }
    }

    fn described(value: Option<&Value>) -> String {
        match value {
            None => "absent".to_owned(),
            Some(Value::Integer(n)) => n.to_string(),
            Some(Value::Float(x)) => x.to_string(),
            Some(Value::Bool(b)) => b.to_string(),
            Some(Value::Text(text)) => format!("{:?}", text.chars().take(64).collect::<String>()),
            Some(Value::Integers(all)) => format!("{} integers", all.len()),
            Some(Value::Floats(all)) => format!("{} numbers", all.len()),
            Some(Value::Texts(all)) => format!("{} strings", all.len()),
            Some(Value::Other(length)) => format!("an array of {length}"),
        }
    }

    fn wrong(&self, key: &str, expected: &str) -> GgufError {
        self.error(key, Self::described(self.values.get(key)), expected)
    }

    /// Refuses the file unless what was found at `key` holds.
    pub(crate) fn require(
        &self,
        holds: bool,
        key: &str,
        found: usize,
        expected: &str,
    ) -> Result<(), GgufError> {
        if holds {
            Ok(())
        } else {
            Err(self.error(key, found.to_string(), expected))
        }
    }

    /// A count or size between 1 and 2²⁴ (anything larger only overflows arithmetic), or nothing.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if (1..=1 << 24).contains(n) => Ok(Some(*n as usize)),
            Some(_) => Err(self.wrong(key, SIZE)),
        }
    }

    /// The same where the key must be there.
    pub(crate) fn need_size(&self, key: &str) -> Result<usize, GgufError> {
        self.size(key)?.ok_or_else(|| self.wrong(key, SIZE))
    }

    /// A positive finite number, or nothing. Integers count as numbers.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>, GgufError> {
        let value = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Integer(n)) => *n as f64,
            Some(Value::Float(x)) => *x,
            Some(_) => f64::NAN,
        };
        if value.is_finite() && value > 0.0 {
            Ok(Some(value))
        } else {
            Err(self.wrong(key, "a positive number"))
        }
    }

    /// A number that was written as f32, as the decimal a person would have meant: 1e-6, not 9.99999997e-7.
    pub(crate) fn positive_f32(&self, key: &str) -> Result<Option<f64>, GgufError> {
        let shortest = |x: f64| (x as f32).to_string().parse().unwrap_or(x);
        Ok(self.positive(key)?.map(shortest))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// Refuses the file unless `key` is `expected`.
    pub(crate) fn require_text(&self, key: &str, expected: &str) -> Result<(), GgufError> {
        if self.text(key)? == Some(expected) {
            Ok(())
        } else {
            Err(self.wrong(key, expected))
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<&[String], GgufError> {
        match self.values.get(key) {
            Some(Value::Texts(all)) => Ok(all),
            _ => Err(self.wrong(key, "an array of strings")),
        }
    }

    pub(crate) fn floats(&self, key: &str) -> Result<&[f64], GgufError> {
        match self.values.get(key) {
            Some(Value::Floats(all)) => Ok(all),
            _ => Err(self.wrong(key, "an array of numbers")),
        }
    }

    pub(crate) fn integers(&self, key: &str) -> Result<&[i64], GgufError> {
        match self.values.get(key) {
            Some(Value::Integers(all)) => Ok(all),
            _ => Err(self.wrong(key, "an array of integers")),
        }
    }

    /// Refuses the file where the key is there and not zero: a computation we do not do.
    pub(crate) fn refuse(&self, key: &str) -> Result<(), GgufError> {
        match self.values.get(key) {
            None | Some(Value::Integer(0) | Value::Bool(false)) => Ok(()),
            Some(Value::Float(x)) if *x == 0.0 => Ok(()),
            Some(_) => Err(self.wrong(key, "absent or 0")),
        }
    }
}
