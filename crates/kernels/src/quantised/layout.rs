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

/// The first 32 bytes, four in a number as they stand together in a panel.
fn quads(bytes: &[u8]) -> [u32; 8] {
    let (quads, _) = bytes.as_chunks();
    std::array::from_fn(|quad| u32::from_le_bytes(quads[quad]))
}

/// Puts four bytes at a time of one output beside those of the others.
fn put_quads(into: &mut [u8], lane: usize, quads: &[[u8; 4]]) {
    let (lines, _) = into.as_chunks_mut::<{ 4 * LANES }>();
    for (line, quad) in lines.iter_mut().zip(quads) {
        line[4 * lane..4 * lane + 4].copy_from_slice(quad);
    }
}

/// The same of 32 weights of four bits, each in a byte: the second four stand above the first.
fn put_nibbles(into: &mut [u8], lane: usize, low: [u32; 8]) {
    let pair = |at: usize| (low[at] | low[at + 1] << 4).to_le_bytes();
    put_quads(into, lane, &[pair(0), pair(2), pair(4), pair(6)]);
}

/// Puts a stored block of one output into its panel. Four weights at a time: one by one they took longer to lay out than to
/// read from a disk.
pub(super) fn put(form: Form, stored: &[u8], lane: usize, panel: &mut [u8]) {
    /// Of each byte the four, or two, lowest bits.
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    let layout = Layout::of(form);
    let two = 2 * lane..2 * lane + 2;
    match form {
        Form::Q8_0 => {
            panel[two].copy_from_slice(&stored[..2]);
            put_quads(
                &mut panel[layout.weights..],
                lane,
                stored[2..].as_chunks().0,
            );
        }
        Form::Q4K => {
            panel[two.clone()].copy_from_slice(&stored[..2]);
            panel[MIN_SCALES..][two].copy_from_slice(&stored[2..4]);
            for j in 0..PARTS {
                let (scale, min) = six_bits(&stored[4..16], j);
                panel[layout.scales.0 + j * LANES + lane] = scale;
                panel[layout.mins + j * LANES + lane] = min;
                let low = quads(&stored[16 + j / 2 * 32..]).map(|quad| quad >> (j % 2 * 4) & FOUR);
                put_nibbles(&mut panel[layout.weights + j * PART_NIBBLES..], lane, low);
            }
        }
        Form::Q6K => {
            panel[two].copy_from_slice(&stored[208..]);
            for j in 0..PARTS {
                let scales = layout.scales.0 + j * layout.scales.1 + 2 * lane;
                panel[scales..scales + 2].copy_from_slice(&stored[192 + 2 * j..][..2]);
                let (half, quarter) = (j / 4, j % 4);
                let low = quads(&stored[64 * half + 32 * (quarter % 2)..]);
                let low = low.map(|quad| quad >> (quarter / 2 * 4) & FOUR);
                put_nibbles(&mut panel[layout.weights + j * PART_NIBBLES..], lane, low);
                let high = quads(&stored[128 + 32 * half..]);
                let high = high.map(|quad| quad >> (2 * quarter) & TWO);
                let bits = |at: usize| (0..4).fold(0, |bits, q| bits | high[at + q] << (2 * q));
                let high = [bits(0), bits(4)].map(u32::to_le_bytes);
                put_quads(&mut panel[layout.high + j * PART_HIGH..], lane, &high);
            }
        }
    }
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
