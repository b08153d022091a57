//! Finishes accepts whose process died between the record and the intake message, and queues again the jobs that workers have
//! set aside, for as long as the service runs.

use std::collections::HashSet;
use std::time::Duration;

use medfleet_core::{JobKey, JobState, protocol};
use medfleet_queue::{QueueError, Revision};
use medfleet_runtime::Shutdown;
use medfleet_runtime::exit::chain;

use crate::accept::{Acceptor, SUBMIT};

/// Who acts in the audit stream when the sweep finishes an accept: who asked is not known any more.
const SWEEP: &str = "medfleet";

/// Looks again and again until the shutdown.
pub(crate) async fn sweep(acceptor: Acceptor, shutdown: Shutdown) {
    let config = &acceptor.config.accept;
    let (every, pending) = (config.sweep_every.get(), config.pending_after.get());
    // The job's record changes within half of that time or not at all, and must be seen as it is then; that of a job that was
    // set aside as it was at that moment, or later.
    let age = pending.max(pending / 2 + acceptor.queue.outdated_max());
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.begun() => return,
        }
        if let Err(error) = acceptor.sweep_once(age).await {
            tracing::warn!(
                error = chain(&error),
                "the sweep of accepts and of jobs set aside could not finish"
            );
        }
    }
}

impl Acceptor {
    /// One pass over the accepts that began longer than `age` ago, and the jobs that were set aside before that.
    async fn sweep_once(&self, age: Duration) -> Result<(), QueueError> {
        let accepts = self.sweep_accepts(age).await;
        // Whatever keeps accepts waiting: what was set aside may have come further, to where there is room.
        let aside = self.sweep_all_aside(age).await;
        accepts.and(aside)
    }

    async fn sweep_accepts(&self, age: Duration) -> Result<(), QueueError> {
        let mut trouble = Trouble::default();
        for (key, noted) in self.queue.list_pending(age).await? {
            let shard = self.queue.record_shard(&key.job);
            if !trouble.is_at(shard) {
                let swept = go_on(&key, self.sweep_accept(&key, noted).await);
                trouble.note(swept, Some(shard));
            }
        }
        trouble.end()
    }

    async fn sweep_all_aside(&self, age: Duration) -> Result<(), QueueError> {
        let mut trouble = Trouble::default();
        for (key, noted) in self.queue.list_aside(age).await? {
            let shard = self.queue.record_shard(&key.job);
            if !trouble.is_at(shard) {
                let swept = go_on(&key, self.sweep_aside(&key, noted).await);
                // The intake of one stage is full: those that wait for another are not held up by it.
                let is_full = matches!(swept, Err(QueueError::Full { .. }));
                trouble.note(swept, Some(shard).filter(|_| !is_full));
            }
        }
        trouble.end()
    }

    async fn sweep_accept(&self, key: &JobKey, noted: Revision) -> Result<(), QueueError> {
        if let Some((record, _)) = self.queue.record(key).await?
            && record.state == JobState::Accepted
        {
            self.announce(key, &record, (SUBMIT, SWEEP)).await?;
            self.figures.swept.inc();
        }
        // Without a record nobody was told that the job exists.
        self.queue.remove_pending(noted).await
    }

    /// Queues what a job waits for of which a unit was removed; nothing for one that has ended. That one may have ended without
    /// saying so, by a write whose answer was lost: the unit would have said it when it came again.
    ///
    /// The note stays as long as one of the units is with the workers: whoever has set it aside may have stood still since, or its
    /// acknowledgement may still be on its way. What is queued in the place of one that is gone, no such acknowledgement removes.
    async fn sweep_aside(&self, key: &JobKey, noted: Revision) -> Result<(), QueueError> {
        let Some((record, _)) = self.queue.record(key).await? else {
            // It had a record when it was set aside: a server that is behind says so, or the note goes with its own age.
            return Ok(());
        };
        self.queue.publish_event(key, &record).await?;
        let (mut queued_units, mut is_out) = (0, false);
        for unit in protocol::outstanding(key, &record) {
            match self.queue.is_released(&unit).await? {
                true => is_out = true,
                false => queued_units += u32::from(self.requeue_unit(&unit, &record).await?),
            }
        }
        tracing::debug!(job = %key.job, queued_units, is_out, "a job that was set aside is queued again");
        match is_out {
            true => Ok(()),
            false => self.queue.remove_pending(noted).await,
        }
    }
}

/// What did not work in a pass, and the shards of the records of which nothing more is tried in it: one that does not answer holds
/// up no other.
#[derive(Debug, Default)]
struct Trouble {
    shards: HashSet<usize>,
    first: Option<QueueError>,
}

impl Trouble {
    fn note(&mut self, swept: Result<(), QueueError>, shard: Option<usize>) {
        if let Err(error) = swept {
            self.shards.extend(shard);
            self.first.get_or_insert(error);
        }
    }

    fn is_at(&self, shard: usize) -> bool {
        self.shards.contains(&shard)
    }

    fn end(self) -> Result<(), QueueError> {
        self.first.map_or(Ok(()), Err)
    }
}

/// Says what another pass will not mend, such as a record of a newer version, after a rollback: its note waits, and does not
/// hold up the others.
fn go_on(key: &JobKey, swept: Result<(), QueueError>) -> Result<(), QueueError> {
    match swept {
        Err(error) if !error.is_transient() => {
            tracing::error!(error = chain(&error), job = %key.job, "a noted job could not be queued");
            Ok(())
        }
        swept => swept,
    }
}

#[cfg(test)]
mod tests;
