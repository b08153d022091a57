//! Findings between lung and wall: fluid at the base, air at the top and the side.

use crate::anatomy::{Anatomy, side_of};
use crate::chance::Chance;
use crate::curve::{Curve, step};
use crate::plan::Plan;
use crate::stroke::{Across, Line};

use super::side_index;

/// Pleural fluid: its surface rises towards the wall.
#[derive(Clone, Debug)]
pub(crate) struct Fluid {
    pub(super) side: usize,
    /// Height v of the surface by distance from the middle.
    surface: Curve,
}

impl Fluid {
    pub(super) fn new(plan: &Plan, anatomy: &Anatomy, chance: &mut Chance) -> Self {
        let (side, _) = side_index(plan.side);
        let large = plan
            .size
            .map_or(0.5, |size| size.along(chance.between(0.1, 0.9)));
        // From the corner between diaphragm and wall.
        let reach = anatomy.half_width - 0.015;
        let corner = anatomy.dome[side].at(reach);
        let rise = 0.045 + 0.30 * large;
        let top = corner - rise;
        let sag = chance.between(0.30, 0.45) * rise.min(0.16);
        let surface = Curve::of(move |across| {
            let part = (across / reach).clamp(0.0, 1.2);
            top + sag * (1.0 - part * part * part)
        });
        Self { side, surface }
    }

    pub(super) fn at(&self, anatomy: &Anatomy, u: f32, v: f32) -> f32 {
        let (side, across) = side_of(u);
        if side != self.side {
            return 0.0;
        }
        let under = step(v - self.surface.at(across), 0.014);
        if under <= 0.0 {
            return 0.0;
        }
        under * anatomy.open_lung(u, v)
    }
}

/// Air between the wall and a lung that has shrunk from it.
#[derive(Clone, Debug)]
pub(crate) struct Rim {
    pub(super) side: usize,
    /// How far the lung's edge is from the wall or the top, by height.
    gap: Curve,
}

impl Rim {
    pub(super) fn new(plan: &Plan, anatomy: &Anatomy, chance: &mut Chance) -> Self {
        let (side, _) = side_index(plan.side);
        let large = plan
            .size
            .map_or(0.5, |size| size.along(chance.between(0.1, 0.9)));
        let wide = 0.028 + 0.085 * large;
        let end = -0.10 + 0.32 * large + chance.between(-0.03, 0.03);
        let apex = anatomy.top_of(side);
        let gap = Curve::of(move |v| {
            let down = ((v - apex) / (end - apex)).clamp(0.0, 1.0);
            wide * (1.0 - down * down)
        });
        Self { side, gap }
    }

    pub(super) fn at(&self, anatomy: &Anatomy, u: f32, v: f32) -> f32 {
        let (side, _) = side_of(u);
        if side != self.side {
            return 0.0;
        }
        let gap = self.gap.at(v);
        if gap <= 0.002 {
            return 0.0;
        }
        let outside = step(gap - anatomy.depth(u, v), 0.004);
        if outside <= 0.0 {
            return 0.0;
        }
        outside * anatomy.open_lung(u, v)
    }

    /// The line of the lung's edge, from the middle over the top and down the side.
    pub(super) fn edge(&self, anatomy: &Anatomy) -> Line {
        let sign = if self.side == crate::anatomy::LEFT {
            1.0
        } else {
            -1.0
        };
        let apex = anatomy.top_of(self.side);
        let mut points = Vec::new();
        for number in 0..60 {
            let v = apex + 0.008 * number as f32;
            let gap = self.gap.at(v);
            if gap < 0.006 {
                break;
            }
            // The outermost place at this height that is a gap away from the border.
            let inside = |across: f32| anatomy.depth(across * sign, v) - gap;
            let mut across = anatomy.wall[self.side].at(v);
            while across > 0.03 && inside(across) < 0.0 {
                across -= 0.003;
            }
            if across > anatomy.heart[self.side].at(v) {
                points.push([across * sign, v]);
            }
        }
        if points.len() < 2 {
            points = vec![[0.3 * sign, 0.0], [0.3 * sign, 0.01]];
        }
        Line::even(points, 0.0026, Across::Flat)
    }
}
