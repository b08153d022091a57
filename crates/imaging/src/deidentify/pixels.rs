//! Every frame of an object, shown to a program that reads text. The object's own pixels are not touched: they are copied as
//! they are, or the object is refused.

use crate::codec::Cells;
use crate::dicom::File;
use crate::grey::stored_range;
use crate::header::Opened;
use crate::square::Picture;
use crate::{Limits, Refusal, TextCheck};

/// Looks at every frame.
///
/// # Errors
/// Text; and what can't be decoded, since nothing is known of its text.
pub(super) fn refuse_text(
    opened: &Opened<'_>,
    limits: &Limits,
    check: &TextCheck,
) -> Result<(), Refusal> {
    let file = File::read(opened, limits)?;
    let frames = file.frames()?;
    for index in 0..file.image.frames {
        if let Some(picture) = picture(&file, frames.decode(index)?) {
            check.refuse(&picture)?;
        }
    }
    Ok(())
}

/// All values of a frame, from the lowest as black to the highest as white: text may stand in those that no window shows.
/// `None` where every value is the same.
fn picture(file: &File<'_>, cells: Cells) -> Option<Picture> {
    let image = &file.image;
    let (channels, pixels) = if image.photometric.is_grey() {
        let (range, _) = stored_range(&cells.values, image.cell, None);
        let (low, high) = range.filter(|(low, high)| low < high)?;
        let values = cells.values.iter();
        let level = |raw: &u32| level(image.cell.value(*raw) - low, high - low);
        (1, values.map(level).collect())
    } else {
        let (samples, _) = file.colours(cells);
        let high = samples.iter().max().filter(|high| **high > 0)?;
        let high = i64::from(*high);
        let values = samples.iter();
        (3, values.map(|v| level(i64::from(*v), high)).collect())
    };
    Some(Picture {
        width: image.columns,
        height: image.rows,
        channels,
        pixels,
    })
}

/// 0 to 255 of a value from 0 to `high`, which is above 0.
fn level(value: i64, high: i64) -> u8 {
    // Values have 32 bits, so that nothing overflows, and the quotient is at most 255.
    (value * 255 / high) as u8
}
