//! What a hospital's edge puts into its own stream of what it hears from the hub.

use medfleet_core::JobKey;
use medfleet_proto::work::v1::JobEvent;

use crate::api::{Operation, repeatable};
use crate::wire::encode;
use crate::{Queue, Result, subject};

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
        self.publish_news(PUBLISH, &subject, encode(event)).await
    }
}
