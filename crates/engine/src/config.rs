//! Which model a worker runs, as an operator says it, and the loading of either kind.

use std::path::{Path, PathBuf};

use medfleet_core::setting::DurationText;
use medfleet_model::{
    ComputeDevice, ComputeDeviceError, Dtype, FolderSource, GgufSource, LoadError, LoadOptions,
    Model, Parts, PinError,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::{Description, EncodeBackend, EngineError};
use crate::decode::{DecodeEngine, DecodeLimits};
use crate::embed::LoadedEmbedder;
use crate::encoding::Encoding;
use crate::health::Health;
use crate::real::{Half, Loaded, Origin, failed};
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
        /// How the language model's matrices are held: `plain`, in `dtype`; or `q8_0`, which they become while they are
        /// read: half of bf16's memory, on CPUs.
        #[serde(default)]
        weights: FolderWeights,
        /// Where to compute: `cpu`, or `cuda`, `cuda:N`, `metal` in a build that has them.
        #[serde(default)]
        device: ModelDevice,
        /// Keep each thread that computes on a core of its own, of those on which the process may run; under Linux, where there
        /// are as many of the one as of the other. It is for workers that share no core with others.
        #[serde(default)]
        pin_threads: bool,
        /// Folder in which the digests of the weights are remembered, so that only the first start hashes them.
        #[serde(default)]
        digest_cache: Option<PathBuf>,
        /// Folder in which the matrices that became `q8_0` are kept, so that only the first start quantises them: 4.1 GB for
        /// MedGemma 4B. It remembers digests too where `digest_cache` is not set.
        #[serde(default)]
        quantised_cache: Option<PathBuf>,
    },
    /// MedGemma as llama.cpp has it: the language model in a GGUF, and the vision tower beside it.
    Gguf {
        /// The GGUF with the language model.
        path: PathBuf,
        /// The vision tower and its projector: an mmproj GGUF, or a model folder.
        vision: PathBuf,
        /// A tokenizer.json. Without it the one beside `path` is taken, or else the vocabulary inside it.
        #[serde(default)]
        tokenizer: Option<PathBuf>,
        /// What to compute in.
        dtype: ModelDtype,
        /// How quantised matrices are held: `plain`, dequantised to `dtype`; or `stored`, as they are in the file, on CPUs.
        #[serde(default)]
        weights: GgufWeights,
        /// Where to compute, as for a folder.
        #[serde(default)]
        device: ModelDevice,
        /// Keep each thread that computes on a core of its own, as for a folder.
        #[serde(default)]
        pin_threads: bool,
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

/// How a folder's language model is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FolderWeights {
    /// In the numeric type that is computed in.
    #[default]
    Plain,
    /// In blocks of 32 weights of 8 bits with a scale, GGUF's Q8_0.
    Q8_0,
}

/// How a GGUF's language model is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GgufWeights {
    /// In the numeric type that is computed in.
    #[default]
    Plain,
    /// As it is stored.
    Stored,
}

/// A model's settings that cannot be together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelConfigError {
    #[error(
        "model.weights is {weights}, and model.device is {device}: quantised weights are multiplied by the kernels of CPUs, allowed: cpu, or cpu with the name of their level"
    )]
    Device {
        weights: &'static str,
        device: ComputeDevice,
    },
    #[error(
        "model.quantised_cache is set, and model.weights is plain, which keeps nothing: set model.weights to q8_0, or leave model.quantised_cache out"
    )]
    NothingToKeep,
    #[error(
        "model.pin_threads is set, and model.device is {device}: it pins the threads that compute on CPUs; leave model.pin_threads out"
    )]
    NothingToPin { device: ComputeDevice },
}

/// Threads that cannot be pinned as they are to be.
#[derive(Debug, thiserror::Error)]
#[error("model.pin_threads is set, and the threads cannot be pinned")]
struct PinThreadsError(#[source] PinError);

/// A model that cannot be loaded. What is wrong is told by the names that files and tensors have in every model.
#[derive(Debug, thiserror::Error)]
#[error("the model in {place} cannot be loaded")]
struct PlaceError {
    place: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// A second model that cannot be loaded. Its files and tensors are called as the first one's are.
#[derive(Debug, thiserror::Error)]
#[error("the model in {place}, which decode.speculation.draft names, cannot be loaded")]
struct DraftError {
    place: String,
    #[source]
    source: LoadError,
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
    #[schemars(range(min = 1))]
    pub frame_side: u32,
    /// Image tokens a frame.
    #[schemars(range(min = 1))]
    pub tokens_per_image: u32,
    /// Values an image token.
    #[schemars(range(min = 1))]
    pub token_width: u32,
    /// Words it writes.
    #[schemars(range(min = 1))]
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
    /// Checks relations between settings, without opening a file.
    ///
    /// # Errors
    /// [`ModelConfigError`] for quantised weights on a device that has no kernels for them: texts would depend on what is
    /// written beside them, or fail; and for settings that would do nothing.
    pub fn check(&self) -> Result<(), ModelConfigError> {
        if let Self::Folder {
            weights: FolderWeights::Plain,
            quantised_cache: Some(_),
            ..
        } = self
        {
            return Err(ModelConfigError::NothingToKeep);
        }
        if let Some(device) = self.pins_threads()
            && matches!(device, ComputeDevice::Cuda(_) | ComputeDevice::Metal(_))
        {
            return Err(ModelConfigError::NothingToPin { device });
        }
        let (weights, device) = match self {
            Self::Folder {
                weights: FolderWeights::Q8_0,
                device,
                ..
            } => ("q8_0", device.0),
            Self::Gguf {
                weights: GgufWeights::Stored,
                device,
                ..
            } => ("stored", device.0),
            Self::Folder { .. } | Self::Gguf { .. } | Self::Simulated(_) => return Ok(()),
        };
        match device {
            ComputeDevice::Cpu | ComputeDevice::CpuAt(_) => Ok(()),
            ComputeDevice::CpuGeneric | ComputeDevice::Cuda(_) | ComputeDevice::Metal(_) => {
                Err(ModelConfigError::Device { weights, device })
            }
        }
    }

    /// The device, where the threads that compute on it are to be pinned.
    fn pins_threads(&self) -> Option<ComputeDevice> {
        match self {
            Self::Folder {
                pin_threads: true,
                device,
                ..
            }
            | Self::Gguf {
                pin_threads: true,
                device,
                ..
            } => Some(device.0),
            Self::Folder { .. } | Self::Gguf { .. } | Self::Simulated(_) => None,
        }
    }

    /// Loads it, and pins the process's threads where that is asked for: load what else the process computes with before. Takes
    /// seconds to minutes: call it on a blocking thread.
    ///
    /// # Errors
    /// As [`ModelConfig::check`]; what is wrong with the files, with the place they are in; threads that are to be pinned and
    /// cannot be.
    pub fn load(&self, half: Half) -> Result<LoadedModel, EngineError> {
        self.load_with_draft(half, None)
    }

    fn load_alone(&self, half: Half) -> Result<LoadedModel, EngineError> {
        self.check().map_err(failed)?;
        self.load_files(half).map_err(|error| match (self, error) {
            (Self::Folder { path, .. } | Self::Gguf { path, .. }, EngineError::Model(source)) => {
                let place = path.display().to_string();
                failed(PlaceError { place, source })
            }
            (_, error) => error,
        })
    }

    fn load_files(&self, half: Half) -> Result<LoadedModel, EngineError> {
        match self {
            Self::Folder {
                path,
                dtype,
                weights,
                device,
                digest_cache,
                quantised_cache,
                pin_threads: _,
            } => {
                let (dtype, device) = ((*dtype).into(), device.0);
                let quantised = *weights == FolderWeights::Q8_0;
                if medfleet_model::is_siglip(path).map_err(failed)? {
                    if quantised {
                        return Err(EngineError::Model(
                            "MedSigLIP has no quantised form; model.weights is q8_0, allowed: plain"
                                .into(),
                        ));
                    }
                    return LoadedEmbedder::load(path, dtype, device).map(LoadedModel::Embedder);
                }
                let origin = Origin::Folder(FolderSource {
                    path: path.clone(),
                    quantised,
                    digest_cache: digest_cache.clone(),
                    quantised_cache: quantised_cache.clone(),
                });
                Loaded::load(&origin, device, dtype, half).map(LoadedModel::Real)
            }
            Self::Gguf {
                path,
                vision,
                tokenizer,
                dtype,
                weights,
                device,
                digest_cache,
                pin_threads: _,
            } => {
                let origin = Origin::Gguf(GgufSource {
                    text: path.clone(),
                    vision: Some(vision.clone()),
                    tokenizer: tokenizer.clone(),
                    quantised: *weights == GgufWeights::Stored,
                    digest_cache: digest_cache.clone(),
                });
                Loaded::load(&origin, device.0, (*dtype).into(), half).map(LoadedModel::Real)
            }
            Self::Simulated(config) => Ok(LoadedModel::Simulated(config.model())),
        }
    }

    /// Loads it, and beside it a second, smaller Gemma 3 that proposes tokens: a model folder or a GGUF file, held and computed
    /// as this one is. Where proposals cannot be verified without changing a text, the second one is left out, and the log
    /// says so.
    ///
    /// # Errors
    /// As [`ModelConfig::load`], of either; a second model with other tokens; a first one that writes no text by tokens; threads
    /// that are to be pinned and cannot be.
    pub fn load_with_draft(
        &self,
        half: Half,
        draft: Option<&Path>,
    ) -> Result<LoadedModel, EngineError> {
        let pins = self.pins_threads().is_some();
        let failed_to_pin = |error| failed(PinThreadsError(error));
        if pins {
            medfleet_model::can_pin_threads().map_err(failed_to_pin)?;
        }
        let mut loaded = self.load_alone(half)?;
        if let Some(path) = draft {
            loaded = self.beside_draft(loaded, path)?;
        }
        if pins {
            let threads = medfleet_model::pin_threads().map_err(failed_to_pin)?;
            tracing::info!(threads, "threads are pinned, each to a core of its own");
        }
        Ok(loaded)
    }

    fn beside_draft(&self, loaded: LoadedModel, path: &Path) -> Result<LoadedModel, EngineError> {
        let LoadedModel::Real(loaded) = loaded else {
            return Err(EngineError::Model(
                "decode.speculation.draft goes with a model that writes text: MedGemma in a folder or a GGUF file"
                    .into(),
            ));
        };
        if let Some(cause) = loaded.verifies_none_because() {
            tracing::warn!(cause, "the draft model is left out");
            return Ok(LoadedModel::Real(loaded));
        }
        let loaded = loaded.with_draft(self.load_draft(path)?)?;
        let forms = loaded.draft_without_kernels();
        if !forms.is_empty() {
            tracing::warn!(
                forms,
                "the draft model holds matrices for which there are no kernels: it is slow, and proposes only where that pays all the same"
            );
        }
        Ok(LoadedModel::Real(loaded))
    }

    /// The text half of another model, held and computed as this one is; dequantised where it could not be computed in this one's
    /// numeric type as it is stored, since no text depends on it.
    fn load_draft(&self, path: &Path) -> Result<Model, EngineError> {
        let quantised = matches!(
            self,
            Self::Folder {
                weights: FolderWeights::Q8_0,
                ..
            } | Self::Gguf {
                weights: GgufWeights::Stored,
                ..
            }
        );
        let (Self::Folder {
            dtype,
            device,
            digest_cache,
            ..
        }
        | Self::Gguf {
            dtype,
            device,
            digest_cache,
            ..
        }) = self
        else {
            return Err(EngineError::Model("no model is loaded".into()));
        };
        let options = LoadOptions {
            dtype: (*dtype).into(),
            parts: Parts::Text,
            device: device.0,
        };
        // Its quantised rows are not kept: it is small, and quantising it takes no time worth that.
        let load = |held| Model::load_held(path, held, digest_cache.as_deref(), options);
        let mut draft = load(quantised);
        if let Err(LoadError::QuantisedDtype { form, .. }) = draft {
            tracing::warn!(
                form,
                "the draft model is dequantised: there are no kernels for a form of its matrices; a file in q8_0 takes half of the memory"
            );
            draft = load(false);
        }
        let place = path.display().to_string();
        draft.map_err(|source| failed(DraftError { place, source }))
    }
}

impl SimulatedConfig {
    fn model(&self) -> Simulated {
        let shape = SimulatedShape {
            frame_side: self.frame_side,
            tokens_per_image: self.tokens_per_image,
            token_width: self.token_width,
            words: self.words,
        };
        let timing = SimulatedTiming {
            encode_frame: self.encode_frame.get(),
            prefill: self.prefill.get(),
            prefill_token: self.prefill_token.get(),
            decode_step: self.decode_step.get(),
            decode_sequence: self.decode_sequence.get(),
        };
        Simulated::new(shape, timing)
    }
}

impl LoadedModel {
    /// What was loaded.
    pub fn description(&self) -> &Description {
        match self {
            Self::Real(loaded) => loaded.description(),
            Self::Embedder(embedder) => embedder.description(),
            Self::Simulated(simulated) => simulated.description(),
        }
    }

    /// The vision half.
    pub fn encoder(&self) -> Box<dyn EncodeBackend> {
        match self {
            Self::Real(loaded) => loaded.encoder(),
            Self::Embedder(embedder) => Box::new(embedder.clone()),
            Self::Simulated(simulated) => Box::new(simulated.clone()),
        }
    }

    /// The text half: of a model that writes, with its KV memory and its thread; beside an encoder where one of the same
    /// process computes on the same device.
    pub fn start_decode(
        &self,
        kv_bytes_max: u64,
        limits: DecodeLimits,
        encoding: Option<Encoding>,
    ) -> Result<DecodeModel, EngineError> {
        let backend = match self {
            Self::Real(loaded) => loaded.decoder(kv_bytes_max, limits.prefill_tokens_max)?,
            Self::Simulated(simulated) => Box::new(simulated.decoder(kv_bytes_max)),
            Self::Embedder(embedder) => return Ok(DecodeModel::Embedder(embedder.clone())),
        };
        let engine = DecodeEngine::start_beside(backend, limits, encoding).map_err(failed)?;
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
    pub fn engine(self) -> Option<DecodeEngine> {
        match self {
            Self::Writer(engine) => Some(engine),
            Self::Embedder(_) => None,
        }
    }

    /// Waits until it can do nothing more, and says why. Without somebody who waits, a call into the model that does not come
    /// back is not found.
    pub fn ended(&self) -> impl Future<Output = Health> + Send + use<> {
        let monitor = match self {
            Self::Writer(engine) => engine.monitor(),
            Self::Embedder(embedder) => embedder.monitor(),
        };
        monitor.ended()
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        match self {
            Self::Writer(engine) => engine.description(),
            Self::Embedder(embedder) => embedder.description(),
        }
    }
}

#[cfg(test)]
mod tests;
