//! Erasure: everything that was stored for a job goes, by its tenant's wish or because its time of keeping is over.
//!
//! Order of an erasure: audit → cancel → tombstone in the store → record marked → texts → dead letters → blobs → hint to
//! memories. The audit comes first, so that nothing goes without a word of who wanted it. The tombstone keeps a stage at work
//! from bringing anything back, the mark keeps the job from being started over. Whatever breaks, calling again finishes it,
//! and so does the keeper.
//!
//! Reading order: this file (one job), `many` (every job of a patient or a study).

pub(crate) mod many;

use medfleet_core::{JobKey, JobRecord, JobState, Move, Refused, UnixMillis, chain};
use medfleet_queue::{Applied, Queue};
use medfleet_store::{Erased, Relied, StoreError};

use crate::accept::Acceptor;
use crate::blobs::Blobs;
use crate::error::Refusal;
use crate::tokens::Caller;

/// Times that a job may be started over while it is being erased.
const TRIES: u32 = 8;
/// Epochs whose texts are looked for beyond the record's own: a decode of the epoch before may have been late.
const EPOCHS_MAX: u32 = 1_000;

impl Acceptor {
    /// Erases a job that exists, ended or not. `relied` goes from one job of the tenant to the next.
    pub(crate) async fn erase(
        &self,
        caller: &Caller,
        key: &JobKey,
        relied: &mut Relied,
    ) -> Result<(JobRecord, Erased), Refusal> {
        self.audit(key, "erase", &caller.actor).await?;
        let record = mark(&self.queue, &self.blobs, key, self.clock.now()).await?;
        let erased = remove(&self.queue, &self.blobs, (key, &record), relied).await?;
        self.figures.erased.inc();
        self.quotas.made_room(&key.tenant);
        Ok((record, erased))
    }
}

/// Ends the job and marks it, so that nothing starts it over.
pub(crate) async fn mark(
    queue: &Queue,
    blobs: &Blobs,
    key: &JobKey,
    now: UnixMillis,
) -> Result<JobRecord, Refusal> {
    for _ in 0..TRIES {
        end(queue, key, now).await?;
        blobs.bury(key).await?;
        match queue.apply(key, None, &Move::Erase, now).await? {
            Applied::Applied { record, .. } => return Ok(record),
            // It was started over in between.
            Applied::Refused { .. } | Applied::OtherEpoch { .. } => {}
            Applied::Missing => return Err(Refusal::NotFound { what: "job" }),
        }
    }
    Err(Refusal::Replayed)
}

/// Makes sure that the job has ended.
async fn end(queue: &Queue, key: &JobKey, now: UnixMillis) -> Result<(), Refusal> {
    match queue.apply(key, None, &Move::Cancel, now).await? {
        Applied::Applied { .. } => {
            if let Err(error) = queue.publish_cancel(key).await {
                // Only a hint: the worker learns it from the record at its next heartbeat.
                tracing::debug!(error = chain(&error), "a cancel hint was lost");
            }
            Ok(())
        }
        Applied::Refused {
            reason: Refused::Final { .. },
            ..
        } => Ok(()),
        Applied::Refused { record, .. } | Applied::OtherEpoch { record } => {
            Err(Refusal::WrongState {
                state: record.state,
                wanted: "only one that has ended is erased",
            })
        }
        Applied::Missing => Err(Refusal::NotFound { what: "job" }),
    }
}

/// What is left of an erased job goes: texts, dead letters, blobs, and what workers have in memory.
pub(crate) async fn remove(
    queue: &Queue,
    blobs: &Blobs,
    (key, record): (&JobKey, &JobRecord),
    relied: &mut Relied,
) -> Result<Erased, Refusal> {
    let texts = remove_texts(blobs, key, record).await?;
    queue.discard_dead_of(key).await?;
    // With the blobs go the job's references, by which the keeper finds an erasure that broke.
    let mut erased = blobs.erase(key, relied).await?;
    erased.deleted += texts;
    if let Err(error) = queue.publish_erased(key).await {
        // Memories are small and forget by themselves.
        tracing::debug!(error = chain(&error), "an erasure hint was lost");
    }
    Ok(erased)
}

/// The texts that decode stored while it wrote, of every epoch.
pub(crate) async fn remove_texts(
    blobs: &Blobs,
    key: &JobKey,
    record: &JobRecord,
) -> Result<u64, StoreError> {
    let mut removed = 0;
    for epoch in 0..=record.epoch.min(EPOCHS_MAX) {
        removed += u64::from(blobs.delete_text(key, epoch).await?);
    }
    Ok(removed)
}

/// Why a job without a result has none.
pub(crate) fn no_result(record: &JobRecord) -> Refusal {
    match (record.erased, record.state) {
        (Some(_), _) => Refusal::Store(StoreError::JobErased),
        (None, JobState::Completed) => Refusal::NotFound {
            what: "result any more",
        },
        (None, state) => Refusal::WrongState {
            state,
            wanted: "only a completed one has a result",
        },
    }
}

#[cfg(test)]
mod tests;
