//! JPEG as DICOM uses it (ITU-T T.81): sequential DCT with 8 and 12 bits, and the lossless process with every predictor.
//!
//! This crate has a decoder of its own because libraries lack 12 bits, restarts and point transforms of the lossless
//! process, fill in for entropy data that ends early, and convert colours by guess. Here a missing bit is an error, and
//! components come out as they were coded; what they mean is decided from the header.
//!
//! Reading order: here (marker segments), `huffman` (bits and codes), `dct` and `lossless` (scans), `picture` (PNG's sibling).

mod dct;
mod huffman;
mod lossless;
pub(crate) mod picture;

use dicom_dictionary_std::tags;

use crate::{Reason, Refusal};
use huffman::{Bits, Table};

/// Most samples of a pixel.
const COMPONENTS_MAX: usize = 4;

/// What a JPEG decodes to: components as coded, all of the image's size.
#[derive(Debug)]
pub(super) struct Coded {
    /// Bits of a sample.
    pub(super) precision: u8,
    pub(super) lossless: bool,
    /// Row-major samples of each component.
    pub(super) components: Vec<Vec<u16>>,
    pub(super) hint: ColourHint,
}

/// What the stream itself says about its colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColourHint {
    /// Nothing.
    None,
    /// Adobe's segment, or the names of the components: red, green and blue.
    Rgb,
    /// Adobe's segment, or JFIF's: luminance and chrominance.
    Ybr,
    /// Both: some decoders believe the one, some the other.
    Contrary,
}

impl ColourHint {
    /// By JFIF's segment, the transform of Adobe's, and the names of the components.
    fn of(jfif: bool, adobe: Option<u8>, names: &[u8]) -> Self {
        // Names of a wider gamut, which some decoders know and others pass over: libjpeg 9 writes JFIF's segment before them.
        if matches!(names, b"rgb" | [1, 34, 35]) {
            return Self::Contrary;
        }
        let adobe = match adobe {
            Some(0) => Some(Self::Rgb),
            Some(1) => Some(Self::Ybr),
            _ => None,
        };
        let named = (names == b"RGB").then_some(Self::Rgb);
        let mut said = [jfif.then_some(Self::Ybr), adobe, named]
            .into_iter()
            .flatten();
        match said.next() {
            None => Self::None,
            Some(first) if said.all(|other| other == first) => first,
            Some(_) => Self::Contrary,
        }
    }
}

/// Which process the transfer syntax promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    Baseline,
    Extended,
    Lossless,
}

/// One component of the frame header.
#[derive(Clone, Debug)]
struct Component {
    id: u8,
    horizontal: u32,
    vertical: u32,
    quantiser: usize,
}

#[derive(Clone, Debug)]
struct FrameHeader {
    process: Process,
    precision: u8,
    width: u32,
    height: u32,
    components: Vec<Component>,
}

/// One scan header: for each of its components its index in the frame and its tables.
#[derive(Clone, Debug)]
struct ScanHeader {
    components: Vec<(usize, usize, usize)>,
    /// Predictor of the lossless process (start of spectrum).
    predictor: u8,
    end_of_spectrum: u8,
    approximation_high: u8,
    /// Point transform (low approximation bits).
    point_transform: u8,
}

/// Everything the marker segments have said so far.
#[derive(Default)]
struct State {
    quantisers: [Option<[u16; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart_interval: u32,
    adobe: Option<u8>,
    jfif: bool,
    frame: Option<FrameHeader>,
}

pub(super) fn failed() -> Refusal {
    Refusal::at(Reason::DecodeFailed, tags::PIXEL_DATA)
}

pub(super) fn truncated() -> Refusal {
    Refusal::at(Reason::Truncated, tags::PIXEL_DATA)
}

/// The size of the image, from its frame header alone.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32, usize), Refusal> {
    let mut at = 2;
    loop {
        let (marker, segment, next) = segment(bytes, at)?;
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let frame = frame_header(marker, segment)?;
            return Ok((frame.width, frame.height, frame.components.len()));
        }
        if marker == 0xda || marker == 0xd9 {
            return Err(failed());
        }
        at = next;
    }
}

/// Decodes one image. The caller has compared [`size`] with the header.
pub(super) fn decode(bytes: &[u8]) -> Result<Coded, Refusal> {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return Err(failed());
    }
    let mut state = State::default();
    let mut planes: Vec<Option<Vec<u16>>> = Vec::new();
    let mut at = 2;
    loop {
        let (marker, segment, next) = segment(bytes, at)?;
        at = next;
        match marker {
            0xd9 => break,
            0xdb => state.quantisation(segment)?,
            0xc4 => state.huffman(segment)?,
            0xc0 | 0xc1 | 0xc3 => {
                if state.frame.is_some() {
                    return Err(failed());
                }
                let frame = frame_header(marker, segment)?;
                planes = vec![None; frame.components.len()];
                state.frame = Some(frame);
            }
            0xc2 | 0xc5..=0xc7 | 0xc9..=0xcf => return Err(failed()),
            0xdd => match segment {
                [high, low] => {
                    state.restart_interval = u32::from(u16::from_be_bytes([*high, *low]));
                }
                _ => return Err(failed()),
            },
            0xe0 if segment.starts_with(b"JFIF\0") => state.jfif = true,
            0xee if segment.starts_with(b"Adobe") => state.adobe = segment.get(11).copied(),
            0xda => at = state.scan(bytes, segment, at, &mut planes)?,
            // A number of lines that comes behind the first scan.
            0xdc => return Err(failed()),
            _ => {}
        }
    }
    let frame = state.frame.ok_or_else(failed)?;
    let names: Vec<u8> = frame.components.iter().map(|one| one.id).collect();
    let hint = ColourHint::of(state.jfif, state.adobe, &names);
    Ok(Coded {
        precision: frame.precision,
        lossless: frame.process == Process::Lossless,
        components: planes
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(truncated)?,
        hint,
    })
}

/// The marker segment at `at`: marker, content, and where the next one may begin (T.81 B.1.1).
fn segment(bytes: &[u8], mut at: usize) -> Result<(u8, &[u8], usize), Refusal> {
    let marker = loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(0xff), Some(0xff)) => at += 1,
            (Some(0xff), Some(marker)) if *marker != 0 => break *marker,
            (Some(_), Some(_)) => return Err(failed()),
            _ => return Err(truncated()),
        }
    };
    at += 2;
    if matches!(marker, 0x01 | 0xd0..=0xd9) {
        return Ok((marker, &[], at));
    }
    let length = bytes.get(at..at + 2).ok_or_else(truncated)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < 2 {
        return Err(failed());
    }
    let content = bytes.get(at + 2..at + length).ok_or_else(truncated)?;
    Ok((marker, content, at + length))
}

fn frame_header(marker: u8, segment: &[u8]) -> Result<FrameHeader, Refusal> {
    let process = match marker {
        0xc0 => Process::Baseline,
        0xc1 => Process::Extended,
        0xc3 => Process::Lossless,
        _ => return Err(failed()),
    };
    let [precision, h1, h0, w1, w0, count, rest @ ..] = segment else {
        return Err(failed());
    };
    let count = usize::from(*count);
    let precision_allowed = match process {
        Process::Baseline => *precision == 8,
        Process::Extended => matches!(precision, 8 | 12),
        Process::Lossless => (2..=16).contains(precision),
    };
    if !precision_allowed || count == 0 || count > COMPONENTS_MAX || rest.len() != count * 3 {
        return Err(failed());
    }
    let components: Vec<Component> = rest
        .chunks_exact(3)
        .map(|c| Component {
            id: c[0],
            horizontal: u32::from(c[1] >> 4),
            vertical: u32::from(c[1] & 0x0f),
            quantiser: usize::from(c[2]),
        })
        .collect();
    if components.iter().any(|c| {
        !(1..=4).contains(&c.horizontal) || !(1..=4).contains(&c.vertical) || c.quantiser > 3
    }) {
        return Err(failed());
    }
    let (width, height) = (
        u16::from_be_bytes([*w1, *w0]),
        u16::from_be_bytes([*h1, *h0]),
    );
    if width == 0 || height == 0 {
        return Err(failed());
    }
    Ok(FrameHeader {
        process,
        precision: *precision,
        width: u32::from(width),
        height: u32::from(height),
        components,
    })
}

impl State {
    fn quantisation(&mut self, mut segment: &[u8]) -> Result<(), Refusal> {
        while let Some((&head, rest)) = segment.split_first() {
            let wide = head >> 4 != 0;
            let bytes = if wide { 128 } else { 64 };
            let (values, rest) = rest.split_at_checked(bytes).ok_or_else(failed)?;
            let mut table = [0; 64];
            for (index, entry) in table.iter_mut().enumerate() {
                *entry = if wide {
                    u16::from_be_bytes([values[index * 2], values[index * 2 + 1]])
                } else {
                    u16::from(values[index])
                };
            }
            *self
                .quantisers
                .get_mut(usize::from(head & 0x0f))
                .ok_or_else(failed)? = Some(table);
            segment = rest;
        }
        Ok(())
    }

    fn huffman(&mut self, mut segment: &[u8]) -> Result<(), Refusal> {
        while let Some((&head, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_at_checked(16).ok_or_else(failed)?;
            let total: usize = counts.iter().map(|count| usize::from(*count)).sum();
            let (symbols, rest) = rest.split_at_checked(total).ok_or_else(failed)?;
            let table = Table::new(counts, symbols).ok_or_else(failed)?;
            let tables = if head >> 4 == 0 {
                &mut self.dc
            } else {
                &mut self.ac
            };
            *tables
                .get_mut(usize::from(head & 0x0f))
                .ok_or_else(failed)? = Some(table);
            segment = rest;
        }
        Ok(())
    }

    /// Decodes a scan whose header is `segment` and whose data starts at `at`; returns where the data ends.
    fn scan(
        &self,
        bytes: &[u8],
        segment: &[u8],
        at: usize,
        planes: &mut [Option<Vec<u16>>],
    ) -> Result<usize, Refusal> {
        let frame = self.frame.as_ref().ok_or_else(failed)?;
        let scan = scan_header(segment, frame)?;
        let mut bits = Bits::new(&bytes[at..]);
        match frame.process {
            Process::Lossless => lossless::scan(self, frame, &scan, &mut bits, planes)?,
            Process::Baseline | Process::Extended => {
                dct::scan(self, frame, &scan, &mut bits, planes)?;
            }
        }
        // Bytes between the last code and the next marker carry nothing.
        let mut end = at + bits.end();
        while bytes.get(end).is_some_and(|byte| *byte != 0xff) || bytes.get(end + 1) == Some(&0) {
            end += 1;
        }
        Ok(end)
    }
}

fn scan_header(segment: &[u8], frame: &FrameHeader) -> Result<ScanHeader, Refusal> {
    let (&count, rest) = segment.split_first().ok_or_else(failed)?;
    let count = usize::from(count);
    if count == 0 || count > COMPONENTS_MAX || rest.len() != count * 2 + 3 {
        return Err(failed());
    }
    let mut components = Vec::with_capacity(count);
    for pair in rest[..count * 2].chunks_exact(2) {
        let index = frame
            .components
            .iter()
            .position(|component| component.id == pair[0])
            .ok_or_else(failed)?;
        let (dc, ac) = (usize::from(pair[1] >> 4), usize::from(pair[1] & 0x0f));
        if dc > 3 || ac > 3 || components.iter().any(|(other, _, _)| *other == index) {
            return Err(failed());
        }
        components.push((index, dc, ac));
    }
    let tail = &rest[count * 2..];
    Ok(ScanHeader {
        components,
        predictor: tail[0],
        end_of_spectrum: tail[1],
        approximation_high: tail[2] >> 4,
        point_transform: tail[2] & 0x0f,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decoders do not agree on which of them goes before the others.
    #[test]
    fn a_stream_that_says_two_things_of_its_colours_says_nothing_sure() {
        let numbers = &[1, 2, 3];
        for (jfif, adobe, names, expected) in [
            (false, None, numbers, ColourHint::None),
            (false, Some(2), numbers, ColourHint::None),
            (true, None, numbers, ColourHint::Ybr),
            (false, Some(1), numbers, ColourHint::Ybr),
            (true, Some(1), numbers, ColourHint::Ybr),
            (false, Some(0), numbers, ColourHint::Rgb),
            (false, None, b"RGB", ColourHint::Rgb),
            (false, Some(0), b"RGB", ColourHint::Rgb),
            (true, Some(0), numbers, ColourHint::Contrary),
            (true, None, b"RGB", ColourHint::Contrary),
            (false, Some(1), b"RGB", ColourHint::Contrary),
            (true, None, b"rgb", ColourHint::Contrary),
            (true, None, &[1, 34, 35], ColourHint::Contrary),
        ] {
            let hint = ColourHint::of(jfif, adobe, names);
            assert_eq!(hint, expected, "{jfif} {adobe:?} {names:?}");
        }
    }
}
