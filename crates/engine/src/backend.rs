//! What a model must be able to do, for the two halves of the fleet, and the values that cross that border.
//! Two things implement it: MedGemma ([`crate::real`]) and the model without weights ([`crate::simulated`]).

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use medfleet_core::Digest;
use medfleet_model::StillThinking;

use crate::prompt::Prompt;

/// What a backend is: everything that a result's provenance says about model and device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Name of the model as its folder states it.
    pub model: String,
    /// Digest of all weights.
    pub model_digest: Digest,
    /// Digest of the vision weights; tokens of another encoder are refused.
    pub encoder_digest: Digest,
    /// Kind of device, with the kernel level.
    pub device: String,
    /// Numeric type of weights and activations.
    pub dtype: Dtype,
    /// Width and height of the frames the encoder takes, in pixels.
    pub frame_side: u32,
    /// Image tokens a frame.
    pub tokens_per_image: u32,
    /// Values an image token.
    pub token_width: u32,
    /// Tokens of prompt and text together at most.
    pub context_tokens_max: u32,
}

/// Numeric types that cross the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit IEEE float.
    F32,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// The one text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes a value.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dtype {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(EngineError::Tokens {
                what: "dtype",
                expected: "f32 or bf16".to_owned(),
                found: "another word".to_owned(),
            }),
        }
    }
}

/// A model-ready frame: square, row-major, channels interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Width and height in pixels.
    pub side: u32,
    /// 1 for grey, 3 for RGB.
    pub channels: u32,
    /// `side * side * channels` bytes.
    pub pixels: Bytes,
}

impl Frame {
    /// Checks side, channels and length against what the encoder takes.
    ///
    /// # Errors
    /// [`EngineError::Frame`] with what was expected and found.
    pub fn check(&self, side: u32) -> Result<(), EngineError> {
        let bytes = self.side as usize * self.side as usize * self.channels as usize;
        let good =
            self.side == side && matches!(self.channels, 1 | 3) && self.pixels.len() == bytes;
        if good {
            return Ok(());
        }
        Err(EngineError::Frame {
            expected: format!("{side}x{side} pixels of 1 or 3 bytes"),
            found: format!(
                "{0}x{0} pixels of {1} bytes in {2} bytes",
                self.side,
                self.channels,
                self.pixels.len()
            ),
        })
    }
}

/// The image tokens of one frame: pooled, before norm and projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTokens {
    /// Tokens.
    pub count: u32,
    /// Values a token.
    pub width: u32,
    /// Type of a value.
    pub dtype: Dtype,
    /// `count * width` values, row-major, little-endian.
    pub bytes: Bytes,
}

impl ImageTokens {
    /// Checks shape, dtype and length against what the model takes.
    ///
    /// # Errors
    /// [`EngineError::Tokens`] with what was expected and found.
    pub fn check(&self, description: &Description) -> Result<(), EngineError> {
        let expected = (
            description.tokens_per_image,
            description.token_width,
            description.dtype,
        );
        if (self.count, self.width, self.dtype) != expected {
            return Err(EngineError::Tokens {
                what: "shape",
                expected: format!("{} x {} {}", expected.0, expected.1, expected.2),
                found: format!("{} x {} {}", self.count, self.width, self.dtype),
            });
        }
        let bytes = self.count as usize * self.width as usize * self.dtype.size_bytes();
        if self.bytes.len() != bytes {
            return Err(EngineError::Tokens {
                what: "length",
                expected: format!("{bytes} bytes"),
                found: format!("{} bytes", self.bytes.len()),
            });
        }
        Ok(())
    }
}

/// How text is decoded, with every default filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decoding {
    /// Tokens to write at most, at least 1.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens up to this mass, in (0, 1].
    pub top_p: f32,
    /// Seed of the sampling.
    pub seed: u64,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// The token limit cut it.
    Length,
}

/// Length of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSize {
    /// All tokens, image tokens included.
    pub tokens: u32,
    /// Of these, image tokens.
    pub image_tokens: u32,
}

/// Names a sequence within a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// A token that was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Natural-log probability the model gave it, before temperature and cuts.
    pub log_probability: f32,
}

/// What one forward pass made of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The token written; `None` when the model ended the text, or only thinks.
    pub token: Option<Token>,
    /// Text that became certain: empty while a character is incomplete.
    pub text: String,
    /// Set on the sequence's last step; an error fails this sequence alone.
    pub finish: Option<Result<Finish, StillThinking>>,
}

/// The vision half: frames to image tokens.
pub trait EncodeBackend: Send {
    /// What this backend is.
    fn description(&self) -> &Description;

    /// Image tokens of each frame, in order. The frames were checked with [`Frame::check`].
    ///
    /// # Errors
    /// The model's own.
    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError>;
}

/// The text half: image tokens and a prompt to text, for several sequences at different positions.
pub trait DecodeBackend: Send {
    /// What this backend is.
    fn description(&self) -> &Description;

    /// Length of a prompt in tokens.
    ///
    /// # Errors
    /// The model's own, when the prompt cannot be tokenised.
    fn measure(&self, prompt: &Prompt) -> Result<PromptSize, EngineError>;

    /// Bytes of KV memory that a sequence of this many tokens takes.
    fn kv_bytes(&self, tokens: u32) -> u64;

    /// Reads the prompt of a new sequence and writes its first token.
    /// The images were checked with [`ImageTokens::check`] and are as many as the prompt names.
    ///
    /// # Errors
    /// The model's own; the sequence then does not exist.
    fn prefill(
        &mut self,
        sequence: Sequence,
        prompt: &Prompt,
        images: &[ImageTokens],
        decoding: &Decoding,
    ) -> Result<Step, EngineError>;

    /// Writes the next token of each sequence in one forward pass; as many steps as sequences, in order.
    ///
    /// # Errors
    /// The model's own; the batch is then lost.
    fn step(&mut self, sequences: &[Sequence]) -> Result<Vec<Step>, EngineError>;

    /// Forgets a sequence and frees its memory.
    fn release(&mut self, sequence: Sequence);
}

/// What can go wrong between a service and its model.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A frame that the encoder does not take.
    #[error("the encoder takes {expected}; found {found}")]
    Frame {
        /// What it takes.
        expected: String,
        /// What came.
        found: String,
    },
    /// Image tokens that the model does not take.
    #[error("image tokens have the wrong {what}; expected {expected}, found {found}")]
    Tokens {
        /// Which property.
        what: &'static str,
        /// What the model takes.
        expected: String,
        /// What came.
        found: String,
    },
    /// The request can never fit; the message carries the arithmetic.
    #[error("{arithmetic}")]
    TooLong {
        /// What was asked for, what there is, and how both were counted.
        arithmetic: String,
    },
    /// The model ended, or was cut, before it answered.
    #[error(transparent)]
    StillThinking(#[from] StillThinking),
    /// The model failed; the batch is lost, the engine goes on.
    #[error("the model failed")]
    Model(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The model panicked; the engine has ended.
    #[error("the model panicked; the engine has ended")]
    Panicked,
    /// The engine has ended.
    #[error("the engine has ended")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_checked_before_the_model_sees_them() {
        let check = |side, channels, bytes: usize, good: bool| {
            let frame = Frame {
                side,
                channels,
                pixels: vec![0; bytes].into(),
            };
            assert_eq!(frame.check(4).is_ok(), good, "{side} {channels} {bytes}");
        };
        check(4, 1, 16, true);
        check(4, 3, 48, true);
        check(4, 2, 32, false);
        check(5, 1, 25, false);
        check(4, 1, 15, false);
    }
}
