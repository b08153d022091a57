//! What an operator decides about decode, with every limit named.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use medfleet_core::PoolName;
use medfleet_core::setting::{ByteSize, DurationText};
use medfleet_engine::speculation::PROPOSED_TOKENS_MAX;
use medfleet_engine::{DecodeLimits, ModelConfig, PROMPT_VERSION, Prompts, Speculation};
use medfleet_queue::QueueConfig;
use medfleet_runtime::{ConfigError, ProcessConfig, Settings};
use medfleet_store::StoreConfig;
use medfleet_worker::WorkerConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::work::STAT_SLOTS;

/// Tokens of prompts read in one pass at most where the operator fixes nothing.
const PREFILL_TOKENS_MAX: u32 = 512;
/// Texts at a time where the operator does not say; the chart computes with it too (`medfleet.stage.slots`).
const SLOTS: usize = 4;

/// The configuration of the `medfleet-decode` binary.
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
    /// The model.
    pub model: ModelConfig,
    /// This service.
    pub decode: Config,
}

/// The configuration of decode itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The pool whose units it takes.
    pub pool: PoolName,
    /// Slots and retries; each slot is one text, and all of them are decoded together.
    #[serde(default)]
    pub worker: WorkerConfig<SLOTS>,
    /// KV memory of all texts together; a request that can never fit fails with the arithmetic.
    #[serde(default = "kv_bytes_max_default")]
    pub kv_bytes_max: ByteSize,
    /// Tokens of prompts that are read in one forward pass at most, beside one token of each text that is written: less
    /// keeps the running texts quicker while a new prompt is read. An image is never cut. Without it up to 512, and fewer
    /// where the first long prompts after a start took no longer in shorter stretches.
    #[serde(default)]
    pub prefill_tokens_max: Option<NonZeroU32>,
    /// Several tokens of a text in one forward pass, where that is sooner; no text is changed by it.
    #[serde(default)]
    pub speculation: SpeculationConfig,
    /// Version of the prompts.
    #[serde(default = "prompt_version_default")]
    pub prompt_version: String,
    /// How long tokens are asked for at the encoder that made them before the store is read; 0 reads the store at once.
    #[serde(default = "fetch_timeout_default")]
    pub fetch_timeout: DurationText,
    /// How encoders are known whose `encode.tls` is set: only they are asked then. Without it only those are that have none.
    #[serde(default)]
    pub fetch_tls: Option<FetchTlsConfig>,
    /// How often the text so far is stored, for watchers that come late.
    #[serde(default = "checkpoint_every_default")]
    pub checkpoint_every: DurationText,
}

/// Whom to take for an encoder. Whoever is not known is sent nothing, and the store is read instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchTlsConfig {
    /// PEM file of the authorities that sign the encoders' certificates. No other is trusted.
    pub ca: PathBuf,
    /// The name in those certificates, the same for all encoders; without it the host in each encoder's URL.
    #[serde(default)]
    pub server_name: Option<String>,
}

/// Whether tokens are proposed and verified together, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpeculationConfig {
    /// Whether it is done.
    pub mode: SpeculationMode,
    /// Tokens proposed for a text in one pass at most.
    #[schemars(range(max = PROPOSED_TOKENS_MAX))]
    pub tokens_max: NonZeroU32,
    /// Memory for phrases of earlier texts, of all tenants together; with 0 a text is only compared with itself.
    pub memory_bytes_max: ByteSize,
    /// A second, smaller Gemma 3 with the same tokens that proposes as well: a model folder or a GGUF file. It is held and
    /// computed as the model is, and its keys and values are part of `kv_bytes_max`.
    pub draft: Option<PathBuf>,
}

/// Whether tokens are proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SpeculationMode {
    /// Where the device computes each row by itself, and as many as pay by what was measured.
    Auto,
    /// Never.
    Off,
}

impl Default for SpeculationConfig {
    fn default() -> Self {
        Self {
            mode: SpeculationMode::Off,
            // With the token before them, a tile of sixteen rows.
            tokens_max: NonZeroU32::MIN.saturating_add(14),
            memory_bytes_max: ByteSize::from_mib(16),
            draft: None,
        }
    }
}

impl SpeculationConfig {
    fn limits(&self) -> Option<Speculation> {
        (self.mode == SpeculationMode::Auto).then_some(Speculation {
            tokens_max: self.tokens_max.get(),
            memory_bytes_max: self.memory_bytes_max.get(),
            always: false,
        })
    }
}

/// A CT of 85 slices or a slide of 126 patches with the longest text, at MedGemma 4B's shape, in f32 too: a test of `medfleet` counts
/// it.
const fn kv_bytes_max_default() -> ByteSize {
    ByteSize::from_mib(2048)
}

fn prompt_version_default() -> String {
    PROMPT_VERSION.to_owned()
}

const fn fetch_timeout_default() -> DurationText {
    DurationText::from_millis(200)
}

const fn checkpoint_every_default() -> DurationText {
    DurationText::from_secs(1)
}

impl Config {
    /// For a pool; everything else as by default.
    pub fn new(pool: &PoolName) -> Self {
        Self {
            pool: pool.clone(),
            worker: WorkerConfig::default(),
            kv_bytes_max: kv_bytes_max_default(),
            prefill_tokens_max: None,
            speculation: SpeculationConfig::default(),
            prompt_version: prompt_version_default(),
            fetch_timeout: fetch_timeout_default(),
            fetch_tls: None,
            checkpoint_every: checkpoint_every_default(),
        }
    }

    /// What the engine may take on: a sequence for each slot. The engine takes one of STAT beyond them.
    pub fn limits(&self) -> DecodeLimits {
        let slots = self.worker.slots.get();
        DecodeLimits {
            sequences_max: slots,
            queue_max: slots.saturating_add(STAT_SLOTS),
            prefill_tokens_max: self
                .prefill_tokens_max
                .map_or(PREFILL_TOKENS_MAX, NonZeroU32::get),
            prefill_measured: self.prefill_tokens_max.is_none(),
            speculation: self.speculation.limits(),
        }
    }

    /// The second model that proposes tokens, where there is one.
    pub fn draft(&self) -> Option<&Path> {
        self.speculation.draft.as_deref()
    }

    /// Checks relations between fields.
    pub fn check(&self) -> Result<(), ConfigError> {
        if Prompts::of(&self.prompt_version).is_none() {
            let known = Prompts::versions().collect::<Vec<_>>().join(", ");
            return Err(ConfigError::relation(format!(
                "decode.prompt_version is {}, allowed: {known}",
                self.prompt_version
            )));
        }
        if self.draft().is_some() && self.speculation.mode == SpeculationMode::Off {
            return Err(ConfigError::relation(
                "decode.speculation.draft is set, but decode.speculation.mode is off: set it to auto, or name no draft model",
            ));
        }
        if self.fetch_tls.is_some() && self.fetch_timeout.get().is_zero() {
            return Err(ConfigError::relation(
                "decode.fetch_tls is set, but with decode.fetch_timeout 0 no encoder is asked: set a time such as 200ms, or leave decode.fetch_tls out",
            ));
        }
        if self.checkpoint_every.as_millis() < 50 {
            return Err(ConfigError::relation(
                "decode.checkpoint_every must be at least 50ms",
            ));
        }
        Ok(())
    }
}

impl Settings for MainConfig {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn check(&self) -> Result<(), ConfigError> {
        let worker = &self.decode.worker;
        worker.check("decode", &self.process, &self.queue, &self.store)?;
        self.model
            .check()
            .map_err(|error| ConfigError::relation(error.to_string()))?;
        self.decode.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_measured_unless_their_length_is_fixed() {
        let mut config = Config::new(&PoolName::new("m").expect("a pool"));
        let of = |config: &Config| {
            let limits = config.limits();
            (limits.prefill_tokens_max, limits.prefill_measured)
        };
        assert_eq!(of(&config), (512, true));
        config.prefill_tokens_max = NonZeroU32::new(100);
        assert_eq!(of(&config), (100, false));
    }

    #[test]
    fn a_table_that_says_nothing_of_slots_has_as_many_as_none() {
        let slots = |config: &str| {
            let read: Config = serde_json::from_str(config).expect("is a configuration");
            read.worker.slots.get()
        };
        assert_eq!(slots(r#"{"pool": "m"}"#), 4);
        assert_eq!(slots(r#"{"pool": "m", "worker": {"retries_max": 2}}"#), 4);
        assert_eq!(slots(r#"{"pool": "m", "worker": {"slots": 2}}"#), 2);
    }

    #[test]
    fn a_unit_of_stat_may_come_beside_one_in_each_slot() {
        let limits = Config::new(&PoolName::new("m").expect("a pool")).limits();
        assert_eq!((limits.sequences_max, limits.queue_max), (4, 5));
    }

    #[test]
    fn encoders_that_are_never_asked_need_not_be_known() {
        let mut config = Config::new(&PoolName::new("m").expect("a pool"));
        config.fetch_tls = Some(FetchTlsConfig {
            ca: "ca.crt".into(),
            server_name: None,
        });
        assert!(config.check().is_ok());
        config.fetch_timeout = DurationText::from_millis(0);
        let error = config.check().expect_err("nobody is asked");
        assert!(
            error.to_string().contains("leave decode.fetch_tls out"),
            "{error}"
        );
    }

    #[test]
    fn a_draft_model_goes_with_proposing() {
        let mut config = Config::new(&PoolName::new("m").expect("a pool"));
        assert_eq!(config.draft(), None);
        config.speculation.draft = Some("/models/gemma-3-270m".into());
        let error = config.check().expect_err("nothing is proposed");
        assert!(error.to_string().contains("set it to auto"), "{error}");
        config.speculation.mode = SpeculationMode::Auto;
        assert!(config.check().is_ok());
        assert_eq!(config.draft(), Some(Path::new("/models/gemma-3-270m")));
    }
}
