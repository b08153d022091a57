//! A nats-server and a queue of a bench's own, and their orderly end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use medfleet_queue::QueueConfig;
use medfleet_runtime::{Shutdown, SystemRandom, TaskSet};

use crate::fleet::nats::{self, Nats};

/// How long the server may take to stop.
const STOP_MAX: Duration = Duration::from_secs(15);

/// A running nats-server, configured as `medfleet up` does it.
pub(super) struct LocalNats {
    nats: Nats,
    tasks: TaskSet,
}

impl LocalNats {
    pub(super) async fn start(folder: &Path, cache: Option<&Path>) -> Result<Self> {
        let folder = folder.join("nats");
        std::fs::create_dir(&folder).context("cannot make the folder of nats-server")?;
        let tasks = TaskSet::new(Shutdown::new(STOP_MAX));
        let nats = Nats::start(&nats::find(cache)?, &folder, &tasks, &SystemRandom).await?;
        Ok(Self { nats, tasks })
    }

    /// How to connect to it.
    pub(super) fn config(&self) -> QueueConfig {
        QueueConfig {
            token: Some(self.nats.token.clone()),
            ..QueueConfig::at(self.nats.url.as_str())
        }
    }

    /// Stops it; everyone who used it has gone.
    pub(super) async fn stop(self) -> Result<()> {
        drop(self.nats);
        self.tasks.shutdown().begin();
        self.tasks.join().await.context("nats-server did not stop")
    }
}
