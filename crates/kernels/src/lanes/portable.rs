//! Plain arrays: the level of any machine, and what the others are compared with.

use half::{bf16, f16};

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn with(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| of(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    fn each(self, of: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(of))
    }
}

impl Lanes for Portable {
    type Sums = [i32; LANES];
    type Quads = [[i8; 4]; LANES];
    type Pairs = [[i16; 2]; LANES];
    type Dots = Self::Pairs;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.with(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.with(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.with(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, to: Self) -> Self {
        // Not `f32::mul_add`: without the instruction that is a call into a library for every number.
        Self(std::array::from_fn(|lane| {
            self.0[lane] * by.0[lane] + to.0[lane]
        }))
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.each(f32::round_ties_even)
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        self.each(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let bits = self.0.map(|value| bf16::from_f32(value).to_bits());
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn load_bf16_low(from: *const u32) -> Self {
        let bits = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(bits << 16)))
    }

    #[inline(always)]
    unsafe fn load_bf16_high(from: *const u32) -> Self {
        let bits = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(bits & 0xffff_0000)))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self::Sums {
        unsafe { from.cast::<[i32; LANES]>().read() }
    }

    #[inline(always)]
    unsafe fn load_quads(from: *const i8) -> Self::Quads {
        unsafe { from.cast::<Self::Quads>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, weights: Self::Quads, values: i32) -> Self::Sums {
        let values = values.to_le_bytes().map(|byte| i32::from(byte as i8));
        std::array::from_fn(|lane| {
            let weights = weights[lane].map(i32::from);
            let products = weights.iter().zip(values).map(|(w, x)| w * x);
            sums[lane] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn from_sums(sums: Self::Sums) -> Self {
        Self(sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const i8) -> (Self::Quads, Self::Quads) {
        let bytes = unsafe { Self::load_quads(from) };
        (
            bytes.map(|quad| quad.map(|byte| byte & 15)),
            bytes.map(|quad| quad.map(|byte| byte >> 4 & 15)),
        )
    }

    #[inline(always)]
    unsafe fn load_sixes(
        nibbles: *const i8,
        high: *const i8,
        second: bool,
    ) -> (Self::Quads, Self::Quads) {
        let (mut low, mut up) = unsafe { Self::load_nibbles(nibbles) };
        let high = unsafe { Self::load_quads(high) };
        let shift = if second { 4 } else { 0 };
        for lane in 0..LANES {
            for part in 0..4 {
                let bits = high[lane][part] >> shift;
                low[lane][part] |= (bits & 3) << 4;
                up[lane][part] |= (bits >> 2 & 3) << 4;
            }
        }
        (low, up)
    }

    #[inline(always)]
    unsafe fn no_dots() -> Self::Dots {
        [[0; 2]; LANES]
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const i16) -> Self::Pairs {
        unsafe { from.cast::<Self::Pairs>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_pairs(to: *mut i16, pairs: Self::Pairs) {
        unsafe { to.cast::<Self::Pairs>().write_unaligned(pairs) }
    }

    #[inline(always)]
    unsafe fn splat_pairs(both: i32) -> Self::Pairs {
        [[both as i16, (both >> 16) as i16]; LANES]
    }

    #[inline(always)]
    unsafe fn load_byte_pairs(from: *const i8) -> Self::Pairs {
        let bytes = unsafe { from.cast::<[[i8; 2]; LANES]>().read_unaligned() };
        bytes.map(|pair| pair.map(i16::from))
    }

    #[inline(always)]
    unsafe fn load_twice(from: *const i8) -> Self::Pairs {
        let bytes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        bytes.map(|byte| [i16::from(byte); 2])
    }

    #[inline(always)]
    unsafe fn split(pairs: Self::Pairs) -> (Self::Pairs, Self::Pairs) {
        (
            pairs.map(|pair| [pair[0]; 2]),
            pairs.map(|pair| [pair[1]; 2]),
        )
    }

    #[inline(always)]
    unsafe fn store_quads(to: *mut i8, quads: Self::Quads) {
        unsafe { to.cast::<Self::Quads>().write_unaligned(quads) }
    }

    #[inline(always)]
    unsafe fn add_dots(dots: Self::Dots, weights: Self::Quads, values: i32) -> Self::Dots {
        let x = values.to_le_bytes().map(|byte| i16::from(byte as i8));
        std::array::from_fn(|lane| {
            let w = weights[lane].map(i16::from);
            [
                dots[lane][0] + (w[0] * x[0] + w[1] * x[1]),
                dots[lane][1] + (w[2] * x[2] + w[3] * x[3]),
            ]
        })
    }

    #[inline(always)]
    unsafe fn add_pairs(sums: Self::Sums, a: Self::Pairs, b: Self::Pairs) -> Self::Sums {
        std::array::from_fn(|lane| {
            let product = |at: usize| i32::from(a[lane][at]) * i32::from(b[lane][at]);
            sums[lane] + (product(0) + product(1))
        })
    }

    #[inline(always)]
    unsafe fn scale_dots(sums: Self::Sums, dots: Self::Dots, scales: Self::Pairs) -> Self::Sums {
        unsafe { Self::add_pairs(sums, dots, scales) }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        Self(unsafe { from.cast::<[u8; LANES]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn zero_below(self, x: Self, least: f32) -> Self {
        self.with(x, |value, x| if x < least { 0.0 } else { value })
    }
}
