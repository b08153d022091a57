//! How often proposals are right, by where they come from: the longer the stretch of text that led to one, the more it is
//! worth. Measured on every token that is written, whether its proposal was verified or not, so that a change of what is
//! written is noticed also while nothing is verified.

/// What a measurement is worth after the next one.
const KEPT: f32 = 0.98;
/// What is believed before anything was measured: this many measurements, and this share of them right.
const PRIOR_COUNT: f32 = 4.0;
const PRIOR_SHARE: f32 = 0.6;

/// Stretches of the text itself, by their length: up to so many tokens each, and longer ones.
const OWN_LENGTHS: [usize; 4] = [2, 3, 5, 9];
/// Lengths of the stretches by which a tenant's phrases are found, longest first.
pub(crate) const PHRASE_LENGTHS: [usize; 3] = [8, 4, 2];

/// Where a proposal comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source(usize);

impl Source {
    /// The text or its prompt had these many tokens before.
    pub(crate) fn own(length: usize) -> Self {
        Self(OWN_LENGTHS.partition_point(|most| *most < length))
    }

    /// A phrase found by the stretch of this place among [`PHRASE_LENGTHS`].
    pub(crate) const fn phrase(place: usize) -> Self {
        Self(OWN_LENGTHS.len() + 1 + place)
    }
}

const SOURCES: usize = OWN_LENGTHS.len() + 1 + PHRASE_LENGTHS.len();

/// Measured chances of all sources.
#[derive(Debug, Clone)]
pub(crate) struct Chances([Share; SOURCES]);

#[derive(Debug, Clone, Copy)]
struct Share {
    right: f32,
    all: f32,
}

impl Default for Chances {
    fn default() -> Self {
        let believed = Share {
            right: PRIOR_COUNT * PRIOR_SHARE,
            all: PRIOR_COUNT,
        };
        Self([believed; SOURCES])
    }
}

impl Chances {
    /// The chance that a proposal is right when all before it were.
    pub(crate) fn of(&self, source: Source) -> f32 {
        let Share { right, all } = self.0[source.0];
        right / all
    }

    /// A proposal was right, or wrong.
    pub(crate) fn measure(&mut self, source: Source, right: bool) {
        let share = &mut self.0[source.0];
        share.all = share.all * KEPT + 1.0;
        share.right = share.right * KEPT + f32::from(u8::from(right));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_stretches_are_measured_apart() {
        let own = |length| Source::own(length).0;
        let found: Vec<usize> = (2..=12).map(own).collect();
        assert_eq!(found, [0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4]);
        assert_eq!(own(100), 4);
        let phrases: Vec<usize> = (0..3).map(|place| Source::phrase(place).0).collect();
        assert_eq!(phrases, [5, 6, 7]);
    }

    #[test]
    fn what_is_measured_replaces_what_was_believed_and_follows_a_change() {
        let mut chances = Chances::default();
        let (measured, other) = (Source::own(2), Source::own(3));
        assert!((chances.of(measured) - PRIOR_SHARE).abs() < 1e-6);
        for _ in 0..100 {
            chances.measure(measured, false);
        }
        assert!(chances.of(measured) < 0.02);
        for _ in 0..150 {
            chances.measure(measured, true);
        }
        assert!(chances.of(measured) > 0.9);
        assert!((chances.of(other) - PRIOR_SHARE).abs() < 1e-6);
    }
}
