//! Studies that come as one file: tar, zip, and either of a tar or a single file packed with gzip.
//! One member is in memory at a time, every size is limited before it is allocated, and names are only ever shown: nothing is
//! written under them, so that no name can lead anywhere.

use std::io::{Cursor, Read};

use flate2::read::{DeflateDecoder, GzDecoder};

use crate::{Limits, Reason, Refusal};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const ZIP_EMPTY: &[u8] = b"PK\x05\x06";
const TAR_BLOCK_BYTES: usize = 512;
/// Where a tar header says "ustar" (POSIX.1-1988).
const TAR_MAGIC_AT: usize = 257;

/// The kinds of archive that are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// Tape archive, ustar or later.
    Tar,
    /// Zip, stored or deflated.
    Zip,
    /// A gzip stream.
    Gzip,
}

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As the archive says, for a person to read.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Archive {
    /// The kind of archive, by its first bytes; `None` for anything else.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(GZIP_MAGIC) {
            Some(Self::Gzip)
        } else if bytes.starts_with(ZIP_MAGIC) || bytes.starts_with(ZIP_EMPTY) {
            Some(Self::Zip)
        } else if bytes.get(TAR_MAGIC_AT..TAR_MAGIC_AT + 5) == Some(b"ustar") {
            Some(Self::Tar)
        } else {
            None
        }
    }
}

/// Hands every file of an archive to `each`, in the archive's order. Folders, links and hidden files are stepped over.
///
/// # Errors
/// A broken, encrypted or otherwise packed archive, and every limit; members before the fault have been handed over.
pub fn members(bytes: &[u8], limits: &Limits, each: &mut dyn FnMut(Member)) -> Result<(), Refusal> {
    let mut budget = Budget {
        limits,
        entries: 0,
        bytes: 0,
        packed: bytes.len() as u64,
    };
    match Archive::of(bytes) {
        Some(Archive::Tar) => tar(bytes, &mut budget, each),
        Some(Archive::Zip) => zip(bytes, &mut budget, each),
        Some(Archive::Gzip) => {
            let unpacked = budget.unpack(GzDecoder::new(Cursor::new(bytes)))?;
            if Archive::of(&unpacked) == Some(Archive::Tar) {
                // Its members are parts of what was counted.
                budget.bytes = 0;
                tar(&unpacked, &mut budget, each)
            } else {
                budget.entry()?;
                let name = String::new();
                each(Member {
                    name,
                    bytes: unpacked,
                });
                Ok(())
            }
        }
        None => Err(Refusal::new(Reason::NotAnImage)),
    }
}

/// What an archive has used of its limits.
struct Budget<'a> {
    limits: &'a Limits,
    entries: u32,
    bytes: u64,
    packed: u64,
}

impl Budget<'_> {
    fn entry(&mut self) -> Result<(), Refusal> {
        self.entries += 1;
        if self.entries > self.limits.archive_entries_max {
            return Err(Refusal::new(Reason::TooManyFiles).found(format_args!(
                "more than {}",
                self.limits.archive_entries_max
            )));
        }
        Ok(())
    }

    /// Bytes that may still be unpacked: by the size of a file, of the archive, and by the ratio.
    fn left(&self) -> u64 {
        let ratio = u64::from(self.limits.compression_ratio_max);
        let by_ratio = self.packed.saturating_mul(ratio);
        let most = self.limits.archive_bytes_max.min(by_ratio);
        self.limits
            .file_bytes_max
            .min(most.saturating_sub(self.bytes))
    }

    fn unpack(&mut self, reader: impl Read) -> Result<Vec<u8>, Refusal> {
        let most = self.left();
        let mut out = Vec::new();
        reader
            .take(most.saturating_add(1))
            .read_to_end(&mut out)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Refusal::new(Reason::Truncated),
                _ => Refusal::new(Reason::DecodeFailed),
            })?;
        if out.len() as u64 > most {
            return Err(Refusal::new(Reason::CompressionRatio)
                .found(format_args!("more than {most} bytes")));
        }
        self.bytes += out.len() as u64;
        Ok(out)
    }
}

/// Whether a person would not see it, or it is the half of a file that some systems add.
fn is_hidden(name: &str) -> bool {
    name.split('/')
        .any(|part| part.starts_with('.') && part != "." && part != ".." || part == "__MACOSX")
}

fn tar(bytes: &[u8], budget: &mut Budget<'_>, each: &mut dyn FnMut(Member)) -> Result<(), Refusal> {
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + TAR_BLOCK_BYTES) {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        budget.entry()?;
        let malformed = || Refusal::new(Reason::Malformed);
        let size = octal(&header[124..136]).ok_or_else(malformed)?;
        let size = usize::try_from(size).map_err(|_| malformed())?;
        at += TAR_BLOCK_BYTES;
        let end = at.checked_add(size).ok_or_else(malformed)?;
        let content = bytes
            .get(at..end)
            .ok_or_else(|| Refusal::new(Reason::Truncated))?;
        at = end.next_multiple_of(TAR_BLOCK_BYTES);
        // '0' and NUL are files; links, folders and extended headers hold no image.
        if !matches!(header[156], b'0' | 0) {
            continue;
        }
        let text = |field: &[u8]| {
            let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let name = text(&header[..100]);
        if !is_hidden(&name) {
            let bytes = budget.unpack(content)?;
            each(Member { name, bytes });
        }
    }
    Err(Refusal::new(Reason::Truncated))
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c: char| c == '\0' || c == ' ');
    u64::from_str_radix(text, 8).ok()
}

/// The central directory is what counts (APPNOTE 4.3.12): it alone has the sizes of streamed members.
fn zip(bytes: &[u8], budget: &mut Budget<'_>, each: &mut dyn FnMut(Member)) -> Result<(), Refusal> {
    const END_BYTES: usize = 22;
    const COMMENT_MAX: usize = 65_535;
    let malformed = || Refusal::new(Reason::Malformed);
    let truncated = || Refusal::new(Reason::Truncated);
    let from = bytes.len().saturating_sub(END_BYTES + COMMENT_MAX);
    let end = bytes[from..]
        .windows(4)
        .rposition(|four| four == ZIP_EMPTY)
        .map(|at| from + at)
        .ok_or_else(truncated)?;
    let u16_at = |at: usize| {
        let pair = bytes.get(at..at + 2).ok_or_else(truncated)?;
        Ok::<_, Refusal>(u16::from_le_bytes([pair[0], pair[1]]))
    };
    let u32_at =
        |at: usize| Ok::<_, Refusal>(usize::from(u16_at(at)?) | usize::from(u16_at(at + 2)?) << 16);
    let (entries, mut at) = (u16_at(end + 10)?, u32_at(end + 16)?);
    // 0xffff and 0xffffffff mean that the numbers are elsewhere: archives beyond 4 GiB, which no limit lets in.
    if entries == u16::MAX || at == 0xffff_ffff {
        return Err(malformed());
    }
    for _ in 0..entries {
        if bytes.get(at..at + 4) != Some(b"PK\x01\x02") {
            return Err(malformed());
        }
        budget.entry()?;
        let (flags, method) = (u16_at(at + 8)?, u16_at(at + 10)?);
        let (packed, name_bytes) = (u32_at(at + 20)?, usize::from(u16_at(at + 28)?));
        let rest = usize::from(u16_at(at + 30)?) + usize::from(u16_at(at + 32)?);
        let local = u32_at(at + 42)?;
        let name = bytes
            .get(at + 46..at + 46 + name_bytes)
            .ok_or_else(truncated)?;
        let name = String::from_utf8_lossy(name).into_owned();
        at += 46 + name_bytes + rest;
        if name.ends_with('/') || is_hidden(&name) {
            continue;
        }
        // Encrypted.
        if flags & 1 != 0 {
            return Err(malformed());
        }
        if bytes.get(local..local + 4) != Some(ZIP_MAGIC) {
            return Err(malformed());
        }
        let data = local + 30 + usize::from(u16_at(local + 26)?) + usize::from(u16_at(local + 28)?);
        let data = bytes.get(data..data + packed).ok_or_else(truncated)?;
        let bytes = match method {
            0 => budget.unpack(data)?,
            8 => budget.unpack(DeflateDecoder::new(data))?,
            _ => return Err(malformed()),
        };
        each(Member { name, bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
