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

use crate::config::Config;
use crate::error::LoadError;
use crate::tokenizer::Tokenizer;
use value::Metadata;

/// Where the parts of a model in GGUF form are, and how its weights are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufSource {
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
    pub fn text(file: impl Into<PathBuf>) -> Self {
        Self {
            text: file.into(),
            vision: None,
            tokenizer: None,
            quantised: false,
            digest_cache: None,
        }
    }

    /// The file of the tokenizer that is named, or lies beside the language model's.
    pub(crate) fn tokenizer_apart(&self) -> Option<PathBuf> {
        let beside = self.text.with_file_name("tokenizer.json");
        let beside = beside.is_file().then_some(beside);
        self.tokenizer.clone().or(beside)
    }
}

/// The tokenizer of this file, or the one inside the GGUF.
pub(crate) fn tokenizer(
    apart: Option<PathBuf>,
    metadata: &Metadata,
    config: &Config,
) -> Result<Tokenizer, LoadError> {
    let (rows, with_images) = (config.text.vocab, config.vision.is_some());
    let Some(path) = apart else {
        return vocabulary::tokenizer(metadata, rows, with_images);
    };
    let name = file::file_name(&path);
    let text = std::fs::read_to_string(&path).map_err(LoadError::unreadable(&name))?;
    Tokenizer::parse(&text, rows, with_images)
}

#[cfg(test)]
pub(crate) mod tests;
