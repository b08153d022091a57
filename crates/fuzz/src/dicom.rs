//! Just enough of DICOM's writing to put broken pixel data behind a good header. By hand, because a library writes only
//! good files.

/// RLE lossless.
pub const RLE: &str = "1.2.840.10008.1.2.5";
/// JPEG baseline.
pub const JPEG_BASELINE: &str = "1.2.840.10008.1.2.4.50";
/// JPEG extended.
pub const JPEG_EXTENDED: &str = "1.2.840.10008.1.2.4.51";
/// JPEG lossless, any predictor.
pub const JPEG_LOSSLESS: &str = "1.2.840.10008.1.2.4.57";
/// JPEG-LS near-lossless, which lossless streams may be sent as.
pub const JPEG_LS: &str = "1.2.840.10008.1.2.4.81";
/// JPEG 2000.
pub const JPEG_2000: &str = "1.2.840.10008.1.2.4.91";
/// High-throughput JPEG 2000.
pub const HTJ2K: &str = "1.2.840.10008.1.2.4.203";
/// Explicit VR little endian, pixels not compressed.
pub const EXPLICIT: &str = "1.2.840.10008.1.2.1";

const UNDEFINED: [u8; 4] = [0xff; 4];

/// What a header says about its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
    /// 1 or 3.
    pub samples: u16,
    /// Bits stored.
    pub bits: u16,
    /// Two's complement.
    pub signed: bool,
    /// Frames.
    pub frames: u16,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            rows: 12,
            columns: 16,
            samples: 1,
            bits: 8,
            signed: false,
            frames: 1,
        }
    }
}

impl Header {
    /// From four bytes that a mutation can reach: rows, columns, bits, and the rest.
    pub fn of_control([rows, columns, bits, rest]: [u8; 4]) -> Self {
        Self {
            rows: u16::from(rows % 64) + 1,
            columns: u16::from(columns % 64) + 1,
            samples: if rest & 1 == 0 { 1 } else { 3 },
            bits: u16::from(bits % 32) + 1,
            signed: rest & 2 != 0,
            frames: u16::from(rest >> 2 & 3) + 1,
        }
    }

    /// From the frame header of a JPEG or JPEG-LS stream, or the size marker of a JPEG 2000 one.
    pub fn of_stream(stream: &[u8]) -> Option<Self> {
        let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        if let [0xff, 0x4f, 0xff, 0x51, rest @ ..] = stream {
            let rest = rest.get(..41)?;
            // The upper halves are the mutator's to break.
            let size = |end: usize, start: usize| {
                word(&rest[end + 2..]).wrapping_sub(word(&rest[start + 2..]))
            };
            return Some(Self {
                columns: size(4, 12),
                rows: size(8, 16),
                samples: word(&rest[36..]),
                bits: u16::from(rest[38] & 0x7f) + 1,
                signed: rest[38] & 0x80 != 0,
                frames: 1,
            });
        }
        let frame = stream.windows(10).find(|w| {
            w[0] == 0xff
                && (matches!(w[1], 0xf7)
                    || (0xc0..=0xcf).contains(&w[1]) && !matches!(w[1], 0xc4 | 0xc8 | 0xcc))
        })?;
        Some(Self {
            rows: word(&frame[5..]),
            columns: word(&frame[7..]),
            samples: u16::from(frame[9]),
            bits: u16::from(frame[4]),
            signed: false,
            frames: 1,
        })
    }

    fn allocated(self) -> u16 {
        match self.bits {
            0..=8 => 8,
            9..=16 => 16,
            _ => 32,
        }
    }
}

/// An element with a short length field.
pub fn element(group: u16, number: u16, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(group.to_le_bytes());
    out.extend(number.to_le_bytes());
    out.extend(vr);
    let padded = value.len().next_multiple_of(2);
    if matches!(vr, b"OB" | b"OW" | b"SQ" | b"UN") {
        out.extend([0, 0]);
        out.extend((padded as u32).to_le_bytes());
    } else {
        out.extend((padded as u16).to_le_bytes());
    }
    out.extend(value);
    if padded > value.len() {
        out.push(if vr == b"UI" || vr == b"OB" { 0 } else { b' ' });
    }
    out
}

/// The items of a sequence, each with its length.
pub fn sequence(group: u16, number: u16, items: &[Vec<u8>]) -> Vec<u8> {
    let mut value = Vec::new();
    for content in items {
        value.extend(item(content));
    }
    element(group, number, b"SQ", &value)
}

fn item(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0xfe, 0xff, 0x00, 0xe0];
    out.extend((content.len() as u32).to_le_bytes());
    out.extend(content);
    out
}

/// Preamble, meta information, and these elements behind them.
pub fn file(syntax: &str, elements: &[Vec<u8>]) -> Vec<u8> {
    let mut meta = element(2, 1, b"OB", &[0, 1]);
    meta.extend(element(2, 2, b"UI", b"1.2.840.10008.5.1.4.1.1.1"));
    meta.extend(element(2, 3, b"UI", b"2.25.1"));
    meta.extend(element(2, 0x10, b"UI", syntax.as_bytes()));
    let mut out = vec![0; 128];
    out.extend(b"DICM");
    out.extend(element(2, 0, b"UL", &(meta.len() as u32).to_le_bytes()));
    out.extend(meta);
    out.extend(elements.concat());
    out
}

/// Everything before the pixels.
pub fn head(header: &Header) -> Vec<Vec<u8>> {
    let us = |number, value: u16| element(0x28, number, b"US", &value.to_le_bytes());
    let photometric: &[u8] = if header.samples == 1 {
        b"MONOCHROME2"
    } else {
        b"RGB"
    };
    vec![
        element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.1"),
        element(8, 0x18, b"UI", b"2.25.1"),
        element(8, 0x60, b"CS", b"CR"),
        us(2, header.samples),
        element(0x28, 4, b"CS", photometric),
        us(6, 0),
        element(0x28, 8, b"IS", header.frames.to_string().as_bytes()),
        us(0x10, header.rows),
        us(0x11, header.columns),
        us(0x100, header.allocated()),
        us(0x101, header.bits),
        us(0x102, header.bits.saturating_sub(1)),
        us(0x103, u16::from(header.signed)),
    ]
}

/// A file with uncompressed pixels.
pub fn native(header: &Header, pixels: &[u8]) -> Vec<u8> {
    let mut elements = head(header);
    elements.push(element(0x7fe0, 0x10, b"OW", pixels));
    file(EXPLICIT, &elements)
}

/// A file with one compressed frame, in one fragment, or in two where the stream is long and odd enough.
pub fn encapsulated(header: &Header, syntax: &str, stream: &[u8]) -> Vec<u8> {
    let mut elements = head(&Header {
        frames: 1,
        ..*header
    });
    let mut data = element(0x7fe0, 0x10, b"OB", &[]);
    let length = data.len();
    data[length - 4..].copy_from_slice(&UNDEFINED);
    data.extend(item(&[]));
    let split = match stream.len() {
        length if syntax != RLE && length % 8 == 7 => (length / 2) & !1,
        length => length,
    };
    for fragment in [&stream[..split], &stream[split..]] {
        if fragment.is_empty() {
            continue;
        }
        let mut padded = fragment.to_vec();
        padded.resize(fragment.len().next_multiple_of(2), 0);
        data.extend(item(&padded));
    }
    data.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
    elements.push(data);
    file(syntax, &elements)
}
