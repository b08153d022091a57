//! The metrics that every worker has. Their names begin with `medfleet_<stage>_`.

use medfleet_core::{Stage, Verdict};
use medfleet_runtime::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

/// Labels of a settled unit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VerdictLabel {
    verdict: &'static str,
}

/// Metrics of one worker.
#[derive(Debug, Clone)]
pub struct WorkerMetrics {
    units: Family<VerdictLabel, Counter>,
    seconds: Histogram,
    busy: Gauge,
}

impl WorkerMetrics {
    /// Registers them; once a process and stage.
    #[must_use]
    pub fn register(metrics: &Metrics, stage: Stage, slots: usize) -> Self {
        let ours = Self {
            units: Family::default(),
            // 1 ms to about 9 minutes.
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 20)),
            busy: Gauge::default(),
        };
        let total = Gauge::<i64>::default();
        total.set(i64::try_from(slots).unwrap_or(i64::MAX));
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix(stage.as_str());
            registry.register("units", "Units settled, by verdict", ours.units.clone());
            let help = "Time from taking a unit to its verdict";
            registry.register_with_unit("unit", help, Unit::Seconds, ours.seconds.clone());
            registry.register("slots_busy", "Slots at work", ours.busy.clone());
            registry.register("slots", "Slots in all", total);
        });
        ours
    }

    pub(crate) fn began(&self) {
        self.busy.inc();
    }

    pub(crate) fn settled(&self, verdict: &Verdict, seconds: f64) {
        self.busy.dec();
        self.seconds.observe(seconds);
        self.units
            .get_or_create(&VerdictLabel {
                verdict: word(verdict),
            })
            .inc();
    }
}

/// The stable word of a verdict.
pub(crate) fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Done => "done",
        Verdict::Retry { .. } => "retry",
        Verdict::Reject(_) => "reject",
        Verdict::Abort => "abort",
    }
}
