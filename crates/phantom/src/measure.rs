//! How strong a finding must be for its contrast, and where its box is: measured on the grid that training sees.
//!
//! Contrast-to-noise ratio: the mean of what the finding changes over its region, divided by the standard deviation of noise
//! and lung texture there, in absorption, in a picture of [`PROBE`] pixels. The tone curve scales both alike.

use crate::acquisition::Acquisition;
use crate::grid::{Canvas, Grid};

/// Pixels along the longer side at which contrast is defined.
pub(crate) const PROBE: usize = 224;
/// The region: where a finding is at least this part of its strongest place.
const REGION: f32 = 0.5;
/// Parts along each side for which is told what they show: what a patch of 14 pixels sees at [`PROBE`].
pub(crate) const CELLS: usize = 16;
/// Regions smaller than this many pixels are measured with their surroundings.
const PIXELS_MIN: usize = 150;
const SURROUNDINGS: usize = 8;
/// What the deviation is at least and at most: texture beside a large vessel is not noise.
const DEVIATION: [f32; 2] = [0.012, 0.040];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Mean of the finding over its region before it is scaled.
    pub(crate) mean: f32,
    /// Mean over the region of what the finding changes whatever its contrast.
    pub(crate) besides: f32,
    /// Deviation of noise and texture there.
    pub(crate) deviation: f32,
    /// Top, left, bottom, right of the region, in 0..1000 of the padded square.
    pub(crate) area: [u32; 4],
    /// The cells that the region touches.
    pub(crate) cells: Cells,
}

/// Which of [`CELLS`] × [`CELLS`] equal parts of the padded square something touches: a row each, a bit for each column.
pub(crate) type Cells = [u16; CELLS];

/// Measures `profile` against `background`, both of the probe's canvas; nothing if the finding isn't in the picture.
/// `besides` is what the finding changes whatever its contrast.
pub(crate) fn measure(
    profile: &Grid,
    besides: Option<&Grid>,
    background: &Grid,
    acquisition: &Acquisition,
) -> Option<Measured> {
    let canvas = profile.canvas;
    let strongest = profile.values.iter().copied().fold(0.0, f32::max);
    let [width, height] = acquisition.extent();
    let inside = |row: usize, column: usize| {
        canvas.x(column).abs() < width * 0.5 && canvas.y(row).abs() < height * 0.5
    };
    let mut area = [usize::MAX, usize::MAX, 0, 0];
    let (mut pixels, mut sum, mut more) = (0usize, 0.0, 0.0);
    let mut cells = [0; CELLS];
    let mut spread = Spread::default();
    for row in 0..canvas.rows {
        for column in 0..canvas.columns {
            let at = row * canvas.columns + column;
            let value = profile.values[at];
            if value <= 0.0 || value < strongest * REGION || !inside(row, column) {
                continue;
            }
            pixels += 1;
            sum += value;
            more += besides.map_or(0.0, |besides| besides.values[at]);
            spread.add(background.values[at]);
            cells[row * CELLS / canvas.rows] |= 1 << (column * CELLS / canvas.columns);
            area = [
                area[0].min(row),
                area[1].min(column),
                area[2].max(row + 1),
                area[3].max(column + 1),
            ];
        }
    }
    if pixels == 0 {
        return None;
    }
    if pixels < PIXELS_MIN {
        spread = around(background, area);
    }
    Some(Measured {
        mean: sum / pixels as f32,
        besides: more / pixels as f32,
        deviation: spread.deviation().clamp(DEVIATION[0], DEVIATION[1]),
        area: thousandths(area, canvas),
        cells,
    })
}

fn around(background: &Grid, area: [usize; 4]) -> Spread {
    let canvas = background.canvas;
    let mut spread = Spread::default();
    for row in area[0].saturating_sub(SURROUNDINGS)..(area[2] + SURROUNDINGS).min(canvas.rows) {
        for column in
            area[1].saturating_sub(SURROUNDINGS)..(area[3] + SURROUNDINGS).min(canvas.columns)
        {
            spread.add(background.values[row * canvas.columns + column]);
        }
    }
    spread
}

fn thousandths(area: [usize; 4], canvas: Canvas) -> [u32; 4] {
    let sides = [canvas.rows, canvas.columns, canvas.rows, canvas.columns];
    std::array::from_fn(|edge| {
        let part = area[edge] as f32 / sides[edge] as f32 * 1000.0;
        // Outwards, so that the box holds the region.
        if edge < 2 {
            part.floor() as u32
        } else {
            part.ceil() as u32
        }
    })
}

/// Sums for a standard deviation.
#[derive(Default)]
struct Spread {
    count: f32,
    sum: f32,
    squares: f32,
}

impl Spread {
    fn add(&mut self, value: f32) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    fn deviation(&self) -> f32 {
        let mean = self.sum / self.count.max(1.0);
        (self.squares / self.count.max(1.0) - mean * mean)
            .max(0.0)
            .sqrt()
    }
}
