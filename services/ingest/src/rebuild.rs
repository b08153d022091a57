//! How long a new leader takes to know what waits: the reading of the intake into the dispatcher's index, for figures.

use std::time::Duration;

use futures::StreamExt;
use medfleet_core::{Stage, UnixMillis};
use medfleet_queue::{Queue, QueueError};
use tokio::time::Instant;

use crate::config::Config;
use crate::unit::{Held, Index};

/// Reads so many waiting units of preprocess as the dispatcher does when it begins to lead, and takes the first `take` of
/// them in turn. The time of the reading, and of the turns.
///
/// # Errors
/// What cannot be read, and a configuration whose weights are not.
pub async fn rebuild(
    config: &Config,
    queue: &Queue,
    (units, take): (u64, usize),
) -> Result<(Duration, Duration), crate::Error> {
    let begun = Instant::now();
    let mut index = Index::new(config.rules()?);
    let mut waiting = queue.intake(Stage::Preprocess).await?;
    for _ in 0..units {
        let entry = waiting.next().await.ok_or(QueueError::Closed)??;
        index.insert(Held::from(entry));
    }
    let read = begun.elapsed();
    for lane in index.lanes() {
        index.set_slots(&lane, u64::MAX);
    }
    index.take(take, UnixMillis(0));
    Ok((read, begun.elapsed().saturating_sub(read)))
}
