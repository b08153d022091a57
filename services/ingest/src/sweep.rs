//! Finishes accepts whose process died between the record and the intake message, queues again the jobs that workers have set
//! aside, and those that stand still because a unit of theirs is in no queue any more, for as long as the service runs.

use std::collections::HashSet;
use std::time::Duration;

use medfleet_core::{JobKey, JobRecord, JobState, protocol};
use medfleet_queue::{QueueError, Revision};
use medfleet_runtime::Shutdown;
use medfleet_runtime::exit::chain;
use tokio::time::Instant;

use crate::accept::{Acceptor, SUBMIT};

/// The actor in the audit stream when the sweep finishes an accept, as the caller is not known any more.
const SWEEP: &str = "medfleet";

/// Jobs that stand still and are looked after in one round: two or three requests each. Most of them wait for their turn.
const STILL_MAX: usize = 1024;

/// Sweeps at regular times until the shutdown.
pub(crate) async fn sweep(acceptor: Acceptor, shutdown: Shutdown) {
    let config = &acceptor.config.accept;
    let (every, pending) = (config.sweep_every.get(), config.pending_after.get());
    // An accept or a replay changes the job's record within half of `pending_after`, or not at all; a job that is set aside has its
    // record before. After `outdated_max` more even a server that was outdated shows it so, or as it became later.
    let age = pending.max(pending / 2 + acceptor.queue.outdated_max());
    let (mut next_round, mut turn) = (Instant::now() + pending, 0);
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
        if Instant::now() >= next_round {
            next_round = Instant::now() + pending;
            if let Err(error) = acceptor.sweep_still(&mut turn).await {
                tracing::warn!(
                    error = chain(&error),
                    "the jobs that stand still could not all be looked after"
                );
            }
        }
    }
}

impl Acceptor {
    /// One pass over the accepts that began longer than `age` ago, and the jobs that were set aside before that.
    async fn sweep_once(&self, age: Duration) -> Result<(), QueueError> {
        let accepts = self.sweep_accepts(age).await;
        // Also after trouble with the accepts: jobs that were set aside may wait for another stage, whose intake has room.
        let aside = self.sweep_all_aside(age).await;
        accepts.and(aside)
    }

    async fn sweep_accepts(&self, age: Duration) -> Result<(), QueueError> {
        let (mut trouble, losses) = (Trouble::default(), self.queue.losses());
        for (key, noted) in self.queue.list_pending(age).await? {
            let shard = self.queue.record_shard(&key.job);
            if !trouble.is_at(shard) {
                let swept = go_on(&key, self.sweep_accept(&key, (noted, losses)).await);
                trouble.note(swept, Some(shard));
            }
        }
        trouble.end()
    }

    async fn sweep_all_aside(&self, age: Duration) -> Result<(), QueueError> {
        let (mut trouble, losses) = (Trouble::default(), self.queue.losses());
        for (key, noted) in self.queue.list_aside(age).await? {
            let shard = self.queue.record_shard(&key.job);
            if !trouble.is_at(shard) {
                let swept = go_on(&key, self.sweep_aside(&key, (noted, losses)).await);
                // The intake of one stage is full: those that wait for another are not held up by it.
                let is_full = matches!(swept, Err(QueueError::Full { .. }));
                trouble.note(swept, Some(shard).filter(|_| !is_full));
            }
        }
        trouble.end()
    }

    /// One round over the open jobs: queues the units of those that have come no further in the whole round before and are in no
    /// queue. No step of ours loses a unit, but a server may. Only the dispatcher's process looks; what it queues twice, it
    /// releases once. `turn` is where it left off when there were too many.
    async fn sweep_still(&self, turn: &mut usize) -> Result<(), QueueError> {
        let still = self.open.next_round();
        if self.figures.leader.get() == 0 || still.is_empty() {
            return Ok(());
        }
        let first = *turn % still.len();
        let in_turn = still[first..].iter().chain(&still[..first]);
        let mut trouble = Trouble::default();
        for key in in_turn.take(STILL_MAX) {
            *turn = turn.wrapping_add(1);
            let shard = self.queue.record_shard(&key.job);
            if !trouble.is_at(shard) {
                trouble.note(go_on(key, self.look_after(key).await), Some(shard));
            }
        }
        trouble.end()
    }

    /// Queues the units that a job waits for and that are neither in the intake nor with the workers, unless the job was set aside.
    async fn look_after(&self, key: &JobKey) -> Result<(), QueueError> {
        let Some(record) = self.standing(key).await? else {
            return Ok(());
        };
        for unit in protocol::outstanding(key, &record) {
            if self.queue.is_queued(&unit).await? || self.queue.is_aside(key).await? {
                continue;
            }
            // A unit whose work has ended meanwhile is in no queue either, and its job has come further.
            let Some(record) = self.standing(key).await? else {
                return Ok(());
            };
            if self.requeue_unit(&unit, &record).await? {
                tracing::warn!(job = %key.job, stage = %unit.stage, unit = unit.unit, "a unit was in no queue, and is queued again");
            }
        }
        Ok(())
    }

    /// The record of a job, unless it has come further in this round: whoever moved it may still be about to queue what follows.
    async fn standing(&self, key: &JobKey) -> Result<Option<JobRecord>, QueueError> {
        let Some((record, _)) = self.queue.record(key).await? else {
            // The next reading of all records decides whether it is gone.
            return Ok(None);
        };
        self.open.take_record(key, &record);
        Ok(self.open.stands_still(key).then_some(record))
    }

    /// Finishes an accept that was noted, as it was listed when the connection had been lost so often.
    async fn sweep_accept(
        &self,
        key: &JobKey,
        (noted, losses): (Revision, u64),
    ) -> Result<(), QueueError> {
        if let Some((record, _)) = self.queue.record(key).await?
            && record.state == JobState::Accepted
        {
            self.announce(key, &record, (SUBMIT, SWEEP)).await?;
            self.figures.swept.inc();
        }
        // A job without a record was never answered for, so there is nothing to finish.
        self.queue.remove_pending(noted, losses).await
    }

    /// Queues the units that a job waits for after one of them was removed, and publishes its latest event: a job that has ended by
    /// a write whose answer was lost has published none, and the unit that would have done so is gone.
    ///
    /// The note stays as long as one of the units is with the workers. The worker that set it aside may have stood still before it
    /// removed the unit, or its acknowledgement may still be on its way. Such a late acknowledgement does not remove a unit that is
    /// queued now, in the place of one that is gone.
    async fn sweep_aside(
        &self,
        key: &JobKey,
        (noted, losses): (Revision, u64),
    ) -> Result<(), QueueError> {
        let Some((record, _)) = self.queue.record(key).await? else {
            // It had a record when it was set aside. Either an outdated server answers, and the next pass finds it; or the
            // record is gone, and the note expires by its age.
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
            false => self.queue.remove_pending(noted, losses).await,
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

/// Logs an error that another pass cannot mend, such as a record of a newer release after a rollback, and goes on: the job waits,
/// with its note where it has one, and does not hold up the others.
fn go_on(key: &JobKey, swept: Result<(), QueueError>) -> Result<(), QueueError> {
    match swept {
        Err(error) if !error.is_transient() => {
            tracing::error!(error = chain(&error), job = %key.job, "a job could not be queued");
            Ok(())
        }
        swept => swept,
    }
}

#[cfg(test)]
mod tests;
