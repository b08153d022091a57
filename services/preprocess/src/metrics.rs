//! What preprocess counts besides what every worker counts. Names begin with `medfleet_preprocess_`.

use medfleet_imaging::Reason;
use medfleet_runtime::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// A stable refusal code of imaging.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(crate) reason: &'static str,
}

/// Frames made, files refused and texts masked.
#[derive(Debug, Clone, Default)]
pub(crate) struct PreprocessMetrics {
    pub(crate) frames: Counter,
    pub(crate) refused: Family<ReasonLabel, Counter>,
    pub(crate) masked: Counter,
}

impl PreprocessMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let ours = Self::default();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("preprocess");
            registry.register("frames", "Frames made", ours.frames.clone());
            let help = "Names, numbers, dates and places of headers masked in the texts of tasks";
            registry.register("texts_masked", help, ours.masked.clone());
            let help = "Files refused, by reason";
            registry.register("files_refused", help, ours.refused.clone());
        });
        // Every series starts at zero: one that first appears with its first event never rises, and `rate` misses it.
        for reason in Reason::ALL {
            let reason = reason.code();
            ours.refused
                .get_or_create(&ReasonLabel { reason })
                .inc_by(0);
        }
        ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_process_counts_every_refusal_from_zero() {
        let metrics = Metrics::new();
        let _ours = PreprocessMetrics::register(&metrics);
        let text = metrics.encode().expect("encodes");
        for reason in Reason::ALL {
            let code = reason.code();
            let line = format!("medfleet_preprocess_files_refused_total{{reason=\"{code}\"}} 0\n");
            assert!(text.contains(&line), "{line}");
        }
    }
}
