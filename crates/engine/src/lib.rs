//! What stands between a service and a model: one thread that owns the model, a bounded channel in front of it,
//! continuous batching of decodes within a budget of KV bytes, prompts, and the reading of the text that comes out.
//!
//! It knows nothing of queues, jobs or blobs. A panic in the model fails the batch it happened in, flips
//! [`Health`] and ends the engine; the service then ends the process in order.
//!
//! Reading order: [`backend`] (what a model must be able to do), `turns` (who goes first), [`encode`], [`decode`] (the
//! scheduler), [`speculation`] (several tokens of a text in one pass), [`prompt`], [`text`]; [`simulated`] is a model without
//! weights, [`real`] is MedGemma, [`embed`] is MedSigLIP.

pub mod backend;
pub mod config;
pub mod decode;
pub mod embed;
pub mod encode;
mod encoding;
mod health;
pub mod prompt;
pub mod real;
pub mod simulated;
pub mod speculation;
pub mod text;
mod turns;

pub use backend::{
    ALTERNATIVES_MAX, Alternative, DecodeBackend, Decoding, Description, EncodeBackend,
    EngineError, Finish, Frame, ImageTokens, KvMemory, Outcome, PromptSize, STOP_TOKENS_MAX,
    Sequence, Step, Token, Work,
};
pub use config::{
    DecodeModel, FolderWeights, GgufWeights, LoadedModel, ModelConfig, ModelConfigError,
    ModelDevice, ModelDtype, SimulatedConfig,
};
pub use decode::{
    DecodeEngine, DecodeEvent, DecodeLimits, DecodeLoad, DecodeRequest, DecodeStream, Done, Haste,
    Verified, prompt_tokens,
};
pub use embed::{Compared, LoadedEmbedder, Match};
pub use encode::{EncodeEngine, EncodeLoad, Encoded};
pub use encoding::{Encoding, Purpose};
pub use health::{Health, ModelFailure};
pub use medfleet_model::{Constraint, ConstraintError, Dtype, StillThinking};
pub use prompt::{Arrangement, Asked, Images, PROMPT_VERSION, Part, Prompt, Prompts, Question};
pub use real::{Half, Origin, kv_bytes_of};
pub use simulated::{Simulated, SimulatedDecoder, SimulatedShape, SimulatedTiming};
pub use speculation::{Phrases, Speculation};
pub use text::{Sections, Sentence, TokenSpan, choose_among, sections, sentences};
