//! Writes a frame as PNG, for people to look at.

use std::io::Cursor;

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::Frame;

/// The frame as an 8-bit PNG, grey or RGB.
///
/// # Errors
/// [`PngError`] if `pixels` is not `side * side * channels` bytes, or channels is neither 1 nor 3.
pub fn frame_to_png(frame: &Frame) -> Result<Vec<u8>, PngError> {
    let color = match frame.channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        channels => return Err(PngError::Channels { channels }),
    };
    let expected = u64::from(frame.side) * u64::from(frame.side) * u64::from(frame.channels);
    if frame.pixels.len() as u64 != expected {
        return Err(PngError::Length {
            expected,
            found: frame.pixels.len() as u64,
        });
    }
    let mut out = Cursor::new(Vec::new());
    PngEncoder::new(&mut out)
        .write_image(&frame.pixels, frame.side, frame.side, color)
        .map_err(|source| PngError::Encode { source })?;
    Ok(out.into_inner())
}

/// Why a frame cannot be written as PNG.
#[derive(Debug, thiserror::Error)]
pub enum PngError {
    #[error("a frame has 1 or 3 channels, found {channels}")]
    Channels { channels: u32 },
    #[error("a frame of this shape has {expected} bytes, found {found}")]
    Length { expected: u64, found: u64 },
    #[error("the PNG encoder failed")]
    Encode { source: image::ImageError },
}
