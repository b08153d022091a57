//! JPEG pictures, grey and colour, baseline and progressive, through the `jpeg-decoder` crate.
//! That decoder fills in for entropy data that ends early. So the end-of-image marker is asked for first, and the image
//! is decoded a second time with bits put where the entropy data ends: only an incomplete scan reads them.

use std::io::Cursor;

use jpeg_decoder::{Decoder, Error, ImageInfo};

use crate::{Reason, Refusal};

/// Reads the headers, up to the first scan.
pub(crate) fn read_info<R: std::io::Read>(decoder: &mut Decoder<R>) -> Result<ImageInfo, Refusal> {
    decoder.read_info().map_err(refusal)?;
    decoder
        .info()
        .ok_or_else(|| Refusal::new(Reason::DecodeFailed))
}

/// The last scan of a whole JPEG is followed by the end-of-image marker.
/// Entropy data holds neither marker, as its 0xFF bytes are stuffed; what comes behind the end is the writer's business.
pub(crate) fn require_end(bytes: &[u8]) -> Result<(), Refusal> {
    const SCAN: [u8; 2] = [0xff, 0xda];
    const END: [u8; 2] = [0xff, 0xd9];
    let last_scan = bytes
        .windows(2)
        .rposition(|marker| marker == SCAN)
        .unwrap_or(0);
    let ended = bytes[last_scan..].windows(2).any(|marker| marker == END);
    if ended {
        Ok(())
    } else {
        Err(Refusal::new(Reason::Truncated))
    }
}

/// Where the entropy data of one scan ends: offsets of the restart markers within and of the marker behind.
struct Scan {
    markers: Vec<usize>,
}

/// Walks the marker segments (ITU-T T.81 B.1.1) up to the end of the image or of the bytes.
fn scans(bytes: &[u8]) -> Vec<Scan> {
    let mut scans = Vec::new();
    // Start of image.
    let mut at = 2;
    while let Some((start, marker)) = next_marker(bytes, at) {
        at = start + 2;
        match marker {
            0xd9 => break,
            // Markers that stand alone.
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let Some([high, low]) = bytes.get(at..at + 2) else {
            break;
        };
        at += usize::from(u16::from_be_bytes([*high, *low]));
        if marker != 0xda {
            continue;
        }
        let mut scan = Scan {
            markers: Vec::new(),
        };
        while let Some((start, marker)) = next_marker(bytes, at) {
            scan.markers.push(start);
            at = start;
            if !matches!(marker, 0xd0..=0xd7) {
                break;
            }
            at += 2;
        }
        scans.push(scan);
    }
    scans
}

/// The first marker from `at` on: a 0xFF that is neither stuffed nor followed by another one.
fn next_marker(bytes: &[u8], at: usize) -> Option<(usize, u8)> {
    let found = bytes
        .get(at..)?
        .windows(2)
        .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff))?;
    Some((at + found, bytes[at + found + 1]))
}

/// Decodes, and proves that no scan ended before its last pixel. `decoder` reads `bytes`.
pub(crate) fn decode_complete<R: std::io::Read>(
    decoder: &mut Decoder<R>,
    bytes: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let pixels = decoder.decode().map_err(refusal)?;
    let again = Decoder::new(Cursor::new(with_filler(bytes))).decode();
    // Ones in place of the decoder's zeros: another value, or a code that no table has.
    if again.is_ok_and(|again| again == pixels) {
        Ok(pixels)
    } else {
        Err(Refusal::new(Reason::Truncated))
    }
}

/// Puts ones before each marker that ends entropy data. Few enough that the decoder, which reads up to 64 bits ahead,
/// still meets the marker.
fn with_filler(bytes: &[u8]) -> Vec<u8> {
    const FILLER: [u8; 8] = [0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0];
    let mut out = Vec::with_capacity(bytes.len() + FILLER.len());
    let mut copied = 0;
    for at in scans(bytes).iter().flat_map(|scan| &scan.markers) {
        // The marker may have fill bytes before it, which would now be read as stuffed; they carry nothing.
        let mut end = *at;
        while end > copied && bytes[end - 1] == 0xff {
            end -= 1;
        }
        out.extend_from_slice(&bytes[copied..end]);
        out.extend_from_slice(&FILLER);
        copied = *at;
    }
    out.extend_from_slice(&bytes[copied..]);
    out
}

pub(crate) fn refusal(error: Error) -> Refusal {
    match error {
        Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Refusal::new(Reason::Truncated)
        }
        // The library's text may quote file content; the reason is enough.
        _ => Refusal::new(Reason::DecodeFailed),
    }
}
