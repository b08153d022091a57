//! The few layers both towers are made of, over candle tensors.

use candle_core::quantized::QTensor;
use candle_core::{D, DType, Tensor};
use medfleet_kernels::Kernels;

use crate::error::{BackendError, LoadError};
use crate::fused::cpu::{self, After};
use crate::fused::{self, Scale};
use crate::weights::Scope;

/// Most attention scores held at once, over all heads; longer inputs are worked through in tiles of query rows.
/// 2²⁴ f32 are 64 MiB; SigLIP at 896 pixels would otherwise hold 16 × 4096² = 1 GiB.
const SCORES_MAX: usize = 1 << 24;
/// The same on a GPU, which has to be kept busy: that picture is one tile there.
const SCORES_MAX_GPU: usize = 1 << 28;

/// A weight matrix [out, in].
pub(crate) enum Matrix {
    /// In the dtype the model computes in.
    Plain(Tensor),
    /// As a GGUF file stores it; products quantise their other operand to 8 bits.
    Quantised(QTensor),
    /// Laid out for the CPU's kernels.
    Cpu(cpu::Matrix),
}

impl Matrix {
    /// One that is stored the other way round, as [in, out]; it is never quantised.
    pub(crate) fn load_across(
        scope: &Scope,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Self, LoadError> {
        let weight = scope.get(name, &shape)?.t().map_err(BackendError::from)?;
        let Some(kernels) = scope.kernels() else {
            return Ok(Self::Plain(weight));
        };
        Ok(Self::Cpu(cpu::Matrix::packed(kernels, cpu::pack(&weight)?)))
    }

    /// x [rows, in] → x Wᵀ [rows, out], in the dtype of x.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        Ok(match self {
            Self::Plain(weight) => x.matmul(&weight.t()?)?,
            Self::Quantised(weight) => x.contiguous()?.apply_op1_no_bwd(weight)?,
            Self::Cpu(weight) => weight.product(x, After::default())?,
        })
    }

    /// Whether its products are the kernels'.
    pub(crate) const fn has_kernels(&self) -> bool {
        matches!(self, Self::Cpu(_))
    }

    /// Rows by index: ids [n] → [n, in], in `dtype`.
    pub(crate) fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor, BackendError> {
        Ok(match self {
            Self::Plain(weight) => weight.index_select(ids, 0)?.to_dtype(dtype)?,
            Self::Quantised(weight) => weight.embedding(ids)?.to_dtype(dtype)?,
            Self::Cpu(weight) => weight.rows(ids, dtype)?,
        })
    }
}

/// y = x Wᵀ + b, with W [out, in].
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
    /// The bias, for the CPU's kernels.
    bias_values: Option<Vec<f32>>,
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
        let bias_values = match (&weight, &bias) {
            (Matrix::Cpu(_), Some(bias)) => {
                let wide = bias.to_dtype(DType::F32).map_err(BackendError::from)?;
                Some(wide.to_vec1().map_err(BackendError::from)?)
            }
            _ => None,
        };
        Ok(Self {
            weight,
            bias,
            bias_values,
        })
    }

    pub(crate) const fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self {
            weight: Matrix::Plain(weight),
            bias,
            bias_values: None,
        }
    }

    /// x [rows, in] → [rows, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        match (&self.weight, &self.bias) {
            (Matrix::Cpu(weight), _) => weight.product(x, self.after()),
            (weight, None) => weight.product(x),
            (Matrix::Plain(weight), Some(bias)) if x.device().is_cpu() => {
                // Rounded once, after the bias, as the reference does; on CPUs products of bf16 are done in f32 anyway.
                let weight = weight.to_dtype(DType::F32)?;
                let y = x.to_dtype(DType::F32)?.matmul(&weight.t()?)?;
                let y = sum(&y, &bias.to_dtype(DType::F32)?)?;
                Ok(y.to_dtype(x.dtype())?)
            }
            (Matrix::Plain(weight), Some(bias)) => match fused::linear(x, weight, bias)? {
                Some(y) => Ok(y),
                None => Ok(x.matmul(&weight.t()?)?.broadcast_add(bias)?),
            },
            (weight, Some(bias)) => Ok(weight.product(x)?.broadcast_add(bias)?),
        }
    }
}

impl Linear {
    /// gelu(x Wᵀ + b).
    pub(crate) fn forward_gelu(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        let Matrix::Cpu(weight) = &self.weight else {
            return gelu(&self.forward(x)?);
        };
        let after = After {
            gelu: true,
            ..self.after()
        };
        weight.product(x, after)
    }

    /// residual + x Wᵀ + b.
    pub(crate) fn forward_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
    ) -> Result<Tensor, BackendError> {
        let Matrix::Cpu(weight) = &self.weight else {
            return Ok((residual + self.forward(x)?)?);
        };
        let after = After {
            residual: Some(residual),
            ..self.after()
        };
        weight.product(x, after)
    }

    /// The kernels that its products use, on CPUs.
    pub(crate) const fn kernels(&self) -> Option<Kernels> {
        match &self.weight {
            Matrix::Cpu(weight) => Some(weight.kernels()),
            _ => None,
        }
    }

    fn after(&self) -> After<'_> {
        After {
            bias: self.bias_values.as_deref(),
            ..After::default()
        }
    }
}

/// Gemma's RMS norm: x / rms(x) × (1 + w), all in f32, rounded to the dtype of x last.
pub(crate) struct RmsNorm {
    scale: Tensor,
    eps: f64,
    cpu: Option<cpu::Norm>,
}

impl RmsNorm {
    pub(crate) fn load(scope: &Scope, width: usize, eps: f64) -> Result<Self, LoadError> {
        let scale = scope.gemma_scale("weight", width)?;
        let of = |kernels| cpu::Norm::new(kernels, &scale, None, eps as f32);
        let cpu = scope.kernels().map(of).transpose()?;
        Ok(Self { scale, eps, cpu })
    }

    /// Over the last dimension of x.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        if let Some(cpu) = &self.cpu {
            return cpu.rms(x, None);
        }
        if let Some(y) = fused::norm(x, self.scale(), None)? {
            return Ok(y);
        }
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let y = candle_nn::ops::rms_norm(&wide, &self.scale, self.eps as f32)?;
        Ok(y.to_dtype(x.dtype())?)
    }

    /// residual + the norm of x.
    pub(crate) fn forward_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
    ) -> Result<Tensor, BackendError> {
        if let Some(cpu) = &self.cpu {
            return cpu.rms(x, Some(residual));
        }
        match fused::norm(x, self.scale(), Some(residual))? {
            Some(y) => Ok(y),
            None => Ok((residual + self.forward(x)?)?),
        }
    }

    /// The norm for the CPU's kernels, where they are used.
    pub(crate) const fn cpu(&self) -> Option<&cpu::Norm> {
        self.cpu.as_ref()
    }

    /// What the norm multiplies with, for a kernel that does more than the norm.
    pub(crate) const fn scale(&self) -> Scale<'_> {
        Scale {
            scale: &self.scale,
            eps: self.eps as f32,
        }
    }
}

/// Layer norm with weight and bias, in f32, rounded to the dtype of x last.
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    cpu: Option<cpu::Norm>,
}

impl LayerNorm {
    pub(crate) fn load(scope: &Scope, width: usize, eps: f64) -> Result<Self, LoadError> {
        let weight = scope.get_f32("weight", &[width])?;
        let bias = scope.get_f32("bias", &[width])?;
        let of = |kernels| cpu::Norm::new(kernels, &weight, Some(&bias), eps as f32);
        let cpu = scope.kernels().map(of).transpose()?;
        Ok(Self {
            weight,
            bias,
            eps,
            cpu,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        if let Some(cpu) = &self.cpu {
            return cpu.layer(x);
        }
        if let Some(y) = fused::layer_norm(x, &self.weight, &self.bias, self.eps as f32)? {
            return Ok(y);
        }
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

/// x + y, with y of the shape of x, or a row that is added to each of x. The library's own sum of so many numbers on CPUs starts
/// as many threads as the machine has cores, also where this process may use a few of them.
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor, BackendError> {
    if x.device().is_cpu() {
        return cpu::sum(x, y);
    }
    Ok(x.broadcast_add(y)?)
}

/// GELU in its tanh form, computed in f32 and rounded to the dtype of x.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor, BackendError> {
    if let Some(y) = fused::gelu_times(x, None)? {
        return Ok(y);
    }
    // candle's gelu is the tanh form; in bf16 it would round after each of its steps.
    Ok(x.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype())?)
}

/// gelu(gate) × up, the heart of Gemma's feed-forward.
pub(crate) fn gelu_times(
    kernels: Option<Kernels>,
    gate: &Tensor,
    up: &Tensor,
) -> Result<Tensor, BackendError> {
    if let Some(kernels) = kernels {
        return cpu::gelu_times(kernels, gate, up);
    }
    match fused::gelu_times(gate, Some(up))? {
        Some(wide) => Ok(wide),
        None => Ok((gelu(gate)? * up)?),
    }
}

/// Scaled dot-product attention: scores rounded to the dtype of q as the reference does, softmax in f32.
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
    let scores_max = if q.device().is_cpu() {
        SCORES_MAX
    } else {
        SCORES_MAX_GPU
    };
    let tile = tile_rows(scores_max, q.dim(0)?, k.dim(1)?, q.dim(1)?);
    tiled(Qkv { q, k, v }, scale, mask, tile)
}

/// Query rows worked on at once: as many as keep the scores of all heads within `scores_max`, at least one.
fn tile_rows(scores_max: usize, heads: usize, keys: usize, queries: usize) -> usize {
    (scores_max / (heads * keys)).clamp(1, queries)
}

struct Qkv<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
}

/// softmax(scores × scale + mask) over the last dimension of scores [heads, rows, keys]: scaled scores are rounded to their
/// dtype, the rest is f32, rounded last.
fn softmax(scores: &Tensor, mask: Option<&Tensor>, scale: f64) -> Result<Tensor, BackendError> {
    if let Some(weights) = fused::softmax(scores, mask, scale as f32)? {
        return Ok(weights);
    }
    let dtype = scores.dtype();
    let scores = (scores.to_dtype(DType::F32)? * scale)?
        .to_dtype(dtype)?
        .to_dtype(DType::F32)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    Ok(candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(dtype)?)
}

fn tiled(qkv: Qkv, scale: f64, mask: RowMask, tile: usize) -> Result<Tensor, BackendError> {
    let Qkv { q, k, v } = qkv;
    let (heads, n, dim) = q.dims3()?;
    let (kv_heads, keys, _) = k.dims3()?;
    let group = heads / kv_heads;
    let keys_t = k.transpose(1, 2)?;
    let mut out = Vec::with_capacity(n.div_ceil(tile));
    let mut from = 0;
    while from < n {
        let rows = tile.min(n - from);
        let part = q
            .narrow(1, from, rows)?
            .contiguous()?
            .reshape((kv_heads, group * rows, dim))?;
        let scores = part.matmul(&keys_t)?.reshape((heads, rows, keys))?;
        let weights = softmax(&scores, mask(from..from + rows)?.as_ref(), scale)?;
        let mixed = weights.reshape((kv_heads, group * rows, keys))?.matmul(v)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn no_tile_holds_more_scores_than_allowed() {
        // SigLIP at 896 pixels, a long prompt, a decode step, and more keys than one row may have.
        for (heads, keys, queries) in [
            (16, 4096, 4096),
            (8, 131_072, 512),
            (8, 131_072, 1),
            (1, 1 << 25, 3),
        ] {
            let rows = tile_rows(SCORES_MAX, heads, keys, queries);
            assert!((1..=queries).contains(&rows));
            assert!(rows == 1 || rows * heads * keys <= SCORES_MAX);
        }
        assert_eq!(tile_rows(SCORES_MAX, 16, 4096, 4096), 256);
    }

    #[test]
    fn tiles_change_nothing() {
        let tensor = |heads, n, start: f32| {
            let count = heads * n * 6;
            let values: Vec<f32> = (0..count).map(|i| (start + i as f32).sin()).collect();
            Tensor::from_vec(values, (heads, n, 6), &Device::Cpu).unwrap()
        };
        let (q, k, v) = (tensor(4, 11, 0.0), tensor(2, 13, 0.3), tensor(2, 13, 0.7));
        let causal = |rows: std::ops::Range<usize>| {
            let values = rows
                .clone()
                .flat_map(|q| {
                    (0..13).map(move |k| if k <= q + 2 { 0.0 } else { f32::NEG_INFINITY })
                })
                .collect::<Vec<f32>>();
            Ok(Some(Tensor::from_vec(
                values,
                (1, rows.len(), 13),
                &Device::Cpu,
            )?))
        };
        let run = |tile| {
            let qkv = Qkv {
                q: &q,
                k: &k,
                v: &v,
            };
            let out = tiled(qkv, 0.4, &causal, tile).unwrap();
            out.to_vec2::<f32>().unwrap()
        };
        let whole = run(11);
        for tile in [1, 2, 5, 10] {
            for (a, b) in run(tile).iter().flatten().zip(whole.iter().flatten()) {
                assert!((a - b).abs() < 1e-6, "{tile}");
            }
        }
    }
}
