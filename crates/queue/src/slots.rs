//! How many units the workers of a (stage, pool) take at a time: every worker process says so about once a second, on core
//! NATS. Whoever listens adds up the latest word of each; one that falls silent counts no more after a while.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::{PoolName, Stage};
use medfleet_proto::work::v1::SlotsHint;

use crate::api::{Operation, repeatable};
use crate::wire::{decode, encode};
use crate::{Queue, Result, subject};

/// How often a worker process says how many slots it has.
pub const SLOTS_EVERY: Duration = Duration::from_secs(1);
/// How long its word counts: some may be lost.
pub const SLOTS_FOR: Duration = Duration::from_secs(5);

/// What one worker process has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Its stage.
    pub stage: Stage,
    /// Its pool.
    pub pool: PoolName,
    /// Tells processes apart.
    pub worker: String,
    /// Units that it takes at a time; 0 once it takes no more.
    pub slots: u32,
}

/// Says it for one worker process.
#[derive(Debug, Clone)]
pub struct SlotsTeller {
    queue: Queue,
    subject: String,
    worker: String,
}

impl Queue {
    /// A teller with a name of its own.
    #[must_use]
    pub fn slots_teller(&self, stage: Stage, pool: &PoolName) -> SlotsTeller {
        SlotsTeller {
            queue: self.clone(),
            subject: subject::slots(stage, pool),
            worker: self.api.client.new_inbox(),
        }
    }

    /// What every worker says from now on.
    ///
    /// # Errors
    /// Transient ones.
    pub async fn slots(&self) -> Result<BoxStream<'static, Slots>> {
        const LISTEN: Operation = repeatable("listen to slots");
        let messages = self.api.subscribe(LISTEN, "slots.*.*".to_owned()).await?;
        let slots = messages.filter_map(|message| async move {
            let (stage, pool) = subject::lane_of_slots(&message.subject)?;
            // What this version cannot read is a worker that it does not count.
            let hint: SlotsHint = decode("a slots hint", message.payload).ok()?;
            Some(Slots {
                stage,
                pool,
                worker: hint.worker,
                slots: hint.slots,
            })
        });
        Ok(slots.boxed())
    }
}

impl SlotsTeller {
    /// Says how many there are now.
    ///
    /// # Errors
    /// When it could not be handed to the connection in time: say it again.
    pub async fn tell(&self, slots: u32) -> Result<()> {
        const SEND: Operation = repeatable("say how many slots there are");
        let hint = encode(&SlotsHint {
            worker: self.worker.clone(),
            slots,
        });
        self.queue.api.tell(SEND, self.subject.clone(), hint).await
    }
}
