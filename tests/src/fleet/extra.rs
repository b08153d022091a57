//! More workers than one of a role, as an autoscaler starts and stops them.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use medfleet_testkit::wait_until;
use nix::sys::signal::Signal;
use tempfile::NamedTempFile;
use tokio::process::Child;
use toml::{Table, Value};

use super::{Fleet, Role};
use crate::client::PATIENCE;
use crate::config::PORTS;
use crate::process::{is_ready, signal, start_service};

/// A worker beside the fleet's own; killed when it is dropped.
#[derive(Debug)]
pub struct Extra {
    child: Child,
    admin: SocketAddr,
    /// Its own: a worker started a moment ago may still be reading the one of its neighbour.
    _config: NamedTempFile,
}

impl Fleet {
    /// Starts another worker of a role, on other ports of the fleet's address, with `slots` slots.
    pub fn another(&self, role: Role, slots: usize) -> Result<Extra> {
        let folder = self.folder.path();
        let text = fs::read_to_string(folder.join(format!("{}.toml", role.name())))?;
        let mut config: Table = text.parse().context("the role's own configuration")?;
        let free = format!("{}:0", self.address);
        let service = section(&mut config, role.name())?;
        if service.contains_key("listen") {
            service.insert("listen".into(), free.into());
        }
        let slots = Value::Integer(i64::try_from(slots)?);
        let worker = Table::from_iter([("slots".to_owned(), slots)]);
        service.insert("worker".into(), Value::Table(worker));
        let instance = self.extras.fetch_add(1, Ordering::Relaxed) + 1;
        let port = role.admin_port() + PORTS * instance;
        let admin = SocketAddr::from((self.address, port));
        let process = section(&mut config, "process")?;
        process.insert("admin_listen".into(), admin.to_string().into());
        let mut file = tempfile::Builder::new()
            .prefix(role.name())
            .suffix(".toml")
            .tempfile_in(folder)?;
        file.write_all(config.to_string().as_bytes())?;
        let child = start_service(role, file.path(), &self.log(role))?;
        Ok(Extra {
            child,
            admin,
            _config: file,
        })
    }
}

impl Extra {
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits until it takes work.
    pub async fn ready(&self) -> Result<()> {
        wait_until(PATIENCE, "another worker to be ready", async || {
            is_ready(self.admin).await.then_some(())
        })
        .await
    }

    pub async fn kill9(mut self) -> Result<()> {
        self.child.kill().await.context("kill a worker")
    }

    /// Asks it to stop, as a controller does; [`Self::ended`] waits.
    pub fn stop(&self) -> Result<()> {
        signal(self.child.id(), Signal::SIGTERM).context("stop a worker")
    }

    /// Waits for its end, which must be in order.
    pub async fn ended(mut self) -> Result<()> {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await??;
        ensure!(status.success(), "a worker ended with {status}");
        Ok(())
    }
}

fn section<'a>(config: &'a mut Table, name: &str) -> Result<&'a mut Table> {
    let section = config.get_mut(name).and_then(Value::as_table_mut);
    section.with_context(|| format!("no [{name}]"))
}
