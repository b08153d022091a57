//! Every metric of ingest, with its unit and label values. Labels are closed sets, the configured pools and the largest
//! tenants, never ids.

mod edge;
mod keeper;
mod standing;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use medfleet_core::{Class, PoolName, Stage, closed_set};
use medfleet_proto::v1::{dead_letter_service_server, job_service_server, operator_service_server};
use medfleet_runtime::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use crate::unit::Backlog;

pub(crate) use edge::{EdgeFigures, HubOutcome};
pub(crate) use keeper::KeeperFigures;
pub(crate) use standing::Standing;

/// What autoscalers read, without the prefix. Also in the chart, the rules and the tests.
const BACKLOG: &str = "backlog_units";

closed_set!(
    /// A method of the public API.
    pub(crate) enum Method, "method", {
        UploadInput = "UploadInput",
        GetUpload = "GetUpload",
        SubmitJob = "SubmitJob",
        GetJob = "GetJob",
        GetResult = "GetResult",
        ListJobs = "ListJobs",
        WatchJob = "WatchJob",
        CancelJob = "CancelJob",
        EraseJob = "EraseJob",
        EraseJobs = "EraseJobs",
        ListDeadLetters = "ListDeadLetters",
        GetDeadLetter = "GetDeadLetter",
        ReplayDeadLetter = "ReplayDeadLetter",
        DiscardDeadLetter = "DiscardDeadLetter",
        PauseWork = "PauseWork",
        ResumeWork = "ResumeWork",
        ListPauses = "ListPauses",
        RequeueJobs = "RequeueJobs",
    }
);

impl Method {
    /// The service that it is a method of.
    pub(crate) const fn service(self) -> &'static str {
        match self {
            Self::ListDeadLetters
            | Self::GetDeadLetter
            | Self::ReplayDeadLetter
            | Self::DiscardDeadLetter => dead_letter_service_server::SERVICE_NAME,
            Self::PauseWork | Self::ResumeWork | Self::ListPauses | Self::RequeueJobs => {
                operator_service_server::SERVICE_NAME
            }
            _ => job_service_server::SERVICE_NAME,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BacklogLabels {
    stage: &'static str,
    pool: String,
    class: &'static str,
}

impl BacklogLabels {
    fn of(stage: Stage, pool: &PoolName, class: Class) -> Self {
        Self {
            stage: stage.as_str(),
            pool: pool.to_string(),
            class: class.as_str(),
        }
    }
}

/// The metrics. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    calls: Family<CallLabels, Counter>,
    call_seconds: Family<MethodLabels, Histogram>,
    backlog_units: Family<BacklogLabels, Gauge>,
    backlog_seconds: Family<BacklogLabels, Gauge<f64, AtomicU64>>,
    /// Calls that were not let in.
    pub(crate) unauthenticated: Counter,
    /// Calls for which the blob store had no room.
    pub(crate) store_full: Counter,
    /// When the last of them was.
    store_full_at: Arc<Mutex<Option<Instant>>>,
    pub(crate) watches: Gauge,
    /// Uploads in progress now.
    pub(crate) uploads: Gauge,
    /// Watches that fell behind and started over from durable state.
    pub(crate) watch_resyncs: Counter,
    /// Jobs accepted.
    pub(crate) accepted: Counter,
    /// STAT jobs accepted as urgent, beyond their tenant's budget.
    pub(crate) stat_demoted: Counter,
    /// Units released to the stages.
    pub(crate) released: Counter,
    /// Accepts finished by the sweep.
    pub(crate) swept: Counter,
    /// Jobs that this process made EXPIRED.
    pub(crate) expired: Counter,
    /// 1 while this process is the dispatcher.
    pub(crate) leader: Gauge,
    /// Pauses that it goes by as the dispatcher.
    pub(crate) pauses: Gauge,
    /// Jobs erased by their tenants.
    pub(crate) erased: Counter,
    /// Jobs forgotten at the end of their retention.
    pub(crate) forgotten: Counter,
    /// Blobs deleted because nobody relied on them.
    pub(crate) collected: Counter,
    pub(crate) collected_bytes: Counter,
    /// Broken writes whose room was given back.
    pub(crate) reclaimed: Counter,
    /// Of the keeper's sweeps.
    pub(crate) keeper: KeeperFigures,
    /// Intake messages that were skipped because they cannot be read.
    pub(crate) unreadable: Counter,
    /// How the fleet stands.
    pub(crate) standing: Standing,
    /// Of a hospital's edge.
    pub(crate) edge: EdgeFigures,
}

impl Figures {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let figures = Self {
            calls: Family::default(),
            // 1 ms to 65 s.
            call_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 17))
            }),
            backlog_units: Family::default(),
            backlog_seconds: Family::default(),
            unauthenticated: Counter::default(),
            store_full: Counter::default(),
            store_full_at: Arc::default(),
            watches: Gauge::default(),
            uploads: Gauge::default(),
            watch_resyncs: Counter::default(),
            accepted: Counter::default(),
            stat_demoted: Counter::default(),
            released: Counter::default(),
            swept: Counter::default(),
            expired: Counter::default(),
            leader: Gauge::default(),
            pauses: Gauge::default(),
            erased: Counter::default(),
            forgotten: Counter::default(),
            collected: Counter::default(),
            collected_bytes: Counter::default(),
            reclaimed: Counter::default(),
            keeper: KeeperFigures::default(),
            unreadable: Counter::default(),
            standing: Standing::default(),
            edge: EdgeFigures::default(),
        };
        metrics.register(|registry| {
            let f = &figures;
            registry.register("ingest_calls", "Calls of the public API by method and gRPC code", f.calls.clone());
            let help = "Time to the answer, or to the begin of a stream";
            registry.register_with_unit("ingest_call", help, Unit::Seconds, f.call_seconds.clone());
            let help = "Units held in the intake, or released and unfinished; only the dispatcher reports them";
            registry.register(BACKLOG, help, f.backlog_units.clone());
            let help = "Slot time that accepted jobs still are at a stage, held, released or not yet come to it; every replica reports all";
            registry.register_with_unit("backlog", help, Unit::Seconds, f.backlog_seconds.clone());
            let help = "Calls without a token, or with one that is not known";
            registry.register("ingest_unauthenticated_calls", help, f.unauthenticated.clone());
            registry.register("ingest_store_full_calls", "Calls for which the blob store had no room", f.store_full.clone());
            registry.register("ingest_watches", "Watches now", f.watches.clone());
            registry.register("ingest_uploads", "Uploads in progress", f.uploads.clone());
            let help = "Watches that started over from durable state because they were slow";
            registry.register("ingest_watch_resyncs", help, f.watch_resyncs.clone());
            registry.register("ingest_accepted", "Jobs accepted", f.accepted.clone());
            let help = "STAT jobs accepted as urgent, beyond their tenant's budget";
            registry.register("ingest_stat_demoted", help, f.stat_demoted.clone());
            registry.register("ingest_released", "Units released to the stages", f.released.clone());
            registry.register("ingest_swept", "Accepts finished by the sweep", f.swept.clone());
            registry.register("ingest_expired", "Jobs past their time to live", f.expired.clone());
            registry.register("ingest_dispatcher", "1 while this process is the dispatcher", f.leader.clone());
            let help = "Pauses that the dispatcher goes by: as many as operators are told of, once it has taken them up; 0 on the other replicas";
            registry.register("ingest_dispatcher_pauses", help, f.pauses.clone());
            registry.register("ingest_erased", "Jobs erased by their tenants", f.erased.clone());
            registry.register("ingest_forgotten", "Jobs forgotten at the end of their retention", f.forgotten.clone());
            registry.register("ingest_collected_blobs", "Blobs deleted because no job relied on them", f.collected.clone());
            let help = "Bytes of blobs deleted because no job relied on them";
            registry.register_with_unit("ingest_collected", help, Unit::Bytes, f.collected_bytes.clone());
            registry.register("ingest_reclaimed_writes", "Broken writes whose room was given back", f.reclaimed.clone());
            f.keeper.register(registry);
            let help = "Units in the intake that this release cannot read and leaves there, each time that a dispatcher begins: their jobs wait until their time is over";
            registry.register("ingest_unreadable_units", help, f.unreadable.clone());
            f.standing.register(registry);
            f.edge.register(registry);
        });
        figures
    }

    /// Counts an answered call.
    pub(crate) fn called(&self, method: Method, code: tonic::Code, seconds: f64) {
        let labels = CallLabels {
            method: method.as_str(),
            code: code_word(code),
        };
        self.calls.get_or_create(&labels).inc();
        let labels = MethodLabels {
            method: method.as_str(),
        };
        self.call_seconds.get_or_create(&labels).observe(seconds);
    }

    /// Counts a call for which the blob store had no room.
    pub(crate) fn found_full(&self) {
        self.store_full.inc();
        *self.lock_full() = Some(Instant::now());
    }

    /// How long ago the blob store last had no room for a call of this process.
    pub(crate) fn since_full(&self) -> Option<Duration> {
        self.lock_full().map(|at| at.elapsed())
    }

    fn lock_full(&self) -> MutexGuard<'_, Option<Instant>> {
        // One assignment: whole after a panic elsewhere.
        let lock = self.store_full_at.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the whole backlog.
    pub(crate) fn show_backlog(&self, backlog: &[Backlog]) {
        for Backlog {
            lane: (stage, pool),
            class,
            units,
        } in backlog
        {
            let labels = BacklogLabels::of(*stage, pool, *class);
            let units = i64::try_from(*units).unwrap_or(i64::MAX);
            self.backlog_units.get_or_create(&labels).set(units);
        }
    }

    /// Shows what the open jobs still are, in milliseconds, by stage, pool and class.
    pub(crate) fn show_backlog_seconds(&self, backlog: &BTreeMap<(Stage, PoolName, Class), u64>) {
        for ((stage, pool, class), millis) in backlog {
            let labels = BacklogLabels::of(*stage, pool, *class);
            let seconds = *millis as f64 / 1000.0;
            self.backlog_seconds.get_or_create(&labels).set(seconds);
        }
    }

    /// Units held and released, where this process is the dispatcher.
    pub(crate) fn backlog(&self, stage: Stage, pool: &PoolName, class: Class) -> Option<i64> {
        let labels = BacklogLabels::of(stage, pool, class);
        self.backlog_units.get(&labels).map(|gauge| gauge.get())
    }

    /// This process is no longer the dispatcher: its figures would only be old.
    pub(crate) fn clear_backlog(&self) {
        self.backlog_units.clear();
        self.pauses.set(0);
        self.standing.clear();
    }

    /// Gives every family a value, and every value of its closed labels, so that the whole of it can be described.
    pub(crate) fn touch(&self, pool: &PoolName) {
        self.called(Method::GetJob, tonic::Code::Ok, 0.0);
        for stage in Stage::ALL {
            for class in Class::ALL {
                self.show_backlog(&[Backlog {
                    lane: (*stage, pool.clone()),
                    class: *class,
                    units: 0,
                }]);
                let nothing = BTreeMap::from([((*stage, pool.clone(), *class), 0)]);
                self.show_backlog_seconds(&nothing);
            }
        }
        self.standing.touch(pool);
    }
}

const fn code_word(code: tonic::Code) -> &'static str {
    use tonic::Code as C;
    match code {
        C::Ok => "OK",
        C::Cancelled => "CANCELLED",
        C::Unknown => "UNKNOWN",
        C::InvalidArgument => "INVALID_ARGUMENT",
        C::DeadlineExceeded => "DEADLINE_EXCEEDED",
        C::NotFound => "NOT_FOUND",
        C::AlreadyExists => "ALREADY_EXISTS",
        C::PermissionDenied => "PERMISSION_DENIED",
        C::ResourceExhausted => "RESOURCE_EXHAUSTED",
        C::FailedPrecondition => "FAILED_PRECONDITION",
        C::Aborted => "ABORTED",
        C::OutOfRange => "OUT_OF_RANGE",
        C::Unimplemented => "UNIMPLEMENTED",
        C::Internal => "INTERNAL",
        C::Unavailable => "UNAVAILABLE",
        C::DataLoss => "DATA_LOSS",
        C::Unauthenticated => "UNAUTHENTICATED",
    }
}
