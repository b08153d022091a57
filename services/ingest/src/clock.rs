//! The queue's time of day, which says whether a job's time is over, so that what is stamped here goes by it too: asked for
//! now and then, and carried on by the process's timer in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use medfleet_core::{UnixMillis, chain};
use medfleet_queue::Queue;
use medfleet_runtime::{Clock, Shutdown};
use tokio::time::Instant;

/// How often the queue is asked.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// The queue's clock as this process knows it, and the process's own until the queue has answered once. Cheap to clone; all
/// clones are one.
#[derive(Debug, Clone)]
pub(crate) struct QueueClock {
    own: Arc<dyn Clock>,
    read: Arc<RwLock<Option<Reading>>>,
    /// That the process's own is used was said.
    is_told: Arc<AtomicBool>,
}

/// What the queue's clock said, and when.
#[derive(Debug, Clone, Copy)]
struct Reading {
    time: UnixMillis,
    at: Instant,
}

impl QueueClock {
    pub(crate) fn new(own: Arc<dyn Clock>) -> Self {
        Self {
            own,
            read: Arc::default(),
            is_told: Arc::default(),
        }
    }

    /// The queue's time; none before it has answered once.
    pub(crate) fn known(&self) -> Option<UnixMillis> {
        self.at(Instant::now())
    }

    /// Asks the queue; where it does not answer, what is known goes on.
    pub(crate) async fn ask(&self, queue: &Queue) {
        let asked = Instant::now();
        match queue.time().await {
            // It was read somewhere on the way: half of that is as far off as it can be.
            Ok(time) => self.note(time, asked + asked.elapsed() / 2),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the queue did not tell the time");
            }
        }
    }

    /// Asks again and again, until the shutdown.
    pub(crate) async fn follow(self, queue: Queue, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = shutdown.begun() => return,
            }
            tokio::select! {
                () = self.ask(&queue) => {}
                () = shutdown.begun() => return,
            }
        }
    }

    fn note(&self, time: UnixMillis, at: Instant) {
        // One assignment under the lock: whole after a panic elsewhere.
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = Some(Reading { time, at });
    }

    fn at(&self, now: Instant) -> Option<UnixMillis> {
        let read = *self.read.read().unwrap_or_else(PoisonError::into_inner);
        read.map(|Reading { time, at }| {
            let since = now.saturating_duration_since(at).as_millis();
            let since = i64::try_from(since).unwrap_or(i64::MAX);
            UnixMillis(time.0.saturating_add(since))
        })
    }
}

impl Clock for QueueClock {
    fn now(&self) -> UnixMillis {
        if let Some(now) = self.known() {
            return now;
        }
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the queue has not told the time yet: jobs are stamped by this machine's clock until it does"
            );
        }
        self.own.now()
    }
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::ManualClock;

    use super::*;

    const HOUR: i64 = 60 * 60 * 1_000;

    #[test]
    fn a_machine_an_hour_behind_stamps_by_the_queue() {
        let own = Arc::new(ManualClock::at(UnixMillis(HOUR)));
        let clock = QueueClock::new(own.clone());
        assert_eq!(clock.known(), None);
        assert_eq!(clock.now(), UnixMillis(HOUR));
        let begin = Instant::now();
        clock.note(UnixMillis(2 * HOUR), begin);
        assert!(clock.now() >= UnixMillis(2 * HOUR));
        let later = begin + Duration::from_millis(1_500);
        let shown = clock.at(later);
        assert_eq!(shown, Some(UnixMillis(2 * HOUR + 1_500)));
        // Its own may do what it likes.
        own.advance(Duration::from_secs(1_000_000));
        assert_eq!(clock.at(later), shown);
        // The queue's was set back.
        clock.note(UnixMillis(HOUR), later);
        assert_eq!(clock.at(later), Some(UnixMillis(HOUR)));
    }
}
