//! What a hospital's edge puts into its own stream of what it hears from the hub.

use medfleet_core::JobKey;
use medfleet_proto::work::v1::JobEvent;

use crate::api::{Operation, repeatable};
use crate::wire::encode;
use crate::{Queue, QueueError, Result, subject};

impl Queue {
    /// Publishes an event of the hub's job as one of ours. `sequence` is its place at the hub, and makes it the same event
    /// however often it is published. As with our own events, a full stream stops nothing.
    ///
    /// # Errors
    /// Transient ones: publish again.
    pub async fn publish_hub_event(
        &self,
        key: &JobKey,
        sequence: u64,
        event: &JobEvent,
    ) -> Result<()> {
        const PUBLISH: Operation = repeatable("publish an event of the hub");
        let subject = subject::hub_event(key, event.epoch, sequence);
        let published = self
            .api
            .publish_first(PUBLISH, subject::EVENTS, &subject, encode(event))
            .await;
        match published {
            Err(error @ QueueError::Full { .. }) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "an event is lost; raise queue.stream_bytes_max.events or shorten queue.event_retention"
                );
                Ok(())
            }
            published => published,
        }
    }
}
