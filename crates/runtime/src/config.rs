//! Loads one typed configuration from a file, the environment and flags, in this order of growing strength. An unknown key is
//! fatal wherever it stands. No error shows a value, because any value may be a secret in the wrong place; the only exception is
//! a whole number that stands where one is expected and is beyond its limits.
//!
//! - Environment: `MEDFLEET_STORE__BLOB_BYTES_MAX=64MiB` sets `store.blob_bytes_max`; two underscores descend one level.
//! - Flags: `store.blob_bytes_max=64MiB`.
//! - Values outside a file are read as `true`, numbers, `[lists]`, `{tables}` or else text; a text that looks like
//!   something else is written in double quotes.
//! - A table with the only key `file`, anywhere, stands for the contents of that file: this is how secrets are mounted.
//!   No setting is therefore named `file`.

mod limits;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use medfleet_core::chain;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ProcessConfig;

/// Every variable that sets something begins with this.
pub const ENVIRONMENT_PREFIX: &str = "MEDFLEET_";

/// Variables with the prefix that are not settings of a service: arguments of the command line and of the automation, the choice
/// of the model's kernels, and what tests use.
const NOT_SETTINGS: [&str; 6] = [
    "MEDFLEET_CACHE",
    "MEDFLEET_CONTAINERS",
    "MEDFLEET_KERNELS",
    "MEDFLEET_SERVER",
    "MEDFLEET_TOKEN",
    "MEDFLEET_TEST_",
];

/// Longest secret file that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// The whole configuration of a program, assembled in its service.
pub trait Settings: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// The part that every program has.
    fn process(&self) -> &ProcessConfig;

    /// Checks relations between fields.
    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax {
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What is wrong, without the text of the line.
        reason: String,
    },
    /// A flag is not `key=value`.
    #[error("override {position} is not KEY=VALUE")]
    Override {
        /// Which one, counted from 1.
        position: usize,
    },
    #[error("{key}: cannot read the file it names")]
    SecretFile { key: String, source: std::io::Error },
    #[error("{origin}: unknown key {key}; allowed here: {allowed}")]
    UnknownKey {
        /// The whole path of the key.
        key: String,
        /// File, variable or flag.
        origin: String,
        allowed: String,
    },
    #[error("missing key {key}: set it in the file of --config, or by --set {key}=…")]
    Missing { key: String },
    #[error("{origin}: {key}: {reason}")]
    Value {
        key: String,
        origin: String,
        reason: String,
    },
    /// Settings that don't fit each other.
    #[error("{0}")]
    Relation(String),
    #[error("the configuration cannot be written as TOML")]
    Print(#[source] toml::ser::Error),
}

impl ConfigError {
    /// Settings that don't fit each other, with the reason.
    pub fn relation(reason: impl Into<String>) -> Self {
        Self::Relation(reason.into())
    }

    /// What a part of the configuration says of itself, with its causes.
    pub fn of_part(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Relation(chain(error))
    }
}

/// Where settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file; none is fine when everything has a default or comes from elsewhere.
    pub file: Option<PathBuf>,
    /// Environment variables; those without the prefix are ignored.
    pub environment: BTreeMap<String, String>,
    /// `key=value` texts, the last one wins.
    pub overrides: Vec<String>,
}

impl Sources {
    /// With this process's environment.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn of_process(file: Option<PathBuf>, overrides: Vec<String>) -> Self {
        // Names or values that are not Unicode can't be ours; std::env::vars would panic on them.
        let variables = std::env::vars_os();
        let environment =
            variables.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self {
            file,
            environment: environment.collect(),
            overrides,
        }
    }
}

/// Loads a configuration, without [`Settings::check`].
pub fn load<T: DeserializeOwned>(sources: &Sources) -> Result<T, ConfigError> {
    let mut figment = Figment::new();
    if let Some(path) = &sources.file {
        let origin = path.display().to_string();
        figment = figment.merge(Layer {
            origin,
            table: resolved(read_table(path)?)?,
        });
    }
    for (name, text) in &sources.environment {
        let is_setting = !NOT_SETTINGS
            .iter()
            .any(|other| match other.strip_suffix('_') {
                Some(_) => name.starts_with(other),
                None => name == other,
            });
        if let Some(key) = name.strip_prefix(ENVIRONMENT_PREFIX).filter(|_| is_setting) {
            let key = key.to_ascii_lowercase().replace("__", ".");
            figment = figment.merge(Layer::single(format!("variable {name}"), &key, text)?);
        }
    }
    for (index, text) in sources.overrides.iter().enumerate() {
        let wrong = || ConfigError::Override {
            position: index + 1,
        };
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let key = key.trim();
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(wrong());
        }
        figment = figment.merge(Layer::single(format!("flag {key}"), key, value)?);
    }
    figment.extract().map_err(explain)
}

/// Checks each number against the limits that its field has in the schema, and what [`Settings::check`] does.
pub(crate) fn check<C: Settings>(config: &C) -> Result<(), ConfigError> {
    config.check()?;
    hold(config, "")
}

/// Checks each number of a part of a configuration, which stands at `key`, against the limits that its field has in the schema.
/// This is done for the whole configuration before a service starts; whoever loads only a part of it does it for that part.
pub fn hold<T: Serialize + JsonSchema>(part: &T, key: &str) -> Result<(), ConfigError> {
    let value = serde_json::to_value(part).map_err(|error| ConfigError::of_part(&error))?;
    limits::hold(&schema::<T>(), &value, key)
}

/// The configuration as TOML, secrets hidden.
pub fn print<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(config).map_err(ConfigError::Print)
}

/// The JSON schema of a configuration, from which the chart's is made (`cargo xtask chart --bless`). Every table stands where it
/// is, without references, and a setting that may be missing has no `null`: TOML has none either.
pub fn schema<T: JsonSchema>() -> serde_json::Value {
    // The version that every Helm reads.
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    plain(&mut schema);
    schema
}

/// Takes away what TOML has not, and how our comments are broken into lines.
fn plain(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(table) => {
            table.retain(|_, inner| !inner.is_null());
            if let Some(serde_json::Value::Array(kinds)) = table.get("type")
                && let Some(kind) = kinds.iter().find(|kind| **kind != "null").cloned()
            {
                table.insert("type".to_owned(), kind);
            }
            if let Some(serde_json::Value::String(text)) = table.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            table.values_mut().for_each(plain);
        }
        serde_json::Value::Array(each) => {
            each.retain(|one| one["type"] != "null");
            each.iter_mut().for_each(plain);
        }
        _ => {}
    }
}

/// One source with its name, for errors.
struct Layer {
    origin: String,
    table: Dict,
}

impl Layer {
    fn single(origin: String, key: &str, text: &str) -> Result<Self, ConfigError> {
        // Parsing can't fail: what is nothing else is a text.
        let value = text.parse::<Value>().unwrap_or_else(|never| match never {});
        let table = match figment::util::nest(key, value) {
            Value::Dict(_, table) => table,
            // Only an empty key gives no table; it is then the name of a setting that does not exist.
            value => Dict::from([(key.to_owned(), value)]),
        };
        Ok(Self {
            origin,
            table: resolved(table)?,
        })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.table.clone())]))
    }
}

fn read_table(path: &Path) -> Result<Dict, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..start]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        // The message alone: the error's own text repeats the line, secrets included.
        let reason = error.message().to_owned();
        ConfigError::Syntax {
            path: path.to_owned(),
            line,
            reason,
        }
    })
}

/// Puts the contents of files in place of the tables that name them.
fn resolved(table: Dict) -> Result<Dict, ConfigError> {
    resolve(table, &mut Vec::new())
}

fn resolve(table: Dict, path: &mut Vec<String>) -> Result<Dict, ConfigError> {
    let mut result = Dict::new();
    for (key, value) in table {
        path.push(key.clone());
        let value = match value {
            Value::Dict(tag, inner) => match secret_file(&inner) {
                Some(file) => Value::String(tag, read_secret(file, path)?),
                None => Value::Dict(tag, resolve(inner, path)?),
            },
            value => value,
        };
        path.pop();
        result.insert(key, value);
    }
    Ok(result)
}

fn secret_file(table: &Dict) -> Option<&str> {
    if table.len() == 1 {
        table.get("file")?.as_str()
    } else {
        None
    }
}

fn read_secret(file: &str, path: &[String]) -> Result<String, ConfigError> {
    let fail = |source| ConfigError::SecretFile {
        key: path.join("."),
        source,
    };
    if std::fs::metadata(file).map_err(fail)?.len() > SECRET_BYTES_MAX {
        let reason = format!("larger than {SECRET_BYTES_MAX} bytes");
        return Err(fail(std::io::Error::other(reason)));
    }
    let text = std::fs::read_to_string(file).map_err(fail)?;
    // Editors and `echo` end a file with a line break that is not part of the secret.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn explain(error: figment::Error) -> ConfigError {
    use figment::error::Kind;
    let origin = error
        .metadata
        .as_ref()
        .map_or("configuration".to_owned(), |m| m.name.to_string());
    let key = error.path.join(".");
    let at = |name: &str| {
        if key.is_empty() {
            name.to_owned()
        } else {
            format!("{key}.{name}")
        }
    };
    match error.kind {
        Kind::UnknownField(name, allowed) => {
            // The path may already end in the unknown key.
            let last = error.path.last().is_some_and(|last| *last == name);
            let key = if last { key } else { at(&name) };
            ConfigError::UnknownKey {
                key,
                origin,
                allowed: allowed.join(", "),
            }
        }
        Kind::MissingField(name) => ConfigError::Missing { key: at(&name) },
        Kind::InvalidType(actual, expected) => {
            let expected = in_words(&expected);
            let reason = format!("expected {expected}, found {}", kind_of(&actual));
            ConfigError::Value {
                key,
                origin,
                reason,
            }
        }
        Kind::InvalidValue(_, expected) => ConfigError::Value {
            key,
            origin,
            reason: format!("expected {}", in_words(&expected)),
        },
        Kind::InvalidLength(length, expected) => {
            let reason = format!("expected {expected}, found {length}");
            ConfigError::Value {
                key,
                origin,
                reason,
            }
        }
        Kind::UnknownVariant(_, allowed) => {
            let reason = format!("allowed: {}", allowed.join(", "));
            ConfigError::Value {
                key,
                origin,
                reason,
            }
        }
        Kind::Message(reason) => ConfigError::Value {
            key,
            origin,
            reason: match reason.as_str() {
                NO_ADDRESS => format!("expected {}", in_words("socket address")),
                _ => reason,
            },
        },
        other => ConfigError::Value {
            key,
            origin,
            reason: other.to_string(),
        },
    }
}

/// What the standard library says of a text that is not an address with a port.
const NO_ADDRESS: &str = "invalid socket address syntax";

/// What serde expects, in the words of somebody who writes a configuration and not of its types.
fn in_words(expected: &str) -> &str {
    match expected {
        "a string" => "a text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "path string" => "a path",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "socket address" => "an IP address with its port, such as 127.0.0.1:8443",
        table if table.starts_with("struct ") || table.starts_with("internally tagged enum ") => {
            "a table"
        }
        other => other,
    }
}

/// The kind of a found value, never the value.
fn kind_of(actual: &figment::error::Actual) -> &'static str {
    use figment::error::Actual;
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests;
