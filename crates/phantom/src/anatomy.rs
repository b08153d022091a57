//! The patient: borders of lungs, heart, diaphragm and body as curves, and how much the tissue at a place absorbs.
//!
//! Lengths are in units of anatomy (`grid::View`), about the height of the lungs divided by 0.75. Absorption is on the
//! scale of the picture before its tone curve: 0 is air about the patient, 0.25 lung, 0.9 spine behind heart.

use crate::chance::{Chance, Purpose};
use crate::curve::{Curve, rise, step};

/// Index of the patient's right, on the left of the picture, in pairs of curves.
pub(crate) const RIGHT: usize = 0;
/// Index of the patient's left.
pub(crate) const LEFT: usize = 1;

/// How much of the light that tissue takes the air in a lung gives back.
const AIR: f32 = 0.47;
/// How much of a lung's air the heart and the vessels of the middle hide.
const HIDDEN: f32 = 0.93;

/// The curves of one patient. Pairs are right, left.
#[derive(Clone, Debug)]
pub(crate) struct Anatomy {
    /// Distance of the chest's inner wall from the middle, by height v.
    pub(crate) wall: [Curve; 2],
    /// Height v of the lung's top, by distance from the middle.
    top: [Curve; 2],
    /// Height v of the diaphragm, by distance from the middle.
    pub(crate) dome: [Curve; 2],
    /// Distance of the border of heart and great vessels from the middle, by height.
    pub(crate) heart: [Curve; 2],
    /// The same for the heart when it is enlarged.
    pub(crate) heart_large: [Curve; 2],
    /// Half width of the body by height.
    body: Curve,
    /// Strength of the spine by height.
    spine: Curve,
    /// Place of the windpipe's middle by height.
    pub(crate) windpipe: Curve,
    extras: Extras,
    is_enlarged: bool,
    /// Seed for the ribs and vessels of this patient.
    pub(crate) detail_seed: u64,
    /// Half the width of the chest at its widest.
    pub(crate) half_width: f32,
}

/// What only some patients have.
#[derive(Clone, Debug)]
struct Extras {
    /// Middle and radii of the stomach's air.
    bubble: Option<[f32; 4]>,
    /// Distance from the middle, height, radius and strength of breast shadows.
    breast: Option<[f32; 4]>,
    /// Absorption of the body without lungs.
    flesh: f32,
}

/// What a place of the patient is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tissue {
    pub(crate) absorption: f32,
    /// How much of the place is lung that is seen, 0..1.
    pub(crate) air: f32,
    /// What the enlarged heart would add.
    pub(crate) heart: Enlarged,
}

/// What an enlarged heart adds: a part that fades outwards, and as much as wanted of what fills it up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Enlarged {
    pub(crate) fading: f32,
    pub(crate) filling: f32,
}

impl Anatomy {
    /// The patient `number` of the set `seed`; `enlarged` (0..1) is how large the heart is if it is enlarged, `raised` by
    /// how much the right and left diaphragm are lifted.
    pub(crate) fn new(seed: u64, number: u64, enlarged: Option<f32>, raised: [f32; 2]) -> Self {
        let mut chance = Chance::new(seed, number, Purpose::Anatomy);
        let half_width = chance.between(0.33, 0.385);
        let shape = chance.between(2.0, 2.7);
        let apex = chance.between(-0.385, -0.345);
        let wall = [(); 2].map(|()| wall(&mut chance, half_width, shape));
        let top = [(); 2].map(|()| top(&mut chance, apex));
        let dome = domes(&mut chance, half_width, raised);
        let ratio = chance.between(0.42, 0.50);
        let share = chance.between(0.28, 0.36);
        let vessels = chance.between(0.85, 1.15);
        let border = |ratio: f32| {
            let width = ratio * 2.0 * half_width;
            [
                right_border(width * share, vessels),
                left_border(width * (1.0 - share), vessels),
            ]
        };
        let shoulder = chance.between(-0.02, 0.02);
        let disc = chance.between(0.052, 0.062);
        let bend = chance.between(-0.012, 0.012);
        Self {
            wall,
            top,
            heart: border(ratio),
            heart_large: border(0.56 + 0.12 * enlarged.unwrap_or(0.0)),
            is_enlarged: enlarged.is_some(),
            body: body(&mut chance, half_width, shoulder),
            spine: Curve::of(|v| 0.055 + 0.018 * (v / disc * std::f32::consts::TAU).cos()),
            windpipe: Curve::of(|v| bend * (v + 0.5) * 4.0),
            extras: extras(&mut chance, &dome),
            dome,
            detail_seed: chance.seed(),
            half_width,
        }
    }

    /// 1 in the lung's outline, above the diaphragm and inside the wall, and 0 outside; with the heart in front or without.
    pub(crate) fn lung(&self, u: f32, v: f32) -> f32 {
        let (side, across) = side_of(u);
        let inside = self.wall[side].at(v) - across;
        if inside < -0.01 {
            return 0.0;
        }
        step(inside, 0.006)
            * step(v - self.top[side].at(across), 0.010)
            * step(self.dome[side].at(across) - v, 0.005)
    }

    /// How far a place of a lung is from the wall and the top, whichever is nearer.
    pub(crate) fn depth(&self, u: f32, v: f32) -> f32 {
        let (side, across) = side_of(u);
        (self.wall[side].at(v) - across).min(v - self.top[side].at(across))
    }

    /// Height of a lung's top.
    pub(crate) fn top_of(&self, side: usize) -> f32 {
        self.top[side].at(0.137)
    }

    /// 1 in the shadow of the heart and the great vessels.
    pub(crate) fn shadow(&self, u: f32, v: f32) -> f32 {
        let (side, across) = side_of(u);
        shade(self.heart[side].at(v) - across)
    }

    /// The lung that is seen: without the heart's shadow.
    pub(crate) fn open_lung(&self, u: f32, v: f32) -> f32 {
        let lung = self.lung(u, v);
        if lung > 0.0 {
            lung * (1.0 - self.shadow(u, v))
        } else {
            0.0
        }
    }

    /// What is at a place, bones and vessels of the lung left out.
    pub(crate) fn tissue(&self, u: f32, v: f32) -> Tissue {
        let (side, across) = side_of(u);
        let inside = self.body.at(v) - across;
        if inside <= 0.0 {
            return Tissue {
                absorption: 0.0,
                air: 0.0,
                heart: Enlarged::default(),
            };
        }
        let mut absorption =
            self.extras.flesh * (0.25 * rise(inside * 25.0) + 0.75 * rise(inside * 3.2));
        let wall = self.wall[side].at(v) - across;
        let over_dome = self.dome[side].at(across) - v;
        let shadow = shade(self.heart[side].at(v) - across);
        let mut heart = Enlarged::default();
        let mut lung = 0.0;
        if wall > -0.006 && over_dome > -0.005 {
            let top = v - self.top[side].at(across);
            lung = step(wall, 0.006) * step(top, 0.010) * step(over_dome, 0.005);
            let thick = (0.42 + 0.58 * rise(wall * 6.0)) * (0.7 + 0.3 * rise(top * 6.0));
            let air = AIR * lung * thick;
            absorption -= air * (1.0 - HIDDEN * shadow);
            if self.is_enlarged {
                heart = self.enlarged(side, across, v, shadow);
                heart.fading *= air * HIDDEN;
                heart.filling *= air * HIDDEN;
            }
        }
        absorption += 0.03 * shadow + 0.04 * step(-over_dome, 0.006);
        absorption += self.extra(u, v);
        if across < 0.06 {
            absorption += self.spine.at(v) * step(0.040 - across, 0.010);
            let off = (u - self.windpipe.at(v)).abs();
            absorption -= 0.085 * step(0.019 - off, 0.006) * step(-0.12 - v, 0.02);
        }
        Tissue {
            absorption,
            air: lung * (1.0 - shadow),
            heart,
        }
    }

    /// The border of the heart that is not enlarged must not show in the one that is: it dissolves in a slope from the
    /// enlarged border inwards.
    fn enlarged(&self, side: usize, across: f32, v: f32, shadow: f32) -> Enlarged {
        let (border, large) = (self.heart[side].at(v), self.heart_large[side].at(v));
        let inside = large - across;
        if inside <= -0.006 || large <= border {
            return Enlarged::default();
        }
        let slope = (inside / (large - 0.7 * border).max(0.01)).clamp(0.0, 1.0);
        let slope = slope * slope * (1.8 - 0.8 * slope);
        let shade = shade(inside);
        Enlarged {
            fading: shade * slope - shadow,
            filling: shade * (1.0 - slope),
        }
    }

    fn extra(&self, u: f32, v: f32) -> f32 {
        let mut sum = 0.0;
        if let Some([x, y, across, down]) = self.extras.bubble {
            let (dx, dy) = ((u - x) / across, (v - y) / down);
            sum -= 0.20 * step(1.0 - dx * dx - dy * dy, 0.25);
        }
        if let Some([x, y, radius, strength]) = self.extras.breast {
            let (dx, dy) = ((u.abs() - x) / radius, (v - y) / radius);
            let inside = 1.0 - dx * dx - dy * dy;
            if inside > -0.1 {
                sum += strength * step(inside, 0.08) * (0.45 + 0.55 * (dy + 0.5).clamp(0.0, 1.0));
            }
        }
        sum
    }
}

/// Which lung a place belongs to and how far from the middle it is.
#[inline]
pub(crate) fn side_of(u: f32) -> (usize, f32) {
    if u < 0.0 { (RIGHT, -u) } else { (LEFT, u) }
}

/// How much of the air behind it heart and vessels hide, by the distance inwards from their border: half at once, the rest
/// as they grow thicker.
#[inline]
fn shade(inside: f32) -> f32 {
    if inside <= -0.006 {
        return 0.0;
    }
    0.5 * step(inside, 0.006) + 0.5 * rise(inside * 16.0)
}

fn wall(chance: &mut Chance, half_width: f32, shape: f32) -> Curve {
    let wave = chance.between(0.0, 6.0);
    Curve::of(|v| {
        let down = ((v + 0.41) / 0.62).clamp(0.0, 1.0);
        let full = half_width * (1.0 - (1.0 - down).powf(shape)).max(0.0).powf(0.54);
        let narrower = 0.02 * ((v - 0.22).max(0.0) / 0.15).powi(2);
        full - narrower.min(0.06) + 0.002 * (v * 14.0 + wave).sin()
    })
}

fn top(chance: &mut Chance, apex: f32) -> Curve {
    let apex = apex + chance.between(-0.008, 0.008);
    let middle = chance.between(0.125, 0.15);
    Curve::of(|across| {
        let off = across - middle;
        apex + off * off * if off < 0.0 { 9.0 } else { 3.0 }
    })
}

/// The diaphragm, the right side higher.
fn domes(chance: &mut Chance, half_width: f32, raised: [f32; 2]) -> [Curve; 2] {
    let right = chance.between(0.18, 0.25);
    let left = right + chance.between(0.012, 0.035);
    let drop = chance.between(0.09, 0.135);
    let middle = chance.between(0.15, 0.19);
    let dome = |height: f32| {
        Curve::of(move |across| {
            let off = across - middle;
            if off < 0.0 {
                height + 0.025 * (off / middle).powi(2)
            } else {
                let part = off / (half_width - middle);
                height + drop * (0.65 * part.powi(2) + 0.35 * part.powi(5)).min(1.4)
            }
        })
    };
    [dome(right - raised[RIGHT]), dome(left - raised[LEFT])]
}

/// Superior vena cava, then the right atrium reaching `reach` from the middle.
fn right_border(reach: f32, vessels: f32) -> Curve {
    Curve::through(&[
        (-0.50, 0.050 * vessels),
        (-0.34, 0.052 * vessels),
        (-0.20, 0.060 * vessels),
        (-0.06, 0.064 * vessels),
        (0.02, 0.35f32.mul_add(reach, 0.045)),
        (0.12, reach),
        (0.20, reach * 0.98),
        (0.34, reach * 0.80),
    ])
}

/// Aortic knob, pulmonary trunk, then the left ventricle reaching `reach` from the middle.
fn left_border(reach: f32, vessels: f32) -> Curve {
    Curve::through(&[
        (-0.50, 0.048 * vessels),
        (-0.33, 0.052 * vessels),
        (-0.25, 0.078 * vessels),
        (-0.205, 0.084 * vessels),
        (-0.15, 0.064 * vessels),
        (-0.09, 0.20f32.mul_add(reach, 0.040)),
        (-0.03, 0.34f32.mul_add(reach, 0.030)),
        (0.04, 0.68f32.mul_add(reach, 0.008)),
        (0.12, reach * 0.92),
        (0.20, reach),
        (0.27, reach * 0.96),
        (0.36, reach * 0.75),
    ])
}

fn body(chance: &mut Chance, half_width: f32, shoulder: f32) -> Curve {
    let flank = half_width + chance.between(0.055, 0.10);
    let neck = chance.between(0.12, 0.15);
    Curve::through(&[
        (-0.62, neck),
        (-0.47 + shoulder, neck * 1.1),
        (-0.41 + shoulder, neck * 1.6),
        (-0.35 + shoulder, 0.37),
        (-0.27 + shoulder, 0.50),
        (-0.16, 0.53),
        (-0.06, flank + 0.05),
        (0.04, flank),
        (0.30, flank),
        (0.60, flank + 0.02),
    ])
}

fn extras(chance: &mut Chance, dome: &[Curve; 2]) -> Extras {
    let (x, across) = (chance.between(0.10, 0.17), chance.between(0.035, 0.07));
    let down = chance.between(0.018, 0.035);
    let bubble = [x, dome[LEFT].at(x) + down + 0.018, across, down];
    let breast = [
        chance.between(0.18, 0.22),
        chance.between(0.10, 0.17),
        chance.between(0.13, 0.17),
        chance.between(0.04, 0.09),
    ];
    Extras {
        bubble: chance.happens(0.45).then_some(bubble),
        breast: chance.happens(0.4).then_some(breast),
        flesh: chance.between(0.76, 0.84),
    }
}
