//! The registry of metrics, handed out explicitly; there is no global one. Each service registers its own family once.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

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
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(ResidentMemory));
        Self {
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    /// Registers metrics, whose names then begin with `medfleet_`.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.lock())
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// Only if a metric refuses to be written.
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

/// Resident memory of this process, read at every scrape.
#[derive(Debug)]
struct ResidentMemory;

impl Collector for ResidentMemory {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(bytes) = resident_bytes() else {
            // Not Linux: the figure is left out rather than given as zero.
            return Ok(());
        };
        let help = "Resident memory of the process";
        let name = "process_resident_memory";
        let metric =
            encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        let value = i64::try_from(bytes).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(metric)
    }
}

/// Resident memory of this process in bytes, from the kernel; none where there is no `/proc`.
#[must_use]
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
    fn a_test_process_uses_memory() {
        assert!(resident_bytes().expect("the tests run on Linux") > 1 << 20);
    }
}
