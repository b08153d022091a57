//! The adaptive part of JPEG-LS: coding parameters, contexts, and Golomb codes (ITU-T T.87 annex A).

use super::{Around, truncated};
use crate::Refusal;

/// 365 regular contexts, then the two of run interruption.
const REGULAR: usize = 365;
const CORRECTION_MIN: i32 = -128;
const CORRECTION_MAX: i32 = 127;

/// Parameters of a scan.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) largest: i32,
    pub(super) near: i32,
    thresholds: [i32; 3],
    reset: i32,
    range: i32,
    /// Bits of an error that is not coded as a Golomb code.
    escape_bits: u32,
    limit: u32,
}

impl Parameters {
    /// `preset`: largest value, three thresholds, reset; 0 means the default (C.2.4.1.1). `None` if they contradict each other.
    pub(super) fn new(precision: u32, near: i32, preset: Option<[i32; 5]>) -> Option<Self> {
        let [largest, t1, t2, t3, reset] = preset.unwrap_or_default();
        let or = |value: i32, default: i32| if value == 0 { default } else { value };
        let largest = or(largest, (1 << precision) - 1);
        if largest >= 1 << precision || near > 255.min(largest / 2) {
            return None;
        }
        let clamp = |value: i32, least: i32| {
            if value > largest || value < least {
                least
            } else {
                value
            }
        };
        let (d1, d2, d3) = if largest >= 128 {
            let factor = (largest.min(4095) + 128) >> 8;
            (
                factor + 2 + 3 * near,
                factor * 4 + 3 + 5 * near,
                factor * 17 + 4 + 7 * near,
            )
        } else {
            let factor = 256 / (largest + 1);
            (
                (3 / factor + 3 * near).max(2),
                (7 / factor + 5 * near).max(3),
                (21 / factor + 7 * near).max(4),
            )
        };
        let t1 = or(t1, clamp(d1, near + 1));
        let t2 = or(t2, clamp(d2, t1));
        let t3 = or(t3, clamp(d3, t2));
        if !(near < t1 && t1 <= t2 && t2 <= t3 && t3 <= largest) {
            return None;
        }
        let range = (largest + 2 * near) / (2 * near + 1) + 1;
        let bits = |values: i32| 32 - (values - 1).leading_zeros();
        let sample_bits = bits(largest + 1).max(2);
        Some(Self {
            largest,
            near,
            thresholds: [t1, t2, t3],
            reset: or(reset, 64),
            range,
            escape_bits: bits(range),
            limit: 2 * (sample_bits + sample_bits.max(8)),
        })
    }

    /// Whether a run begins here (A.3.2).
    pub(super) fn is_flat(&self, around: Around) -> bool {
        let small = |d: i32| d.abs() <= self.near;
        small(around.above_right - around.above)
            && small(around.above - around.above_left)
            && small(around.above_left - around.left)
    }

    /// A gradient as -4 to 4 (A.3.3).
    pub(super) fn quantise(&self, d: i32) -> i32 {
        let [t1, t2, t3] = self.thresholds;
        let size = match d.abs() {
            d if d <= self.near => 0,
            d if d < t1 => 1,
            d if d < t2 => 2,
            d if d < t3 => 3,
            _ => 4,
        };
        size * d.signum()
    }

    /// The sample of a prediction and an error (A.5, A.8).
    pub(super) fn reconstruct(&self, predicted: i32, error: i32) -> i32 {
        let step = 2 * self.near + 1;
        let mut value = predicted + error * step;
        if value < -self.near {
            value += self.range * step;
        } else if value > self.largest + self.near {
            value -= self.range * step;
        }
        value.clamp(0, self.largest)
    }
}

/// What the coder has learnt: sums of error sizes, biases, corrections, counts.
#[derive(Debug)]
pub(super) struct Contexts {
    sizes: [i32; REGULAR + 2],
    biases: [i32; REGULAR],
    corrections: [i32; REGULAR],
    counts: [i32; REGULAR + 2],
    /// Negative errors of the two run contexts.
    negative: [i32; 2],
}

impl Contexts {
    pub(super) fn new(parameters: &Parameters) -> Self {
        Self {
            sizes: [((parameters.range + 32) / 64).max(2); REGULAR + 2],
            biases: [0; REGULAR],
            corrections: [0; REGULAR],
            counts: [1; REGULAR + 2],
            negative: [0; 2],
        }
    }

    /// The prediction's correction and the error of a regular sample.
    pub(super) fn regular_error(
        &mut self,
        reader: &mut Reader<'_>,
        parameters: &Parameters,
        context: usize,
    ) -> Result<(i32, i32), Refusal> {
        let correction = self.corrections[context];
        let (size, count) = (self.sizes[context], self.counts[context]);
        let k = golomb_bits(size, count);
        let mapped = reader.golomb(k, parameters.limit, parameters.escape_bits)? as i32;
        // A.5.2, and A.5.3 turned around.
        let turned = parameters.near == 0 && k == 0 && 2 * self.biases[context] <= -count;
        let error = match (mapped % 2, turned) {
            (0, false) => mapped / 2,
            (_, false) => -(mapped + 1) / 2,
            (0, true) => -(mapped / 2) - 1,
            (_, true) => (mapped - 1) / 2,
        };
        self.learn(parameters, context, error);
        Ok((correction, error))
    }

    /// Updates what a context knows by the error of one more sample (A.6).
    fn learn(&mut self, parameters: &Parameters, context: usize, error: i32) {
        let (size, bias) = (&mut self.sizes[context], &mut self.biases[context]);
        let (count, correction) = (&mut self.counts[context], &mut self.corrections[context]);
        *bias += error * (2 * parameters.near + 1);
        *size += error.abs();
        if *count == parameters.reset {
            *size >>= 1;
            *bias >>= 1;
            *count >>= 1;
        }
        *count += 1;
        if *bias <= -*count {
            *bias = (*bias + *count).max(1 - *count);
            *correction = (*correction - 1).max(CORRECTION_MIN);
        } else if *bias > 0 {
            *bias = (*bias - *count).min(0);
            *correction = (*correction + 1).min(CORRECTION_MAX);
        }
    }

    /// The error of the sample behind a run (A.7.2).
    pub(super) fn run_error(
        &mut self,
        reader: &mut Reader<'_>,
        parameters: &Parameters,
        near: bool,
        run_bits: u32,
    ) -> Result<i32, Refusal> {
        let kind = usize::from(near);
        let context = REGULAR + kind;
        let count = self.counts[context];
        let size = self.sizes[context] + if near { count >> 1 } else { 0 };
        let k = golomb_bits(size, count);
        let limit = parameters.limit - run_bits - 1;
        let mapped = reader.golomb(k, limit, parameters.escape_bits)? as i32;
        let doubled = mapped + kind as i32;
        let odd = doubled % 2 == 1;
        let amount = (doubled + i32::from(odd)) / 2;
        let mostly_negative = 2 * self.negative[kind] >= count;
        let error = if (k != 0 || mostly_negative) == odd {
            -amount
        } else {
            amount
        };
        if error < 0 {
            self.negative[kind] += 1;
        }
        self.sizes[context] += (mapped + 1 - kind as i32) >> 1;
        if count == parameters.reset {
            self.sizes[context] >>= 1;
            self.counts[context] >>= 1;
            self.negative[kind] >>= 1;
        }
        self.counts[context] += 1;
        Ok(error)
    }
}

/// How many low bits of an error are written as they are (A.5.1, the parameter k).
fn golomb_bits(size: i32, count: i32) -> u32 {
    let mut k = 0;
    while k < 24 && (count << k) < size {
        k += 1;
    }
    k
}

/// The bits of a scan: behind a byte of ones comes a stuffed zero bit (A.1); a marker ends them.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            buffer: 0,
            count: 0,
        }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let Some(&byte) = self.bytes.get(self.at) else {
                return;
            };
            let stuffed = self.at > 0 && self.bytes[self.at - 1] == 0xff;
            let marker = byte == 0xff && self.bytes.get(self.at + 1).is_none_or(|b| *b >= 0x80);
            if marker || (stuffed && byte >= 0x80) {
                return;
            }
            let bits = if stuffed { 7 } else { 8 };
            self.buffer = self.buffer << bits | u64::from(byte);
            self.count += bits;
            self.at += 1;
        }
    }

    /// Up to 32 bits.
    pub(super) fn bits(&mut self, bits: u32) -> Result<u32, Refusal> {
        if self.count < bits {
            self.fill();
        }
        if self.count < bits {
            return Err(truncated());
        }
        self.count -= bits;
        Ok((self.buffer >> self.count & ((1u64 << bits) - 1)) as u32)
    }

    /// A limited-length Golomb code (A.5.3).
    fn golomb(&mut self, k: u32, limit: u32, escape_bits: u32) -> Result<u32, Refusal> {
        let most = limit.saturating_sub(escape_bits + 1);
        let mut zeros = 0;
        while self.bits(1)? == 0 {
            zeros += 1;
            if zeros > most {
                return Err(super::failed());
            }
        }
        if zeros < most {
            Ok(zeros << k | self.bits(k)?)
        } else {
            Ok(self.bits(escape_bits)? + 1)
        }
    }

    /// Steps over the restart marker of this number, which must be what comes next.
    pub(super) fn restart(&mut self, number: u8) -> Result<(), Refusal> {
        let mut at = self.end();
        // Any number of fill bytes (T.81 B.1.1.2).
        while self.bytes.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        match self.bytes.get(at..at + 2) {
            None => Err(truncated()),
            Some([0xff, marker]) if *marker == 0xd0 + number => {
                (self.at, self.buffer, self.count) = (at + 2, 0, 0);
                Ok(())
            }
            Some(_) => Err(super::failed()),
        }
    }

    /// Where the next marker is.
    pub(super) fn end(&self) -> usize {
        let mut at = self.at.saturating_sub(1);
        while at + 1 < self.bytes.len() && !(self.bytes[at] == 0xff && self.bytes[at + 1] >= 0x80) {
            at += 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_thresholds_are_those_of_the_standard() {
        // C.2.4.1.1: 3, 7, 21 for 8 bits; table of the standard's annex for 12 bits.
        assert_eq!(Parameters::new(8, 0, None).unwrap().thresholds, [3, 7, 21]);
        assert_eq!(
            Parameters::new(12, 0, None).unwrap().thresholds,
            [18, 67, 276]
        );
        assert!(Parameters::new(8, 0, Some([255, 9, 3, 21, 64])).is_none());
    }

    #[test]
    fn a_stuffed_bit_follows_a_byte_of_ones() {
        let mut reader = Reader::new(&[0xff, 0x55, 0xff, 0xd9]);
        assert_eq!(reader.bits(8).unwrap(), 0xff);
        assert_eq!(reader.bits(7).unwrap(), 0x55);
        assert!(reader.bits(1).is_err());
        assert_eq!(reader.end(), 2);
    }
}
