//! Where things are: the repository, the build folder, the cache of fetched tools and data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
    let path = build_folder().join("xtask").join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A binary that cargo built in the one profile.
pub(crate) fn built(binary: &str) -> PathBuf {
    build_folder().join("debug").join(binary)
}

/// Cargo's build folder: where it put this program itself, whoever chose that (CARGO_TARGET_DIR, a configuration file, or
/// nobody).
fn build_folder() -> PathBuf {
    let own = std::env::current_exe().ok();
    let of_own = own.as_deref().and_then(build_folder_of);
    of_own.map_or_else(|| root().join("target"), Path::to_path_buf)
}

/// The build folder of a program in it: above `debug/PROGRAM`, of a test's above `debug/deps/PROGRAM`.
fn build_folder_of(program: &Path) -> Option<&Path> {
    let mut folders = program.ancestors().skip(1).take(2);
    let profile = folders.find(|folder| folder.ends_with("debug"))?;
    profile.parent()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_folder_is_where_cargo_put_a_program() {
        let check = |program: &str, expected: Option<&str>| {
            let found = build_folder_of(Path::new(program));
            assert_eq!(found, expected.map(Path::new), "{program}");
        };
        check("/r/target/debug/xtask", Some("/r/target"));
        check("/r/target/debug/deps/xtask-0123", Some("/r/target"));
        check(
            "/big/t/x86_64-unknown-linux-gnu/debug/xtask",
            Some("/big/t/x86_64-unknown-linux-gnu"),
        );
        check("/usr/bin/xtask", None);
    }
}
