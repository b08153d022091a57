//! One unit of work of one stage: what a queue message says, and no more.

use crate::{Class, Cost, JobKey, PoolName, Stage, UnixMillis};

/// A unit of work. Bytes, prompts and lists are blobs that the job's record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkUnit {
    pub key: JobKey,
    pub stage: Stage,
    /// Whose workers may do it.
    pub pool: PoolName,
    /// How soon it matters.
    pub class: Class,
    /// The chunk for encode, otherwise 0.
    pub unit: u32,
    /// Replay epoch it was made in; an older one than the record's is dropped.
    pub epoch: u32,
    /// When the job becomes expired.
    pub expires: UnixMillis,
    /// What it is expected to take; the rates of its job, and the frames of this unit.
    pub cost: Cost,
}

impl WorkUnit {
    /// The unit of the same job at another stage, with what it is expected to take.
    #[must_use]
    pub fn at(&self, stage: Stage, unit: u32, cost: Cost) -> Self {
        Self {
            stage,
            unit,
            cost,
            ..self.clone()
        }
    }
}
