//! PNG and JPEG pictures: levels are taken as they are, no window is applied.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::error::{ImageError, LimitErrorKind, UnsupportedErrorKind};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, GrayImage, ImageDecoder, RgbImage};
use jpeg_decoder::{Decoder, PixelFormat};

use crate::codec::guarded;
use crate::codec::jpeg::picture as jpeg;
use crate::square::{Picture, is_square};
use crate::{Format, Limits, Note, Reason, Refusal, icc};

/// Primaries, transfer, matrix and range of sRGB, as a PNG's cICP has them (ITU-T H.273).
const SRGB_CODE_POINTS: &[u8] = &[1, 13, 0, 1];

/// Columns and rows of a PNG or JPEG, where its beginning says so.
pub(crate) fn size(bytes: &[u8], format: Format) -> Option<(u32, u32)> {
    // The image header comes first (ISO 15948, 11.2.2).
    const PNG_SIZE_AT: usize = 16;
    let png = |at: usize| {
        let four = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(four))
    };
    match format {
        Format::Png => Some((png(PNG_SIZE_AT)?, png(PNG_SIZE_AT + 4)?)),
        Format::Jpeg => {
            let info = guarded(|| jpeg::read_info(&mut Decoder::new(Cursor::new(bytes)))).ok()?;
            Some((info.width.into(), info.height.into()))
        }
        _ => None,
    }
}

pub(crate) fn decode_png(bytes: &[u8], limits: &Limits) -> Result<(Picture, Vec<Note>), Refusal> {
    let mut decoder = png_decoder(bytes, limits)?;
    let (width, height) = decoder.dimensions();
    limits.check_pixels(width, height)?;
    limits.check_ratio(bytes.len() as u64, decoder.total_bytes())?;
    if decoder.is_apng().map_err(png_refusal)? {
        return Err(Refusal::new(Reason::MultiFrameNotSupportedYet));
    }
    refuse_non_square(png_density(bytes))?;
    // The decoder knows only what comes before the pixels, and many writers append it.
    let orientation = png_chunk(bytes, b"eXIf")
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms);
    let color = decoder.color_type();
    let mut notes: Vec<Note> = png_profile(&mut decoder, bytes)?.into_iter().collect();
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(png_refusal)?;
    let (color_channels, alpha, sixteen) = match color {
        ColorType::L8 => (1, false, false),
        ColorType::La8 => (1, true, false),
        ColorType::L16 => (1, false, true),
        ColorType::La16 => (1, true, true),
        ColorType::Rgb8 => (3, false, false),
        ColorType::Rgba8 => (3, true, false),
        ColorType::Rgb16 => (3, false, true),
        ColorType::Rgba16 => (3, true, true),
        _ => return Err(Refusal::new(Reason::UnsupportedColour)),
    };
    // One scale for both depths, so that transparency is laid over black before anything is rounded to 8 bits.
    let samples: Vec<u16> = if sixteen {
        notes.push(Note::SixteenBitPicture);
        raw.chunks_exact(2)
            .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
            .collect()
    } else {
        raw.iter().map(|byte| u16::from(*byte) * 257).collect()
    };
    let colours = samples
        .chunks_exact(color_channels + usize::from(alpha))
        .flat_map(|pixel| &pixel[..color_channels]);
    if sixteen && is_dark(colours) {
        return Err(dark());
    }
    let pixels = if alpha {
        if samples
            .chunks_exact(color_channels + 1)
            .any(|pixel| pixel[color_channels] != u16::MAX)
        {
            notes.push(Note::AlphaOverBlack);
        }
        samples
            .chunks_exact(color_channels + 1)
            .flat_map(|pixel| over_black(pixel, color_channels))
            .collect()
    } else {
        samples
            .iter()
            .map(|sample| to_byte(f64::from(*sample)))
            .collect()
    };
    let picture = Picture {
        width,
        height,
        channels: color_channels as u32,
        pixels,
    };
    Ok((upright(picture, orientation, &mut notes)?, notes))
}

/// A profile may unpack to a thousand times its bytes, and is unpacked before anything can be asked. Chunks that are not packed are
/// held twice at most.
fn png_decoder<'a>(
    bytes: &'a [u8],
    limits: &Limits,
) -> Result<PngDecoder<Cursor<&'a [u8]>>, Refusal> {
    let mut memory = image::Limits::no_limits();
    let chunks = 2 * bytes.len() as u64;
    memory.max_alloc = Some(limits.header_bytes_max.saturating_add(chunks));
    PngDecoder::with_limits(Cursor::new(bytes), memory).map_err(png_refusal)
}

/// What is to be said of its colours.
fn png_profile(
    decoder: &mut PngDecoder<Cursor<&[u8]>>,
    bytes: &[u8],
) -> Result<Option<Note>, Refusal> {
    if let Some(profile) = decoder.icc_profile().map_err(png_refusal)? {
        return icc::judge(&profile);
    }
    // A profile that is broken, or larger than any is, or colours that are said in another way.
    let other = png_chunk(bytes, b"iCCP").is_some()
        || png_chunk(bytes, b"cICP").is_some_and(|points| points != SRGB_CODE_POINTS)
        || png_chunk(bytes, b"sRGB").is_none() && png_gamma(bytes).is_some_and(is_other_gamma);
    Ok(other.then_some(Note::ProfileNotApplied))
}

/// The gamma that a PNG says its samples were written with, times 100,000 (ISO 15948, 11.3.3.2); browsers show by it.
fn png_gamma(bytes: &[u8]) -> Option<u32> {
    let four = png_chunk(bytes, b"gAMA")?.try_into().ok()?;
    Some(u32::from_be_bytes(four))
}

/// Whether a gamma is not that of sRGB, 1 / 2.2, by more than writers' rounding. Zero says nothing.
fn is_other_gamma(gamma: u32) -> bool {
    gamma != 0 && gamma.abs_diff(45_455) > 455
}

/// Whether samples of 16 bits leave the two highest unused: values of 12 or 14 bits as a detector has them, which nobody scaled.
pub(crate) fn is_dark<'a>(mut samples: impl Iterator<Item = &'a u16>) -> bool {
    samples.all(|sample| *sample <= u16::MAX >> 2)
}

/// Why they are refused: a radiograph would come out nearly black.
pub(crate) fn dark() -> Refusal {
    Refusal::new(Reason::UnsupportedColour).found("16 bits of which the two highest are unused")
}

/// Frames that were grabbed of a video have pixels of another shape, and would come out stretched.
///
/// # Errors
/// Pixels a unit of length, across and down, that differ.
pub(crate) fn refuse_non_square(density: Option<(f64, f64)>) -> Result<(), Refusal> {
    match density {
        // Zeros say nothing.
        Some((across, down)) if across > 0.0 && down > 0.0 && !is_square(across, down) => {
            Err(Refusal::new(Reason::NonSquarePixels).found(format_args!("{down}:{across}")))
        }
        _ => Ok(()),
    }
}

/// Of a PNG, which says so in a chunk before its pixels (ISO 15948, 11.3.5.3).
fn png_density(bytes: &[u8]) -> Option<(f64, f64)> {
    let (across, rest) = png_chunk(bytes, b"pHYs")?.split_first_chunk::<4>()?;
    let (down, _) = rest.split_first_chunk::<4>()?;
    let [across, down] = [across, down].map(|four| f64::from(u32::from_be_bytes(*four)));
    Some((across, down))
}

/// The content of the first chunk of this name.
fn png_chunk<'a>(bytes: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    const SIGNATURE_BYTES: usize = 8;
    const CHECKSUM_BYTES: usize = 4;
    let mut at = SIGNATURE_BYTES;
    loop {
        let (length, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
        let content = at + 8;
        let end = content.checked_add(u32::from_be_bytes(*length) as usize)?;
        match bytes.get(at + 4..content)? {
            found if found == name => return bytes.get(content..end),
            _ => at = end.checked_add(CHECKSUM_BYTES)?,
        }
    }
}

/// Of a JPEG, which says so in its first segment (JFIF 1.02).
fn jpeg_density(bytes: &[u8]) -> Option<(f64, f64)> {
    let segment = bytes.strip_prefix(&[0xff, 0xd8, 0xff, 0xe0])?;
    let content = segment.get(2..)?.strip_prefix(b"JFIF\0")?;
    // Behind two bytes of version and one of the unit.
    let &[_, _, _, x1, x0, y1, y0, ..] = content else {
        return None;
    };
    let [across, down] = [[x1, x0], [y1, y0]].map(u16::from_be_bytes);
    Some((across.into(), down.into()))
}

fn to_byte(sixteen: f64) -> u8 {
    (sixteen / 257.0).round() as u8
}

fn over_black(pixel: &[u16], colors: usize) -> impl Iterator<Item = u8> {
    let alpha = f64::from(pixel[colors]) / f64::from(u16::MAX);
    pixel[..colors]
        .iter()
        .map(move |sample| to_byte(f64::from(*sample) * alpha))
}

pub(crate) fn decode_jpeg(bytes: &[u8], limits: &Limits) -> Result<(Picture, Vec<Note>), Refusal> {
    jpeg::require_end(bytes)?;
    let mut decoder = Decoder::new(Cursor::new(bytes));
    let info = jpeg::read_info(&mut decoder)?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    limits.check_pixels(width, height)?;
    refuse_non_square(jpeg_density(bytes))?;
    let channels = match info.pixel_format {
        PixelFormat::L8 => 1,
        PixelFormat::RGB24 => 3,
        PixelFormat::L16 | PixelFormat::CMYK32 => {
            return Err(Refusal::new(Reason::UnsupportedColour));
        }
    };
    let samples = u64::from(width) * u64::from(height) * u64::from(channels);
    limits.check_ratio(bytes.len() as u64, samples)?;
    let orientation = decoder
        .exif_data()
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms);
    let pixels = guarded(|| jpeg::decode_complete(&mut decoder, bytes))?;
    // Of a lossless one that has not 8 bits the decoder gives two bytes a sample, whatever format it says.
    if pixels.len() as u64 != samples {
        return Err(Refusal::new(Reason::UnsupportedColour).found("not 8 bits a sample"));
    }
    let mut notes = vec![Note::LossyCompressed];
    if let Some(profile) = decoder.icc_profile() {
        notes.extend(icc::judge(&profile)?);
    }
    Ok((
        upright(
            Picture {
                width,
                height,
                channels,
                pixels,
            },
            orientation,
            &mut notes,
        )?,
        notes,
    ))
}

/// Turns the picture as its Exif orientation asks, and drops colour channels that say nothing.
pub(crate) fn upright(
    picture: Picture,
    orientation: Orientation,
    notes: &mut Vec<Note>,
) -> Result<Picture, Refusal> {
    let Picture {
        width,
        height,
        channels,
        pixels,
    } = picture;
    let wrong_size = || Refusal::new(Reason::PixelDataMismatch);
    let grey = channels == 1
        || pixels
            .chunks_exact(3)
            .all(|rgb| rgb[0] == rgb[1] && rgb[1] == rgb[2]);
    let mut image = if grey {
        let pixels = pixels.into_iter().step_by(channels as usize).collect();
        DynamicImage::ImageLuma8(GrayImage::from_raw(width, height, pixels).ok_or_else(wrong_size)?)
    } else {
        DynamicImage::ImageRgb8(RgbImage::from_raw(width, height, pixels).ok_or_else(wrong_size)?)
    };
    if orientation != Orientation::NoTransforms {
        image.apply_orientation(orientation);
        notes.push(Note::ExifOrientation);
    }
    Ok(Picture {
        width: image.width(),
        height: image.height(),
        channels: if grey { 1 } else { 3 },
        pixels: image.into_bytes(),
    })
}

fn png_refusal(error: ImageError) -> Refusal {
    let reason = match &error {
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Reason::Truncated
        }
        ImageError::Limits(error)
            if !matches!(error.kind(), LimitErrorKind::Unsupported { .. }) =>
        {
            Reason::TooManyPixels
        }
        ImageError::Unsupported(error)
            if matches!(error.kind(), UnsupportedErrorKind::Color(_)) =>
        {
            Reason::UnsupportedColour
        }
        _ => Reason::DecodeFailed,
    };
    Refusal::new(reason)
}
