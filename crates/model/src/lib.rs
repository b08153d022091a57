//! MedGemma: SigLIP vision tower → average pooling → norm and projection → Gemma 3 with its image mask.
//!
//! This crate owns candle and tokenizers; neither shows in its interface. candle-transformers' Gemma 3 is not used: it
//! is text only, leaves out the rope factor, and its window is one too wide. Correct here means: agrees with Hugging
//! Face transformers on the same weights (`tests/reference`, tests in `parity`).
//!
//! Reading order: [`Model`], [`Frame`] and [`ImageTokens`] (vision), [`Prompt`], [`Chunk`] and [`KvPool`] (one batched
//! forward), [`Request`] (a whole answer).
//!
//! Absent by intention: f16 anywhere, clocks, environment variables (but one, that rules a GPU's kernels out), threads of
//! its own, special token ids in code.

mod chat_template;
mod config;
mod device;
mod digests;
mod dtype;
mod encoder;
mod error;
mod frame;
mod fused;
mod generate;
mod gguf;
mod guide;
mod layers;
mod limits;
mod model;
mod pages;
mod partial;
mod projector;
mod prompt;
mod sampling;
mod settings;
mod siglip;
mod text;
mod threads;
mod tokenizer;
mod tokens;
mod vision;
mod weights;

pub use config::siglip::is_siglip;
pub use config::{Config, LayerKind, TextConfig, VisionConfig, stored_dtype};
pub use device::{ComputeDevice, ComputeDeviceError};
pub use dtype::{Dtype, DtypeError};
pub use error::{
    BackendError, CacheError, ConstraintError, EmbedError, EncodeError, ForwardError, FrameError,
    GenerateError, GgufError, ImageTokensError, LoadError, PromptError, SamplingError,
    StillThinking,
};
pub use frame::{FRAME_SIDE_MAX, Frame};
pub use generate::{Continue, Delta, Finish, Generation, Request};
pub use gguf::GgufSource;
pub use gguf::names::gguf_name;
pub use gguf::write::GgufWriter;
pub use guide::{Constraint, Guide, Guides, TokenSet};
pub use limits::Limits;
pub use model::{FolderSource, LoadOptions, Model, Parts};
pub use prompt::{Message, Part, Prompt, Role};
pub use sampling::{Choice, Sampling, Situation, choose, likeliest};
pub use siglip::{Embedder, ReadText};
pub use text::batch::{Chunk, ImageSpan, LogitRows, Want};
pub use text::blocks::parts::BlockCopy;
pub use text::blocks::{BlockKey, BlockLayout, BlockTable, Blocks, Cacheable, PlacedImage};
pub use text::cache::{KvOptions, KvPool};
pub use text::progress::Progress;
pub use threads::{PinError, can_pin_threads, pin_threads};
pub use tokenizer::{Detokenizer, ImageMarkers, SpecialTokens, Tokenizer};
pub use tokens::ImageTokens;
pub use weights::{Digests, QuantisedCache};

#[cfg(test)]
mod parity;
