//! A fleet in one process, as an operator starts it on a laptop.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use medfleet_testkit::wait_until;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use super::binary;
use crate::client::PATIENCE;
use crate::process::signal;

/// `medfleet up` on a folder of its own.
#[derive(Debug)]
pub struct Up {
    child: Child,
    folder: tempfile::TempDir,
}

impl Up {
    /// Starts it with the tiny model and waits until it says where it is.
    pub async fn start() -> Result<Self> {
        Self::with(&crate::picture::tiny_model(), None).await
    }

    /// Starts it with a model and perhaps a MedSigLIP, and waits until it says where it is.
    pub async fn with(model: &Path, embedder: Option<&Path>) -> Result<Self> {
        let mut flags = vec![OsStr::new("--model"), model.as_os_str()];
        if let Some(embedder) = embedder {
            flags.extend([OsStr::new("--embedder"), embedder.as_os_str()]);
        }
        Self::told(&flags).await
    }

    /// Starts it with these flags beside those that say where it is, and waits until it says so.
    pub async fn told(flags: &[&OsStr]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = File::create(folder.path().join("up.log"))?;
        let mut child = Command::new(binary("medfleet")?)
            .args(["up", "--address", "127.0.0.1:0", "--data"])
            .arg(folder.path().join("data"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .context("start medfleet up")?;
        let address = folder.path().join("data/address.json");
        let ended = wait_until(PATIENCE, "medfleet up to be ready", async || {
            if address.is_file() {
                return Some(None);
            }
            child.try_wait().ok()?.map(Some)
        })
        .await?;
        if let Some(status) = ended {
            bail!(
                "medfleet up ended with {status}: {}",
                fs::read_to_string(folder.path().join("up.log"))?
            );
        }
        Ok(Self { child, folder })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `medfleet` with these arguments against it.
    pub async fn command(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let address: serde_json::Value =
            serde_json::from_slice(&fs::read(self.folder.path().join("data/address.json"))?)?;
        let text = |key: &str| {
            address[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {key}"))
        };
        let token = fs::read_to_string(text("token_file")?)?;
        let output = Command::new(binary("medfleet")?)
            .args(arguments)
            .env("MEDFLEET_SERVER", text("server")?)
            .env("MEDFLEET_TOKEN", token.trim())
            .output()
            .await?;
        Ok(output)
    }

    /// Runs `medfleet` with these arguments against it and returns what it printed.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).await?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Asks it to stop and expects exit code 0.
    pub async fn stop(mut self) -> Result<()> {
        signal(self.child.id(), Signal::SIGTERM)?;
        let status = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .context("it did not stop")??;
        ensure!(
            status.success(),
            "ended with {status}: {}",
            fs::read_to_string(self.folder.path().join("up.log"))?
        );
        Ok(())
    }
}
