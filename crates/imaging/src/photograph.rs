//! Visible light: photographs of skin, eyes, wounds and slides, endoscopy, and one section of an eye (DICOM PS3.3 A.32, A.41).
//! Levels are taken as they are where the header has no window, as they are for PNG and JPEG.

use dicom_core::VR;
use dicom_dictionary_std::tags;

use crate::admission::Image;
use crate::codec::Cells;
use crate::dicom::File;
use crate::grey::{Look, to_grey};
use crate::square::Picture;
use crate::voi::{Curve, Voi, read_voi};
use crate::{Decoded, Modality, Note, Options, Photometric, Reason, Refusal, Source, Window, icc};

/// The only frame of a file.
///
/// # Errors
/// Several frames, pixels that are not square, colours that no profile of red, green and blue stands for.
pub(crate) fn decode(
    file: &File<'_>,
    modality: Modality,
    source: Source,
    options: &Options,
) -> Result<Decoded, Refusal> {
    let image = &file.image;
    file.refuse_several_frames()?;
    file.refuse_non_square(0)?;
    file.refuse_shutter()?;
    let mut notes = file.notes()?;
    let cells = file.frames()?.decode(0)?;
    let (picture, window) = if image.photometric.is_grey() {
        grey(file, &cells, &mut notes)?
    } else {
        notes.extend(profile(file)?);
        refuse_dark(image, &cells)?;
        (colour(file, cells, &mut notes), None)
    };
    let mut decoded = source.alone(&picture, notes, options)?;
    for (_, info) in &mut decoded.frames {
        info.modality = Some(modality);
        info.photometric = Some(image.photometric);
        info.window = window;
    }
    decoded.clinical = file.clinical();
    Ok(decoded)
}

/// What the header says of its colours; Color Space (0028,2002) names profiles by word.
pub(crate) fn profile(file: &File<'_>) -> Result<Option<Note>, Refusal> {
    let space = file.header.text(tags::COLOR_SPACE, VR::CS)?;
    if let Some(value) = file.header.elements.value(tags::ICC_PROFILE) {
        return icc::judge(value.bytes);
    }
    Ok(space
        .is_some_and(|space| space != "SRGB")
        .then_some(Note::ProfileNotApplied))
}

/// Red, green and blue, 8 bits; one channel where they are equal throughout, as everywhere else.
pub(crate) fn colour(file: &File<'_>, cells: Cells, notes: &mut Vec<Note>) -> Picture {
    let image = &file.image;
    let (samples, allocated) = file.colours(cells);
    let bits = if image.photometric == Photometric::PaletteColor {
        allocated
    } else {
        u32::from(image.cell.bits_stored)
    };
    if bits > 8 {
        notes.push(Note::DeepPhotograph);
    }
    let largest = f64::from(u32::MAX >> (32 - bits));
    let level = |sample: u32| match bits {
        8 => sample as u8,
        _ => (f64::from(sample) / largest * 255.0).round_ties_even() as u8,
    };
    let grey = samples
        .chunks_exact(3)
        .all(|rgb| rgb[0] == rgb[1] && rgb[1] == rgb[2]);
    let (channels, step) = if grey { (1, 3) } else { (3, 1) };
    Picture {
        width: image.columns,
        height: image.rows,
        channels,
        pixels: samples.into_iter().step_by(step).map(level).collect(),
    }
}

/// Without a window all that the header stores is shown, so that a picture of fewer bits would come out nearly black.
///
/// # Errors
/// Levels of more than 8 bits that leave the two highest unused.
fn refuse_dark(image: &Image, cells: &Cells) -> Result<(), Refusal> {
    let (cell, mask) = (image.cell, image.cell.mask());
    let is_level = image.photometric != Photometric::PaletteColor && !cell.signed;
    let is_dark = |raw: &u32| raw & mask <= mask >> 2;
    if is_level && cell.bits_stored > 8 && cells.values.iter().all(is_dark) {
        let refusal = Refusal::at(Reason::PixelDataMismatch, tags::BITS_STORED);
        return Err(refusal.found("two highest bits that are unused"));
    }
    Ok(())
}

/// By the header's window; without one, the whole range of stored values from black to white.
fn grey(
    file: &File<'_>,
    cells: &Cells,
    notes: &mut Vec<Note>,
) -> Result<(Picture, Option<Window>), Refusal> {
    let image = &file.image;
    let transform = file.transform(0)?;
    file.refuse_presentation_lut()?;
    let elements = file.groups.of(0, tags::FRAME_VOILUT_SEQUENCE)?;
    let mut voi = read_voi(&elements, image.cell, &transform, notes)?;
    let windowed = voi != Voi::MinMax;
    if !windowed {
        notes.retain(|note| *note != Note::NoWindow);
        refuse_dark(image, cells)?;
        let (low, high) = image.cell.range();
        if image.cell.bits_stored > 8 {
            notes.push(Note::DeepPhotograph);
        }
        let (a, b) = (transform.apply(low), transform.apply(high));
        let (low, high) = (a.min(b), a.max(b));
        if !Curve::is_between(low, high) {
            return Err(Refusal::at(Reason::FlatImage, tags::RESCALE_SLOPE));
        }
        voi = Voi::Window(Curve::between(low, high));
    }
    let look = Look {
        transform,
        voi,
        padding: None,
        shutter: None,
    };
    let grey = to_grey(&cells.values, image, &look)?;
    notes.extend(grey.notes);
    let picture = Picture {
        width: image.columns,
        height: image.rows,
        channels: 1,
        pixels: grey.levels,
    };
    Ok((picture, windowed.then_some(grey.window)))
}
