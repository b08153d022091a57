//! A fleet for the demo and the client tests: `medfleet up` on a scratch folder, stopped when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{places, process};

/// How long a fleet may take from its start until it accepts jobs, on a machine that is busy.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a fleet may take to stop in order before it is killed.
const STOP_MAX: Duration = Duration::from_secs(40);
/// How often we look.
const POLL: Duration = Duration::from_millis(50);

/// What `medfleet up --address-file` writes once the fleet accepts jobs.
#[derive(Debug, Deserialize)]
pub(crate) struct Address {
    /// Where clients connect, as a URL.
    pub(crate) server: String,
    /// The file with the tenant's bearer token.
    pub(crate) token_file: PathBuf,
}

impl Address {
    /// The bearer token itself.
    pub(crate) fn token(&self) -> Result<String> {
        let text = fs::read_to_string(&self.token_file)
            .with_context(|| format!("read the token from {}", self.token_file.display()))?;
        Ok(text.trim().to_owned())
    }
}

pub(crate) struct Fleet {
    child: Child,
    data: PathBuf,
    /// How to reach it.
    pub(crate) address: Address,
}

impl Fleet {
    /// Starts a fleet with the arguments that choose its model, and waits until it accepts jobs.
    ///
    /// Its logs go to `fleet.log` in its scratch folder, and to stderr when it does not start.
    pub(crate) fn start(name: &str, model: &[&str]) -> Result<Self> {
        let data = places::scratch(&format!("{name}-{}", std::process::id()))?;
        let address_file = data.join("address.json");
        let log = fs::File::create(data.join("fleet.log"))?;
        let mut command = Command::new(places::built("medfleet"));
        command
            .current_dir(places::root())
            .arg("up")
            .arg("--data")
            .arg(data.join("data"));
        // Port 0: fleets of several runs do not get in each other's way.
        command.args(["--address", "127.0.0.1:0"]);
        command.arg("--address-file").arg(&address_file).args(model);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("start medfleet up")?;
        let address = Address {
            server: String::new(),
            token_file: PathBuf::new(),
        };
        let mut fleet = Self {
            child,
            data,
            address,
        };
        match fleet.wait_for_address(&address_file) {
            Ok(address) => fleet.address = address,
            Err(error) => {
                let log = fs::read_to_string(fleet.data.join("fleet.log")).unwrap_or_default();
                return Err(error.context(format!("the fleet did not start; it said:\n{log}")));
            }
        }
        Ok(fleet)
    }

    /// Stops the fleet in order and says whether it ended well; removes its folder.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        if !status.success() {
            let log = fs::read_to_string(self.data.join("fleet.log")).unwrap_or_default();
            bail!("the fleet ended with {status}; it said:\n{log}");
        }
        fs::remove_dir_all(&self.data).with_context(|| format!("remove {}", self.data.display()))
    }

    fn wait_for_address(&mut self, file: &Path) -> Result<Address> {
        let start = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(file)
                && let Ok(address) = serde_json::from_str(&text)
            {
                return Ok(address);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("medfleet up ended early: {status}");
            }
            if start.elapsed() > START_MAX {
                bail!("not ready after {} s", START_MAX.as_secs());
            }
            pause();
        }
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let asked = process::succeeds(
            Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]),
        );
        let start = Instant::now();
        while asked && start.elapsed() < STOP_MAX {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            pause();
        }
        self.child.kill().context("kill the fleet")?;
        self.child.wait().context("wait for the fleet")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("xtask: could not stop the fleet: {error:#}");
        }
    }
}

/// A moment, before a state of another process is looked at again.
#[expect(
    clippy::disallowed_methods,
    reason = "the automation waits for other processes and has no runtime"
)]
pub(crate) fn pause() {
    std::thread::sleep(POLL);
}
