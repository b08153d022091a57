//! An [`Acceptor`] for tests, over a real queue, with the time that its test begins at.

use std::sync::Arc;

use medfleet_queue::Queue;
use medfleet_runtime::{ManualClock, Metrics, SeededRandom, Shutdown, TaskSet};
use medfleet_store::BlobStore;

use super::Acceptor;
use crate::blobs::Blobs;
use crate::config::sample;
use crate::keys::Keys;
use crate::metrics::Figures;
use crate::open::OpenJobs;
use crate::pad::Pad;
use crate::quota::Quotas;
use crate::room::Room;

/// With the model `tiny`, whose pool is that of the fixtures.
pub(crate) fn acceptor(queue: Queue, store: BlobStore) -> Acceptor {
    let config = sample::with(&[]);
    let pad = Pad::new(queue.clone(), "0a");
    let clock = Arc::new(ManualClock::at(medfleet_testkit::clock()()));
    let retry_after = config.limits.retry_after.get();
    Acceptor {
        quotas: Quotas::new(config.quotas.clone(), retry_after, clock.clone()),
        config: Arc::new(config),
        queue,
        keys: Keys::new(store.key().clone()),
        blobs: Blobs::new(store),
        clock,
        random: Arc::new(SeededRandom::new(1)),
        tasks: TaskSet::new(Shutdown::new(std::time::Duration::ZERO)),
        figures: Figures::new(&Metrics::new()),
        open: OpenJobs::default(),
        pad,
        room: Room::default(),
    }
}
