//! Shards of the job records that do not answer: their jobs wait, and hold up no others. A shard that fails for a moment, as while it
//! elects a leader, is asked again at once; one that has not answered for a while is let alone, and asked now and then.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use medfleet_queue::QueueError;
use tokio::time::Instant;

/// A shard that has not answered for so long is away.
const AWAY_AFTER: Duration = Duration::from_secs(10);
/// How long one that is away is let alone after it was asked: less than the units of its jobs are left.
const ASKED_AFTER: Duration = Duration::from_secs(20);
/// The answer for a shard that is let alone.
const AWAY: QueueError = QueueError::unavailable("ask a shard of the job records that is away");

/// The shards that did not answer when they were asked last.
#[derive(Debug)]
pub(crate) struct Silent {
    /// How many shards there are.
    shards: usize,
    silences: Mutex<HashMap<usize, Silence>>,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    began: Instant,
    asked: Instant,
}

impl Silence {
    fn is_long(&self, now: Instant) -> bool {
        now.duration_since(self.began) >= AWAY_AFTER
    }
}

impl Silent {
    /// Of so many shards all answer.
    pub(crate) fn none_of(shards: usize) -> Self {
        Self {
            shards,
            silences: Mutex::default(),
        }
    }

    /// Asks for a record of a shard, unless the shard is let alone.
    ///
    /// # Errors
    /// Those of the question; a transient one for a shard that is let alone.
    pub(crate) async fn ask<T>(
        &self,
        shard: usize,
        question: impl Future<Output = Result<T, QueueError>>,
    ) -> Result<T, QueueError> {
        if self.is_let_alone(shard, Instant::now()) {
            return Err(AWAY);
        }
        let answer = question.await;
        let is_silent = answer.as_ref().is_err_and(QueueError::is_transient);
        self.note(shard, is_silent, Instant::now());
        answer
    }

    /// Whether this shard is away and another is not: where none answers it is the queue that is away, and all wait for it.
    pub(super) fn is_away(&self, shard: usize, now: Instant) -> bool {
        let silences = self.lock();
        let silence = silences.get(&shard);
        silences.len() < self.shards && silence.is_some_and(|silence| silence.is_long(now))
    }

    fn is_let_alone(&self, shard: usize, now: Instant) -> bool {
        let asked = self.lock().get(&shard).map(|silence| silence.asked);
        asked.is_some_and(|asked| now.duration_since(asked) < ASKED_AFTER)
            && self.is_away(shard, now)
    }

    /// Notes whether a shard has answered.
    pub(super) fn note(&self, shard: usize, is_silent: bool, now: Instant) {
        let mut silences = self.lock();
        if !is_silent {
            silences.remove(&shard);
            return;
        }
        let new = Silence {
            began: now,
            asked: now,
        };
        let silence = silences.entry(shard).or_insert(new);
        if silence.is_long(now) && !silence.is_long(silence.asked) {
            tracing::warn!(
                shard,
                "a shard of the job records does not answer: its jobs wait"
            );
        }
        silence.asked = now;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Silence>> {
        // Changed in single steps: whole after a panic elsewhere.
        self.silences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_away_once_it_was_silent_for_a_while_and_another_answers() {
        let (silent, start) = (Silent::none_of(2), Instant::now());
        let later = start + AWAY_AFTER;
        silent.note(0, true, start);
        assert!(!silent.is_away(0, start), "for a moment");
        assert!(silent.is_away(0, later) && !silent.is_away(1, later));
        assert!(silent.is_let_alone(0, later));
        assert!(!silent.is_let_alone(0, start + ASKED_AFTER), "it is asked");
        silent.note(0, true, start + ASKED_AFTER);
        assert!(silent.is_let_alone(0, start + ASKED_AFTER + AWAY_AFTER));
        // Neither answers.
        silent.note(1, true, start);
        assert!(!silent.is_away(0, later) && !silent.is_away(1, later));
        silent.note(1, false, later);
        silent.note(0, false, later);
        assert!(!silent.is_away(0, later + AWAY_AFTER));
        let alone = Silent::none_of(1);
        alone.note(0, true, start);
        assert!(!alone.is_away(0, later), "there is no other");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_let_alone_is_not_asked() {
        let silent = Silent::none_of(2);
        let failed = silent.ask(0, async { Err::<(), _>(AWAY) }).await;
        assert!(failed.is_err());
        let question = async || silent.ask(0, async { Ok(()) }).await.is_ok();
        tokio::time::advance(AWAY_AFTER).await;
        assert!(!question().await, "it was silent for long");
        tokio::time::advance(ASKED_AFTER).await;
        assert!(question().await);
        assert!(question().await, "it has answered");
    }
}
