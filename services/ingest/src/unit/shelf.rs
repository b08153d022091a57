//! The messages in one stage's intake, as far as they were read, and how to remove those that are dealt with: all together where
//! they are at the front of the stream, which takes one request for hundreds of messages, and one by one elsewhere. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// How often what lies in front is removed at the most: a server works as long at a request that removes one message as at one
/// that removes a hundred.
const FRONT_EVERY: Duration = Duration::from_millis(100);

/// The intake messages of a stage, by sequence.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// Read and not removed.
    there: BTreeSet<u64>,
    /// Those of them whose unit is out, or not wanted any more; true once it has waited for those before it for long enough.
    done: BTreeMap<u64, bool>,
    /// A message was skipped, or is somebody else's, which lies somewhere among the others and has to stay.
    has_unknown: bool,
    /// When what lies in front may be removed again.
    front_from: Option<Instant>,
}

/// What can be removed by one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Every message below this sequence.
    Below(u64),
    /// This message.
    One(u64),
}

impl Shelf {
    /// A message was read.
    pub(crate) fn read(&mut self, sequence: u64) {
        self.there.insert(sequence);
    }

    /// A message was read that nobody understands, or that is not for whoever read it.
    pub(crate) fn skipped(&mut self) {
        self.has_unknown = true;
    }

    /// A message is done with.
    pub(crate) fn done(&mut self, sequence: u64) {
        if self.there.contains(&sequence) {
            self.done.entry(sequence).or_insert(false);
        }
    }

    /// Time has passed: what still lies behind others goes by itself from now on.
    pub(crate) fn age(&mut self) {
        self.done
            .values_mut()
            .for_each(|has_waited| *has_waited = true);
    }

    /// What to remove now, by so many requests at most; what lies in front not again so soon after the last time.
    pub(crate) fn removals(&self, most: usize, now: Instant) -> Vec<Removal> {
        let mut removals = Vec::new();
        let mut front = 0;
        if !self.has_unknown {
            let newest = self.there.last().copied();
            let in_front = self.there.iter().zip(&self.done);
            let in_front = in_front.take_while(|(there, (done, has_waited))| {
                // A server makes new files for a stream that becomes empty: the newest message stays for a while.
                there == done && (Some(**there) != newest || **has_waited)
            });
            if let Some((last, _)) = in_front.last() {
                front = last + 1;
                if self.front_from.is_none_or(|from| from <= now) {
                    removals.push(Removal::Below(front));
                }
            }
        }
        let behind = self.done.range(front..);
        let behind = behind.filter(|(_, has_waited)| **has_waited || self.has_unknown);
        removals.extend(behind.map(|(sequence, _)| Removal::One(*sequence)));
        removals.truncate(most);
        removals
    }

    /// It was removed.
    pub(crate) fn removed(&mut self, removal: Removal, now: Instant) {
        match removal {
            Removal::Below(front) => {
                self.front_from = Some(now + FRONT_EVERY);
                self.there = self.there.split_off(&front);
                self.done = self.done.split_off(&front);
            }
            Removal::One(sequence) => {
                self.there.remove(&sequence);
                self.done.remove(&sequence);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Removal::{Below, One};
    use super::*;

    fn shelf(read: &[u64], done: &[u64]) -> Shelf {
        let mut shelf = Shelf::default();
        read.iter().for_each(|sequence| shelf.read(*sequence));
        done.iter().for_each(|sequence| shelf.done(*sequence));
        shelf
    }

    #[test]
    fn what_lies_in_front_goes_at_once() {
        let mut shelf = shelf(&[3, 4, 7, 9], &[4, 3, 7]);
        let mut now = Instant::now();
        assert_eq!(shelf.removals(10, now), [Below(8)]);
        shelf.removed(Below(8), now);
        now += FRONT_EVERY;
        assert_eq!(shelf.removals(10, now), []);
        shelf.done(9);
        let removals = shelf.removals(10, now);
        assert_eq!(removals, [], "the newest one stays for a while");
        shelf.read(11);
        assert_eq!(shelf.removals(10, now), [Below(10)]);
        shelf.removed(Below(10), now);
        now += FRONT_EVERY;
        shelf.done(11);
        shelf.age();
        assert_eq!(shelf.removals(10, now), [Below(12)]);
    }

    #[test]
    fn what_comes_to_lie_in_front_soon_after_goes_together() {
        let mut shelf = shelf(&[1, 2, 3, 4, 5, 6], &[1]);
        let now = Instant::now();
        assert_eq!(shelf.removals(10, now), [Below(2)]);
        shelf.removed(Below(2), now);
        let soon = now + FRONT_EVERY / 2;
        for sequence in [2, 3, 5] {
            shelf.done(sequence);
            assert_eq!(shelf.removals(10, soon), []);
        }
        // Nor one by one, however long it has waited; but for what lies behind another.
        shelf.age();
        assert_eq!(shelf.removals(10, soon), [One(5)]);
        let later = now + FRONT_EVERY;
        assert_eq!(shelf.removals(10, later), [Below(4), One(5)]);
    }

    #[test]
    fn what_lies_behind_another_waits_and_then_goes_by_itself() {
        let mut shelf = shelf(&[3, 4, 5, 6], &[4, 6]);
        let now = Instant::now();
        assert_eq!(shelf.removals(10, now), []);
        shelf.age();
        assert_eq!(shelf.removals(10, now), [One(4), One(6)]);
        assert_eq!(shelf.removals(1, now), [One(4)]);
        shelf.removed(One(4), now);
        shelf.done(3);
        // 5 is still held.
        assert_eq!(shelf.removals(10, now), [Below(4), One(6)]);
    }

    #[test]
    fn a_message_that_nobody_understands_is_not_removed_with_others() {
        let mut shelf = shelf(&[3, 4], &[3, 4]);
        shelf.skipped();
        assert_eq!(shelf.removals(10, Instant::now()), [One(3), One(4)]);
    }

    #[test]
    fn what_was_never_read_is_not_removed() {
        assert_eq!(shelf(&[], &[3]).removals(10, Instant::now()), []);
    }
}
