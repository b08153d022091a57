//! A patient without findings, on a grid: the layers that pictures add up and contrast is measured against.

use crate::acquisition::Acquisition;
use crate::anatomy::Anatomy;
use crate::bones::{Bones, Break};
use crate::grid::{Canvas, Grid, View};
use crate::noise;
use crate::stroke::paint;
use crate::vessels;

/// Deviation of the lung's own grain.
const GRAIN: f32 = 0.014;

/// Layers of one canvas, in absorption.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    pub(crate) canvas: Canvas,
    /// Tissue and, once added, bones.
    pub(crate) absorption: Grid,
    /// Vessels and grain of the lung.
    pub(crate) texture: Grid,
    /// What the enlarged heart would add whatever its contrast, and for its contrast.
    pub(crate) heart: [Grid; 2],
}

impl Layers {
    /// Tissue and texture; bones are added by [`Layers::add_bones`].
    pub(crate) fn new(anatomy: &Anatomy, acquisition: &Acquisition, canvas: Canvas) -> Self {
        let view = &acquisition.view;
        let mut absorption = Grid::new(canvas);
        let mut heart = [Grid::new(canvas), Grid::new(canvas)];
        let mut air = Grid::new(canvas);
        for row in 0..canvas.rows {
            let y = canvas.y(row);
            for column in 0..canvas.columns {
                let (u, v) = view.anatomy(canvas.x(column), y);
                let tissue = anatomy.tissue(u, v);
                let at = row * canvas.columns + column;
                absorption.values[at] = tissue.absorption;
                heart[0].values[at] = tissue.heart.fading;
                heart[1].values[at] = tissue.heart.filling;
                air.values[at] = tissue.air;
            }
        }
        let mut texture = noise::field(&noise::grain(GRAIN), anatomy.detail_seed ^ 2, canvas);
        let mut trees = Grid::new(canvas);
        for line in vessels::lines(anatomy) {
            paint(&mut trees, view, &line);
        }
        let lung = trees.values.iter().zip(&air.values);
        for (value, (tree, air)) in texture.values.iter_mut().zip(lung) {
            *value = (*value + vessels::STRENGTH * tree) * air;
        }
        Self {
            canvas,
            absorption,
            texture,
            heart,
        }
    }

    /// Adds the bones to the tissue.
    pub(crate) fn add_bones(&mut self, bones: &Bones, view: &View, broken: Option<Break>) {
        for (lines, strength) in bones.layers(broken) {
            let mut layer = Grid::new(self.canvas);
            for line in &lines {
                paint(&mut layer, view, line);
            }
            // Bones show in the body only.
            for (value, bone) in self.absorption.values.iter_mut().zip(&layer.values) {
                if *value > 0.0 {
                    *value += strength * bone;
                }
            }
        }
    }
}
