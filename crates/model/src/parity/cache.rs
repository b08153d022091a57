//! Where the gate puts fetched test data before the tests run.

use std::path::PathBuf;

/// A fetched file; the tests that need one fail without it, with the way to get it.
#[expect(
    clippy::disallowed_methods,
    reason = "the gate names its cache in the environment; no library code reads it"
)]
pub(super) fn fetched(target: &str) -> PathBuf {
    let cache = match std::env::var_os("MEDFLEET_CACHE") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => std::env::home_dir().unwrap().join(".cache/medfleet"),
    };
    let path = cache.join(target);
    assert!(
        path.is_file(),
        "{} is missing: `cargo xtask fetch` puts it there",
        path.display()
    );
    path
}
