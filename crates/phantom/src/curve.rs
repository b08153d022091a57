//! Curves as tables: a shape is worked out once a picture at a few hundred places, and a pixel only looks it up.

/// Where tables start and end, in units of anatomy: wider than any picture.
const START: f32 = -0.9;
const END: f32 = 0.9;
/// Entries of a table; linear between them.
const ENTRIES: usize = 361;
const STEP: f32 = (END - START) / (ENTRIES - 1) as f32;

/// A function of one coordinate of anatomy.
#[derive(Clone, Debug)]
pub(crate) struct Curve(Vec<f32>);

impl Curve {
    /// A table of `function`.
    pub(crate) fn of(function: impl Fn(f32) -> f32) -> Self {
        Self(
            (0..ENTRIES)
                .map(|entry| function(START + entry as f32 * STEP))
                .collect(),
        )
    }

    /// A smooth curve through `knots` (place, value), which are in rising order; constant beyond the ends.
    pub(crate) fn through(knots: &[(f32, f32)]) -> Self {
        Self::of(|at| cubic(knots, at))
    }

    /// The value at `at`; that of the nearer end outside the table.
    pub(crate) fn at(&self, at: f32) -> f32 {
        let place = ((at - START) * (1.0 / STEP)).clamp(0.0, (ENTRIES - 2) as f32);
        // Through a signed number, which processors convert faster.
        let entry = place as i32 as usize;
        let pair = &self.0[entry..entry + 2];
        pair[0] + (pair[1] - pair[0]) * (place - entry as i32 as f32)
    }
}

/// Cubic Hermite interpolation with slopes from the neighbours on either side.
fn cubic(knots: &[(f32, f32)], at: f32) -> f32 {
    let last = knots.len() - 1;
    if at <= knots[0].0 {
        return knots[0].1;
    }
    let Some(right) = knots.iter().position(|knot| knot.0 > at) else {
        return knots[last].1;
    };
    let slope = |knot: usize| {
        let (before, after) = (knots[knot.saturating_sub(1)], knots[(knot + 1).min(last)]);
        (after.1 - before.1) / (after.0 - before.0)
    };
    let (from, to) = (knots[right - 1], knots[right]);
    let span = to.0 - from.0;
    let t = (at - from.0) / span;
    let (t2, t3) = (t * t, t * t * t);
    (2.0 * t3 - 3.0 * t2 + 1.0) * from.1
        + (t3 - 2.0 * t2 + t) * span * slope(right - 1)
        + (3.0 * t2 - 2.0 * t3) * to.1
        + (t3 - t2) * span * slope(right)
}

/// 0 up to `-softness`, 1 from `softness` on, smooth in between.
#[inline]
pub(crate) fn step(distance: f32, softness: f32) -> f32 {
    let t = (distance / softness * 0.5 + 0.5).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// 0 at 0, 1 from 1 on, steep at first: how much of a rounded body a ray crosses at a distance from its edge.
#[inline]
pub(crate) fn rise(distance: f32) -> f32 {
    let t = distance.clamp(0.0, 1.0);
    t * (2.0 - t)
}
