//! Frames on their way to the store while the study's other files are still decoded and its manifest is made. The job takes
//! its reference on them as they are stored: should it never come to a manifest, they are still the job's, and go with
//! it. Dropped before they are finished, those under way are stored all the same, as their writes cannot be stopped.

use std::future::ready;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use medfleet_core::{BlobKind, Digest, JobKey};
use medfleet_store::{BlobStore, Named, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::decodes::Turn;

/// Frames that are stored at a time, over all units; as many more wait in the threads that made them.
const IN_FLIGHT_MAX: usize = 16;

/// The limit of one process: frames of a volume come faster than a slow store takes them.
#[derive(Clone, Debug)]
pub(crate) struct FramesInFlight(Arc<Semaphore>);

impl Default for FramesInFlight {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(IN_FLIGHT_MAX)))
    }
}

/// The puts of one unit.
#[derive(Debug)]
pub(crate) struct Puts {
    store: BlobStore,
    key: JobKey,
    in_flight: FramesInFlight,
    waiting: Arc<Waiting>,
    running: Mutex<JoinSet<Result<(), StoreError>>>,
    frames: AtomicU32,
}

/// Frames that wait for those before them to be stored; they are then stored together, under one reference.
#[derive(Debug, Default)]
struct Waiting {
    frames: Mutex<Vec<(Named, Held)>>,
    storing: tokio::sync::Mutex<()>,
}

/// What is given back once a frame is stored: its file's turn, and its place among the frames in flight.
type Held = (Arc<Turn>, Option<OwnedSemaphorePermit>);

impl Waiting {
    fn add(&self, frame: Named, held: Held) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.push((frame, held));
    }

    /// Stores what waits by now; nothing where whoever stored before took it along.
    async fn store(&self, store: &BlobStore, key: &JobKey) -> Result<(), StoreError> {
        let _one_at_a_time = self.storing.lock().await;
        let frames = {
            let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            mem::take(&mut *frames)
        };
        if frames.is_empty() {
            return Ok(());
        }
        let (frames, held): (Vec<_>, Vec<_>) = frames.into_iter().unzip();
        let kept = store.keep_named(key, frames, &[], ready(Ok(()))).await;
        drop(held);
        kept
    }
}

impl Puts {
    pub(crate) fn new(store: BlobStore, key: JobKey, in_flight: &FramesInFlight) -> Self {
        Self {
            store,
            key,
            in_flight: in_flight.clone(),
            waiting: Arc::default(),
            running: Mutex::default(),
            frames: AtomicU32::new(0),
        }
    }

    /// Counts frames that the study is to have, and gives how many that makes in all.
    pub(crate) fn count(&self, frames: usize) -> u32 {
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        self.frames
            .fetch_add(frames, Ordering::Relaxed)
            .saturating_add(frames)
    }

    /// Starts to store the pixels of a frame, once few enough are being stored, and gives their name. The turn is held until
    /// they are stored: until then they are in memory.
    pub(crate) async fn start(&self, pixels: Bytes, turn: &Arc<Turn>) -> Digest {
        // The semaphore is never closed; should it be, the limit is not kept, and the frame is still stored.
        let place = Arc::clone(&self.in_flight.0).acquire_owned().await.ok();
        let digest = self.store.digest(&self.key.tenant, &pixels).await;
        let frame = (BlobKind::Frame, digest, pixels);
        self.waiting.add(frame, (Arc::clone(turn), place));
        let (waiting, store) = (Arc::clone(&self.waiting), self.store.clone());
        let key = self.key.clone();
        let put = async move { waiting.store(&store, &key).await };
        // One insertion: whole even after a panic elsewhere.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.spawn(put);
        drop(running);
        digest
    }

    /// Waits until all of them are stored.
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
        JobKey::new("a".parse().expect("a tenant"), JobId::from_bytes([1; 16]))
    }

    fn pixels(value: u8) -> Bytes {
        Bytes::from(vec![value; 64])
    }

    async fn turn() -> Arc<Turn> {
        Decodes::new(1, 1).turn(1).await
    }

    #[tokio::test]
    async fn what_was_started_is_stored_once_finished_and_its_turn_is_free() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let (key, turn) = (key(), turn().await);
        let in_flight = FramesInFlight::default();
        let puts = Puts::new(store.clone(), key.clone(), &in_flight);
        let names = [
            puts.start(pixels(1), &turn).await,
            puts.start(pixels(2), &turn).await,
        ];
        puts.finish().await.expect("stored");
        assert_eq!(Arc::strong_count(&turn), 1);
        assert_eq!(in_flight.0.available_permits(), IN_FLIGHT_MAX);
        for (name, value) in names.iter().zip(1..) {
            let stored = store.get(&key.tenant, BlobKind::Frame, name).await;
            assert_eq!(stored.expect("there"), pixels(value));
        }
    }

    #[tokio::test]
    async fn what_never_came_to_a_manifest_is_erased_with_its_job() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let (key, turn) = (key(), turn().await);
        let puts = Puts::new(store.clone(), key.clone(), &FramesInFlight::default());
        let name = puts.start(pixels(1), &turn).await;
        drop(puts);
        let stored = async || {
            let stored = store.exists(&key.tenant, BlobKind::Frame, &name).await;
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
