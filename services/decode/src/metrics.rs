//! What decode counts besides what every worker counts. Names begin with `medfleet_decode_`.

use medfleet_runtime::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

/// Where image tokens came from: `encoder` or `store`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SourceLabel {
    pub(crate) source: &'static str,
}

/// Tokens read and written, and how fast.
#[derive(Debug, Clone)]
pub(crate) struct DecodeMetrics {
    pub(crate) images: Family<SourceLabel, Counter>,
    pub(crate) prompt_tokens: Counter,
    pub(crate) prefix_tokens: Counter,
    pub(crate) preemptions: Counter,
    pub(crate) output_tokens: Counter,
    pub(crate) first_token_seconds: Histogram,
    pub(crate) token_seconds: Histogram,
}

impl DecodeMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let ours = Self {
            images: Family::default(),
            prompt_tokens: Counter::default(),
            prefix_tokens: Counter::default(),
            preemptions: Counter::default(),
            output_tokens: Counter::default(),
            // 1 ms to about 9 minutes.
            first_token_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 20)),
            // 0.1 ms to about 26 s.
            token_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 19)),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("decode");
            registry.register(
                "images",
                "Images gathered, by where from",
                ours.images.clone(),
            );
            registry.register("prompt_tokens", "Tokens read", ours.prompt_tokens.clone());
            registry.register(
                "prefix_tokens",
                "Tokens of prompts that were in memory already",
                ours.prefix_tokens.clone(),
            );
            registry.register(
                "preemptions",
                "Texts that gave their memory to older ones and were read again",
                ours.preemptions.clone(),
            );
            registry.register(
                "output_tokens",
                "Tokens written",
                ours.output_tokens.clone(),
            );
            let first = ours.first_token_seconds.clone();
            registry.register_with_unit(
                "first_token",
                "Time to the first token",
                Unit::Seconds,
                first,
            );
            let each = ours.token_seconds.clone();
            registry.register_with_unit("token", "Time of each further token", Unit::Seconds, each);
        });
        ours
    }
}
