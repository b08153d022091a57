//! Publishes about once a second that this worker is there and how many units it takes at a time, those for STAT apart.
//! Dispatchers release as much as all workers can soon do, and the status page shows them.

use std::convert::Infallible;
use std::time::Duration;

use medfleet_core::{Stage, chain};
use medfleet_proto::work::v1::WorkerPresence;
use tokio::time::{MissedTickBehavior, interval};

use crate::slot::Worker;

/// How often a worker announces itself; listeners count it as gone after five times this.
pub const PRESENCE_EVERY: Duration = Duration::from_secs(1);

/// Announces the worker until the task is stopped. A message that is lost is made good by the next one.
pub(crate) async fn announce(
    worker: Worker,
    stage: Stage,
    stat_slots: usize,
) -> Result<(), Infallible> {
    let slots = u32::try_from(worker.config.slots.get()).unwrap_or(u32::MAX);
    let shutdown = worker.tasks.shutdown().clone();
    let mut presence = WorkerPresence {
        worker: worker.queue.fresh_name(),
        stage: stage.as_str().to_owned(),
        pool: worker.pool.to_string(),
        slots,
        busy: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        draining: false,
        stat_slots: u32::try_from(stat_slots).unwrap_or(u32::MAX),
    };
    let mut every = interval(PRESENCE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = shutdown.begun(), if !presence.draining => presence.draining = true,
        }
        // Units that wait aside take no slot; those in STAT slots come beyond the others, and take none from these.
        let at_work = u32::try_from(worker.metrics.at_work());
        presence.busy = at_work.unwrap_or(0).min(slots);
        if let Err(error) = worker.queue.publish_presence(&presence).await {
            tracing::debug!(
                error = chain(&error),
                "nobody was told that this worker is there"
            );
        }
    }
}
