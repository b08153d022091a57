//! RLE Lossless (DICOM PS3.5 annex G): one segment for each byte of a cell, most significant first, packed with PackBits.

use dicom_dictionary_std::tags;

use super::mismatch;
use crate::admission::Image;
use crate::{Reason, Refusal};

const HEADER_BYTES: usize = 64;

pub(super) fn decode(fragments: &[&[u8]], image: &Image) -> Result<Vec<u32>, Refusal> {
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
    let samples = image.samples as usize;
    let bytes_a_cell = usize::from(image.cell.bits_allocated / 8);
    if segments != samples * bytes_a_cell {
        return Err(mismatch(format_args!("{segments} segments")));
    }
    let starts: Vec<usize> = words.take(segments).collect();
    let mut cells = vec![0u32; image.values()];
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(fragment.len());
        if *start < HEADER_BYTES || start > &end {
            return Err(refuse(Reason::Malformed));
        }
        let packed = fragment
            .get(*start..end)
            .ok_or_else(|| refuse(Reason::Truncated))?;
        // Segments go by sample, then by byte (G.2).
        let first = index / bytes_a_cell;
        unpack(packed, &mut cells[first..], samples).ok_or_else(|| refuse(Reason::Truncated))?;
    }
    Ok(cells)
}

/// Shifts one unpacked byte into every `step`th cell. `None` if the segment has fewer bytes than there are cells.
fn unpack(packed: &[u8], cells: &mut [u32], step: usize) -> Option<()> {
    let mut rest = packed;
    let mut next = 0;
    let last = cells.len().div_ceil(step);
    while next < last {
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
        for offset in 0..count.min(last - next) {
            let byte = bytes[if repeats { 0 } else { offset }];
            let cell = &mut cells[(next + offset) * step];
            *cell = *cell << 8 | u32::from(byte);
        }
        next += count;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::unpack;

    #[track_caller]
    fn check(packed: &[u8], cells: usize, expected: Option<&[u32]>) {
        let mut out = vec![0; cells];
        let result = unpack(packed, &mut out, 1).map(|()| out);
        assert_eq!(result.as_deref(), expected);
    }

    #[test]
    fn unpacks_literals_runs_and_no_operations() {
        check(&[2, 1, 2, 3], 3, Some(&[1, 2, 3]));
        check(&[0xfe, 7], 3, Some(&[7, 7, 7]));
        check(&[128, 0, 9, 0xff, 8], 3, Some(&[9, 8, 8]));
    }

    #[test]
    fn leaves_the_cells_of_other_samples_alone() {
        let mut cells = [1, 1, 1, 1, 1];
        unpack(&[0xfe, 7], &mut cells, 2).unwrap();
        assert_eq!(cells, [0x107, 1, 0x107, 1, 0x107]);
    }

    #[test]
    fn refuses_segments_that_end_early() {
        check(&[2, 1, 2], 3, None);
        check(&[0, 1], 3, None);
        check(&[], 1, None);
    }
}
