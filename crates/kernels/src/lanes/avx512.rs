//! One register of sixteen, with fused multiply-add, and VNNI for sums of integer products.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{LANES, Lanes, MANY_PANELS};

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// The upper halves of sixteen pairs.
const UPPER: u32 = 0xaaaa_aaaa;

/// Sixteen f32 to the bits of bf16 in the low halves of sixteen u32, ties to even; what is no number stays none.
#[inline(always)]
unsafe fn bf16_bits(x: __m512) -> __m512i {
    unsafe {
        let bits = _mm512_castps_si512(x);
        let upper = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
        let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40))
    }
}

/// Sixteen bf16, in the low halves of sixteen u32, widened.
#[inline(always)]
unsafe fn from_bits(bits: __m512i) -> Avx512 {
    unsafe { Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))) }
}

/// The lower four bits of each byte, and the upper four.
#[inline(always)]
unsafe fn nibbles(bytes: __m512i) -> (__m512i, __m512i) {
    unsafe {
        let mask = _mm512_set1_epi8(15);
        let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
        (_mm512_and_si512(bytes, mask), upper)
    }
}

/// The upper halves of pairs out of `upper`, the lower ones out of `lower`.
#[inline(always)]
unsafe fn blend(lower: __m512i, upper: __m512i) -> __m512i {
    unsafe { _mm512_mask_blend_epi16(UPPER, lower, upper) }
}

/// One instruction, written as such: from the intrinsic the compiler made two for some of the sums, and those loops are bound by the
/// number of instructions.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn dot_pairs(mut sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
    unsafe {
        asm!("vpdpwssd {}, {}, {}", inout(zmm_reg) sums, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

impl Lanes for Avx512 {
    type Sums = __m512i;
    type Quads = __m512i;
    type Pairs = __m512i;
    type Dots = Self::Sums;

    // Six rows are 24 registers of sums; four hold the columns, and what is left a row's value.
    const PANELS: usize = MANY_PANELS;
    const WIDE_DOTS: bool = true;

    #[inline(always)]
    unsafe fn prefetch(from: *const i8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, by.0, to.0)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Self(_mm512_roundscale_ps::<NEAREST>(self.0)) }
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        unsafe {
            // The exponent's bits are n + 127.
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe { from_bits(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(bf16_bits(self.0))) }
    }

    #[inline(always)]
    unsafe fn rounded_to_bf16(self) -> Self {
        unsafe { from_bits(bf16_bits(self.0)) }
    }

    #[inline(always)]
    unsafe fn load_bf16_low(from: *const u32) -> Self {
        unsafe { from_bits(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16_high(from: *const u32) -> Self {
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let bits = _mm512_and_si512(mask, _mm512_loadu_si512(from.cast()));
            Self(_mm512_castsi512_ps(bits))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self::Sums {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat_sums(sum: i32) -> Self::Sums {
        unsafe { _mm512_set1_epi32(sum) }
    }

    #[inline(always)]
    unsafe fn load_quads(from: *const i8) -> Self::Quads {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_quads(to: *mut i8, quads: Self::Quads) {
        unsafe { _mm512_storeu_si512(to.cast(), quads) }
    }

    /// The instruction wants one side without sign: weights are made 128 more.
    #[inline(always)]
    unsafe fn load_eights(from: *const i8) -> Self::Quads {
        unsafe { _mm512_xor_si512(Self::load_quads(from), _mm512_set1_epi8(-128)) }
    }

    /// 128 × the values, which weights that are 128 more than they mean add.
    #[inline(always)]
    unsafe fn sums_of_eights(total: i32) -> Self::Sums {
        unsafe { _mm512_set1_epi32(-128 * total) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, weights: Self::Quads, values: i32) -> Self::Sums {
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(values)) }
    }

    #[inline(always)]
    unsafe fn from_sums(sums: Self::Sums) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(sums)) }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const i8) -> (Self::Quads, Self::Quads) {
        unsafe { nibbles(Self::load_quads(from)) }
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
            // Bits 0 and 1, 2 and 3, or 4 and 5, 6 and 7 become bits 4 and 5.
            let (a, b) = if second {
                (high, _mm512_srli_epi16::<2>(high))
            } else {
                (_mm512_slli_epi16::<4>(high), _mm512_slli_epi16::<2>(high))
            };
            let mask = _mm512_set1_epi8(0x30);
            (
                _mm512_or_si512(low, _mm512_and_si512(a, mask)),
                _mm512_or_si512(up, _mm512_and_si512(b, mask)),
            )
        }
    }

    #[inline(always)]
    unsafe fn no_dots() -> Self::Dots {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const i16) -> Self::Pairs {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_pairs(to: *mut i16, pairs: Self::Pairs) {
        unsafe { _mm512_storeu_si512(to.cast(), pairs) }
    }

    #[inline(always)]
    unsafe fn splat_pairs(both: i32) -> Self::Pairs {
        unsafe { _mm512_set1_epi32(both) }
    }

    /// Beside 1.5 × 2^23 a number's whole part stands in the lowest bits, so that adding it rounds and converts.
    #[inline(always)]
    unsafe fn whole_pairs(first: Self, second: Self, by: Self) -> Self::Pairs {
        const WHOLE: f32 = 12_582_912.0;
        unsafe {
            let whole = |x: Self| _mm512_castps_si512(x.mul_add(by, Self::splat(WHOLE)).0);
            blend(whole(first), _mm512_slli_epi32::<16>(whole(second)))
        }
    }

    #[inline(always)]
    unsafe fn load_byte_pairs(from: *const i8) -> Self::Pairs {
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_twice(from: *const i8) -> Self::Pairs {
        unsafe {
            let once = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            _mm512_or_si512(once, _mm512_slli_epi32::<16>(once))
        }
    }

    #[inline(always)]
    unsafe fn split(pairs: Self::Pairs) -> (Self::Pairs, Self::Pairs) {
        unsafe {
            (
                blend(pairs, _mm512_slli_epi32::<16>(pairs)),
                blend(_mm512_srli_epi32::<16>(pairs), pairs),
            )
        }
    }

    #[inline(always)]
    unsafe fn add_dots(dots: Self::Dots, weights: Self::Quads, values: i32) -> Self::Dots {
        unsafe { Self::dot(dots, weights, values) }
    }

    #[inline(always)]
    unsafe fn scale_dots(sums: Self::Sums, dots: Self::Dots, scales: Self::Pairs) -> Self::Sums {
        unsafe {
            let scales = _mm512_srai_epi32::<16>(scales);
            _mm512_add_epi32(sums, _mm512_mullo_epi32(dots, scales))
        }
    }

    #[inline(always)]
    unsafe fn add_pairs(sums: Self::Sums, a: Self::Pairs, b: Self::Pairs) -> Self::Sums {
        unsafe { dot_pairs(sums, a, b) }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm512_cvtepi32_ps(wide))
        }
    }

    #[inline(always)]
    unsafe fn zero_below(self, x: Self, least: f32) -> Self {
        unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x.0, _mm512_set1_ps(least));
            Self(_mm512_mask_mov_ps(self.0, below, _mm512_setzero_ps()))
        }
    }
}

const _: () = assert!(LANES == 16, "one register of sixteen");
