//! The kernels of `crates/kernels` over candle tensors, on CPUs. A layer that has them holds them: whether they are used was
//! said when the model was loaded.

use std::borrow::Cow;

use candle_core::{CpuStorage, D, DType, Storage, Tensor, WithDType};
use half::bf16;
use medfleet_kernels::{
    Attention, Cached, Kernels, KeyRange, Number, Packed, Quantised, Rotation, Scale, Then,
};
use rayon::prelude::*;

use crate::error::BackendError;
use crate::fused::Stored;
use crate::sampling::{Choice, Sampling, Situation, choose};

/// What a tensor holds and a kernel computes with.
trait Value: Number + WithDType {
    fn slice(storage: &CpuStorage) -> candle_core::Result<&[Self]>;
    /// A row in f32: copied only where that is another type.
    fn widened(row: &[Self]) -> Cow<'_, [f32]>;
}

impl Value for f32 {
    fn slice(storage: &CpuStorage) -> candle_core::Result<&[Self]> {
        storage.as_slice()
    }

    fn widened(row: &[Self]) -> Cow<'_, [f32]> {
        Cow::Borrowed(row)
    }
}

impl Value for bf16 {
    fn slice(storage: &CpuStorage) -> candle_core::Result<&[Self]> {
        storage.as_slice()
    }

    fn widened(row: &[Self]) -> Cow<'_, [f32]> {
        row.iter().map(|value| value.wide()).collect()
    }
}

/// The numbers of a contiguous tensor.
fn with<T: Value, R>(x: &Tensor, work: impl FnOnce(&[T]) -> R) -> candle_core::Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("a tensor of another device");
    };
    let from = layout.start_offset();
    Ok(work(&T::slice(storage)?[from..from + x.elem_count()]))
}

/// The same of a tensor that may be absent.
fn with_some<T: Value, R>(
    x: Option<&Tensor>,
    work: impl FnOnce(Option<&[T]>) -> R,
) -> candle_core::Result<R> {
    match x {
        Some(x) => with(x, |x| work(Some(x))),
        None => Ok(work(None)),
    }
}

/// Calls a function for the dtype of a tensor.
macro_rules! by_dtype {
    ($x:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $x.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            other => Err(candle_core::Error::Msg(format!("no kernels for {other:?}"))),
        }
    };
}

/// A weight matrix [out, in] laid out for the kernels.
pub(crate) struct Matrix {
    kernels: Kernels,
    weight: Weight,
}

enum Weight {
    Packed(Packed),
    Quantised(Quantised),
}

/// What is done with a product's results, in this order.
#[derive(Clone, Copy, Default)]
pub(crate) struct After<'a> {
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) gelu: bool,
    pub(crate) residual: Option<&'a Tensor>,
}

impl Matrix {
    pub(crate) fn packed(kernels: Kernels, mut weight: Packed) -> Self {
        weight.prepare(kernels);
        Self {
            kernels,
            weight: Weight::Packed(weight),
        }
    }

    pub(crate) const fn quantised(kernels: Kernels, weight: Quantised) -> Self {
        Self {
            kernels,
            weight: Weight::Quantised(weight),
        }
    }

    pub(crate) const fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// x [rows, in] → [rows, out], in the dtype of x.
    pub(crate) fn product(&self, x: &Tensor, after: After) -> Result<Tensor, BackendError> {
        Ok(by_dtype!(x, product(self, x, after))?)
    }

    /// Rows by index: ids [n] → [n, in], in `dtype`.
    pub(crate) fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor, BackendError> {
        let ids = ids.to_vec1::<u32>()?;
        let (outputs, inputs) = match &self.weight {
            Weight::Packed(weight) => (weight.outputs(), weight.inputs()),
            Weight::Quantised(weight) => (weight.outputs(), weight.inputs()),
        };
        let mut values = vec![0_f32; ids.len() * inputs];
        for (id, row) in ids.iter().zip(values.chunks_mut(inputs)) {
            let id = *id as usize;
            if id >= outputs {
                return Err(candle_core::Error::Msg("an id without a row".to_owned()).into());
            }
            match &self.weight {
                Weight::Packed(weight) => weight.row(id, row),
                Weight::Quantised(weight) => weight.row(id, row),
            }
        }
        let rows = Tensor::from_vec(values, (ids.len(), inputs), &candle_core::Device::Cpu)?;
        Ok(rows.to_dtype(dtype)?)
    }
}

fn product<T: Value>(matrix: &Matrix, x: &Tensor, after: After) -> candle_core::Result<Tensor> {
    let run = |x: &[T], residual: Option<&[T]>| {
        let then = Then {
            bias: after.bias,
            gelu: after.gelu,
            residual,
        };
        match &matrix.weight {
            Weight::Packed(weight) => {
                let out = matrix.kernels.product(x, weight, then);
                (out, weight.outputs())
            }
            Weight::Quantised(weight) => {
                let out = matrix.kernels.quantised_product(x, weight, then);
                (out, weight.outputs())
            }
        }
    };
    let (out, outputs) = with(x, |x| {
        with_some(after.residual, |residual| run(x, residual))
    })??;
    Tensor::from_vec(out, (x.dim(0)?, outputs), x.device())
}

/// Of each row of logits [rows, vocab] that is asked for the token that a greedy choice takes, which is never `never`; nothing of
/// one without a finite number.
pub(crate) fn likeliest(
    logits: &Tensor,
    wanted: &[bool],
    never: u32,
) -> Result<Vec<Option<Choice>>, BackendError> {
    Ok(by_dtype!(logits, likeliest_of(logits, wanted, never))?)
}

fn likeliest_of<T: Value>(
    logits: &Tensor,
    wanted: &[bool],
    never: u32,
) -> candle_core::Result<Vec<Option<Choice>>> {
    let (_, width) = logits.dims2()?;
    let situation = Situation {
        forbidden: &[never],
        ..Situation::default()
    };
    let choice = |(row, wanted): (&[T], &bool)| {
        if !*wanted {
            return None;
        }
        choose(&T::widened(row), &Sampling::greedy(), &situation).ok()
    };
    with::<T, _>(logits, |logits| {
        logits.par_chunks(width).zip(wanted).map(choice).collect()
    })
}

/// Packs a matrix [out, in] that is in memory.
pub(crate) fn pack(tensor: &Tensor) -> Result<Packed, BackendError> {
    fn of<T: Value>(tensor: &Tensor) -> candle_core::Result<Packed> {
        let shape = tensor.dims2()?;
        with::<T, _>(tensor, |values| Packed::new(values, shape.into()))
    }
    Ok(by_dtype!(tensor, of(tensor))?)
}

/// What a norm multiplies with, in memory, and the kernels that do it.
pub(crate) struct Norm {
    kernels: Kernels,
    weight: Vec<f32>,
    /// A layer norm's.
    bias: Vec<f32>,
    eps: f32,
}

impl Norm {
    /// Of weights [width] and a bias where there is one, all f32.
    pub(crate) fn new(
        kernels: Kernels,
        weight: &Tensor,
        bias: Option<&Tensor>,
        eps: f32,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            kernels,
            weight: weight.to_vec1()?,
            bias: bias.map_or(Ok(Vec::new()), Tensor::to_vec1)?,
            eps,
        })
    }

    fn scale(&self) -> Scale<'_> {
        Scale {
            weight: &self.weight,
            eps: self.eps,
        }
    }

    /// RMS norm over the last dimension, rounded; then added to `residual` where there is one.
    pub(crate) fn rms(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, BackendError> {
        fn of<T: Value>(
            norm: &Norm,
            x: &Tensor,
            residual: Option<&Tensor>,
        ) -> candle_core::Result<Tensor> {
            let run =
                |x: &[T], residual: Option<&[T]>| norm.kernels.rms_norm(x, norm.scale(), residual);
            let out = with(x, |x| with_some(residual, |residual| run(x, residual)))??;
            Tensor::from_vec(out, x.shape(), x.device())
        }
        Ok(by_dtype!(x, of(self, x, residual))?)
    }

    /// Layer norm over the last dimension.
    pub(crate) fn layer(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        fn of<T: Value>(norm: &Norm, x: &Tensor) -> candle_core::Result<Tensor> {
            let run = |x: &[T]| norm.kernels.layer_norm(x, norm.scale(), &norm.bias);
            Tensor::from_vec(with(x, run)?, x.shape(), x.device())
        }
        Ok(by_dtype!(x, of(self, x))?)
    }

    /// RMS norm of each head of x [rows, heads, width], then rotation by cos and sin [rows, 1, width / 2].
    pub(crate) fn rotated(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<Tensor, BackendError> {
        fn of<T: Value>(
            norm: &Norm,
            x: &Tensor,
            (cos, sin): (&Tensor, &Tensor),
        ) -> candle_core::Result<Tensor> {
            let run = |x: &[T], cos: &[T], sin: &[T]| {
                let by = Rotation { cos, sin };
                norm.kernels.norm_rotate(x, norm.scale(), by)
            };
            let out = with(x, |x| with(cos, |cos| with(sin, |sin| run(x, cos, sin))))???;
            Tensor::from_vec(out, x.shape(), x.device())
        }
        Ok(by_dtype!(x, of(self, x, (cos, sin)))?)
    }
}

/// gelu(gate) × up.
pub(crate) fn gelu_times(
    kernels: Kernels,
    gate: &Tensor,
    up: &Tensor,
) -> Result<Tensor, BackendError> {
    fn of<T: Value>(kernels: Kernels, gate: &Tensor, up: &Tensor) -> candle_core::Result<Tensor> {
        let run = |gate: &[T], up: &[T]| kernels.gelu_times(gate, up);
        let out = with(gate, |gate| with(up, |up| run(gate, up)))??;
        Tensor::from_vec(out, gate.shape(), gate.device())
    }
    Ok(by_dtype!(gate, of(kernels, gate, up))?)
}

/// x + y in their dtype, with y of the shape of x, or a row that is added to each of x.
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor, BackendError> {
    fn of<T: Value>(x: &Tensor, y: &Tensor) -> candle_core::Result<Tensor> {
        let width = x.dim(D::Minus1)?;
        let run = |x: &[T], y: &[T]| {
            let mut sums = x.to_vec();
            let rows = sums.par_chunks_mut(width).enumerate();
            rows.for_each(|(row, sums)| {
                let from = row * width % y.len();
                for (sum, y) in sums.iter_mut().zip(&y[from..from + width]) {
                    *sum += *y;
                }
            });
            sums
        };
        let sums = with(x, |x| with(y, |y| run(x, y)))??;
        Tensor::from_vec(sums, x.shape(), x.device())
    }
    Ok(by_dtype!(x, of(x, y))?)
}

/// How many heads there are of each kind, their width, and what products are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct HeadSizes {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) width: usize,
    pub(crate) scale: f32,
}

/// A sequence's rows of a batch: what each sees, and where its positions from `first` on lie.
pub(crate) struct Rows {
    pub(crate) seen: Vec<KeyRange>,
    pub(crate) slots: Option<Vec<u32>>,
    pub(crate) first: usize,
    /// Whether every row sees all positions; without slots only.
    pub(crate) sees_all: bool,
}

/// query [rows, heads × width] over keys and values [slots, kv heads × width] → [rows, heads × width].
pub(crate) fn attend(
    kernels: Kernels,
    query: &Tensor,
    stored: Stored,
    (sizes, batch): (HeadSizes, &[Rows]),
) -> Result<Tensor, BackendError> {
    fn of<T: Value>(
        kernels: Kernels,
        query: &Tensor,
        stored: Stored,
        (sizes, batch): (HeadSizes, &[Rows]),
    ) -> candle_core::Result<Tensor> {
        let width = sizes.heads * sizes.width;
        let run = |query: &[T], keys: &[T], values: &[T]| {
            let mut done = 0;
            let attention = batch.iter().map(|rows| {
                let from = done * width;
                done += rows.seen.len();
                Attention {
                    query: &query[from..done * width],
                    sizes: [sizes.heads, sizes.kv_heads, sizes.width],
                    scale: sizes.scale,
                    cached: Cached {
                        keys,
                        values,
                        slots: rows.slots.as_deref(),
                        first: rows.first,
                    },
                    seen: &rows.seen,
                    sees_all: rows.sees_all,
                }
            });
            kernels.attend(&attention.collect::<Vec<_>>())
        };
        let out = with(query, |query| {
            with(stored.keys, |keys| {
                with(stored.values, |values| run(query, keys, values))
            })
        })???;
        Tensor::from_vec(out, (query.dim(0)?, width), query.device())
    }
    Ok(by_dtype!(
        query,
        of(kernels, query, stored, (sizes, batch))
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// To the bit, in both dtypes: a matrix and a row, over more rows than one thread's.
    #[test]
    fn sums_are_the_librarys() {
        let tensor = |rows: usize, from: f32| {
            let values = (0..rows * 17).map(|i| (from + i as f32).sin());
            Tensor::from_vec(values.collect::<Vec<f32>>(), (rows, 17), &Device::Cpu).unwrap()
        };
        for dtype in [DType::F32, DType::BF16] {
            let of = |rows, from| tensor(rows, from).to_dtype(dtype).unwrap();
            let x = of(70, 0.0);
            for y in [of(70, 0.3), of(1, 0.7), of(1, 0.7).squeeze(0).unwrap()] {
                let values = |sum: Tensor| {
                    assert_eq!((sum.dims(), sum.dtype()), (x.dims(), dtype));
                    let wide = sum.to_dtype(DType::F32).unwrap();
                    wide.to_vec2::<f32>().unwrap()
                };
                let expected = values(x.broadcast_add(&y).unwrap());
                assert_eq!(values(sum(&x, &y).unwrap()), expected);
            }
        }
    }
}
