//! What encode counts besides what every worker counts. Names begin with `medfleet_encode_`.

use std::sync::Arc;

use medfleet_core::closed_set;
use medfleet_engine::EncodeLoad;
use medfleet_runtime::{Metrics, Readings};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

use crate::cache::Cache;

/// A look for a frame's tokens: in which tier of the cache, and whether they were there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookLabels {
    tier: &'static str,
    outcome: &'static str,
}

/// A frame that was to be claimed, or was another's, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimLabel {
    outcome: &'static str,
}

closed_set!(
    /// What became of the wish to claim a frame.
    pub(crate) enum ClaimOutcome, "outcome of a claim", {
        /// This encoder encodes it, unless another has just done so.
        Taken = "taken",
        /// Another one is encoding it.
        Held = "held",
        /// It could not be claimed and is encoded all the same.
        Failed = "failed",
    }
);

closed_set!(
    /// What became of a frame that another encoder had claimed.
    pub(crate) enum HeldOutcome, "outcome of another's claim", {
        /// That one has made its tokens.
        Found = "found",
        /// That one failed or died, and this encoder encodes it.
        Left = "left",
        /// That one is still at it, and this encoder could wait no longer: it is encoded twice.
        Overdue = "overdue",
    }
);

closed_set!(
    /// Where tokens are looked for.
    pub(crate) enum Tier, "tier", {
        /// This encoder's memory, first.
        Memory = "memory",
        /// The blob store.
        Store = "store",
    }
);

/// Frames encoded, frames and chunks found in the cache, device time.
#[derive(Debug, Clone)]
pub(crate) struct EncodeMetrics {
    pub(crate) frames: Counter,
    looks: Family<LookLabels, Counter>,
    claims: Family<ClaimLabel, Counter>,
    held: Family<ClaimLabel, Counter>,
    pub(crate) held_wait_seconds: Histogram,
    pub(crate) chunks_found: Counter,
    pub(crate) chunk_frames: Histogram,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    pub(crate) device_seconds: Histogram,
}

impl EncodeMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let ours = Self {
            frames: Counter::default(),
            looks: Family::default(),
            claims: Family::default(),
            held: Family::default(),
            // 10 ms, the first look, to about 3 minutes.
            held_wait_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 15)),
            chunks_found: Counter::default(),
            // 1 to 256.
            chunk_frames: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            // 1 ms to about 9 minutes.
            device_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 20)),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("encode");
            registry.register("frames", "Frames encoded", ours.frames.clone());
            let help = "Frames whose tokens were looked for in a tier of the cache";
            registry.register("frame_looks", help, ours.looks.clone());
            let help = "New frames claimed among the encoders of the site: taken, held by another, or failed and encoded without";
            registry.register("claims", help, ours.claims.clone());
            let help = "Frames that another encoder had claimed: found when it had made their tokens, left by it as it failed or died, or overdue and encoded twice";
            registry.register("claims_held", help, ours.held.clone());
            let help = "Time that a unit waited for claims of other encoders to end";
            let wait = ours.held_wait_seconds.clone();
            registry.register_with_unit("claims_held_wait", help, Unit::Seconds, wait);
            let help = "Chunks of which no frame had to be encoded";
            registry.register("chunks_found", help, ours.chunks_found.clone());
            let help = "Frames that the model was given at once";
            registry.register("chunk_frames", help, ours.chunk_frames.clone());
            let help = "Tensors that decoders asked for and that were in memory";
            registry.register("cache_hits", help, ours.cache_hits.clone());
            let help = "Tensors that decoders asked for and that were not in memory any more";
            registry.register("cache_misses", help, ours.cache_misses.clone());
            let help = "Time in the model of the frames that it was given at once";
            registry.register_with_unit("device", help, Unit::Seconds, ours.device_seconds.clone());
        });
        // Every series starts at zero: one that first appears with its first event never rises, and `rate` misses it.
        for tier in Tier::ALL {
            for is_hit in [true, false] {
                ours.look(*tier, is_hit).inc_by(0);
            }
        }
        for outcome in ClaimOutcome::ALL {
            ours.claimed(*outcome, 0);
        }
        for outcome in HeldOutcome::ALL {
            ours.was_held(*outcome, 0);
        }
        ours
    }

    /// Counts a frame that was looked for, in memory and then in the store, and found there; or nowhere.
    pub(crate) fn looked(&self, found: Option<Tier>) {
        let is_in_memory = found == Some(Tier::Memory);
        self.look(Tier::Memory, is_in_memory).inc();
        if !is_in_memory {
            self.look(Tier::Store, found.is_some()).inc();
        }
    }

    /// Counts frames that were to be claimed.
    pub(crate) fn claimed(&self, outcome: ClaimOutcome, frames: usize) {
        self.claims_of(outcome).inc_by(frames as u64);
    }

    /// Counts the frames whose claim ended this way.
    fn claims_of(&self, outcome: ClaimOutcome) -> Counter {
        let outcome = outcome.as_str();
        self.claims.get_or_create_owned(&ClaimLabel { outcome })
    }

    /// How many frames were to be claimed, by outcome.
    #[cfg(test)]
    pub(crate) fn claims(&self) -> [u64; 3] {
        use ClaimOutcome::{Failed, Held, Taken};
        [Taken, Held, Failed].map(|outcome| self.claims_of(outcome).get())
    }

    /// Counts frames that another encoder had claimed.
    pub(crate) fn was_held(&self, outcome: HeldOutcome, frames: usize) {
        self.held_of(outcome).inc_by(frames as u64);
    }

    /// How many frames another encoder had claimed and ended so.
    fn held_of(&self, outcome: HeldOutcome) -> Counter {
        let outcome = outcome.as_str();
        self.held.get_or_create_owned(&ClaimLabel { outcome })
    }

    /// How many frames another encoder had claimed, by outcome.
    #[cfg(test)]
    pub(crate) fn held(&self) -> [u64; 3] {
        use HeldOutcome::{Found, Left, Overdue};
        [Found, Left, Overdue].map(|outcome| self.held_of(outcome).get())
    }

    /// How many frames were looked for in a tier, and how many were there.
    #[cfg(test)]
    pub(crate) fn looks_in(&self, tier: Tier) -> (u64, u64) {
        let [hits, misses] = [true, false].map(|is_hit| self.look(tier, is_hit).get());
        (hits + misses, hits)
    }

    fn look(&self, tier: Tier, is_hit: bool) -> Counter {
        let labels = LookLabels {
            tier: tier.as_str(),
            outcome: if is_hit { "hit" } else { "miss" },
        };
        self.looks.get_or_create_owned(&labels)
    }
}

/// Registers how busy the engine is, looked at when it is asked for.
pub(crate) fn register_load(
    metrics: &Metrics,
    load: impl Fn() -> EncodeLoad + Send + Sync + 'static,
) {
    let read = move || {
        let EncodeLoad { waiting, call } = load();
        let help = "How long the call into the model has taken that is under way";
        [
            (
                "requests_waiting",
                "Chunks whose frames wait for the model",
                None,
                waiting,
            ),
            ("call", help, Some(Unit::Seconds), call.as_secs()),
        ]
    };
    register_readings(metrics, Readings(read));
}

/// Registers how full the cache is, looked at when it is asked for.
pub(crate) fn register_cache(metrics: &Metrics, cache: Arc<Cache>) {
    let read = move || {
        let (used, most) = cache.bytes();
        [
            ("cache_used", "Image tokens in memory", used),
            ("cache", "Image tokens that memory may hold", most),
        ]
        .map(|(name, help, bytes)| (name, help, Some(Unit::Bytes), bytes))
    };
    register_readings(metrics, Readings(read));
}

fn register_readings(metrics: &Metrics, readings: impl Collector) {
    metrics.register(|registry| {
        let registry = registry.sub_registry_with_prefix("encode");
        registry.register_collector(Box::new(readings));
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_scrape_says_what_waits_and_for_how_long_the_model_has_been_away() {
        let metrics = Metrics::new();
        register_load(&metrics, || EncodeLoad {
            waiting: 3,
            call: Duration::from_secs(7),
        });
        let text = metrics.encode().expect("encodes");
        for line in [
            "medfleet_encode_requests_waiting 3\n",
            "medfleet_encode_call_seconds 7\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
