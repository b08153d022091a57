//! Sixteen f32 at a time, by level. A panel of packed weights is as wide as this, so that a level with wider registers needs
//! no other layout: it is one register there, two with AVX2, four with NEON,
//! an array in portable code.

mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

/// Numbers in a vector.
pub(crate) const LANES: usize = 16;
/// Panels that several rows are multiplied with at once where there are 32 registers.
pub(crate) const MANY_PANELS: usize = 4;

/// A vector of [`LANES`] f32. Every function is `#[inline(always)]`: it is compiled into the work of its level.
///
/// Safety: functions may only be called where the level's instructions exist; pointers must be good for all they reach.
pub(crate) trait Lanes: Copy {
    /// Sixteen i32, the sums of an integer product.
    type Sums: Copy;
    /// Sixteen times four i8, weights of as many outputs.
    type Quads: Copy;
    /// Sixteen times two i16.
    type Pairs: Copy;
    /// Sums of products with weights without sign, before they are scaled: one number of each output, or two that add up to it.
    type Dots: Copy;

    /// Panels that several rows are multiplied with at once: 1, or [`MANY_PANELS`].
    const PANELS: usize = 1;
    /// Whether [`Lanes::Dots`] have room for any products of a block.
    const WIDE_DOTS: bool = false;

    /// Asks for the line of cache at `from`, which may be anywhere; nothing where the level cannot.
    #[inline(always)]
    unsafe fn prefetch(_from: *const i8) {}

    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger; `other` where either is no number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is no number.
    unsafe fn min(self, other: Self) -> Self;
    /// self × by + to; rounded once where the level can.
    unsafe fn mul_add(self, by: Self, to: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// 2^self of whole numbers between −126 and 127; zero of −127, infinity of 128.
    unsafe fn power_of_two(self) -> Self;

    /// Widened bf16.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Rounded to bf16, ties to even.
    unsafe fn store_bf16(self, to: *mut u16);
    /// The low halves of sixteen u32 as bf16, widened.
    unsafe fn load_bf16_low(from: *const u32) -> Self;
    /// The high halves.
    unsafe fn load_bf16_high(from: *const u32) -> Self;
    /// Widened f16.
    unsafe fn load_f16(from: *const u16) -> Self;

    unsafe fn no_sums() -> Self::Sums;
    unsafe fn load_sums(from: *const i32) -> Self::Sums;
    /// The same for all.
    #[inline(always)]
    unsafe fn splat_sums(sum: i32) -> Self::Sums {
        unsafe { Self::load_sums([sum; LANES].as_ptr()) }
    }
    /// 64 bytes: four i8 of each of sixteen outputs.
    unsafe fn load_quads(from: *const i8) -> Self::Quads;
    unsafe fn store_quads(to: *mut i8, quads: Self::Quads);
    /// 64 bytes: four weights of 8 bits of each of sixteen outputs, as [`Lanes::dot`] takes them.
    #[inline(always)]
    unsafe fn load_eights(from: *const i8) -> Self::Quads {
        unsafe { Self::load_quads(from) }
    }
    /// What sums begin with to which [`Lanes::dot`] is added for values that add up to `total`.
    #[inline(always)]
    unsafe fn sums_of_eights(_total: i32) -> Self::Sums {
        unsafe { Self::no_sums() }
    }
    /// sums + the products of each output's four weights with four values, every value within −127..=127.
    unsafe fn dot(sums: Self::Sums, weights: Self::Quads, values: i32) -> Self::Sums;
    unsafe fn from_sums(sums: Self::Sums) -> Self;
    /// 64 bytes: the lower four bits of each, and the upper four.
    unsafe fn load_nibbles(from: *const i8) -> (Self::Quads, Self::Quads);
    /// The same with two more bits each, out of 64 bytes that hold those of two such: the lower four bits are the first's.
    unsafe fn load_sixes(
        nibbles: *const i8,
        high: *const i8,
        second: bool,
    ) -> (Self::Quads, Self::Quads);

    unsafe fn load_pairs(from: *const i16) -> Self::Pairs;
    unsafe fn store_pairs(to: *mut i16, pairs: Self::Pairs);
    /// The same two i16 for all; the lower half is the first.
    unsafe fn splat_pairs(both: i32) -> Self::Pairs;
    /// Sixteen pairs, each number times `by`, a power of two, and rounded to a whole one, ties to even; what an i16 does not hold
    /// becomes anything.
    #[inline(always)]
    unsafe fn whole_pairs(first: Self, second: Self, by: Self) -> Self::Pairs {
        let (mut firsts, mut seconds) = ([0_f32; LANES], [0_f32; LANES]);
        unsafe {
            first.mul(by).round().store(firsts.as_mut_ptr());
            second.mul(by).round().store(seconds.as_mut_ptr());
            let pairs: [[i16; 2]; LANES] =
                std::array::from_fn(|lane| [firsts[lane] as i16, seconds[lane] as i16]);
            Self::load_pairs(pairs.as_ptr().cast())
        }
    }
    /// 32 i8.
    unsafe fn load_byte_pairs(from: *const i8) -> Self::Pairs;
    /// Sixteen u8, each for both of its pair.
    unsafe fn load_twice(from: *const i8) -> Self::Pairs;
    /// Pairs of the first number, and of the second.
    unsafe fn split(pairs: Self::Pairs) -> (Self::Pairs, Self::Pairs);
    /// sums + the products of the first numbers and of the second numbers.
    unsafe fn add_pairs(sums: Self::Sums, a: Self::Pairs, b: Self::Pairs) -> Self::Sums;
    unsafe fn no_dots() -> Self::Dots;
    /// dots + the products of each output's four weights, without sign, with four values. Where dots are not [`Lanes::WIDE_DOTS`],
    /// that neither those of the first two nor those of the last two add up to more than an i16 holds is the caller's to see to.
    unsafe fn add_dots(dots: Self::Dots, weights: Self::Quads, values: i32) -> Self::Dots;
    /// sums + dots × scales; both numbers of a pair are the output's scale.
    unsafe fn scale_dots(sums: Self::Sums, dots: Self::Dots, scales: Self::Pairs) -> Self::Sums;
    /// Sixteen u8.
    unsafe fn load_u8(from: *const u8) -> Self;

    /// Rounded to bf16, as f32.
    #[inline(always)]
    unsafe fn rounded_to_bf16(self) -> Self {
        let mut bits = [0_u16; LANES];
        unsafe {
            self.store_bf16(bits.as_mut_ptr());
            Self::load_bf16(bits.as_ptr())
        }
    }

    /// The sum of all lanes, always in the same order.
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        let mut lanes = [0_f32; LANES];
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0_f32; LANES];
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// e^self for self ≤ 88; what is below −87 is 0. Within 2 units in the last place (tested against f64).
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // e^x = 2^n · e^r with |r| ≤ ln 2 / 2; ln 2 in two parts, so that r is exact; e^r by its Taylor series.
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        const SERIES: [f32; 7] = [
            1.0 / 5040.0,
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
        ];
        unsafe {
            // In this order both comparisons hand on what is no number.
            let x = Self::splat(88.0).min(Self::splat(-87.0).max(self));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.mul_add(Self::splat(-LN_2_HIGH), x);
            let r = n.mul_add(Self::splat(-LN_2_LOW), r);
            let mut y = Self::splat(SERIES[0]);
            for coefficient in &SERIES[1..] {
                y = y.mul_add(r, Self::splat(*coefficient));
            }
            let y = y.mul_add(r, Self::splat(1.0));
            y.mul(n.power_of_two()).zero_below(self, -87.0)
        }
    }

    /// self, but 0 in lanes where `x` is below `least`.
    unsafe fn zero_below(self, x: Self, least: f32) -> Self;

    /// GELU in its tanh form: x · sigmoid(2 √(2/π) (x + 0.044715 x³)).
    #[inline(always)]
    unsafe fn gelu(self) -> Self {
        const TWICE_ROOT: f32 = 1.595_769;
        const CUBIC: f32 = 0.044_715;
        unsafe {
            let square = self.mul(self);
            let inner = square.mul_add(Self::splat(CUBIC), Self::splat(1.0));
            let u = self.mul(inner).mul(Self::splat(-TWICE_ROOT));
            self.div(Self::splat(1.0).add(u.exp()))
        }
    }
}
