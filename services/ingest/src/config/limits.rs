//! Sizes, counts and durations of requests.

use medfleet_core::setting::{ByteSize, DurationText};
use medfleet_runtime::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shape::{INPUTS_MAX, OTHER_BYTES_MAX};

/// Limits of requests. What is over them is refused with the limit's value.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of all inputs of a job together.
    pub study_bytes_max: ByteSize,
    /// Bytes of one uploaded file.
    pub input_bytes_max: ByteSize,
    /// Bytes of inputs sent within the submit request, together; the public contract says 3 MiB.
    pub inline_bytes_max: ByteSize,
    /// Files of one job. A CT or MR series is a file a slice; how many of them a model is shown preprocess decides.
    #[schemars(range(min = 1, max = INPUTS_MAX))]
    pub images_max: u32,
    /// Bytes of a question, context or target; the public contract says 16 KiB.
    pub text_bytes_max: ByteSize,
    /// Tokens of text when a job does not say.
    #[schemars(range(min = 1))]
    pub max_tokens_default: u32,
    /// Tokens of text that a job may ask for.
    #[schemars(range(min = 1))]
    pub max_tokens_max: u32,
    /// Time to live when a job does not say.
    pub time_to_live_default: DurationText,
    /// Time to live that a job may ask for.
    pub time_to_live_max: DurationText,
    /// Bytes of one stored part of an upload, the step in which an upload becomes durable; at most 8 MiB.
    pub upload_part_bytes: ByteSize,
    /// How long an upload handle is valid from its opening, from each part that is stored, and from each resuming of one that is
    /// half over; at least 30 minutes, since who needs it longer asks every 10.
    pub upload_time_to_live: DurationText,
    /// Uploads in progress at a time; each holds up to one part in memory.
    #[schemars(range(min = 1))]
    pub uploads_max: usize,
    /// Longest silence of a client in the middle of an upload.
    pub upload_idle_max: DurationText,
    /// How long the request of a call may take to come whole, from its headers on; uploads apart. A submit with files in it
    /// has up to 4 MiB.
    pub request_time_max: DurationText,
    /// Connections to the public API at a time; one more is closed at once. Below the process's limit of open files.
    #[schemars(range(min = 1, max = 1 << 20))]
    pub connections_max: usize,
    /// How long a connection may take to its first call, with the handshakes of TLS and HTTP/2; then it is closed.
    pub first_call_time_max: DurationText,
    /// Watches at a time.
    #[schemars(range(min = 1))]
    pub watches_max: usize,
    /// What a caller is told to wait when a limit of the fleet is reached.
    pub retry_after: DurationText,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            study_bytes_max: ByteSize::from_mib(2048),
            input_bytes_max: ByteSize::from_mib(512),
            inline_bytes_max: ByteSize::from_mib(3),
            images_max: 2048,
            text_bytes_max: ByteSize::from_bytes(16 << 10),
            max_tokens_default: 1024,
            max_tokens_max: 8192,
            time_to_live_default: DurationText::from_secs(24 * 60 * 60),
            time_to_live_max: DurationText::from_secs(7 * 24 * 60 * 60),
            upload_part_bytes: ByteSize::from_mib(4),
            upload_time_to_live: DurationText::from_secs(60 * 60),
            uploads_max: 64,
            upload_idle_max: DurationText::from_secs(60),
            request_time_max: DurationText::from_secs(120),
            connections_max: 10_000,
            first_call_time_max: DurationText::from_secs(60),
            watches_max: 20_000,
            retry_after: DurationText::from_secs(5),
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        super::all_hold(&[
            (
                self.inline_bytes_max.get() <= 3 << 20,
                "ingest.limits.inline_bytes_max must be at most 3MiB, the public contract",
            ),
            (
                (1..=INPUTS_MAX).contains(&self.images_max),
                "ingest.limits.images_max must be 1 to 65536",
            ),
            (
                self.text_bytes_max.get() <= OTHER_BYTES_MAX / 2,
                "ingest.limits.text_bytes_max must be at most 512KiB, half of what a request may have besides its inputs",
            ),
            (
                (1..=8 << 20).contains(&self.upload_part_bytes.get()),
                "ingest.limits.upload_part_bytes must be 1B to 8MiB",
            ),
            (
                self.study_bytes_max.get() / self.upload_part_bytes.get().max(1) <= 4096,
                "ingest.limits.study_bytes_max must be at most 4096 times ingest.limits.upload_part_bytes",
            ),
            (
                (1..=self.max_tokens_max).contains(&self.max_tokens_default),
                "ingest.limits.max_tokens_default must be 1 to ingest.limits.max_tokens_max",
            ),
            (
                !self.request_time_max.get().is_zero(),
                "ingest.limits.request_time_max must be above zero",
            ),
            (
                !self.upload_idle_max.get().is_zero() && !self.upload_time_to_live.get().is_zero(),
                "ingest.limits.upload_idle_max and upload_time_to_live must be above zero",
            ),
            (
                self.uploads_max > 0 && self.watches_max > 0,
                "ingest.limits.uploads_max and watches_max must be at least 1",
            ),
            (
                !self.first_call_time_max.get().is_zero(),
                "ingest.limits.first_call_time_max must be above zero",
            ),
            (
                self.time_to_live_default <= self.time_to_live_max,
                "ingest.limits.time_to_live_default must be at most ingest.limits.time_to_live_max",
            ),
        ])
    }
}
