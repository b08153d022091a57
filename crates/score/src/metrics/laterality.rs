//! Whether findings that are rightly named are named on the right side.
//!
//! Counted over the sides that a report gives to a sided label that the record truly has: right if the record has that label on
//! that side. "Bilateral" counts as left and right; a label named without any side is one wrong. Labels named wrongly don't
//! count here, F1 counts them.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::Side;

/// Sides named, and how many of them are right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sides {
    /// Sides named rightly.
    pub right: usize,
    /// Sides named, and labels without.
    pub named: usize,
}

impl std::ops::AddAssign for Sides {
    fn add_assign(&mut self, other: Self) {
        self.right += other.right;
        self.named += other.named;
    }
}

/// Left and right of these.
pub fn halves(sides: impl IntoIterator<Item = Side>) -> BTreeSet<Side> {
    let mut halves = BTreeSet::new();
    for side in sides {
        match side {
            Side::Left | Side::Right => {
                halves.insert(side);
            }
            Side::Bilateral => halves.extend([Side::Left, Side::Right]),
            Side::Midline => {}
        }
    }
    halves
}

/// The sides said of one label that is there and was named, against the true ones.
pub fn compare(said: &BTreeSet<Side>, truth: &BTreeSet<Side>) -> Sides {
    Sides {
        right: said.intersection(truth).count(),
        named: said.len().max(1),
    }
}

/// Right sides of all named, over weighted records; none if no side was named.
pub fn accuracy(records: &[Sides], weights: &[f64]) -> Option<f64> {
    let (mut right, mut named) = (0.0, 0.0);
    for (sides, weight) in records.iter().zip(weights) {
        right += sides.right as f64 * weight;
        named += sides.named as f64 * weight;
    }
    (named > 0.0).then(|| right / named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_named() {
        let check = |said: &[Side], truth: &[Side], right, named| {
            let sides = compare(
                &halves(said.iter().copied()),
                &halves(truth.iter().copied()),
            );
            assert_eq!(sides, Sides { right, named });
        };
        check(&[Side::Left], &[Side::Left], 1, 1);
        check(&[Side::Right], &[Side::Left], 0, 1);
        check(&[Side::Bilateral], &[Side::Left], 1, 2);
        check(&[Side::Left], &[Side::Left, Side::Right], 1, 1);
        check(&[], &[Side::Left], 0, 1);
    }
}
