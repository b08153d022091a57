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

    /// A second model, which gave it this probability.
    pub(crate) fn draft(probability: f32) -> Self {
        Self(FIRST_DRAFT + DRAFT_PROBABILITIES.partition_point(|most| *most < probability))
    }

    /// Whether it is a second model.
    pub(crate) const fn is_draft(self) -> bool {
        self.0 >= FIRST_DRAFT
    }
}

/// Probabilities that a second model gives to what it proposes, up to each and above: its own word is not taken for them.
const DRAFT_PROBABILITIES: [f32; 4] = [0.3, 0.6, 0.85, 0.97];
const FIRST_DRAFT: usize = OWN_LENGTHS.len() + 1 + PHRASE_LENGTHS.len();
const SOURCES: usize = FIRST_DRAFT + DRAFT_PROBABILITIES.len() + 1;

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

    /// The chance of what a second model proposes, before it is known what that is.
    pub(crate) fn of_draft(&self) -> f32 {
        let drafts = &self.0[FIRST_DRAFT..];
        let right: f32 = drafts.iter().map(|share| share.right).sum();
        right / drafts.iter().map(|share| share.all).sum::<f32>()
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
        let drafts = [0.1, 0.5, 0.7, 0.9, 0.99, 1.0].map(Source::draft);
        assert_eq!(drafts.map(|source| source.0), [8, 9, 10, 11, 12, 12]);
        assert!(Source::draft(0.0).is_draft() && !Source::phrase(2).is_draft());
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

    #[test]
    fn a_second_model_is_believed_as_far_as_it_was_right() {
        let mut chances = Chances::default();
        assert!((chances.of_draft() - PRIOR_SHARE).abs() < 1e-6);
        for _ in 0..100 {
            chances.measure(Source::draft(0.99), false);
            chances.measure(Source::own(2), true);
        }
        assert!(chances.of_draft() < 0.25, "{}", chances.of_draft());
        assert!(chances.of(Source::draft(0.99)) < 0.02);
        for _ in 0..300 {
            chances.measure(Source::draft(0.99), true);
        }
        assert!(chances.of_draft() > 0.8, "{}", chances.of_draft());
    }
}
