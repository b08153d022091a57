//! How a service's process is started, told to stop, and looked at.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::fleet::{Role, binary, http_get};

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

/// Sends a signal to a process, whose id is none once it has ended.
pub(crate) fn signal(pid: Option<u32>, what: Signal) -> Result<()> {
    let pid = pid.context("the process has ended")?;
    kill(Pid::from_raw(i32::try_from(pid)?), what).context("signal a process")
}

/// Whether a process says that it is ready.
pub(crate) async fn is_ready(admin: SocketAddr) -> bool {
    matches!(http_get(admin, "/readyz").await, Ok((200, _)))
}

/// The last lines of a log, for messages of failed tests.
pub(crate) fn log_end(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(20)..].join("\n");
    format!("end of its log:\n{end}")
}
