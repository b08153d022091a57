//! Studies that come as one file: tar, zip, and either of a tar or a single file packed with gzip.
//! One member is in memory at a time, also of what is packed twice; every size is limited before it is allocated, and names
//! are only ever shown: nothing is written under them, so that no name can lead anywhere.

use std::io::{self, ErrorKind, Read};

use flate2::Crc;
use flate2::read::{DeflateDecoder, MultiGzDecoder};

use crate::{Limits, Reason, Refusal};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const ZIP_EMPTY: &[u8] = b"PK\x05\x06";
const ZIP_ENTRY: &[u8] = b"PK\x01\x02";
/// What may stand between the last entry and the end record (APPNOTE 4.3.6).
const ZIP64_END: &[u8] = b"PK\x06\x06";
const ZIP_SIGNATURE: &[u8] = b"PK\x05\x05";
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
/// A broken, encrypted or otherwise packed archive, every limit, and when nobody waits for its files any more; members before
/// the fault have been handed over.
pub fn members(bytes: &[u8], limits: &Limits, each: &mut dyn FnMut(Member)) -> Result<(), Refusal> {
    steps(bytes, limits, &mut |step| {
        if let Step::File(member) = step {
            each(member);
        }
    })
}

/// Bytes of the largest file of an archive, as the archive says before anything is unpacked, 0 where it says nothing: of a packed
/// tar it says the first, and of gzip members one after the other the last. It may lie, but never beyond what the limits let pass.
pub fn largest_member(bytes: &[u8], limits: &Limits) -> u64 {
    let budget = Budget {
        limits,
        entries: 0,
        bytes: 0,
        packed: bytes.len() as u64,
    };
    let said = match Archive::of(bytes) {
        Some(Archive::Tar) => largest_of_tar(bytes, limits).min(budget.packed),
        Some(Archive::Zip) => largest_of_zip(bytes, limits),
        Some(Archive::Gzip) => size_of_gzip(bytes),
        None => 0,
    };
    said.min(budget.left())
}

fn largest_of_tar(bytes: &[u8], limits: &Limits) -> u64 {
    let (mut at, mut largest) = (0_usize, 0);
    for _ in 0..limits.archive_entries_max {
        let header = bytes.get(at..at.saturating_add(TAR_BLOCK_BYTES));
        let Some(size) = header.and_then(|header| octal(&header[124..136])) else {
            break;
        };
        largest = size.max(largest);
        let blocks = size.div_ceil(TAR_BLOCK_BYTES as u64).saturating_add(1);
        let next = usize::try_from(blocks.saturating_mul(TAR_BLOCK_BYTES as u64));
        at = at.saturating_add(next.unwrap_or(usize::MAX));
    }
    largest
}

fn largest_of_zip(bytes: &[u8], limits: &Limits) -> u64 {
    let Ok(directory) = Directory::find(bytes) else {
        return 0;
    };
    let (mut at, mut largest) = (directory.start, 0);
    for _ in 0..u32::from(directory.entries).min(limits.archive_entries_max) {
        let Ok(entry) = Entry::read(bytes, at) else {
            break;
        };
        if !is_hidden(&entry.name) {
            largest = largest.max(entry.size as u64);
        }
        at = entry.next;
    }
    largest
}

/// What a gzip stream ends with (RFC 1952, 2.3.1: ISIZE), or the first file of the tar in it.
fn size_of_gzip(bytes: &[u8]) -> u64 {
    let mut head = [0; TAR_BLOCK_BYTES];
    let is_whole = MultiGzDecoder::new(bytes).read_exact(&mut head).is_ok();
    if is_whole && Archive::of(&head) == Some(Archive::Tar) {
        return octal(&head[124..136]).unwrap_or(0);
    }
    let size = bytes.len().checked_sub(4).map(|at| u32_at(bytes, at));
    size.and_then(Result::ok).map_or(0, u64::from)
}

/// What happens to a file of an archive.
pub(crate) enum Step {
    /// So many bytes are unpacked next, as the archive says; never more, though perhaps less. Not said of the only file.
    Comes(u64),
    /// The file, unpacked.
    File(Member),
}

/// As [`members`], with a word before each file is unpacked.
pub(crate) fn steps(
    bytes: &[u8],
    limits: &Limits,
    each: &mut dyn FnMut(Step),
) -> Result<(), Refusal> {
    let mut budget = Budget {
        limits,
        entries: 0,
        bytes: 0,
        packed: bytes.len() as u64,
    };
    match Archive::of(bytes) {
        Some(Archive::Tar) => tar(&mut &*bytes, &mut budget, each),
        Some(Archive::Zip) => zip(bytes, &mut budget, each),
        Some(Archive::Gzip) => gzip(bytes, &mut budget, each),
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
        self.limits.codestreams.check_wanted()?;
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

    /// A member, as long as it is.
    fn unpack(&mut self, reader: impl Read) -> Result<Vec<u8>, Refusal> {
        let out = unpack(reader, self.left(), self.limits)?;
        self.bytes += out.len() as u64;
        Ok(out)
    }
}

/// At most this many bytes, all of them in memory.
pub(crate) fn unpack(
    reader: impl Read,
    bytes_max: u64,
    limits: &Limits,
) -> Result<Vec<u8>, Refusal> {
    let most = bytes_max.min(limits.unpacked_bytes_max);
    let mut out = Vec::new();
    reader
        .take(most.saturating_add(1))
        .read_to_end(&mut out)
        .map_err(|error| broken(&error))?;
    if out.len() as u64 > most {
        let reason = if most < bytes_max {
            Reason::UnpackedTooLarge
        } else {
            Reason::CompressionRatio
        };
        return Err(Refusal::new(reason).found(format_args!("more than {most} bytes")));
    }
    Ok(out)
}

/// What a fault of reading says about the archive.
fn broken(error: &io::Error) -> Refusal {
    Refusal::new(match error.kind() {
        ErrorKind::UnexpectedEof => Reason::Truncated,
        ErrorKind::FileTooLarge => Reason::CompressionRatio,
        _ => Reason::DecodeFailed,
    })
}

/// A stream that must not be longer than this many bytes.
struct AtMost<R> {
    stream: R,
    left: u64,
}

impl<R: Read> Read for AtMost<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(into)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::from(ErrorKind::FileTooLarge))?;
        Ok(read)
    }
}

/// A tar, or one file without a name.
fn gzip(bytes: &[u8], budget: &mut Budget<'_>, each: &mut dyn FnMut(Step)) -> Result<(), Refusal> {
    let limits = budget.limits;
    // A tar is longer than its files, by two blocks each at most and as many at its end as its writer likes.
    let of_tar = 2 * TAR_BLOCK_BYTES as u64 * (u64::from(limits.archive_entries_max) + 2);
    let by_ratio = (bytes.len() as u64).saturating_mul(limits.compression_ratio_max.into());
    let most = limits
        .archive_bytes_max
        .saturating_add(of_tar)
        .min(by_ratio);
    let mut stream = AtMost {
        // Members one after the other are one file (RFC 1952, 2.2), as programs write it that pack in parallel.
        stream: MultiGzDecoder::new(bytes),
        left: most,
    };
    let mut head = Vec::new();
    (&mut stream)
        .take(TAR_BLOCK_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|error| broken(&error))?;
    let mut stream = head.as_slice().chain(stream);
    if Archive::of(&head) == Some(Archive::Tar) {
        tar(&mut stream, budget, each)?;
        // The checksum of all of it comes last.
        io::copy(&mut stream, &mut io::sink()).map_err(|error| broken(&error))?;
    } else {
        budget.entry()?;
        let (name, bytes) = (String::new(), budget.unpack(stream)?);
        each(Step::File(Member { name, bytes }));
    }
    Ok(())
}

/// Whether a person would not see it, or it is the half of a file that some systems add.
fn is_hidden(name: &str) -> bool {
    name.split('/')
        .any(|part| part.starts_with('.') && part != "." && part != ".." || part == "__MACOSX")
}

fn tar(
    stream: &mut dyn Read,
    budget: &mut Budget<'_>,
    each: &mut dyn FnMut(Step),
) -> Result<(), Refusal> {
    loop {
        let mut header = [0; TAR_BLOCK_BYTES];
        stream
            .read_exact(&mut header)
            .map_err(|error| broken(&error))?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        budget.entry()?;
        let malformed = || Refusal::new(Reason::Malformed);
        // A sparse file of GNU tar is a file like any other, with its zeros left out.
        if header[156] == b'S' {
            return Err(malformed().found("a sparse file"));
        }
        let size = octal(&header[124..136]).ok_or_else(malformed)?;
        let text = |field: &[u8]| {
            let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let name = text(&header[..100]);
        let padding = size.wrapping_neg() % TAR_BLOCK_BYTES as u64;
        // '0' and NUL are files, and '7' is one for who knows no other kind (POSIX.1, ustar); links, folders and extended headers
        // hold no image.
        if matches!(header[156], b'0' | b'7' | 0) && !is_hidden(&name) {
            each(Step::Comes(size));
            let bytes = budget.unpack(Read::take(&mut *stream, size))?;
            if bytes.len() as u64 != size {
                return Err(Refusal::new(Reason::Truncated));
            }
            each(Step::File(Member { name, bytes }));
        } else if pass(&mut *stream, size)? != size {
            return Err(Refusal::new(Reason::Truncated));
        }
        // The last one's may be left out; then the end is missing too, and the next header.
        pass(&mut *stream, padding)?;
    }
}

/// Reads over so many bytes, or to the end; how many there were.
fn pass(stream: &mut dyn Read, bytes: u64) -> Result<u64, Refusal> {
    io::copy(&mut Read::take(stream, bytes), &mut io::sink()).map_err(|error| broken(&error))
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c: char| c == '\0' || c == ' ');
    u64::from_str_radix(text, 8).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Refusal> {
    match bytes.get(at..at + 2) {
        Some(&[low, high]) => Ok(u16::from_le_bytes([low, high])),
        _ => Err(Refusal::new(Reason::Truncated)),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Refusal> {
    let (low, high) = (u16_at(bytes, at)?, u16_at(bytes, at + 2)?);
    Ok(u32::from(low) | u32::from(high) << 16)
}

/// What the central directory says about a member.
struct Entry {
    name: String,
    flags: u16,
    method: u16,
    /// CRC-32 of the content.
    checksum: u32,
    packed: usize,
    size: usize,
    /// Where its local header is.
    local: usize,
    /// Where the next entry is.
    next: usize,
}

impl Entry {
    fn read(bytes: &[u8], at: usize) -> Result<Self, Refusal> {
        const NAME_AT: usize = 46;
        if bytes.get(at..at + 4) != Some(ZIP_ENTRY) {
            return Err(Refusal::new(Reason::Malformed));
        }
        let short = |field: usize| u16_at(bytes, at + field);
        let long = |field: usize| u32_at(bytes, at + field);
        let name_end = at + NAME_AT + usize::from(short(28)?);
        let name = bytes
            .get(at + NAME_AT..name_end)
            .ok_or_else(|| Refusal::new(Reason::Truncated))?;
        Ok(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            flags: short(8)?,
            method: short(10)?,
            checksum: long(16)?,
            packed: long(20)? as usize,
            size: long(24)? as usize,
            local: long(42)? as usize,
            next: name_end + usize::from(short(30)?) + usize::from(short(32)?),
        })
    }

    fn unpack(&self, bytes: &[u8], budget: &mut Budget<'_>) -> Result<Vec<u8>, Refusal> {
        let is_encrypted = self.flags & 1 != 0;
        if is_encrypted || bytes.get(self.local..self.local + 4) != Some(ZIP_MAGIC) {
            return Err(Refusal::new(Reason::Malformed));
        }
        let name = usize::from(u16_at(bytes, self.local + 26)?);
        let extra = usize::from(u16_at(bytes, self.local + 28)?);
        let data = self.local + 30 + name + extra;
        let data = bytes
            .get(data..data + self.packed)
            .ok_or_else(|| Refusal::new(Reason::Truncated))?;
        // One more than it says is enough to know that it lies.
        let most = self.size as u64 + 1;
        let content = match self.method {
            0 => budget.unpack(data.take(most))?,
            8 => budget.unpack(DeflateDecoder::new(data).take(most))?,
            _ => return Err(Refusal::new(Reason::Malformed)),
        };
        // A flipped bit may unpack without an error, and be a picture all the same.
        let mut checksum = Crc::new();
        checksum.update(&content);
        if content.len() != self.size || checksum.sum() != self.checksum {
            return Err(Refusal::new(Reason::DecodeFailed)
                .found("a file of the archive that contradicts its checksum or length"));
        }
        Ok(content)
    }
}

/// Where the central directory of a zip is.
struct Directory {
    entries: u16,
    start: usize,
    /// Where the end record is.
    end: usize,
}

impl Directory {
    fn find(bytes: &[u8]) -> Result<Self, Refusal> {
        const END_BYTES: usize = 22;
        const COMMENT_MAX: usize = 65_535;
        let from = bytes.len().saturating_sub(END_BYTES + COMMENT_MAX);
        let end = bytes[from..]
            .windows(4)
            .rposition(|four| four == ZIP_EMPTY)
            .map(|at| from + at)
            .ok_or_else(|| Refusal::new(Reason::Truncated))?;
        let (entries, start) = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 16)?);
        // 0xffff and 0xffffffff mean that the numbers are elsewhere: archives beyond 4 GiB, which no limit lets in.
        if entries == u16::MAX || start == u32::MAX {
            return Err(Refusal::new(Reason::Malformed));
        }
        Ok(Self {
            entries,
            start: start as usize,
            end,
        })
    }
}

/// The central directory is what counts (APPNOTE 4.3.12): it alone has the sizes of streamed members.
fn zip(bytes: &[u8], budget: &mut Budget<'_>, each: &mut dyn FnMut(Step)) -> Result<(), Refusal> {
    let Directory {
        entries,
        start: mut at,
        end,
    } = Directory::find(bytes)?;
    for _ in 0..entries {
        let entry = Entry::read(bytes, at)?;
        budget.entry()?;
        at = entry.next;
        if entry.name.ends_with('/') || is_hidden(&entry.name) {
            continue;
        }
        each(Step::Comes(entry.size as u64));
        let bytes = entry.unpack(bytes, budget)?;
        each(Step::File(Member {
            name: entry.name,
            bytes,
        }));
    }
    // The count has 16 bits: an archive of 65,537 files says one, and the study would be short of the others.
    let after = bytes.get(at..at + 4).unwrap_or_default();
    if at != end && after != ZIP64_END && after != ZIP_SIGNATURE {
        return Err(
            Refusal::new(Reason::Malformed).found("a list of files that goes beyond its count")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
