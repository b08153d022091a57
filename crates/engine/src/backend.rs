//! What a model must be able to do, for the two halves of the fleet, and the values that cross that border.
//! Two things implement it: MedGemma ([`crate::real`]) and the model without weights ([`crate::simulated`]).

use bytes::Bytes;
use medfleet_core::{Digest, STOP_BYTES_MAX, STOPS_MAX};
use medfleet_model as model;
use model::{
    BlockLayout, BlockTable, Blocks, Constraint, ConstraintError, Dtype, Progress, StillThinking,
};

use crate::decode::DecodeRequest;
use crate::real::as_u32;
use crate::speculation::{Phrases, Proposing};

/// What a backend is: everything that a result's provenance says about model and device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Name of the model as its folder states it.
    pub model: String,
    /// Digest of all weights.
    pub model_digest: Digest,
    /// Digest of what decides a text beside the weights: configuration and vocabulary.
    pub settings_digest: Digest,
    /// Digest of the vision weights; tokens of another encoder are refused.
    pub encoder_digest: Digest,
    /// Kind of device, with the kernel level.
    pub device: String,
    /// Numeric type of activations, and of weights that are not quantised.
    pub dtype: Dtype,
    /// Forms of the language model's quantised matrices, such as `q8_0`; empty where none is.
    pub weights: String,
    /// Whether what it writes is the same whatever is computed beside it; not for one that only encodes.
    pub reproducible: bool,
    /// Width and height of the frames the encoder takes, in pixels.
    pub frame_side: u32,
    /// Image tokens a frame.
    pub tokens_per_image: u32,
    /// Values an image token.
    pub token_width: u32,
    /// Tokens of prompt and text together at most.
    pub context_tokens_max: u32,
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
    pub fn check(&self, side: u32) -> Result<(), EngineError> {
        // Sizes that came from outside are multiplied only once they are known to be small.
        let known = self.side == side && matches!(self.channels, 1 | 3);
        if known && self.pixels.len() == side as usize * side as usize * self.channels as usize {
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

impl From<model::ImageTokens> for ImageTokens {
    fn from(tokens: model::ImageTokens) -> Self {
        let ([count, width], dtype) = (tokens.shape(), tokens.dtype());
        Self {
            count: as_u32(count),
            width: as_u32(width),
            dtype,
            bytes: tokens.into_bytes().into(),
        }
    }
}

impl ImageTokens {
    /// Checks shape, dtype and length against what the model takes.
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
        let bytes = self.count as usize * self.width as usize * self.dtype.bytes();
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

/// Most tokens that end a text, besides the model's own.
pub const STOP_TOKENS_MAX: usize = 16;
/// Most alternatives that are reported for each token.
pub const ALTERNATIVES_MAX: u32 = 20;

/// How text is decoded, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoding {
    /// Tokens to write at most, at least 1.
    pub max_tokens: u32,
    /// 0 is greedy, at most 100.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens up to this mass, in (0, 1].
    pub top_p: f32,
    /// Keep tokens at least this share as likely as the most likely one, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits of what was said already, in (0, 10]; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Seed of the sampling.
    pub seed: u64,
    /// The text ends before the first of these; none of it is shown. At most [`STOPS_MAX`], 1 to [`STOP_BYTES_MAX`] bytes.
    pub stop: Vec<String>,
    /// Tokens that end the text besides the model's own; at most [`STOP_TOKENS_MAX`].
    pub stop_tokens: Vec<u32>,
    /// Alternatives to report for each token, at most [`ALTERNATIVES_MAX`].
    pub alternatives: u32,
    /// The form the text must have.
    pub constraint: Option<Constraint>,
}

impl Decoding {
    /// The most likely tokens, nothing else asked for.
    pub const fn greedy(max_tokens: u32) -> Self {
        Self {
            max_tokens,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            alternatives: 0,
            constraint: None,
        }
    }

    pub fn sampling(&self) -> model::Sampling {
        model::Sampling {
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    /// Checks every value.
    pub fn check(&self) -> Result<(), EngineError> {
        let refuse = |field, found: String, allowed: String| {
            Err(EngineError::Parameter {
                field,
                found,
                allowed,
            })
        };
        if let Err(model::SamplingError::Parameter {
            field,
            found,
            allowed,
        }) = self.sampling().check()
        {
            return refuse(field, found, allowed.to_owned());
        }
        if self.max_tokens == 0 {
            return refuse("max_tokens", "0".to_owned(), "1 or more".to_owned());
        }
        if self.stop.len() > STOPS_MAX {
            let found = format!("{} strings", self.stop.len());
            return refuse("stop", found, format!("at most {STOPS_MAX}"));
        }
        let wrong = |stop: &&String| !(1..=STOP_BYTES_MAX).contains(&stop.len());
        if let Some(stop) = self.stop.iter().find(wrong) {
            let found = format!("a string of {} bytes", stop.len());
            return refuse("stop", found, format!("1 to {STOP_BYTES_MAX} bytes"));
        }
        if self.stop_tokens.len() > STOP_TOKENS_MAX {
            let found = format!("{} tokens", self.stop_tokens.len());
            return refuse("stop_tokens", found, format!("at most {STOP_TOKENS_MAX}"));
        }
        if self.alternatives > ALTERNATIVES_MAX {
            let found = self.alternatives.to_string();
            let allowed = format!("at most {ALTERNATIVES_MAX}");
            return refuse("alternatives", found, allowed);
        }
        Ok(())
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, a stop string did, or its form is whole.
    Stop,
    /// The token limit cut it.
    Length,
}

/// Length of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Natural-log probability the model gave it, before penalty, temperature and cuts.
    pub log_probability: f32,
    /// The most likely tokens in its place, most likely first; as many as were asked for, of those a constraint allows.
    pub alternatives: Vec<Alternative>,
}

/// A token that could have been written.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Its text; U+FFFD where it is no whole character.
    pub text: String,
    /// Natural-log probability the model gave it, before penalty, temperature and cuts.
    pub log_probability: f32,
}

/// What one forward pass made of one sequence that was read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The token written; `None` when the model ended the text, or only thinks.
    pub token: Option<Token>,
    /// Text that became certain: empty while a character is incomplete.
    pub text: String,
    /// Set on the sequence's last step; an error fails this sequence alone.
    pub finish: Option<Result<Finish, StillThinking>>,
}

/// The part of one sequence in one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// The sequence; each is in a pass once.
    pub sequence: Sequence,
    /// How many of its tokens to compute, from [`DecodeBackend::stretch`].
    pub tokens: u32,
    /// How many proposed ones to verify behind the last, at most as many as [`DecodeBackend::propose`] said; 0 unless it writes.
    pub proposed: u32,
}

/// What a pass made of one sequence: none where it is not read to its end yet, else a step, and another for each proposal
/// that was right. An error is its alone and the last.
pub type Outcome = Vec<Result<Step, EngineError>>;

/// Memory for keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvMemory {
    /// Its size as the operator set it, in bytes.
    pub budget_bytes: u64,
    pub block_bytes: u64,
    /// Positions a block, and how much of a long sequence is held at a time.
    pub layout: BlockLayout,
    pub blocks: usize,
    /// Blocks that can be handed out now; the remembered beginnings of prompts count among them.
    pub available: usize,
}

impl KvMemory {
    /// Most blocks that a sequence of this many tokens takes at a time.
    pub fn blocks_of(&self, tokens: u64) -> usize {
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        self.layout.blocks_of(tokens)
    }
}

/// The vision half: frames to image tokens.
pub trait EncodeBackend: Send {
    /// What this backend is.
    fn description(&self) -> &Description;

    /// Image tokens of each frame, in order. The frames were checked with [`Frame::check`].
    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError>;

    /// Whether its device still computes, asked after a call that failed.
    fn computes(&mut self) -> bool {
        true
    }

    /// Whether it makes numbers of an input of which it must, asked after it has made some that are none.
    fn makes_numbers(&mut self) -> bool {
        true
    }
}

/// The text half: image tokens and a prompt to text, for several sequences at different positions.
pub trait DecodeBackend: Send {
    /// What this backend is.
    fn description(&self) -> &Description;

    /// Memory for keys and values.
    fn kv(&self) -> KvMemory;

    /// Takes a request on, without memory: its prompt becomes tokens, its constraint is prepared, its values are checked.
    /// The images were checked with [`ImageTokens::check`] and are as many as the prompt names.
    ///
    /// # Errors
    /// The model's own; the sequence then does not exist.
    fn open(
        &mut self,
        sequence: Sequence,
        request: &DecodeRequest,
    ) -> Result<PromptSize, EngineError>;

    /// Takes over what the memory still holds of the sequence's beginning. Returns how many tokens that is.
    fn begin(&mut self, sequence: Sequence) -> u32;

    /// How far a sequence is, and what it holds; none for one that is not known.
    fn progress(&self, sequence: Sequence) -> Option<&Progress>;

    /// The blocks of the memory.
    fn blocks(&self) -> &Blocks;

    /// Tokens of the sequence that were not computed yet: 1 when it is read and writes.
    fn left(&self, sequence: Sequence) -> u32 {
        let progress = self.progress(sequence);
        progress.map_or(0, |progress| as_u32(progress.left()))
    }

    /// Blocks the sequence lacks to hold all its tokens and one more.
    fn blocks_missing(&self, sequence: Sequence) -> usize {
        let progress = self.progress(sequence);
        progress.map_or(0, |progress| progress.blocks_missing(self.blocks()))
    }

    /// The blocks that the sequence holds.
    fn table(&self, sequence: Sequence) -> Option<&BlockTable> {
        self.progress(sequence).map(Progress::table)
    }

    /// How many tokens to compute next: at most `tokens_max` unless a single image is longer, cutting no image.
    fn stretch(&self, sequence: Sequence, tokens_max: u32) -> u32 {
        let progress = self.progress(sequence);
        progress.map_or(0, |progress| {
            as_u32(progress.next(tokens_max as usize).len())
        })
    }

    /// Takes the blocks that the next `tokens` of the sequence need; `false`, and nothing taken, where there are too few.
    fn reserve(&mut self, sequence: Sequence, tokens: u32) -> bool;

    /// Whether a row has the same bits wherever its prompt was cut, and whatever else is in the pass. Only then may what a
    /// clock said decide where prompts are cut.
    fn rows_stand_alone(&self) -> bool {
        false
    }

    /// Asks it to propose tokens, with what tenants' texts had in common. Says whether it will, which it may only where no
    /// proposal can change a text.
    fn speculate(&mut self, _phrases: Phrases) -> bool {
        false
    }

    /// The chance, as far as it was measured, that what a second model proposes for these texts is right; nothing where there
    /// is no second model.
    fn draft_chance(&self, _texts: &[Sequence]) -> Option<f32> {
        None
    }

    /// Proposes what follows the tokens of each of these sequences, which write: at most `tokens_max`, of which a second
    /// model adds some where there are fewer than `drafts_max`.
    fn propose(&mut self, _texts: &[Sequence], _tokens_max: u32, _drafts_max: u32) -> Proposing {
        Proposing::default()
    }

    /// One forward pass over stretches of several sequences, their memory reserved; one outcome each, in order. Memory
    /// that was reserved for proposals that were wrong is given back.
    ///
    /// # Errors
    /// The model's own; the sequences then stand where they stood, and the same can be asked of each alone.
    fn run(&mut self, works: &[Work]) -> Result<Vec<Outcome>, EngineError>;

    /// Takes the sequence's memory; it keeps all it wrote and can begin again.
    fn suspend(&mut self, sequence: Sequence);

    /// Forgets a sequence and frees its memory.
    fn release(&mut self, sequence: Sequence);

    /// Whether its device still computes, asked after a call that failed.
    fn computes(&mut self) -> bool {
        true
    }

    /// Whether it makes numbers of an input of which it must, asked after it has made some that are none.
    fn makes_numbers(&mut self) -> bool {
        true
    }
}

/// What can go wrong between a service and its model.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the encoder takes {expected}; found {found}")]
    Frame { expected: String, found: String },
    #[error("image tokens have the wrong {what}; expected {expected}, found {found}")]
    Tokens {
        what: &'static str,
        expected: String,
        found: String,
    },
    #[error("{arithmetic}")]
    TooLong {
        /// What was asked for, what there is, and how both were counted.
        arithmetic: String,
    },
    #[error("decoding.{field} is {found}, allowed is {allowed}")]
    Parameter {
        field: &'static str,
        found: String,
        allowed: String,
    },
    /// A form for the text that cannot be enforced, or that failed while the text was written.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    #[error("the prompts of version {version} have no task {task}")]
    NoPrompt {
        version: &'static str,
        task: &'static str,
    },
    /// The model ended, or was cut, before it answered.
    #[error(transparent)]
    StillThinking(#[from] StillThinking),
    /// The model failed; the batch is lost, the engine goes on.
    #[error("the model failed")]
    Model(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The model made values that are no numbers, and yet makes numbers of something else; the engine goes on as a rule.
    #[error(
        "the model made values that are no numbers: weights are damaged, or the device computed wrongly"
    )]
    NotFinite,
    /// The model makes no numbers of anything; the engine has ended, not because of what was asked.
    #[error("the model makes no numbers any more; the engine has ended")]
    Damaged,
    /// The model panicked on what was asked, or on what was asked with it; the engine has ended.
    #[error("the model broke; the engine has ended")]
    Panicked,
    /// A call into the model does not come back; the engine is lost, and its process ends.
    #[error("a call into the model does not come back; the engine is lost")]
    Hung,
    /// The engine has ended, not because of what was asked.
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
        check(u32::MAX, u32::MAX, 0, false);
    }

    fn refused(change: impl FnOnce(&mut Decoding)) -> String {
        let mut decoding = Decoding::greedy(8);
        change(&mut decoding);
        decoding.check().expect_err("out of range").to_string()
    }

    #[test]
    fn decoding_values_out_of_range_are_named_with_what_is_allowed() {
        assert!(Decoding::greedy(1).check().is_ok());
        for (found, expected) in [
            (
                refused(|d| d.max_tokens = 0),
                "decoding.max_tokens is 0, allowed is 1 or more",
            ),
            (
                refused(|d| d.min_p = f32::NAN),
                "decoding.min_p is NaN, allowed is 0 to 1",
            ),
            (
                refused(|d| d.repetition_penalty = 0.0),
                "decoding.repetition_penalty is 0, allowed is above 0, at most 10",
            ),
            (
                refused(|d| d.stop = vec![String::new()]),
                "decoding.stop is a string of 0 bytes, allowed is 1 to 64 bytes",
            ),
            (
                refused(|d| d.stop = vec!["x".to_owned(); 9]),
                "decoding.stop is 9 strings, allowed is at most 8",
            ),
            (
                refused(|d| d.stop_tokens = vec![0; 17]),
                "decoding.stop_tokens is 17 tokens, allowed is at most 16",
            ),
            (
                refused(|d| d.alternatives = 21),
                "decoding.alternatives is 21, allowed is at most 20",
            ),
        ] {
            assert_eq!(found, expected);
        }
    }
}
