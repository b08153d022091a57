//! What encode counts besides what every worker counts. Names begin with `medfleet_encode_`.

use medfleet_runtime::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

/// Frames encoded, chunks found in the store, device time.
#[derive(Debug, Clone)]
pub(crate) struct EncodeMetrics {
    pub(crate) frames: Counter,
    pub(crate) chunks_found: Counter,
    pub(crate) device_seconds: Histogram,
}

impl EncodeMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let ours = Self {
            frames: Counter::default(),
            chunks_found: Counter::default(),
            // 1 ms to about 9 minutes.
            device_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 20)),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("encode");
            registry.register("frames", "Frames encoded", ours.frames.clone());
            let help = "Chunks whose tokens were in the store already";
            registry.register("chunks_found", help, ours.chunks_found.clone());
            let help = "Time of one chunk in the model";
            registry.register_with_unit("device", help, Unit::Seconds, ours.device_seconds.clone());
        });
        ours
    }
}
