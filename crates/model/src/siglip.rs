//! MedSigLIP: one embedding for pictures and texts. Two SigLIP towers, attention pooling over the picture's patches, the
//! last position of the text; both vectors have length 1, and a learnt scale and bias turn their product into the
//! probability that they belong together.

mod text;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use medfleet_core::Digest;
use medfleet_kernels::Kernels;

use crate::config::siglip::{SiglipConfig, SiglipTextConfig};
use crate::device::{self, ComputeDevice};
use crate::digests::Memory;
use crate::dtype::Dtype;
use crate::encoder::{EncoderLayer, EncoderSizes, FeedForward, multi_head};
use crate::error::{BackendError, EmbedError, EncodeError, LoadError};
use crate::frame::Frame;
use crate::layers::{LayerNorm, Linear, sum};
use crate::settings::Settings;
use crate::vision::VisionTower;
use crate::weights::{Scope, Weights};
pub use text::ReadText;
use text::TextTokenizer;

/// MedSigLIP, or any SigLIP of its form.
pub struct Embedder {
    config: SiglipConfig,
    dtype: Dtype,
    device: Device,
    kernels: Option<Kernels>,
    digest: Digest,
    settings: Digest,
    tokenizer: TextTokenizer,
    vision: VisionTower,
    pooling: Pooling,
    text: TextTower,
    /// The factor of the product, already out of its logarithm.
    scale: f32,
    bias: f32,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder")
            .field("dtype", &self.dtype)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Embedder {
    /// Loads a Hugging Face folder: config.json, safetensors, spiece.model or tokenizer.json.
    pub fn load(dir: &Path, dtype: Dtype, device: ComputeDevice) -> Result<Self, LoadError> {
        let config = SiglipConfig::read(dir)?;
        let settings = Settings::new().files(dir, &text::SETTINGS)?;
        let memory = Memory::new(&[dir], None)?;
        let mut weights = Weights::open(dir)?;
        let kernels = device.kernels();
        weights.use_kernels(kernels);
        let device = device.open()?;
        let root = weights.root(dtype, &device);
        let vision = root.at("vision_model");
        let scalar = |name| -> Result<f32, LoadError> {
            let values = root.get_f32(name, &[1])?.to_vec1::<f32>();
            Ok(values.map_err(BackendError::from)?[0])
        };
        let loaded = Self {
            tokenizer: TextTokenizer::load(dir, config.text.vocab, config.text.positions)?,
            pooling: Pooling::load(&vision.at("head"), &config)?,
            vision: VisionTower::load(&vision, &config.vision, dtype, &device)?,
            text: TextTower::load(&root.at("text_model"), &config.text)?,
            scale: scalar("logit_scale")?.exp(),
            bias: scalar("logit_bias")?,
            digest: weights.digest()?,
            settings: settings.digest(),
            config,
            dtype,
            device,
            kernels,
        };
        memory.check()?;
        device::settle(&loaded.device)?;
        Ok(loaded)
    }

    /// Elements of an embedding.
    pub const fn width(&self) -> usize {
        self.config.vision.hidden
    }

    /// Width and height of the pictures that it looks at, in pixels.
    pub const fn image_size(&self) -> usize {
        self.config.vision.image_size
    }

    /// Tokens of a text that it reads.
    pub const fn text_tokens_max(&self) -> usize {
        self.config.text.positions
    }

    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Kind of device that it computes on, with the level of its kernels.
    pub fn device(&self) -> String {
        device::describe(&self.device, self.kernels)
    }

    /// Whether its device still computes, to be asked after a call that failed.
    pub fn computes(&self) -> bool {
        device::computes(&self.device)
    }

    /// BLAKE3 over all weights.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Digest of what decides an embedding beside the weights: of the files of configuration and vocabulary.
    pub const fn settings_digest(&self) -> &Digest {
        &self.settings
    }

    /// The embedding of a picture, `[width]` f32 of length 1. The frame is brought to the model's size by bilinear
    /// sampling without antialiasing, as TensorFlow does and this model was evaluated with.
    pub fn image(&self, frame: &Frame) -> Result<Vec<f32>, EmbedError> {
        let vision = &self.config.vision;
        let patches = frame
            .sampled(vision.image_size)
            .map_err(EncodeError::from)?
            .patches(vision.image_size, vision.patch_size, &self.device)?;
        let features = self.vision.features(&patches)?;
        unit(&self.pooling.forward(&features)?)
    }

    /// The embedding of a text, `[width]` f32 of length 1. What goes beyond the model's 64 tokens is cut off.
    pub fn text(&self, text: &str) -> Result<Vec<f32>, EmbedError> {
        let ids = self.tokenizer.read(text)?.ids;
        unit(&self.text.forward(&ids, &self.device)?)
    }

    /// What [`Embedder::text`] shows the model of a text.
    pub fn read(&self, text: &str) -> Result<ReadText, EmbedError> {
        self.tokenizer.read(text)
    }

    /// Scale × product + bias of a picture's and a text's embedding: the logit that they belong together.
    pub fn logit(&self, image: &[f32], text: &[f32]) -> f32 {
        let product: f32 = image.iter().zip(text).map(|(a, b)| a * b).sum();
        product * self.scale + self.bias
    }

    /// The probability that a picture and a text belong together. Each label stands for itself: the probabilities of
    /// several labels do not sum to 1.
    pub fn probability(&self, image: &[f32], text: &[f32]) -> f32 {
        1.0 / (1.0 + (-self.logit(image, text)).exp())
    }

    #[cfg(test)]
    pub(crate) fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.read(text).unwrap().ids
    }
}

/// x [1, width] → f32 of length 1.
///
/// # Errors
/// [`EmbedError::NotFinite`] where it has no such length: what was compared with it would look like a result.
fn unit(x: &Tensor) -> Result<Vec<f32>, EmbedError> {
    let x = values(x)?;
    let length = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(EmbedError::NotFinite);
    }
    Ok(x.iter().map(|v| (f64::from(*v) / length) as f32).collect())
}

fn values(x: &Tensor) -> Result<Vec<f32>, BackendError> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Attention pooling: a learnt query looks at all patches, then a feed-forward with its residual.
struct Pooling {
    heads: usize,
    /// [1, hidden]
    query: Tensor,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: LayerNorm,
    feed_forward: FeedForward,
}

impl Pooling {
    fn load(scope: &Scope, config: &SiglipConfig) -> Result<Self, LoadError> {
        let vision = &config.vision;
        let hidden = vision.hidden;
        let sizes = EncoderSizes {
            hidden,
            intermediate: vision.intermediate,
            heads: vision.heads,
            norm_eps: vision.norm_eps,
        };
        let attention = scope.at("attention");
        // Query, key and value are stored in one matrix.
        let weight = attention.get("in_proj_weight", &[3 * hidden, hidden])?;
        let bias = attention.get("in_proj_bias", &[3 * hidden])?;
        let part = |i: usize| {
            let weight = weight.narrow(0, i * hidden, hidden)?.contiguous()?;
            let bias = bias.narrow(0, i * hidden, hidden)?.contiguous()?;
            Ok::<_, BackendError>(Linear::new(weight, Some(bias)))
        };
        let probe = scope.get("probe", &[1, 1, hidden])?;
        let probe = probe.reshape((1, hidden)).map_err(BackendError::from)?;
        Ok(Self {
            heads: vision.heads,
            query: part(0)?.forward(&probe)?,
            key: part(1)?,
            value: part(2)?,
            output: Linear::load(&attention.at("out_proj"), hidden, hidden, true)?,
            norm: LayerNorm::load(&scope.at("layernorm"), hidden, vision.norm_eps)?,
            feed_forward: FeedForward::load(&scope.at("mlp"), sizes)?,
        })
    }

    /// x [patches, hidden] → [1, hidden].
    fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        let (key, value) = (self.key.forward(x)?, self.value.forward(x)?);
        let mixed = multi_head(&self.query, &key, &value, (self.heads, None))?;
        let mixed = self.output.forward(&mixed)?;
        let wide = self.feed_forward.forward(&self.norm.forward(&mixed)?)?;
        Ok((mixed + wide)?)
    }
}

/// The text tower: every position sees every other, padding included.
struct TextTower {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    head: Linear,
}

impl TextTower {
    fn load(scope: &Scope, config: &SiglipTextConfig) -> Result<Self, LoadError> {
        let hidden = config.hidden;
        let sizes = EncoderSizes {
            hidden,
            intermediate: config.intermediate,
            heads: config.heads,
            norm_eps: config.norm_eps,
        };
        let table = |name, rows| {
            let scope = scope.at("embeddings").at(name);
            scope.get("weight", &[rows, hidden])
        };
        let layer = |i| EncoderLayer::load(&scope.at("encoder.layers").at(i), sizes);
        Ok(Self {
            tokens: table("token_embedding", config.vocab)?,
            positions: table("position_embedding", config.positions)?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            norm: LayerNorm::load(&scope.at("final_layer_norm"), hidden, config.norm_eps)?,
            head: Linear::load(&scope.at("head"), hidden, config.projection, true)?,
        })
    }

    /// As many ids as there are positions → [1, projection].
    fn forward(&self, ids: &[u32], device: &Device) -> Result<Tensor, BackendError> {
        let ids = Tensor::new(ids, device)?;
        let mut x = sum(&self.tokens.index_select(&ids, 0)?, &self.positions)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        let last = x.narrow(0, x.dim(0)? - 1, 1)?;
        self.head.forward(&self.norm.forward(&last)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_direction_is_no_embedding() {
        let check = |values: [f32; 2], expected: Option<[f32; 2]>| {
            let found = unit(&Tensor::new(&[values], &Device::Cpu).unwrap());
            match expected {
                Some(expected) => assert_eq!(found.unwrap(), expected),
                None => assert_eq!(found, Err(EmbedError::NotFinite), "{values:?}"),
            }
        };
        check([3.0, -4.0], Some([0.6, -0.8]));
        check([f32::MAX, 0.0], Some([1.0, 0.0]));
        check([0.0, 0.0], None);
        check([1.0, f32::NAN], None);
        check([1.0, f32::INFINITY], None);
    }
}
