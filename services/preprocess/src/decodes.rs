//! How many files are decoded at a time. A small file can become a very large picture, so decodes have a limit of their own
//! beside the one on the bytes of files; several small files share the turn of a large one. A decode that nobody waits for any
//! more is stopped as far as possible.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tracing::Span;

use crate::codecs::Stop;

/// The limit of one process, over all its slots.
#[derive(Debug)]
pub(crate) struct Decodes {
    turns: Arc<Semaphore>,
    /// Of each turn.
    shares: u32,
}

/// The right to hold the pixels of one file, until the last one lets go of it.
pub(crate) type Turn = Option<OwnedSemaphorePermit>;

impl Decodes {
    /// At most `max` at a time, in turns that up to `shares` small files may share.
    pub(crate) fn new(max: u32, shares: u32) -> Self {
        let shares = shares.max(1);
        Self {
            turns: Arc::new(Semaphore::new(max as usize * shares as usize)),
            shares,
        }
    }

    /// Waits for a turn that is shared by so many files like this one.
    pub(crate) async fn turn(&self, files: u32) -> Arc<Turn> {
        let shares = self.shares.div_ceil(files.max(1));
        // The semaphore is never closed; should it be, the limit is not kept, and the file is still decoded.
        let turn = Arc::clone(&self.turns).acquire_many_owned(shares).await;
        Arc::new(turn.ok())
    }

    /// Decodes on a blocking thread. The turn is held until the thread is done, even when nobody waits for the outcome any more.
    /// In that case the child process that decodes for it is killed, and a decode in this process stops after the frame it is at.
    ///
    /// # Errors
    /// When `decode` panics.
    pub(crate) async fn run<T: Send + 'static>(
        turn: &Arc<Turn>,
        decode: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = Arc::clone(turn);
        let stop = Stop::default();
        let _until_dropped = UntilDropped(stop.clone());
        // What is logged on that thread is of the same job.
        let span = Span::current();
        tokio::task::spawn_blocking(move || {
            let decoded = span.in_scope(|| stop.during(decode));
            drop(turn);
            decoded
        })
        .await
    }
}

/// Stops a decode when whoever waits for it is gone. One that is done has nothing left to stop.
struct UntilDropped(Stop);

impl Drop for UntilDropped {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use std::time::{Duration, Instant};

    use futures::future::join_all;
    use tokio::sync::oneshot;

    use super::*;

    /// Of what never ends when it is wrong, on a loaded machine too.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// How many files hold a turn at a time, of 16 like each of which so many share one.
    async fn at_a_time(decodes: &Decodes, files: u32) -> usize {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let each = (0..16).map(async |_| {
            let (begun, most) = (Arc::clone(&running), Arc::clone(&most));
            let decode = move || {
                most.fetch_max(begun.fetch_add(1, SeqCst) + 1, SeqCst);
            };
            let turn = decodes.turn(files).await;
            Decodes::run(&turn, decode).await.expect("no panic");
            // Storing the frames.
            tokio::task::yield_now().await;
            running.fetch_sub(1, SeqCst);
            drop(turn);
        });
        join_all(each).await;
        most.load(SeqCst)
    }

    #[tokio::test]
    async fn no_more_than_the_limit_at_a_time() {
        let decodes = Decodes::new(2, 4);
        for (files, most) in [(1, 2), (2, 4), (3, 4), (4, 8), (9, 8)] {
            let found = at_a_time(&decodes, files).await;
            assert!((1..=most).contains(&found), "{files}: {found}");
            assert_eq!(decodes.turns.available_permits(), 8);
        }
        let _small = [decodes.turn(4).await, decodes.turn(2).await];
        assert_eq!(decodes.turns.available_permits(), 8 - 1 - 2);
        // The other turn is whole; there is none for two large files.
        let _large = decodes.turn(1).await;
        assert!(decodes.turns.try_acquire_many(4).is_err());
    }

    #[tokio::test]
    async fn a_decode_that_nobody_waits_for_is_stopped() {
        let decodes = Decodes::new(1, 1);
        let turn = decodes.turn(1).await;
        let (begin, begun) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let decode = move || {
            let (stop, started) = (Stop::current(), Instant::now());
            begin.send(()).expect("somebody waits");
            while !stop.is_stopped() && started.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            // Nobody hears it where the test has failed already.
            let _heard = end.send(stop.is_stopped());
        };
        tokio::select! {
            _ = Decodes::run(&turn, decode) => panic!("it goes on until it is stopped"),
            begun = begun => begun.expect("it begins"),
        }
        // Whoever waited for it is gone.
        assert!(ended.await.expect("it ends"));
    }

    #[tokio::test]
    async fn a_panic_gives_its_turn_back() {
        let decodes = Decodes::new(1, 1);
        let turn = decodes.turn(1).await;
        let broken = Decodes::run(&turn, || panic!("a broken file"));
        assert!(broken.await.is_err());
        drop(turn);
        let turn = decodes.turn(1).await;
        assert_eq!(Decodes::run(&turn, || 7).await.expect("no panic"), 7);
    }
}
