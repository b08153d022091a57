//! What a layer does between its products, in one launch each where the device has kernels for it. On a GPU the tensor
//! operations that say the same cost a launch and a pass over memory each, which is most of the time of a decode step.
//!
//! Every function answers `None` where there is no kernel for the tensor's device, dtype or shape: the caller then does it
//! with tensor operations, which stay the reference: `MEDFLEET_TEST_DEVICE=cuda` runs the comparisons of `parity` on a GPU,
//! with these kernels, and with `MEDFLEET_KERNELS=generic` without.

use candle_core::{Device, Tensor};

use crate::error::BackendError;

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

/// Kernels are left alone when this variable says `generic`: to compare, and to rule them out when something looks wrong.
#[cfg(feature = "cuda")]
const KERNELS: &str = "MEDFLEET_KERNELS";

/// What an RMS norm multiplies with, and its epsilon.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "for kernels"))]
pub(crate) struct Scale<'a> {
    /// [width] f32.
    pub(crate) scale: &'a Tensor,
    pub(crate) eps: f32,
}

/// Rows that each see one stretch of their sequence.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "for kernels"))]
pub(crate) struct Steps {
    /// [steps, 4] u32: row of the query, first position seen, positions seen, where its blocks begin among `blocks`.
    pub(crate) steps: Tensor,
    /// Blocks of all steps, each step's from that of the first position seen.
    pub(crate) blocks: Tensor,
    /// How many steps.
    pub(crate) count: usize,
    /// Most positions that any of them sees.
    pub(crate) seen_max: usize,
    /// Positions in a block.
    pub(crate) block_tokens: usize,
}

/// Keys and values as the pool holds them.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    /// [slots, kv heads, width], or the last two as one.
    pub(crate) keys: &'a Tensor,
    /// The same.
    pub(crate) values: &'a Tensor,
}

/// A square picture, and how it is cut.
#[derive(Clone, Copy)]
pub(crate) struct Picture<'a> {
    /// side × side × channels bytes.
    pub(crate) pixels: &'a [u8],
    pub(crate) side: usize,
    /// 1 or 3.
    pub(crate) channels: usize,
    /// Side of a patch.
    pub(crate) patch: usize,
}

/// Which kernels a GPU uses.
#[cfg(feature = "cuda")]
pub(crate) fn level() -> &'static str {
    if cuda::ruled_out() {
        "generic"
    } else {
        "fused"
    }
}

type Fused = Result<Option<Tensor>, BackendError>;

/// Declares the functions: with CUDA they ask its kernels, without they say that there are none.
macro_rules! fused {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $of:ty),* $(,)?);)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name($($argument: $of),*) -> Fused {
            #[cfg(feature = "cuda")]
            if cuda::serves(first!($($argument),*)) {
                return Ok(cuda::$name($($argument),*)?);
            }
            #[cfg(not(feature = "cuda"))]
            let _ = ($($argument,)*);
            Ok(None)
        }
    )*};
}

#[cfg(feature = "cuda")]
macro_rules! first {
    ($first:ident $(, $rest:ident)*) => {
        $first
    };
}

fused! {
    /// RMS norm over the last dimension, in f32, rounded to the dtype of x; then added to `residual` where there is one.
    fn norm(x: &Tensor, of: Scale, residual: Option<&Tensor>);

    /// RMS norm of each head of x [rows, heads, width], then rotation by cos and sin [rows, 1, width / 2].
    fn norm_rope(x: &Tensor, of: Scale, cos: &Tensor, sin: &Tensor);

    /// gelu(gate) × up, or gelu(gate) alone.
    fn gelu_times(gate: &Tensor, up: Option<&Tensor>);

    /// x [rows, in] × weightᵀ [in, out] + bias, rounded once, after the bias.
    fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor);

    /// Layer norm over the last dimension with weight and bias in f32.
    fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32);

    /// softmax(x × scale + mask) over the last dimension of x [heads, rows, keys]; mask [1, rows, keys] f32.
    fn softmax(x: &Tensor, mask: Option<&Tensor>, scale: f32);

    /// One query row a step, over keys and values where they lie: query [rows, heads, width] → [steps, heads × width].
    fn attend(query: &Tensor, stored: Stored, steps: &Steps, scale: f32);

    /// Attention in which every query sees every key, in bf16, without its scores in memory: query [queries, heads × width],
    /// keys and values [keys, heads × width] → [queries, heads × width]. Scores stay in f32, unlike the reference's.
    fn attend_all(query: &Tensor, of: Stored, heads: usize, scale: f32);

    /// Of each row of logits [rows, vocab] the token that a greedy choice takes, which is never `never`, and its
    /// log-probability: [rows, 2] u32, token or `u32::MAX` where there is none, and the bits of an f32.
    fn likeliest(logits: &Tensor, never: u32);
}

/// The patches of a picture, [(side / patch)², 3 × patch × patch] f32 in [−1, 1], cut where they are used.
pub(crate) fn cut(picture: Picture, device: &Device) -> Fused {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return Ok(cuda::cut(picture, device)?);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = (picture, device);
    Ok(None)
}

/// Puts the rows of x [rows, …] into `storage` [slots, …] at `slots` [rows] u32; false where the caller has to.
pub(crate) fn scatter(x: &Tensor, slots: &Tensor, storage: &Tensor) -> Result<bool, BackendError> {
    #[cfg(feature = "cuda")]
    if cuda::serves(x) {
        return Ok(cuda::scatter(x, slots, storage)?);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = (x, slots, storage);
    Ok(false)
}

/// Whether steps are attended in place on the device of x.
pub(crate) fn attends_in_place(x: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    return cuda::serves(x);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = x;
        false
    }
}
