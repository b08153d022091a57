//! How a picture was taken: its size, how the patient stands in it, exposure, noise, marker and collimation.

use crate::chance::{Chance, Purpose};
use crate::curve::step;
use crate::grid::{Canvas, View};
use crate::stroke::{Across, Line};

/// Columns that a picture may have by itself.
const COLUMNS: [u32; 5] = [1024, 1280, 1536, 1760, 2048];
/// Entries of a tone curve.
const TONES: usize = 2048;
/// Absorption at the ends of a tone curve.
const TONE_START: f32 = -0.3;
const TONE_END: f32 = 1.7;

/// Everything about a picture but the patient.
#[derive(Clone, Debug)]
pub(crate) struct Acquisition {
    /// Columns and rows of the picture if the caller doesn't choose.
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    pub(crate) view: View,
    /// Deviation of the noise in a 224-pixel picture, in absorption.
    pub(crate) noise: f32,
    pub(crate) noise_seed: u64,
    /// Half width and half height of what the collimator leaves, in picture coordinates.
    border: Option<[f32; 2]>,
    marker: Marker,
    tone: Tone,
}

#[derive(Clone, Debug)]
struct Marker {
    /// Upper left end of the letter, in picture coordinates.
    at: [f32; 2],
    size: f32,
}

#[derive(Clone, Debug)]
struct Tone {
    low: f32,
    high: f32,
    gamma: f32,
    bend: f32,
}

impl Acquisition {
    pub(crate) fn new(seed: u64, index: u64) -> Self {
        let mut chance = Chance::new(seed, index, Purpose::Acquisition);
        let columns = *chance.one(&COLUMNS);
        let rows = (columns as f32 * chance.between(0.85, 1.2)).round() as u32;
        let [width, height] = extent(columns, rows);
        let scale = (width / 0.90).min(height / 0.86).min(1.0) * chance.between(0.90, 1.03);
        let shift = [chance.between(-0.025, 0.025), chance.between(-0.02, 0.02)];
        let turn = chance.bell() * 0.022;
        let border = [
            width * 0.5 - chance.between(0.006, 0.028),
            height * 0.5 - chance.between(0.006, 0.028),
        ];
        let bordered = chance.happens(0.25);
        let size = chance.between(0.026, 0.036);
        let marker = Marker {
            at: [
                width * 0.5 - size - chance.between(0.035, 0.06),
                -height * 0.5 + chance.between(0.035, 0.11),
            ],
            size,
        };
        let low = chance.between(-0.03, 0.06);
        Self {
            columns,
            rows,
            view: View::new(turn.clamp(-0.07, 0.07), shift, scale),
            noise: chance.between(0.012, 0.021),
            noise_seed: Chance::new(seed, index, Purpose::Noise).seed(),
            border: bordered.then_some(border),
            marker,
            tone: Tone {
                low,
                high: low + chance.between(0.90, 1.10),
                gamma: chance.between(0.85, 1.2),
                bend: chance.between(0.1, 0.5),
            },
        }
    }

    /// Width and height of the picture in picture coordinates; the longer is 1.
    pub(crate) fn extent(&self) -> [f32; 2] {
        extent(self.columns, self.rows)
    }

    /// The rows of this picture when it has `columns`.
    pub(crate) fn rows_at(&self, columns: u32) -> u32 {
        let rows = f64::from(columns) * f64::from(self.rows) / f64::from(self.columns);
        (rows.round() as u32).max(1)
    }

    /// The letter L.
    pub(crate) fn letter(&self) -> Line {
        let ([x, y], size) = (self.marker.at, self.marker.size);
        let points = [[x, y], [x, y + size], [x + size * 0.62, y + size]].map(|[x, y]| {
            let (u, v) = self.view.anatomy(x, y);
            [u, v]
        });
        let mut line = Line::even(points.to_vec(), 0.0052, Across::Flat);
        line.strength = [0.55; 2];
        line
    }

    /// From absorption to brightness 0..1, as a table from [`TONE_START`] to [`TONE_END`].
    pub(crate) fn tones(&self) -> Tones {
        let Tone {
            low,
            high,
            gamma,
            bend,
        } = self.tone;
        let stride = (TONE_END - TONE_START) / (TONES - 1) as f32;
        let tone = |entry: usize| {
            let absorption = TONE_START + entry as f32 * stride;
            let part = ((absorption - low) / (high - low))
                .clamp(0.0, 1.0)
                .powf(gamma);
            let curved = part * part * (3.0 - 2.0 * part);
            part + (curved - part) * bend
        };
        Tones((0..TONES).map(tone).collect())
    }

    /// How much of each column's and each row's light reaches the picture: 0 in the padding, little behind the collimator.
    pub(crate) fn windows(&self, canvas: Canvas) -> [Vec<f32>; 2] {
        let extent = self.extent();
        let window = |axis: usize, at: f32| {
            let inside = ((extent[axis] * 0.5 - at.abs()) / canvas.pixel + 0.5).clamp(0.0, 1.0);
            let open = self
                .border
                .map_or(1.0, |border| step(border[axis] - at.abs(), 0.002));
            inside * (0.03 + 0.97 * open)
        };
        [
            (0..canvas.columns)
                .map(|column| window(0, canvas.x(column)))
                .collect(),
            (0..canvas.rows)
                .map(|row| window(1, canvas.y(row)))
                .collect(),
        ]
    }
}

#[derive(Debug)]
pub(crate) struct Tones(Vec<f32>);

impl Tones {
    /// Brightness 0..1.
    #[inline]
    pub(crate) fn at(&self, absorption: f32) -> f32 {
        let place = (absorption - TONE_START) * ((TONES - 1) as f32 / (TONE_END - TONE_START));
        let place = place.clamp(0.0, (TONES - 2) as f32);
        // Through a signed number, which processors convert faster.
        let entry = place as i32 as usize;
        let pair = &self.0[entry..entry + 2];
        pair[0] + (pair[1] - pair[0]) * (place - entry as i32 as f32)
    }
}

fn extent(columns: u32, rows: u32) -> [f32; 2] {
    let long = columns.max(rows) as f32;
    [columns as f32 / long, rows as f32 / long]
}
