//! Who works: each worker says so on core NATS about once a second. Nobody stores it; a worker that is silent is gone.

use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_proto::work::v1::WorkerPresence;

use crate::api::{Operation, repeatable};
use crate::wire::{decode, encode};
use crate::{Queue, Result, subject};

impl Queue {
    /// A name that no other process has.
    pub fn fresh_name(&self) -> String {
        let inbox = self.api.client.new_inbox();
        inbox.rsplit('.').next().unwrap_or_default().to_owned()
    }

    /// Says that a worker is there. Call it about once a second.
    ///
    /// # Errors
    /// When it could not be handed to the connection in time.
    pub async fn publish_presence(&self, presence: &WorkerPresence) -> Result<()> {
        const SEND: Operation = repeatable("say that a worker is there");
        let subject = subject::PRESENCE.to_owned();
        self.api.tell(SEND, subject, encode(presence)).await
    }

    /// What workers say of themselves from now on; what this version cannot read is left out.
    pub async fn presences(&self) -> Result<BoxStream<'static, WorkerPresence>> {
        const LISTEN: Operation = repeatable("listen to workers");
        let messages = self.api.subscribe(LISTEN, subject::PRESENCE.to_owned());
        let said = messages.await?.filter_map(|message| async move {
            decode::<WorkerPresence>("a worker's presence", message.payload).ok()
        });
        Ok(said.boxed())
    }
}
