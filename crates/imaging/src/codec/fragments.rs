//! Which fragments of encapsulated pixel data make up which frame (DICOM PS3.5 A.4).

use dicom_dictionary_std::tags;

use crate::elements::{ITEM_HEADER_BYTES, fragments};
use crate::{Reason, Refusal};

/// Of one frame in the offset table.
const OFFSET_BYTES: usize = 4;

/// The fragments of each frame, in order.
pub(super) fn by_frame(value: &[u8], frames: usize) -> Result<Vec<Vec<&[u8]>>, Refusal> {
    let (table, fragments) = fragments(value)?;
    let mismatch = || {
        Refusal::at(Reason::PixelDataMismatch, tags::PIXEL_DATA).found(format_args!(
            "{} fragments for {frames} frames",
            fragments.len()
        ))
    };
    if frames == 1 {
        // A table of several frames, or several images: one of them would be shown, and the others lost.
        let several = fragments.iter().skip(1).any(|bytes| is_image(bytes));
        return if table.len() <= OFFSET_BYTES && !several {
            Ok(vec![fragments])
        } else {
            Err(mismatch())
        };
    }
    if fragments.len() == frames {
        return Ok(fragments
            .into_iter()
            .map(|fragment| vec![fragment])
            .collect());
    }
    // More fragments than frames: only the offset table says which belong together.
    if table.len() != frames * OFFSET_BYTES {
        return Err(mismatch());
    }
    let starts: Vec<usize> = table
        .chunks_exact(OFFSET_BYTES)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
        .collect();
    let mut grouped: Vec<Vec<&[u8]>> = Vec::with_capacity(frames);
    let mut position = 0;
    for fragment in &fragments {
        if starts.get(grouped.len()) == Some(&position) {
            grouped.push(Vec::new());
        }
        grouped.last_mut().ok_or_else(mismatch)?.push(fragment);
        position += ITEM_HEADER_BYTES + fragment.len();
    }
    if grouped.len() != frames {
        return Err(mismatch());
    }
    Ok(grouped)
}

/// Whether bytes begin as a JPEG or JPEG 2000 image does, and not as the rest of one that was cut.
fn is_image(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff]) || bytes.starts_with(&[0xff, 0x4f, 0xff, 0x51])
}

/// Whether another image begins behind the end of one, at once or behind the byte that makes its length even.
pub(super) fn is_several(bytes: &[u8]) -> bool {
    let end = |pair: &[u8]| pair == [0xff, 0xd9];
    let mut ends = bytes.windows(2).enumerate().filter(|(_, pair)| end(pair));
    ends.any(|(at, _)| {
        let rest = &bytes[at + 2..];
        is_image(rest) || rest.strip_prefix(&[0]).is_some_and(is_image)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value with this offset table and these fragments.
    fn value(table: &[u32], fragments: &[&[u8]]) -> Vec<u8> {
        let item = |bytes: &[u8]| {
            let mut out = b"\xfe\xff\0\xe0".to_vec();
            out.extend((bytes.len() as u32).to_le_bytes());
            out.extend(bytes);
            out
        };
        let table: Vec<u8> = table.iter().flat_map(|at| at.to_le_bytes()).collect();
        let mut out = item(&table);
        fragments.iter().for_each(|bytes| out.extend(item(bytes)));
        out.extend(b"\xfe\xff\xdd\xe0\0\0\0\0");
        out
    }

    #[test]
    fn groups_by_count_or_by_the_offset_table() {
        let one = value(&[], &[b"ab", b"cd"]);
        assert_eq!(by_frame(&one, 1).unwrap(), [[b"ab", b"cd"]]);
        assert_eq!(by_frame(&one, 2).unwrap(), [[b"ab"], [b"cd"]]);
        let three = value(&[0, 20], &[b"ab", b"cd", b"ef"]);
        assert_eq!(
            by_frame(&three, 2).unwrap(),
            [vec![b"ab", b"cd"], vec![b"ef"]]
        );
    }

    #[test]
    fn refuses_what_nothing_tells_apart() {
        for table in [&[][..], &[0, 7], &[10, 20]] {
            let bytes = value(table, &[b"ab", b"cd", b"ef"]);
            assert_eq!(
                by_frame(&bytes, 2).unwrap_err().reason,
                Reason::PixelDataMismatch
            );
        }
        // The header says one frame, the table two.
        let two = value(&[0, 10], &[b"ab", b"cd"]);
        assert!(by_frame(&two, 2).is_ok());
        assert_eq!(
            by_frame(&two, 1).unwrap_err().reason,
            Reason::PixelDataMismatch
        );
        assert!(by_frame(&value(&[0], &[b"ab", b"cd"]), 1).is_ok());
        // No table, and two images all the same.
        for start in [&b"\xff\xd8\xff\xc0"[..], b"\xff\x4f\xff\x51"] {
            let refused = by_frame(&value(&[], &[start, start]), 1).unwrap_err();
            assert_eq!(refused.reason, Reason::PixelDataMismatch);
            assert!(by_frame(&value(&[], &[start, start]), 2).is_ok());
        }
    }
}
