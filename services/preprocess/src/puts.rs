//! Frames on their way to the store while the study's other files are still decoded and its manifest is made. They belong
//! to one unit: dropped before they are finished, they stop.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use medfleet_core::{BlobKind, Digest, TenantId};
use medfleet_store::{BlobStore, StoreError};
use tokio::sync::Semaphore;
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
    tenant: TenantId,
    in_flight: FramesInFlight,
    running: Mutex<JoinSet<Result<(), StoreError>>>,
    frames: AtomicU32,
}

impl Puts {
    pub(crate) fn new(store: BlobStore, tenant: TenantId, in_flight: &FramesInFlight) -> Self {
        Self {
            store,
            tenant,
            in_flight: in_flight.clone(),
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

    /// Starts to store the pixels of a frame, once few enough are being stored, and gives their name. The turn is held until
    /// they are stored: until then they are in memory.
    pub(crate) async fn start(&self, pixels: Bytes, turn: &Arc<Turn>) -> Digest {
        // The semaphore is never closed; should it be, the limit is not kept, and the frame is still stored.
        let place = Arc::clone(&self.in_flight.0).acquire_owned().await.ok();
        let digest = self.store.digest(&self.tenant, &pixels).await;
        let (store, tenant, turn) = (self.store.clone(), self.tenant.clone(), Arc::clone(turn));
        let put = async move {
            let put = store.put_named(&tenant, BlobKind::Frame, &digest, pixels);
            put.await.inspect(|()| drop((turn, place)))
        };
        // One insertion: whole even after a panic elsewhere.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.spawn(put);
        digest
    }

    /// Waits until all of them are stored.
    ///
    /// # Errors
    /// The first failure of one of them.
    pub(crate) async fn finish(self) -> Result<(), StoreError> {
        let mut running = self
            .running
            .into_inner()
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

#[cfg(test)]
mod tests {
    use medfleet_store::FleetKey;

    use super::*;
    use crate::decodes::Decodes;

    #[tokio::test]
    async fn what_was_started_is_stored_once_finished_and_its_turn_is_free() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let tenant: TenantId = "a".parse().expect("a tenant");
        let turn = Decodes::new(1).turn().await;
        let in_flight = FramesInFlight::default();
        let puts = Puts::new(store.clone(), tenant.clone(), &in_flight);
        let pixels = |value: u8| Bytes::from(vec![value; 64]);
        let names = [
            puts.start(pixels(1), &turn).await,
            puts.start(pixels(2), &turn).await,
        ];
        puts.finish().await.expect("stored");
        assert_eq!(Arc::strong_count(&turn), 1);
        assert_eq!(in_flight.0.available_permits(), IN_FLIGHT_MAX);
        for (name, value) in names.iter().zip(1..) {
            let stored = store.get(&tenant, BlobKind::Frame, name).await;
            assert_eq!(stored.expect("there"), pixels(value));
        }
    }
}
