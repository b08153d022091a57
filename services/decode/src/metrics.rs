//! What decode counts besides what every worker counts. Names begin with `medfleet_decode_`.

use std::fmt;
use std::sync::Arc;

use medfleet_engine::DecodeLoad;
use medfleet_runtime::{Exemplar, Metrics, Reading, Readings};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

/// Where image tokens came from: `encoder` or `store`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SourceLabel {
    pub(crate) source: &'static str,
}

/// Who proposed tokens: `lookup` or `draft`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProposerLabel {
    proposer: &'static str,
}

/// What followed the same tokens before.
const LOOKUP: &str = "lookup";
/// A second model.
const DRAFT: &str = "draft";

/// From an encoder's memory.
pub(crate) const ENCODER: &str = "encoder";
pub(crate) const STORE: &str = "store";

/// Tokens read and written, and how fast.
#[derive(Debug, Clone)]
pub(crate) struct DecodeMetrics {
    pub(crate) images: Family<SourceLabel, Counter>,
    pub(crate) prompt_tokens: Counter,
    pub(crate) prefix_tokens: Counter,
    pub(crate) preemptions: Counter,
    pub(crate) output_tokens: Counter,
    pub(crate) first_token_seconds: HistogramWithExemplars<Exemplar>,
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
            first_token_seconds: HistogramWithExemplars::new(exponential_buckets(0.001, 2.0, 20)),
            // 0.1 ms to about 26 s.
            token_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 19)),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("decode");
            let help = "Images gathered, by where from";
            registry.register("images", help, ours.images.clone());
            let help = "Tokens of the prompts of texts that were written to their end, those in memory already included";
            registry.register("prompt_tokens", help, ours.prompt_tokens.clone());
            let help = "Tokens of prompts that were in memory already";
            registry.register("prefix_tokens", help, ours.prefix_tokens.clone());
            let help =
                "Times that a text gave its memory to more urgent or older ones and was read again";
            registry.register("preemptions", help, ours.preemptions.clone());
            let help = "Tokens of texts that were written to their end, those of thinking and those that end a text included";
            registry.register("output_tokens", help, ours.output_tokens.clone());
            let help = "Time from when the engine takes a text on to its first token";
            let first = ours.first_token_seconds.clone();
            registry.register_with_unit("first_token", help, Unit::Seconds, first);
            let help = "Mean time of a text's further tokens";
            registry.register_with_unit("token", help, Unit::Seconds, ours.token_seconds.clone());
        });
        // Every series starts at zero: one that first appears with its first event never rises, and `rate` misses it.
        for source in [ENCODER, STORE] {
            ours.images.get_or_create(&SourceLabel { source }).inc_by(0);
        }
        ours
    }
}

/// Registers how busy the engine is and what it has computed, looked at when it is asked for.
pub(crate) fn register_load(
    metrics: &Metrics,
    load: impl Fn() -> DecodeLoad + Send + Sync + 'static,
) {
    let load: Arc<Load> = Arc::new(load);
    let computed = Computed(Arc::clone(&load));
    let read = move || readings(&load());
    metrics.register(|registry| {
        let registry = registry.sub_registry_with_prefix("decode");
        registry.register_collector(Box::new(Readings(read)));
        registry.register_collector(Box::new(computed));
    });
}

fn readings(load: &DecodeLoad) -> [Reading; 6] {
    let used = load.kv_blocks_used.saturating_mul(load.kv_block_bytes);
    let size = load.kv_blocks.saturating_mul(load.kv_block_bytes);
    [
        (
            "sequences_waiting",
            "Texts that the engine has taken on and that wait for a place or memory",
            None,
            load.waiting,
        ),
        (
            "sequences_active",
            "Texts that are read or written",
            None,
            load.active,
        ),
        (
            "sequences_held",
            "Texts that wait for others to be written with",
            None,
            load.held,
        ),
        (
            "kv_used",
            "KV memory that texts hold",
            Some(Unit::Bytes),
            used,
        ),
        ("kv", "KV memory in all", Some(Unit::Bytes), size),
        (
            "call",
            "How long the call into the model has taken that is under way",
            Some(Unit::Seconds),
            load.call.as_secs(),
        ),
    ]
}

type Load = dyn Fn() -> DecodeLoad + Send + Sync;

/// What the engine has computed since the start, counted by itself.
struct Computed(Arc<Load>);

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Computed").finish_non_exhaustive()
    }
}

impl Collector for Computed {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let load = (self.0)();
        let counters = [
            ("passes", "Forward passes", load.passes),
            (
                "pass_sequences",
                "Texts in forward passes: divided by the passes, how full one is",
                load.pass_sequences,
            ),
            (
                "pass_rows",
                "Tokens computed in forward passes, of prompts and of texts, proposed ones included",
                load.pass_rows,
            ),
        ];
        for (name, help, value) in counters {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        let help = "Time in forward passes: divided by the passes, how long one takes";
        let unit = Some(&Unit::Seconds);
        let metric = encoder.encode_descriptor("pass", help, unit, MetricType::Counter)?;
        ConstCounter::new(load.pass_time.as_secs_f64()).encode(metric)?;
        encode_proposed(&mut encoder, &load)
    }
}

/// What was proposed, and by whom.
fn encode_proposed(
    encoder: &mut DescriptorEncoder<'_>,
    load: &DecodeLoad,
) -> Result<(), fmt::Error> {
    let (lookup, draft) = (load.looked_up, load.drafted);
    let by_proposer = [
        (
            "proposed_tokens",
            "Proposed tokens that were verified, by who proposed them",
            [(LOOKUP, lookup.proposed), (DRAFT, draft.proposed)],
        ),
        (
            "accepted_tokens",
            "Proposed tokens that were right: each saved a pass",
            [(LOOKUP, lookup.accepted), (DRAFT, draft.accepted)],
        ),
    ];
    for (name, help, values) in by_proposer {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (proposer, value) in values {
            let label = ProposerLabel { proposer };
            ConstCounter::new(value).encode(metric.encode_family(&label)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use medfleet_engine::Verified;

    use super::*;

    #[test]
    fn proposals_are_counted_by_who_proposed_them() {
        let metrics = Metrics::new();
        register_load(&metrics, || DecodeLoad {
            looked_up: Verified {
                proposed: 9,
                accepted: 4,
            },
            drafted: Verified {
                proposed: 7,
                accepted: 6,
            },
            ..DecodeLoad::default()
        });
        let text = metrics.encode().expect("encodes");
        for (proposer, proposed, accepted) in [(LOOKUP, 9, 4), (DRAFT, 7, 6)] {
            for (name, value) in [("proposed", proposed), ("accepted", accepted)] {
                let line = format!(
                    "medfleet_decode_{name}_tokens_total{{proposer=\"{proposer}\"}} {value}\n"
                );
                assert!(text.contains(&line), "{line} in {text}");
            }
        }
    }

    #[test]
    fn a_scrape_says_what_waits_how_full_memory_is_and_for_how_long_the_model_has_been_away() {
        let metrics = Metrics::new();
        register_load(&metrics, || DecodeLoad {
            waiting: 3,
            kv_blocks_used: 2,
            kv_blocks: 5,
            kv_block_bytes: 1024,
            call: Duration::from_secs(7),
            ..DecodeLoad::default()
        });
        let text = metrics.encode().expect("encodes");
        for line in [
            "# TYPE medfleet_decode_kv_bytes gauge\n",
            "medfleet_decode_sequences_waiting 3\n",
            "medfleet_decode_kv_used_bytes 2048\n",
            "medfleet_decode_kv_bytes 5120\n",
            "medfleet_decode_call_seconds 7\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn passes_are_counted_with_their_rows_and_their_time() {
        let metrics = Metrics::new();
        register_load(&metrics, || DecodeLoad {
            passes: 4,
            pass_rows: 96,
            pass_time: Duration::from_millis(1500),
            ..DecodeLoad::default()
        });
        let text = metrics.encode().expect("encodes");
        for line in [
            "medfleet_decode_passes_total 4\n",
            "medfleet_decode_pass_rows_total 96\n",
            "medfleet_decode_pass_seconds_total 1.5\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn a_fresh_process_counts_images_from_zero() {
        let metrics = Metrics::new();
        let _ours = DecodeMetrics::register(&metrics);
        let text = metrics.encode().expect("encodes");
        for source in [ENCODER, STORE] {
            let line = format!("medfleet_decode_images_total{{source=\"{source}\"}} 0\n");
            assert!(text.contains(&line), "{line}");
        }
    }
}
