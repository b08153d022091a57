//! JPEG-LS, lossless and near-lossless (ITU-T T.87), in all three interleavings, 2 to 16 bits, with preset parameters and
//! restarts.
//! Mapping tables and subsampled components are refused; data that ends early is an error.

mod context;

use dicom_dictionary_std::tags;

use super::Cells;
use crate::{Reason, Refusal};
use context::{Contexts, Parameters, Reader};

/// Run lengths by run index, as powers of two (A.2.1).
const RUN_BITS: [u32; 32] = [
    0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13,
    14, 15,
];

/// What the frame header says.
#[derive(Debug)]
pub(super) struct FrameHeader {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) precision: u32,
    components: Vec<u8>,
}

fn failed() -> Refusal {
    Refusal::at(Reason::DecodeFailed, tags::PIXEL_DATA)
}

fn truncated() -> Refusal {
    Refusal::at(Reason::Truncated, tags::PIXEL_DATA)
}

/// One marker segment: marker, content, offset behind it (T.87 annex C; the forms are those of JPEG).
fn segment(bytes: &[u8], mut at: usize) -> Result<(u8, &[u8], usize), Refusal> {
    while bytes.get(at) == Some(&0xff) && bytes.get(at + 1) == Some(&0xff) {
        at += 1;
    }
    let marker = match bytes.get(at..at + 2).ok_or_else(truncated)? {
        [0xff, marker] if *marker >= 0x80 => *marker,
        _ => return Err(failed()),
    };
    at += 2;
    if matches!(marker, 0xd0..=0xd9) {
        return Ok((marker, &[], at));
    }
    let length = bytes.get(at..at + 2).ok_or_else(truncated)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let content = bytes.get(at + 2..at + length).ok_or_else(truncated)?;
    Ok((marker, content, at + length))
}

/// The frame header, without decoding.
pub(super) fn frame_header(bytes: &[u8]) -> Result<FrameHeader, Refusal> {
    let mut at = 2;
    loop {
        let (marker, content, next) = segment(bytes, at)?;
        match marker {
            0xf7 => return read_frame_header(content),
            0xda | 0xd9 => return Err(failed()),
            _ => at = next,
        }
    }
}

fn read_frame_header(content: &[u8]) -> Result<FrameHeader, Refusal> {
    let [precision, h1, h0, w1, w0, count, rest @ ..] = content else {
        return Err(failed());
    };
    let count = usize::from(*count);
    let plain = rest.chunks_exact(3).all(|component| component[1] == 0x11);
    if !(2..=16).contains(precision) || count == 0 || count > 4 || rest.len() != count * 3 || !plain
    {
        return Err(failed());
    }
    let size = |high, low| usize::from(u16::from_be_bytes([high, low]));
    let (width, height) = (size(*w1, *w0), size(*h1, *h0));
    if width == 0 || height == 0 {
        return Err(failed());
    }
    Ok(FrameHeader {
        width,
        height,
        precision: u32::from(*precision),
        components: rest.chunks_exact(3).map(|component| component[0]).collect(),
    })
}

/// Decodes one image to interleaved cells. The caller has compared the frame header with its own.
pub(super) fn decode(bytes: &[u8]) -> Result<Cells, Refusal> {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return Err(failed());
    }
    let (mut frame, mut preset, mut restart_interval) = (None, None, 0usize);
    let mut planes: Vec<Option<Vec<u16>>> = Vec::new();
    let mut at = 2;
    loop {
        let (marker, content, next) = segment(bytes, at)?;
        at = next;
        match marker {
            0xd9 => break,
            // A second one would have a size that nobody has compared with anything.
            0xf7 if frame.is_some() => return Err(failed()),
            0xf7 => {
                let header = read_frame_header(content)?;
                planes = vec![None; header.components.len()];
                frame = Some(header);
            }
            0xf8 => match content {
                [1, rest @ ..] if rest.len() == 10 => {
                    let words = rest.chunks_exact(2);
                    let words: Vec<i32> = words
                        .map(|w| i32::from(u16::from_be_bytes([w[0], w[1]])))
                        .collect();
                    preset = Some([words[0], words[1], words[2], words[3], words[4]]);
                }
                _ => return Err(failed()),
            },
            // Two to four bytes (C.2.5), in lines.
            0xdd if (2..=4).contains(&content.len()) => {
                restart_interval = content
                    .iter()
                    .fold(0usize, |value, byte| value << 8 | usize::from(*byte));
            }
            0xda => {
                let frame: &FrameHeader = frame.as_ref().ok_or_else(failed)?;
                let scan = Scan {
                    frame,
                    preset,
                    restart_interval,
                };
                at += scan.decode(&bytes[at..], content, &mut planes)?;
            }
            // A transform of colours that this decoder does not undo (HP's, as CharLS knows it).
            0xe8 if content.starts_with(b"mrfx") && content.get(4) != Some(&0) => {
                return Err(failed());
            }
            0xe0..=0xef | 0xfe => {}
            _ => return Err(failed()),
        }
    }
    let planes: Vec<Vec<u16>> = planes
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(truncated)?;
    Ok(super::interleave(&planes))
}

/// What is known when a scan begins.
struct Scan<'a> {
    frame: &'a FrameHeader,
    preset: Option<[i32; 5]>,
    /// Lines; 0 for a scan without restarts.
    restart_interval: usize,
}

impl Scan<'_> {
    /// Decodes the scan whose header is `content` and whose data begins with `bytes`; returns the length of the data.
    fn decode(
        &self,
        bytes: &[u8],
        content: &[u8],
        planes: &mut [Option<Vec<u16>>],
    ) -> Result<usize, Refusal> {
        let frame = self.frame;
        let (&count, rest) = content.split_first().ok_or_else(failed)?;
        let count = usize::from(count);
        if count == 0 || rest.len() != count * 2 + 3 {
            return Err(failed());
        }
        let tail = &rest[count * 2..];
        let (near, interleave) = (i32::from(tail[0]), tail[1]);
        // A point transform would lose bits that DICOM does not announce.
        if tail[2] != 0 || interleave > 2 || (interleave == 0) != (count == 1) {
            return Err(failed());
        }
        // As many as the frame has at most, each once: there is memory for them, and for no more.
        let mut indices = Vec::new();
        for pair in rest[..count * 2].chunks_exact(2) {
            // The second byte names a mapping table.
            let index = frame.components.iter().position(|id| *id == pair[0]);
            let index = index.filter(|_| pair[1] == 0).ok_or_else(failed)?;
            if indices.contains(&index) {
                return Err(failed());
            }
            indices.push(index);
        }
        let parameters = Parameters::new(frame.precision, near, self.preset).ok_or_else(failed)?;
        let mut decoder = Decoder {
            contexts: Contexts::new(&parameters),
            parameters,
            reader: Reader::new(bytes),
            run_index: vec![0; count],
            restart_interval: self.restart_interval,
        };
        let lines = match interleave {
            2 => decoder.by_sample(frame, count)?,
            _ => decoder.by_line(frame, count)?,
        };
        for (plane, index) in lines.into_iter().zip(indices) {
            if planes[index].replace(plane).is_some() {
                return Err(failed());
            }
        }
        Ok(decoder.reader.end())
    }
}

struct Decoder<'a> {
    parameters: Parameters,
    contexts: Contexts,
    reader: Reader<'a>,
    /// One for each component when lines alternate, the first for all when samples do.
    run_index: Vec<usize>,
    /// Lines; 0 for none.
    restart_interval: usize,
}

/// The neighbours of a sample (figure 3).
#[derive(Clone, Copy)]
struct Around {
    left: i32,
    above: i32,
    above_left: i32,
    above_right: i32,
}

/// Two lines of a component, each with one more sample at both ends.
struct Lines {
    above: Vec<i32>,
    current: Vec<i32>,
}

impl Lines {
    fn new(width: usize) -> Self {
        Self {
            above: vec![0; width + 2],
            current: vec![0; width + 2],
        }
    }

    /// Before a line: what lies beyond its ends (A.2.1).
    fn begin(&mut self) {
        std::mem::swap(&mut self.above, &mut self.current);
        let width = self.above.len() - 2;
        self.above[width + 1] = self.above[width];
        self.current[0] = self.above[1];
    }

    /// `x` counts from 1.
    fn around(&self, x: usize) -> Around {
        Around {
            left: self.current[x - 1],
            above: self.above[x],
            above_left: self.above[x - 1],
            above_right: self.above[x + 1],
        }
    }

    fn keep(&self, plane: &mut Vec<u16>) {
        let width = self.current.len() - 2;
        plane.extend(self.current[1..=width].iter().map(|value| *value as u16));
    }
}

impl Decoder<'_> {
    /// Lines of components in turn, or one component alone.
    fn by_line(&mut self, frame: &FrameHeader, count: usize) -> Result<Vec<Vec<u16>>, Refusal> {
        let mut planes = vec![Vec::with_capacity(frame.width * frame.height); count];
        let mut lines: Vec<Lines> = (0..count).map(|_| Lines::new(frame.width)).collect();
        for row in 0..frame.height {
            self.restart_before(row, &mut lines)?;
            for (index, (lines, plane)) in lines.iter_mut().zip(&mut planes).enumerate() {
                lines.begin();
                let mut x = 1;
                while x <= frame.width {
                    let around = lines.around(x);
                    if self.parameters.is_flat(around) {
                        x = self.run(lines, x, frame.width, index)?;
                    } else {
                        lines.current[x] = self.regular(around)?;
                        x += 1;
                    }
                }
                lines.keep(plane);
            }
        }
        Ok(planes)
    }

    /// Samples of components in turn; a run is one of all components together.
    fn by_sample(&mut self, frame: &FrameHeader, count: usize) -> Result<Vec<Vec<u16>>, Refusal> {
        let mut planes = vec![Vec::with_capacity(frame.width * frame.height); count];
        let mut lines: Vec<Lines> = (0..count).map(|_| Lines::new(frame.width)).collect();
        for row in 0..frame.height {
            self.restart_before(row, &mut lines)?;
            lines.iter_mut().for_each(Lines::begin);
            let mut x = 1;
            while x <= frame.width {
                if lines.iter().all(|l| self.parameters.is_flat(l.around(x))) {
                    let (length, interrupted) = self.run_length(frame.width + 1 - x, 0)?;
                    for line in &mut lines {
                        let value = line.current[x - 1];
                        line.current[x..x + length].fill(value);
                    }
                    x += length;
                    if interrupted {
                        for line in &mut lines {
                            let around = line.around(x);
                            line.current[x] = self.after_run(around, false, 0)?;
                        }
                        self.run_index[0] = self.run_index[0].saturating_sub(1);
                        x += 1;
                    }
                } else {
                    for line in &mut lines {
                        line.current[x] = self.regular(line.around(x))?;
                    }
                    x += 1;
                }
            }
            for (line, plane) in lines.iter().zip(&mut planes) {
                line.keep(plane);
            }
        }
        Ok(planes)
    }

    /// Where a restart is due, everything begins anew, as if the scan began here (T.81 F.2.1.3.1, T.87 A.2.1).
    fn restart_before(&mut self, row: usize, lines: &mut [Lines]) -> Result<(), Refusal> {
        if row == 0 || self.restart_interval == 0 || !row.is_multiple_of(self.restart_interval) {
            return Ok(());
        }
        let number = (row / self.restart_interval - 1) % 8;
        self.reader.restart(number as u8)?;
        self.contexts = Contexts::new(&self.parameters);
        self.run_index.fill(0);
        for line in lines {
            line.above.fill(0);
            line.current.fill(0);
        }
        Ok(())
    }

    /// A run from `x` on, and the sample that ends it. Returns the next `x`.
    fn run(
        &mut self,
        lines: &mut Lines,
        x: usize,
        width: usize,
        index: usize,
    ) -> Result<usize, Refusal> {
        let value = lines.current[x - 1];
        let (length, interrupted) = self.run_length(width + 1 - x, index)?;
        lines.current[x..x + length].fill(value);
        let x = x + length;
        if !interrupted {
            return Ok(x);
        }
        let around = lines.around(x);
        let near = (around.left - around.above).abs() <= self.parameters.near;
        lines.current[x] = self.after_run(around, near, index)?;
        self.run_index[index] = self.run_index[index].saturating_sub(1);
        Ok(x + 1)
    }

    /// How many samples repeat, at most `most`, and whether another sample follows (A.7.1).
    fn run_length(&mut self, most: usize, index: usize) -> Result<(usize, bool), Refusal> {
        let mut length = 0;
        while self.reader.bits(1)? == 1 {
            let step = 1 << RUN_BITS[self.run_index[index]];
            let taken = step.min(most - length);
            length += taken;
            if taken == step && self.run_index[index] < 31 {
                self.run_index[index] += 1;
            }
            if length == most {
                return Ok((length, false));
            }
        }
        length += self.reader.bits(RUN_BITS[self.run_index[index]])? as usize;
        if length >= most {
            return Err(failed());
        }
        Ok((length, true))
    }

    /// The sample behind a run (A.7.2). `near`: the left and the upper neighbour are equal within the error.
    fn after_run(&mut self, around: Around, near: bool, index: usize) -> Result<i32, Refusal> {
        let bits = RUN_BITS[self.run_index[index]];
        let error = self
            .contexts
            .run_error(&mut self.reader, &self.parameters, near, bits)?;
        let (predicted, sign) = match (near, around.left > around.above) {
            (true, _) => (around.left, 1),
            (false, true) => (around.above, -1),
            (false, false) => (around.above, 1),
        };
        Ok(self.parameters.reconstruct(predicted, sign * error))
    }

    /// A sample by its context (A.3 to A.6).
    fn regular(&mut self, around: Around) -> Result<i32, Refusal> {
        let Around {
            left,
            above,
            above_left,
            above_right,
        } = around;
        let gradient = |d| self.parameters.quantise(d);
        let context = 81 * gradient(above_right - above)
            + 9 * gradient(above - above_left)
            + gradient(above_left - left);
        let (sign, context) = if context < 0 {
            (-1, -context)
        } else {
            (1, context)
        };
        let median = if above_left >= left.max(above) {
            left.min(above)
        } else if above_left <= left.min(above) {
            left.max(above)
        } else {
            left + above - above_left
        };
        let (correction, error) =
            self.contexts
                .regular_error(&mut self.reader, &self.parameters, context as usize)?;
        let predicted = (median + sign * correction).clamp(0, self.parameters.largest);
        Ok(self.parameters.reconstruct(predicted, sign * error))
    }
}

#[cfg(test)]
mod tests;
