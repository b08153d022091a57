//! The registry of metrics, handed out explicitly; there is no global one. Each service registers its own family once.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use medfleet_core::UnixMillis;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::telemetry;

/// Every metric of the process begins with this.
pub const PREFIX: &str = "medfleet";

/// A handle on the process's registry. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with the prefix `medfleet` and the process's own figures.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Readings(resident_memory)));
        registry.register_collector(Box::new(CpuTime));
        Self {
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    /// Registers metrics, whose names then begin with `medfleet_`.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.lock())
    }

    /// Says which program this is and since when it runs: a start time that moves is a restart.
    pub fn describe(&self, service: &str, version: &str, started: UnixMillis) {
        let build = Info::new([
            ("service", service.to_owned()),
            ("version", version.to_owned()),
        ]);
        let start = Gauge::<i64>::default();
        start.set(started.0.div_euclid(1000));
        self.register(|registry| {
            registry.register("build", "Which program this is; always 1", build);
            let help = "When the process started, since 1970";
            registry.register_with_unit("process_start_time", help, Unit::Seconds, start);
        });
    }

    /// Says until when files with certificates are good, each by the setting that names it.
    pub fn certificates(&self, ends: impl IntoIterator<Item = (String, UnixMillis)>) {
        let family = Family::<SettingLabel, Gauge>::default();
        for (setting, end) in ends {
            let label = SettingLabel { setting };
            family.get_or_create(&label).set(end.0.div_euclid(1000));
        }
        self.register(|registry| {
            let help = "When a certificate that was read at the start ends, since 1970";
            registry.register_with_unit("certificate_end_time", help, Unit::Seconds, family);
        });
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.lock())?;
        Ok(text)
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Registering appends; a panic in between leaves a registry that can still be read.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A setting that names a file; a service has a few of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SettingLabel {
    setting: String,
}

/// A gauge as it stands: its name after the registry's prefix, what it says, its unit, and its value.
pub type Reading = (&'static str, &'static str, Option<Unit>, u64);

/// Gauges that are read when they are asked for.
pub struct Readings<F>(pub F);

impl<F> fmt::Debug for Readings<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings").finish_non_exhaustive()
    }
}

impl<F, R> Collector for Readings<F>
where
    F: Fn() -> R + Send + Sync + 'static,
    R: IntoIterator<Item = Reading>,
{
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (name, help, unit, value) in (self.0)() {
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}

/// What this process has resident; left out, rather than given as zero, where the system does not tell.
fn resident_memory() -> Option<Reading> {
    let help = "Resident memory of the process";
    let bytes = resident_bytes()?;
    Some(("process_resident_memory", help, Some(Unit::Bytes), bytes))
}

/// CPU time of this process, read at every scrape.
#[derive(Debug)]
struct CpuTime;

impl Collector for CpuTime {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(seconds) = cpu_seconds() else {
            return Ok(());
        };
        let help = "CPU time of the process, of all its threads";
        let (name, unit) = ("process_cpu", Some(&Unit::Seconds));
        let metric = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        ConstCounter::new(seconds).encode(metric)
    }
}

/// User and system time from the kernel, which gives it to programs in hundredths of a second.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, which may hold anything, is in brackets; the times are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: Vec<u64> = ticks.filter_map(|field| field.parse().ok()).collect();
    (ticks.len() == 2).then(|| ticks.iter().sum::<u64>() as f64 / 100.0)
}

/// The trace that a figure in a histogram comes from: a way from a slow bucket to one job that was slow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Exemplar {
    trace_id: String,
}

impl Exemplar {
    /// Of the current span; none where its trace is not recorded, because then there is nothing to find.
    pub fn current() -> Option<Self> {
        let trace_id = telemetry::recorded_trace_id(&tracing::Span::current())?;
        Some(Self { trace_id })
    }
}

/// Resident memory of this process in bytes, from the kernel; none where there is no `/proc`.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn metrics_carry_the_prefix_and_the_memory() {
        let metrics = Metrics::new();
        let jobs = Counter::<u64>::default();
        metrics.register(|registry| registry.register("jobs", "Jobs", jobs.clone()));
        jobs.inc();
        let text = metrics.encode().expect("encodes");
        assert!(text.contains("medfleet_jobs_total 1"), "{text}");
        assert!(
            text.contains("medfleet_process_resident_memory_bytes "),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_process_says_what_it_is_and_since_when() {
        let metrics = Metrics::new();
        metrics.describe("medfleet-x", "1.2.3", UnixMillis(1_700_000_000_999));
        let text = metrics.encode().expect("encodes");
        for line in [
            "medfleet_build_info{service=\"medfleet-x\",version=\"1.2.3\"} 1",
            "medfleet_process_start_time_seconds 1700000000",
            "# TYPE medfleet_process_cpu_seconds counter",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(cpu_seconds().is_some(), "the tests run on Linux");
    }

    #[test]
    fn a_test_process_uses_memory() {
        assert!(resident_bytes().expect("the tests run on Linux") > 1 << 20);
    }
}
