//! Stored cells → grey levels 0 to 255 as the header shows them: modality values, values of interest, and for MONOCHROME1
//! one inversion, in this order. A cell of up to 16 bits has at most 65536 values, so the chain is computed once for each.

use crate::admission::{Cell, Image};
use crate::shutter::Shutter;
use crate::transform::Transform;
use crate::voi::{Curve, Voi};
use crate::{Note, Photometric, Reason, Refusal, Window, WindowFunction, WindowSource};

/// Bits of a stored value up to which levels are looked up and not computed.
const TABLE_BITS_MAX: u16 = 16;

/// How one frame's stored values are to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) transform: Transform,
    pub(crate) voi: Voi,
    /// Stored values, smallest to largest, that are padding.
    pub(crate) padding: Option<(i64, i64)>,
    /// What it covers is no part of a range; whoever shows the levels covers them.
    pub(crate) shutter: Option<Shutter>,
}

/// Grey levels, one byte a pixel, and the window that made them.
#[derive(Debug)]
pub(crate) struct Grey {
    pub(crate) levels: Vec<u8>,
    pub(crate) window: Window,
    pub(crate) notes: Vec<Note>,
}

pub(crate) fn to_grey(cells: &[u32], image: &Image, look: &Look) -> Result<Grey, Refusal> {
    let mut notes = Vec::new();
    let all = u32::MAX >> (32 - image.cell.bits_allocated);
    let overlay_bits = image.overlay_bits & all & !image.cell.mask();
    if !image.cell.signed && overlay_bits != 0 && cells.iter().any(|raw| raw & overlay_bits != 0) {
        notes.push(Note::HighBitsIgnored);
    }
    let (voi, window) = match &look.voi {
        Voi::Window(curve) => (look.voi.clone(), window(*curve, WindowSource::Header)),
        Voi::Lut(lut) => {
            let width = lut.levels.len() as f64;
            let curve = Curve {
                center: f64::from(lut.first) + width / 2.0,
                width,
                function: WindowFunction::Lut,
            };
            (look.voi.clone(), window(curve, WindowSource::Header))
        }
        Voi::MinMax => {
            let curve = min_max(cells, image, look, &mut notes)?;
            (Voi::Window(curve), window(curve, WindowSource::MinMax))
        }
    };
    let inverted = image.photometric == Photometric::Monochrome1;
    let level = |x: f64| {
        let level = match &voi {
            Voi::Lut(lut) => lut.level(x),
            Voi::Window(curve) => curve.level(x),
            // Replaced by a curve above.
            Voi::MinMax => 0,
        };
        if inverted { 255 - level } else { level }
    };
    let levels = map(cells, image.cell, &look.transform, level);
    if let Some((first, last)) = look.padding {
        let is_padding = |raw: u32| (first..=last).contains(&image.cell.value(raw));
        let mut both = cells.iter().zip(&levels);
        if both.any(|(raw, level)| *level != 0 && is_padding(*raw)) {
            notes.push(Note::PaddingShown);
        }
    }
    Ok(Grey {
        levels,
        window,
        notes,
    })
}

/// The level of every cell's modality value.
pub(crate) fn map(
    cells: &[u32],
    cell: Cell,
    transform: &Transform,
    level: impl Fn(f64) -> u8,
) -> Vec<u8> {
    let mask = cell.mask();
    let of = |raw: u32| level(transform.apply(cell.value(raw)));
    if cell.bits_stored > TABLE_BITS_MAX {
        return cells.iter().map(|raw| of(*raw)).collect();
    }
    let table: Vec<u8> = (0..=mask).map(of).collect();
    cells
        .iter()
        .map(|raw| table[(raw & mask) as usize])
        .collect()
}

/// Smallest and largest stored value, padding left out; whether there was padding.
pub(crate) fn stored_range(
    cells: &[u32],
    cell: Cell,
    padding: Option<(i64, i64)>,
) -> (Option<(i64, i64)>, bool) {
    let mut range: Option<(i64, i64)> = None;
    let mut padded = false;
    for raw in cells {
        let value = cell.value(*raw);
        if padding.is_some_and(|(first, last)| (first..=last).contains(&value)) {
            padded = true;
            continue;
        }
        let (low, high) = range.unwrap_or((value, value));
        range = Some((low.min(value), high.max(value)));
    }
    (range, padded)
}

/// The same of modality values.
pub(crate) fn value_range(
    cells: &[u32],
    cell: Cell,
    transform: &Transform,
    padding: Option<(i64, i64)>,
) -> (Option<(f64, f64)>, bool) {
    let (stored, padded) = stored_range(cells, cell, padding);
    let values = match transform {
        Transform::Rescale(_) => stored.map(|(low, high)| {
            let (a, b) = (transform.apply(low), transform.apply(high));
            (a.min(b), a.max(b))
        }),
        // A table may go up and down: of the values that are there, each counts.
        Transform::Lut(_) => {
            let is_padding =
                |value: &i64| padding.is_some_and(|(first, last)| (first..=last).contains(value));
            let there = cells.iter().map(|raw| cell.value(*raw));
            let values = there.filter(|value| !is_padding(value));
            let values = values.map(|value| transform.apply(value));
            values
                .map(|value| (value, value))
                .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
        }
    };
    (values, padded)
}

pub(crate) fn window(curve: Curve, source: WindowSource) -> Window {
    Window {
        center: curve.center,
        width: curve.width,
        function: curve.function,
        source,
    }
}

/// The line from the smallest to the largest modality value, padding and what a shutter covers left out.
fn min_max(
    cells: &[u32],
    image: &Image,
    look: &Look,
    notes: &mut Vec<Note>,
) -> Result<Curve, Refusal> {
    let of = |cells: &[u32]| value_range(cells, image.cell, &look.transform, look.padding);
    let (range, padded) = match &look.shutter {
        Some(shutter) => of(&shutter.uncovered(cells)),
        None => of(cells),
    };
    if padded {
        notes.push(Note::PaddingExcluded);
    }
    match range {
        Some((low, high)) if Curve::is_between(low, high) => Ok(Curve::between(low, high)),
        _ => Err(Refusal::new(Reason::FlatImage)),
    }
}
