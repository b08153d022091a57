//! What values are stored in. All arithmetic is f32; a bf16 is rounded where a model's reference stores it.

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::attention::Attention;
use crate::lanes::Lanes;
use crate::level::Kernels;
use crate::pack::Packed;
use crate::product::Then;
use crate::quantised::Quantised;
use crate::rows::{Rotation, Scale};

/// A stored number: f32 or bf16.
#[allow(private_bounds, private_interfaces)]
pub trait Number: Copy + Default + Send + Sync + std::fmt::Debug + Loaded + Kernel {
    /// Widened.
    fn wide(self) -> f32;
    /// Rounded, ties to even.
    fn rounded(value: f32) -> Self;
}

/// How vectors of a stored number are read and written.
pub(crate) trait Loaded: Sized {
    /// Whether storing loses digits.
    const ROUNDS: bool;

    /// The bits of bf16; of another number there are none.
    fn halves(values: &[Self]) -> Option<&[u16]>;

    unsafe fn load<S: Lanes>(from: *const Self) -> S;
    unsafe fn store<S: Lanes>(to: *mut Self, value: S);
    /// `value` as it would be read after it was stored.
    unsafe fn round<S: Lanes>(value: S) -> S;
}

/// The kernels of each stored number. They are compiled in this crate, once, and not in every crate that calls them.
macro_rules! kernels {
    ($($name:ident via $of:ident($($argument:ident: $kind:ty),*);)*) => {
        pub(crate) trait Kernel: Sized {
            $(fn $name(kernels: Kernels, $($argument: $kind),*) -> Vec<Self>;)*
        }
        kernels!(f32: $($name via $of($($argument: $kind),*);)*);
        kernels!(bf16: $($name via $of($($argument: $kind),*);)*);
    };
    ($number:ty: $($name:ident via $of:ident($($argument:ident: $kind:ty),*);)*) => {
        impl Kernel for $number {
            $(fn $name(kernels: Kernels, $($argument: $kind),*) -> Vec<Self> {
                kernels.$of($($argument),*)
            })*
        }
    };
}

kernels! {
    product via product_of(x: &[Self], weight: &Packed, then: Then<Self>);
    quantised_product via quantised_product_of(x: &[Self], weight: &Quantised, then: Then<Self>);
    attend via attend_of(batch: &[Attention<Self>]);
    rms_norm via rms_norm_of(x: &[Self], of: Scale, residual: Option<&[Self]>);
    layer_norm via layer_norm_of(x: &[Self], of: Scale, bias: &[f32]);
    norm_rotate via norm_rotate_of(x: &[Self], of: Scale, by: Rotation<Self>);
    gelu_times via gelu_times_of(gate: &[Self], up: &[Self]);
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn rounded(value: f32) -> Self {
        value
    }
}

impl Loaded for f32 {
    const ROUNDS: bool = false;

    fn halves(_values: &[Self]) -> Option<&[u16]> {
        None
    }

    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const Self) -> S {
        unsafe { S::load(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Lanes>(to: *mut Self, value: S) {
        unsafe { value.store(to) }
    }

    #[inline(always)]
    unsafe fn round<S: Lanes>(value: S) -> S {
        value
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn rounded(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Loaded for bf16 {
    const ROUNDS: bool = true;

    fn halves(values: &[Self]) -> Option<&[u16]> {
        Some(values.reinterpret_cast())
    }

    #[inline(always)]
    unsafe fn load<S: Lanes>(from: *const Self) -> S {
        unsafe { S::load_bf16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store<S: Lanes>(to: *mut Self, value: S) {
        unsafe { value.store_bf16(to.cast()) }
    }

    #[inline(always)]
    unsafe fn round<S: Lanes>(value: S) -> S {
        unsafe { value.rounded_to_bf16() }
    }
}
