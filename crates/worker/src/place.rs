//! The place of a unit among those that its worker works on at a time. A unit that waits for something another unit makes
//! leaves its place, so that another unit is worked on meanwhile.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures::poll;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A place, taken or left. The default holds none yet: leaving it frees nothing.
#[derive(Debug, Default)]
pub struct Place {
    held: Mutex<Option<OwnedSemaphorePermit>>,
    /// Whether its unit has left it and is still in hand.
    is_left: AtomicBool,
    /// How many places of the worker were left that way.
    aside: Gauge,
}

impl Place {
    /// One of a worker's, which counts those that were left.
    pub(crate) fn counted_in(aside: Gauge) -> Self {
        Self {
            aside,
            ..Self::default()
        }
    }

    /// Gives the place to another unit for good. The unit that leaves goes on beside it and does not get the place back, as the
    /// other unit may keep it for long.
    pub fn leave(&self) {
        let held = self.lock().take();
        if held.is_some() && !self.is_left.swap(true, Ordering::Relaxed) {
            self.aside.inc();
        }
    }

    /// The unit is in hand no more.
    pub(crate) fn end(&self) {
        drop(self.lock().take());
        if self.is_left.swap(false, Ordering::Relaxed) {
            self.aside.dec();
        }
    }

    /// Waits, and leaves the place ([`Place::leave`]) if what is waited for is not there at once.
    pub async fn leave_for<T>(&self, waiting: impl Future<Output = T>) -> T {
        let mut waiting = pin!(waiting);
        if let Poll::Ready(out) = poll!(waiting.as_mut()) {
            return out;
        }
        self.leave();
        waiting.await
    }

    /// Waits for one of `places`. Safe to cancel.
    pub(crate) async fn take(&self, places: &Arc<Semaphore>) {
        let taken = Arc::clone(places).acquire_owned().await;
        // Nobody closes the semaphore; should it be closed, units are taken without the limit.
        *self.lock() = taken.ok();
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        // Nothing that is done under the lock can panic half-way.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn who_leaves_its_place_makes_room_for_one_more() {
        let places = Arc::new(Semaphore::new(1));
        let aside = Gauge::default();
        let (first, second) = (Place::counted_in(aside.clone()), Place::default());
        first.take(&places).await;
        let mut next = Box::pin(second.take(&places));
        assert!(next.as_mut().now_or_never().is_none(), "it is taken");
        first.leave_for(async {}).await;
        assert!(next.as_mut().now_or_never().is_none(), "it was not left");
        assert_eq!(aside.get(), 0);
        let freed = Notify::new();
        let mut waiting = Box::pin(first.leave_for(freed.notified()));
        assert!(waiting.as_mut().now_or_never().is_none(), "it waits");
        assert_eq!(aside.get(), 1);
        next.await;
        freed.notify_one();
        waiting.await;
        // What was left is not there to be left again.
        first.leave();
        assert_eq!((places.available_permits(), aside.get()), (0, 1));
        first.end();
        assert_eq!((places.available_permits(), aside.get()), (0, 0));
        drop(second);
        assert_eq!(places.available_permits(), 1);
    }
}
