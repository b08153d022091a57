//! What an operator decides about preprocess, with every limit named.

mod text_reader;

use std::collections::BTreeSet;

use medfleet_core::setting::{ByteSize, DurationText};
use medfleet_core::{FRAMES_MAX, PoolName, TenantId};
use medfleet_imaging::{Convention, FRAME_SIDE_MAX, Limits, Options};
use medfleet_queue::QueueConfig;
use medfleet_runtime::{ConfigError, ProcessConfig, Settings};
use medfleet_store::StoreConfig;
use medfleet_worker::WorkerConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::StartError;

pub use text_reader::{ImageKind, TextReaderConfig};

/// More decodes than this at a time are a mistake, not a machine.
const DECODES_MAX: u32 = 1024;

/// A program of ours does not start with less.
const CODEC_MEMORY_BYTES_MIN: ByteSize = ByteSize::from_mib(64);

/// The configuration of the `medfleet-preprocess` binary.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MainConfig {
    /// Admin port, drain time, telemetry.
    #[serde(default)]
    pub process: ProcessConfig,
    /// The queue.
    #[serde(default)]
    pub queue: QueueConfig,
    /// The blob store.
    pub store: StoreConfig,
    /// This service.
    pub preprocess: Config,
}

/// The configuration of preprocess itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The pool whose units it takes.
    pub pool: PoolName,
    /// Slots and retries.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// Width and height of the frames that the pool's model takes, in pixels: 896 for MedGemma.
    #[schemars(range(max = FRAME_SIDE_MAX))]
    pub frame_side: u32,
    /// Whose conventions make the frames.
    #[serde(default = "convention_default")]
    #[schemars(extend("enum" = conventions()))]
    pub convention: String,
    /// Frames in one encode chunk; more where a job would have more than 32 chunks.
    #[serde(default = "frames_per_chunk_default")]
    #[schemars(range(min = 1))]
    pub frames_per_chunk: u32,
    /// Frames of one job, over all its files; a job with more is refused. Each costs the model its image tokens.
    #[serde(default = "frames_max_default")]
    #[schemars(range(min = 1))]
    pub frames_max: u32,
    /// Largest file, in bytes.
    #[serde(default = "file_bytes_max_default")]
    pub file_bytes_max: ByteSize,
    /// Bytes of files in memory at a time, over all slots, with what of archives and deflated files is unpacked at a time; at
    /// least `file_bytes_max`. A file that needs more by itself is refused.
    #[serde(default = "memory_bytes_max_default")]
    pub memory_bytes_max: ByteSize,
    /// Files that are pixels in memory at a time, over all slots: from before decoding until their frames are stored. Small ones
    /// with one frame count as little as a quarter.
    #[serde(default = "decodes_max_default")]
    #[schemars(range(min = 1, max = DECODES_MAX))]
    pub decodes_max: u32,
    /// Memory of each process that decodes JPEG 2000, in bytes of address space; there are up to `decodes_max` of them.
    #[serde(default = "codec_memory_bytes_max_default")]
    pub codec_memory_bytes_max: ByteSize,
    /// Processor time that one JPEG 2000 image may take to decode, for each of up to four threads; its process is ended then,
    /// and the file refused. By the clock it may take five times as long; its process is ended then too, and the job tried
    /// again.
    #[serde(default = "codec_time_max_default")]
    pub codec_time_max: DurationText,
    /// Tenants that may send files whose pixels may carry text: ultrasound, secondary captures, digitised film, and what says
    /// so itself. The text reaches the model; of everybody else such a file is refused.
    #[serde(default)]
    pub burned_in_allowed: BTreeSet<TenantId>,
    /// The program that looks for text in pixels; none by default.
    #[serde(default)]
    pub text_reader: TextReaderConfig,
}

fn convention_default() -> String {
    Convention::newest().name.clone()
}

/// The names of all that there are.
pub(crate) fn conventions() -> Vec<&'static str> {
    let all = Convention::all().iter();
    all.map(|convention| convention.name.as_str()).collect()
}

const fn decodes_max_default() -> u32 {
    2
}

/// 64 Mi pixels of three components, twice over, and what is around them.
const fn codec_memory_bytes_max_default() -> ByteSize {
    ByteSize::from_mib(2048)
}

/// 64 Mi pixels take 11 s on a core of its own.
const fn codec_time_max_default() -> DurationText {
    DurationText::from_secs(120)
}

const fn frames_per_chunk_default() -> u32 {
    1
}

/// A volume has 85 at most, a comparison two of them; the text window of MedGemma holds 480 with 256 tokens each.
const fn frames_max_default() -> u32 {
    FRAMES_MAX
}

const fn file_bytes_max_default() -> ByteSize {
    ByteSize::from_mib(512)
}

/// The largest file, and all of it unpacked.
const fn memory_bytes_max_default() -> ByteSize {
    ByteSize::from_mib(1024)
}

impl Config {
    /// For a pool and its model's frame side; everything else as by default.
    pub fn new(pool: &PoolName, frame_side: u32) -> Self {
        Self {
            pool: pool.clone(),
            worker: WorkerConfig::default(),
            frame_side,
            convention: convention_default(),
            frames_per_chunk: frames_per_chunk_default(),
            frames_max: frames_max_default(),
            file_bytes_max: file_bytes_max_default(),
            memory_bytes_max: memory_bytes_max_default(),
            decodes_max: decodes_max_default(),
            codec_memory_bytes_max: codec_memory_bytes_max_default(),
            codec_time_max: codec_time_max_default(),
            burned_in_allowed: BTreeSet::new(),
            text_reader: TextReaderConfig::default(),
        }
    }

    /// Checks relations between fields.
    pub fn check(&self) -> Result<(), ConfigError> {
        // As the start makes them.
        Options::new(self.frame_side, Limits::default())
            .map_err(|error| ConfigError::relation(format!("preprocess.frame_side: {error}")))?;
        if self.codec_memory_bytes_max < CODEC_MEMORY_BYTES_MIN {
            return Err(ConfigError::relation(
                "preprocess.codec_memory_bytes_max must be at least 64 MiB, or the decoder cannot even start",
            ));
        }
        if self.codec_time_max.get().as_secs() == 0 {
            return Err(ConfigError::relation(
                "preprocess.codec_time_max must be at least 1 s",
            ));
        }
        if self.memory_bytes_max < self.file_bytes_max {
            return Err(ConfigError::relation(
                "preprocess.memory_bytes_max must be at least preprocess.file_bytes_max, or the largest file never fits",
            ));
        }
        self.convention()
            .map_err(|error| ConfigError::relation(format!("preprocess.convention: {error}")))?;
        self.text_reader.check()
    }

    pub(crate) fn convention(&self) -> Result<&'static Convention, StartError> {
        Convention::named(&self.convention).ok_or_else(|| StartError::Convention {
            name: self.convention.clone(),
        })
    }
}

impl Settings for MainConfig {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn check(&self) -> Result<(), ConfigError> {
        let worker = &self.preprocess.worker;
        worker.check("preprocess", &self.process, &self.queue, &self.store)?;
        self.preprocess.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_side_that_the_start_refuses_is_refused_before_it() {
        let pool = PoolName::new("main").expect("a pool");
        let check = |frame_side: u32, is_good: bool| {
            let checked = Config::new(&pool, frame_side).check();
            let started = Options::new(frame_side, Limits::default());
            assert_eq!((checked.is_ok(), started.is_ok()), (is_good, is_good));
            let said = checked.err().map(|error| error.to_string());
            let expected = format!(
                "preprocess.frame_side: frame side {frame_side} pixels is not between 1 and 4096"
            );
            assert_eq!(said, (!is_good).then_some(expected));
        };
        check(0, false);
        check(1, true);
        check(4096, true);
        check(4097, false);
    }
}
