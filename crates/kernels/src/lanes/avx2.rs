//! Two registers of eight, with fused multiply-add.

use std::arch::x86_64::*;

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Eight f32 to the bits of bf16 in the low halves of eight u32, ties to even; what is no number stays none.
#[inline(always)]
unsafe fn bf16_bits(x: __m256) -> __m256i {
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
        let quiet = _mm256_or_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(0x40));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

/// 2^n: the exponent's bits are n + 127.
#[inline(always)]
unsafe fn power_of_two(n: __m256) -> __m256 {
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// Four weights of eight outputs times four values each: the absolute weights are unsigned, their signs go to the values.
/// No pair exceeds 2 × 128 × 127, so that nothing saturates.
#[inline(always)]
unsafe fn dot_half(sums: __m256i, weights: __m256i, values: __m256i) -> __m256i {
    unsafe {
        let signed = _mm256_sign_epi8(values, weights);
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// The lower four bits of each byte, and the upper four.
#[inline(always)]
unsafe fn nibbles(bytes: __m256i) -> (__m256i, __m256i) {
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        (_mm256_and_si256(bytes, mask), upper)
    }
}

/// With two more bits each: bits 0 and 1, 2 and 3 of `high`, or 4 and 5, 6 and 7.
#[inline(always)]
unsafe fn sixes(bytes: __m256i, high: __m256i, second: bool) -> (__m256i, __m256i) {
    unsafe {
        let (low, up) = nibbles(bytes);
        let mask = _mm256_set1_epi8(0x30);
        let (a, b) = if second {
            (high, _mm256_srli_epi16::<2>(high))
        } else {
            (_mm256_slli_epi16::<4>(high), _mm256_slli_epi16::<2>(high))
        };
        (
            _mm256_or_si256(low, _mm256_and_si256(a, mask)),
            _mm256_or_si256(up, _mm256_and_si256(b, mask)),
        )
    }
}

/// The first number of each pair twice, and the second.
#[inline(always)]
unsafe fn split(pairs: __m256i) -> (__m256i, __m256i) {
    unsafe {
        let (up, down) = (
            _mm256_slli_epi32::<16>(pairs),
            _mm256_srli_epi32::<16>(pairs),
        );
        (
            _mm256_blend_epi16::<0b1010_1010>(pairs, up),
            _mm256_blend_epi16::<0b1010_1010>(down, pairs),
        )
    }
}

macro_rules! both {
    ($intrinsic:ident, $a:expr, $b:expr) => {
        Self($intrinsic($a.0, $b.0), $intrinsic($a.1, $b.1))
    };
}

impl Lanes for Avx2 {
    type Sums = (__m256i, __m256i);
    type Quads = (__m256i, __m256i);
    type Pairs = (__m256i, __m256i);
    type Dots = Self::Pairs;

    #[inline(always)]
    unsafe fn prefetch(from: *const i8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        let all = unsafe { _mm256_set1_ps(value) };
        Self(all, all)
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { both!(_mm256_add_ps, self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { both!(_mm256_sub_ps, self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { both!(_mm256_mul_ps, self, other) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { both!(_mm256_div_ps, self, other) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { both!(_mm256_max_ps, self, other) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { both!(_mm256_min_ps, self, other) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, by.0, to.0),
                _mm256_fmadd_ps(self.1, by.1, to.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe {
            Self(
                _mm256_round_ps::<NEAREST>(self.0),
                _mm256_round_ps::<NEAREST>(self.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        unsafe { Self(power_of_two(self.0), power_of_two(self.1)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let bits = _mm256_loadu_si256(from.cast());
            let low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(bits));
            let high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(bits));
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        unsafe {
            // Packing works within 128-bit halves; the permutation puts the quarters back in order.
            let packed = _mm256_packus_epi32(bf16_bits(self.0), bf16_bits(self.1));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }

    #[inline(always)]
    unsafe fn rounded_to_bf16(self) -> Self {
        unsafe {
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bf16_bits(self.0))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bf16_bits(self.1))),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_low(from: *const u32) -> Self {
        unsafe {
            let (a, b) = (
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(8).cast()),
            );
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_high(from: *const u32) -> Self {
        unsafe {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
            Self(
                _mm256_and_ps(mask, _mm256_loadu_ps(from.cast())),
                _mm256_and_ps(mask, _mm256_loadu_ps(from.add(8).cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self::Sums {
        unsafe {
            (
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(8).cast()),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_quads(from: *const i8) -> Self::Quads {
        unsafe {
            (
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            )
        }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, weights: Self::Quads, values: i32) -> Self::Sums {
        unsafe {
            let values = _mm256_set1_epi32(values);
            (
                dot_half(sums.0, weights.0, values),
                dot_half(sums.1, weights.1, values),
            )
        }
    }

    #[inline(always)]
    unsafe fn from_sums(sums: Self::Sums) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)) }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const i8) -> (Self::Quads, Self::Quads) {
        unsafe {
            let bytes = Self::load_quads(from);
            let (a, b) = (nibbles(bytes.0), nibbles(bytes.1));
            ((a.0, b.0), (a.1, b.1))
        }
    }

    #[inline(always)]
    unsafe fn load_sixes(
        nibbles: *const i8,
        high: *const i8,
        second: bool,
    ) -> (Self::Quads, Self::Quads) {
        unsafe {
            let (bytes, high) = (Self::load_quads(nibbles), Self::load_quads(high));
            let a = sixes(bytes.0, high.0, second);
            let b = sixes(bytes.1, high.1, second);
            ((a.0, b.0), (a.1, b.1))
        }
    }

    #[inline(always)]
    unsafe fn no_dots() -> Self::Dots {
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const i16) -> Self::Pairs {
        unsafe {
            (
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(16).cast()),
            )
        }
    }

    #[inline(always)]
    unsafe fn store_pairs(to: *mut i16, pairs: Self::Pairs) {
        unsafe {
            _mm256_storeu_si256(to.cast(), pairs.0);
            _mm256_storeu_si256(to.add(16).cast(), pairs.1);
        }
    }

    #[inline(always)]
    unsafe fn splat_pairs(both: i32) -> Self::Pairs {
        let all = unsafe { _mm256_set1_epi32(both) };
        (all, all)
    }

    #[inline(always)]
    unsafe fn load_byte_pairs(from: *const i8) -> Self::Pairs {
        unsafe {
            (
                _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(16).cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_twice(from: *const i8) -> Self::Pairs {
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            (
                _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, bytes)),
                _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(bytes, bytes)),
            )
        }
    }

    #[inline(always)]
    unsafe fn split(pairs: Self::Pairs) -> (Self::Pairs, Self::Pairs) {
        unsafe {
            let (a, b) = (split(pairs.0), split(pairs.1));
            ((a.0, b.0), (a.1, b.1))
        }
    }

    #[inline(always)]
    unsafe fn store_quads(to: *mut i8, quads: Self::Quads) {
        unsafe {
            _mm256_storeu_si256(to.cast(), quads.0);
            _mm256_storeu_si256(to.add(32).cast(), quads.1);
        }
    }

    #[inline(always)]
    unsafe fn add_dots(dots: Self::Dots, weights: Self::Quads, values: i32) -> Self::Dots {
        unsafe {
            let values = _mm256_set1_epi32(values);
            (
                _mm256_add_epi16(dots.0, _mm256_maddubs_epi16(weights.0, values)),
                _mm256_add_epi16(dots.1, _mm256_maddubs_epi16(weights.1, values)),
            )
        }
    }

    #[inline(always)]
    unsafe fn add_pairs(sums: Self::Sums, a: Self::Pairs, b: Self::Pairs) -> Self::Sums {
        unsafe {
            (
                _mm256_add_epi32(sums.0, _mm256_madd_epi16(a.0, b.0)),
                _mm256_add_epi32(sums.1, _mm256_madd_epi16(a.1, b.1)),
            )
        }
    }

    #[inline(always)]
    unsafe fn scale_dots(sums: Self::Sums, dots: Self::Dots, scales: Self::Pairs) -> Self::Sums {
        unsafe { Self::add_pairs(sums, dots, scales) }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let low = _mm256_cvtepu8_epi32(bytes);
            let high = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn zero_below(self, x: Self, least: f32) -> Self {
        unsafe {
            let least = _mm256_set1_ps(least);
            Self(
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.0, least), self.0),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.1, least), self.1),
            )
        }
    }
}

const _: () = assert!(LANES == 16, "two registers of eight");
