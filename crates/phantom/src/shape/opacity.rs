//! Findings that fill a part of the lung with something denser: patches, round spots, haze.

use crate::anatomy::Anatomy;
use crate::chance::Chance;
use crate::curve::step;
use crate::grid::{Canvas, Grid};
use crate::labels::Zone;
use crate::plan::Plan;
use crate::vessels::hilum;

use super::side_index;

/// Half the width of the area that roughness covers, in units of anatomy.
const ROUGH_REACH: f32 = 0.5;

/// Round or ragged patches.
#[derive(Clone, Debug)]
pub(crate) struct Spots {
    spots: Vec<Spot>,
    edge: Edge,
}

#[derive(Clone, Copy, Debug)]
struct Spot {
    at: [f32; 2],
    radius: [f32; 2],
}

#[derive(Clone, Debug)]
enum Edge {
    Round,
    /// Ragged and soft: the sum of the spots, made rough and cut at a level.
    Ragged(Grid),
    /// None at all, a little rough.
    Haze(Grid),
}

impl Spots {
    /// A nodule of 2 to 6 hundredths of the picture's width.
    pub(super) fn nodule(plan: &Plan, anatomy: &Anatomy, chance: &mut Chance, width: f32) -> Self {
        let large = plan
            .size
            .map_or(0.5, |size| size.along(chance.between(0.1, 0.9)));
        let radius = width * (0.010 + 0.020 * large);
        let at = place(plan, anatomy, chance, radius + 0.008);
        let long = chance.between(0.92, 1.08);
        Self {
            spots: vec![Spot {
                at,
                radius: [radius * long, radius / long],
            }],
            edge: Edge::Round,
        }
    }

    /// A fluffy patch.
    pub(super) fn patch(plan: &Plan, anatomy: &Anatomy, chance: &mut Chance) -> Self {
        let large = plan
            .size
            .map_or(0.5, |size| size.along(chance.between(0.1, 0.9)));
        let reach = 0.045 + 0.065 * large;
        let [u, v] = place(plan, anatomy, chance, reach * 0.6);
        let spots = (0..5)
            .map(|number| {
                let away = if number == 0 { 0.0 } else { reach * 0.55 };
                Spot {
                    at: [
                        u + chance.between(-away, away),
                        v + chance.between(-away, away),
                    ],
                    radius: [
                        chance.between(0.7, 1.1) * reach,
                        chance.between(0.6, 1.0) * reach,
                    ],
                }
            })
            .collect();
        Self {
            spots,
            edge: Edge::Ragged(rough(chance)),
        }
    }

    /// Haze about both hila.
    pub(super) fn haze(plan: &Plan, chance: &mut Chance) -> Self {
        let large = plan
            .size
            .map_or(0.5, |size| size.along(chance.between(0.1, 0.9)));
        let radius = [0.15 + 0.08 * large, 0.19 + 0.10 * large];
        let spots = [-1.0, 1.0]
            .map(|sign| {
                let [u, v] = hilum(sign);
                Spot {
                    at: [u + 0.035 * sign, v + 0.035 + chance.between(-0.01, 0.01)],
                    radius: radius.map(|radius| radius * chance.between(0.93, 1.07)),
                }
            })
            .to_vec();
        Self {
            spots,
            edge: Edge::Haze(rough(chance)),
        }
    }

    pub(super) fn at(&self, anatomy: &Anatomy, u: f32, v: f32) -> f32 {
        let mut sum = 0.0;
        for spot in &self.spots {
            let (du, dv) = (
                (u - spot.at[0]) / spot.radius[0],
                (v - spot.at[1]) / spot.radius[1],
            );
            let inside = 1.0 - du * du - dv * dv;
            if inside > 0.0 {
                sum += match self.edge {
                    Edge::Round => step(inside - 0.25, 0.25) * (0.7 + 0.3 * inside),
                    Edge::Ragged(_) => inside * inside,
                    Edge::Haze(_) => inside,
                };
            }
        }
        if sum <= 0.0 {
            return 0.0;
        }
        let strength = match &self.edge {
            Edge::Round => sum,
            Edge::Ragged(rough) => step(sum * (1.0 + 0.55 * sample(rough, u, v)) - 0.45, 0.35),
            Edge::Haze(rough) => 0.62 * (sum * (1.0 + 0.30 * sample(rough, u, v))).clamp(0.0, 1.0),
        };
        strength * anatomy.open_lung(u, v)
    }

    pub(super) fn bounds(&self) -> [f32; 4] {
        let mut bounds = [f32::MAX, f32::MAX, f32::MIN, f32::MIN];
        for spot in &self.spots {
            for axis in 0..2 {
                bounds[axis] = bounds[axis].min(spot.at[axis] - spot.radius[axis]);
                bounds[axis + 2] = bounds[axis + 2].max(spot.at[axis] + spot.radius[axis]);
            }
        }
        bounds
    }
}

/// Lowest and highest v of the middles of what lies in a zone.
pub(super) const fn heights(zone: Option<Zone>) -> [f32; 2] {
    match zone {
        Some(Zone::Upper) => [-0.27, -0.16],
        Some(Zone::Mid) | None => [-0.10, 0.02],
        Some(Zone::Lower) => [0.08, 0.19],
    }
}

/// A height in the zone at which there is lung above the diaphragm.
pub(super) fn height(
    zone: Option<Zone>,
    anatomy: &Anatomy,
    side: usize,
    chance: &mut Chance,
) -> f32 {
    let [low, high] = heights(zone);
    let floor = anatomy.dome[side].at(0.2) - 0.035;
    chance.between(low.min(floor - 0.02), high.min(floor))
}

/// A place in the zone, `margin` or more from the borders of the lung where there is room for that.
fn place(plan: &Plan, anatomy: &Anatomy, chance: &mut Chance, margin: f32) -> [f32; 2] {
    let (side, sign) = side_index(plan.side);
    let v = height(plan.zone, anatomy, side, chance);
    let inner = anatomy.heart[side].at(v) + margin;
    let outer = anatomy.wall[side].at(v) - margin;
    let across = if inner < outer {
        chance.between(inner, outer)
    } else {
        (inner + outer) * 0.5
    };
    [across * sign, v]
}

/// Smooth random numbers, about -1 to 1, over the chest.
fn rough(chance: &mut Chance) -> Grid {
    let mut grid = Grid::new(Canvas::square(40));
    for value in &mut grid.values {
        *value = chance.bell() * 0.9;
    }
    grid
}

fn sample(grid: &Grid, u: f32, v: f32) -> f32 {
    let nodes = grid.canvas.columns;
    let place = |at: f32| {
        let at = ((at / ROUGH_REACH * 0.5 + 0.5) * nodes as f32).clamp(0.0, (nodes - 2) as f32);
        let low = at as usize;
        let part = at - low as f32;
        (low, part * part * (3.0 - 2.0 * part))
    };
    let ((left, along), (top, down)) = (place(u), place(v));
    let row = |row: usize| {
        let (a, b) = (
            grid.values[row * nodes + left],
            grid.values[row * nodes + left + 1],
        );
        a + (b - a) * along
    };
    row(top) + (row(top + 1) - row(top)) * down
}
