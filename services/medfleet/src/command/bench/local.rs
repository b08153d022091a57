//! A nats-server and a queue of a bench's own, and their orderly end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use medfleet_core::PoolName;
use medfleet_queue::server::Sync;
use medfleet_queue::{Queue, QueueConfig};
use medfleet_runtime::{Clock, Shutdown, SystemClock, SystemRandom, TaskSet};

use super::programs::{POOL, get};
use crate::fleet::child::free_address;
use crate::fleet::nats::{self, Measured, Nats};

/// How long the server may take to stop.
const STOP_MAX: Duration = Duration::from_secs(15);

/// A running nats-server, configured as `medfleet up` does it.
pub(super) struct LocalNats {
    nats: Nats,
    tasks: TaskSet,
    pid_file: PathBuf,
    monitor: SocketAddr,
}

/// Messages that a server has taken and sent since it started.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
pub(super) struct Messages {
    /// From clients.
    pub(super) in_msgs: u64,
    /// To clients.
    pub(super) out_msgs: u64,
}

impl LocalNats {
    pub(super) async fn start(folder: &Path, cache: Option<&Path>) -> Result<Self> {
        Self::start_with(folder, cache, Sync::Always).await
    }

    /// As [`LocalNats::start`], with another rule of when writes are on disk.
    pub(super) async fn start_with(
        folder: &Path,
        cache: Option<&Path>,
        sync: Sync,
    ) -> Result<Self> {
        let folder = folder.join("nats");
        std::fs::create_dir_all(&folder).context("cannot make the folder of nats-server")?;
        let tasks = TaskSet::new(Shutdown::new(STOP_MAX));
        let binary = nats::find(cache)?;
        let monitor = free_address()?;
        let measured = Measured {
            sync,
            monitor_port: Some(monitor.port()),
        };
        let nats = Nats::start_with(&binary, &folder, measured, &tasks, &SystemRandom).await?;
        Ok(Self {
            nats,
            tasks,
            pid_file: folder.join("nats.pid"),
            monitor,
        })
    }

    /// What it has taken and sent so far.
    pub(super) async fn messages(&self) -> Result<Messages> {
        let answer = get(self.monitor, "/varz")
            .await
            .context("nats-server's monitoring page does not answer")?;
        // Without chunks: the server knows the page's length, or ends the connection after it.
        let page = answer.find('{').zip(answer.rfind('}'));
        let page = page.and_then(|(from, to)| answer.get(from..=to));
        let page = page.context("nats-server's monitoring page is empty")?;
        serde_json::from_str(page).context("nats-server's monitoring page is not JSON")
    }

    /// Its process.
    pub(super) fn pid(&self) -> Result<u32> {
        let text = std::fs::read_to_string(&self.pid_file)
            .with_context(|| format!("cannot read {}", self.pid_file.display()))?;
        text.trim()
            .parse()
            .context("nats-server's pid file holds no number")
    }

    /// How to connect to it.
    pub(super) fn config(&self) -> QueueConfig {
        QueueConfig {
            token: Some(self.nats.token.clone()),
            ..QueueConfig::at(self.nats.url.as_str())
        }
    }

    /// A connection to it, once the streams of a bench's one pool are made.
    pub(super) async fn queue(&self) -> Result<(Queue, PoolName)> {
        let config = self.config();
        let queue = Queue::connect(&config, Arc::new(|| SystemClock.now()));
        let queue = queue.await.context("cannot connect")?;
        let pool = PoolName::new(POOL).context("the pool's name")?;
        let made = queue.ensure(std::slice::from_ref(&pool)).await;
        made.context("cannot make the streams")?;
        Ok((queue, pool))
    }

    /// Stops it; everyone who used it has gone.
    pub(super) async fn stop(self) -> Result<()> {
        drop(self.nats);
        self.tasks.shutdown().begin();
        self.tasks.join().await.context("nats-server did not stop")
    }
}
