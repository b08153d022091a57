//! A third-party server for one test: a program of the cache in a process of its own, with free ports, and a folder that is
//! removed with it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use medfleet_testkit::{cache_dir, wait_until};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::client::PATIENCE;
use crate::process::{log_end, signal};

/// How often a start is tried, in case another process takes one of the ports meanwhile.
const TRIES: usize = 3;
const LOG: &str = "log";

/// A running server. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub(crate) struct Outside {
    child: Child,
    /// The ports that it was told.
    pub(crate) ports: Vec<u16>,
    /// Where it works.
    pub(crate) folder: TempDir,
}

impl Outside {
    /// Starts a program with `ports` free ports: `prepare` sets its arguments for these ports and its folder, and it is ready
    /// once it `answers` on them.
    pub(crate) async fn start(
        program: PathBuf,
        ports: usize,
        prepare: impl Fn(&mut Command, &Path, &[u16]) -> Result<()>,
        answers: impl AsyncFn(&[u16]) -> bool,
    ) -> Result<Self> {
        let mut failure = None;
        for _ in 0..TRIES {
            let mut server = Self::spawn(&program, free_ports(ports)?, &prepare)?;
            match server.ready(&answers).await {
                Ok(()) => return Ok(server),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no try was made")?)
    }

    fn spawn(
        program: &Path,
        ports: Vec<u16>,
        prepare: impl Fn(&mut Command, &Path, &[u16]) -> Result<()>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir().context("a temporary folder")?;
        let log = fs::File::create(folder.path().join(LOG)).context("create the log")?;
        let mut command = Command::new(program);
        prepare(&mut command, folder.path(), &ports)?;
        let child = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            // Signals meant for the test run do not reach it: the test decides when it ends.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self {
            child,
            ports,
            folder,
        })
    }

    async fn ready(&mut self, answers: impl AsyncFn(&[u16]) -> bool) -> Result<()> {
        let ready = wait_until(PATIENCE, "a server of others", async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(anyhow!("it ended with {status}")));
            }
            answers(&self.ports).await.then_some(Ok(()))
        });
        let ready = ready.await.and_then(|ready| ready);
        ready.with_context(|| log_end(&self.folder.path().join(LOG)))
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) async fn stop(mut self) -> Result<()> {
        signal(Some(self.child.id()), Signal::SIGTERM)?;
        let end = async || self.child.try_wait().transpose();
        wait_until(PATIENCE, "the end of a server of others", end).await??;
        Ok(())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program that `cargo xtask fetch` laid into the cache, by its place there.
pub(crate) fn fetched(binary: &str) -> Result<PathBuf> {
    let path = cache_dir()?.join(binary);
    ensure!(
        path.is_file(),
        "{binary} is not in the cache: run `cargo xtask fetch`"
    );
    Ok(path)
}

/// Ports that were free a moment ago, all different.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: std::io::Result<Vec<_>> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect();
    listeners
        .context("find free ports")?
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
