//! What can go wrong with the queue, in this crate's words: the client library's errors end here.

use std::path::PathBuf;
use std::time::Duration;

use medfleet_core::{Class, JobKey, PoolName, Stage};

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the queue's settings cannot be used")]
    Config(#[from] crate::ConfigError),
    #[error("no NATS server answered at {tried}: {reason}")]
    Unreachable {
        /// The addresses tried, without credentials.
        tried: String,
        reason: &'static str,
    },
    #[error("the NATS server at {tried} refused the credentials")]
    Unauthorised {
        /// The addresses tried, without credentials.
        tried: String,
    },
    #[error("{what}: {} cannot be read", path.display())]
    File {
        /// Which setting names it.
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the NATS server is version {found}; at least {needed} is needed")]
    TooOld { found: String, needed: &'static str },
    #[error("the NATS server has JetStream switched off; start it with jetstream enabled")]
    NoJetStream,
}

/// Why an operation of the queue failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// Not answered in time: the server is restarting, electing a leader, or away.
    #[error("{operation} was not answered within {waited:?}")]
    TimedOut {
        operation: &'static str,
        waited: Duration,
    },
    /// Nobody serves the request right now: no connection, no leader, or the stream does not exist.
    #[error("{operation} found nobody to answer it")]
    Unavailable { operation: &'static str },
    /// A named limit is reached; later there may be room again.
    #[error("{stream} is full: {limit}")]
    Full {
        stream: String,
        /// Which limit, in the server's words.
        limit: String,
    },
    #[error("{operation} was refused: {description} (code {code})")]
    Refused {
        operation: &'static str,
        code: u64,
        description: String,
    },
    #[error("the record changed {tries} times while it was being changed")]
    Contended { tries: u32 },
    /// A change that would break an invariant; never stored.
    #[error("a defect of medfleet was kept out of the records: {invariant}")]
    Internal { invariant: &'static str },
    #[error("{what} is {bytes} bytes, {bytes_max} are allowed")]
    TooLarge {
        what: &'static str,
        bytes: usize,
        bytes_max: usize,
    },
    #[error("{what} cannot be read: {reason}")]
    Malformed {
        what: &'static str,
        reason: &'static str,
    },
    /// A message in the place of a unit of work is none that this release can read. It has got its verdict: the job that it
    /// names was failed, with a dead letter, unless it has no need of the unit. Take the next one.
    #[error("a message in the place of a unit of work cannot be read")]
    NoUnit {
        /// The job that it names; none when it names none, and a job may wait for its unit until its time is over.
        job: Option<JobKey>,
    },
    /// A message in the place of a unit of work is none that this release can read, and comes again, or another for it, to
    /// whichever worker takes it then: nothing was decided about its job. Take the next one.
    #[error(
        "a message in the place of a unit of work cannot be read and is left to others: {reason}"
    )]
    HandedBack { reason: &'static str },
    #[error("message {sequence} of {stream} is no unit of work that this release can read")]
    NoIntake {
        stream: &'static str,
        sequence: u64,
        source: Box<Self>,
    },
    /// No consumer for this pool: `ensure` was not called with it.
    #[error("pool {pool} has no consumer for {stage}, class {class}")]
    UnknownPool {
        stage: Stage,
        pool: PoolName,
        class: Class,
    },
    /// The job records are in another number of shards than this process was told: it would find none of them.
    #[error(
        "the job records of this fleet are in another number of shards: found {found}, and queue.record_shards is {set}; set it to \
         {found} in every service's settings, since ingest changes the number only while no record is kept"
    )]
    RecordShards { found: u8, set: u8 },
    #[error("the connection to the queue is closed")]
    Closed,
}

impl QueueError {
    /// That nobody answered, or nobody could be trusted to.
    pub const fn unavailable(operation: &'static str) -> Self {
        Self::Unavailable { operation }
    }

    pub(crate) const fn malformed(what: &'static str, reason: &'static str) -> Self {
        Self::Malformed { what, reason }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::TimedOut { .. }
                | Self::Unavailable { .. }
                | Self::Full { .. }
                | Self::Contended { .. }
        )
    }
}
