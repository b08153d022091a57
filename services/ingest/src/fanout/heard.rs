//! All that was told of each of the jobs that were accepted last, from its first event on, until its text is begun: whoever
//! begins to watch such a job needs to read nothing. Bounded; what is not here is read from the stream.

use std::collections::{HashMap, VecDeque};

use medfleet_core::JobKey;
use medfleet_proto::v1::JobState;
use medfleet_proto::work::v1::JobEvent;

/// Jobs remembered: those that were heard of first most lately, most of which have gone further since.
const JOBS_MAX: usize = 4_096;
/// Events remembered of each; a job of many chunks has more.
const EVENTS_MAX: usize = 16;

/// An event with its sequence.
pub(crate) type Told = (u64, JobEvent);

#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// All events of a job; none where some may be missing, or its text is begun.
    jobs: HashMap<JobKey, Vec<Told>>,
    /// The same jobs, in the order in which they were heard of first.
    order: VecDeque<JobKey>,
    /// Losses of the connection when it was heard.
    losses: u64,
}

impl Heard {
    /// Takes an event, in the order of the stream and none left out. `losses`: of the connection so far. What was heard before
    /// the last of them counts no more: a server that lost its latest writes has others in their place.
    pub(crate) fn note(&mut self, key: &JobKey, told: Told, losses: u64) {
        if losses != self.losses {
            self.forget_all();
            self.losses = losses;
        }
        let (sequence, event) = &told;
        // Of a later epoch there is one before it, of which more may be stored.
        let is_first = event.epoch == 0 && event.state() == JobState::Accepted;
        let Some(events) = self.jobs.get_mut(key) else {
            return self.begin(key, is_first.then_some(told));
        };
        let follows = events.last().is_some_and(|(last, _)| last < sequence);
        let is_known = follows && !is_first && event.epoch == 0 && is_before_text(event.state());
        if is_known && events.len() < EVENTS_MAX {
            events.push(told);
        } else {
            *events = Vec::new();
        }
    }

    /// `accepted`: none where another event comes first. One that was sent again, since its answer was lost, can be stored behind
    /// what followed from it: what is told of such a job begins elsewhere.
    fn begin(&mut self, key: &JobKey, accepted: Option<Told>) {
        self.jobs
            .insert(key.clone(), accepted.into_iter().collect());
        self.order.push_back(key.clone());
        if self.order.len() > JOBS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }

    /// Everything that is told of a job so far, in order; none where something of it may not have been heard.
    pub(crate) fn of(&self, key: &JobKey, losses: u64) -> Option<Vec<Told>> {
        let events = self.jobs.get(key).filter(|events| !events.is_empty())?;
        (losses == self.losses).then(|| events.clone())
    }

    /// Events may have been missed.
    pub(crate) fn forget_all(&mut self) {
        self.jobs.clear();
        self.order.clear();
    }
}

/// Whether no text, and nothing of another place, is to be told of a job that stands there.
const fn is_before_text(state: JobState) -> bool {
    matches!(
        state,
        JobState::Accepted | JobState::Released | JobState::Preprocessed | JobState::Encoding
    )
}

#[cfg(test)]
mod tests {
    use medfleet_core::{JobId, TenantId};

    use super::*;

    fn key(job: usize) -> JobKey {
        JobKey::new(
            TenantId::new("st-mary").expect("a name"),
            JobId::from_bytes((job as u128).to_be_bytes()),
        )
    }

    fn event(epoch: u32, state: JobState) -> JobEvent {
        JobEvent {
            epoch,
            state: state.into(),
            ..JobEvent::default()
        }
    }

    /// What is known of a job of which this was heard, after so many losses at each.
    fn check(heard: &[(u64, u32, JobState, u64)], losses: u64, expected: Option<&[u64]>) {
        let mut all = Heard::default();
        for (sequence, epoch, state, losses) in heard {
            all.note(&key(1), (*sequence, event(*epoch, *state)), *losses);
        }
        let known = all.of(&key(1), losses);
        let known = known.map(|told| told.iter().map(|(at, _)| *at).collect::<Vec<_>>());
        assert_eq!(known.as_deref(), expected, "{heard:?}");
    }

    #[test]
    fn a_job_is_known_from_its_accept_until_its_text_is_begun() {
        use JobState::{Accepted, Cancelled, Decoding, Encoding, Forwarded, Released};
        check(&[], 0, None);
        check(&[(3, 0, Accepted, 0)], 0, Some(&[3]));
        check(
            &[
                (3, 0, Accepted, 0),
                (5, 0, Released, 0),
                (9, 0, Encoding, 0),
            ],
            0,
            Some(&[3, 5, 9]),
        );
        // Its beginning was not heard, or is stored behind what followed.
        check(&[(5, 0, Released, 0)], 0, None);
        check(&[(5, 0, Released, 0), (6, 0, Accepted, 0)], 0, None);
        let late = [
            (5, 0, Cancelled, 0),
            (6, 0, Accepted, 0),
            (7, 0, Released, 0),
        ];
        check(&late, 0, None);
        for state in [Decoding, Forwarded, Cancelled] {
            check(&[(3, 0, Accepted, 0), (5, 0, state, 0)], 0, None);
            let more = [(3, 0, Accepted, 0), (5, 0, state, 0), (6, 0, Released, 0)];
            check(&more, 0, None);
        }
        // It was started over, or its record was lost.
        check(&[(5, 1, Accepted, 0)], 0, None);
        check(&[(3, 0, Accepted, 0), (5, 1, Accepted, 0)], 0, None);
    }

    #[test]
    fn what_was_heard_before_a_loss_counts_no_more() {
        use JobState::{Accepted, Released};
        check(&[(3, 0, Accepted, 0)], 1, None);
        check(&[(3, 0, Accepted, 0), (5, 0, Released, 1)], 1, None);
        check(&[(3, 0, Accepted, 1)], 1, Some(&[3]));
        // The stream is read from its beginning, where the server has lost it.
        check(&[(3, 0, Accepted, 0), (2, 0, Released, 0)], 0, None);
        check(&[(3, 0, Accepted, 0), (1, 0, Accepted, 0)], 0, None);
    }

    #[test]
    fn the_oldest_go_and_so_does_a_job_of_many_events() {
        let mut heard = Heard::default();
        for job in 0..=JOBS_MAX {
            let accepted = event(0, JobState::Accepted);
            heard.note(&key(job), (1 + job as u64, accepted), 0);
        }
        assert_eq!(heard.of(&key(0), 0), None);
        let later = JOBS_MAX as u64 + 2;
        for sequence in (later..).take(EVENTS_MAX - 1) {
            heard.note(&key(1), (sequence, event(0, JobState::Encoding)), 0);
        }
        let known = heard.of(&key(1), 0).map(|told| told.len());
        assert_eq!(known, Some(EVENTS_MAX));
        let one_more = (later + 100, event(0, JobState::Encoding));
        heard.note(&key(1), one_more, 0);
        assert_eq!(heard.of(&key(1), 0), None);
        heard.forget_all();
        assert_eq!(heard.of(&key(2), 0), None);
    }
}
