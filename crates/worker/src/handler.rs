//! What a service implements: how a started unit is worked on.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use medfleet_core::protocol::{Setback, after_refused, next};
use medfleet_core::{Failure, FailureReason, JobRecord, Move, Refused, Stage, WorkUnit};
use medfleet_queue::{Applied, Headers, Queue, QueueError, Revision, Seen};
use medfleet_runtime::Clock;
use medfleet_store::StoreError;
use tokio::sync::Mutex;

use crate::place::Place;

/// One stage's work.
pub trait Handler: Send + Sync + 'static {
    const STAGE: Stage;

    /// Additional slots that take only units of class STAT, so that one begins although all other slots are taken. The handler
    /// has to work on such a unit at once.
    const STAT_SLOTS: usize = 0;

    /// For each slot, how many units may be in hand besides the one that is worked on: those that have left their place
    /// ([`Place::leave`]) and wait.
    const ASIDE: usize = 0;

    /// What the work is done on.
    type Inputs: Send;

    /// Reads what the work is done on, and nothing else: this happens while the start is being recorded, and is thrown
    /// away when the unit is not to be worked on.
    ///
    /// # Errors
    /// Counts as the work's own, once the start is recorded.
    fn read(
        &self,
        unit: &WorkUnit,
        record: &JobRecord,
    ) -> impl Future<Output = Result<Self::Inputs, Ending>> + Send;

    /// Works on a unit whose start is recorded: makes its outputs durable, then calls [`Started::advance`].
    /// It may be dropped at any await: when the job ended, when another attempt took over, when the process stops.
    ///
    /// # Errors
    /// How it ended other than well; [`Ending`] becomes the verdict.
    fn work(
        &self,
        started: &Started,
        inputs: Self::Inputs,
    ) -> impl Future<Output = Result<(), Ending>> + Send;
}

/// How work on a unit ended other than well.
#[derive(Debug)]
pub enum Ending {
    /// Not the job's fault: hand back and try again later.
    Retry(Box<dyn Error + Send + Sync>),
    /// Perhaps the job's fault: try again later, and count this start against its limit.
    Wrong(Box<dyn Error + Send + Sync>),
    /// The job cannot be done.
    Fail(Failure),
    /// What has to be there is not: as [`Ending::Fail`], unless an outdated server may have said so.
    Missing(Failure),
    /// Somebody else did the same work meanwhile: queue what follows.
    Repeat(Box<JobRecord>),
    /// Another attempt owns the job: touch nothing.
    Superseded,
    /// The job is over.
    Over(Option<Box<JobRecord>>),
}

impl Ending {
    /// Not the job's fault.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Retry(error.into())
    }

    /// Perhaps the job's fault.
    pub fn wrong(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Wrong(error.into())
    }

    /// The job cannot be done.
    pub fn fail(reason: FailureReason, message: impl Into<String>) -> Self {
        Self::Fail(Failure::new(reason, message))
    }

    /// What has to be there is not.
    pub fn missing(reason: FailureReason, message: impl Into<String>) -> Self {
        Self::Missing(Failure::new(reason, message))
    }

    /// What a refused move means for the one who made it.
    pub fn of_refused(reason: &Refused, record: JobRecord) -> Self {
        match after_refused(reason) {
            Setback::Over => Self::Over(Some(Box::new(record))),
            Setback::Superseded => Self::Superseded,
            Setback::Repeat => Self::Repeat(Box::new(record)),
            Setback::Fail(failure) => Self::Fail(failure),
        }
    }
}

impl From<QueueError> for Ending {
    fn from(error: QueueError) -> Self {
        match error {
            // Another try would end the same way.
            QueueError::Internal { .. }
            | QueueError::TooLarge { .. }
            | QueueError::Malformed { .. } => {
                Self::fail(FailureReason::Internal, error.to_string())
            }
            error => Self::retry(error),
        }
    }
}

impl From<StoreError> for Ending {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::JobErased => Self::Over(None),
            StoreError::Missing { .. } => {
                Self::missing(FailureReason::Integrity, error.to_string())
            }
            StoreError::Corrupt { .. } => Self::fail(FailureReason::Integrity, error.to_string()),
            StoreError::TooLarge { .. } => Self::fail(FailureReason::Internal, error.to_string()),
            error => Self::retry(error),
        }
    }
}

/// A unit whose start is recorded.
#[derive(Debug)]
pub struct Started {
    pub unit: WorkUnit,
    /// The job's record after the start; `attempt` in it is this worker's fence when the stage is decode.
    pub record: JobRecord,
    /// Trace context for what follows.
    pub headers: Headers,
    /// Its place among the units in hand.
    pub place: Arc<Place>,
    pub(crate) revision: Revision,
    pub(crate) queue: Queue,
    pub(crate) clock: Arc<dyn Clock>,
    /// How long the event of the start may be put off: an outcome that comes by then is announced in its place.
    pub(crate) announce_after: Duration,
    /// Whether the event of the start was published, or is not needed any more.
    pub(crate) is_announced: Mutex<bool>,
}

impl Started {
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The job's decode attempt: the fence of what this worker writes.
    pub fn attempt(&self) -> u32 {
        self.record.attempt
    }

    /// Publishes the event of the start, once the work has taken [`Started::announce_after`]. It then says where the job stands by
    /// now, and nothing if the job has moved on to another state: other chunks may be done since, and a watcher must never see
    /// progress go backwards.
    pub(crate) async fn announce_in_time(&self) -> Result<(), QueueError> {
        if self.announce_after.is_zero() {
            return self.announce(&self.record).await;
        }
        tokio::time::sleep(self.announce_after).await;
        let stands = self.queue.record(&self.unit.key).await?;
        let begun = (self.record.epoch, self.record.state);
        match stands {
            Some((record, _)) if (record.epoch, record.state) == begun => {
                self.announce(&record).await
            }
            _ => Ok(()),
        }
    }

    /// Publishes the event of the start, once; a second caller waits until the first one has.
    async fn announce(&self, record: &JobRecord) -> Result<(), QueueError> {
        let mut is_announced = self.is_announced.lock().await;
        if !*is_announced {
            self.queue.publish_event(&self.unit.key, record).await?;
            *is_announced = true;
        }
        Ok(())
    }

    /// Records that the outputs are durable, then publishes the event and what follows from the new record.
    pub async fn advance(&self, step: &Move) -> Result<JobRecord, Ending> {
        let key = &self.unit.key;
        if self.announce_after.is_zero() {
            // Watchers see the start before its outcome.
            self.announce(&self.record).await?;
        } else {
            // Watchers see the outcome alone, which names the same state, unless the start was announced already.
            *self.is_announced.lock().await = true;
        }
        let seen = Seen::Record(&self.record, self.revision);
        let applied = self
            .queue
            .apply_without_event(key, seen, step, self.clock.now())
            .await?;
        let record = match applied {
            Applied::Applied { record, .. } => record,
            Applied::Refused { reason, record } => return Err(Ending::of_refused(&reason, record)),
            Applied::OtherEpoch { .. } => return Err(Ending::Over(None)),
            // The next delivery finds out whether the job is really gone.
            Applied::Missing => return Err(Ending::Superseded),
        };
        let event = self.queue.publish_event(key, &record);
        let follow = publish(&self.queue, next(&self.unit, &record), &self.headers);
        let (event, follow) = tokio::join!(event, follow);
        event?;
        follow?;
        Ok(record)
    }
}

/// Queues units for their release, all at once; one that is queued already is not an error.
pub(crate) async fn publish(
    queue: &Queue,
    next: Vec<WorkUnit>,
    headers: &Headers,
) -> Result<(), QueueError> {
    let published = next.iter().map(|unit| queue.publish_intake(unit, headers));
    for published in join_all(published).await {
        published?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
