//! What a hospital's edge tells of the jobs that it hands on, and of its hub. On a hub all of it stays 0.

use std::sync::atomic::AtomicU64;

use medfleet_core::closed_set;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

closed_set!(
    /// What became of a job that waited for the hub, or was there.
    pub(crate) enum HubOutcome, "outcome at the hub", {
        /// The hub has accepted it.
        Forwarded = "forwarded",
        /// The hub does not take it: it has failed.
        Refused = "refused",
        /// Its end came back.
        Ended = "ended",
        /// It was erased there too.
        Erased = "erased",
    }
);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// The metrics of an edge. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct EdgeFigures {
    jobs: Family<OutcomeLabels, Counter>,
    /// Jobs that wait to be handed on.
    pub(crate) waiting: Gauge,
    /// Jobs that the hub has and has not ended, or has to erase.
    pub(crate) at_hub: Gauge,
    /// Seconds since the hub last answered.
    pub(crate) hub_silence: Gauge<f64, AtomicU64>,
    /// Tenants whose token the hub does not know.
    pub(crate) strangers: Gauge,
}

impl EdgeFigures {
    /// Counts what became of a job.
    pub(crate) fn count(&self, outcome: HubOutcome) {
        let outcome = outcome.as_str();
        self.jobs.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// This process hands nothing on any more: its figures would only be old.
    pub(crate) fn clear(&self) {
        self.waiting.set(0);
        self.at_hub.set(0);
        self.hub_silence.set(0.0);
        self.strangers.set(0);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        for outcome in HubOutcome::ALL {
            let outcome = outcome.as_str();
            drop(self.jobs.get_or_create(&OutcomeLabels { outcome }));
        }
        let help = "Jobs of an edge by what became of them at the hub";
        registry.register("ingest_edge_jobs", help, self.jobs.clone());
        let help = "Jobs of an edge that wait to be handed on to the hub";
        registry.register("ingest_edge_waiting_jobs", help, self.waiting.clone());
        let help = "Jobs of an edge that the hub has and has not ended";
        registry.register("ingest_edge_jobs_at_hub", help, self.at_hub.clone());
        let help =
            "Time since the hub last answered an edge; the replica that hands jobs on reports it";
        let silence = self.hub_silence.clone();
        registry.register_with_unit("ingest_edge_hub_silence", help, Unit::Seconds, silence);
        let help = "Tenants of an edge whose token the hub does not know";
        registry.register("ingest_edge_unknown_tokens", help, self.strangers.clone());
    }
}
