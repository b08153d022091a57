//! The queue against a real nats-server: one server of its own for each test.

mod claims;
mod connect;
mod events;
mod intake;
mod ledgers;
mod objects;
mod records;
mod restart;
mod search;
mod shards;
mod units;
mod unreadable;
mod upgrade;

use std::time::Duration;

use anyhow::Result;
use medfleet_core::setting::DurationText;
use medfleet_queue::{Queue, QueueConfig};
use medfleet_testkit::{self as kit, NatsServer};

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server and a queue on it; keep both.
async fn start() -> Result<(NatsServer, Queue)> {
    start_with(|_| {}).await
}

/// As [`start`], with other settings.
async fn start_with(change: impl FnOnce(&mut QueueConfig)) -> Result<(NatsServer, Queue)> {
    let server = NatsServer::start().await?;
    let mut config = kit::config(&server.url());
    change(&mut config);
    let queue = kit::queue(&config).await?;
    Ok((server, queue))
}

fn short(millis: u64) -> DurationText {
    DurationText::from_millis(millis)
}
