//! CR, DX and MG: each frame as its header shows it.

use dicom_dictionary_std::tags;

use crate::dicom::File;
use crate::grey::{Look, to_grey};
use crate::shutter::Shutter;
use crate::square::Picture;
use crate::voi::read_voi;
use crate::{Decoded, Modality, Note, Options, Reason, Refusal, Source};

/// Grey levels of the only frame by its header, padded and resized.
pub(crate) fn decode(
    file: &File<'_>,
    modality: Modality,
    source: Source,
    options: &Options,
) -> Result<Decoded, Refusal> {
    file.refuse_raw()?;
    let image = &file.image;
    if !image.photometric.is_grey() {
        return Err(Refusal::at(
            Reason::UnsupportedPhotometric,
            tags::PHOTOMETRIC_INTERPRETATION,
        )
        .found(image.photometric));
    }
    file.refuse_several_frames()?;
    file.refuse_non_square(0)?;
    file.refuse_turned_chest()?;
    let transform = file.transform(0)?;
    file.refuse_presentation_lut()?;
    let mut notes = file.notes()?;
    let voi = read_voi(
        &file.groups.of(0, tags::FRAME_VOILUT_SEQUENCE)?,
        image.cell,
        &transform,
        &mut notes,
    )?;
    let look = Look {
        transform,
        voi,
        padding: file.padding()?,
        shutter: Shutter::read(&file.header.elements, (image.rows, image.columns))?,
    };
    let cells = file.frames()?.decode(0)?;
    let mut grey = to_grey(&cells.values, image, &look)?;
    let is_flat = |levels: &[u8]| levels.windows(2).all(|pair| pair[0] == pair[1]);
    let flat = match &look.shutter {
        Some(shutter) => is_flat(&shutter.uncovered(&grey.levels)),
        None => is_flat(&grey.levels),
    };
    // A window beside all of its values leaves a film of one level.
    if flat {
        return Err(Refusal::at(Reason::FlatImage, tags::WINDOW_CENTER));
    }
    notes.extend(grey.notes);
    if let Some(shutter) = &look.shutter {
        shutter.cover(&mut grey.levels);
        notes.push(Note::ShutterApplied);
    }
    let picture = Picture {
        width: image.columns,
        height: image.rows,
        channels: 1,
        pixels: grey.levels,
    };
    let mut decoded = source.alone(&picture, notes, options)?;
    for (_, info) in &mut decoded.frames {
        info.modality = Some(modality);
        info.photometric = Some(image.photometric);
        info.window = Some(grey.window);
    }
    decoded.clinical = file.clinical();
    Ok(decoded)
}
