//! A job at its beginning.

use super::{Chunks, JobRecord, JobState, Starts, Times, UnixMillis};
use crate::{Class, Cost, Digest, PoolName, Pseudonyms, TaskKind};

/// What is known of a job when it is accepted; each is told in [`JobRecord`].
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Whose workers serve it.
    pub pool: PoolName,
    /// The class that was asked for.
    pub class: Class,
    pub task: TaskKind,
    pub image_count: u32,
    /// Digest of the submitted body.
    pub body: Digest,
    /// Study manifest.
    pub study: Digest,
    /// By which patient and studies it can be found.
    pub pseudonyms: Pseudonyms,
    pub accepted: UnixMillis,
    /// When it becomes expired.
    pub expires: UnixMillis,
    /// W3C traceparent of the accept.
    pub traceparent: String,
    /// Model alias as asked for.
    pub model: String,
    /// What it is expected to take.
    pub cost: Cost,
}

impl JobRecord {
    /// The record that a job begins with.
    pub fn accepted(job: NewJob) -> Self {
        Self {
            state: JobState::Accepted,
            epoch: 0,
            attempt: 0,
            starts: Starts::default(),
            chunks: Chunks::default(),
            pool: job.pool,
            class: job.class,
            class_asked: job.class,
            task: job.task,
            image_count: job.image_count,
            body: job.body,
            study: job.study,
            pseudonyms: job.pseudonyms,
            frames: None,
            result: None,
            failure: None,
            times: Times {
                accepted: job.accepted,
                ..Times::default()
            },
            expires: job.expires,
            traceparent: job.traceparent,
            model: job.model,
            erased: None,
            cost: job.cost,
            forwarded: None,
        }
    }
}
