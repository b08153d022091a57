//! Ribs, collar bones and shoulder blades as lines.

use crate::anatomy::Anatomy;
use crate::chance::Chance;
use crate::stroke::{Across, Line};

/// Points of a rib from the spine to its end at the front.
const RIB_POINTS: usize = 26;
/// Where a rib turns forward at the side, as an angle of its hoop.
const TURN: f32 = std::f32::consts::FRAC_PI_2;

/// A break in one rib.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Break {
    pub(crate) side: usize,
    /// Rib, from the top.
    pub(crate) rib: usize,
    /// Angle of the hoop at the break.
    pub(crate) at: f32,
    /// How far the outer piece is displaced, in units of anatomy.
    pub(crate) shift: f32,
}

/// The bones of one patient.
#[derive(Clone, Debug)]
pub(crate) struct Bones {
    ribs: [Vec<Rib>; 2],
    /// Collar bones, shoulder blades and arms, each of its strength.
    others: Vec<Line>,
    strength: f32,
}

/// One rib: a hoop seen from the front, high at the spine and low in front.
#[derive(Clone, Debug)]
struct Rib {
    sign: f32,
    /// Height at the spine.
    start: f32,
    /// How much it falls to the side, and as much again, and more, to the front.
    fall: f32,
    front: f32,
    arch: f32,
    /// Distance of its outermost place from the middle.
    reach: f32,
    radius: f32,
    /// Angle of the hoop where the bone ends.
    end: f32,
}

impl Rib {
    /// Place of the rib's middle at an angle of its hoop: 0 at the spine, [`TURN`] at the side.
    fn at(&self, angle: f32) -> [f32; 2] {
        let (sine, cosine) = angle.sin_cos();
        let near = 0.045;
        let u = near + (self.reach - near) * sine;
        let v = if angle < TURN {
            self.start + self.fall * (1.0 - cosine) - self.arch * (2.0 * angle).sin()
        } else {
            self.start + self.fall - self.front * cosine
        };
        [u * self.sign, v]
    }

    fn part(&self, from: f32, to: f32, across: Across) -> Line {
        let step = (to - from) / (RIB_POINTS - 1) as f32;
        let points = (0..RIB_POINTS)
            .map(|point| self.at(from + point as f32 * step))
            .collect();
        Line::even(points, self.radius, across)
    }
}

impl Bones {
    pub(crate) fn new(anatomy: &Anatomy) -> Self {
        let mut chance = Chance::from_seed(anatomy.detail_seed);
        let count = 8 + chance.below(3);
        let gap = chance.between(0.63, 0.68) / count as f32;
        let first = chance.between(-0.375, -0.35);
        let fall = chance.between(0.045, 0.07);
        let radius = chance.between(0.0105, 0.0135);
        let strength = chance.between(0.06, 0.09);
        let ribs = [-1.0, 1.0].map(|sign| {
            (0..count)
                .map(|rib| {
                    let start = first + gap * (rib as f32 + chance.between(-0.05, 0.05));
                    let down = rib as f32 / count as f32;
                    let fall = fall + 0.065 * down;
                    let side = usize::from(sign > 0.0);
                    Rib {
                        sign,
                        start,
                        fall,
                        front: (0.07 + 0.10 * down) * chance.between(0.92, 1.08),
                        arch: 0.008 + 0.014 * down,
                        reach: anatomy.wall[side].at(start + fall) + 0.004,
                        radius: radius * chance.between(0.92, 1.08),
                        end: if rib > 6 {
                            TURN + 0.35
                        } else {
                            2.35 + 0.15 * chance.between(-1.0, 1.0)
                        },
                    }
                })
                .collect()
        });
        let others = others(&mut chance);
        Self {
            ribs,
            others,
            strength,
        }
    }

    /// Lines in layers: lines of a layer don't add up where they cross, layers do. With the strength of each layer.
    pub(crate) fn layers(&self, broken: Option<Break>) -> Vec<(Vec<Line>, f32)> {
        let (mut back, mut front) = (Vec::new(), Vec::new());
        for (side, ribs) in self.ribs.iter().enumerate() {
            for (number, rib) in ribs.iter().enumerate() {
                let here = broken.filter(|broken| broken.side == side && broken.rib == number);
                match here {
                    None => back.push(rib.part(0.0, TURN + 0.25, Across::Hollow)),
                    Some(broken) => back.extend(pieces(rib, broken)),
                }
                front.push(rib.part(TURN - 0.05, rib.end, Across::Hollow));
            }
        }
        vec![
            (back, self.strength),
            (front, self.strength * 0.75),
            (self.others.clone(), 1.0),
        ]
    }

    /// A place for a break near height `v`: the rib and angle whose height is nearest.
    pub(crate) fn rib_at(&self, side: usize, angle: f32, v: f32) -> usize {
        let off = |rib: &Rib| (rib.at(angle)[1] - v).abs();
        self.ribs[side]
            .iter()
            .enumerate()
            .min_by(|a, b| off(a.1).total_cmp(&off(b.1)))
            .map_or(0, |(number, _)| number)
    }

    /// The line across a rib along which it is broken.
    pub(crate) fn gap(&self, broken: Break) -> Line {
        let rib = &self.ribs[broken.side][broken.rib];
        let [u, v] = rib.at(broken.at);
        let [along, down] = rib.at(broken.at + 0.05);
        let (du, dv) = (along - u, down - v);
        let length = (du * du + dv * dv).sqrt().max(1e-6);
        // Across the rib, a little slanted.
        let reach = rib.radius * 1.15 / length;
        let (x, y) = ((-dv + 0.35 * du) * reach, (du + 0.35 * dv) * reach);
        Line::even(vec![[u - x, v - y], [u + x, v + y]], 0.0055, Across::Round)
    }
}

/// A broken rib: up to the break, and behind it, displaced.
fn pieces(rib: &Rib, broken: Break) -> [Line; 2] {
    let inner = rib.part(0.0, broken.at - 0.02, Across::Hollow);
    let mut outer = rib.part(broken.at + 0.02, TURN + 0.25, Across::Hollow);
    let last = (outer.points.len() - 1) as f32;
    for (number, point) in outer.points.iter_mut().enumerate() {
        point[1] += broken.shift * (1.0 - number as f32 / last);
    }
    [inner, outer]
}

fn others(chance: &mut Chance) -> Vec<Line> {
    let tilt = chance.between(-0.02, 0.03);
    let radius = chance.between(0.011, 0.014);
    let blade = chance.between(0.33, 0.39);
    let mut lines = Vec::new();
    for sign in [-1.0, 1.0] {
        let lift = chance.between(-0.008, 0.008);
        let clavicle = [
            [0.032, -0.262],
            [0.08, -0.285],
            [0.14, -0.310],
            [0.21, -0.322],
            [0.28, -0.325],
            [0.34, -0.338],
            [0.40, -0.362],
        ]
        .map(|[u, v]| [u * sign, v + lift - tilt * u * 2.0]);
        let mut line = Line::even(clavicle.to_vec(), radius, Across::Hollow);
        line.radius = [radius * 1.15, radius * 0.95];
        line.strength = [0.10; 2];
        lines.push(line);
        let scapula = [
            [blade + 0.06, -0.30],
            [blade + 0.05, -0.22],
            [blade + 0.055, -0.13],
            [blade + 0.075, -0.05],
        ]
        .map(|[u, v]| [u * sign, v + lift]);
        let mut line = Line::even(scapula.to_vec(), 0.06, Across::Flat);
        line.radius = [0.075, 0.022];
        line.strength = [0.045; 2];
        lines.push(line);
        let arm = [[0.50 * sign, -0.30 + lift], [0.60 * sign, -0.24 + lift]];
        let mut line = Line::even(arm.to_vec(), 0.045, Across::Round);
        line.strength = [0.10; 2];
        lines.push(line);
    }
    lines
}
