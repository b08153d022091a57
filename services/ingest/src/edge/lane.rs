//! The jobs of one tenant that wait for the hub, and which of them is offered next. Pure.
//!
//! Of each class one is offered at a time, and none while one of a higher class is. One of a higher class than all that are
//! being offered does not wait for these: their files may be on the line for hours. One that could not be handed on goes back to
//! its place, so that a job of a higher class that has come meanwhile is next. Where the reason is the job's own, such as a record
//! that this release cannot read, the job is left out for a while and holds up no other. What an operator holds back is looked at
//! once, as it may have ended, and then left out until it is let go. Of each job is remembered whether it is doubtful: the hub may
//! have it although our record does not say so.

use std::collections::BTreeMap;
use std::sync::Arc;

use medfleet_core::{Class, JobId, Stage};
use medfleet_queue::IntakeEntry;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A job's place in the order of offers: by class; within a class accepted jobs in the order of their acceptance, then jobs whose
/// images stay here in the order in which they were encoded.
type Place = (Class, Stage, u64);

/// The jobs of one tenant that wait.
#[derive(Debug, Default)]
pub(super) struct Lane {
    waiting: BTreeMap<Place, Waiting>,
    /// Those that are left out until [`Lane::try_left`].
    left: BTreeMap<Place, Waiting>,
    /// Those that an operator holds back, until [`Lane::let_go`].
    held: BTreeMap<Place, Waiting>,
    /// Those that are being offered, the latest first, as it is of a higher class than the others.
    offered: BTreeMap<Place, Offer>,
    /// Offers in a row that failed.
    tries: u32,
}

/// An offer under way.
#[derive(Debug)]
struct Offer {
    job: JobId,
    /// Its job has ended meanwhile.
    is_woken: bool,
    /// Ends the pause after it: a job of a higher class has come.
    hurry: Arc<Notify>,
}

#[derive(Debug)]
struct Waiting {
    entry: IntakeEntry,
    is_doubtful: bool,
    /// Until when the hub asked it to wait.
    until: Option<Instant>,
}

/// A job whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) entry: IntakeEntry,
    /// Whether the hub may have it without our record saying so.
    pub(super) is_doubtful: bool,
    /// Offers of this tenant's jobs that failed in a row right before it.
    pub(super) tries: u32,
}

impl Lane {
    /// Adds a job. `is_doubtful`: somebody else may have offered it.
    pub(super) fn add(&mut self, entry: IntakeEntry, is_doubtful: bool) {
        let place = place(&entry);
        // A message that is read a second time stays doubtful if it was.
        let was = self
            .waiting
            .remove(&place)
            .or_else(|| self.left.remove(&place))
            .or_else(|| self.held.remove(&place));
        let is_doubtful = is_doubtful || was.is_some_and(|was| was.is_doubtful);
        let waiting = Waiting {
            entry,
            is_doubtful,
            until: None,
        };
        self.waiting.insert(place, waiting);
        for (offered, offer) in &self.offered {
            if place.0 < offered.0 {
                offer.hurry.notify_one();
            }
        }
    }

    /// Forgets what waits, as it is read anew. What is being offered stays so, and the pauses after it end: where it was handed on,
    /// its message waits to be removed.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting.clear();
        self.left.clear();
        self.held.clear();
        self.end_pause();
    }

    /// Ends the pauses after the offers under way, also those that have not begun.
    pub(super) fn end_pause(&self) {
        for offer in self.offered.values() {
            offer.hurry.notify_one();
        }
    }

    /// What ends the pause after the latest offer under way early.
    pub(super) fn hurry(&self) -> Arc<Notify> {
        let latest = self.offered.values().next();
        latest
            .map(|offer| Arc::clone(&offer.hurry))
            .unwrap_or_default()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.left.len() + self.held.len()
    }

    /// The job to offer now; `None` while one of no lower class is offered, or the hub's time for it has not come. `room`: how many
    /// more of the tenant's jobs may be at the hub, those that are offered among them; beyond that only a STAT job is offered.
    pub(super) fn next(&mut self, room: u32, now: Instant) -> Option<Turn> {
        // Those that are offered stay among the waiting ones until it is known what became of them.
        let (place, first) = self.waiting.first_key_value()?;
        let latest = self.offered.keys().next();
        let is_behind = latest.is_some_and(|latest| place.0 >= latest.0);
        let is_early = first.until.is_some_and(|until| now < until);
        let offered = u32::try_from(self.offered.len()).unwrap_or(u32::MAX);
        if is_behind || is_early || (offered >= room && place.0 != Class::Stat) {
            return None;
        }
        let offer = Offer {
            job: first.entry.unit.key.job.clone(),
            is_woken: false,
            // A wish that came too late for an offer before is none of this one's.
            hurry: Arc::default(),
        };
        self.offered.insert(*place, offer);
        Some(Turn {
            entry: first.entry.clone(),
            is_doubtful: first.is_doubtful,
            tries: self.tries,
        })
    }

    /// The offered job needs no further offer.
    pub(super) fn done(&mut self, entry: &IntakeEntry) {
        drop(self.take(entry));
        self.offered.remove(&place(entry));
        self.tries = 0;
    }

    /// The offer failed. The job is doubtful from now on: the hub may have taken it, and only its answer was lost. `until`: when the
    /// hub wants to see it again; it is not sent in vain because another ended its pause.
    pub(super) fn not_done(&mut self, entry: &IntakeEntry, until: Option<Instant>) {
        let place = place(entry);
        let waiting = self.waiting.get_mut(&place);
        if let Some(waiting) = waiting.filter(|waiting| waiting.entry.unit == entry.unit) {
            (waiting.is_doubtful, waiting.until) = (true, until);
        }
        self.offered.remove(&place);
        self.tries = self.tries.saturating_add(1);
    }

    /// The offer failed for a reason of the job's own: it is left out until [`Lane::try_left`].
    pub(super) fn leave(&mut self, entry: &IntakeEntry) {
        let place = place(entry);
        if let Some(waiting) = self.take(entry) {
            let waiting = Waiting {
                is_doubtful: true,
                ..waiting
            };
            self.left.insert(place, waiting);
        }
        self.offered.remove(&place);
    }

    /// The offered job is held back, unless it has ended since its record was read.
    pub(super) fn hold(&mut self, entry: &IntakeEntry) {
        let place = place(entry);
        let offer = self.offered.remove(&place);
        if !offer.is_some_and(|offer| offer.is_woken)
            && let Some(waiting) = self.take(entry)
        {
            self.held.insert(place, waiting);
        }
    }

    /// Takes an offered job out of those that wait. A queue that has lost writes may have given its place to another since.
    fn take(&mut self, entry: &IntakeEntry) -> Option<Waiting> {
        let place = place(entry);
        let waiting = self.waiting.get(&place);
        let is_there = waiting.is_some_and(|waiting| waiting.entry.unit == entry.unit);
        is_there.then(|| self.waiting.remove(&place)).flatten()
    }

    /// Lets the jobs that were held back be offered again.
    pub(super) fn let_go(&mut self) {
        self.waiting.append(&mut self.held);
    }

    /// A job has ended, and is offered again if it was held back: the hub may have to be told.
    pub(super) fn wake(&mut self, job: &JobId) {
        let is_it = |waiting: &Waiting| waiting.entry.unit.key.job == *job;
        for offer in self.offered.values_mut() {
            offer.is_woken |= offer.job == *job;
        }
        let woken = self.held.iter().filter(|(_, waiting)| is_it(waiting));
        let woken: Vec<Place> = woken.map(|(place, _)| *place).collect();
        for place in woken {
            if let Some(waiting) = self.held.remove(&place) {
                self.waiting.insert(place, waiting);
            }
        }
    }

    /// Lets the jobs that were left out be offered again.
    pub(super) fn try_left(&mut self) {
        self.waiting.append(&mut self.left);
    }
}

fn place(entry: &IntakeEntry) -> Place {
    (entry.unit.class, entry.unit.stage, entry.sequence)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use medfleet_core::UnixMillis;
    use medfleet_testkit as kit;

    use super::*;

    /// As much as shipped.
    const ROOM: u32 = 256;

    fn entry(class: Class, stage: Stage, sequence: u64) -> IntakeEntry {
        let key = kit::key(u8::try_from(sequence).expect("small"));
        IntakeEntry {
            unit: kit::unit(&key, stage, class, 0),
            sequence,
            headers: Vec::new(),
            stored_at: UnixMillis(0),
        }
    }

    fn routine(sequence: u64) -> IntakeEntry {
        entry(Class::Routine, Stage::Preprocess, sequence)
    }

    /// The next turn is of this job.
    fn check(lane: &mut Lane, expected: &IntakeEntry, is_doubtful: bool, tries: u32) {
        let expected = Turn {
            entry: expected.clone(),
            is_doubtful,
            tries,
        };
        assert_eq!(lane.next(ROOM, Instant::now()), Some(expected));
        assert_eq!(lane.next(ROOM, Instant::now()), None, "two at a time");
    }

    #[test]
    fn a_higher_class_goes_first_and_within_one_the_order_stays() {
        let stat = entry(Class::Stat, Stage::Preprocess, 9);
        let encoded = entry(Class::Routine, Stage::Decode, 1);
        let mut lane = Lane::default();
        for entry in [&encoded, &routine(3), &routine(2), &stat] {
            lane.add(entry.clone(), false);
        }
        for entry in [&stat, &routine(2), &routine(3), &encoded] {
            check(&mut lane, entry, false, 0);
            lane.done(entry);
        }
        assert_eq!((lane.len(), lane.next(ROOM, Instant::now())), (0, None));
    }

    /// Its files may be on the line for hours, or the pauses between their parts be long.
    #[test]
    fn a_job_of_a_higher_class_does_not_wait_for_the_offer_of_another() {
        let stat = |sequence| entry(Class::Stat, Stage::Preprocess, sequence);
        let urgent = entry(Class::Urgent, Stage::Preprocess, 3);
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        check(&mut lane, &routine(1), false, 0);
        for entry in [&routine(2), &urgent, &stat(4), &stat(5)] {
            lane.add(entry.clone(), false);
        }
        // Of its own class, and below it, none goes beside it.
        check(&mut lane, &stat(4), false, 0);
        lane.done(&stat(4));
        check(&mut lane, &stat(5), false, 0);
        lane.not_done(&stat(5), None);
        check(&mut lane, &stat(5), true, 1);
        lane.done(&stat(5));
        check(&mut lane, &urgent, false, 0);
        // It is held back, and the one below it has ended.
        lane.wake(&routine(1).unit.key.job);
        lane.hold(&urgent);
        assert_eq!(lane.next(ROOM, Instant::now()), None, "one a class");
        lane.hold(&routine(1));
        check(&mut lane, &routine(1), false, 0);
        lane.done(&routine(1));
        check(&mut lane, &routine(2), false, 0);
        lane.done(&routine(2));
        lane.let_go();
        check(&mut lane, &urgent, false, 0);
        lane.done(&urgent);
        assert_eq!(lane.len(), 0);
    }

    /// As where the connection to the queue was lost.
    #[test]
    fn the_pauses_of_all_offers_under_way_can_be_ended() {
        let is_hurried = |hurry: &Notify| hurry.notified().now_or_never().is_some();
        let stat = entry(Class::Stat, Stage::Preprocess, 2);
        let mut lane = Lane::default();
        lane.end_pause();
        lane.add(routine(1), false);
        check(&mut lane, &routine(1), false, 0);
        let first = lane.hurry();
        assert!(!is_hurried(&first), "it was not under way");
        lane.add(stat.clone(), false);
        check(&mut lane, &stat, false, 0);
        let second = lane.hurry();
        assert!(is_hurried(&first) && !is_hurried(&second));
        lane.end_pause();
        assert!(is_hurried(&first) && is_hurried(&second));
    }

    /// As where the connection to the queue was lost while files were on the line.
    #[test]
    fn what_is_being_offered_stays_so_where_the_intake_is_read_anew() {
        let stat = entry(Class::Stat, Stage::Preprocess, 3);
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        lane.add(routine(2), false);
        check(&mut lane, &routine(1), false, 0);
        let hurry = lane.hurry();
        lane.forget_waiting();
        assert!(hurry.notified().now_or_never().is_some());
        assert_eq!((lane.len(), lane.next(ROOM, Instant::now())), (0, None));
        // It is told of before it is read.
        lane.wake(&routine(1).unit.key.job);
        for entry in [&routine(1), &routine(2), &stat] {
            lane.add(entry.clone(), true);
        }
        check(&mut lane, &stat, true, 0);
        lane.done(&stat);
        assert_eq!(lane.next(ROOM, Instant::now()), None, "one a class");
        lane.hold(&routine(1));
        check(&mut lane, &routine(1), true, 0);
        // The queue has lost its latest writes.
        lane.forget_waiting();
        let mut other = routine(1);
        other.unit.key = kit::key(9);
        lane.add(other.clone(), false);
        lane.done(&routine(1));
        check(&mut lane, &other, false, 0);
    }

    #[test]
    fn without_room_at_the_hub_only_stat_goes() {
        let stat = entry(Class::Stat, Stage::Preprocess, 2);
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        assert_eq!(lane.next(0, Instant::now()), None);
        lane.add(stat.clone(), false);
        let turn = lane.next(0, Instant::now()).map(|turn| turn.entry);
        assert_eq!(turn, Some(stat.clone()));
        lane.done(&stat);
        assert_eq!(lane.next(0, Instant::now()), None);
        check(&mut lane, &routine(1), false, 0);
    }

    /// Both would be at the hub.
    #[test]
    fn what_is_being_offered_has_its_place_at_the_hub() {
        let urgent = entry(Class::Urgent, Stage::Preprocess, 2);
        let stat = entry(Class::Stat, Stage::Preprocess, 3);
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        check(&mut lane, &routine(1), false, 0);
        lane.add(urgent.clone(), false);
        assert_eq!(lane.next(1, Instant::now()), None);
        lane.add(stat.clone(), false);
        let turn = lane.next(1, Instant::now()).map(|turn| turn.entry);
        assert_eq!(turn, Some(stat.clone()), "it goes beyond that");
        lane.done(&stat);
        let turn = lane.next(2, Instant::now()).map(|turn| turn.entry);
        assert_eq!(turn, Some(urgent));
    }

    #[test]
    fn what_was_tried_gives_way_and_stays_in_doubt() {
        let stat = entry(Class::Stat, Stage::Preprocess, 4);
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        lane.add(routine(2), false);
        check(&mut lane, &routine(1), false, 0);
        lane.not_done(&routine(1), None);
        check(&mut lane, &routine(1), true, 1);
        // It comes while another is under way.
        lane.add(stat.clone(), false);
        lane.not_done(&routine(1), None);
        check(&mut lane, &stat, false, 2);
        lane.not_done(&stat, None);
        check(&mut lane, &stat, true, 3);
        lane.done(&stat);
        // The hub may have this one, whatever was handed on since.
        check(&mut lane, &routine(1), true, 0);
        lane.done(&routine(1));
        check(&mut lane, &routine(2), false, 0);
    }

    /// However long the hub asked the other one to wait.
    #[test]
    fn a_job_of_a_higher_class_waits_for_no_pause_of_another() {
        let is_hurried = |lane: &Lane| lane.hurry().notified().now_or_never().is_some();
        let stat = entry(Class::Stat, Stage::Preprocess, 3);
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        check(&mut lane, &routine(1), false, 0);
        lane.add(routine(2), false);
        assert!(!is_hurried(&lane), "it comes after the other");
        lane.end_pause();
        assert!(is_hurried(&lane) && !is_hurried(&lane), "once");
        lane.add(stat.clone(), false);
        assert!(is_hurried(&lane));
        let until = Instant::now() + Duration::from_secs(600);
        lane.not_done(&routine(1), Some(until));
        check(&mut lane, &stat, false, 1);
        let second = entry(Class::Stat, Stage::Preprocess, 4);
        lane.add(second.clone(), false);
        assert!(!is_hurried(&lane), "it is of the same class");
        lane.done(&stat);
        check(&mut lane, &second, false, 0);
        lane.done(&second);
        assert_eq!(lane.next(ROOM, Instant::now()), None, "the hub said when");
        let turn = lane.next(ROOM, until).map(|turn| turn.entry);
        assert_eq!(turn, Some(routine(1)));
        // One that came while the other was sent hurries nothing after it.
        let urgent = entry(Class::Urgent, Stage::Preprocess, 6);
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        check(&mut lane, &routine(1), false, 0);
        lane.add(urgent.clone(), false);
        lane.done(&routine(1));
        check(&mut lane, &urgent, false, 0);
        assert!(!is_hurried(&lane));
    }

    #[test]
    fn what_cannot_be_offered_by_itself_holds_up_no_other() {
        let mut lane = Lane::default();
        lane.add(routine(1), false);
        lane.add(routine(2), false);
        check(&mut lane, &routine(1), false, 0);
        lane.leave(&routine(1));
        assert_eq!(lane.len(), 2);
        check(&mut lane, &routine(2), false, 0);
        lane.done(&routine(2));
        assert_eq!(lane.next(ROOM, Instant::now()), None, "it is left");
        lane.try_left();
        check(&mut lane, &routine(1), true, 0);
        lane.leave(&routine(1));
        // It is read a second time.
        lane.add(routine(1), false);
        assert_eq!(lane.len(), 1);
        check(&mut lane, &routine(1), true, 0);
    }

    #[test]
    fn what_is_held_back_waits_in_its_place_and_passes_once_it_has_ended() {
        let mut lane = Lane::default();
        for sequence in 1..4 {
            lane.add(routine(sequence), sequence == 2);
        }
        for sequence in 1..4 {
            check(&mut lane, &routine(sequence), sequence == 2, 0);
            lane.hold(&routine(sequence));
        }
        assert_eq!((lane.len(), lane.next(ROOM, Instant::now())), (3, None));
        lane.wake(&routine(2).unit.key.job);
        check(&mut lane, &routine(2), true, 0);
        lane.done(&routine(2));
        assert_eq!((lane.len(), lane.next(ROOM, Instant::now())), (2, None));
        // It is read a second time.
        lane.add(routine(3), false);
        assert_eq!(lane.len(), 2);
        // It ends after its record was read for the offer.
        check(&mut lane, &routine(3), false, 0);
        lane.wake(&routine(3).unit.key.job);
        lane.hold(&routine(3));
        check(&mut lane, &routine(3), false, 0);
        lane.hold(&routine(3));
        lane.let_go();
        for sequence in [1, 3] {
            check(&mut lane, &routine(sequence), false, 0);
            lane.done(&routine(sequence));
        }
        assert_eq!(lane.len(), 0);
    }

    #[test]
    fn what_another_leader_may_have_offered_is_doubtful_however_often_it_is_read() {
        let mut lane = Lane::default();
        lane.add(routine(1), true);
        lane.add(routine(1), false);
        assert_eq!(lane.len(), 1);
        check(&mut lane, &routine(1), true, 0);
    }
}
