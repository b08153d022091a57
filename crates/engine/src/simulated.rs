//! A model without weights: it takes the time a real one would and answers with a digest of everything it was given.
//!
//! Its tokens are a digest of the frame, and its text is a digest over the token bytes it received, in order, with prompt
//! and seed. So a swapped, missing or foreign image changes the text, and a fleet can be tested at any scale.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use medfleet_core::Digest;

use crate::backend::{
    DecodeBackend, Decoding, Description, Dtype, EncodeBackend, EngineError, Finish, Frame,
    ImageTokens, PromptSize, Sequence, Step, Token,
};
use crate::prompt::{Part, Prompt};

/// How long the simulated device takes; zero by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimulatedTiming {
    /// Encoding one frame.
    pub encode_frame: Duration,
    /// Reading one prompt.
    pub prefill: Duration,
    /// One forward pass over all sequences.
    pub decode_step: Duration,
}

/// What the simulated model looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedShape {
    /// Width and height of its frames, in pixels.
    pub frame_side: u32,
    /// Image tokens a frame.
    pub tokens_per_image: u32,
    /// Values a token.
    pub token_width: u32,
    /// Words it writes when the token limit allows, each a token; at least 4.
    pub words: u32,
}

impl Default for SimulatedShape {
    /// MedGemma's: 896 pixels, 256 tokens of 1152 values; 16 words.
    fn default() -> Self {
        Self {
            frame_side: 896,
            tokens_per_image: 256,
            token_width: 1152,
            words: 16,
        }
    }
}

/// Context of the simulated model, in tokens.
const CONTEXT_TOKENS_MAX: u32 = 131_072;
/// Bytes of KV memory it pretends to need for a token: that of a 4B model in bf16 (34 layers of 4 KiB).
const KV_BYTES_PER_TOKEN: u64 = 34 * 4096;

/// The simulated model; both halves.
#[derive(Debug, Clone)]
pub struct Simulated {
    description: Description,
    timing: SimulatedTiming,
    words: u32,
    sequences: HashMap<Sequence, Writing>,
}

#[derive(Debug, Clone)]
struct Writing {
    words: Vec<String>,
    written: usize,
    max_tokens: usize,
}

impl Simulated {
    /// A simulated model. Two of the same shape have the same digests and understand each other's tokens.
    #[must_use]
    pub fn new(shape: SimulatedShape, timing: SimulatedTiming) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("medfleet simulated model v1");
        for value in [shape.frame_side, shape.tokens_per_image, shape.token_width] {
            hasher.update(&value.to_le_bytes());
        }
        let encoder_digest = Digest::new(*hasher.finalize().as_bytes());
        hasher.update(&shape.words.to_le_bytes());
        let description = Description {
            model: "simulated".to_owned(),
            model_digest: Digest::new(*hasher.finalize().as_bytes()),
            encoder_digest,
            device: "simulated".to_owned(),
            dtype: Dtype::Bf16,
            frame_side: shape.frame_side,
            tokens_per_image: shape.tokens_per_image,
            token_width: shape.token_width,
            context_tokens_max: CONTEXT_TOKENS_MAX,
        };
        Self {
            description,
            timing,
            words: shape.words.max(4),
            sequences: HashMap::new(),
        }
    }

    /// The whole text it writes for these images, prompt and seed, when the token limit allows.
    #[must_use]
    pub fn text(&self, prompt: &Prompt, images: &[ImageTokens], seed: u64) -> String {
        words(prompt, images, seed, self.words).concat()
    }

    fn next(&mut self, sequence: Sequence) -> Result<Step, EngineError> {
        let Some(writing) = self.sequences.get_mut(&sequence) else {
            return Err(EngineError::Model("the sequence is not known".into()));
        };
        let Some(text) = writing.words.get(writing.written) else {
            return Ok(Step {
                token: None,
                text: String::new(),
                finish: Some(Ok(Finish::Stop)),
            });
        };
        writing.written += 1;
        let id = text.bytes().fold(0, |id: u32, byte| {
            id.wrapping_mul(31).wrapping_add(byte.into())
        });
        // Any fixed function of the word serves: between -2 and 0.
        let log_probability = -((id % 256) as f32) / 128.0;
        let finish = (writing.written >= writing.max_tokens).then_some(Ok(Finish::Length));
        Ok(Step {
            token: Some(Token {
                id,
                log_probability,
            }),
            text: text.clone(),
            finish,
        })
    }
}

impl EncodeBackend for Simulated {
    fn description(&self) -> &Description {
        &self.description
    }

    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
        let description = &self.description;
        let values = description.tokens_per_image as usize * description.token_width as usize;
        let length = values * description.dtype.size_bytes();
        let tokens = frames.iter().map(|frame| {
            pause(self.timing.encode_frame);
            let mut hasher = blake3::Hasher::new_derive_key("medfleet simulated image tokens v1");
            hasher
                .update(&frame.channels.to_le_bytes())
                .update(&frame.pixels);
            let mut bytes = vec![0; length];
            hasher.finalize_xof().fill(&mut bytes);
            ImageTokens {
                count: description.tokens_per_image,
                width: description.token_width,
                dtype: description.dtype,
                bytes: Bytes::from(bytes),
            }
        });
        Ok(tokens.collect())
    }
}

impl DecodeBackend for Simulated {
    fn description(&self) -> &Description {
        &self.description
    }

    fn measure(&self, prompt: &Prompt) -> Result<PromptSize, EngineError> {
        let image_tokens =
            as_u32(prompt.images()).saturating_mul(self.description.tokens_per_image);
        let texts = prompt.parts.iter().map(|part| match part {
            Part::Image => 0,
            Part::Text(text) => text.split_whitespace().count(),
        });
        let words = texts.sum::<usize>() + prompt.system.split_whitespace().count();
        Ok(PromptSize {
            tokens: image_tokens.saturating_add(as_u32(words)),
            image_tokens,
        })
    }

    fn kv_bytes(&self, tokens: u32) -> u64 {
        u64::from(tokens) * KV_BYTES_PER_TOKEN
    }

    fn prefill(
        &mut self,
        sequence: Sequence,
        prompt: &Prompt,
        images: &[ImageTokens],
        decoding: &Decoding,
    ) -> Result<Step, EngineError> {
        pause(self.timing.prefill);
        let words = words(prompt, images, decoding.seed, self.words);
        let max_tokens = decoding.max_tokens as usize;
        self.sequences.insert(
            sequence,
            Writing {
                words,
                written: 0,
                max_tokens,
            },
        );
        self.next(sequence)
    }

    fn step(&mut self, sequences: &[Sequence]) -> Result<Vec<Step>, EngineError> {
        pause(self.timing.decode_step);
        sequences
            .iter()
            .map(|sequence| self.next(*sequence))
            .collect()
    }

    fn release(&mut self, sequence: Sequence) {
        self.sequences.remove(&sequence);
    }
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Two headings and between them words of eight hexadecimal digits of the digest, half under each heading.
fn words(prompt: &Prompt, images: &[ImageTokens], seed: u64, count: u32) -> Vec<String> {
    let mut hasher = blake3::Hasher::new_derive_key("medfleet simulated text v1");
    hasher
        .update(&seed.to_le_bytes())
        .update(&prompt.canonical_bytes());
    for image in images {
        hasher
            .update(&image.count.to_le_bytes())
            .update(&image.width.to_le_bytes());
        hasher.update(image.dtype.as_str().as_bytes());
        hasher
            .update(&(image.bytes.len() as u64).to_le_bytes())
            .update(&image.bytes);
    }
    let mut digest = hasher.finalize_xof();
    let count = count as usize;
    let middle = count / 2;
    (0..count)
        .map(|index| {
            let mut bytes = [0; 4];
            digest.fill(&mut bytes);
            let word = u32::from_le_bytes(bytes);
            match index {
                0 => "Findings:".to_owned(),
                _ if index == middle => "\nImpression:".to_owned(),
                _ if index + 1 == middle || index + 1 == count => format!(" {word:08x}."),
                _ => format!(" {word:08x}"),
            }
        })
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the simulated device takes the time of a real one, on the engine's own thread"
)]
fn pause(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}
