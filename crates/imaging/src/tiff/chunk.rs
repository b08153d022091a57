//! One strip or tile: unpacked to exactly the samples that it must hold, or refused.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;
use weezl::{BitOrder, LzwStatus, decode::Decoder};

use super::tags::Packing;
use super::{Directory, Ink, Reader, malformed, truncated};
use crate::{Reason, Refusal, codec};

/// Samples of a strip or tile in rows: `width` × `height` pixels of `samples` each.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) samples: usize,
    pub(crate) values: Vec<u16>,
}

/// Unpacks the chunk in this row and column of the grid, of this plane where samples lie plane by plane.
/// The directory is one that `Directory::admit` let through.
pub(crate) fn chunk(
    reader: &Reader<'_>,
    directory: &Directory<'_>,
    (row, column): (u32, u32),
    plane: usize,
) -> Result<Chunk, Refusal> {
    let (across, down) = directory.grid();
    let at =
        plane * across as usize * down as usize + row as usize * across as usize + column as usize;
    let (offset, length) = directory
        .offsets
        .get(at)
        .zip(directory.lengths.get(at))
        .ok_or_else(malformed)?;
    let packed = reader.slice(*offset, *length)?;
    // Tiles are whole at the edge too; the last strip is only as high as what is left.
    let height = if directory.tiled {
        directory.chunk_height
    } else {
        directory
            .chunk_height
            .min(directory.height - row * directory.chunk_height)
    };
    let [width, height] = [directory.chunk_width, height].map(|side| side as usize);
    let samples = if directory.planar {
        1
    } else {
        directory.samples
    };
    let values = if directory.packing == Packing::Jpeg {
        jpeg(packed, directory, (width as u32, height as u32))?
    } else {
        let bytes_per_sample = if directory.bits == Some(16) { 2 } else { 1 };
        let bytes = unpack(
            packed,
            directory.packing,
            width * height * samples * bytes_per_sample,
        )?;
        let mut values = words(&bytes, bytes_per_sample, reader.big_endian);
        if directory.differences == Some(true) {
            let mask = if bytes_per_sample == 2 {
                u16::MAX
            } else {
                0xff
            };
            values
                .chunks_exact_mut(width * samples)
                .for_each(|row| undo_differences(row, samples, mask));
        }
        values
    };
    Ok(Chunk {
        width,
        height,
        samples,
        values,
    })
}

fn words(bytes: &[u8], bytes_per_sample: usize, big_endian: bool) -> Vec<u16> {
    if bytes_per_sample == 1 {
        return bytes.iter().map(|byte| u16::from(*byte)).collect();
    }
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    if big_endian {
        pairs.map(u16::from_be_bytes).collect()
    } else {
        pairs.map(u16::from_le_bytes).collect()
    }
}

/// Each sample was written as its difference to the same sample of the pixel before (TIFF 6.0, 14).
fn undo_differences(row: &mut [u16], samples: usize, mask: u16) {
    for at in samples..row.len() {
        row[at] = row[at].wrapping_add(row[at - samples]) & mask;
    }
}

/// `expected` bytes; fewer are refused, and more too where the packing has an end of its own.
fn unpack(packed: &[u8], packing: Packing, expected: usize) -> Result<Cow<'_, [u8]>, Refusal> {
    let failed = || Refusal::new(Reason::DecodeFailed);
    let unpacked = match packing {
        Packing::None => {
            return packed
                .get(..expected)
                .map(Cow::Borrowed)
                .ok_or_else(truncated);
        }
        Packing::Deflate => {
            let mut out = Vec::with_capacity(expected);
            // One byte more than expected, so that the stream's end and its checksum are read.
            let most = expected as u64 + 1;
            let read = ZlibDecoder::new(packed).take(most).read_to_end(&mut out);
            read.map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => truncated(),
                _ => failed(),
            })?;
            out
        }
        Packing::Lzw => lzw(packed, expected)?,
        Packing::PackBits => pack_bits(packed, expected)?,
        Packing::Jpeg | Packing::Unknown(_) => return Err(failed()),
    };
    if unpacked.len() < expected {
        return Err(truncated());
    }
    if unpacked.len() > expected {
        return Err(
            Refusal::new(Reason::PixelDataMismatch).found("more samples than the size says")
        );
    }
    Ok(Cow::Owned(unpacked))
}

/// TIFF 6.0, 13: most significant bits first, codes grow one early.
fn lzw(packed: &[u8], expected: usize) -> Result<Vec<u8>, Refusal> {
    // The order before TIFF 6.0, which this begin gives away; nobody writes it, and no file was there to check it with.
    if packed.first() == Some(&0) && packed.get(1).is_some_and(|byte| byte & 1 == 1) {
        return Err(
            Refusal::new(Reason::UnsupportedCompression).found("LZW in the order before TIFF 6.0")
        );
    }
    let mut decoder = Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
    let mut out = vec![0; expected];
    let (mut from, mut to) = (0, 0);
    while to < expected {
        let result = decoder.decode_bytes(&packed[from..], &mut out[to..]);
        from += result.consumed_in;
        to += result.consumed_out;
        match result.status {
            Ok(LzwStatus::Ok) if result.consumed_in + result.consumed_out > 0 => {}
            Ok(_) => break,
            Err(_) => return Err(Refusal::new(Reason::DecodeFailed)),
        }
    }
    out.truncate(to);
    Ok(out)
}

/// Unpacks PackBits: runs of literal and of repeated bytes (TIFF 6.0, section 9).
fn pack_bits(packed: &[u8], expected: usize) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::with_capacity(expected);
    let mut at = 0;
    while out.len() < expected {
        let head = *packed.get(at).ok_or_else(truncated)?;
        at += 1;
        match head {
            // 128 says nothing.
            128 => {}
            0..=127 => {
                let length = usize::from(head) + 1;
                out.extend_from_slice(packed.get(at..at + length).ok_or_else(truncated)?);
                at += length;
            }
            _ => {
                let byte = *packed.get(at).ok_or_else(truncated)?;
                out.extend(std::iter::repeat_n(byte, 257 - usize::from(head)));
                at += 1;
            }
        }
    }
    Ok(out)
}

/// A stream of its own, its tables possibly in the directory (TIFF technical note 2). What the photometric tag says of
/// colours counts, as in every other reader; a stream that says the contrary is refused.
fn jpeg(packed: &[u8], directory: &Directory<'_>, size: (u32, u32)) -> Result<Vec<u16>, Refusal> {
    const END: &[u8] = &[0xff, 0xd9];
    let tables = directory.jpeg_tables.and_then(|tables| {
        let end = tables.windows(2).rposition(|pair| pair == END)?;
        Some(&tables[..end])
    });
    let whole = match tables {
        // Its start-of-image marker, its tables, and then the stream without its own start.
        Some(tables) => {
            let rest = packed.strip_prefix(&[0xff, 0xd8]).ok_or_else(malformed)?;
            Cow::Owned([tables, rest].concat())
        }
        None => Cow::Borrowed(packed),
    };
    let ybr = directory.ink == Some(Ink::Ybr);
    codec::jpeg_samples(&whole, size, directory.samples, ybr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_bits_repeats_and_copies() {
        // The example of TIFF 6.0, 9.
        let packed = [
            0xfe, 0xaa, 0x02, 0x80, 0x00, 0x2a, 0xfd, 0xaa, 0x03, 0x80, 0x00, 0x2a, 0x22, 0xf7,
            0xaa,
        ];
        let expected = [
            0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0xaa, 0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0x22,
            0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
        ];
        assert_eq!(
            unpack(&packed, Packing::PackBits, 24).unwrap(),
            &expected[..]
        );
        assert_eq!(
            unpack(&packed, Packing::PackBits, 25).unwrap_err().reason,
            Reason::Truncated
        );
        assert_eq!(
            unpack(&packed, Packing::PackBits, 20).unwrap_err().reason,
            Reason::PixelDataMismatch
        );
    }

    #[test]
    fn differences_go_along_the_row_sample_by_sample() {
        let mut row = [250, 1, 10, 255];
        undo_differences(&mut row, 2, 0xff);
        assert_eq!(row, [250, 1, 4, 0]);
    }
}
