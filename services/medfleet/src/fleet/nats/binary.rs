//! Which nats-server to run: the one on PATH if it is new enough, else the pinned one in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use medfleet_queue::OLDEST_SERVER;
use medfleet_queue::server::is_new_enough;

/// What `cargo xtask fetch` installs, below the cache.
const PINNED: &str = "bin/nats-server-2.14.0";

/// A server program that is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// The program: a path, or a name on PATH.
    pub(crate) path: PathBuf,
    /// What it says it is, such as `nats-server: v2.14.0`.
    pub(crate) version: String,
}

/// Finds a server that is new enough.
///
/// # Errors
/// Says everything that was tried, what was found there, and what to do.
pub(crate) fn find(cache: Option<&Path>) -> Result<Binary> {
    let mut tried = Vec::new();
    for (place, path) in candidates(cache) {
        match probe(&path) {
            Ok(version) if is_new_enough(&version) => return Ok(Binary { path, version }),
            Ok(version) => tried.push(format!("{place} is {version}")),
            Err(reason) => tried.push(format!("{place} {reason}")),
        }
    }
    bail!(
        "no nats-server of at least {OLDEST_SERVER}: {}; install one, or fetch the pinned one with \
         `cargo xtask fetch nats-server`, or name a running one with --nats URL",
        tried.join(", ")
    )
}

fn candidates(cache: Option<&Path>) -> Vec<(String, PathBuf)> {
    let mut candidates = vec![(
        "nats-server on PATH".to_owned(),
        PathBuf::from("nats-server"),
    )];
    let home = || std::env::home_dir().map(|home| home.join(".cache").join("medfleet"));
    if let Some(cache) = cache.map(Path::to_path_buf).or_else(home) {
        let path = cache.join(PINNED);
        candidates.push((path.display().to_string(), path));
    }
    candidates
}

/// The version a program says it has, or why there is none.
fn probe(path: &Path) -> Result<String, String> {
    let output = match Command::new(path).arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("is not there".to_owned());
        }
        Err(error) => return Err(format!("cannot be started ({error})")),
    };
    match String::from_utf8_lossy(&output.stdout).trim() {
        "" => Err("does not say its version".to_owned()),
        version => Ok(version.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(folder: &Path, version: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(PINNED);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(&path, format!("#!/bin/sh\necho nats-server: v{version}\n"))
            .expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("runs");
    }

    #[test]
    fn a_program_says_its_version() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fake(folder.path(), "2.13.1");
        let version = probe(&folder.path().join(PINNED)).expect("it runs");
        assert_eq!(version, "nats-server: v2.13.1");
    }

    #[test]
    fn what_is_not_there_is_said_so() {
        assert_eq!(
            probe(Path::new("/nowhere/nats-server")),
            Err("is not there".to_owned())
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        let places: Vec<String> = candidates(Some(folder.path()))
            .into_iter()
            .map(|(place, _)| place)
            .collect();
        assert_eq!(places[0], "nats-server on PATH");
        assert!(places[1].ends_with(PINNED));
    }
}
