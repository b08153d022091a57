//! From a scene to a picture: smooth layers on a coarse grid, sharp lines and noise at full size, then the tone curve.

use std::ops::Range;

use crate::grid::{Canvas, Grid, Stretch};
use crate::labels::Label;
use crate::noise;
use crate::scene::{Scene, scaled};
use crate::stroke::{Line, paint};

/// Pixels along the longer side beyond which smooth layers are interpolated: their edges are no sharper than that.
const SMOOTH: usize = 448;
/// Pictures smaller than this are made larger and brought down, since noise is defined at this size.
const WHOLE: usize = 224;
/// Part of a collapsed lung's own strength that its edge has, and what it has besides.
const EDGE: [f32; 2] = [0.45, 0.03];

/// A picture as it is shown: brightness, bone white.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub columns: usize,
    pub rows: usize,
    /// Brightness [rows, columns], row-major, 0..1.
    pub values: Vec<f32>,
}

impl Picture {
    /// Brightness as whole numbers 0..=`most`.
    pub fn levels(&self, most: u16) -> Vec<u16> {
        let most = f32::from(most);
        self.values
            .iter()
            .map(|value| (value * most + 0.5) as u16)
            .collect()
    }

    pub fn grey(&self) -> Vec<u8> {
        self.values
            .iter()
            .map(|value| (value * 255.0 + 0.5) as u8)
            .collect()
    }
}

pub(crate) fn render(scene: &Scene, canvas: Canvas) -> Picture {
    let long = canvas.columns.max(canvas.rows);
    if long < WHOLE {
        let times = WHOLE.div_ceil(long);
        let fine = Canvas {
            columns: canvas.columns * times,
            rows: canvas.rows * times,
            pixel: canvas.pixel / times as f32,
        };
        return shrink(&at_size(scene, fine), times);
    }
    at_size(scene, canvas)
}

fn at_size(scene: &Scene, canvas: Canvas) -> Picture {
    let mut coarse = smooth(scene, canvas.at_most(SMOOTH));
    let octaves = noise::film(scene.acquisition.noise);
    let seed = scene.acquisition.noise_seed;
    if coarse.canvas == scene.film.canvas {
        coarse.add(&scene.film, 1.0);
    } else {
        noise::add(&mut coarse, &octaves[..noise::FINEST], seed);
    }
    let finest = octaves[noise::FINEST];
    let fine = (canvas.columns.max(canvas.rows) > finest.nodes)
        .then(|| noise::nodes(finest, noise::FINEST as u64, seed))
        .map(|grid| (Stretch::new(grid.canvas, canvas), grid));
    let sharp = Sharp::new(scene, canvas);
    let stretch = (coarse.canvas != canvas).then(|| Stretch::new(coarse.canvas, canvas));
    let tones = scene.acquisition.tones();
    let [across, down] = scene.acquisition.windows(canvas);
    let mut values = Vec::with_capacity(canvas.columns * canvas.rows);
    let mut line = vec![0.0; canvas.columns];
    let mut more = vec![0.0; canvas.columns];
    for (row, down) in down.into_iter().enumerate() {
        match &stretch {
            Some(stretch) => coarse.stretch_row(stretch, row, &mut line),
            None => line.copy_from_slice(coarse.row(row)),
        }
        if let Some((stretch, grid)) = &fine {
            grid.stretch_row(stretch, row, &mut more);
            add(&mut line, &more, 1.0);
        }
        sharp.add_to(row, &mut line);
        let row = line.iter().zip(&across);
        values.extend(row.map(|(absorption, across)| tones.at(*absorption) * across * down));
    }
    Picture {
        columns: canvas.columns,
        rows: canvas.rows,
        values,
    }
}

fn add(line: &mut [f32], more: &[f32], scale: f32) {
    for (value, more) in line.iter_mut().zip(more) {
        *value += more * scale;
    }
}

/// Tissue, bones, texture and the fields of findings.
fn smooth(scene: &Scene, canvas: Canvas) -> Grid {
    let mut layers = scene.layers(canvas);
    let broken = scene.lesions.iter().find_map(|lesion| lesion.shape.broken);
    layers.add_bones(&scene.bones, &scene.acquisition.view, broken);
    for lesion in &scene.lesions {
        let profile = scene.profile(&lesion.shape, &layers);
        layers.absorption.add(&profile, lesion.strength);
        if lesion.shape.heart {
            layers.absorption.add(&layers.heart[0], 1.0);
        }
        if lesion.plan.label == Label::Pneumothorax {
            // No vessels where there is no lung.
            for (texture, air) in layers.texture.values.iter_mut().zip(&profile.values) {
                *texture *= 1.0 - air;
            }
        }
    }
    layers.absorption.add(&layers.texture, 1.0);
    layers.absorption
}

/// Thin lines at full size: what brightens and what darkens.
struct Sharp {
    layers: Vec<Layer>,
}

/// Lines that don't add up where they cross.
struct Layer {
    grid: Grid,
    sign: f32,
    /// Rows outside which there is nothing.
    rows: Range<usize>,
}

impl Sharp {
    fn new(scene: &Scene, canvas: Canvas) -> Self {
        let mut layers = vec![Layer::new(
            scene,
            canvas,
            &[scene.acquisition.letter()],
            1.0,
        )];
        for lesion in &scene.lesions {
            let strength = lesion.strength.abs();
            let mut lines: Vec<Line> = lesion
                .shape
                .sharp_lines
                .iter()
                .map(|line| scaled(line, strength))
                .collect();
            let mut sign = lesion.strength.signum();
            if let Some(edge) = &lesion.shape.edge {
                lines.push(scaled(edge, EDGE[0] * strength + EDGE[1]));
                sign = 1.0;
            }
            if !lines.is_empty() {
                layers.push(Layer::new(scene, canvas, &lines, sign));
            }
        }
        Self { layers }
    }

    fn add_to(&self, row: usize, line: &mut [f32]) {
        for layer in &self.layers {
            if layer.rows.contains(&row) {
                add(line, layer.grid.row(row), layer.sign);
            }
        }
    }
}

impl Layer {
    fn new(scene: &Scene, canvas: Canvas, lines: &[Line], sign: f32) -> Self {
        let view = &scene.acquisition.view;
        let mut grid = Grid::new(canvas);
        let (mut top, mut bottom) = (canvas.rows, 0);
        for line in lines {
            let rows = paint(&mut grid, view, line);
            top = top.min(rows.start);
            bottom = bottom.max(rows.end);
        }
        Self {
            grid,
            sign,
            rows: top..bottom,
        }
    }
}

/// Means of `times` × `times` pixels.
fn shrink(picture: &Picture, times: usize) -> Picture {
    let (columns, rows) = (picture.columns / times, picture.rows / times);
    let scale = 1.0 / (times * times) as f32;
    let mut values = Vec::with_capacity(columns * rows);
    for row in 0..rows {
        for column in 0..columns {
            let mut sum = 0.0;
            for line in 0..times {
                let start = (row * times + line) * picture.columns + column * times;
                sum += picture.values[start..start + times].iter().sum::<f32>();
            }
            values.push(sum * scale);
        }
    }
    Picture {
        columns,
        rows,
        values,
    }
}
