//! From image tokens to the language model's width: Gemma's RMS norm, then one product. No embedding scale here.

use candle_core::{Device, Tensor};

use crate::config::{TextConfig, VisionConfig};
use crate::dtype::Dtype;
use crate::error::{BackendError, ImageTokensError, LoadError};
use crate::layers::{Matrix, RmsNorm};
use crate::tokens::ImageTokens;
use crate::weights::Scope;

/// Norm and projection; kept with the text tower, so that an encoder needs neither.
pub(crate) struct Projector {
    vision: VisionConfig,
    dtype: Dtype,
    device: Device,
    norm: RmsNorm,
    /// [text hidden, vision hidden]
    weight: Matrix,
}

/// Why an image could not be projected.
pub(crate) enum ProjectError {
    Tokens(ImageTokensError),
    Backend(BackendError),
}

impl Projector {
    pub(crate) fn load(
        scope: &Scope,
        vision: &VisionConfig,
        text: &TextConfig,
        dtype: Dtype,
        device: &Device,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            norm: RmsNorm::load(
                &scope.at("mm_soft_emb_norm"),
                vision.hidden,
                vision.norm_eps,
            )?,
            weight: Matrix::load_across(
                scope,
                "mm_input_projection_weight",
                [vision.hidden, text.hidden],
            )?,
            vision: vision.clone(),
            dtype,
            device: device.clone(),
        })
    }

    pub(crate) const fn tokens_per_image(&self) -> usize {
        self.vision.tokens_per_image
    }

    /// → [tokens per image, text hidden].
    pub(crate) fn forward(&self, tokens: &ImageTokens) -> Result<Tensor, ProjectError> {
        tokens
            .check(&self.vision, self.dtype)
            .map_err(ProjectError::Tokens)?;
        self.project(tokens).map_err(ProjectError::Backend)
    }

    fn project(&self, tokens: &ImageTokens) -> Result<Tensor, BackendError> {
        let normal = self.norm.forward(&tokens.to_tensor(&self.device)?)?;
        self.weight.product(&normal)
    }
}
