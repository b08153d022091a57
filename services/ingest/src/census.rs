//! Looks every few seconds how the fleet stands, for the metrics: who works, how full the queue is and whether it takes
//! writes, and, where this process is the dispatcher, since when the oldest unit of each class waits. How full it is also tells
//! whether it takes submits (`room`).
//! What cannot be asked keeps its last value; that the queue does not answer is a metric of its own.

use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{Class, PoolName, Stage, chain};
use medfleet_queue::{Queue, QueueError};
use medfleet_runtime::{Clock, Shutdown};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::metrics::Figures;
use crate::room::Room;
use crate::roster::Roster;

/// How often it is looked how many workers there are and how full the queue is.
const EVERY: Duration = Duration::from_secs(5);

/// What the census needs.
#[derive(Debug, Clone)]
pub(crate) struct Census {
    pub(crate) queue: Queue,
    pub(crate) pools: Vec<PoolName>,
    pub(crate) roster: Roster,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) figures: Figures,
    pub(crate) room: Room,
    pub(crate) holder: String,
}

impl Census {
    /// Until the shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = shutdown.begun() => return,
            }
            tokio::select! {
                () = self.look() => {}
                () = shutdown.begun() => return,
            }
        }
    }

    async fn look(&self) {
        let standing = &self.figures.standing;
        standing.show_crews(&self.roster.crews(&self.pools, Instant::now()));
        let writable = self.queue.try_write(&self.holder).await;
        standing.show_writable(writable.is_ok());
        let looked = async {
            writable?;
            let usage = self.queue.usage().await?;
            self.room.look(&usage);
            standing.show_usage(&usage);
            self.look_for_oldest().await
        };
        if let Err(error) = looked.await {
            // Nobody is refused for what was seen some time ago: a stream that is full refuses by itself.
            self.room.look(&[]);
            tracing::debug!(
                error = chain(&error),
                "how the queue stands could not be asked"
            );
        }
    }

    async fn look_for_oldest(&self) -> Result<(), QueueError> {
        for stage in Stage::ALL {
            for pool in &self.pools {
                for class in Class::ALL {
                    if self.figures.leader.get() == 0 {
                        self.figures.standing.clear();
                        return Ok(());
                    }
                    let since = self.queue.oldest(*stage, pool, *class).await?;
                    let now = self.clock.now();
                    let age = since.map_or(0.0, |since| (now.0 - since.0).max(0) as f64 / 1000.0);
                    let standing = &self.figures.standing;
                    standing.show_oldest(*stage, pool, *class, age);
                }
            }
        }
        Ok(())
    }
}
