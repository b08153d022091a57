//! The domain words of medfleet: ids, classes, stages, the job record and its state machine, verdicts, settings.
//! No I/O, no clock, no async, no wire types: decisions made here are pure, and every other crate can depend on them.
//!
//! Reading order: `record` (the state machine), [`protocol`] (what each side does with what it finds), [`invariant`], `verdict`,
//! `unit`, then the small types.

mod cause;
mod class;
mod cost;
mod digest;
mod guard;
mod id;
pub mod invariant;
mod limits;
#[cfg(test)]
mod model;
mod pause;
pub mod protocol;
mod pseudonym;
mod record;
pub mod setting;
pub mod splitmix;
mod unit;
mod verdict;

pub use cause::chain;
pub use class::{BlobKind, Class, GivenModality, Stage, TaskKind, UnknownWord};
pub use cost::Cost;
pub use digest::{Digest, DigestError};
pub use id::{ID_CHARS, IdError, JobId, JobKey, NAME_BYTES_MAX, PoolName, TenantId, UploadId};
pub use limits::{FRAMES_MAX, STOP_BYTES_MAX, STOPS_MAX};
pub use pause::{doubled, spread};
pub use pseudonym::{PseudonymHash, PseudonymKind, Pseudonyms, STUDIES_MAX};
pub use record::{
    CHUNKS_MAX, Chunks, Ended, Forwarded, JobRecord, JobState, Move, NewJob, Outcome, Refused,
    Starts, Times, UnixMillis,
};
pub use unit::WorkUnit;
pub use verdict::{FAILURE_MESSAGE_BYTES_MAX, Failure, FailureReason, Verdict};
