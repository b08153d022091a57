//! Configurations for tests, read as a service reads its own: the reader of TOML would be compiled once more, for all their
//! types.

use medfleet_runtime::config::{Sources, load};
use serde::de::DeserializeOwned;

use super::{Config, MainConfig};

/// What these settings say, each of them `key=value`.
pub(crate) fn of<T: DeserializeOwned>(settings: &[&str]) -> T {
    let overrides = settings.iter().map(|setting| (*setting).to_owned());
    let sources = Sources {
        overrides: overrides.collect(),
        ..Sources::default()
    };
    load(&sources).expect("a configuration")
}

/// One model, and these settings besides.
pub(crate) fn with(settings: &[&str]) -> Config {
    let least = [
        "tokens=tokens.toml",
        "default_model=tiny",
        "models.tiny=tiny-here",
    ];
    of(&[&least[..], settings].concat())
}

/// The configuration of the binary: what has no default, and nothing besides.
pub(crate) fn main() -> MainConfig {
    let key = "0f".repeat(32);
    let text = format!(
        "store = {{ key = '{key}', backend = {{ kind = 'folder', path = '/x' }} }}\n\
         ingest = {{ tokens = 'tokens.toml', default_model = 'tiny', models = {{ tiny = 'tiny-here' }} }}"
    );
    toml::from_str(&text).expect("a configuration")
}
