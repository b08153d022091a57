//! Finishes accepts whose process died between the record and the intake message, queues again the jobs that workers have set
//! aside, and those that stand still because a unit of theirs is in no queue any more, for as long as the service runs.

use std::collections::HashSet;
use std::time::Duration;

use medfleet_core::{JobKey, JobRecord, JobState, Stage, WorkUnit, chain, protocol};
use medfleet_queue::{QueueError, Revision};
use medfleet_runtime::Shutdown;
use tokio::time::Instant;

use crate::accept::{Acceptor, SUBMIT};

/// The actor in the audit stream when the sweep finishes an accept, as the caller is not known any more.
const SWEEP: &str = "medfleet";

/// Jobs that stand still and are looked after in one round: two or three requests each. Most of them wait for their turn.
const STILL_MAX: usize = 1024;

/// Jobs, with their epochs, of which the sweep has written a line in the audit and that still wait for room.
type Told = HashSet<(JobKey, u32)>;

/// Sweeps at regular times until the shutdown.
pub(crate) async fn sweep(acceptor: Acceptor, shutdown: Shutdown) {
    let config = &acceptor.config.accept;
    let (every, pending) = (config.sweep_every.get(), config.pending_after.get());
    // An accept or a replay changes the job's record within half of `pending_after`, or not at all; a job that is set aside has its
    // record before. After `outdated_max` more even a server that was outdated shows it so, or as it became later.
    let age = pending.max(pending / 2 + acceptor.queue.outdated_max());
    let (mut next_round, mut last) = (Instant::now() + pending, None);
    let mut told = Told::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.begun() => return,
        }
        if let Err(error) = acceptor.sweep_once(age, &mut told).await {
            tracing::warn!(
                error = chain(&error),
                "the sweep of accepts and of jobs set aside could not finish"
            );
        }
        if Instant::now() >= next_round {
            next_round = Instant::now() + pending;
            if let Err(error) = acceptor.sweep_still(&mut last).await {
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
    async fn sweep_once(&self, age: Duration, told: &mut Told) -> Result<(), QueueError> {
        let accepts = self.sweep_accepts(age, told).await;
        // Also after trouble with the accepts: jobs that were set aside may wait for another stage, whose intake has room.
        let aside = self.sweep_all_aside(age).await;
        accepts.and(aside)
    }

    async fn sweep_accepts(&self, age: Duration, told: &mut Told) -> Result<(), QueueError> {
        let (mut trouble, losses) = (Trouble::default(), self.queue.losses());
        let pending = self.queue.list_pending(age).await?;
        told.retain(|(told, _)| pending.iter().any(|(key, _)| key == told));
        for (key, noted) in pending {
            let records = self.records_of(&key);
            if !trouble.is_at(records) {
                let swept = self.sweep_accept(&key, (noted, losses), told).await;
                trouble.note(&key, records, swept);
            }
        }
        trouble.end()
    }

    async fn sweep_all_aside(&self, age: Duration) -> Result<(), QueueError> {
        let (mut trouble, losses) = (Trouble::default(), self.queue.losses());
        for (key, noted) in self.queue.list_aside(age).await? {
            self.sweep_aside(&key, (noted, losses), &mut trouble).await;
        }
        trouble.end()
    }

    /// One round over the open jobs: queues the units of those that have come no further in the whole round before and are in no
    /// queue. No step of ours loses a unit, but a server may. Only the dispatcher's process looks; what it queues twice, it
    /// releases once. `last` is the job that it looked after last, for the next round where there were too many.
    async fn sweep_still(&self, last: &mut Option<JobKey>) -> Result<(), QueueError> {
        let still = self.open.next_round();
        if self.figures.leader.get() == 0 {
            return Ok(());
        }
        let mut trouble = Trouble::default();
        for key in in_turn(still, last.as_ref()) {
            self.look_after(&key, &mut trouble).await;
            *last = Some(key);
        }
        trouble.end()
    }

    fn records_of(&self, key: &JobKey) -> Place {
        Place::Records(self.queue.record_shard(&key.job))
    }

    /// Queues the units that a job waits for and that are neither in the intake nor with the workers, unless the job was set aside.
    async fn look_after(&self, key: &JobKey, trouble: &mut Trouble) {
        let records = self.records_of(key);
        if trouble.is_at(records) {
            return;
        }
        let record = match self.standing(key).await {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(error) => return trouble.note(key, records, Err(error)),
        };
        // All of them are of one stage.
        for unit in protocol::outstanding(key, &record) {
            let stage = Place::Stage(unit.stage);
            if !trouble.is_at(stage) {
                let looked = self.look_after_unit(&unit).await;
                trouble.note(key, stage, looked);
            }
        }
    }

    async fn look_after_unit(&self, unit: &WorkUnit) -> Result<(), QueueError> {
        let key = &unit.key;
        if self.queue.is_queued(unit).await? || self.queue.is_aside(key).await? {
            return Ok(());
        }
        // A unit whose work has ended meanwhile is in no queue either, and its job has come further.
        let Some(record) = self.standing(key).await? else {
            return Ok(());
        };
        if self.requeue_unit(unit, &record).await? {
            tracing::warn!(job = %key.job, stage = %unit.stage, unit = unit.unit, "a unit was in no queue, and is queued again");
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
        told: &mut Told,
    ) -> Result<(), QueueError> {
        if let Some((record, _)) = self.queue.record(key).await?
            && record.state == JobState::Accepted
        {
            // It may be met again at every pass until the intake has room.
            let job = (key.clone(), record.epoch);
            if !told.contains(&job) {
                self.audit(key, SUBMIT, SWEEP).await?;
                told.insert(job);
            }
            self.go_on(key, &record).await?;
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
        trouble: &mut Trouble,
    ) {
        let records = self.records_of(key);
        if trouble.is_at(records) {
            return;
        }
        let record = match self.told(key).await {
            Ok(Some(record)) => record,
            // It had a record when it was set aside. Either an outdated server answers, and the next pass finds it; or the
            // record is gone, and the note expires by its age.
            Ok(None) => return,
            Err(error) => return trouble.note(key, records, Err(error)),
        };
        let (mut queued_units, mut is_out) = (0, false);
        for unit in protocol::outstanding(key, &record) {
            let stage = Place::Stage(unit.stage);
            if trouble.is_at(stage) {
                return;
            }
            match self.queued_again(&unit, &record).await {
                Ok(Some(is_new)) => queued_units += u32::from(is_new),
                Ok(None) => is_out = true,
                Err(error) => return trouble.note(key, stage, Err(error)),
            }
        }
        tracing::debug!(job = %key.job, queued_units, is_out, "a job that was set aside is queued again");
        if !is_out {
            let removed = self.queue.remove_pending(noted, losses).await;
            trouble.note(key, records, removed);
        }
    }

    /// A job's record, whose latest event is published by then.
    async fn told(&self, key: &JobKey) -> Result<Option<JobRecord>, QueueError> {
        let Some((record, _)) = self.queue.record(key).await? else {
            return Ok(None);
        };
        self.queue.publish_event(key, &record).await?;
        Ok(Some(record))
    }

    /// Queues a unit, unless it is with the workers; says whether it was not queued before.
    async fn queued_again(
        &self,
        unit: &WorkUnit,
        record: &JobRecord,
    ) -> Result<Option<bool>, QueueError> {
        match self.queue.is_released(unit).await? {
            true => Ok(None),
            false => self.requeue_unit(unit, record).await.map(Some),
        }
    }
}

/// The jobs to look after in a round, from the one behind `last` on. In order of their names: whichever come and go between two
/// rounds, nobody is passed over.
fn in_turn(mut still: Vec<JobKey>, last: Option<&JobKey>) -> Vec<JobKey> {
    still.sort_unstable();
    let next = still.partition_point(|key| last.is_some_and(|last| key <= last));
    still.rotate_left(next);
    still.truncate(STILL_MAX);
    still
}

/// What a step needs, and whoever else needs it would wait for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// A shard of the records.
    Records(usize),
    /// The intake and the workers' queue of a stage. The intake may be full.
    Stage(Stage),
}

/// What did not work in a pass, and the places of which nothing more is tried in it: one that does not answer holds up no other.
#[derive(Debug, Default)]
struct Trouble {
    places: HashSet<Place>,
    first: Option<QueueError>,
}

impl Trouble {
    /// Logs an error that another pass cannot mend, such as a record of a newer release after a rollback, and goes on: the job
    /// waits, with its note where it has one, and does not hold up the others.
    fn note(&mut self, key: &JobKey, place: Place, swept: Result<(), QueueError>) {
        match swept {
            Ok(()) => {}
            Err(error) if !error.is_transient() => {
                tracing::error!(error = chain(&error), job = %key.job, "a job could not be queued");
            }
            Err(error) => {
                self.places.insert(place);
                self.first.get_or_insert(error);
            }
        }
    }

    fn is_at(&self, place: Place) -> bool {
        self.places.contains(&place)
    }

    fn end(self) -> Result<(), QueueError> {
        self.first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
