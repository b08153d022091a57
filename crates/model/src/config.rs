//! config.json and generation_config.json of a Hugging Face folder, checked and reduced to what the computation needs.
//! The hub's files omit whatever equals the library's class defaults, and newer files spell some keys differently;
//! both spellings are read (`raw`). Anything this implementation does not compute is refused by name.

mod raw;
pub(crate) mod siglip;

use std::io::ErrorKind;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::dtype::Dtype;
use crate::error::LoadError;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub text: TextConfig,
    /// The vision tower; absent in text-only checkpoints.
    pub vision: Option<VisionConfig>,
    /// The soft token's id as config.json states it; the tokenizer decides, and must agree.
    pub image_token: Option<u32>,
    /// Ids that end a generation, from generation_config.json or else config.json; may be empty.
    pub stop_tokens: Vec<u32>,
}

/// Which keys a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// The last `window` positions.
    Local,
    /// All earlier positions.
    Global,
}

impl LayerKind {
    /// So many layers, of which every `every`-th is global.
    pub(crate) fn pattern(count: usize, every: usize) -> Vec<Self> {
        let kind = |i: usize| {
            if i.is_multiple_of(every) {
                Self::Global
            } else {
                Self::Local
            }
        };
        (1..=count).map(kind).collect()
    }
}

/// Gemma 3 text. Sizes are counts of elements.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward.
    pub intermediate: usize,
    pub layers: Vec<LayerKind>,
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Scores are multiplied by this to the power −0.5.
    pub query_scalar: f64,
    /// Positions a local layer sees, its own included.
    pub window: usize,
    /// RoPE base of local layers, unscaled.
    pub rope_local_theta: f64,
    pub rope_global_theta: f64,
    /// Linear factor of global layers: positions are divided by it.
    pub rope_global_factor: f64,
    pub norm_eps: f64,
    pub positions_max: usize,
}

/// SigLIP vision tower and the pooling behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward.
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// Side of the square picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Epsilon of every layer norm and of the projector's RMS norm.
    pub norm_eps: f64,
    /// Tokens per image after pooling; a square number.
    pub tokens_per_image: usize,
}

impl VisionConfig {
    pub(crate) const fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens along one side after pooling.
    pub(crate) const fn tokens_per_side(&self) -> usize {
        self.tokens_per_image.isqrt()
    }

    /// Side of the pooling window in patches.
    pub const fn pool(&self) -> usize {
        self.patches_per_side() / self.tokens_per_side()
    }
}

impl Config {
    /// Reads and checks `config.json` and, where present, `generation_config.json` of `dir`.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let text = read(dir, "config.json")?;
        let generation = read_optional(dir, "generation_config.json")?;
        Self::parse(&text, generation.as_deref())
    }

    /// Checks the texts of the two files.
    pub fn parse(config: &str, generation: Option<&str>) -> Result<Self, LoadError> {
        let top: raw::Top = parse_json("config.json", config)?;
        let generation = parse_json("generation_config.json", generation.unwrap_or("{}"))?;
        top.check(generation)
    }
}

/// What a folder's `config.json` says that its weights are in, by either spelling; nothing where it says nothing, or what is not
/// computed in. That the file is there and good is for whoever loads the model to say.
pub fn stored_dtype(dir: &Path) -> Option<Dtype> {
    #[derive(serde::Deserialize)]
    struct Said {
        dtype: Option<String>,
        torch_dtype: Option<String>,
    }
    let said: Said = serde_json::from_str(&read(dir, "config.json").ok()?).ok()?;
    said.dtype.or(said.torch_dtype)?.parse().ok()
}

/// The whole text of one file of the folder.
pub(crate) fn read(dir: &Path, file: &str) -> Result<String, LoadError> {
    std::fs::read_to_string(dir.join(file)).map_err(LoadError::unreadable(file))
}

/// The same of a file that may be missing.
pub(crate) fn read_optional(dir: &Path, file: &str) -> Result<Option<String>, LoadError> {
    match std::fs::read_to_string(dir.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::unreadable(file)(source)),
    }
}

/// What the text of this file says.
pub(crate) fn parse_json<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, LoadError> {
    serde_json::from_str(text).map_err(|source| LoadError::Json {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
