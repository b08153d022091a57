//! Where things are: the repository, the build folder, the cache of fetched tools and data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir
        .ancestors()
        .nth(2)
        .unwrap_or(crate_dir)
        .to_path_buf()
}

/// A scratch folder of the automation, below cargo's build folder.
pub(crate) fn scratch(name: &str) -> Result<PathBuf> {
    let path = root().join("target").join("xtask").join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A binary that cargo built in the one profile.
pub(crate) fn built(binary: &str) -> PathBuf {
    root().join("target").join("debug").join(binary)
}

/// The cache of fetched tools and data: `$MEDFLEET_CACHE`, else `~/.cache/medfleet`.
#[expect(
    clippy::disallowed_methods,
    reason = "the automation is started by a person or by CI, and has no runtime"
)]
pub(crate) fn cache() -> Result<PathBuf> {
    let path = match std::env::var_os("MEDFLEET_CACHE") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => {
            let home = std::env::home_dir().context("no home folder: set MEDFLEET_CACHE")?;
            home.join(".cache").join("medfleet")
        }
    };
    std::fs::create_dir_all(&path)
        .with_context(|| format!("create the cache {}", path.display()))?;
    Ok(path)
}
