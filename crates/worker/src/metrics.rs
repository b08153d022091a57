//! The metrics that every worker has. Their names begin with `medfleet_<stage>_`.

use std::fmt;

use medfleet_core::{Class, Stage, Verdict};
use medfleet_runtime::{Exemplar, Metrics, Readings};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: &'static str,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

/// Labels of a unit that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnreadableLabel {
    job_known: &'static str,
}

/// Every verdict's word.
const VERDICTS: [&str; 4] = ["done", "retry", "reject", "abort"];

#[derive(Debug, Clone)]
pub struct WorkerMetrics {
    units: Family<VerdictLabels, Counter>,
    seconds: Family<ClassLabel, HistogramWithExemplars<Exemplar>>,
    wait_seconds: Family<ClassLabel, Histogram>,
    redeliveries: Family<ClassLabel, Counter>,
    unreadable: Family<UnreadableLabel, Counter>,
    busy: Gauge,
    /// Of these units, those that have left their places.
    aside: Gauge,
}

impl WorkerMetrics {
    /// Registers them; once a process and stage.
    pub fn register(metrics: &Metrics, stage: Stage, slots: usize) -> Self {
        let ours = Self {
            units: Family::default(),
            // 1 ms to about 9 minutes.
            seconds: Family::new_with_constructor(|| {
                HistogramWithExemplars::new(exponential_buckets(0.001, 2.0, 20))
            }),
            // 1 ms to about 2 hours.
            wait_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 24))
            }),
            redeliveries: Family::default(),
            unreadable: Family::default(),
            busy: Gauge::default(),
            aside: Gauge::default(),
        };
        let total = Gauge::<i64>::default();
        total.set(i64::try_from(slots).unwrap_or(i64::MAX));
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix(stage.as_str());
            let help = "Units settled, by verdict: done, retry, reject (a dead letter), abort (another worker's)";
            registry.register("units", help, ours.units.clone());
            let help = "Time from taking a unit to its verdict";
            registry.register_with_unit("unit", help, Unit::Seconds, ours.seconds.clone());
            let help = "Time from a unit's release to its first start";
            registry.register_with_unit("wait", help, Unit::Seconds, ours.wait_seconds.clone());
            let help = "Units that came again: handed back, tried again, or lost by a worker that died";
            registry.register("redeliveries", help, ours.redeliveries.clone());
            let help = "Units that this release cannot read: their jobs are failed where they are known (yes), or wait until their time is over (no)";
            registry.register("unreadable_units", help, ours.unreadable.clone());
            let help = "Units in hand: in slots, and beyond these those in the places of STAT and those that wait for another worker";
            registry.register("slots_busy", help, ours.busy.clone());
            registry.register("slots", "Slots in all", total);
        });
        ours.begin_at_zero();
        ours
    }

    /// Counters whose labels are known are there before their first event: one that first shows up with it never rises from
    /// zero, and `rate` misses the first redelivery or rejection of every process.
    fn begin_at_zero(&self) {
        for job_known in ["yes", "no"] {
            let label = UnreadableLabel { job_known };
            self.unreadable.get_or_create(&label).inc_by(0);
        }
        for class in Class::ALL {
            let class = class.as_str();
            self.redeliveries
                .get_or_create(&ClassLabel { class })
                .inc_by(0);
            for verdict in VERDICTS {
                let labels = VerdictLabels { verdict, class };
                self.units.get_or_create(&labels).inc_by(0);
            }
        }
    }

    /// A unit could not be read; whether it named its job.
    pub(crate) fn unreadable(&self, names_job: bool) {
        let job_known = if names_job { "yes" } else { "no" };
        self.unreadable
            .get_or_create(&UnreadableLabel { job_known })
            .inc();
    }

    /// A unit was taken; `waited` seconds after its release.
    pub(crate) fn began(&self, class: Class, deliveries: u64, waited: f64) {
        self.busy.inc();
        let label = ClassLabel {
            class: class.as_str(),
        };
        if deliveries > 1 {
            self.redeliveries.get_or_create(&label).inc();
        } else {
            self.wait_seconds
                .get_or_create(&label)
                .observe(waited.max(0.0));
        }
    }

    pub(crate) fn settled(&self, class: Class, verdict: &Verdict, seconds: f64) {
        self.busy.dec();
        let class = class.as_str();
        self.seconds.get_or_create(&ClassLabel { class }).observe(
            seconds,
            Exemplar::current(),
            None,
        );
        let verdict = word(verdict);
        self.units
            .get_or_create(&VerdictLabels { verdict, class })
            .inc();
    }

    /// Units in hand that have not left their places.
    pub(crate) fn at_work(&self) -> i64 {
        self.busy.get().saturating_sub(self.aside.get())
    }

    /// Where places count those that were left.
    pub(crate) fn aside(&self) -> Gauge {
        self.aside.clone()
    }

    /// Gives every family a value of each class, so that the whole of it can be described.
    pub fn touch(&self) {
        for class in Class::ALL {
            self.began(*class, 1, 0.0);
            self.settled(*class, &Verdict::Done, 0.0);
        }
    }
}

/// Registers whether there is a connection to the queue, looked at when it is asked for.
pub fn register_connection(
    metrics: &Metrics,
    is_connected: impl Fn() -> bool + Send + Sync + 'static,
) {
    let read = move || {
        let help = "1 while there is a connection to the queue";
        [("queue_connected", help, None, u64::from(is_connected()))]
    };
    metrics.register(|registry| registry.register_collector(Box::new(Readings(read))));
}

/// Registers how many writes found no room in the blob store, looked at when it is asked for.
pub fn register_store(metrics: &Metrics, full_writes: impl Fn() -> u64 + Send + Sync + 'static) {
    let collector = Box::new(FullWrites(full_writes));
    metrics.register(|registry| registry.register_collector(collector));
}

/// A counter that the store keeps.
struct FullWrites<F>(F);

impl<F> fmt::Debug for FullWrites<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FullWrites").finish_non_exhaustive()
    }
}

impl<F: Fn() -> u64 + Send + Sync + 'static> Collector for FullWrites<F> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let (name, help) = (
            "store_full_writes",
            "Writes for which the blob store had no room",
        );
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new((self.0)()).encode(metric)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use medfleet_core::{Failure, FailureReason};

    use super::*;

    fn value(metrics: &Metrics, series: &str) -> Option<String> {
        let text = metrics.encode().expect("encodes");
        let mut lines = text.lines();
        lines.find_map(|line| Some(line.strip_prefix(series)?.trim().to_owned()))
    }

    #[test]
    fn a_fresh_worker_counts_from_zero() {
        for stage in Stage::ALL {
            let metrics = Metrics::new();
            let _ours = WorkerMetrics::register(&metrics, *stage, 1);
            for class in Class::ALL {
                let again = format!("medfleet_{stage}_redeliveries_total{{class=\"{class}\"}}");
                assert_eq!(value(&metrics, &again).as_deref(), Some("0"), "{again}");
                let unreadable =
                    format!("medfleet_{stage}_unreadable_units_total{{job_known=\"no\"}}");
                assert_eq!(value(&metrics, &unreadable).as_deref(), Some("0"));
                for verdict in VERDICTS {
                    let labels = format!("verdict=\"{verdict}\",class=\"{class}\"");
                    let units = format!("medfleet_{stage}_units_total{{{labels}}}");
                    assert_eq!(value(&metrics, &units).as_deref(), Some("0"), "{units}");
                }
            }
        }
    }

    #[test]
    fn writes_without_room_are_told_from_zero() {
        let metrics = Metrics::new();
        let writes = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&writes);
        register_store(&metrics, move || told.load(Ordering::Relaxed));
        for expected in ["0", "3"] {
            let found = value(&metrics, "medfleet_store_full_writes_total");
            assert_eq!(found.as_deref(), Some(expected));
            writes.store(3, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_unit_that_left_its_place_is_in_hand_and_not_at_work() {
        let metrics = Metrics::new();
        let ours = WorkerMetrics::register(&metrics, Stage::Encode, 1);
        ours.began(Class::Routine, 1, 0.0);
        ours.aside().inc();
        ours.began(Class::Routine, 1, 0.0);
        let busy = value(&metrics, "medfleet_encode_slots_busy");
        assert_eq!((busy.as_deref(), ours.at_work()), (Some("2"), 1));
    }

    #[test]
    fn what_happens_is_counted_in_a_series_that_was_there() {
        let failure = Failure::new(FailureReason::InputRefused, "x");
        let verdicts = [
            Verdict::Done,
            Verdict::Retry {
                after: Duration::ZERO,
            },
            Verdict::Reject(failure),
            Verdict::Abort,
        ];
        let metrics = Metrics::new();
        let ours = WorkerMetrics::register(&metrics, Stage::Encode, 1);
        let series = |text: String| text.matches("medfleet_encode_units_total{").count();
        let before = series(metrics.encode().expect("encodes"));
        for verdict in &verdicts {
            ours.began(Class::Stat, 2, 0.0);
            ours.settled(Class::Stat, verdict, 0.0);
        }
        assert_eq!(series(metrics.encode().expect("encodes")), before);
        let again = "medfleet_encode_redeliveries_total{class=\"stat\"}";
        assert_eq!(value(&metrics, again).as_deref(), Some("4"));
    }
}
