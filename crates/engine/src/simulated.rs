//! A model without weights: it takes the time a real one would and answers with a digest of everything it was given.
//!
//! Its tokens are a digest of the frame, and its text is a digest over the token bytes it received, in order, with prompt
//! and seed. So a swapped, missing or foreign image changes the text, and a fleet can be tested at any scale.
//! Where the text must have a form, it has it, and the digest decides where the form leaves a choice.

use std::time::Duration;

use bytes::Bytes;
use medfleet_core::Digest;
use medfleet_model::Dtype;

use crate::backend::{Description, EncodeBackend, EngineError, Frame, ImageTokens};
use crate::prompt::Prompt;

mod decoder;

pub use decoder::SimulatedDecoder;

/// How long the simulated device takes; zero by default. A pass takes `pass` and what its sequences add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimulatedTiming {
    pub encode_frame: Duration,
    /// Reading one prompt, whatever its length; spent when its first stretch is read.
    pub prefill: Duration,
    /// Reading one token of a prompt.
    pub prefill_token: Duration,
    /// One forward pass, whatever is in it.
    pub decode_step: Duration,
    /// Writing one token of one text, beside others.
    pub decode_sequence: Duration,
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
/// The kind of device of the simulated model, by which results and records show that no model computed.
const DEVICE: &str = "simulated";

impl Description {
    /// Whether no model computes: image tokens are any bytes, and text says nothing about an image.
    pub fn is_simulated(&self) -> bool {
        self.device == DEVICE
    }
}

/// The simulated model: what both halves share, and the vision half.
#[derive(Debug, Clone)]
pub struct Simulated {
    description: Description,
    timing: SimulatedTiming,
    words: u32,
}

impl Simulated {
    /// A simulated model. Two of the same shape have the same digests and understand each other's tokens.
    pub fn new(shape: SimulatedShape, timing: SimulatedTiming) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("medfleet simulated model v1");
        for value in [shape.frame_side, shape.tokens_per_image, shape.token_width] {
            hasher.update(&value.to_le_bytes());
        }
        let encoder_digest = Digest::new(*hasher.finalize().as_bytes());
        hasher.update(&shape.words.to_le_bytes());
        let model_digest = Digest::new(*hasher.finalize().as_bytes());
        let description = Description {
            model: "simulated".to_owned(),
            model_digest,
            // It has none but its shape.
            settings_digest: model_digest,
            encoder_digest,
            device: DEVICE.to_owned(),
            dtype: Dtype::Bf16,
            weights: String::new(),
            reproducible: true,
            frame_side: shape.frame_side,
            tokens_per_image: shape.tokens_per_image,
            token_width: shape.token_width,
            context_tokens_max: CONTEXT_TOKENS_MAX,
        };
        Self {
            description,
            timing,
            words: shape.words.max(4),
        }
    }

    /// The whole text it writes for these images, prompt and seed, when the token limit allows and no form is asked for.
    pub fn text(&self, prompt: &Prompt, images: &[ImageTokens], seed: u64) -> String {
        words(digest(prompt, images, seed), self.words).concat()
    }

    /// The text half, with as many KV blocks as fit into the budget.
    pub fn decoder(&self, kv_bytes_max: u64) -> SimulatedDecoder {
        SimulatedDecoder::new(self.clone(), kv_bytes_max)
    }
}

impl EncodeBackend for Simulated {
    fn description(&self) -> &Description {
        &self.description
    }

    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
        let description = &self.description;
        let values = description.tokens_per_image as usize * description.token_width as usize;
        let length = values * description.dtype.bytes();
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

/// Endless bytes that depend on everything the model was given.
fn digest(prompt: &Prompt, images: &[ImageTokens], seed: u64) -> blake3::OutputReader {
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
    hasher.finalize_xof()
}

/// Two headings and between them words of eight hexadecimal digits of the digest, half under each heading.
fn words(mut digest: blake3::OutputReader, count: u32) -> Vec<String> {
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
