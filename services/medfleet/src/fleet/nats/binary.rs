//! Which nats-server to run: the one on PATH if it is new enough, else the pinned one in the cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The oldest server we run on.
pub(crate) const OLDEST: Version = Version {
    major: 2,
    minor: 12,
    patch: 0,
};
/// What `cargo xtask fetch` installs, below the cache.
const PINNED: &str = "bin/nats-server-2.14.0";

/// A server program that is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// The program: a path, or a name on PATH.
    pub(crate) path: PathBuf,
    /// What it says it is.
    pub(crate) version: Version,
}

/// A server version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// From `nats-server: v2.14.0` or `2.14.0`; a suffix such as `-beta.1` is ignored.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let word = text.split_whitespace().last()?.trim_start_matches('v');
        let release = word.split(['-', '+']).next()?;
        let mut numbers = release.split('.').map(|number| number.parse().ok());
        let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(Self {
            major,
            minor,
            patch,
        })
    }
}

/// Finds a server that is new enough.
///
/// # Errors
/// Says everything that was tried, what was found there, and what to do.
pub(crate) fn find(cache: Option<&Path>) -> Result<Binary> {
    let mut tried = Vec::new();
    for (place, path) in candidates(cache) {
        match probe(&path) {
            Ok(version) if version >= OLDEST => return Ok(Binary { path, version }),
            Ok(version) => tried.push(format!("{place} is {version}")),
            Err(reason) => tried.push(format!("{place} {reason}")),
        }
    }
    bail!(
        "no nats-server of at least {OLDEST}: {}; install one, or fetch the pinned one with `make fetch`, \
         or name a running one with --nats URL",
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
fn probe(path: &Path) -> Result<Version, String> {
    let output = match Command::new(path).arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("is not there".to_owned());
        }
        Err(error) => return Err(format!("cannot be started ({error})")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(text.trim()).ok_or_else(|| "does not say its version".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(
                Version::parse(text)
                    .map(|version| version.to_string())
                    .as_deref(),
                expected
            );
        };
        check("nats-server: v2.14.0", Some("2.14.0"));
        check("2.12.8", Some("2.12.8"));
        check("nats-server: v2.15.0-beta.1", Some("2.15.0"));
        check("nats-server", None);
        check("2.14", None);
        let old = Version::parse("2.9.10").expect("a version");
        assert!(old < OLDEST && Version::parse("2.12.0").expect("a version") >= OLDEST);
    }

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
        assert_eq!(version.to_string(), "2.13.1");
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
