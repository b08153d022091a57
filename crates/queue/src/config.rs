//! How to reach NATS and which limits its streams have. Every limit of the queue is a named value here.

use std::path::PathBuf;
use std::time::Duration;

use medfleet_core::setting::{ByteSize, DurationText, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::usage::without_reserve;

/// With fewer no unit is ever given to a worker.
const IN_FLIGHT_LEAST: u32 = 1;

/// Shards of the job records at most: each is a stream of its own, with files and on a cluster a leader of its own.
const RECORD_SHARDS_MOST: u8 = 32;

/// Tenants whose audit has room as long as nobody says how many lines are kept of each.
const AUDIT_TENANTS: u64 = 4;
/// Bytes of a line then: with names of two dozen letters for the tenant and three for the token, and what the server adds.
const AUDIT_LINE_BYTES: u64 = 160;

/// The queue part of a service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Servers to try, as `nats://host:port` or `tls://host:port`.
    pub urls: Vec<String>,
    /// Path of a NATS credentials file.
    pub credentials: Option<PathBuf>,
    /// User name; needs `password`.
    pub user: Option<String>,
    /// Password of `user`.
    pub password: Option<Secret>,
    /// Token, where the server asks for one.
    pub token: Option<Secret>,
    /// TLS files; TLS is also on for `tls://` addresses.
    pub tls: TlsConfig,
    /// Longest wait for the first connection to one server.
    pub connect_timeout: DurationText,
    /// Longest wait for one answer; an operation during a server's restart fails after it.
    pub request_timeout: DurationText,
    /// Copies of every stream: 1 on a single server, 3 on a cluster.
    pub replicas: Replicas,
    /// A unit whose worker is silent for so long is delivered again.
    pub ack_wait: DurationText,
    /// How often a worker reports progress; a third of `ack_wait` when not set.
    pub heartbeat: Option<DurationText>,
    /// Units of one (stage, pool, class) that may be with workers at a time.
    #[schemars(range(min = IN_FLIGHT_LEAST))]
    pub in_flight_max: u32,
    /// How long a job's events are kept. At least the longest time to live of a job, which ingest checks.
    pub event_retention: DurationText,
    /// How long a record is kept after its last change; idempotent submits are recognised as long.
    /// Must be longer than the longest time to live of a job.
    pub record_retention: DurationText,
    /// Streams over which the job records are divided, by the first two characters of a job's id: more of them take more writes a
    /// second. The same in every service, and fixed once there are records: a process that is told another number than the fleet
    /// has does not start. Ingest changes it while no record is kept.
    #[schemars(range(min = 1, max = RECORD_SHARDS_MOST))]
    pub record_shards: u8,
    /// How long audit entries are kept.
    pub audit_retention: DurationText,
    /// Audit entries of one tenant that are kept at most; then its oldest go, so that no tenant takes the room of the others.
    /// 0 for any number; when not set, as many as fit for each of four tenants beside the reserve of `stream_bytes_max.audit`, or
    /// as many as a tenant already has when ingest starts.
    /// An entry takes about 130 bytes, and a job writes some four (submit, watch, read, cancel).
    pub audit_lines_max: Option<u64>,
    /// How long dead letters are kept.
    pub dead_retention: DurationText,
    /// Disk that each stream may use; full means "try later" for what writes to it.
    pub stream_bytes_max: StreamBytes,
    /// Units of one stage that may wait for release. The last sixteenth is for STAT jobs: at it other submits are told to try
    /// later, and others are not let on to the stage; at the limit all submits are told so.
    #[schemars(range(min = 1))]
    pub intake_messages_max: u64,
    /// How long an upload is known after its last part; at least `ingest.limits.upload_time_to_live`, which says how long its
    /// handle is valid.
    pub upload_ttl: DurationText,
    /// How long a leader lease, or an encoder's claim on a new image, lasts without renewal.
    pub lease_ttl: DurationText,
    /// How long a unit that a worker's release cannot read is handed back, for workers of another release to take, before its
    /// job is failed: longer than workers of two releases run side by side. 0s to fail it at once.
    pub unreadable_wait: DurationText,
}

/// Copies of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(with = "u8")]
pub enum Replicas {
    /// A single server.
    One,
    /// A cluster of at least three.
    Three,
}

impl Replicas {
    pub const fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Three => 3,
        }
    }
}

impl From<Replicas> for u8 {
    fn from(replicas: Replicas) -> Self {
        match replicas {
            Replicas::One => 1,
            Replicas::Three => 3,
        }
    }
}

impl TryFrom<u8> for Replicas {
    type Error = ReplicasError;

    fn try_from(count: u8) -> Result<Self, ReplicasError> {
        match count {
            1 => Ok(Self::One),
            3 => Ok(Self::Three),
            found => Err(ReplicasError { found }),
        }
    }
}

/// A number of replicas that is neither 1 nor 3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("replicas must be 1 or 3, found {found}")]
pub struct ReplicasError {
    pub found: u8,
}

/// Files for TLS to NATS, PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Certificates that sign the servers'; the system's when not set.
    pub ca: Option<PathBuf>,
    /// Our certificate, for servers that ask for one; needs `key`.
    pub cert: Option<PathBuf>,
    /// Key of `cert`.
    pub key: Option<PathBuf>,
}

/// Disk limits, one per kind of stream. Of records, audit and pending accepts the last sixteenth is not for new jobs, nor that of
/// the audit for reads: it is kept for jobs under way, cancels, erasures and what operators do. That of preprocess' intake is for
/// STAT jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StreamBytes {
    /// Units that wait for release, for each stage.
    pub intake: ByteSize,
    /// Released units, for each stage.
    pub work: ByteSize,
    /// Job events.
    pub events: ByteSize,
    /// Job records, all shards together; each has its part of it.
    pub records: ByteSize,
    /// Dead letters.
    pub dead: ByteSize,
    /// Audit entries.
    pub audit: ByteSize,
    /// Uploads, pending accepts, leases and pauses, each.
    pub small: ByteSize,
    /// Blobs, where they are kept in the queue's object store, for each bucket.
    pub objects: ByteSize,
}

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;

impl Default for StreamBytes {
    fn default() -> Self {
        Self {
            intake: ByteSize::from_mib(512),
            work: ByteSize::from_mib(256),
            events: ByteSize::from_mib(1024),
            records: ByteSize::from_mib(1024),
            dead: ByteSize::from_mib(256),
            audit: ByteSize::from_mib(1024),
            small: ByteSize::from_mib(256),
            objects: ByteSize::from_mib(8 * 1024),
        }
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials: None,
            user: None,
            password: None,
            token: None,
            tls: TlsConfig::default(),
            connect_timeout: DurationText::from_secs(5),
            request_timeout: DurationText::from_secs(5),
            replicas: Replicas::One,
            ack_wait: DurationText::from_secs(30),
            heartbeat: None,
            in_flight_max: 4096,
            event_retention: DurationText::from_secs(7 * DAY),
            record_retention: DurationText::from_secs(30 * DAY),
            record_shards: 1,
            audit_retention: DurationText::from_secs(365 * DAY),
            audit_lines_max: None,
            dead_retention: DurationText::from_secs(30 * DAY),
            stream_bytes_max: StreamBytes::default(),
            intake_messages_max: 1_000_000,
            upload_ttl: DurationText::from_secs(HOUR),
            lease_ttl: DurationText::from_secs(10),
            unreadable_wait: DurationText::from_secs(10 * 60),
        }
    }
}

impl QueueConfig {
    /// Defaults, with one server to try.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            ..Self::default()
        }
    }

    /// How often a worker reports progress.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
            .map_or(self.ack_wait.get() / 3, DurationText::get)
    }

    /// Audit entries of one tenant that are kept at most, where no tenant had more before; 0 for any number.
    pub fn audit_lines(&self) -> u64 {
        let of_room = match self.stream_bytes_max.audit.get() {
            // Without a limit nobody takes the room of others.
            0 => 0,
            most => (without_reserve(most) / (AUDIT_TENANTS * AUDIT_LINE_BYTES)).max(1),
        };
        self.audit_lines_max.unwrap_or(of_room)
    }

    /// Checks what one field cannot know of another, and what would stop every unit without a word: also for who connects with
    /// settings that nobody loaded.
    ///
    /// # Errors
    /// [`ConfigError`] names the fields and the relation.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |reason: &'static str| Err(ConfigError { reason });
        if self.urls.is_empty() {
            return fail("queue.urls must name at least one server");
        }
        if self.in_flight_max < IN_FLIGHT_LEAST {
            return fail(
                "queue.in_flight_max must be at least 1, found 0: no unit would ever be given to a worker",
            );
        }
        if !(1..=RECORD_SHARDS_MOST).contains(&self.record_shards) {
            return fail("queue.record_shards must be 1 to 32, the same in every service");
        }
        if self.heartbeat() * 2 > self.ack_wait.get() {
            return fail(
                "queue.heartbeat must be at most half of queue.ack_wait, so that one lost heartbeat costs nothing",
            );
        }
        if self.user.is_some() != self.password.is_some() {
            return fail("queue.user and queue.password go together");
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            return fail("queue.tls.cert and queue.tls.key go together");
        }
        let shortest = Duration::from_millis(100);
        let waits = [
            self.ack_wait,
            self.event_retention,
            self.record_retention,
            self.audit_retention,
            self.dead_retention,
            self.upload_ttl,
            self.lease_ttl,
            self.request_timeout,
            self.connect_timeout,
        ];
        if waits.iter().any(|wait| wait.get() < shortest) {
            return fail("durations of the queue must be at least 100ms");
        }
        Ok(())
    }
}

/// Settings that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConfigError {
    /// Which, and the relation that must hold.
    pub reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_an_audit_follow_its_room_unless_they_are_said() {
        let check = |audit_mib: u64, said: Option<u64>, expected: u64| {
            let config = QueueConfig {
                audit_lines_max: said,
                stream_bytes_max: StreamBytes {
                    audit: ByteSize::from_mib(audit_mib),
                    ..StreamBytes::default()
                },
                ..QueueConfig::default()
            };
            assert_eq!(config.audit_lines(), expected, "{audit_mib}, {said:?}");
        };
        let shipped = 1_572_864;
        assert_eq!(QueueConfig::default().audit_lines(), shipped);
        check(1024, None, shipped);
        check(2048, None, 2 * shipped);
        check(1024, Some(7), 7);
        check(1024, Some(0), 0);
        check(0, None, 0);
    }
}
