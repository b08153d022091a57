//! RLE Lossless (DICOM PS3.5 annex G): one segment for each byte of a cell, most significant first, packed with PackBits.

use dicom_dictionary_std::tags;

use super::{Shape, mismatch};
use crate::{Reason, Refusal};

const HEADER_BYTES: usize = 64;

pub(super) fn decode(fragments: &[&[u8]], shape: Shape) -> Result<Vec<u16>, Refusal> {
    let refuse = |reason| Refusal::at(reason, tags::PIXEL_DATA);
    // One frame is exactly one fragment (A.4.2).
    let [fragment] = fragments else {
        return Err(mismatch(format_args!("{} fragments", fragments.len())));
    };
    let header = fragment
        .get(..HEADER_BYTES)
        .ok_or_else(|| refuse(Reason::Truncated))?;
    let mut words = header
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize);
    let segments = words.next().unwrap_or(0);
    if segments != usize::from(shape.cell.bits_allocated / 8) {
        return Err(mismatch(format_args!("{segments} segments")));
    }
    let starts: Vec<usize> = words.take(segments).collect();
    let mut cells = vec![0u16; shape.pixels()];
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(fragment.len());
        if *start < HEADER_BYTES || start > &end {
            return Err(refuse(Reason::Malformed));
        }
        let packed = fragment
            .get(*start..end)
            .ok_or_else(|| refuse(Reason::Truncated))?;
        unpack(packed, &mut cells).ok_or_else(|| refuse(Reason::Truncated))?;
    }
    Ok(cells)
}

/// Shifts one unpacked byte into every cell. `None` if the segment has fewer bytes than there are cells.
fn unpack(packed: &[u8], cells: &mut [u16]) -> Option<()> {
    let mut rest = packed;
    let mut next = 0;
    while next < cells.len() {
        let (&control, tail) = rest.split_first()?;
        rest = tail;
        let (count, repeats) = match control {
            0..=127 => (usize::from(control) + 1, false),
            128 => continue,
            129..=255 => (257 - usize::from(control), true),
        };
        let used = if repeats { 1 } else { count };
        let bytes = rest.get(..used)?;
        rest = &rest[used..];
        // A run may reach beyond the last cell only as padding to an even length.
        for offset in 0..count.min(cells.len() - next) {
            let byte = bytes[if repeats { 0 } else { offset }];
            cells[next + offset] = cells[next + offset] << 8 | u16::from(byte);
        }
        next += count;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::unpack;

    #[track_caller]
    fn check(packed: &[u8], cells: usize, expected: Option<&[u16]>) {
        let mut out = vec![0; cells];
        let result = unpack(packed, &mut out).map(|()| out);
        assert_eq!(result.as_deref(), expected);
    }

    #[test]
    fn unpacks_literals_runs_and_no_operations() {
        check(&[2, 1, 2, 3], 3, Some(&[1, 2, 3]));
        check(&[0xfe, 7], 3, Some(&[7, 7, 7]));
        check(&[128, 0, 9, 0xff, 8], 3, Some(&[9, 8, 8]));
    }

    #[test]
    fn refuses_segments_that_end_early() {
        check(&[2, 1, 2], 3, None);
        check(&[0, 1], 3, None);
        check(&[], 1, None);
    }
}
