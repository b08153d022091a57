//! Entropy-coded bits and Huffman codes (ITU-T T.81 annexes C and F.2.2). Reading beyond the data is an error.

use super::{failed, truncated};
use crate::Refusal;

/// Codes up to this length are found in one step.
const FAST_BITS: u32 = 9;

/// A decoding table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// By the next [`FAST_BITS`] bits: length and symbol; length 0 for longer codes.
    fast: Vec<(u8, u8)>,
    /// For each length 1 to 16: one more than the largest code, and the index of the symbol of code 0 of that length.
    slow: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Table {
    /// `counts` has 16 entries, `symbols` as many as they sum to. `None` for codes that do not fit.
    pub(super) fn new(counts: &[u8], symbols: &[u8]) -> Option<Self> {
        let mut fast = vec![(0, 0); 1 << FAST_BITS];
        let mut slow = [(0, 0); 17];
        let (mut code, mut index) = (0u32, 0i32);
        for length in 1..=16u32 {
            let count = u32::from(*counts.get(length as usize - 1)?);
            slow[length as usize] = (code + count, index - code as i32);
            for offset in 0..count {
                let symbol = *symbols.get(index as usize)?;
                if length <= FAST_BITS {
                    let first = ((code + offset) << (FAST_BITS - length)) as usize;
                    let entries = fast.get_mut(first..first + (1 << (FAST_BITS - length)))?;
                    entries.fill((length as u8, symbol));
                }
                index += 1;
            }
            code += count;
            if code > 1 << length {
                return None;
            }
            code <<= 1;
        }
        Some(Self {
            fast,
            slow,
            symbols: symbols.to_vec(),
        })
    }
}

/// The bits of a scan: stuffing is taken out, a marker ends them.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            buffer: 0,
            count: 0,
        }
    }

    /// Where the data that was taken in ends.
    pub(super) fn end(&self) -> usize {
        self.at
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.push(0xff);
                    self.at += 2;
                }
                // A marker, or the end within one.
                (Some(0xff), _) | (None, _) => return,
                (Some(byte), _) => {
                    self.push(*byte);
                    self.at += 1;
                }
            }
        }
    }

    fn push(&mut self, byte: u8) {
        self.buffer = self.buffer << 8 | u64::from(byte);
        self.count += 8;
    }

    /// The next bits without taking them, zeros behind the end.
    fn peek(&mut self, bits: u32) -> u32 {
        if self.count < bits {
            self.fill();
        }
        let mask = (1u64 << bits) - 1;
        let value = if self.count >= bits {
            self.buffer >> (self.count - bits)
        } else {
            self.buffer << (bits - self.count)
        };
        (value & mask) as u32
    }

    fn take(&mut self, bits: u32) -> Result<(), Refusal> {
        if self.count < bits {
            return Err(truncated());
        }
        self.count -= bits;
        Ok(())
    }

    /// An unsigned number of up to 16 bits.
    pub(super) fn number(&mut self, bits: u32) -> Result<u32, Refusal> {
        if bits == 0 {
            return Ok(0);
        }
        let value = self.peek(bits);
        self.take(bits)?;
        Ok(value)
    }

    pub(super) fn symbol(&mut self, table: &Table) -> Result<u8, Refusal> {
        let ahead = self.peek(16);
        let (length, symbol) = table.fast[(ahead >> (16 - FAST_BITS)) as usize];
        if length > 0 {
            self.take(u32::from(length))?;
            return Ok(symbol);
        }
        for length in FAST_BITS + 1..=16 {
            let code = ahead >> (16 - length);
            let (end, offset) = table.slow[length as usize];
            if code < end {
                self.take(length)?;
                let index = usize::try_from(code as i32 + offset).map_err(|_| failed())?;
                return table.symbols.get(index).copied().ok_or_else(failed);
            }
        }
        // No code begins with these bits: beyond the end, or wrong data.
        Err(if self.count < 16 {
            truncated()
        } else {
            failed()
        })
    }

    /// A difference of a category (F.2.2.1, and 16 in H.1.2.2).
    pub(super) fn difference(&mut self, category: u8) -> Result<i32, Refusal> {
        let bits = u32::from(category);
        match bits {
            0 => Ok(0),
            1..=15 => {
                let value = self.number(bits)? as i32;
                Ok(if value < 1 << (bits - 1) {
                    value - (1 << bits) + 1
                } else {
                    value
                })
            }
            16 => Ok(32768),
            _ => Err(failed()),
        }
    }

    /// Drops the rest of the byte and steps over a restart marker.
    pub(super) fn restart(&mut self, number: u32) -> Result<(), Refusal> {
        self.count = 0;
        self.buffer = 0;
        // Fill bytes before the marker.
        while self.bytes.get(self.at..self.at + 2) == Some(&[0xff, 0xff]) {
            self.at += 1;
        }
        match self.bytes.get(self.at..self.at + 2) {
            Some([0xff, marker]) if u32::from(*marker) == 0xd0 + number % 8 => {
                self.at += 2;
                Ok(())
            }
            Some(_) => Err(failed()),
            None => Err(truncated()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes 0, 10, 110 of the symbols 5, 6, 7.
    fn table() -> Table {
        let mut counts = [0; 16];
        counts[..3].fill(1);
        Table::new(&counts, &[5, 6, 7]).unwrap()
    }

    #[test]
    fn reads_codes_and_numbers_until_the_data_ends() {
        let table = table();
        let mut bits = Bits::new(&[0b0101_1001, 0xff, 0x00, 0xff, 0xd9]);
        let symbols: Vec<u8> = (0..3).map(|_| bits.symbol(&table).unwrap()).collect();
        assert_eq!(symbols, [5, 6, 7]);
        assert_eq!(bits.number(2).unwrap(), 0b01);
        assert_eq!(bits.number(8).unwrap(), 0xff);
        assert!(bits.number(1).is_err());
        assert_eq!(bits.end(), 3);
    }

    #[test]
    fn refuses_codes_that_do_not_fit() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(Table::new(&counts, &[1, 2, 3]).is_none());
    }

    #[test]
    fn differences_have_their_sign_in_the_first_bit() {
        for (byte, category, expected) in
            [(0b0000_0000, 3, -7), (0b1110_0000, 3, 7), (0, 16, 32768)]
        {
            assert_eq!(Bits::new(&[byte]).difference(category).unwrap(), expected);
        }
    }
}
