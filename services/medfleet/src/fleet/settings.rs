//! Settings that the data folder and the flags of `up` decide. They are weaker than anything an operator has set:
//! a key that stands in the file, the environment or a `--set` is left alone.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use medfleet_runtime::config::{ENVIRONMENT_PREFIX, Sources};

/// What the operator has set.
#[derive(Debug)]
pub(crate) struct Given {
    file: toml::Table,
    environment: BTreeMap<String, String>,
    overrides: Vec<String>,
}

impl Given {
    /// From where settings come. A file that cannot be read counts as empty: the loader says what is wrong with it.
    pub(crate) fn new(sources: &Sources) -> Self {
        let text = sources
            .file
            .as_ref()
            .and_then(|path| std::fs::read_to_string(path).ok());
        Self {
            file: text.and_then(|text| text.parse().ok()).unwrap_or_default(),
            environment: sources.environment.clone(),
            overrides: sources.overrides.clone(),
        }
    }

    /// Whether the key, or something inside it, is set.
    pub(crate) fn has(&self, key: &str) -> bool {
        let inside = |name: &str| {
            name == key
                || name
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.starts_with('.'))
        };
        let variables = self
            .environment
            .keys()
            .filter_map(|name| name.strip_prefix(ENVIRONMENT_PREFIX));
        self.in_file(key)
            || variables
                .map(|name| name.to_ascii_lowercase().replace("__", "."))
                .any(|name| inside(&name))
            || self
                .overrides
                .iter()
                .any(|text| inside(text.split('=').next().unwrap_or_default().trim()))
    }

    fn in_file(&self, key: &str) -> bool {
        let mut table = &self.file;
        let mut names = key.split('.').peekable();
        while let Some(name) = names.next() {
            match table.get(name) {
                None => return false,
                Some(toml::Value::Table(inner)) if names.peek().is_some() => table = inner,
                Some(_) => return true,
            }
        }
        true
    }

    /// `KEY=VALUE` for each of these that is not set, ready for the loader.
    pub(crate) fn missing(&self, settings: &[(&str, String)]) -> Vec<String> {
        let missing = settings.iter().filter(|(key, _)| !self.has(key));
        missing
            .map(|(key, value)| format!("{key}={value}"))
            .collect()
    }
}

/// A text as the loader reads it as nothing but a text.
pub(crate) fn quoted(text: &str) -> Result<String> {
    if text.contains(['"', '\\']) || text.chars().any(char::is_control) {
        bail!("{text:?} holds quotes, backslashes or control characters, which a setting cannot");
    }
    Ok(format!("\"{text}\""))
}

/// A path as a setting.
///
/// # Errors
/// As [`quoted`], and for a path that is not Unicode.
pub(crate) fn quoted_path(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => quoted(text),
        None => bail!(
            "{} is not Unicode, which a setting has to be",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_runtime::config;
    use serde::Deserialize;

    fn given(file: &str, environment: &[(&str, &str)], overrides: &[&str]) -> Given {
        Given {
            file: file.parse().expect("is TOML"),
            environment: environment
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            overrides: overrides.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn what_an_operator_has_set_is_seen_wherever_it_stands() {
        let check = |given: Given, expected: bool| assert_eq!(given.has("ingest.key"), expected);
        check(given("", &[], &[]), false);
        check(given("[ingest]\nkey = 'a'", &[], &[]), true);
        check(given("[ingest]\nkeys = 'a'", &[], &[]), false);
        check(given("ingest = { key = { file = 'a' } }", &[], &[]), true);
        check(given("", &[("MEDFLEET_INGEST__KEY__FILE", "a")], &[]), true);
        check(given("", &[("MEDFLEET_INGEST__KEYS", "a")], &[]), false);
        check(given("", &[], &["ingest.key=a"]), true);
        check(given("", &[], &["ingest.listen=a"]), false);
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let given = given("[store]\nkey = 'a'", &[], &[]);
        let settings = [
            ("store.key", "\"b\"".to_owned()),
            ("ingest.key", "\"c\"".to_owned()),
        ];
        assert_eq!(given.missing(&settings), ["ingest.key=\"c\""]);
    }

    #[test]
    fn quoted_texts_stay_texts() {
        #[derive(Debug, Deserialize)]
        struct Sample {
            path: String,
        }
        for text in ["/data/my fleet/key", "true", "7", "[a]", "{b}", "ü,=x"] {
            let overrides = vec![format!("path={}", quoted(text).expect("can be quoted"))];
            let sample: Sample = config::load(&Sources {
                overrides,
                ..Sources::default()
            })
            .expect("loads");
            assert_eq!(sample.path, text);
        }
        assert!(quoted("a\"b").is_err());
    }
}
