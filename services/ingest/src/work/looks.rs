//! When to count again what is unfinished in full pools. Only the queue's count shows that a unit is done, and it costs requests.
//! So a pool is counted as soon as one of its jobs has moved since the last count, whether it was full then or has become so since:
//! a unit that waits for room need not wait for the count of each second.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::unit::LaneKey;

/// What was counted, and when the next count is.
#[derive(Debug)]
pub(super) struct Looks {
    /// Least time between a job's move and a count: by then the worker, which acknowledges right after its event, has done so.
    least: Duration,
    moved_at: Instant,
    /// The pools that were counted at least that long after the last move.
    counted: BTreeSet<LaneKey>,
    at: Option<Instant>,
}

impl Looks {
    pub(super) const fn new(least: Duration, now: Instant) -> Self {
        Self {
            least,
            moved_at: now,
            counted: BTreeSet::new(),
            at: None,
        }
    }

    /// When to count the full pools.
    pub(super) const fn at(&self) -> Option<Instant> {
        self.at
    }

    /// A job moved: something may have ended.
    pub(super) fn moved(&mut self, now: Instant) {
        self.moved_at = now;
        self.counted.clear();
    }

    /// These pools hold units and have no room for them.
    pub(super) fn full(&mut self, full: &[LaneKey]) {
        if self.at.is_none() && full.iter().any(|lane| !self.counted.contains(lane)) {
            self.at = Some(self.moved_at + self.least);
        }
    }

    /// These were counted, or could not be, which the next move or second tries again.
    pub(super) fn counted(&mut self, lanes: impl IntoIterator<Item = LaneKey>, now: Instant) {
        if now >= self.moved_at + self.least {
            self.counted.extend(lanes);
        }
        self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::{PoolName, Stage};

    use super::*;

    const LEAST: Duration = Duration::from_millis(20);

    fn lane(stage: Stage) -> LaneKey {
        (stage, PoolName::new("tiny").expect("a name"))
    }

    #[test]
    fn who_comes_right_behind_another_waits_for_no_second() {
        let start = Instant::now();
        let mut looks = Looks::new(LEAST, start);
        let full = [lane(Stage::Preprocess)];
        // A job ends while nobody waits; the next one comes after that was heard.
        looks.moved(start);
        looks.full(&[]);
        assert_eq!(looks.at(), None);
        looks.full(&full);
        assert_eq!(looks.at(), Some(start + LEAST));
        looks.counted(full.clone(), start + LEAST);
        // Still full: only a move can make room.
        looks.full(&full);
        assert_eq!(looks.at(), None);
        // Another pool was not counted then, having had room.
        looks.full(&[lane(Stage::Encode)]);
        assert_eq!(looks.at(), Some(start + LEAST));
    }

    #[test]
    fn moves_one_after_the_other_put_off_no_count_and_one_too_early_does_not_stand() {
        let start = Instant::now();
        let mut looks = Looks::new(LEAST, start);
        let full = [lane(Stage::Decode)];
        looks.moved(start);
        looks.full(&full);
        let soon = start + LEAST / 2;
        looks.moved(soon);
        looks.full(&full);
        assert_eq!(looks.at(), Some(start + LEAST));
        // The second one's acknowledgement may not have come by then.
        looks.counted(full.clone(), start + LEAST);
        looks.full(&full);
        assert_eq!(looks.at(), Some(soon + LEAST));
    }
}
