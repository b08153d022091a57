//! Uncompressed pixel data (DICOM PS3.5 8.1 and PS3.3 C.7.6.3.1): 1, 8, 16 and 32 bits, both byte orders, interleaved, by
//! plane, or with chrominance at half the width.

use crate::Photometric;
use crate::admission::Image;

/// The cells of a frame. Admission has compared the length of `value` with what the header implies.
pub(super) fn decode(value: &[u8], image: &Image, index: usize) -> Vec<u32> {
    let values = image.values();
    // In big endian, bytes written as OW come in swapped pairs (PS3.5 8.1.1); as OB they do not.
    let swapped = image.big_endian && image.word_swapped;
    let byte = |at: usize| {
        let paired = value.get(if swapped { at ^ 1 } else { at });
        u32::from(*paired.unwrap_or(&value[at]))
    };
    if image.cell.bits_allocated == 1 {
        // Frames follow each other without padding, least significant bit first (PS3.5 8.1.1).
        let first = index * values;
        return (first..first + values)
            .map(|at| byte(at / 8) >> (at % 8) & 1)
            .collect();
    }
    let bytes_per_frame = image.stored_values() * usize::from(image.cell.bits_allocated / 8);
    let range = index * bytes_per_frame..(index + 1) * bytes_per_frame;
    let cells = if image.cell.bits_allocated == 8 && swapped {
        range.map(byte).collect()
    } else {
        cells(&value[range], image)
    };
    if image.photometric == Photometric::YbrFull422 {
        return cells
            .chunks_exact(4)
            .flat_map(|pair| [pair[0], pair[2], pair[3], pair[1], pair[2], pair[3]])
            .collect();
    }
    if !image.planar {
        return cells;
    }
    let plane = cells.len() / image.samples as usize;
    (0..plane)
        .flat_map(|at| {
            let cells = &cells;
            (0..image.samples as usize).map(move |sample| cells[sample * plane + at])
        })
        .collect()
}

fn cells(frame: &[u8], image: &Image) -> Vec<u32> {
    match (image.cell.bits_allocated, image.big_endian) {
        (8, _) => frame.iter().map(|byte| u32::from(*byte)).collect(),
        (16, big) => frame
            .chunks_exact(2)
            .map(|b| {
                let pair = [b[0], b[1]];
                u32::from(if big {
                    u16::from_be_bytes(pair)
                } else {
                    u16::from_le_bytes(pair)
                })
            })
            .collect(),
        (_, big) => frame
            .chunks_exact(4)
            .map(|b| {
                let four = [b[0], b[1], b[2], b[3]];
                if big {
                    u32::from_be_bytes(four)
                } else {
                    u32::from_le_bytes(four)
                }
            })
            .collect(),
    }
}
