//! config.json of a SigLIP folder (`SiglipModel`), with the class defaults of transformers 5.23 for what it omits.

use std::path::Path;

use serde::Deserialize;

use super::VisionConfig;
use super::raw::{ACTIVATION, Vision, checked, positive, require, size};
use crate::error::LoadError;

const MODEL_TYPE: &str = "siglip";

/// Both towers of a SigLIP model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SiglipConfig {
    /// Unpooled: one token per patch.
    pub(crate) vision: VisionConfig,
    pub(crate) text: SiglipTextConfig,
}

/// The text tower. Sizes are counts of elements.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SiglipTextConfig {
    /// Rows of the token embedding.
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// Tokens of every text, padding included.
    pub(crate) positions: usize,
    pub(crate) norm_eps: f64,
    /// Width of the embedding; the vision tower's.
    pub(crate) projection: usize,
}

#[derive(Deserialize)]
struct Top {
    model_type: Option<String>,
    text_config: Option<Text>,
    vision_config: Option<Vision>,
}

#[derive(Deserialize, Default)]
struct Text {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    max_position_embeddings: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    projection_size: Option<usize>,
}

/// Whether a model folder says of itself that it is a SigLIP; what else it must be, `SiglipConfig::read` checks.
pub fn is_siglip(dir: &Path) -> Result<bool, LoadError> {
    Ok(top(dir)?.model_type.as_deref() == Some(MODEL_TYPE))
}

fn top(dir: &Path) -> Result<Top, LoadError> {
    const FILE: &str = "config.json";
    super::parse_json(FILE, &super::read(dir, FILE)?)
}

impl SiglipConfig {
    /// Reads and checks `config.json` of `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, LoadError> {
        let top = top(dir)?;
        let kind = top.model_type.as_deref().unwrap_or("absent");
        require(kind == MODEL_TYPE, "model_type", kind, MODEL_TYPE)?;
        let Some(vision) = top.vision_config else {
            return super::raw::refuse("vision_config", "absent", "an object");
        };
        let vision = vision.check_unpooled()?;
        let text = top.text_config.unwrap_or_default().check()?;
        require(
            text.projection == vision.hidden,
            "text_config.projection_size",
            text.projection,
            "vision_config.hidden_size",
        )?;
        Ok(Self { vision, text })
    }
}

impl Text {
    fn check(self) -> Result<SiglipTextConfig, LoadError> {
        let activation = self.hidden_act.as_deref().unwrap_or(ACTIVATION);
        require(
            activation == ACTIVATION,
            "text_config.hidden_act",
            activation,
            ACTIVATION,
        )?;
        let hidden = checked!(size, "text_config", self.hidden_size, 768);
        let config = SiglipTextConfig {
            vocab: checked!(size, "text_config", self.vocab_size, 32_000),
            hidden,
            intermediate: checked!(size, "text_config", self.intermediate_size, 3072),
            layers: checked!(size, "text_config", self.num_hidden_layers, 12),
            heads: checked!(size, "text_config", self.num_attention_heads, 12),
            positions: checked!(size, "text_config", self.max_position_embeddings, 64),
            norm_eps: checked!(positive, "text_config", self.layer_norm_eps, 1e-6),
            projection: checked!(size, "text_config", self.projection_size, hidden),
        };
        require(
            config.hidden.is_multiple_of(config.heads),
            "text_config.num_attention_heads",
            config.heads,
            "a divisor of hidden_size",
        )?;
        require(
            (2..=4096).contains(&config.positions),
            "text_config.max_position_embeddings",
            config.positions,
            "2 to 4096",
        )?;
        require(
            config.layers <= 1024,
            "text_config.num_hidden_layers",
            config.layers,
            "1 to 1024",
        )?;
        Ok(config)
    }
}
