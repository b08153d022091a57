//! Values of interest: which modality values become which grey levels (DICOM PS3.3 C.11.2).

use dicom_core::VR;
use dicom_dictionary_std::tags;

use crate::admission::Cell;
use crate::dataset::DataSet;
use crate::transform::{Table, Transform};
use crate::{Note, Reason, Refusal, WindowFunction};

/// How modality values become grey levels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Voi {
    Window(Curve),
    Lut(Lut),
    /// The header says nothing: smallest to largest value of the image.
    MinMax,
}

/// A window's formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Curve {
    pub(crate) center: f64,
    pub(crate) width: f64,
    pub(crate) function: WindowFunction,
}

impl Curve {
    /// The line from `low`, black, to `high`, white.
    pub(crate) fn between(low: f64, high: f64) -> Self {
        Self {
            center: (low + high) / 2.0,
            width: high - low,
            function: WindowFunction::MinMax,
        }
    }

    /// Whether [`Curve::between`] makes a line of them: of numbers near the largest that there are, centre or width is none.
    pub(crate) fn is_between(low: f64, high: f64) -> bool {
        low < high && (high - low).is_finite() && (low + high).is_finite()
    }

    /// Grey level 0 to 255 of a modality value.
    pub(crate) fn level(&self, x: f64) -> u8 {
        let (c, w) = (self.center, self.width);
        let unit = match self.function {
            // C.11.2.1.2.1
            WindowFunction::Linear => {
                if x <= c - 0.5 - (w - 1.0) / 2.0 {
                    0.0
                } else if x > c - 0.5 + (w - 1.0) / 2.0 {
                    1.0
                } else {
                    (x - (c - 0.5)) / (w - 1.0) + 0.5
                }
            }
            // C.11.2.1.3.1
            WindowFunction::Sigmoid => 1.0 / (1.0 + (-4.0 * (x - c) / w).exp()),
            // C.11.2.1.3.2
            WindowFunction::LinearExact | WindowFunction::Lut => {
                ((x - c) / w + 0.5).clamp(0.0, 1.0)
            }
            // The same line, from its black as MedGemma's own preprocessing has it: by the centre, -100 between -135 and 215 is a
            // little less than a tenth, and rounds to another level.
            WindowFunction::MinMax => ((x - (c - w / 2.0)) / w).clamp(0.0, 1.0),
        };
        // Half to even, as numpy rounds; in range by construction.
        (unit * 255.0).round_ties_even() as u8
    }
}

/// A lookup table over modality values (C.11.2.1.1).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lut {
    /// Modality value of the first entry.
    pub(crate) first: i32,
    /// Grey levels, 0 to 255.
    pub(crate) levels: Vec<u8>,
}

impl Lut {
    /// Values before the first entry take the first, values behind the last take the last.
    pub(crate) fn level(&self, x: f64) -> u8 {
        let last = self.levels.len() - 1;
        // Rescale is whole-numbered where a table is admitted, so nothing is cut off here.
        let index = (x - f64::from(self.first)).clamp(0.0, last as f64) as usize;
        self.levels[index]
    }
}

/// Reads what the header says, from the data set or functional group that holds the elements. A table goes before windows,
/// as both may be there and the table is the finer statement.
pub(crate) fn read_voi(
    elements: &DataSet<'_>,
    cell: Cell,
    transform: &Transform,
    notes: &mut Vec<Note>,
) -> Result<Voi, Refusal> {
    let items = elements.items(tags::VOILUT_SEQUENCE)?;
    if let Some(item) = items.first() {
        notes.push(Note::VoiLut);
        if items.len() > 1 {
            notes.push(Note::SeveralVoiLuts);
        }
        return read_lut(item, cell, transform).map(Voi::Lut);
    }
    match read_window(elements, notes)? {
        Some(curve) => Ok(Voi::Window(curve)),
        None => {
            notes.push(Note::NoWindow);
            Ok(Voi::MinMax)
        }
    }
}

fn read_window(elements: &DataSet<'_>, notes: &mut Vec<Note>) -> Result<Option<Curve>, Refusal> {
    let centers = elements.decimals(tags::WINDOW_CENTER, Reason::InvalidWindow)?;
    let widths = elements.decimals(tags::WINDOW_WIDTH, Reason::InvalidWindow)?;
    if centers.len() != widths.len() {
        return Err(
            Refusal::at(Reason::InvalidWindow, tags::WINDOW_WIDTH).found(format_args!(
                "{} centres and {} widths",
                centers.len(),
                widths.len()
            )),
        );
    }
    let (Some(&center), Some(&width)) = (centers.first(), widths.first()) else {
        return Ok(None);
    };
    let function = match elements.text(tags::VOILUT_FUNCTION, VR::CS)? {
        None | Some("LINEAR") => WindowFunction::Linear,
        Some("LINEAR_EXACT") => WindowFunction::LinearExact,
        Some("SIGMOID") => WindowFunction::Sigmoid,
        Some(_) => return Err(Refusal::at(Reason::InvalidWindow, tags::VOILUT_FUNCTION)),
    };
    let usable = if function == WindowFunction::Linear {
        width >= 1.0
    } else {
        width > 0.0
    };
    if !usable {
        return Err(Refusal::at(Reason::InvalidWindow, tags::WINDOW_WIDTH).found(width));
    }
    if centers.len() > 1 {
        notes.push(Note::SeveralWindows);
    }
    Ok(Some(Curve {
        center,
        width,
        function,
    }))
}

fn read_lut(item: &DataSet<'_>, cell: Cell, transform: &Transform) -> Result<Lut, Refusal> {
    if !transform.is_whole() {
        return Err(Refusal::at(Reason::UnsupportedLut, tags::RESCALE_SLOPE));
    }
    // Implicit headers leave US or SS open: the table's input is signed where modality values can be negative.
    let table = Table::read(item, transform.can_be_negative(cell))?;
    if table.is_dim() {
        return Err(Refusal::at(Reason::UnsupportedLut, tags::LUT_DATA)
            .found("entries of fewer bits than the table says"));
    }
    let largest = f64::from(u16::MAX >> (16 - table.bits));
    let levels = table
        .values
        .iter()
        .map(|value| (f64::from(*value) / largest * 255.0).round_ties_even() as u8)
        .collect();
    Ok(Lut {
        first: table.first,
        levels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(function: WindowFunction, center: f64, width: f64, expected: &[(f64, u8)]) {
        let curve = Curve {
            center,
            width,
            function,
        };
        for (x, level) in expected {
            assert_eq!(curve.level(*x), *level, "{curve:?} at {x}");
        }
    }

    #[test]
    fn linear_follows_the_standard() {
        // PS3.3 C.11.2.1.2.1, its note: c=2048 w=4096 maps 0 to 0 and 4095 to 255.
        check(
            WindowFunction::Linear,
            2048.0,
            4096.0,
            &[
                (-1.0, 0),
                (0.0, 0),
                (4095.0, 255),
                (5000.0, 255),
                (2047.0, 127),
            ],
        );
        // Its note: c=2048 w=1 is a threshold at 2047.5.
        check(
            WindowFunction::Linear,
            2048.0,
            1.0,
            &[(2047.0, 0), (2048.0, 255)],
        );
        check(
            WindowFunction::Linear,
            40.0,
            400.0,
            &[(-160.0, 0), (239.0, 255), (39.0, 127), (40.0, 128)],
        );
    }

    #[test]
    fn a_range_that_has_no_middle_or_no_width_is_none() {
        assert!(Curve::is_between(-1.0, 1e300));
        for (low, high) in [
            (1.0, 1.0),
            (-1e308, 1e308),
            (1e308, 1.5e308),
            (0.0, f64::INFINITY),
        ] {
            assert!(!Curve::is_between(low, high), "{low} {high}");
        }
    }

    /// Where a level is halfway between two.
    #[test]
    fn a_range_rounds_as_the_models_own_preprocessing() {
        // np.round((np.float32(x) - low) / (high - low) * 255), numpy 2.4.6.
        for (low, high, x, level) in [
            (-135.0, 215.0, -100.0, 26),
            (-135.0, 215.0, 180.0, 230),
            (0.0, 80.0, 8.0, 26),
            (0.0, 80.0, 72.0, 230),
            (-1225.0, 1025.0, -1000.0, 26),
            (-1225.0, 1025.0, -850.0, 42),
            (-1024.0, 1024.0, 0.0, 128),
        ] {
            assert_eq!(
                Curve::between(low, high).level(x),
                level,
                "{low} {high} {x}"
            );
        }
    }

    #[test]
    fn linear_exact_follows_the_standard() {
        check(
            WindowFunction::LinearExact,
            150.0,
            100.0,
            &[
                (100.0, 0),
                (125.0, 64),
                (124.0, 61),
                (150.0, 128),
                (200.0, 255),
                (201.0, 255),
            ],
        );
    }

    #[test]
    fn sigmoid_follows_the_standard() {
        check(
            WindowFunction::Sigmoid,
            100.0,
            50.0,
            &[
                (100.0, 128),
                (-1e6, 0),
                (1e6, 255),
                (125.0, 225),
                (75.0, 30),
            ],
        );
    }

    #[test]
    fn a_table_clamps_at_both_ends() {
        let lut = Lut {
            first: -1,
            levels: vec![10, 20, 30],
        };
        for (x, level) in [(-5.0, 10), (-1.0, 10), (0.0, 20), (1.0, 30), (9.0, 30)] {
            assert_eq!(lut.level(x), level);
        }
    }
}
