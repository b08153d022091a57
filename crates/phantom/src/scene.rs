//! One picture to be made: patient, acquisition and findings with their shapes, each as strong as its contrast asks.

use crate::acquisition::Acquisition;
use crate::anatomy::{Anatomy, LEFT, RIGHT};
use crate::bones::Bones;
use crate::chance::Chance;
use crate::grid::{Canvas, Grid};
use crate::labels::Label;
use crate::layers::Layers;
use crate::measure::{Cells, Measured, PROBE, measure};
use crate::noise;
use crate::plan::Plan;
use crate::shape::{Shape, side_index};
use crate::stroke::{Line, paint};

/// The enlarged heart may not be denser than a heart is.
const HEART_MAX: f32 = 1.0;

/// A finding with its shape.
#[derive(Clone, Debug)]
pub(crate) struct Lesion {
    pub(crate) plan: Plan,
    pub(crate) shape: Shape,
    /// What the shape's 0..1 is multiplied with; negative darkens.
    pub(crate) strength: f32,
    /// Top, left, bottom, right in 0..1000 of the padded square.
    pub(crate) area: [u32; 4],
    /// Where in the padded square it is strong.
    pub(crate) cells: Cells,
}

/// Everything that a picture is made of.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) anatomy: Anatomy,
    pub(crate) bones: Bones,
    pub(crate) acquisition: Acquisition,
    pub(crate) lesions: Vec<Lesion>,
    /// Layers without bones of the padded 224-pixel square, at which contrast was measured.
    probe: Layers,
    pub(crate) film: Grid,
}

impl Scene {
    /// The scene of `plans` for picture `index` of the set `seed`, of the patient `patient`.
    pub(crate) fn new(seed: u64, index: u64, patient: u64, plans: Vec<Plan>) -> Self {
        let acquisition = Acquisition::new(seed, index);
        let (enlarged, raised) = build(&plans);
        let anatomy = Anatomy::new(seed, patient, enlarged, raised);
        let bones = Bones::new(&anatomy);
        let canvas = Canvas::square(PROBE);
        let probe = Layers::new(&anatomy, &acquisition, canvas);
        let film = noise::field(
            &noise::film(acquisition.noise),
            acquisition.noise_seed,
            canvas,
        );
        let mut scene = Self {
            anatomy,
            bones,
            acquisition,
            lesions: Vec::new(),
            probe,
            film,
        };
        let mut background = scene.film.clone();
        background.add(&scene.probe.texture, 1.0);
        for plan in plans {
            scene.add(plan, &background);
        }
        scene
    }

    /// The same picture without its findings; bones are whole, a lifted diaphragm stays.
    pub(crate) fn without_findings(&self) -> Self {
        Self {
            lesions: Vec::new(),
            ..self.clone()
        }
    }

    /// Layers without bones of a canvas.
    pub(crate) fn layers(&self, canvas: Canvas) -> Layers {
        if canvas == self.probe.canvas {
            self.probe.clone()
        } else {
            Layers::new(&self.anatomy, &self.acquisition, canvas)
        }
    }

    /// What a finding adds or takes away, not yet scaled, on the canvas of `layers`: what scales with its contrast.
    pub(crate) fn profile(&self, shape: &Shape, layers: &Layers) -> Grid {
        if shape.heart {
            return layers.heart[1].clone();
        }
        let mut grid = Grid::new(layers.canvas);
        shape.fill(&mut grid, &self.acquisition.view, &self.anatomy);
        grid
    }

    fn add(&mut self, mut plan: Plan, background: &Grid) {
        let [width, _] = self.acquisition.extent();
        let width = width / self.acquisition.view.scale();
        let shape = Shape::new(&plan, &self.anatomy, &self.bones, width);
        let mut profile = self.profile(&shape, &self.probe);
        for line in &shape.sharp_lines {
            paint(&mut profile, &self.acquisition.view, line);
        }
        let besides = shape.heart.then_some(&self.probe.heart[0]);
        // A finding outside the picture: position is drawn so narrowly that none is.
        let Some(measured) = measure(&profile, besides, background, &self.acquisition) else {
            return;
        };
        let Measured {
            mean,
            besides,
            deviation,
            area,
            cells,
        } = measured;
        let mut strength = (plan.contrast * deviation - besides) / mean;
        if shape.heart {
            strength = strength.clamp(0.0, HEART_MAX);
            plan.contrast = (strength * mean + besides) / deviation;
        }
        if plan.label.is_dark() {
            strength = -strength;
        }
        let area = if shape.heart { self.heart_area() } else { area };
        self.lesions.push(Lesion {
            plan,
            shape,
            strength,
            area,
            cells,
        });
    }

    /// The box of the whole enlarged heart.
    fn heart_area(&self) -> [u32; 4] {
        let anatomy = &self.anatomy;
        let mut area = [1000.0f32, 1000.0, 0.0, 0.0];
        for number in 0..40 {
            let v = -0.10 + 0.01 * number as f32;
            for (side, sign) in [(RIGHT, -1.0), (LEFT, 1.0)] {
                let across = anatomy.heart_large[side].at(v);
                if v > anatomy.dome[side].at(across * 0.8) {
                    continue;
                }
                let (x, y) = self.acquisition.view.picture(across * sign, v);
                let (x, y) = ((x + 0.5) * 1000.0, (y + 0.5) * 1000.0);
                area = [
                    area[0].min(y),
                    area[1].min(x),
                    area[2].max(y),
                    area[3].max(x),
                ];
            }
        }
        [
            area[0].max(0.0).floor() as u32,
            area[1].max(0.0).floor() as u32,
            area[2].min(1000.0).ceil() as u32,
            area[3].min(1000.0).ceil() as u32,
        ]
    }
}

/// How large the heart is (0..1) if it is enlarged, and by how much each diaphragm is lifted.
fn build(plans: &[Plan]) -> (Option<f32>, [f32; 2]) {
    let (mut enlarged, mut raised) = (None, [0.0; 2]);
    for plan in plans {
        // Not the stream of the shape itself.
        let within = Chance::from_seed(plan.shape_seed ^ 3).between(0.1, 0.9);
        let large = plan.size.map_or(0.5, |size| size.along(within));
        match plan.label {
            Label::Cardiomegaly => enlarged = Some(large),
            Label::Atelectasis => raised[side_index(plan.side).0] = 0.015 + 0.03 * large,
            _ => {}
        }
    }
    (enlarged, raised)
}

/// A line as strong as its finding.
pub(crate) fn scaled(line: &Line, strength: f32) -> Line {
    let mut line = line.clone();
    line.strength = line.strength.map(|part| part * strength);
    line
}
