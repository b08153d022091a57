//! The pending entries of accepts. An entry says that a job is being accepted, so that the sweep can finish it should this process
//! die. Each is stored under a key of this process's own, a *sheet* of its *pad*, and the next accept overwrites an entry whose
//! accept is finished. So an entry costs one write; removing it would be the most expensive request of an accept.
//!
//! The sheet of an accept that failed is not used again: its entry stays until the sweep has dealt with it. So does an entry that
//! was noted before a loss of the connection: a server that lost its latest writes gives their places to others' entries.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use medfleet_core::{JobKey, chain};
use medfleet_queue::{Queue, QueueError, Revision};
use medfleet_runtime::Shutdown;
use tokio::time::Instant;

/// How long a finished entry waits to be overwritten before it is removed. The sweep looks only at much older ones.
const IDLE: Duration = Duration::from_secs(1);
/// Entries that are removed at a time.
const AT_ONCE: usize = 16;
/// How long removing the last entries may take when the process stops.
const LAST: Duration = Duration::from_secs(2);

/// The pad of a process. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Pad {
    queue: Queue,
    /// The name of this process, which makes its keys its own.
    holder: Arc<str>,
    sheets: Arc<Mutex<Sheets>>,
}

/// An entry. Its sheet is used again only after [`Pad::done`].
#[derive(Debug)]
pub(crate) struct Noted {
    sheet: u64,
    revision: Revision,
    /// How often the connection had been lost before the entry was written.
    losses: u64,
}

impl Pad {
    /// A pad without sheets.
    pub(crate) fn new(queue: Queue, holder: &str) -> Self {
        Self {
            queue,
            holder: holder.into(),
            sheets: Arc::default(),
        }
    }

    /// Notes an accept before its record.
    pub(crate) async fn note(&self, key: &JobKey) -> Result<Noted, QueueError> {
        let losses = self.queue.losses();
        let sheet = self.lock().take();
        let place = (&*self.holder, sheet);
        let revision = self.queue.note_accept(place, key).await?;
        Ok(Noted {
            sheet,
            revision,
            losses,
        })
    }

    /// Writes the entry again, as the sweep may have taken it for abandoned and removed it.
    pub(crate) async fn note_again(
        &self,
        noted: &mut Noted,
        key: &JobKey,
    ) -> Result<(), QueueError> {
        let place = (&*self.holder, noted.sheet);
        noted.revision = self.queue.note_accept(place, key).await?;
        Ok(())
    }

    /// The accept is finished: its sheet may be used again.
    pub(crate) fn done(&self, noted: Noted) {
        // A write that was sent over a connection that is lost since may still arrive, and would then overwrite the next entry.
        let is_alone = noted.losses == self.queue.losses();
        self.lock().done(noted, is_alone, Instant::now());
    }

    /// Removes the entries that no accept has written over for a while, until the shutdown.
    pub(crate) async fn tidy(self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(IDLE) => {}
                () = shutdown.begun() => return,
            }
            self.clear(IDLE).await;
        }
    }

    /// Removes all entries of finished accepts; no accept is under way any more.
    pub(crate) async fn close(&self) {
        let cleared = self.clear(Duration::ZERO);
        if tokio::time::timeout(LAST, cleared).await.is_err() {
            tracing::debug!("the last pending entries are left to the sweep of another process");
        }
    }

    async fn clear(&self, idle: Duration) {
        let losses = self.queue.losses();
        let over = self.lock().over(idle, losses, Instant::now());
        let removals = stream::iter(over).map(|noted| self.queue.remove_pending(noted, losses));
        let removals = removals.buffer_unordered(AT_ONCE).collect::<Vec<_>>();
        for error in removals.await.into_iter().filter_map(Result::err) {
            // The sweep removes it, and until then looks at it once more than needed.
            tracing::debug!(error = chain(&error), "a pending entry stays listed");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sheets> {
        // Changed in single steps: whole after a panic elsewhere.
        self.sheets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sheets of a pad. Pure.
#[derive(Debug, Default)]
struct Sheets {
    /// Entries of finished accepts and since when they are, the latest last. The latest is overwritten first, so that sheets beyond
    /// those that are needed become idle.
    free: Vec<(Noted, Instant)>,
    /// How many sheets were made so far; they are numbered from 1.
    made: u64,
}

impl Sheets {
    fn take(&mut self) -> u64 {
        if let Some((noted, _)) = self.free.pop() {
            return noted.sheet;
        }
        self.made += 1;
        self.made
    }

    /// Frees the sheet of a finished accept. `is_alone`: no earlier write of the entry can still arrive.
    fn done(&mut self, noted: Noted, is_alone: bool, now: Instant) {
        if is_alone {
            self.free.push((noted, now));
        }
    }

    /// The entries to remove now. `losses`: of the connection so far.
    fn over(&mut self, idle: Duration, losses: u64, now: Instant) -> Vec<Revision> {
        let waits = |(_, since): &(Noted, Instant)| now.duration_since(*since) >= idle;
        let waited = self.free.partition_point(waits);
        let idle = self.free.drain(..waited).map(|(noted, _)| noted);
        let ours = idle.filter(|noted| noted.losses == losses);
        ours.map(|noted| noted.revision).collect()
    }
}

#[cfg(test)]
mod tests {
    use medfleet_testkit as kit;

    use super::*;

    fn noted(sheet: u64) -> Noted {
        Noted {
            sheet,
            revision: Revision::at(100 + sheet),
            losses: 0,
        }
    }

    #[test]
    fn the_sheet_that_was_done_with_last_is_taken_first_and_one_that_broke_never() {
        let mut sheets = Sheets::default();
        let now = Instant::now();
        assert_eq!([sheets.take(), sheets.take(), sheets.take()], [1, 2, 3]);
        sheets.done(noted(1), true, now);
        sheets.done(noted(2), true, now + IDLE);
        // The third one's accept broke.
        assert_eq!(sheets.take(), 2);
        sheets.done(noted(2), true, now + IDLE);
        assert_eq!(sheets.over(IDLE, 0, now + IDLE), [Revision::at(101)]);
        assert_eq!([sheets.take(), sheets.take()], [2, 4]);
    }

    #[test]
    fn a_sheet_whose_entry_may_come_again_is_not_used_again() {
        let mut sheets = Sheets::default();
        let now = Instant::now();
        assert_eq!(sheets.take(), 1);
        sheets.done(noted(1), false, now);
        assert_eq!(sheets.take(), 2);
        assert_eq!(sheets.over(IDLE, 1, now + IDLE), [], "the sweep finds it");
    }

    /// A server that did not sync may have given its place to the entry of an accept that is under way.
    #[test]
    fn an_entry_from_before_a_loss_is_left_to_the_sweep() {
        let mut sheets = Sheets::default();
        let now = Instant::now();
        let after = Noted {
            losses: 1,
            ..noted(2)
        };
        assert_eq!([sheets.take(), sheets.take()], [1, 2]);
        sheets.done(noted(1), true, now);
        sheets.done(after, true, now);
        assert_eq!(sheets.over(IDLE, 1, now + IDLE), [Revision::at(102)]);
        assert_eq!(sheets.over(IDLE, 1, now + IDLE), []);
    }

    #[tokio::test]
    async fn an_accept_writes_over_one_that_is_finished_and_over_no_other() {
        let (_server, queue) = kit::start().await.expect("a queue");
        let (pad, other) = (Pad::new(queue.clone(), "a"), Pad::new(queue.clone(), "b"));
        let keys: Vec<_> = (1..=4).map(|seed| kit::record(seed, 1).0).collect();
        let pending = async || {
            let pending = queue.list_pending(Duration::ZERO).await.expect("lists");
            let mut pending: Vec<_> = pending.into_iter().map(|(key, _)| key).collect();
            pending.sort();
            pending
        };
        let first = pad.note(&keys[0]).await.expect("notes");
        let mut under_way = other.note(&keys[1]).await.expect("notes");
        assert_eq!(pending().await, keys[..2]);
        pad.done(first);
        let _broken = pad.note(&keys[2]).await.expect("notes");
        assert_eq!(pending().await, keys[1..3]);
        let last = pad.note(&keys[3]).await.expect("notes");
        assert_eq!(pending().await, keys[1..4]);
        let late = other.note_again(&mut under_way, &keys[1]).await;
        late.expect("notes");
        pad.done(last);
        pad.close().await;
        // One that broke stays for the sweep, which removes it as it was listed.
        assert_eq!(pending().await, keys[1..3]);
        other.done(under_way);
        other.close().await;
        for (_, revision) in queue.list_pending(Duration::ZERO).await.expect("lists") {
            let removed = queue.remove_pending(revision, queue.losses()).await;
            removed.expect("removes");
        }
        assert!(pending().await.is_empty());
    }
}
