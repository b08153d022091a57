//! The few layers both towers are made of, over candle tensors.

use candle_core::quantized::QTensor;
use candle_core::{D, DType, Tensor};

use crate::error::{BackendError, LoadError};
use crate::weights::Scope;

/// Most attention scores held at once, over all heads; longer inputs are worked through in tiles of query rows.
/// 2²⁴ f32 are 64 MiB; SigLIP at 896 pixels would otherwise hold 16 × 4096² = 1 GiB.
const SCORES_MAX: usize = 1 << 24;

/// A weight matrix [out, in].
pub(crate) enum Matrix {
    /// In the dtype the model computes in.
    Plain(Tensor),
    /// As a GGUF file stores it; products quantise their other operand to 8 bits.
    Quantised(QTensor),
}

impl Matrix {
    /// x [rows, in] → x Wᵀ [rows, out], in the dtype of x.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        Ok(match self {
            Self::Plain(weight) => x.matmul(&weight.t()?)?,
            Self::Quantised(weight) => x.contiguous()?.apply_op1_no_bwd(weight)?,
        })
    }

    /// Rows by index: ids [n] → [n, in], in `dtype`.
    pub(crate) fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor, BackendError> {
        Ok(match self {
            Self::Plain(weight) => weight.index_select(ids, 0)?.to_dtype(dtype)?,
            Self::Quantised(weight) => weight.embedding(ids)?.to_dtype(dtype)?,
        })
    }
}

/// y = x Wᵀ + b, with W [out, in].
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(
        scope: &Scope,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<Self, LoadError> {
        let weight = scope.matrix("weight", [output, input])?;
        let bias = if bias {
            Some(scope.get("bias", &[output])?)
        } else {
            None
        };
        Ok(Self { weight, bias })
    }

    pub(crate) const fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self {
            weight: Matrix::Plain(weight),
            bias,
        }
    }

    /// x [rows, in] → [rows, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        let y = self.weight.product(x)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }
}

/// Gemma's RMS norm: x / rms(x) × (1 + w), all in f32, rounded to the dtype of x last.
pub(crate) struct RmsNorm {
    scale: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn load(scope: &Scope, width: usize, eps: f64) -> Result<Self, LoadError> {
        let scale = scope.gemma_scale("weight", width)?;
        Ok(Self { scale, eps })
    }

    /// Over the last dimension of x.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let y = candle_nn::ops::rms_norm(&wide, &self.scale, self.eps as f32)?;
        Ok(y.to_dtype(x.dtype())?)
    }
}

/// Layer norm with weight and bias, in f32, rounded to the dtype of x last.
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn load(scope: &Scope, width: usize, eps: f64) -> Result<Self, LoadError> {
        Ok(Self {
            weight: scope.get_f32("weight", &[width])?,
            bias: scope.get_f32("bias", &[width])?,
            eps,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normal = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        let y = normal
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias)?;
        Ok(y.to_dtype(x.dtype())?)
    }
}

/// The additive mask of query rows `rows` of a sequence: [1, rows, keys] f32, or nothing where all is visible.
pub(crate) type RowMask<'a> =
    &'a dyn Fn(std::ops::Range<usize>) -> Result<Option<Tensor>, BackendError>;

/// Scaled dot-product attention, softmax in f32.
///
/// q [heads, n, dim], k and v [kv heads, keys, dim], all contiguous; query head h reads key head h / (heads / kv heads).
/// Returns [n, heads × dim].
pub(crate) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    mask: RowMask,
) -> Result<Tensor, BackendError> {
    let (heads, n, dim) = q.dims3()?;
    let (kv_heads, keys, _) = k.dims3()?;
    let group = heads / kv_heads;
    let keys_t = k.transpose(1, 2)?;
    let tile = (SCORES_MAX / (heads * keys)).clamp(1, n);
    let mut out = Vec::with_capacity(n.div_ceil(tile));
    let mut from = 0;
    while from < n {
        let rows = tile.min(n - from);
        let part = q
            .narrow(1, from, rows)?
            .contiguous()?
            .reshape((kv_heads, group * rows, dim))?;
        let scores = (part.matmul(&keys_t)?.to_dtype(DType::F32)? * scale)?;
        let scores = match mask(from..from + rows)? {
            Some(mask) => scores.reshape((heads, rows, keys))?.broadcast_add(&mask)?,
            None => scores,
        };
        let weights =
            candle_nn::ops::softmax_last_dim(&scores.reshape((kv_heads, group * rows, keys))?)?;
        let mixed = weights.to_dtype(v.dtype())?.matmul(v)?;
        out.push(
            mixed
                .reshape((heads, rows, dim))?
                .transpose(0, 1)?
                .contiguous()?
                .reshape((rows, heads * dim))?,
        );
        from += rows;
    }
    if out.len() == 1 {
        return Ok(out.remove(0));
    }
    Ok(Tensor::cat(&out, 0)?)
}
