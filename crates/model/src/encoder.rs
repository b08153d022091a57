//! One layer of SigLIP's encoder, which its vision and its text tower share: every position sees every other.

use candle_core::Tensor;
use medfleet_kernels::{Kernels, KeyRange};

use crate::error::{BackendError, LoadError};
use crate::fused::cpu::{self, HeadSizes, Rows};
use crate::fused::{self, Stored};
use crate::layers::{LayerNorm, Linear, attend};
use crate::weights::Scope;

/// What a layer is made in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderSizes {
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width of the feed-forward.
    pub(crate) intermediate: usize,
    pub(crate) heads: usize,
    pub(crate) norm_eps: f64,
}

pub(crate) struct EncoderLayer {
    heads: usize,
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    feed_forward: FeedForward,
}

impl EncoderLayer {
    pub(crate) fn load(scope: &Scope, sizes: EncoderSizes) -> Result<Self, LoadError> {
        let (hidden, eps) = (sizes.hidden, sizes.norm_eps);
        let attention = scope.at("self_attn");
        let square = |name| Linear::load(&attention.at(name), hidden, hidden, true);
        Ok(Self {
            heads: sizes.heads,
            norm1: LayerNorm::load(&scope.at("layer_norm1"), hidden, eps)?,
            query: square("q_proj")?,
            key: square("k_proj")?,
            value: square("v_proj")?,
            output: square("out_proj")?,
            norm2: LayerNorm::load(&scope.at("layer_norm2"), hidden, eps)?,
            feed_forward: FeedForward::load(&scope.at("mlp"), sizes)?,
        })
    }

    /// x [n, hidden] → [n, hidden].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        let normal = self.norm1.forward(x)?;
        let mixed = multi_head(
            &self.query.forward(&normal)?,
            &self.key.forward(&normal)?,
            &self.value.forward(&normal)?,
            (self.heads, self.query.kernels()),
        )?;
        let x = self.output.forward_onto(x, &mixed)?;
        self.feed_forward.forward_onto(&x, &self.norm2.forward(&x)?)
    }
}

/// Attention over all positions: query [n, hidden], key and value [m, hidden] → [n, hidden].
pub(crate) fn multi_head(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    (heads, kernels): (usize, Option<Kernels>),
) -> Result<Tensor, BackendError> {
    let dim = query.dim(1)? / heads;
    let scale = (dim as f64).powf(-0.5);
    let stored = Stored {
        keys: key,
        values: value,
    };
    if let Some(kernels) = kernels {
        let all = KeyRange {
            first: 0,
            end: key.dim(0)?,
        };
        let rows = Rows {
            seen: vec![all; query.dim(0)?],
            slots: None,
            first: 0,
            sees_all: true,
        };
        let sizes = HeadSizes {
            heads,
            kv_heads: heads,
            width: dim,
            scale: scale as f32,
        };
        return cpu::attend(kernels, query, stored, (sizes, &[rows]));
    }
    if let Some(mixed) = fused::attend_all(query, stored, heads, scale as f32)? {
        return Ok(mixed);
    }
    let split = |t: &Tensor| {
        let rows = t.dim(0)?;
        t.reshape((rows, heads, dim))?.transpose(0, 1)?.contiguous()
    };
    attend(&split(query)?, &split(key)?, &split(value)?, scale, &|_| {
        Ok(None)
    })
}

/// Two linear layers with GELU between them.
pub(crate) struct FeedForward {
    up: Linear,
    down: Linear,
}

impl FeedForward {
    pub(crate) fn load(scope: &Scope, sizes: EncoderSizes) -> Result<Self, LoadError> {
        let (hidden, wide) = (sizes.hidden, sizes.intermediate);
        Ok(Self {
            up: Linear::load(&scope.at("fc1"), hidden, wide, true)?,
            down: Linear::load(&scope.at("fc2"), wide, hidden, true)?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        self.down.forward(&self.up.forward_gelu(x)?)
    }

    /// residual + what it makes of x.
    pub(crate) fn forward_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
    ) -> Result<Tensor, BackendError> {
        self.down.forward_onto(residual, &self.up.forward_gelu(x)?)
    }
}
