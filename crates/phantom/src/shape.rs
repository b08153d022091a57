//! The shape that a finding has in the patient: fields and lines of strength 0..1, not yet scaled to its contrast.

mod air;
mod device;
mod opacity;

use crate::anatomy::{Anatomy, LEFT, RIGHT};
use crate::bones::{Bones, Break};
use crate::chance::Chance;
use crate::grid::{Grid, View};
use crate::labels::{Label, Side};
use crate::plan::Plan;
use crate::stroke::{Across, Line, paint};

pub(crate) use air::{Fluid, Rim};
pub(crate) use opacity::Spots;

/// What fills an area.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    /// Patches.
    Spots(Spots),
    /// Fluid at the base.
    Fluid(Fluid),
    /// Air at the wall.
    Rim(Rim),
}

impl Field {
    /// Strength 0..1 at a place.
    fn at(&self, anatomy: &Anatomy, u: f32, v: f32) -> f32 {
        match self {
            Self::Spots(spots) => spots.at(anatomy, u, v),
            Self::Fluid(fluid) => fluid.at(anatomy, u, v),
            Self::Rim(rim) => rim.at(anatomy, u, v),
        }
    }

    /// The area outside which it is 0, as [u, v, u, v].
    fn bounds(&self) -> [f32; 4] {
        match self {
            Self::Spots(spots) => spots.bounds(),
            Self::Fluid(fluid) => side_bounds(fluid.side, [0.02, 0.46]),
            Self::Rim(rim) => side_bounds(rim.side, [-0.42, 0.46]),
        }
    }
}

fn side_bounds(side: usize, heights: [f32; 2]) -> [f32; 4] {
    let [low, high] = if side == LEFT {
        [0.0, 0.42]
    } else {
        [-0.42, 0.0]
    };
    [low, heights[0], high, heights[1]]
}

/// A finding's shape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    fields: Vec<Field>,
    /// Lines that show only in the lung.
    soft_lines: Vec<Line>,
    /// Lines that show anywhere and are drawn at the picture's full size.
    pub(crate) sharp_lines: Vec<Line>,
    /// The edge of a collapsed lung, drawn at full size beside the field.
    pub(crate) edge: Option<Line>,
    /// A rib that is broken.
    pub(crate) broken: Option<Break>,
    /// The heart is enlarged.
    pub(crate) heart: bool,
}

impl Shape {
    pub(crate) fn new(plan: &Plan, anatomy: &Anatomy, bones: &Bones, picture_width: f32) -> Self {
        let mut chance = Chance::from_seed(plan.shape_seed);
        match plan.label {
            Label::Cardiomegaly => Self {
                heart: true,
                ..Self::default()
            },
            Label::PleuralEffusion => {
                Self::of(Field::Fluid(Fluid::new(plan, anatomy, &mut chance)))
            }
            Label::Pneumothorax => {
                let rim = Rim::new(plan, anatomy, &mut chance);
                Self {
                    edge: Some(rim.edge(anatomy)),
                    ..Self::of(Field::Rim(rim))
                }
            }
            Label::Consolidation => {
                Self::of(Field::Spots(Spots::patch(plan, anatomy, &mut chance)))
            }
            Label::Nodule => Self::of(Field::Spots(Spots::nodule(
                plan,
                anatomy,
                &mut chance,
                picture_width,
            ))),
            Label::Oedema => Self {
                soft_lines: crate::vessels::congested(chance.seed()),
                ..Self::of(Field::Spots(Spots::haze(plan, &mut chance)))
            },
            Label::Atelectasis => Self {
                soft_lines: vec![plate(plan, anatomy, &mut chance)],
                ..Self::default()
            },
            Label::SupportDevice => Self {
                sharp_lines: device::lines(plan.device(), anatomy, &mut chance),
                ..Self::default()
            },
            Label::Fracture => {
                let broken = broken(plan, bones, &mut chance);
                Self {
                    sharp_lines: vec![bones.gap(broken)],
                    broken: Some(broken),
                    ..Self::default()
                }
            }
        }
    }

    fn of(field: Field) -> Self {
        Self {
            fields: vec![field],
            ..Self::default()
        }
    }

    /// Fields and soft lines, at most 1, over a grid of zeros.
    pub(crate) fn fill(&self, grid: &mut Grid, view: &View, anatomy: &Anatomy) {
        if !self.soft_lines.is_empty() {
            for line in &self.soft_lines {
                paint(grid, view, line);
            }
            mask(grid, view, anatomy);
        }
        for field in &self.fields {
            fill(field, grid, view, anatomy);
        }
    }
}

/// Leaves of what is painted only what lies in the lung.
fn mask(grid: &mut Grid, view: &View, anatomy: &Anatomy) {
    let canvas = grid.canvas;
    for (row, values) in grid.values.chunks_exact_mut(canvas.columns).enumerate() {
        for (column, value) in values.iter_mut().enumerate() {
            if *value > 0.0 {
                let (u, v) = view.anatomy(canvas.x(column), canvas.y(row));
                *value *= anatomy.open_lung(u, v);
            }
        }
    }
}

fn fill(field: &Field, grid: &mut Grid, view: &View, anatomy: &Anatomy) {
    let canvas = grid.canvas;
    let [left, top, right, bottom] = field.bounds();
    let corners = [[left, top], [right, top], [left, bottom], [right, bottom]].map(|[u, v]| {
        let (x, y) = view.picture(u, v);
        [canvas.column(x), canvas.row(y)]
    });
    let span = |axis: usize, end: usize| {
        let low = corners
            .iter()
            .map(|corner| corner[axis])
            .fold(f32::MAX, f32::min);
        let high = corners
            .iter()
            .map(|corner| corner[axis])
            .fold(f32::MIN, f32::max);
        let end = ((high + 2.0).max(0.0) as usize).min(end);
        (low.max(0.0) as usize).min(end)..end
    };
    for row in span(1, canvas.rows) {
        for column in span(0, canvas.columns) {
            let (u, v) = view.anatomy(canvas.x(column), canvas.y(row));
            let value = &mut grid.values[row * canvas.columns + column];
            *value = value.max(field.at(anatomy, u, v));
        }
    }
}

/// Index of a side in pairs of curves, and the sign of u there.
pub(crate) fn side_index(side: Side) -> (usize, f32) {
    if side == Side::Left {
        (LEFT, 1.0)
    } else {
        (RIGHT, -1.0)
    }
}

/// A band of collapsed lung.
fn plate(plan: &Plan, anatomy: &Anatomy, chance: &mut Chance) -> Line {
    let (side, sign) = side_index(plan.side);
    let large = plan
        .size
        .map_or(0.5, |size| size.along(chance.between(0.2, 0.8)));
    let v = opacity::height(plan.zone, anatomy, side, chance);
    let length = 0.10 + 0.11 * large;
    let inner = anatomy.heart[side].at(v) + chance.between(0.01, 0.03);
    let slope = chance.between(-0.30, 0.30);
    let bow = chance.between(-0.012, 0.012);
    let points = (0..9)
        .map(|point| {
            let part = point as f32 / 8.0;
            let u = inner + length * part;
            [
                u * sign,
                v + slope * length * (part - 0.5) + bow * (4.0 * part * (1.0 - part)),
            ]
        })
        .collect();
    let radius = 0.007 + 0.008 * large;
    Line {
        points,
        // A plate, or a wedge with its tip at the hilum.
        radius: if chance.happens(0.5) {
            [radius, radius]
        } else {
            [radius * 0.7, radius * 1.7]
        },
        strength: [1.0, 0.85],
        across: Across::Round,
    }
}

fn broken(plan: &Plan, bones: &Bones, chance: &mut Chance) -> Break {
    let (side, _) = side_index(plan.side);
    let at = chance.between(0.75, 1.3);
    let [low, high] = opacity::heights(plan.zone);
    Break {
        side,
        rib: bones.rib_at(side, at, chance.between(low, high)),
        at,
        shift: chance.sign() * chance.between(0.006, 0.011),
    }
}
