//! JPEG, for DICOM (grey baseline and lossless) and for pictures (grey and colour, baseline and progressive).
//! The decoder fills in for entropy data that ends early, so the end-of-image marker is asked for first.

use std::io::Cursor;

use jpeg_decoder::{CodingProcess, Decoder, Error, ImageInfo, PixelFormat};

use super::{Shape, mismatch};
use crate::{Reason, Refusal};

/// The process a transfer syntax promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    Baseline,
    Lossless,
}

pub(super) fn decode_grey(
    bytes: &[u8],
    shape: Shape,
    process: Process,
) -> Result<Vec<u16>, Refusal> {
    require_end(bytes)?;
    let mut decoder = Decoder::new(Cursor::new(bytes));
    let info = read_info(&mut decoder)?;
    if (u32::from(info.width), u32::from(info.height)) != (shape.width, shape.height) {
        return Err(mismatch(format_args!(
            "{} x {} in the JPEG",
            info.width, info.height
        )));
    }
    let expected = match process {
        Process::Baseline => CodingProcess::DctSequential,
        Process::Lossless => CodingProcess::Lossless,
    };
    if info.coding_process != expected {
        return Err(mismatch(format_args!(
            "another JPEG process than the transfer syntax says"
        )));
    }
    match info.pixel_format {
        PixelFormat::L8 => Ok(decoder
            .decode()
            .map_err(refusal)?
            .into_iter()
            .map(u16::from)
            .collect()),
        PixelFormat::L16 if shape.cell.bits_allocated == 16 => {
            let bytes = decoder.decode().map_err(refusal)?;
            Ok(bytes
                .chunks_exact(2)
                .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
                .collect())
        }
        PixelFormat::L16 => Err(mismatch(format_args!(
            "more than 8 bits a sample in the JPEG"
        ))),
        PixelFormat::RGB24 | PixelFormat::CMYK32 => {
            Err(mismatch(format_args!("several components in the JPEG")))
        }
    }
}

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

pub(crate) fn refusal(error: Error) -> Refusal {
    match error {
        Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Refusal::new(Reason::Truncated)
        }
        // The library's text may quote file content; the reason is enough.
        _ => Refusal::new(Reason::DecodeFailed),
    }
}
