//! Stored cells → grey levels 0 to 255: rescale, values of interest, and for MONOCHROME1 one inversion, in this order.
//! A cell has at most 65536 values, so the chain is computed once for each in f64 and applied as a table.

use crate::admission::{Plan, Rescale};
use crate::voi::{Curve, Voi};
use crate::{Note, Photometric, Reason, Refusal, Window, WindowFunction, WindowSource};

/// Grey levels, one byte a pixel, and the window that made them.
#[derive(Debug)]
pub(crate) struct Grey {
    pub(crate) levels: Vec<u8>,
    pub(crate) window: Window,
    pub(crate) notes: Vec<Note>,
}

pub(crate) fn to_grey(cells: &[u16], plan: &Plan) -> Result<Grey, Refusal> {
    let mut notes = plan.notes.clone();
    let mask = plan.cell.mask();
    let all = u16::MAX >> (16 - plan.cell.bits_allocated);
    let overlay_bits = plan.overlay_bits & all & !mask;
    let overlaid = !plan.cell.signed && cells.iter().any(|raw| raw & overlay_bits != 0);
    if overlaid {
        notes.push(Note::HighBitsIgnored);
    }
    let modality = |raw: u16| rescaled(plan.cell.value(raw), plan.rescale);
    let (level, window): (Box<dyn Fn(u16) -> u8 + '_>, Window) = match &plan.voi {
        Voi::Window(curve) => (
            Box::new(move |raw| curve.level(modality(raw))),
            window(*curve, WindowSource::Header),
        ),
        Voi::Lut(lut) => {
            let width = lut.levels.len() as f64;
            let curve = Curve {
                center: f64::from(lut.first) + width / 2.0,
                width,
                function: WindowFunction::Lut,
            };
            (
                Box::new(move |raw| lut.level(modality(raw))),
                window(curve, WindowSource::Header),
            )
        }
        Voi::MinMax => {
            let curve = min_max(cells, plan, &mut notes)?;
            (
                Box::new(move |raw| curve.level(modality(raw))),
                window(curve, WindowSource::MinMax),
            )
        }
    };
    let inverted = plan.photometric == Photometric::Monochrome1;
    let table: Vec<u8> = (0..=mask)
        .map(|raw| {
            if inverted {
                255 - level(raw)
            } else {
                level(raw)
            }
        })
        .collect();
    let levels = cells
        .iter()
        .map(|raw| table[usize::from(raw & mask)])
        .collect();
    Ok(Grey {
        levels,
        window,
        notes,
    })
}

fn rescaled(stored: i32, rescale: Rescale) -> f64 {
    f64::from(stored) * rescale.slope + rescale.intercept
}

fn window(curve: Curve, source: WindowSource) -> Window {
    Window {
        center: curve.center,
        width: curve.width,
        function: curve.function,
        source,
    }
}

/// The line from the smallest to the largest modality value, padding left out.
fn min_max(cells: &[u16], plan: &Plan, notes: &mut Vec<Note>) -> Result<Curve, Refusal> {
    let is_padding = |value: i32| {
        plan.padding
            .is_some_and(|(first, last)| (first..=last).contains(&value))
    };
    let mut range: Option<(i32, i32)> = None;
    let mut padded = false;
    for raw in cells {
        let value = plan.cell.value(*raw);
        if is_padding(value) {
            padded = true;
            continue;
        }
        let (low, high) = range.unwrap_or((value, value));
        range = Some((low.min(value), high.max(value)));
    }
    if padded {
        notes.push(Note::PaddingExcluded);
    }
    let flat = || Refusal::new(Reason::FlatImage);
    let (low, high) = range.ok_or_else(flat)?;
    if low == high {
        return Err(flat());
    }
    let (a, b) = (rescaled(low, plan.rescale), rescaled(high, plan.rescale));
    Ok(Curve {
        center: (a + b) / 2.0,
        width: (b - a).abs(),
        function: WindowFunction::MinMax,
    })
}
