//! A TIFF of one page as a picture: levels are taken as they are, turned upright.

use image::metadata::Orientation;

use super::chunk::Chunk;
use super::tags::Extra;
use super::{Directory, Ink, chunk, directories};
use crate::picture::{dark, is_dark, refuse_non_square, upright};
use crate::square::Picture;
use crate::{Limits, Note, Reason, Refusal, icc};

/// Decodes the only page; smaller copies and masks beside it are left alone.
///
/// # Errors
/// Several pages, and every colour, depth and packing that is not known to come out right.
pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Picture, Vec<Note>), Refusal> {
    let (reader, directories) = directories(bytes)?;
    let mut pages = directories.iter().filter(|directory| !directory.secondary);
    let page = match (pages.next(), pages.next()) {
        (Some(page), None) => page,
        (Some(_), Some(_)) => {
            return Err(Refusal::new(Reason::MultiFrameNotSupportedYet)
                .found(format_args!("{} pages", pages.count() + 2)));
        }
        (None, _) => return Err(Refusal::new(Reason::Malformed)),
    };
    limits.check_pixels(page.width, page.height)?;
    page.admit()?;
    page.admit_size(bytes.len() as u64, limits)?;
    refuse_non_square(page.resolution)?;
    let mut notes = Vec::new();
    if let Some(profile) = page.profile {
        notes.extend(icc::judge(profile)?);
    }
    notes.extend(page_notes(page));
    let channels = page.channels() as usize;
    let mut pixels = vec![0; page.width as usize * page.height as usize * channels];
    let (across, down) = page.grid();
    let (mut transparent, mut all_dark) = (false, page.bits == Some(16));
    for row in 0..down {
        for column in 0..across {
            let chunk = whole_chunk(&reader, page, (row, column))?;
            let pixels_of = chunk.values.chunks_exact(chunk.samples);
            all_dark = all_dark && is_dark(pixels_of.flat_map(|pixel| &pixel[..channels]));
            let levels = levels(page, &chunk, &mut transparent);
            paste(
                &levels,
                page,
                (row, column),
                chunk.width * channels,
                &mut pixels,
            );
        }
    }
    if all_dark {
        return Err(dark());
    }
    if transparent {
        notes.push(Note::AlphaOverBlack);
    }
    let picture = Picture {
        width: page.width,
        height: page.height,
        channels: channels as u32,
        pixels,
    };
    let orientation = Orientation::from_exif(page.orientation).unwrap_or(Orientation::NoTransforms);
    Ok((upright(picture, orientation, &mut notes)?, notes))
}

fn page_notes(page: &Directory<'_>) -> Vec<Note> {
    let mut notes = Vec::new();
    if page.bits == Some(16) {
        notes.push(Note::SixteenBitPicture);
    }
    if page.ink == Some(Ink::WhiteIsZero) {
        notes.push(Note::WhiteIsZero);
    }
    if page.is_jpeg() {
        notes.push(Note::LossyCompressed);
    }
    notes
}

/// A chunk with all samples of a pixel together, also where they lie plane by plane.
fn whole_chunk(
    reader: &super::Reader<'_>,
    page: &Directory<'_>,
    place: (u32, u32),
) -> Result<Chunk, Refusal> {
    if !page.planar {
        return chunk(reader, page, place, 0);
    }
    let mut planes = Vec::with_capacity(page.samples);
    for plane in 0..page.samples {
        planes.push(chunk(reader, page, place, plane)?);
    }
    let (width, height) = (planes[0].width, planes[0].height);
    let values =
        (0..width * height).flat_map(|at| planes.iter().map(move |plane| plane.values[at]));
    Ok(Chunk {
        width,
        height,
        samples: page.samples,
        values: values.collect(),
    })
}

/// Grey levels or colours of a chunk, 8 bits, transparency laid over black.
pub(crate) fn levels(page: &Directory<'_>, chunk: &Chunk, transparent: &mut bool) -> Vec<u8> {
    let sixteen = page.bits == Some(16);
    let full = if sixteen { u16::MAX } else { 0xff };
    // One scale for both depths, so that transparency is laid over black before anything is rounded to 8 bits.
    let scale = if sixteen { 1.0 } else { 257.0 };
    let byte = |value: f64| (value * scale / 257.0).round() as u8;
    let inks = if matches!(page.ink, Some(Ink::Rgb | Ink::Ybr)) {
        3
    } else {
        1
    };
    let mut out = Vec::with_capacity(chunk.width * chunk.height * page.channels() as usize);
    for pixel in chunk.values.chunks_exact(chunk.samples) {
        if page.ink == Some(Ink::Palette) {
            // Tables have 16 bits.
            let entry = usize::from(pixel[0]);
            out.extend((0..3).map(|table| (page.palette[table * 256 + entry] >> 8) as u8));
            continue;
        }
        let alpha = match page.extra {
            Extra::Unassociated | Extra::Associated => pixel[inks],
            Extra::None | Extra::Ignored(_) => full,
        };
        *transparent |= alpha != full;
        let share = match page.extra {
            Extra::Unassociated => f64::from(alpha) / f64::from(full),
            _ => 1.0,
        };
        let white = page.ink == Some(Ink::WhiteIsZero);
        out.extend(pixel[..inks].iter().map(|sample| {
            let sample = if white { full - sample } else { *sample };
            byte(f64::from(sample) * share)
        }));
    }
    out
}

/// Puts the part of a chunk that lies in the picture where it belongs; `stride`: bytes of a row of the chunk.
fn paste(
    levels: &[u8],
    page: &Directory<'_>,
    (row, column): (u32, u32),
    stride: usize,
    pixels: &mut [u8],
) {
    let channels = page.channels() as usize;
    let (left, top) = (
        (column * page.chunk_width) as usize,
        (row * page.chunk_height) as usize,
    );
    let [width, height] = [page.width, page.height].map(|side| side as usize);
    let bytes = (width - left).min(page.chunk_width as usize) * channels;
    for (y, from) in (top..height).zip(levels.chunks_exact(stride)) {
        let at = (y * width + left) * channels;
        pixels[at..at + bytes].copy_from_slice(&from[..bytes]);
    }
}
