//! Who goes first among requests that wait: by class, within one in order of arrival, and nobody is passed without end. And turns
//! in this order at something that serves one at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use medfleet_core::Class;
use tokio::sync::oneshot;

/// So many later ones may begin before a request that waits; then it counts as one of STAT.
pub(crate) const OVERTAKEN_MAX: u32 = 8;

/// The place of a request among those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    class: Class,
    /// Grows with every request that arrives.
    number: u64,
    /// Later ones that began while it waited.
    overtaken: u32,
}

impl Place {
    /// Nobody has passed it yet.
    pub(crate) const fn new(class: Class, number: u64) -> Self {
        Self {
            class,
            number,
            overtaken: 0,
        }
    }

    /// By which they go, the first one lowest.
    pub(crate) fn order(&self) -> (Class, u64) {
        let is_aged = self.overtaken >= OVERTAKEN_MAX;
        let class = if is_aged { Class::Stat } else { self.class };
        (class, self.number)
    }

    /// The one that arrived under this number begins while this one waits.
    pub(crate) fn passed_by(&mut self, number: u64) {
        if self.number < number {
            self.overtaken = self.overtaken.saturating_add(1);
        }
    }
}

/// Turns, one at a time. As many wait as ask. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_taken: bool,
    /// Of the next one that asks.
    number: u64,
    waiting: Vec<Waiting>,
}

impl State {
    fn wait(&mut self, place: Place) -> oneshot::Receiver<Turn> {
        let (told, turn) = oneshot::channel();
        self.waiting.push(Waiting { place, told });
        turn
    }
}

#[derive(Debug)]
struct Waiting {
    place: Place,
    told: oneshot::Sender<Turn>,
}

/// A turn, for as long as this is kept.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn {
    turns: Turns,
    place: Place,
}

impl Turns {
    /// Waits for a turn. Safe to cancel.
    pub(crate) async fn take(&self, class: Class) -> Turn {
        let turn = {
            let mut state = self.lock();
            let place = Place::new(class, state.number);
            state.number += 1;
            if !std::mem::replace(&mut state.is_taken, true) {
                let turns = self.clone();
                return Turn { turns, place };
            }
            state.wait(place)
        };
        turn.await
            .expect("who waits is dropped only with the last clone of this")
    }

    /// A turn of these once more: at once, or after those who wait and go before it. Safe to cancel.
    pub(crate) async fn again(&self, turn: Turn) -> Turn {
        let Some(next) = self.behind(turn.place) else {
            return turn;
        };
        drop(turn);
        next.await
            .expect("who waits is dropped only with the last clone of this")
    }

    /// Waits with this place, if somebody waits who goes before it.
    fn behind(&self, place: Place) -> Option<oneshot::Receiver<Turn>> {
        let mut state = self.lock();
        let mut waiting = state.waiting.iter().filter(|one| !one.told.is_closed());
        let is_behind = waiting.any(|one| one.place.order() < place.order());
        is_behind.then(|| state.wait(place))
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.lock();
        let waiting = state.waiting.iter();
        waiting.filter(|one| !one.told.is_closed()).count()
    }

    /// Who is next; the turn is nobody's where nobody waits.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.lock();
        state.waiting.retain(|one| !one.told.is_closed());
        state.waiting.sort_by_key(|one| one.place.order());
        if state.waiting.is_empty() {
            state.is_taken = false;
            return None;
        }
        let next = state.waiting.remove(0);
        for other in &mut state.waiting {
            other.place.passed_by(next.place.number);
        }
        Some(next)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(Waiting { place, told }) = self.turns.next() {
            let turns = self.turns.clone();
            // Where that one is gone meanwhile, its turn is dropped here, and so goes on to the one after it.
            let _ = told.send(Self { turns, place });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::sync::mpsc::unbounded_channel;
    use tokio::task::JoinSet;

    use super::*;

    /// The order in which turns of these classes come that are asked for while one is taken.
    async fn check(classes: Vec<Class>, expected: &[usize]) {
        let (turns, (comes, mut came)) = (Turns::default(), unbounded_channel());
        let taken = turns.take(Class::Routine).await;
        let mut asking = JoinSet::new();
        for (index, class) in classes.into_iter().enumerate() {
            let (turns, comes) = (turns.clone(), comes.clone());
            asking.spawn(async move {
                let _turn = turns.take(class).await;
                comes.send(index).expect("the test listens");
            });
        }
        drop(comes);
        // The runtime of a test has one thread and polls tasks in this order: by then each has asked.
        asking.spawn(async move { drop(taken) });
        let mut found = Vec::new();
        while let Some(index) = came.recv().await {
            found.push(index);
        }
        assert_eq!(found, expected);
        assert!(!turns.lock().is_taken);
    }

    #[tokio::test]
    async fn turns_go_by_class_and_within_one_by_arrival() {
        use Class::{Bulk, Routine, Stat, Urgent};
        let classes = vec![Bulk, Routine, Stat, Routine, Stat, Urgent];
        check(classes, &[2, 4, 5, 1, 3, 0]).await;
    }

    #[tokio::test]
    async fn who_was_passed_often_is_passed_no_more() {
        let most = OVERTAKEN_MAX as usize;
        let mut classes = vec![Class::Stat; most + 3];
        classes[0] = Class::Bulk;
        let expected: Vec<usize> = (1..=most).chain([0, most + 1, most + 2]).collect();
        check(classes, &expected).await;
    }

    #[tokio::test]
    async fn who_takes_a_turn_again_lets_only_those_before_it_go() {
        let (turns, (comes, mut came)) = (Turns::default(), unbounded_channel());
        let turn = turns.take(Class::Routine).await;
        let mut asking = JoinSet::new();
        for class in [Class::Bulk, Class::Routine, Class::Stat] {
            let (turns, comes) = (turns.clone(), comes.clone());
            asking.spawn(async move {
                let _turn = turns.take(class).await;
                comes.send(Some(class)).expect("the test listens");
            });
        }
        // Polled in this order, as above.
        asking.spawn(async move {
            let mut turn = turn;
            for _ in 0..2 {
                turn = turns.again(turn).await;
                comes.send(None).expect("the test listens");
            }
        });
        let mut found = Vec::new();
        while let Some(class) = came.recv().await {
            found.push(class);
        }
        let (routine, bulk) = (Some(Class::Routine), Some(Class::Bulk));
        assert_eq!(found, [Some(Class::Stat), None, None, routine, bulk]);
    }

    #[tokio::test]
    async fn who_is_gone_keeps_nobody_waiting() {
        let turns = Turns::default();
        for is_told in [false, true] {
            let taken = turns.take(Class::Routine).await;
            let mut gone = Box::pin(turns.take(Class::Stat));
            tokio::select! {
                biased;
                _turn = &mut gone => panic!("it is taken"),
                () = ready(()) => {}
            }
            assert_eq!(turns.waiting(), 1);
            if is_told {
                drop(taken);
                drop(gone);
            } else {
                drop(gone);
                assert_eq!(turns.waiting(), 0);
                drop(taken);
            }
        }
        drop(turns.take(Class::Bulk).await);
    }
}
