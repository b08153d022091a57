//! GGUF files as llama.cpp writes them for Gemma 3: the language model, and the vision tower of an mmproj file.
//!
//! [`file`] reads the container, [`names`] turns llama.cpp's tensor names into the hub's, [`config`] makes the checked
//! configuration from the metadata, [`vocabulary`] the tokenizer from the file's own vocabulary. From there on
//! everything is as for safetensors ([`crate::weights`]). candle's reader is not used: it panics on an alignment of 0,
//! takes a second tensor of one name silently, and does not say which tensor is cut off. Nor is its writer, which holds all
//! tensors at once: [`mod@write`] is ours.

pub(crate) mod config;
pub(crate) mod file;
pub(crate) mod names;
pub(crate) mod value;
pub(crate) mod vocabulary;
pub(crate) mod write;

use std::path::PathBuf;

/// Where the parts of a model in GGUF form are, and how its weights are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufSource {
    /// The language model's file.
    pub text: PathBuf,
    /// The vision tower and projector: an mmproj GGUF, or a folder with config.json and safetensors. Without it the
    /// model is text only.
    pub vision: Option<PathBuf>,
    /// A tokenizer.json. Without it the one beside the language model's file is taken, or else the vocabulary inside it.
    pub tokenizer: Option<PathBuf>,
    /// Keep quantised matrices as they are stored and multiply with those (activations are then quantised to 8 bits as
    /// well, so the result is near the dequantised model's, not equal to it). Otherwise they become f32 or bf16.
    pub quantised: bool,
    /// As [`FolderSource::digest_cache`](crate::FolderSource::digest_cache).
    pub digest_cache: Option<PathBuf>,
}

impl GgufSource {
    /// The language model alone, dequantised.
    #[must_use]
    pub fn text(file: impl Into<PathBuf>) -> Self {
        Self {
            text: file.into(),
            vision: None,
            tokenizer: None,
            quantised: false,
            digest_cache: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
