//! The vision tower: SigLIP without its head, then average pooling of the patch grid.
//! What leaves here is neither normalised nor projected; that is the text side's work ([`crate::projector`]).

use candle_core::{DType, Device, Tensor};

use crate::config::VisionConfig;
use crate::dtype::Dtype;
use crate::error::{BackendError, EncodeError, LoadError};
use crate::frame::Frame;
use crate::layers::{LayerNorm, Linear, attend, gelu};
use crate::tokens::ImageTokens;
use crate::weights::Scope;

/// SigLIP's encoder with its patch and position embedding.
pub(crate) struct VisionTower {
    config: VisionConfig,
    dtype: Dtype,
    device: Device,
    patch: Linear,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
}

impl VisionTower {
    pub(crate) fn load(
        scope: &Scope,
        config: &VisionConfig,
        dtype: Dtype,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let (hidden, side) = (config.hidden, config.patch_size);
        let embeddings = scope.at("embeddings");
        let patch = embeddings.at("patch_embedding");
        // The convolution's stride is its size, so it is a product over flattened patches.
        let weight = patch.get("weight", &[hidden, 3, side, side])?;
        let weight = weight
            .reshape((hidden, 3 * side * side))
            .map_err(BackendError::from)?;
        let patch = Linear::new(weight, Some(patch.get("bias", &[hidden])?));
        let patches = config.patches_per_side() * config.patches_per_side();
        let positions = embeddings
            .at("position_embedding")
            .get("weight", &[patches, hidden])?;
        let layer = |i| Layer::load(&scope.at("encoder.layers").at(i), config);
        Ok(Self {
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            norm: LayerNorm::load(&scope.at("post_layernorm"), hidden, config.norm_eps)?,
            config: config.clone(),
            dtype,
            device: device.clone(),
            patch,
            positions,
        })
    }

    /// One frame; memory stays that of a single picture whatever the number of frames.
    pub(crate) fn encode(&self, frame: &Frame) -> Result<ImageTokens, EncodeError> {
        let patches =
            frame.patches(self.config.image_size, self.config.patch_size, &self.device)?;
        Ok(ImageTokens::from_tensor(
            &self.forward(&patches)?,
            self.dtype,
        )?)
    }

    /// patches [n, 3 × patch²] f32 → [tokens per image, hidden].
    fn forward(&self, patches: &Tensor) -> Result<Tensor, BackendError> {
        let mut x = (self
            .patch
            .forward(&patches.to_dtype(self.dtype.candle())?)?
            + &self.positions)?;
        for layer in &self.layers {
            x = layer.forward(&x, self.config.heads)?;
        }
        self.pool(&self.norm.forward(&x)?)
    }

    /// Average over pool × pool neighbours of the patch grid, summed in f32.
    fn pool(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        let (side, pool) = (self.config.tokens_per_side(), self.config.pool());
        let grid =
            x.to_dtype(DType::F32)?
                .reshape((side, pool, side, pool * self.config.hidden))?;
        let rows = grid
            .mean(1)?
            .reshape((side * side, pool, self.config.hidden))?;
        Ok(rows.mean(1)?.to_dtype(x.dtype())?)
    }
}

impl Layer {
    fn load(scope: &Scope, config: &VisionConfig) -> Result<Self, LoadError> {
        let (hidden, eps) = (config.hidden, config.norm_eps);
        let attention = scope.at("self_attn");
        let square = |name| Linear::load(&attention.at(name), hidden, hidden, true);
        Ok(Self {
            norm1: LayerNorm::load(&scope.at("layer_norm1"), hidden, eps)?,
            query: square("q_proj")?,
            key: square("k_proj")?,
            value: square("v_proj")?,
            output: square("out_proj")?,
            norm2: LayerNorm::load(&scope.at("layer_norm2"), hidden, eps)?,
            up: Linear::load(&scope.at("mlp.fc1"), hidden, config.intermediate, true)?,
            down: Linear::load(&scope.at("mlp.fc2"), config.intermediate, hidden, true)?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize) -> Result<Tensor, BackendError> {
        let (n, hidden) = x.dims2()?;
        let dim = hidden / heads;
        let split = |t: Tensor| t.reshape((n, heads, dim))?.transpose(0, 1)?.contiguous();
        let normal = self.norm1.forward(x)?;
        let query = split(self.query.forward(&normal)?)?;
        let key = split(self.key.forward(&normal)?)?;
        let value = split(self.value.forward(&normal)?)?;
        let mixed = attend(&query, &key, &value, (dim as f64).powf(-0.5), &|_| Ok(None))?;
        let x = (x + self.output.forward(&mixed)?)?;
        let wide = gelu(&self.up.forward(&self.norm2.forward(&x)?)?)?;
        Ok((&x + self.down.forward(&wide)?)?)
    }
}
