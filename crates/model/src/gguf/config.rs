//! From GGUF metadata to the checked configuration, by llama.cpp's keys and its defaults where a key is left out.

use super::file::GgufFile;
use super::value::Metadata;
use crate::config::{LayerKind, TextConfig, VisionConfig};
use crate::error::GgufError;

/// llama.cpp's fixed pattern for Gemma 3: every sixth layer is global.
const PATTERN_DEFAULT: usize = 6;
/// Gemma 3's local RoPE base, which older files do not state.
const ROPE_LOCAL_THETA: f64 = 10_000.0;
/// Layers of the 27B, the one size whose query scalar is not the head's width.
const LAYERS_27B: usize = 62;
/// Patches along one side of a pooled token; llama.cpp fixes it for Gemma 3.
const POOL_DEFAULT: usize = 4;

/// The language model's configuration.
pub(crate) fn text(file: &GgufFile) -> Result<TextConfig, GgufError> {
    let meta = &file.metadata;
    meta.require_text("general.architecture", "gemma3")?;
    for key in [
        "gemma3.attn_logit_softcapping",
        "gemma3.final_logit_softcapping",
        "gemma3.attention.logit_softcapping",
        "gemma3.attention.use_bidirectional",
    ] {
        meta.refuse(key)?;
    }
    let need = |key: &str| meta.need_size(&format!("gemma3.{key}"));
    let size = |key: &str| meta.size(&format!("gemma3.{key}"));
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let count = need("block_count")?;
    let head_dim = size("attention.key_length")?.unwrap_or(hidden / heads);
    let kv_heads = size("attention.head_count_kv")?.unwrap_or(heads);
    let value_dim = size("attention.value_length")?.unwrap_or(head_dim);
    meta.require(count <= 1024, "gemma3.block_count", count, "1 to 1024")?;
    meta.require(
        value_dim == head_dim,
        "gemma3.attention.value_length",
        value_dim,
        "key_length",
    )?;
    meta.require(
        head_dim.is_multiple_of(2) && head_dim > 0,
        "gemma3.attention.key_length",
        head_dim,
        "an even number",
    )?;
    meta.require(
        heads.is_multiple_of(kv_heads),
        "gemma3.attention.head_count_kv",
        kv_heads,
        "a divisor of head_count",
    )?;
    let every = size("attention.sliding_window_pattern")?.unwrap_or(PATTERN_DEFAULT);
    let number = |key: &str| meta.positive_f32(&format!("gemma3.{key}"));
    Ok(TextConfig {
        vocab: embedding_rows(file, hidden)?,
        hidden,
        intermediate: need("feed_forward_length")?,
        layers: LayerKind::pattern(count, every),
        heads,
        kv_heads,
        head_dim,
        query_scalar: query_scalar(meta, [hidden, heads, head_dim, count])?,
        window: need("attention.sliding_window")?,
        rope_local_theta: number("rope.freq_base_swa")?.unwrap_or(ROPE_LOCAL_THETA),
        rope_global_theta: number("rope.freq_base")?.unwrap_or(1_000_000.0),
        rope_global_factor: rope_factor(meta)?,
        norm_eps: number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
        positions_max: need("context_length")?,
    })
}

fn embedding_rows(file: &GgufFile, hidden: usize) -> Result<usize, GgufError> {
    const NAME: &str = "token_embd.weight";
    match file.tensors.get(NAME).map(|tensor| tensor.shape.as_slice()) {
        Some([rows, width]) if *width == hidden => Ok(*rows),
        found => Err(file.metadata.error(
            NAME,
            found.map_or_else(|| "absent".to_owned(), |shape| format!("{shape:?}")),
            &format!("[vocabulary, {hidden}]"),
        )),
    }
}

/// The scale is `scalar ^ -0.5`. A file may state the scale; else it follows from the size, as in llama.cpp.
fn query_scalar(
    meta: &Metadata,
    [hidden, heads, head_dim, layers]: [usize; 4],
) -> Result<f64, GgufError> {
    if let Some(scale) = meta.positive("gemma3.attention.scale")? {
        return Ok(scale.powi(-2));
    }
    Ok(if layers == LAYERS_27B {
        hidden as f64 / heads as f64
    } else {
        head_dim as f64
    })
}

fn rope_factor(meta: &Metadata) -> Result<f64, GgufError> {
    const KIND: &str = "gemma3.rope.scaling.type";
    let factor = meta.positive_f32("gemma3.rope.scaling.factor")?;
    match meta.text(KIND)? {
        None => Ok(factor.unwrap_or(1.0)),
        Some("none") => Ok(1.0),
        Some("linear") => {
            factor.ok_or_else(|| meta.error("gemma3.rope.scaling.factor", "absent", "a number"))
        }
        Some(other) => Err(meta.error(KIND, other, "none or linear")),
    }
}

/// The vision tower's configuration, from an mmproj file.
pub(crate) fn vision(file: &GgufFile) -> Result<VisionConfig, GgufError> {
    let meta = &file.metadata;
    meta.require_text("general.architecture", "clip")?;
    let projector = "clip.vision.projector_type";
    let key = if meta.values.contains_key(projector) {
        projector
    } else {
        "clip.projector_type"
    };
    meta.require_text(key, "gemma3")?;
    let need = |key: &str| meta.need_size(&format!("clip.vision.{key}"));
    let (image_size, patch_size) = (need("image_size")?, need("patch_size")?);
    let pool = meta
        .size("clip.vision.projector.scale_factor")?
        .unwrap_or(POOL_DEFAULT);
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let layers = need("block_count")?;
    meta.require(
        layers <= 1024,
        "clip.vision.block_count",
        layers,
        "1 to 1024",
    )?;
    meta.require(
        hidden.is_multiple_of(heads),
        "clip.vision.attention.head_count",
        heads,
        "a divisor of embedding_length",
    )?;
    let expected = "at most 4096, whole patches, whole pooling windows";
    meta.require(
        image_size <= 4096
            && image_size.is_multiple_of(patch_size)
            && (image_size / patch_size).is_multiple_of(pool),
        "clip.vision.image_size",
        image_size,
        expected,
    )?;
    for key in ["clip.vision.image_mean", "clip.vision.image_std"] {
        if meta.values.contains_key(key) && meta.floats(key)?.iter().any(|x| *x != 0.5) {
            return Err(meta.error(key, "other values", "0.5, 0.5, 0.5"));
        }
    }
    Ok(VisionConfig {
        hidden,
        intermediate: need("feed_forward_length")?,
        layers,
        heads,
        image_size,
        patch_size,
        norm_eps: meta
            .positive_f32("clip.vision.attention.layer_norm_epsilon")?
            .unwrap_or(1e-6),
        tokens_per_image: (image_size / patch_size / pool).pow(2),
    })
}

/// Whether `ffn_up` and `ffn_down` are exchanged: told by the shape of the first.
pub(crate) fn feed_forward_swapped(file: &GgufFile, config: &VisionConfig) -> bool {
    file.tensors
        .get("v.blk.0.ffn_up.weight")
        .is_some_and(|t| t.shape == [config.hidden, config.intermediate])
        && config.hidden != config.intermediate
}
