//! The vision tower: SigLIP without its head, then average pooling of the patch grid.
//! What leaves here is neither normalised nor projected; that is the text side's work ([`crate::projector`]).

use candle_core::{DType, Device, Tensor};

use crate::config::VisionConfig;
use crate::dtype::Dtype;
use crate::encoder::{EncoderLayer, EncoderSizes};
use crate::error::{BackendError, EncodeError, LoadError};
use crate::frame::Frame;
use crate::layers::{LayerNorm, Linear, sum};
use crate::tokens::ImageTokens;
use crate::weights::Scope;

/// SigLIP's encoder with its patch and position embedding.
pub(crate) struct VisionTower {
    config: VisionConfig,
    dtype: Dtype,
    device: Device,
    patch: Linear,
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
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
        let sizes = EncoderSizes {
            hidden,
            intermediate: config.intermediate,
            heads: config.heads,
            norm_eps: config.norm_eps,
        };
        let layer = |i| EncoderLayer::load(&scope.at("encoder.layers").at(i), sizes);
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
        let pooled = self.pool(&self.features(&patches)?)?;
        ImageTokens::from_tensor(&pooled, self.dtype)
    }

    /// patches [n, 3 × patch²] f32 → one normalised vector per patch, [n, hidden].
    pub(crate) fn features(&self, patches: &Tensor) -> Result<Tensor, BackendError> {
        let patches = patches.to_dtype(self.dtype.candle())?;
        let mut x = sum(&self.patch.forward(&patches)?, &self.positions)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        self.norm.forward(&x)
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
