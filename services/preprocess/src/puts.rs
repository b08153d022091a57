//! Frames on their way to the store while the study's other files are still decoded and its manifest is made. The job takes
//! its reference on those of a file as they are stored: should it never come to a manifest, they are still the job's, and go
//! with it. Dropped before they are finished, those under way are stored all the same, as their writes cannot be stopped.

use std::future::ready;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::join_all;
use medfleet_core::{BlobKind, Digest, JobKey};
use medfleet_store::{BlobStore, StoreError};
use tokio::task::JoinSet;

use crate::decodes::Turn;

/// The puts of one unit.
#[derive(Debug)]
pub(crate) struct Puts {
    store: BlobStore,
    key: JobKey,
    running: Mutex<JoinSet<Result<(), StoreError>>>,
    frames: AtomicU32,
}

impl Puts {
    pub(crate) fn new(store: BlobStore, key: JobKey) -> Self {
        Self {
            store,
            key,
            running: Mutex::default(),
            frames: AtomicU32::new(0),
        }
    }

    /// Counts frames that are about to be started, and gives how many that makes in all.
    pub(crate) fn count(&self, frames: usize) -> u32 {
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        self.frames
            .fetch_add(frames, Ordering::Relaxed)
            .saturating_add(frames)
    }

    /// Starts to store the frames of a file, given by their pixels, and gives their names, in order. The turn is held until
    /// they are stored: until then they are in memory.
    pub(crate) async fn start(&self, frames: Vec<Bytes>, turn: &Arc<Turn>) -> Vec<Digest> {
        let tenant = &self.key.tenant;
        let digests = frames
            .iter()
            .map(|pixels| self.store.digest(tenant, pixels));
        let digests = join_all(digests).await;
        if digests.is_empty() {
            return digests;
        }
        let contents = digests.iter().zip(frames);
        let contents: Vec<_> = contents
            .map(|(digest, pixels)| (BlobKind::Frame, *digest, pixels))
            .collect();
        let (store, key, turn) = (self.store.clone(), self.key.clone(), Arc::clone(turn));
        let put = async move {
            let kept = store.keep_named(&key, contents, &[], ready(Ok(()))).await;
            drop(turn);
            kept
        };
        // One insertion: whole even after a panic elsewhere.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.spawn(put);
        drop(running);
        digests
    }

    /// Waits until all of them are stored.
    ///
    /// # Errors
    /// The first failure of one of them.
    pub(crate) async fn finish(mut self) -> Result<(), StoreError> {
        let running = self
            .running
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        while let Some(put) = running.join_next().await {
            match put {
                Ok(put) => put?,
                // Nobody aborts one by itself, so that it panicked; the panic goes on where the unit is.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Ok(())
    }
}

impl Drop for Puts {
    /// Each holds its turn until its pixels are no longer in memory.
    fn drop(&mut self) {
        let running = self.running.get_mut();
        running.unwrap_or_else(PoisonError::into_inner).detach_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use medfleet_core::JobId;
    use medfleet_store::FleetKey;

    use super::*;
    use crate::decodes::Decodes;

    fn key() -> JobKey {
        JobKey {
            tenant: "a".parse().expect("a tenant"),
            job: JobId::from_bytes([1; 16]),
        }
    }

    fn pixels(value: u8) -> Bytes {
        Bytes::from(vec![value; 64])
    }

    async fn turn() -> Arc<Turn> {
        let (_, turn) = Decodes::new(1).run(|| ()).await.expect("no panic");
        Arc::new(turn)
    }

    #[tokio::test]
    async fn what_was_started_is_stored_once_finished_and_its_turn_is_free() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let (key, turn) = (key(), turn().await);
        let puts = Puts::new(store.clone(), key.clone());
        let names = puts.start(vec![pixels(1), pixels(2)], &turn).await;
        assert_eq!(names.len(), 2);
        assert!(puts.start(Vec::new(), &turn).await.is_empty());
        puts.finish().await.expect("stored");
        assert_eq!(Arc::strong_count(&turn), 1);
        for (name, value) in names.iter().zip(1..) {
            let stored = store.get(&key.tenant, BlobKind::Frame, name).await;
            assert_eq!(stored.expect("there"), pixels(value));
        }
    }

    #[tokio::test]
    async fn what_never_came_to_a_manifest_is_erased_with_its_job() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let (key, turn) = (key(), turn().await);
        let puts = Puts::new(store.clone(), key.clone());
        let names = puts.start(vec![pixels(1)], &turn).await;
        drop(puts);
        let stored = async || {
            let stored = store.exists(&key.tenant, BlobKind::Frame, &names[0]).await;
            stored.expect("works")
        };
        let under_way = async {
            while Arc::strong_count(&turn) > 1 {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), under_way).await;
        waited.expect("it goes on");
        assert!(stored().await);
        let erased = store.erase(&key.tenant, &key.job).await;
        assert_eq!(erased.expect("erases").deleted, 1);
        assert!(!stored().await);
    }
}
