//! The vessels of the lungs: trees that leave the hila, branch, and thin out towards the wall.

use crate::anatomy::Anatomy;
use crate::chance::Chance;
use crate::stroke::{Across, Line};

/// Absorption of the largest vessels.
pub(crate) const STRENGTH: f32 = 0.12;

/// The middle of a hilum.
pub(crate) const fn hilum(sign: f32) -> [f32; 2] {
    // The left one lies higher.
    [0.085 * sign, if sign > 0.0 { -0.055 } else { -0.035 }]
}

/// One branch while it grows.
#[derive(Clone, Copy)]
struct Branch {
    at: [f32; 2],
    /// Direction in radians: 0 sideways from the middle, downwards positive.
    heading: f32,
    length: f32,
    radius: f32,
    /// Splits still to come.
    splits: usize,
}

/// All vessels of both lungs, strengths up to 1.
pub(crate) fn lines(anatomy: &Anatomy) -> Vec<Line> {
    let mut chance = Chance::from_seed(anatomy.detail_seed ^ 1);
    let density = 9 + chance.below(5);
    let mut lines = Vec::new();
    for sign in [-1.0, 1.0] {
        lines.push(knot(sign, &mut chance));
        for number in 0..density {
            let part = (number as f32 + chance.between(0.2, 0.8)) / density as f32;
            // Denser downwards, as blood is.
            let heading = -1.45 + 2.75 * part.powf(0.85);
            let downward = 0.75 + 0.25 * heading.sin();
            let [u, v] = hilum(sign);
            let branch = Branch {
                at: [
                    u + chance.between(-0.012, 0.012),
                    v + 0.045 * heading.sin() + chance.between(-0.01, 0.02),
                ],
                heading,
                length: chance.between(0.16, 0.32),
                radius: chance.between(0.0050, 0.0085) * downward,
                splits: 2,
            };
            grow(branch, sign, &mut chance, &mut lines);
        }
    }
    lines
}

/// Vessels of the upper zones, as they show when the lungs are congested.
pub(crate) fn congested(seed: u64) -> Vec<Line> {
    let mut chance = Chance::from_seed(seed);
    let mut lines = Vec::new();
    for sign in [-1.0, 1.0] {
        for _ in 0..4 {
            let branch = Branch {
                at: hilum(sign),
                heading: chance.between(-1.35, -0.35),
                length: chance.between(0.18, 0.26),
                radius: chance.between(0.006, 0.008),
                splits: 1,
            };
            grow(branch, sign, &mut chance, &mut lines);
        }
    }
    lines
}

/// The thick root of a lung.
fn knot(sign: f32, chance: &mut Chance) -> Line {
    let [u, v] = hilum(sign);
    let lower = chance.between(0.07, 0.10);
    let points = vec![
        [u - 0.01 * sign, v - 0.035],
        [u + 0.004 * sign, v],
        [u + 0.012 * sign, v + lower * 0.6],
        [u + 0.022 * sign, v + lower],
    ];
    Line {
        points,
        radius: [0.026, 0.015],
        strength: [0.95, 0.75],
        across: Across::Soft,
    }
}

fn grow(branch: Branch, sign: f32, chance: &mut Chance, lines: &mut Vec<Line>) {
    const STEPS: usize = 6;
    let mut points = vec![branch.at];
    let (mut at, mut heading) = (branch.at, branch.heading);
    let stride = branch.length / STEPS as f32;
    let bend = chance.between(-0.12, 0.12);
    for number in 1..=STEPS {
        heading += bend + chance.between(-0.22, 0.22);
        at = [
            at[0] + stride * heading.cos() * sign,
            at[1] + stride * heading.sin(),
        ];
        points.push(at);
        if branch.splits > 0 && (number == 2 || number == 4) {
            let away = chance.sign() * chance.between(0.35, 0.7);
            let child = Branch {
                at,
                heading: heading + away,
                length: branch.length * chance.between(0.45, 0.7),
                radius: branch.radius * (1.0 - 0.11 * number as f32),
                splits: branch.splits - 1,
            };
            grow(child, sign, chance, lines);
        }
    }
    // A vessel absorbs as it is thick.
    let strength = (branch.radius / 0.0075).min(1.0);
    lines.push(Line {
        points,
        radius: [branch.radius, branch.radius * 0.30],
        strength: [strength, strength * 0.28],
        across: Across::Round,
    });
}
