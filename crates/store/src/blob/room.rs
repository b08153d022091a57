//! How full the store is. A count looks at everything that is stored, so it is made only now and then, by one caller at a time;
//! in between, the number follows what this process writes and removes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::BackendError;

/// How long a count is good at least, and at most.
const AGE_MIN: Duration = Duration::from_secs(10);
const AGE_MAX: Duration = Duration::from_secs(600);
/// A count is good for this many times as long as it took, so that counting takes at most a twentieth of a process's time.
const AGE_PER_COUNT: u32 = 20;

/// The used bytes as this process knows them.
#[derive(Default)]
pub(super) struct Room {
    known: Mutex<Option<Used>>,
    /// Held by the one that counts.
    counting: tokio::sync::Mutex<()>,
    /// Writes of this process for which there was none.
    refused: AtomicU64,
}

/// What was counted, and what it is with what this process did since.
#[derive(Clone, Copy)]
struct Used {
    counted: Instant,
    good_for: Duration,
    bytes: u64,
}

impl Used {
    fn is_good(&self) -> bool {
        self.counted.elapsed() < self.good_for
    }
}

impl Room {
    /// A write found none.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many writes found none.
    pub(super) fn refusals(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The used bytes; none when the place has no useful answer. `count` asks the place, and runs only when it is time to.
    pub(super) async fn used(
        &self,
        count: impl Future<Output = Result<Option<u64>, BackendError>>,
    ) -> Result<Option<u64>, BackendError> {
        let known = *self.known();
        if let Some(used) = known.filter(Used::is_good) {
            return Ok(Some(used.bytes));
        }
        let turn = match (self.counting.try_lock(), known) {
            (Ok(turn), _) => turn,
            // Another caller is counting, perhaps for minutes; until it is done, the old number serves.
            (Err(_), Some(old)) => return Ok(Some(old.bytes)),
            (Err(_), None) => self.counting.lock().await,
        };
        // Whoever waited finds it counted.
        let before = *self.known();
        if let Some(used) = before.filter(Used::is_good) {
            return Ok(Some(used.bytes));
        }
        let begun = Instant::now();
        let Some(bytes) = count.await? else {
            return Ok(None);
        };
        let good_for = begun.elapsed().saturating_mul(AGE_PER_COUNT);
        let bytes = self.learn(before, bytes, good_for.clamp(AGE_MIN, AGE_MAX));
        drop(turn);
        Ok(Some(bytes))
    }

    /// Takes a count over, with what was written during it, which it may have missed.
    fn learn(&self, before: Option<Used>, counted: u64, good_for: Duration) -> u64 {
        let mut known = self.known();
        let written = match (before, *known) {
            (Some(before), Some(now)) => now.bytes.saturating_sub(before.bytes),
            _ => 0,
        };
        let bytes = counted.saturating_add(written);
        *known = Some(Used {
            counted: Instant::now(),
            good_for,
            bytes,
        });
        bytes
    }

    /// This process has written so many bytes.
    pub(super) fn wrote(&self, bytes: u64) {
        if let Some(used) = &mut *self.known() {
            used.bytes = used.bytes.saturating_add(bytes);
        }
    }

    /// This process has removed so many bytes.
    pub(super) fn removed(&self, bytes: u64) {
        if let Some(used) = &mut *self.known() {
            used.bytes = used.bytes.saturating_sub(bytes);
        }
    }

    /// Every change is whole, even after a panic elsewhere.
    fn known(&self) -> MutexGuard<'_, Option<Used>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    /// A place that is asked, and answers when it is told to.
    #[derive(Default)]
    struct Place {
        asked: AtomicU32,
        answer: Notify,
    }

    impl Place {
        async fn count(&self) -> Result<Option<u64>, BackendError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.answer.notified().await;
            Ok(Some(100))
        }
    }

    #[tokio::test]
    async fn one_counts_while_the_others_use_the_old_number() {
        let (place, room) = (Place::default(), Room::default());
        *room.known() = Some(Used {
            counted: Instant::now(),
            good_for: Duration::ZERO,
            bytes: 5,
        });
        let mut counting = pin!(room.used(place.count()));
        assert!(futures::poll!(counting.as_mut()).is_pending());
        assert_eq!(room.used(place.count()).await.expect("known"), Some(5));
        room.wrote(2);
        place.answer.notify_one();
        assert_eq!(counting.await.expect("counted"), Some(102));
        room.removed(2);
        assert_eq!(room.used(place.count()).await.expect("good"), Some(100));
        assert_eq!(place.asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_first_count_is_waited_for_and_made_once() {
        let (place, room) = (Place::default(), Room::default());
        let all = join_all((0..8).map(|_| room.used(place.count())));
        let (found, ()) = futures::join!(all, async { place.answer.notify_one() });
        for found in found {
            assert_eq!(found.expect("counted"), Some(100));
        }
        assert_eq!(place.asked.load(Ordering::Relaxed), 1);
    }
}
