//! How panels of quantised weights lie in memory: block by block of inputs, of each block first what all of its weights
//! share, for sixteen outputs side by side, then the weights. Nothing is rounded, and nothing takes more room than it must.
//!
//! Four weights of each of sixteen outputs stand together, 64 of them: at byte 4 × output + k of 64 bytes, or in the lower
//! half of such a byte (the upper half has the four inputs behind them), or in two of its bits.

use half::f16;

use super::Form;
use crate::lanes::{LANES, Lanes};

/// 32 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(super) struct Unit(#[expect(dead_code, reason = "read as bytes")] [i8; 32]);

impl Unit {
    pub(super) fn bytes(units: &[Self]) -> &[u8] {
        // SAFETY: a unit is 32 bytes, each of which may be anything.
        unsafe { std::slice::from_raw_parts(units.as_ptr().cast(), size_of_val(units)) }
    }

    pub(super) fn bytes_mut(units: &mut [Self]) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast(), size_of_val(units)) }
    }
}

/// Where the parts of a block are, in bytes from its start. The f16 scales of sixteen outputs come first.
pub(super) struct Layout {
    /// Units of a block.
    pub(super) units: usize,
    /// Integer scales of a part of 32 inputs, and bytes from one part's to the next.
    pub(super) scales: (usize, usize),
    /// Integer minimums of a part of 32 inputs, 16 bytes each, behind the f16 for them.
    pub(super) mins: usize,
    /// Weights.
    pub(super) weights: usize,
    /// Upper bits of weights.
    pub(super) high: usize,
}

/// f16 scales of sixteen outputs.
const SCALES: usize = 2 * LANES;
/// Parts of 32 inputs in a block of 256.
pub(super) const PARTS: usize = 8;
/// Bytes of a part's lower four bits.
pub(super) const PART_NIBBLES: usize = 16 * LANES;
/// Bytes of a part's upper two bits.
pub(super) const PART_HIGH: usize = 8 * LANES;

pub(super) const Q8_0: Layout = Layout {
    units: 17,
    scales: (0, 0),
    mins: 0,
    weights: SCALES,
    high: 0,
};

pub(super) const Q4K: Layout = Layout {
    units: (2 * SCALES + PARTS * (2 * LANES + PART_NIBBLES)) / 32,
    scales: (2 * SCALES, LANES),
    mins: 2 * SCALES + PARTS * LANES,
    weights: 2 * SCALES + 2 * PARTS * LANES,
    high: 0,
};

pub(super) const Q6K: Layout = Layout {
    units: (SCALES + PARTS * (2 * LANES + PART_NIBBLES + PART_HIGH)) / 32,
    scales: (SCALES, 2 * LANES),
    mins: 0,
    weights: SCALES + PARTS * 2 * LANES,
    high: SCALES + PARTS * (2 * LANES + PART_NIBBLES),
};

/// Where the f16 of minimums are.
pub(super) const MIN_SCALES: usize = SCALES;

const _: () = assert!(Q4K.units * 32 == Q4K.weights + PARTS * PART_NIBBLES);
const _: () = assert!(Q6K.units * 32 == Q6K.high + PARTS * PART_HIGH);

impl Layout {
    pub(super) const fn of(form: Form) -> Self {
        match form {
            Form::Q8_0 => Q8_0,
            Form::Q4K => Q4K,
            Form::Q6K => Q6K,
        }
    }

    /// Bytes of a block.
    pub(super) const fn bytes(&self) -> usize {
        self.units * size_of::<Unit>()
    }

    /// Asks for a part, counted of so many, of the block that is `blocks` behind the one at `at`. A block is read at several
    /// places in turn, which machines do not foresee. There may be no such block: nothing is read.
    #[inline(always)]
    pub(super) unsafe fn prefetch<S: Lanes>(
        &self,
        at: *const i8,
        blocks: usize,
        (part, parts): (usize, usize),
    ) {
        const LINE: usize = 64;
        let bytes = self.bytes().div_ceil(parts);
        let from = blocks * self.bytes() + part * bytes;
        for offset in (from..from + bytes).step_by(LINE) {
            unsafe { S::prefetch(at.wrapping_add(offset)) };
        }
    }
}

/// The byte that has input k of a part, whether in its upper half, and which byte and bits have its upper bits.
struct Place {
    byte: usize,
    upper: bool,
    high: usize,
    shift: usize,
}

/// Where input k of 32 is.
fn place(k: usize, lane: usize) -> Place {
    let (quad, within) = (k / 4, lane * 4 + k % 4);
    Place {
        byte: quad / 2 * 4 * LANES + within,
        upper: quad % 2 == 1,
        high: quad / 4 * 4 * LANES + within,
        shift: quad % 4 * 2,
    }
}

/// Scale and minimum of part j of a block of Q4_K, of 6 bits each, out of its twelve bytes.
fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (packed[j] & 63, packed[j + 4] & 63);
    }
    let upper = |byte: u8| byte >> 6 << 4;
    (
        packed[j + 4] & 15 | upper(packed[j - 4]),
        packed[j + 4] >> 4 | upper(packed[j]),
    )
}

/// The 6 bits of weight `v` of a block of Q6_K.
fn q6(stored: &[u8], v: usize) -> u8 {
    let (half, v) = (v / 128, v % 128);
    let (quarter, l) = (v / 32, v % 32);
    let low = stored[64 * half + 32 * (quarter % 2) + l];
    let low = if quarter < 2 { low & 15 } else { low >> 4 };
    let high = stored[128 + 32 * half + l] >> (2 * quarter) & 3;
    low | high << 4
}

/// Puts a stored block of one output into its panel, which was zeros.
pub(super) fn put(form: Form, stored: &[u8], lane: usize, panel: &mut [u8]) {
    let layout = Layout::of(form);
    let two = 2 * lane..2 * lane + 2;
    match form {
        Form::Q8_0 => {
            panel[two].copy_from_slice(&stored[..2]);
            for (k, weight) in stored[2..].iter().enumerate() {
                panel[layout.weights + k / 4 * 4 * LANES + lane * 4 + k % 4] = *weight;
            }
        }
        Form::Q4K => {
            panel[two.clone()].copy_from_slice(&stored[..2]);
            panel[MIN_SCALES..][two].copy_from_slice(&stored[2..4]);
            for j in 0..PARTS {
                let (scale, min) = six_bits(&stored[4..16], j);
                panel[layout.scales.0 + j * LANES + lane] = scale;
                panel[layout.mins + j * LANES + lane] = min;
                for k in 0..32 {
                    let byte = stored[16 + j / 2 * 32 + k];
                    let weight = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
                    put_nibble(panel, layout.weights + j * PART_NIBBLES, (k, lane), weight);
                }
            }
        }
        Form::Q6K => {
            panel[two].copy_from_slice(&stored[208..]);
            for j in 0..PARTS {
                let scales = layout.scales.0 + j * layout.scales.1 + 2 * lane;
                panel[scales..scales + 2].copy_from_slice(&stored[192 + 2 * j..][..2]);
                for k in 0..32 {
                    let weight = q6(stored, 32 * j + k);
                    let nibbles = layout.weights + j * PART_NIBBLES;
                    put_nibble(panel, nibbles, (k, lane), weight & 15);
                    let place = place(k, lane);
                    panel[layout.high + j * PART_HIGH + place.high] |= weight >> 4 << place.shift;
                }
            }
        }
    }
}

fn put_nibble(panel: &mut [u8], part: usize, (k, lane): (usize, usize), weight: u8) {
    let place = place(k, lane);
    panel[part + place.byte] |= if place.upper { weight << 4 } else { weight };
}

/// A block of one output, dequantised.
pub(super) fn get(form: Form, panel: &[u8], lane: usize, into: &mut [f32; 256]) {
    let layout = Layout::of(form);
    let half = |at: usize| f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
    let (scale, min_scale) = (half(2 * lane), half(MIN_SCALES + 2 * lane));
    for (v, value) in into[..form.block_inputs()].iter_mut().enumerate() {
        let (j, k) = (v / 32, v % 32);
        let place = place(k, lane);
        let byte = panel[layout.weights + j * PART_NIBBLES + place.byte];
        let nibble = if place.upper { byte >> 4 } else { byte & 15 };
        *value = match form {
            Form::Q8_0 => {
                let byte = panel[layout.weights + k / 4 * 4 * LANES + lane * 4 + k % 4];
                f32::from(byte as i8) * scale
            }
            Form::Q4K => {
                let of = |at: usize| f32::from(panel[at + j * LANES + lane]);
                let step = scale * of(layout.scales.0);
                step * f32::from(nibble) - min_scale * of(layout.mins)
            }
            Form::Q6K => {
                let at = layout.scales.0 + j * layout.scales.1 + 2 * lane + k / 16;
                let high = panel[layout.high + j * PART_HIGH + place.high] >> place.shift & 3;
                let weight = f32::from(nibble | high << 4) - 32.0;
                scale * f32::from(panel[at] as i8) * weight
            }
        };
    }
}
