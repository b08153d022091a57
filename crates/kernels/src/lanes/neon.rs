//! Four registers of four, with fused multiply-add: what every 64-bit ARM has. Newer ones multiply bytes four at a time and add
//! them up (`DOT`); integers are exact either way, so that is no level of its own.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>([float32x4_t; 4]);

/// One for each register. No closure: what is called for each is to be compiled for this level, wherever that is.
macro_rules! each {
    ($at:ident: $of:expr) => {
        [
            {
                let $at = 0;
                $of
            },
            {
                let $at = 1;
                $of
            },
            {
                let $at = 2;
                $of
            },
            {
                let $at = 3;
                $of
            },
        ]
    };
}

/// Four f32 to the bits of bf16, ties to even; what is no number stays none.
#[inline(always)]
unsafe fn bf16_bits(x: float32x4_t) -> uint16x4_t {
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        // The upper half of each sum.
        let rounded = vaddhn_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorr_u16(vshrn_n_u32::<16>(bits), vdup_n_u16(0x40));
        vbsl_u16(vmovn_u32(vceqq_f32(x, x)), rounded, quiet)
    }
}

/// Four bf16 widened.
#[inline(always)]
unsafe fn from_bits(bits: uint16x4_t) -> float32x4_t {
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(bits))) }
}

/// The low halves of sixteen u32 as bf16, widened.
#[inline(always)]
unsafe fn load_low<const DOT: bool>(from: *const u32) -> Neon<DOT> {
    unsafe {
        Neon(each!(at: {
            let bits = vld1q_u32(from.add(4 * at));
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(bits))
        }))
    }
}

/// The high halves.
#[inline(always)]
unsafe fn load_high<const DOT: bool>(from: *const u32) -> Neon<DOT> {
    unsafe {
        Neon(each!(at: {
            let bits = vld1q_u32(from.add(4 * at));
            vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xffff_0000)))
        }))
    }
}

/// sums + the products of four outputs' four weights with four values.
#[inline(always)]
unsafe fn dot<const DOT: bool>(
    mut sums: int32x4_t,
    weights: int8x16_t,
    values: int8x16_t,
) -> int32x4_t {
    unsafe {
        if DOT {
            // What `vdotq_s32` would be, which is not stable.
            asm!(
                "sdot {sums:v}.4s, {weights:v}.16b, {values:v}.16b",
                sums = inout(vreg) sums,
                weights = in(vreg) weights,
                values = in(vreg) values,
                options(pure, nomem, nostack, preserves_flags),
            );
            sums
        } else {
            let low = vmull_s8(vget_low_s8(weights), vget_low_s8(values));
            // No pair exceeds 2 × 128 × 127: within an i16.
            let pairs = vpaddq_s16(low, vmull_high_s8(weights, values));
            vpadalq_s16(sums, pairs)
        }
    }
}

/// Sixteen u8 to as many i16.
#[inline(always)]
unsafe fn widen_u8(bytes: uint8x16_t) -> [int16x8_t; 2] {
    unsafe {
        [
            vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))),
            vreinterpretq_s16_u16(vmovl_high_u8(bytes)),
        ]
    }
}

/// Sixteen i8 to as many i16.
#[inline(always)]
unsafe fn widen_s8(bytes: int8x16_t) -> [int16x8_t; 2] {
    unsafe { [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)] }
}

/// sums + the products of sixteen with sixteen.
#[inline(always)]
unsafe fn add_products(
    sums: [int32x4_t; 4],
    a: [int16x8_t; 2],
    b: [int16x8_t; 2],
) -> [int32x4_t; 4] {
    unsafe {
        [
            vmlal_s16(sums[0], vget_low_s16(a[0]), vget_low_s16(b[0])),
            vmlal_high_s16(sums[1], a[0], b[0]),
            vmlal_s16(sums[2], vget_low_s16(a[1]), vget_low_s16(b[1])),
            vmlal_high_s16(sums[3], a[1], b[1]),
        ]
    }
}

impl<const DOT: bool> Lanes for Neon<DOT> {
    type Sums = [int32x4_t; 4];
    type Quads = [int8x16_t; 4];
    /// The first numbers of all outputs, and the second.
    type Pairs = [[int16x8_t; 2]; 2];
    type Dots = [int32x4_t; 4];

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(each!(at: vld1q_f32(from.add(4 * at)))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            each!(at: vst1q_f32(to.add(4 * at), self.0[at]));
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([unsafe { vdupq_n_f32(value) }; 4])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(each!(at: vaddq_f32(self.0[at], other.0[at]))) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(each!(at: vsubq_f32(self.0[at], other.0[at]))) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(each!(at: vmulq_f32(self.0[at], other.0[at]))) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(each!(at: vdivq_f32(self.0[at], other.0[at]))) }
    }

    /// Not `vmaxq_f32`, which hands on what is no number from either side.
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe {
            Self(each!(at: {
                let (a, b) = (self.0[at], other.0[at]);
                vbslq_f32(vcgtq_f32(a, b), a, b)
            }))
        }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe {
            Self(each!(at: {
                let (a, b) = (self.0[at], other.0[at]);
                vbslq_f32(vcltq_f32(a, b), a, b)
            }))
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        unsafe { Self(each!(at: vfmaq_f32(to.0[at], self.0[at], by.0[at]))) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Self(each!(at: vrndnq_f32(self.0[at]))) }
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        unsafe {
            Self(each!(at: {
                // The exponent's bits are n + 127.
                let biased = vaddq_s32(vcvtq_s32_f32(self.0[at]), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            }))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe { Self(each!(at: from_bits(vld1_u16(from.add(4 * at))))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        unsafe {
            each!(at: vst1_u16(to.add(4 * at), bf16_bits(self.0[at])));
        }
    }

    #[inline(always)]
    unsafe fn rounded_to_bf16(self) -> Self {
        unsafe { Self(each!(at: from_bits(bf16_bits(self.0[at])))) }
    }

    #[inline(always)]
    unsafe fn load_bf16_low(from: *const u32) -> Self {
        unsafe { load_low(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16_high(from: *const u32) -> Self {
        unsafe { load_high(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            Self(each!(at: {
                let bits = vld1_u16(from.add(4 * at));
                vcvt_f32_f16(vreinterpret_f16_u16(bits))
            }))
        }
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        [unsafe { vdupq_n_s32(0) }; 4]
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self::Sums {
        unsafe { std::array::from_fn(|part| vld1q_s32(from.add(4 * part))) }
    }

    #[inline(always)]
    unsafe fn load_quads(from: *const i8) -> Self::Quads {
        unsafe { each!(at: vld1q_s8(from.add(16 * at))) }
    }

    #[inline(always)]
    unsafe fn store_quads(to: *mut i8, quads: Self::Quads) {
        unsafe {
            each!(at: vst1q_s8(to.add(16 * at), quads[at]));
        }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, weights: Self::Quads, values: i32) -> Self::Sums {
        unsafe {
            let values = vreinterpretq_s8_s32(vdupq_n_s32(values));
            each!(at: dot::<DOT>(sums[at], weights[at], values))
        }
    }

    #[inline(always)]
    unsafe fn from_sums(sums: Self::Sums) -> Self {
        unsafe { Self(each!(at: vcvtq_f32_s32(sums[at]))) }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const i8) -> (Self::Quads, Self::Quads) {
        unsafe {
            let bytes = each!(at: vld1q_u8(from.cast::<u8>().add(16 * at)));
            let mask = vdupq_n_u8(15);
            (
                each!(at: vreinterpretq_s8_u8(vandq_u8(bytes[at], mask))),
                each!(at: vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes[at]))),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_sixes(
        nibbles: *const i8,
        high: *const i8,
        second: bool,
    ) -> (Self::Quads, Self::Quads) {
        unsafe {
            let (low, up) = Self::load_nibbles(nibbles);
            let high = Self::load_quads(high);
            let mask = vdupq_n_s8(0x30);
            // Bits 0 and 1, 2 and 3, or 4 and 5, 6 and 7 become bits 4 and 5.
            let (a, b) = if second {
                (high, each!(at: vshrq_n_s8::<2>(high[at])))
            } else {
                (
                    each!(at: vshlq_n_s8::<4>(high[at])),
                    each!(at: vshlq_n_s8::<2>(high[at])),
                )
            };
            (
                each!(at: vorrq_s8(low[at], vandq_s8(a[at], mask))),
                each!(at: vorrq_s8(up[at], vandq_s8(b[at], mask))),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const i16) -> Self::Pairs {
        unsafe {
            let (a, b) = (vld2q_s16(from), vld2q_s16(from.add(LANES)));
            [[a.0, b.0], [a.1, b.1]]
        }
    }

    #[inline(always)]
    unsafe fn store_pairs(to: *mut i16, pairs: Self::Pairs) {
        unsafe {
            let [first, second] = pairs;
            vst2q_s16(to, int16x8x2_t(first[0], second[0]));
            vst2q_s16(to.add(LANES), int16x8x2_t(first[1], second[1]));
        }
    }

    #[inline(always)]
    unsafe fn splat_pairs(both: i32) -> Self::Pairs {
        unsafe {
            [
                [vdupq_n_s16(both as i16); 2],
                [vdupq_n_s16((both >> 16) as i16); 2],
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_byte_pairs(from: *const i8) -> Self::Pairs {
        unsafe {
            let bytes = vld2q_s8(from);
            [widen_s8(bytes.0), widen_s8(bytes.1)]
        }
    }

    #[inline(always)]
    unsafe fn load_twice(from: *const i8) -> Self::Pairs {
        [unsafe { widen_u8(vld1q_u8(from.cast())) }; 2]
    }

    #[inline(always)]
    unsafe fn split(pairs: Self::Pairs) -> (Self::Pairs, Self::Pairs) {
        ([pairs[0]; 2], [pairs[1]; 2])
    }

    #[inline(always)]
    unsafe fn add_pairs(sums: Self::Sums, a: Self::Pairs, b: Self::Pairs) -> Self::Sums {
        unsafe { add_products(add_products(sums, a[0], b[0]), a[1], b[1]) }
    }

    #[inline(always)]
    unsafe fn no_dots() -> Self::Dots {
        unsafe { Self::no_sums() }
    }

    #[inline(always)]
    unsafe fn add_dots(dots: Self::Dots, weights: Self::Quads, values: i32) -> Self::Dots {
        unsafe { Self::dot(dots, weights, values) }
    }

    #[inline(always)]
    unsafe fn scale_dots(sums: Self::Sums, dots: Self::Dots, scales: Self::Pairs) -> Self::Sums {
        unsafe {
            let [low, high] = scales[0];
            [
                vmlaq_s32(sums[0], dots[0], vmovl_s16(vget_low_s16(low))),
                vmlaq_s32(sums[1], dots[1], vmovl_high_s16(low)),
                vmlaq_s32(sums[2], dots[2], vmovl_s16(vget_low_s16(high))),
                vmlaq_s32(sums[3], dots[3], vmovl_high_s16(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        unsafe {
            let bytes = vld1q_u8(from);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            Self([
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn zero_below(self, x: Self, least: f32) -> Self {
        unsafe {
            let least = vdupq_n_f32(least);
            Self(each!(at: {
                let below = vcltq_f32(x.0[at], least);
                vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(self.0[at]), below))
            }))
        }
    }
}

const _: () = assert!(LANES == 16, "four registers of four");
