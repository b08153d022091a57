//! The configuration of a whole fleet in one process: what the four services have, with one queue, one blob store and one
//! model for all of them.

use std::path::PathBuf;

use medfleet_core::PoolName;
use medfleet_engine::{ModelConfig, ModelDevice};
use medfleet_imaging::{Limits, Options};
use medfleet_queue::QueueConfig;
use medfleet_runtime::{ConfigError, ProcessConfig, Settings};
use medfleet_store::StoreConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration of `medfleet up`. What the data folder and the flags decide needs no mention in a file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FleetConfig {
    /// Admin port of the whole, drain time, telemetry. Every role has an admin port of its own besides.
    #[serde(default)]
    pub(crate) process: ProcessConfig,
    /// The queue. Without addresses of its own, a nats-server is started and looked after.
    #[serde(default)]
    pub(crate) queue: QueueConfig,
    /// The blob store.
    pub(crate) store: StoreConfig,
    /// The model of encode and decode.
    pub(crate) model: ModelConfig,
    /// A MedSigLIP beside it, for `embed` and `zero-shot`.
    #[serde(default)]
    pub(crate) embedder: Option<EmbedderConfig>,
    /// The public API and the dispatcher.
    pub(crate) ingest: medfleet_ingest::Config,
    /// Frames.
    pub(crate) preprocess: medfleet_preprocess::Config,
    /// Image tokens.
    pub(crate) encode: medfleet_encode::Config,
    /// Text.
    pub(crate) decode: medfleet_decode::Config,
}

/// A MedSigLIP and its pool. Its workers are set up as the other model's are, each with its own slots.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbedderConfig {
    /// The pool, one of `ingest.embedders`.
    pub(crate) pool: PoolName,
    /// Its folder.
    pub(crate) path: PathBuf,
    /// Where to compute.
    #[serde(default)]
    pub(crate) device: ModelDevice,
}

impl Settings for FleetConfig {
    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    /// The relations that each service states for itself.
    fn check(&self) -> Result<(), ConfigError> {
        let Self {
            process,
            queue,
            store,
            model,
            embedder,
            ingest,
            preprocess,
            encode,
            decode,
        } = self.clone();
        if let Some(embedder) = &embedder
            && [&preprocess.pool, &encode.pool, &decode.pool].contains(&&embedder.pool)
        {
            return Err(ConfigError::relation(
                "embedder.pool must not be the pool of preprocess, encode or decode",
            ));
        }
        if let Some(embedder) = embedder
            && !ingest.embedders.values().any(|pool| *pool == embedder.pool)
        {
            return Err(ConfigError::relation(
                "embedder.pool must be one of the pools of ingest.embedders, or no job ever reaches it",
            ));
        }
        if encode.tls.is_some() != decode.fetch_tls.is_some()
            && !decode.fetch_timeout.get().is_zero()
        {
            return Err(ConfigError::relation(
                "encode.tls and decode.fetch_tls must both be set, or neither: the one is what the other is known by",
            ));
        }
        let shared = || (process.clone(), queue.clone(), store.clone());
        let (process, queue, store) = shared();
        medfleet_ingest::MainConfig {
            process,
            queue,
            store,
            ingest,
        }
        .check()?;
        let (process, queue, store) = shared();
        medfleet_preprocess::MainConfig {
            process,
            queue,
            store,
            preprocess: with_side(preprocess, &model)?,
        }
        .check()?;
        let (process, queue, store) = shared();
        medfleet_encode::MainConfig {
            process,
            queue,
            store,
            model: model.clone(),
            encode,
        }
        .check()?;
        let (process, queue, store) = shared();
        medfleet_decode::MainConfig {
            process,
            queue,
            store,
            model,
            decode,
        }
        .check()
    }
}

/// With a frame side also where the model is to say it, which the simulated one does before it is loaded: what it says is refused
/// by its own name.
fn with_side(
    preprocess: medfleet_preprocess::Config,
    model: &ModelConfig,
) -> Result<medfleet_preprocess::Config, ConfigError> {
    if let (0, ModelConfig::Simulated(simulated)) = (preprocess.frame_side, model) {
        Options::new(simulated.frame_side, Limits::default())
            .map_err(|error| ConfigError::relation(format!("model.frame_side: {error}")))?;
    }
    Ok(medfleet_preprocess::Config {
        frame_side: preprocess.frame_side.max(1),
        ..preprocess
    })
}
