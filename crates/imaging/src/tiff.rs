//! TIFF 6.0 and BigTIFF: directories and their tags, measured against the bytes that are there before anything is allocated.
//!
//! A reader of its own, because libraries guess colours of JPEG strips, fill in for data that ends early, and allocate what
//! a tag claims. Reading order: here (directories), `tags` (one directory's meaning), `chunk` (strips and tiles),
//! `page` (a whole picture). Slides use single tiles, see `slide`.

mod chunk;
mod page;
mod tags;

pub(crate) use chunk::chunk;
pub(crate) use page::{decode, levels};
pub(crate) use tags::{Directory, Ink};

use std::cell::Cell;

use crate::{Reason, Refusal};

/// More directories than any picture or pyramid has.
const DIRECTORIES_MAX: usize = 64;
/// Entries of one directory; TIFF 6.0 and its extensions define fewer.
const ENTRIES_MAX: u64 = 512;

/// Numbers of one tag: the places of as many tiles as a slide may have.
const NUMBERS_MAX: u64 = 1 << 20;
/// Numbers of all directories of one file together.
const FILE_NUMBERS_MAX: u64 = 1 << 22;

/// Tags whose value is the place of further directories.
const SUB_DIRECTORIES: u16 = 330;

/// Whether bytes begin as a TIFF does.
pub(crate) fn is_tiff(bytes: &[u8]) -> bool {
    matches!(
        bytes.first_chunk::<4>(),
        Some(b"II*\0" | b"MM\0*" | b"II+\0" | b"MM\0+")
    )
}

pub(super) fn malformed() -> Refusal {
    Refusal::new(Reason::Malformed)
}

pub(super) fn truncated() -> Refusal {
    Refusal::new(Reason::Truncated)
}

/// The bytes of a file and how numbers lie in them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) big_endian: bool,
    /// BigTIFF: offsets and counts have 8 bytes.
    wide: bool,
}

/// A tag's value, not read yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    tag: u16,
    kind: u16,
    count: u64,
    value: &'a [u8],
    big_endian: bool,
}

/// One directory as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Entries<'a> {
    list: Vec<Entry<'a>>,
    /// Numbers that may still be read of the file: a few bytes in it can be the value of many tags.
    numbers_left: Cell<u64>,
}

impl<'a> Reader<'a> {
    /// Of a file that [`is_tiff`].
    fn new(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let big_endian = bytes.starts_with(b"MM");
        let mut reader = Self {
            bytes,
            big_endian,
            wide: false,
        };
        reader.wide = reader.u16(2)? == 43;
        // BigTIFF says how long its offsets are, and that nothing follows (its specification, "header").
        if reader.wide && (reader.u16(4)? != 8 || reader.u16(6)? != 0) {
            return Err(malformed());
        }
        Ok(reader)
    }

    /// `length` bytes at `at`.
    pub(crate) fn slice(&self, at: u64, length: u64) -> Result<&'a [u8], Refusal> {
        let end = at.checked_add(length).ok_or_else(malformed)?;
        let range = usize::try_from(at).ok().zip(usize::try_from(end).ok());
        let (start, end) = range.ok_or_else(malformed)?;
        self.bytes.get(start..end).ok_or_else(truncated)
    }

    fn u16(&self, at: u64) -> Result<u16, Refusal> {
        let bytes = self.slice(at, 2)?;
        Ok(number(bytes, self.big_endian) as u16)
    }

    fn offset(&self, at: u64) -> Result<u64, Refusal> {
        let length = if self.wide { 8 } else { 4 };
        Ok(number(self.slice(at, length)?, self.big_endian))
    }

    /// The entries at `at`, and where the next directory is; 0 for none.
    fn entries(&self, at: u64, numbers_left: u64) -> Result<(Entries<'a>, u64), Refusal> {
        let (count_bytes, entry_bytes, inline_bytes) =
            if self.wide { (8, 20, 8) } else { (2, 12, 4) };
        let count = number(self.slice(at, count_bytes)?, self.big_endian);
        if count == 0 || count > ENTRIES_MAX {
            return Err(malformed());
        }
        let first = at + count_bytes;
        let mut list = Vec::with_capacity(count as usize);
        for index in 0..count {
            let entry = first + index * entry_bytes;
            let (tag, kind) = (self.u16(entry)?, self.u16(entry + 2)?);
            let Some(size) = kind_bytes(kind) else {
                // Readers step over types that they do not know (TIFF 6.0, 2).
                continue;
            };
            let count = self.offset(entry + 4)?;
            let length = count.checked_mul(size).ok_or_else(malformed)?;
            let place = entry + 4 + inline_bytes;
            let value = if length <= inline_bytes {
                self.slice(place, length)?
            } else {
                self.slice(self.offset(place)?, length)?
            };
            list.push(Entry {
                tag,
                kind,
                count,
                value,
                big_endian: self.big_endian,
            });
        }
        let next = self.offset(first + count * entry_bytes)?;
        let numbers_left = Cell::new(numbers_left);
        Ok((Entries { list, numbers_left }, next))
    }
}

/// Bytes of one value of a type (TIFF 6.0, 2; BigTIFF).
fn kind_bytes(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16..=18 => Some(8),
        _ => None,
    }
}

/// A whole number of up to 8 bytes.
fn number(bytes: &[u8], big_endian: bool) -> u64 {
    let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    if big_endian {
        bytes.iter().fold(0, join)
    } else {
        bytes.iter().rev().fold(0, join)
    }
}

impl<'a> Entries<'a> {
    fn entry(&self, tag: u16) -> Option<&Entry<'a>> {
        self.list.iter().find(|entry| entry.tag == tag)
    }

    /// The whole numbers of a tag; `None` if it is not there.
    pub(crate) fn numbers(&self, tag: u16) -> Result<Option<Vec<u64>>, Refusal> {
        let Some(entry) = self.entry(tag) else {
            return Ok(None);
        };
        if !matches!(entry.kind, 1 | 3 | 4 | 13 | 16 | 18) {
            return Err(malformed());
        }
        let left = self.numbers_left.get().checked_sub(entry.count);
        let left = left.filter(|_| entry.count <= NUMBERS_MAX).ok_or_else(|| {
            Refusal::new(Reason::TooManyPixels)
                .found(format_args!("{} numbers in a tag", entry.count))
        })?;
        self.numbers_left.set(left);
        let size = entry.value.len() / entry.count.max(1) as usize;
        let values = entry.value.chunks_exact(size.max(1));
        Ok(Some(values.map(|v| number(v, entry.big_endian)).collect()))
    }

    pub(crate) fn has(&self, tag: u16) -> bool {
        self.entry(tag).is_some()
    }

    /// The single whole number of a tag.
    pub(crate) fn number(&self, tag: u16) -> Result<Option<u64>, Refusal> {
        if self.entry(tag).is_some_and(|entry| entry.count != 1) {
            return Err(malformed());
        }
        match self.numbers(tag)?.as_deref() {
            None => Ok(None),
            Some([one]) => Ok(Some(*one)),
            Some(_) => Err(malformed()),
        }
    }

    /// The fraction of a tag; `None` if it is not there or not written as one.
    pub(crate) fn ratio(&self, tag: u16) -> Option<f64> {
        let entry = self
            .entry(tag)
            .filter(|entry| (entry.kind, entry.count) == (5, 1))?;
        let (above, below) = entry.value.split_at_checked(4)?;
        let [above, below] = [above, below].map(|part| number(part, entry.big_endian) as f64);
        (below > 0.0).then_some(above / below)
    }

    /// The bytes of a tag, whatever its type.
    pub(crate) fn bytes(&self, tag: u16) -> Option<&'a [u8]> {
        self.entry(tag).map(|entry| entry.value)
    }
}

/// Every directory: the chain in its order, each followed by the ones that it says are its own.
pub(crate) fn directories(bytes: &[u8]) -> Result<(Reader<'_>, Vec<Directory<'_>>), Refusal> {
    let reader = Reader::new(bytes)?;
    let mut at = reader.offset(if reader.wide { 8 } else { 4 })?;
    let mut found = Vec::new();
    let mut numbers_left = FILE_NUMBERS_MAX;
    while at != 0 {
        let (entries, next) = reader.entries(at, numbers_left)?;
        let within = entries.numbers(SUB_DIRECTORIES)?.unwrap_or_default();
        found.push(Directory::read(&entries)?);
        numbers_left = entries.numbers_left.get();
        for sub in within {
            if found.len() >= DIRECTORIES_MAX {
                return Err(malformed());
            }
            let (entries, _) = reader.entries(sub, numbers_left)?;
            found.push(Directory::read(&entries)?);
            numbers_left = entries.numbers_left.get();
        }
        // Also what a chain that bites its own tail comes to.
        if found.len() >= DIRECTORIES_MAX {
            return Err(
                Refusal::new(Reason::MultiFrameNotSupportedYet).found("more than 63 directories")
            );
        }
        at = next;
    }
    if found.is_empty() {
        return Err(malformed());
    }
    Ok((reader, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        // One directory whose next is itself.
        let mut bytes = b"II*\0\x08\0\0\0\x02\0".to_vec();
        for tag in [256_u16, 257] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(b"\x03\0\x01\0\0\0\x02\0\0\0");
        }
        bytes.extend(8_u32.to_le_bytes());
        assert_eq!(
            directories(&bytes).unwrap_err().reason,
            Reason::MultiFrameNotSupportedYet
        );
    }

    #[test]
    fn counts_beyond_the_file_are_refused() {
        let mut bytes = b"II*\0\x08\0\0\0\x01\0".to_vec();
        bytes.extend(b"\x11\x01\x04\0\xff\xff\xff\xff\x00\0\0\0\0\0\0\0");
        assert_eq!(directories(&bytes).unwrap_err().reason, Reason::Truncated);
        assert_eq!(directories(b"II*\0").unwrap_err().reason, Reason::Truncated);
    }

    #[test]
    fn numbers_are_counted_before_they_are_read() {
        let read = |count: u32, left: u64| {
            // Strip offsets of 16 bits, behind one directory of this entry.
            let mut bytes = b"II*\0\x08\0\0\0\x01\0\x11\x01\x03\0".to_vec();
            bytes.extend(count.to_le_bytes());
            bytes.extend(26_u32.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.resize(26 + count as usize * 2, 0);
            let reader = Reader::new(&bytes).unwrap();
            let (entries, _) = reader.entries(8, left).unwrap();
            let numbers = entries.numbers(273).map_err(|refusal| refusal.reason);
            (
                numbers.map(|n| n.unwrap().len()),
                entries.numbers_left.get(),
            )
        };
        assert_eq!(read(1 << 20, 1 << 22), (Ok(1 << 20), 3 << 20));
        let refused = Err(Reason::TooManyPixels);
        assert_eq!(read((1 << 20) + 1, 1 << 22), (refused, 1 << 22));
        assert_eq!(read(4, 3), (refused, 3));
    }

    #[test]
    fn numbers_follow_the_byte_order() {
        assert_eq!(number(&[1, 2], true), 0x0102);
        assert_eq!(number(&[1, 2, 0, 0, 0, 0, 0, 0], false), 0x0201);
    }
}
