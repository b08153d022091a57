//! JPEG pictures, grey and colour, baseline and progressive, through the `jpeg-decoder` crate.
//! That decoder fills in for entropy data that ends early. So the end-of-image marker is asked for first, and the image
//! is decoded a second time with bits put where the entropy data ends: only an incomplete scan reads them.

use std::io::Cursor;

use jpeg_decoder::{CodingProcess, ColorTransform, Decoder, Error, ImageInfo, PixelFormat};

use super::ColourHint;
use crate::{Reason, Refusal};

/// Scans of an image. Real ones have some ten; each takes the time of all blocks, however few bytes it has itself.
const SCANS_MAX: usize = 256;
/// Markers that end entropy data, restarts among them, of all scans: places that are remembered, and filled a second time.
const MARKERS_MAX: usize = 1 << 22;

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

struct Scan<'a> {
    header: &'a [u8],
    /// Where its entropy data ends: offsets of the restart markers within and of the marker behind.
    markers: Vec<usize>,
}

impl Scan<'_> {
    /// Of the progressive process (T.81 G.1.1.1): whose coefficients it brings to their last bit, and which of the 64.
    fn completes(&self) -> Option<(impl Iterator<Item = u8>, u64)> {
        let (count, rest) = self.header.split_first()?;
        let (components, tail) = rest.split_at_checked(usize::from(*count) * 2)?;
        let &[first, last, approximation] = tail else {
            return None;
        };
        if approximation & 0x0f != 0 || first > last || last > 63 {
            return None;
        }
        let coefficients = (u64::MAX >> (63 - (last - first))) << first;
        Some((components.chunks_exact(2).map(|pair| pair[0]), coefficients))
    }
}

/// Whether scans bring every coefficient to its last bit. One scan less and an end behind it is an image all the same, and a
/// blurred one.
fn is_whole(progressive: Option<&[u8]>, scans: &[Scan<'_>]) -> bool {
    // Precision and size, then the components.
    let Some([_, _, _, _, _, _, components @ ..]) = progressive else {
        return true;
    };
    let mut complete = [0_u64; 256];
    for (ids, coefficients) in scans.iter().filter_map(|scan| scan.completes()) {
        ids.for_each(|id| complete[usize::from(id)] |= coefficients);
    }
    let mut ids = components.chunks_exact(3).map(|component| component[0]);
    ids.all(|id| complete[usize::from(id)] == u64::MAX)
}

/// The marker segments (ITU-T T.81 B.1.1) up to the end of the image or of the bytes: their markers, and what they hold.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Segments<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        // Behind the start of image.
        Self { bytes, at: 2 }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let marker = loop {
            let (start, marker) = next_marker(self.bytes, self.at)?;
            self.at = start + 2;
            match marker {
                0xd9 => return None,
                // Markers that stand alone.
                0x01 | 0xd0..=0xd8 => {}
                _ => break marker,
            }
        };
        let content = self.at + 2;
        let &[high, low] = self.bytes.get(self.at..content)? else {
            return None;
        };
        self.at += usize::from(u16::from_be_bytes([high, low]));
        let held = self.bytes.get(content..self.at).unwrap_or_default();
        Some((marker, held))
    }
}

/// The frame header if it is a progressive one, and the scans.
///
/// # Errors
/// More of them, or of restarts in them, than any real image has.
fn scans(bytes: &[u8]) -> Result<(Option<&[u8]>, Vec<Scan<'_>>), Refusal> {
    let (mut progressive, mut scans, mut markers) = (None, Vec::new(), 0);
    let too_many =
        |found: std::fmt::Arguments<'_>| Err(Refusal::new(Reason::DecodeFailed).found(found));
    let mut segments = Segments::of(bytes);
    while let Some((marker, header)) = segments.next() {
        if marker == 0xc2 {
            progressive = Some(header);
        }
        if marker != 0xda {
            continue;
        }
        let mut scan = Scan {
            header,
            markers: Vec::new(),
        };
        if scans.len() == SCANS_MAX {
            return too_many(format_args!("more than {SCANS_MAX} scans"));
        }
        while let Some((start, marker)) = next_marker(bytes, segments.at) {
            if markers == MARKERS_MAX {
                return too_many(format_args!("more than {MARKERS_MAX} restarts"));
            }
            markers += 1;
            scan.markers.push(start);
            segments.at = start;
            if !matches!(marker, 0xd0..=0xd7) {
                break;
            }
            segments.at += 2;
        }
        scans.push(scan);
    }
    Ok((progressive, scans))
}

/// The first marker from `at` on: a 0xFF that is neither stuffed nor followed by another one.
fn next_marker(bytes: &[u8], at: usize) -> Option<(usize, u8)> {
    let found = bytes
        .get(at..)?
        .windows(2)
        .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff))?;
    Some((at + found, bytes[at + found + 1]))
}

/// What the markers before the first scan say of three colours. The decoder would believe the components' numbers before Adobe's
/// segment, and their names before JFIF's, as hardly any other does.
fn colour_hint(bytes: &[u8]) -> ColourHint {
    let (mut jfif, mut adobe, mut names) = (false, None, Vec::new());
    for (marker, segment) in Segments::of(bytes).take_while(|(marker, _)| *marker != 0xda) {
        match marker {
            0xe0 if segment.starts_with(b"JFIF\0") => jfif = true,
            0xee if segment.starts_with(b"Adobe") => adobe = segment.get(11).copied(),
            // Precision and size, then the components.
            0xc0..=0xc3 => {
                let components = segment.get(6..).unwrap_or_default().chunks_exact(3);
                names = components.map(|component| component[0]).collect();
            }
            _ => {}
        }
    }
    if names.len() == 3 {
        ColourHint::of(jfif, adobe, &names)
    } else {
        ColourHint::None
    }
}

/// Decodes, and proves that no scan ended before its last pixel, and none is missing. `decoder` reads `bytes`.
pub(crate) fn decode_complete<R: std::io::Read>(
    decoder: &mut Decoder<R>,
    bytes: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let (progressive, scans) = scans(bytes)?;
    if !is_whole(progressive, &scans) {
        return Err(Refusal::new(Reason::Truncated));
    }
    // The decoder turns no colours of a lossless one.
    let is_lossless = decoder.info().is_some_and(|info| {
        info.coding_process == CodingProcess::Lossless
            && matches!(info.pixel_format, PixelFormat::RGB24)
    });
    let transform = match colour_hint(bytes) {
        ColourHint::Rgb => Some(ColorTransform::RGB),
        ColourHint::Ybr | ColourHint::None if is_lossless => {
            return Err(Refusal::new(Reason::UnsupportedColour)
                .found("a lossless JPEG that is not said to be red, green and blue"));
        }
        ColourHint::Ybr => Some(ColorTransform::YCbCr),
        ColourHint::None => None,
        ColourHint::Contrary => {
            return Err(Refusal::new(Reason::UnsupportedColour).found("two kinds of colours"));
        }
    };
    let filled = with_filler(bytes, &scans);
    let mut second = Decoder::new(Cursor::new(filled));
    if let Some(transform) = transform {
        decoder.set_color_transform(transform);
        second.set_color_transform(transform);
    }
    let pixels = decoder.decode().map_err(refusal)?;
    let again = second.decode();
    // Ones in place of the decoder's zeros: another value, or a code that no table has.
    if again.is_ok_and(|again| again == pixels) {
        Ok(pixels)
    } else {
        Err(Refusal::new(Reason::Truncated))
    }
}

/// Puts ones before each marker that ends entropy data. Few enough that the decoder, which reads up to 64 bits ahead,
/// still meets the marker.
fn with_filler(bytes: &[u8], scans: &[Scan<'_>]) -> Vec<u8> {
    const FILLER: [u8; 8] = [0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0];
    let mut out = Vec::with_capacity(bytes.len() + FILLER.len());
    let mut copied = 0;
    for at in scans.iter().flat_map(|scan| &scan.markers) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(scans_of: &[u8], count: usize, expected: Option<&str>) {
        let image = [&[0xff_u8, 0xd8][..], &scans_of.repeat(count), &[0xff, 0xd9]].concat();
        let refused = scans(&image).err();
        assert!(
            refused
                .iter()
                .all(|refusal| refusal.reason == Reason::DecodeFailed)
        );
        let found = refused.and_then(|refusal| refusal.found);
        assert_eq!(found.as_deref(), expected);
    }

    /// Each of them a few bytes, and the time of a whole image.
    #[test]
    fn an_image_has_few_scans() {
        let scan = [0xff, 0xda, 0, 2, 0x55];
        check(&scan, SCANS_MAX, None);
        check(&scan, SCANS_MAX + 1, Some("more than 256 scans"));
    }

    /// Each of them two bytes, and many times that in memory.
    #[test]
    fn an_image_has_no_end_of_restarts() {
        let scan = [
            &[0xff_u8, 0xda, 0, 2][..],
            &[0xff, 0xd0].repeat(MARKERS_MAX - 1),
        ]
        .concat();
        check(&scan, 1, None);
        check(&scan, 2, Some("more than 4194304 restarts"));
    }
}
