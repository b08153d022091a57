//! Frames that this process is encoding: whoever needs one of them waits, and then finds its tokens.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use medfleet_core::{Digest, TenantId};
use tokio::sync::Notify;

type Key = (TenantId, Digest);

/// Who encodes what. Shared by the workers' slots.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    taken: Mutex<HashSet<Key>>,
    freed: Notify,
}

/// Frames that nobody else encodes, for as long as this is kept.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    keys: Vec<Key>,
}

impl Claims {
    /// Waits until nobody encodes any of these frames, then claims all of them at once. Who waits holds no claim, so two units
    /// never wait for each other.
    pub(crate) async fn take(&self, tenant: &TenantId, frames: &HashSet<Digest>) -> Claim<'_> {
        let keys = frames.iter().map(|frame| (tenant.clone(), *frame));
        let keys: Vec<Key> = keys.collect();
        loop {
            // Made before the attempt, so that a claim freed in between is not missed.
            let freed = self.freed.notified();
            if self.try_take(&keys) {
                return Claim { claims: self, keys };
            }
            freed.await;
        }
    }

    fn try_take(&self, keys: &[Key]) -> bool {
        let mut taken = self.lock();
        let is_free = keys.iter().all(|key| !taken.contains(key));
        if is_free {
            taken.extend(keys.iter().cloned());
        }
        is_free
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Key>> {
        // Nothing that is done under the lock can panic half-way.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut taken = self.claims.lock();
        for key in &self.keys {
            taken.remove(key);
        }
        drop(taken);
        self.claims.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_needs_a_frame_that_is_being_encoded_waits_and_nobody_else_does() {
        let claims = Claims::default();
        let (a, b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        let frames = |bytes: &[u8]| -> HashSet<Digest> {
            bytes.iter().map(|byte| Digest::new([*byte; 32])).collect()
        };
        let first = claims.take(&a, &frames(&[1, 2])).await;
        let two = frames(&[2, 3]);
        let mut second = Box::pin(claims.take(&a, &two));
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        // Whoever waits for frames 2 and 3 does not hold frame 3 yet; the same frames of another tenant are others.
        let third = claims.take(&a, &frames(&[3])).now_or_never();
        let foreign = claims.take(&b, &frames(&[1, 2])).now_or_never();
        assert!(third.is_some() && foreign.is_some());
        drop(third);
        assert!(
            second.as_mut().now_or_never().is_none(),
            "the first is kept"
        );
        drop(first);
        let second = second.await;
        assert_eq!(second.keys.len(), 2);
        // Who waits for nothing has it at once.
        let nothing = claims.take(&a, &frames(&[])).now_or_never();
        assert!(nothing.is_some());
    }
}
