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

use medfleet_core::setting::DurationText;
use medfleet_testkit::{start, start_with};

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn short(millis: u64) -> DurationText {
    DurationText::from_millis(millis)
}
