//! Where fetched tools and data lie.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The cache that `cargo xtask fetch` fills: `$MEDFLEET_CACHE`, else `~/.cache/medfleet`.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are started by a person or by CI, and have no runtime"
)]
pub fn cache_dir() -> Result<PathBuf> {
    match std::env::var_os("MEDFLEET_CACHE") {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => {
            let home = std::env::home_dir().context("no home folder: set MEDFLEET_CACHE")?;
            Ok(home.join(".cache").join("medfleet"))
        }
    }
}

pub(crate) fn nats_server(version: &str) -> Result<PathBuf> {
    let path = cache_dir()?
        .join("bin")
        .join(format!("nats-server-{version}"));
    if !path.is_file() {
        bail!("nats-server {version} is not in the cache: run `cargo xtask fetch`");
    }
    Ok(path)
}
