//! The queue: streams as data, records by compare-and-set, bounded pull, verdicts as acknowledgements, dead letters.
//! Sole owner of async-nats; no type of it leaves this crate, and its errors are translated where they enter.
//!
//! Never: acknowledges before a confirmation, retries what is not safe to repeat, waits without a limit, or stores a
//! record that breaks an invariant.
//!
//! Reading order: `subject` (names), `streams` (what is on the server), `api` (one round trip), `layout` and `shards` (where the
//! records are), `records`, `absent`, `search`, `work`, `puller`, `delivery`, `change` and `unreadable` (a unit's way through a
//! worker), `feed` and `events`, `edge`, `ledgers`, `lease`, `claims`, `objects`, `presence`, `usage`, `server`.

mod absent;
mod ack;
mod api;
mod bucket;
mod change;
mod claims;
mod config;
mod connect;
mod delivery;
mod edge;
mod error;
mod events;
mod feed;
mod layout;
mod lease;
mod ledgers;
mod link;
mod objects;
mod presence;
mod puller;
mod records;
mod search;
pub mod server;
mod shards;
mod streams;
mod subject;
mod time;
mod unreadable;
mod usage;
pub mod wire;
mod work;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{PoolName, UnixMillis, chain};
use tokio::time::Instant;

use api::Api;
use bucket::Bucket;
use shards::Shards;

pub use change::Changed;
pub use claims::{Claim, Claims};
pub use config::{ConfigError, QueueConfig, Replicas, ReplicasError, StreamBytes, TlsConfig};
pub use connect::OLDEST_SERVER;
pub use delivery::{Delivery, dead_letter};
pub use error::{ConnectError, QueueError};
pub use layout::AgreedShards;
pub use lease::Lease;
pub use ledgers::Pause;
pub use objects::Objects;
pub use puller::Puller;
pub use records::{Applied, Created, PageStart, Revision, Seen, Updated};
pub use search::Found;
pub use subject::{
    AUDIT as AUDIT_STREAM, DEAD as DEAD_STREAM, INTAKE_STREAM, JOBS_STREAM, PENDING_STREAM,
    event_token, is_record_stream,
};
pub use usage::StreamUsage;
pub use work::{Backlog, IntakeEntry, Outstanding, Published};

/// What an operation of the queue returns.
/// Each may fail for now ([`QueueError::is_transient`]): what is asked for again may then be answered. What else it may be, or what
/// to do then, is said where there is more to say.
pub type Result<T, E = QueueError> = std::result::Result<T, E>;

/// Headers of a message: the trace context (`traceparent`, `tracestate`), and nothing that decides anything.
pub type Headers = Vec<(String, String)>;

/// The wall clock, passed in.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// A connection to the queue. A cheap clone; all clones share one connection.
#[derive(Clone)]
pub struct Queue {
    api: Api,
    config: Arc<QueueConfig>,
    clock: Clock,
    version: Arc<str>,
    closing: link::LinkEvents,
    jobs: Arc<Shards>,
    pending: Arc<Bucket>,
    uploads: Arc<Bucket>,
    leases: Arc<Bucket>,
    pauses: Arc<Bucket>,
    absent: Arc<absent::Absent>,
}

/// nats-server looks every 10 s whether it has heard of a majority within the last 10 s (`lostQuorumCheck` and
/// `lostQuorumInterval` in its `raft.go`), and stops leading if not.
const DEPOSED_MAX: Duration = Duration::from_secs(20);
/// For how long a start goes on where the server does not answer in time: it may be starting too, or choosing leaders for streams
/// of which it has just heard.
const ENSURED_WITHIN: Duration = Duration::from_secs(30);
/// How long it rests before it asks again.
const ENSURE_AGAIN: Duration = Duration::from_millis(250);

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("version", &self.version)
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Connects, and keeps reconnecting from then on. Makes nothing on the server: see [`Queue::ensure`].
    ///
    /// # Errors
    /// [`ConnectError`] says what was tried, or which version is needed.
    pub async fn connect(config: &QueueConfig, clock: Clock) -> Result<Self, ConnectError> {
        let (api, version, closing) = connect::connect(config).await?;
        // A clone of the client is not as cheap as one of ours should be.
        let bucket = |name: &str| Arc::new(Bucket::new(api.clone(), name));
        Ok(Self {
            jobs: Arc::new(Shards::new(&api, config.record_shards)),
            pending: bucket(subject::PENDING),
            uploads: bucket(subject::UPLOADS),
            leases: bucket(subject::LEASES),
            pauses: bucket(subject::PAUSES),
            absent: Arc::new(absent::Absent::new(config.record_shards)),
            api,
            config: Arc::new(config.clone()),
            clock,
            version: version.into(),
            closing,
        })
    }

    /// The server's version at the time of connecting.
    pub fn server_version(&self) -> &str {
        &self.version
    }

    /// Creates or updates every stream and bucket, and the durable consumers of `pools`. Consumers of other pools stay.
    /// Safe to call again and from many processes at once. What is not answered in time is asked again, for half a minute.
    ///
    /// # Errors
    /// [`QueueError::Refused`] when the server cannot change a stream to what is configured, [`QueueError::RecordShards`] when
    /// the fleet keeps records in another number of shards, and transient ones.
    pub async fn ensure(&self, pools: &[PoolName]) -> Result<()> {
        self.ensured(pools, streams::Present::Changed).await
    }

    /// As [`Queue::ensure`], and leaves every stream that is there as it is: for those who do not own its limits. A retention
    /// that is shorter in a worker's file must not remove anybody's records.
    ///
    /// # Errors
    /// As [`Queue::ensure`]; for another number of shards also where no record is kept.
    pub async fn ensure_there(&self, pools: &[PoolName]) -> Result<()> {
        self.ensured(pools, streams::Present::Left).await
    }

    /// Again where the server did not answer in time.
    async fn ensured(&self, pools: &[PoolName], present: streams::Present) -> Result<()> {
        let until = Instant::now() + ENSURED_WITHIN;
        loop {
            let error = match streams::ensure(&self.api, &self.config, pools, present).await {
                Err(error @ (QueueError::TimedOut { .. } | QueueError::Unavailable { .. })) => {
                    error
                }
                ended => return ended,
            };
            if Instant::now() >= until {
                return Err(error);
            }
            tracing::warn!(
                error = chain(&error),
                "the queue is not prepared yet; trying again"
            );
            tokio::time::sleep(ENSURE_AGAIN).await;
        }
    }

    /// In how many shards the fleet's records are, whatever these settings say; none where no process of it has ever started.
    /// Changes nothing.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`] when what is there cannot be read, or contradicts itself.
    pub async fn agreed_shards(&self) -> Result<Option<AgreedShards>> {
        layout::agreed(&self.api).await
    }

    /// Whether there is a connection right now.
    pub fn is_connected(&self) -> bool {
        self.api.client.connection_state() == async_nats::connection::State::Connected
            && !self.api.link.is_closed()
    }

    /// How often the connection was lost so far. What was read of a stream before a loss may not be what is there after it: a
    /// server that did not sync has forgotten its latest writes, and gives their sequences to others.
    pub fn losses(&self) -> u64 {
        self.api.link.losses()
    }

    /// How often a worker reports progress on a delivery.
    pub fn heartbeat(&self) -> Duration {
        self.config.heartbeat()
    }

    /// Units of a stage that may wait for release before only those of STAT are to come to it: the rest of its room is kept for
    /// them.
    pub fn intake_for_all(&self) -> u64 {
        usage::without_reserve(self.config.intake_messages_max)
    }

    /// How old a state it may answer with. On a cluster a stream's leader that was cut off answers for a while before it
    /// knows that it leads no more; a change made elsewhere meanwhile is not in its answers. Writes are safe from this, since
    /// they need a majority.
    pub fn outdated_max(&self) -> Duration {
        if self.api.any_server_is_current {
            Duration::ZERO
        } else {
            DEPOSED_MAX
        }
    }

    /// Sends what is buffered and closes the connection, for all clones. What may not be lost was confirmed before; what is
    /// buffered are hints, and acknowledgements of units that are done.
    pub async fn drain(&self) {
        connect::drain(&self.api.client, self.api.timeout).await;
        self.closing.close();
    }
}
