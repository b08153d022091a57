//! The files as written, with the class defaults of transformers 5.23 (`Gemma3TextConfig`, `SiglipVisionConfig`) for
//! what they omit. Unknown keys are ignored here: these files are not ours and carry dozens that do not matter.

use serde::Deserialize;

use super::{Config, LayerKind, TextConfig, VisionConfig};
use crate::error::LoadError;

pub(super) const ACTIVATION: &str = "gelu_pytorch_tanh";

#[derive(Deserialize)]
pub(super) struct Top {
    model_type: Option<String>,
    text_config: Option<Text>,
    vision_config: Option<Vision>,
    mm_tokens_per_image: Option<usize>,
    #[serde(alias = "image_token_id")]
    image_token_index: Option<u32>,
    eos_token_id: Option<Ids>,
    tie_word_embeddings: Option<bool>,
    /// A text-only checkpoint has the text keys at the top.
    #[serde(flatten)]
    flat: Text,
}

#[derive(Deserialize)]
pub(super) struct Generation {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn list(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct Text {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    query_pre_attn_scalar: Option<f64>,
    sliding_window: Option<usize>,
    sliding_window_pattern: Option<usize>,
    #[serde(rename = "_sliding_window_pattern")]
    newer_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<RopeParameters>,
    rms_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    hidden_activation: Option<String>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize, Default)]
struct RopeParameters {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
    /// As other models have it: the same for all layers.
    #[serde(flatten)]
    flat: Rope,
}

#[derive(Deserialize, Default, PartialEq)]
struct Rope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_type: Option<String>,
    factor: Option<f64>,
    rope_theta: Option<f64>,
}

#[derive(Deserialize)]
pub(super) struct Vision {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
}

pub(super) fn refuse<T>(
    field: &'static str,
    found: impl ToString,
    allowed: impl Into<String>,
) -> Result<T, LoadError> {
    Err(LoadError::Config {
        field,
        found: found.to_string(),
        allowed: allowed.into(),
    })
}

pub(super) fn require(
    holds: bool,
    field: &'static str,
    found: impl ToString,
    allowed: &str,
) -> Result<(), LoadError> {
    if holds {
        Ok(())
    } else {
        refuse(field, found, allowed)
    }
}

/// A key that files have in two spellings, some of them in both.
fn either<T: PartialEq + std::fmt::Display>(
    field: &'static str,
    one: Option<T>,
    other: Option<T>,
) -> Result<Option<T>, LoadError> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => refuse(
            field,
            format!("{one} and {other}"),
            "the same in both spellings",
        ),
        (one, other) => Ok(one.or(other)),
    }
}

/// What this function makes of a value of a part of config.json; errors name it by the part and its own name.
macro_rules! checked {
    ($check:ident, $part:literal, $config:ident . $field:ident, $default:expr) => {
        $check(
            concat!($part, ".", stringify!($field)),
            $config.$field,
            $default,
        )?
    };
}
pub(super) use checked;

const ROPE_KIND: &str = "text_config.rope_parameters.rope_type";

impl Rope {
    fn kind(&self) -> Result<Option<&str>, LoadError> {
        let (new, old) = (self.rope_type.as_deref(), self.older_type.as_deref());
        either(ROPE_KIND, new, old)
    }
}

/// Sizes above this are no model's; they would only overflow the arithmetic that follows.
const SIZE_MAX: usize = 1 << 24;

pub(super) fn size(
    field: &'static str,
    value: Option<usize>,
    default: usize,
) -> Result<usize, LoadError> {
    let value = value.unwrap_or(default);
    require(
        (1..=SIZE_MAX).contains(&value),
        field,
        value,
        "1 to 16777216",
    )?;
    Ok(value)
}

pub(super) fn positive(
    field: &'static str,
    value: Option<f64>,
    default: f64,
) -> Result<f64, LoadError> {
    let value = value.unwrap_or(default);
    require(
        value.is_finite() && value > 0.0,
        field,
        value,
        "a positive number",
    )?;
    Ok(value)
}

impl Top {
    pub(super) fn check(self, generation: Generation) -> Result<Config, LoadError> {
        let kind = self.model_type.as_deref().unwrap_or("gemma3");
        require(
            matches!(kind, "gemma3" | "gemma3_text"),
            "model_type",
            kind,
            "gemma3 or gemma3_text",
        )?;
        let of_text = self.text_config.as_ref();
        let of_text = of_text.and_then(|text| text.tie_word_embeddings);
        require(
            self.tie_word_embeddings != Some(false) && of_text != Some(false),
            "tie_word_embeddings",
            false,
            "true",
        )?;
        let flat = self.text_config.is_none() && kind == "gemma3_text";
        let text = self.text_config.unwrap_or(self.flat).check()?;
        let vision = match self.vision_config {
            Some(vision) => Some(vision.check(self.mm_tokens_per_image)?),
            None if flat => None,
            None => {
                return refuse(
                    "vision_config",
                    "absent",
                    "an object (or model_type gemma3_text)",
                );
            }
        };
        let stop_tokens = generation
            .eos_token_id
            .or(self.eos_token_id)
            .map_or_else(Vec::new, Ids::list);
        Ok(Config {
            text,
            vision,
            image_token: self.image_token_index,
            stop_tokens,
        })
    }
}

impl Text {
    fn check(self) -> Result<TextConfig, LoadError> {
        self.refuse_variants()?;
        let (rope_local_theta, rope_global_theta, rope_global_factor) = self.rope()?;
        let config = TextConfig {
            layers: self.layers()?,
            vocab: checked!(size, "text_config", self.vocab_size, 262_208),
            hidden: checked!(size, "text_config", self.hidden_size, 2304),
            intermediate: checked!(size, "text_config", self.intermediate_size, 9216),
            heads: checked!(size, "text_config", self.num_attention_heads, 8),
            kv_heads: checked!(size, "text_config", self.num_key_value_heads, 4),
            head_dim: checked!(size, "text_config", self.head_dim, 256),
            query_scalar: checked!(positive, "text_config", self.query_pre_attn_scalar, 256.0),
            window: checked!(size, "text_config", self.sliding_window, 4096),
            rope_local_theta,
            rope_global_theta,
            rope_global_factor,
            norm_eps: checked!(positive, "text_config", self.rms_norm_eps, 1e-6),
            positions_max: checked!(size, "text_config", self.max_position_embeddings, 131_072),
        };
        require(
            config.head_dim.is_multiple_of(2),
            "text_config.head_dim",
            config.head_dim,
            "an even number",
        )?;
        if !config.heads.is_multiple_of(config.kv_heads) {
            let allowed = format!("a divisor of num_attention_heads ({})", config.heads);
            return refuse("text_config.num_key_value_heads", config.kv_heads, allowed);
        }
        Ok(config)
    }

    fn refuse_variants(&self) -> Result<(), LoadError> {
        // Where both are there, the class reads the first.
        let activation = self.hidden_activation.as_deref();
        let activation = activation
            .or(self.hidden_act.as_deref())
            .unwrap_or(ACTIVATION);
        require(
            activation == ACTIVATION,
            "text_config.hidden_activation",
            activation,
            ACTIVATION,
        )?;
        require(
            self.attention_bias != Some(true),
            "text_config.attention_bias",
            true,
            "false",
        )?;
        let causal = self.use_bidirectional_attention != Some(true);
        require(
            causal,
            "text_config.use_bidirectional_attention",
            true,
            "false",
        )?;
        let capping = self.final_logit_softcapping.or(self.attn_logit_softcapping);
        require(
            capping.is_none(),
            "text_config soft-capping",
            capping.unwrap_or_default(),
            "null",
        )
    }

    fn layers(&self) -> Result<Vec<LayerKind>, LoadError> {
        const FIELD: &str = "text_config.layer_types";
        let count = checked!(size, "text_config", self.num_hidden_layers, 26);
        require(
            count <= 1024,
            "text_config.num_hidden_layers",
            count,
            "1 to 1024",
        )?;
        let Some(types) = &self.layer_types else {
            const PATTERN: &str = "text_config.sliding_window_pattern";
            let pattern = either(PATTERN, self.sliding_window_pattern, self.newer_pattern)?;
            let every = size(PATTERN, pattern, 6)?;
            return Ok(LayerKind::pattern(count, every));
        };
        require(
            types.len() == count,
            FIELD,
            format!("{} entries", types.len()),
            &format!("{count} entries"),
        )?;
        let kind = |name: &String| match name.as_str() {
            "sliding_attention" => Ok(LayerKind::Local),
            "full_attention" => Ok(LayerKind::Global),
            other => refuse(FIELD, other, "sliding_attention or full_attention"),
        };
        types.iter().map(kind).collect()
    }

    /// (local theta, global theta, global factor). A factor that would do nothing is refused: without it texts are fluent and
    /// wrong.
    fn rope(&self) -> Result<(f64, f64, f64), LoadError> {
        const FACTOR: &str = "text_config.rope_scaling.factor";
        let (none, absent) = (RopeParameters::default(), Rope::default());
        let new = self.rope_parameters.as_ref().unwrap_or(&none);
        require(
            new.flat == absent,
            "text_config.rope_parameters",
            "the same for all layers",
            "full_attention and sliding_attention",
        )?;
        let full = new.full_attention.as_ref().unwrap_or(&absent);
        let local = new.sliding_attention.as_ref().unwrap_or(&absent);
        // The older key is of the full layers alone, and goes first where both are there.
        let old = self.rope_scaling.as_ref().unwrap_or(&absent);
        let kind = local.kind()?.unwrap_or("default");
        require(
            kind == "default",
            ROPE_KIND,
            kind,
            "default on sliding layers",
        )?;
        let kind = old.kind()?.or(full.kind()?);
        let stated = old.factor.or(full.factor);
        let factor = match kind.unwrap_or("default") {
            "default" => {
                let found = stated.unwrap_or(1.0);
                require(found == 1.0, FACTOR, found, "1 without rope_type linear")?;
                1.0
            }
            "linear" => positive(FACTOR, stated, f64::NAN)?,
            other => return refuse(ROPE_KIND, other, "default or linear on full layers"),
        };
        let theta = old.rope_theta.or(full.rope_theta).or(self.rope_theta);
        let local_theta = local.rope_theta.or(self.rope_local_base_freq);
        Ok((
            positive("text_config.rope_local_base_freq", local_theta, 10_000.0)?,
            positive("text_config.rope_theta", theta, 1_000_000.0)?,
            factor,
        ))
    }
}

impl Vision {
    /// `tokens` is what is left of a picture after pooling; without pooling there is one per patch.
    pub(super) fn check_unpooled(self) -> Result<VisionConfig, LoadError> {
        let side = self.image_size.unwrap_or(224) / self.patch_size.unwrap_or(16).max(1);
        self.check(Some(side.saturating_mul(side)))
    }

    fn check(self, tokens: Option<usize>) -> Result<VisionConfig, LoadError> {
        let activation = self.hidden_act.as_deref().unwrap_or(ACTIVATION);
        require(
            activation == ACTIVATION,
            "vision_config.hidden_act",
            activation,
            ACTIVATION,
        )?;
        let channels = self.num_channels.unwrap_or(3);
        require(channels == 3, "vision_config.num_channels", channels, "3")?;
        let config = VisionConfig {
            hidden: checked!(size, "vision_config", self.hidden_size, 768),
            intermediate: checked!(size, "vision_config", self.intermediate_size, 3072),
            layers: checked!(size, "vision_config", self.num_hidden_layers, 12),
            heads: checked!(size, "vision_config", self.num_attention_heads, 12),
            image_size: checked!(size, "vision_config", self.image_size, 224),
            patch_size: checked!(size, "vision_config", self.patch_size, 16),
            norm_eps: checked!(positive, "vision_config", self.layer_norm_eps, 1e-6),
            tokens_per_image: size("mm_tokens_per_image", tokens, 256)?,
        };
        let side = config.tokens_per_side();
        let fits = |whole: usize, part: usize| part > 0 && whole.is_multiple_of(part);
        require(
            fits(config.hidden, config.heads),
            "vision_config.num_attention_heads",
            config.heads,
            "a divisor of hidden_size",
        )?;
        require(
            fits(config.image_size, config.patch_size),
            "vision_config.patch_size",
            config.patch_size,
            "a divisor of image_size",
        )?;
        let square =
            side * side == config.tokens_per_image && fits(config.patches_per_side(), side);
        require(
            square,
            "mm_tokens_per_image",
            config.tokens_per_image,
            "a square that divides the patch grid",
        )?;
        require(
            config.image_size <= 4096,
            "vision_config.image_size",
            config.image_size,
            "1 to 4096",
        )?;
        Ok(config)
    }
}
