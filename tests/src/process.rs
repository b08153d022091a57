//! How a service's process is started.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};

use crate::fleet::{Role, binary};

/// The program of a service: the workspace's own, or another release's in a folder.
pub(crate) fn program(role: Role, folder: Option<&Path>) -> Result<PathBuf> {
    let name = format!("medfleet-{}", role.name());
    let Some(folder) = folder else {
        return binary(&name);
    };
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

/// Starts a service's process; its words go to the end of a log.
pub(crate) fn start_service(role: Role, config: &Path, log: &Path) -> Result<Child> {
    start_program(&program(role, None)?, config, log)
}

/// As [`start_service`], with a program of any release.
pub(crate) fn start_program(program: &Path, config: &Path, log: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    Command::new(program)
        .arg("--config")
        .arg(config)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}
