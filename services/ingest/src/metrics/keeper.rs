//! What the keeper tells of its sweeps.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The metrics of the keeper. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeeperFigures {
    /// What it left undone because something failed.
    pub(crate) failures: Counter,
    /// Its sweeps that came to their end.
    pub(crate) sweeps: Counter,
    /// Seconds from one sweep to the next.
    pub(crate) interval: Gauge<f64, AtomicU64>,
}

impl KeeperFigures {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Jobs, tombstones and tenants that a sweep of stored data left as they were because something failed, and sweeps that could not finish";
        registry.register("ingest_keeper_failures", help, self.failures.clone());
        let help = "Sweeps of stored data that came to their end, whatever they left";
        registry.register("ingest_keeper_sweeps", help, self.sweeps.clone());
        let help = "Time from one sweep of stored data to the next, as it is set";
        let interval = self.interval.clone();
        registry.register_with_unit("ingest_keeper_interval", help, Unit::Seconds, interval);
    }
}
