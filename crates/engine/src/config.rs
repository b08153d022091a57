//! Which model a worker runs, as an operator says it, and the loading of either kind.

use std::path::PathBuf;

use medfleet_core::setting::DurationText;
use medfleet_model::{ComputeDevice, ComputeDeviceError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::{Description, Dtype, EncodeBackend, EngineError};
use crate::decode::{DecodeEngine, DecodeLimits};
use crate::embed::LoadedEmbedder;
use crate::real::{Half, Loaded, Place, failed};
use crate::simulated::{Simulated, SimulatedShape, SimulatedTiming};

/// The model of a worker. It has no default: the operator decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelConfig {
    /// A model folder as the Hugging Face hub has it: MedGemma, or MedSigLIP for `embed` and `zero-shot`.
    Folder {
        /// The folder.
        path: PathBuf,
        /// What to compute in.
        dtype: ModelDtype,
        /// Where to compute: `cpu`, or `cuda`, `cuda:N`, `metal` in a build that has them.
        #[serde(default)]
        device: ModelDevice,
        /// Folder in which the digests of the weights are remembered, so that only the first start hashes them.
        #[serde(default)]
        digest_cache: Option<PathBuf>,
    },
    /// No model: text that is a digest of the input, for tests of the fleet. Its results name it.
    Simulated(SimulatedConfig),
}

/// Numeric types to compute in. There is no f16: Gemma 3 overflows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelDtype {
    /// 32-bit IEEE float.
    F32,
    /// bfloat16.
    Bf16,
}

impl From<ModelDtype> for Dtype {
    fn from(dtype: ModelDtype) -> Self {
        match dtype {
            ModelDtype::F32 => Self::F32,
            ModelDtype::Bf16 => Self::Bf16,
        }
    }
}

/// A device by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ModelDevice(pub ComputeDevice);

impl TryFrom<String> for ModelDevice {
    type Error = ComputeDeviceError;

    fn try_from(text: String) -> Result<Self, ComputeDeviceError> {
        text.parse().map(Self)
    }
}

impl From<ModelDevice> for String {
    fn from(device: ModelDevice) -> Self {
        device.0.to_string()
    }
}

/// Shape and speed of the simulated model. Encode and decode workers of a fleet need the same shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatedConfig {
    /// Width and height of its frames, in pixels.
    pub frame_side: u32,
    /// Image tokens a frame.
    pub tokens_per_image: u32,
    /// Values an image token.
    pub token_width: u32,
    /// Words it writes.
    pub words: u32,
    /// Time to encode one frame.
    pub encode_frame: DurationText,
    /// Time to read one prompt, whatever its length.
    pub prefill: DurationText,
    /// Time to read one token of a prompt.
    pub prefill_token: DurationText,
    /// Time of one forward pass, whatever is in it.
    pub decode_step: DurationText,
    /// Time to write one token of one text, beside others.
    pub decode_sequence: DurationText,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        let SimulatedShape {
            frame_side,
            tokens_per_image,
            token_width,
            words,
        } = SimulatedShape::default();
        let zero = DurationText::from_millis(0);
        Self {
            frame_side,
            tokens_per_image,
            token_width,
            words,
            encode_frame: zero,
            prefill: zero,
            prefill_token: zero,
            decode_step: zero,
            decode_sequence: zero,
        }
    }
}

/// A model that is loaded; both halves can be taken from it.
#[derive(Debug, Clone)]
pub enum LoadedModel {
    /// MedGemma.
    Real(Loaded),
    /// MedSigLIP.
    Embedder(LoadedEmbedder),
    /// No model.
    Simulated(Simulated),
}

impl ModelConfig {
    /// Loads it. Takes seconds to minutes: call it on a blocking thread.
    ///
    /// # Errors
    /// The model's own, which name the file, key or tensor.
    pub fn load(&self, half: Half) -> Result<LoadedModel, EngineError> {
        match self {
            Self::Folder {
                path,
                dtype,
                device,
                digest_cache,
            } => {
                let (dtype, device) = ((*dtype).into(), device.0);
                if medfleet_model::is_siglip(path).map_err(failed)? {
                    LoadedEmbedder::load(path, dtype, device).map(LoadedModel::Embedder)
                } else {
                    let place = Place {
                        folder: path,
                        device,
                        digest_cache: digest_cache.as_deref(),
                    };
                    Loaded::load(place, dtype, half).map(LoadedModel::Real)
                }
            }
            Self::Simulated(config) => {
                let shape = SimulatedShape {
                    frame_side: config.frame_side,
                    tokens_per_image: config.tokens_per_image,
                    token_width: config.token_width,
                    words: config.words,
                };
                let timing = SimulatedTiming {
                    encode_frame: config.encode_frame.get(),
                    prefill: config.prefill.get(),
                    prefill_token: config.prefill_token.get(),
                    decode_step: config.decode_step.get(),
                    decode_sequence: config.decode_sequence.get(),
                };
                Ok(LoadedModel::Simulated(Simulated::new(shape, timing)))
            }
        }
    }
}

impl LoadedModel {
    /// What was loaded.
    #[must_use]
    pub fn description(&self) -> &Description {
        match self {
            Self::Real(loaded) => loaded.description(),
            Self::Embedder(embedder) => embedder.description(),
            Self::Simulated(simulated) => simulated.description(),
        }
    }

    /// The vision half.
    #[must_use]
    pub fn encoder(&self) -> Box<dyn EncodeBackend> {
        match self {
            Self::Real(loaded) => loaded.encoder(),
            Self::Embedder(embedder) => Box::new(embedder.clone()),
            Self::Simulated(simulated) => Box::new(simulated.clone()),
        }
    }

    /// The text half: of a model that writes, with its KV memory and its thread.
    ///
    /// # Errors
    /// When the budget holds not even one block, or the machine cannot start a thread.
    pub fn start_decode(
        &self,
        kv_bytes_max: u64,
        limits: DecodeLimits,
    ) -> Result<DecodeModel, EngineError> {
        let backend = match self {
            Self::Real(loaded) => loaded.decoder(kv_bytes_max, limits.prefill_tokens_max)?,
            Self::Simulated(simulated) => Box::new(simulated.decoder(kv_bytes_max)),
            Self::Embedder(embedder) => return Ok(DecodeModel::Embedder(embedder.clone())),
        };
        let engine = DecodeEngine::start(backend, limits).map_err(failed)?;
        Ok(DecodeModel::Writer(engine))
    }
}

/// What a decode worker runs.
#[derive(Debug, Clone)]
pub enum DecodeModel {
    /// A model that writes text about images.
    Writer(DecodeEngine),
    /// One that compares images with labels.
    Embedder(LoadedEmbedder),
}

impl DecodeModel {
    /// What writes, where it does.
    #[must_use]
    pub fn engine(self) -> Option<DecodeEngine> {
        match self {
            Self::Writer(engine) => Some(engine),
            Self::Embedder(_) => None,
        }
    }

    /// What it is.
    #[must_use]
    pub fn description(&self) -> &Description {
        match self {
            Self::Writer(engine) => engine.description(),
            Self::Embedder(embedder) => embedder.description(),
        }
    }
}
