//! How the fleet stands: what waits and since when, who works, how full the queue is. Looked at every few seconds by
//! `census`; a label that has nothing to say any more disappears.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use medfleet_core::{Class, PoolName, Stage, TenantId};
use medfleet_queue::{DEAD_STREAM, StreamUsage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::BacklogLabels;
use crate::roster::Crew;

/// Tenants with a label of their own: those with most of what is shown. All others are one.
const TENANTS_MAX: usize = 20;
/// The label of all others; no tenant can be called this.
const OTHERS: &str = "_other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CrewLabels {
    stage: &'static str,
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabel {
    stream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct TenantLabel {
    tenant: String,
}

/// A gauge by tenant.
#[derive(Debug, Clone, Default)]
struct ByTenant {
    gauges: Family<TenantLabel, Gauge>,
    /// The labels that it has.
    labels: Arc<Mutex<BTreeSet<TenantLabel>>>,
}

impl ByTenant {
    /// Shows these, and no others any more.
    fn show(&self, shown: BTreeMap<TenantLabel, i64>) {
        // Labels only: whatever a panic left is as good as any.
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        labels.retain(|label| {
            let stays = shown.contains_key(label);
            if !stays {
                self.gauges.remove(label);
            }
            stays
        });
        for (label, value) in shown {
            self.gauges.get_or_create(&label).set(value);
            labels.insert(label);
        }
    }

    /// Gives it a value, so that it can be described.
    fn touch(&self) {
        let label = TenantLabel {
            tenant: OTHERS.to_owned(),
        };
        self.gauges.get_or_create(&label).set(0);
    }
}

/// The gauges. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    oldest_seconds: Family<BacklogLabels, Gauge<f64, AtomicU64>>,
    workers: Family<CrewLabels, Gauge>,
    worker_slots: Family<CrewLabels, Gauge>,
    worker_slots_busy: Family<CrewLabels, Gauge>,
    stream_messages: Family<StreamLabel, Gauge>,
    stream_bytes: Family<StreamLabel, Gauge>,
    stream_limit_bytes: Family<StreamLabel, Gauge>,
    stream_limit_messages: Family<StreamLabel, Gauge>,
    open_jobs: ByTenant,
    stored_bytes: ByTenant,
    stored_limit_bytes: ByTenant,
    dead_letters: Gauge,
    writable: Gauge,
}

impl Standing {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Time since the oldest unfinished unit came to its stage; only the dispatcher reports it";
        let oldest = self.oldest_seconds.clone();
        registry.register_with_unit("oldest_unit_age", help, Unit::Seconds, oldest);
        let help = "Workers that said within the last seconds that they are there";
        registry.register("workers", help, self.workers.clone());
        let help = "Slots of these workers";
        registry.register("worker_slots", help, self.worker_slots.clone());
        let help = "Slots of these workers that are at work";
        registry.register("worker_slots_busy", help, self.worker_slots_busy.clone());
        let help = "Messages in a stream of the queue";
        registry.register("queue_stream_messages", help, self.stream_messages.clone());
        let help = "Bytes in a stream of the queue";
        let bytes = self.stream_bytes.clone();
        registry.register_with_unit("queue_stream", help, Unit::Bytes, bytes);
        let help = "Bytes that a stream of the queue may hold; a full one takes nothing more";
        let bytes = self.stream_limit_bytes.clone();
        registry.register_with_unit("queue_stream_limit", help, Unit::Bytes, bytes);
        let help = "Messages that a stream of the queue may hold, of those that have such a limit: the intakes";
        let messages = self.stream_limit_messages.clone();
        registry.register("queue_stream_limit_messages", help, messages);
        let help = "Jobs that have not ended, by tenant; every replica reports all, and tenants beyond the twenty largest are one";
        registry.register("open_jobs", help, self.open_jobs.gauges.clone());
        let help = "Bytes that the store holds of a tenant, as the replica counted last; tenants beyond the twenty largest are one";
        let bytes = self.stored_bytes.gauges.clone();
        registry.register_with_unit("stored", help, Unit::Bytes, bytes);
        let help = "Bytes that the store may hold of a tenant, of those of the twenty largest that have such a quota";
        let bytes = self.stored_limit_bytes.gauges.clone();
        registry.register_with_unit("stored_limit", help, Unit::Bytes, bytes);
        let help = "Dead letters that nobody has replayed or put away";
        registry.register("dead_letters", help, self.dead_letters.clone());
        let help = "1 while the queue takes writes";
        registry.register("queue_writable", help, self.writable.clone());
    }

    pub(crate) fn show_oldest(&self, stage: Stage, pool: &PoolName, class: Class, seconds: f64) {
        let labels = BacklogLabels::of(stage, pool, class);
        self.oldest_seconds.get_or_create(&labels).set(seconds);
    }

    pub(crate) fn show_crews(&self, crews: &BTreeMap<(Stage, PoolName), Crew>) {
        for ((stage, pool), crew) in crews {
            let labels = CrewLabels {
                stage: stage.as_str(),
                pool: pool.to_string(),
            };
            let of = [
                (&self.workers, crew.workers),
                (&self.worker_slots, crew.slots),
                (&self.worker_slots_busy, crew.busy),
            ];
            for (family, value) in of {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                family.get_or_create(&labels).set(value);
            }
        }
    }

    pub(crate) fn show_usage(&self, usage: &[StreamUsage]) {
        for stream in usage {
            let label = StreamLabel {
                stream: stream.stream.clone(),
            };
            let set = |family: &Family<StreamLabel, Gauge>, value: u64| {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                family.get_or_create(&label).set(value);
            };
            set(&self.stream_messages, stream.messages);
            set(&self.stream_bytes, stream.bytes);
            if let Some(bytes_max) = stream.bytes_max {
                set(&self.stream_limit_bytes, bytes_max);
            }
            if let Some(messages_max) = stream.messages_max {
                set(&self.stream_limit_messages, messages_max);
            }
        }
        if let Some(letters) = dead_letters(usage) {
            let letters = i64::try_from(letters).unwrap_or(i64::MAX);
            self.dead_letters.set(letters);
        }
    }

    pub(crate) fn show_writable(&self, is_writable: bool) {
        self.writable.set(i64::from(is_writable));
    }

    pub(crate) fn show_open<'a>(&self, tenants: impl Iterator<Item = (&'a TenantId, u64)>) {
        self.open_jobs.show(capped(tenants));
    }

    /// What tenants have stored, and what each may, where it has a quota.
    pub(crate) fn show_stored(
        &self,
        stored: &BTreeMap<TenantId, u64>,
        allowed: impl Fn(&TenantId) -> Option<u64>,
    ) {
        let shown = capped(stored.iter().map(|(tenant, bytes)| (tenant, *bytes)));
        let limits = stored.keys().filter_map(|tenant| {
            let limit = i64::try_from(allowed(tenant)?).unwrap_or(i64::MAX);
            let label = TenantLabel {
                tenant: tenant.to_string(),
            };
            shown.contains_key(&label).then_some((label, limit))
        });
        self.stored_limit_bytes.show(limits.collect());
        self.stored_bytes.show(shown);
    }

    /// This process is no longer the dispatcher: what only the dispatcher knows would only be old.
    pub(crate) fn clear(&self) {
        self.oldest_seconds.clear();
    }

    /// Gives every family a value, and every value of its closed labels, so that the whole of it can be described.
    pub(super) fn touch(&self, pool: &PoolName) {
        for stage in Stage::ALL {
            for class in Class::ALL {
                self.show_oldest(*stage, pool, *class, 0.0);
            }
            let key = (*stage, pool.clone());
            self.show_crews(&BTreeMap::from([(key, Crew::default())]));
        }
        self.show_usage(&[StreamUsage {
            stream: DEAD_STREAM.to_owned(),
            messages: 0,
            bytes: 0,
            last_sequence: 0,
            bytes_max: Some(0),
            messages_max: Some(0),
        }]);
        for gauge in [
            &self.open_jobs,
            &self.stored_bytes,
            &self.stored_limit_bytes,
        ] {
            gauge.touch();
        }
    }
}

/// Dead letters among the streams. None where their stream is not among them: a server of a cluster leaves out one that has no
/// leader at the moment.
fn dead_letters(usage: &[StreamUsage]) -> Option<u64> {
    let dead = usage.iter().find(|stream| stream.stream == DEAD_STREAM);
    dead.map(|stream| stream.messages)
}

/// The largest by name, the others together.
fn capped<'a>(counts: impl Iterator<Item = (&'a TenantId, u64)>) -> BTreeMap<TenantLabel, i64> {
    let mut counts: Vec<(&TenantId, u64)> = counts.filter(|(_, count)| *count > 0).collect();
    counts.sort_by_key(|(tenant, count)| (std::cmp::Reverse(*count), *tenant));
    let mut shown = BTreeMap::new();
    for (place, (tenant, count)) in counts.into_iter().enumerate() {
        let tenant = if place < TENANTS_MAX {
            tenant.to_string()
        } else {
            OTHERS.to_owned()
        };
        let sum: &mut i64 = shown.entry(TenantLabel { tenant }).or_default();
        *sum = sum.saturating_add(i64::try_from(count).unwrap_or(i64::MAX));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_largest_share_a_label() {
        let names: Vec<TenantId> = (0..30)
            .map(|number| TenantId::new(format!("t{number:02}")).expect("a name"))
            .collect();
        // The later a tenant, the more it has.
        let open = names.iter().zip(1..);
        let standing = Standing::default();
        standing.show_open(open);
        let labels = || standing.open_jobs.labels.lock().expect("no panic").len();
        assert_eq!(labels(), TENANTS_MAX + 1);
        let of = |tenant: &str| {
            let label = TenantLabel {
                tenant: tenant.to_owned(),
            };
            let gauge = standing.open_jobs.gauges.get(&label);
            gauge.map(|gauge| gauge.get())
        };
        assert_eq!(of("t29"), Some(30));
        assert_eq!(of("t00"), None);
        assert_eq!(of(OTHERS), Some((1..=10).sum()));
        assert!(TenantId::new(OTHERS).is_err(), "no tenant is called this");

        standing.show_open([(&names[0], 1)].into_iter());
        assert_eq!(of("t00"), Some(1));
        assert_eq!(labels(), 1, "who has none has no label");
    }

    #[test]
    fn dead_letters_stay_where_their_stream_is_left_out() {
        let standing = Standing::default();
        let stream = |stream: &str, messages| StreamUsage {
            stream: stream.to_owned(),
            messages,
            bytes: 0,
            last_sequence: messages,
            bytes_max: None,
            messages_max: None,
        };
        let check = |usage: &[StreamUsage], expected| {
            standing.show_usage(usage);
            assert_eq!(standing.dead_letters.get(), expected, "{usage:?}");
        };
        check(&[stream(DEAD_STREAM, 3), stream("EVENTS", 7)], 3);
        check(&[stream("EVENTS", 8)], 3);
        check(&[stream(DEAD_STREAM, 0)], 0);
    }

    #[test]
    fn what_a_tenant_may_store_is_shown_beside_what_it_has() {
        let name = |name: &str| TenantId::new(name).expect("a name");
        let standing = Standing::default();
        let check = |stored: [u64; 2], expected: [Option<i64>; 2]| {
            let stored = [(name("north"), stored[0]), (name("south"), stored[1])];
            let allowed = |tenant: &TenantId| (tenant.as_str() == "south").then_some(100);
            standing.show_stored(&BTreeMap::from(stored), allowed);
            let of = |gauge: &ByTenant, tenant: &str| {
                let label = TenantLabel {
                    tenant: tenant.to_owned(),
                };
                let gauge = gauge.gauges.get(&label);
                gauge.map(|gauge| gauge.get())
            };
            let found = ["north", "south"].map(|tenant| of(&standing.stored_bytes, tenant));
            assert_eq!(found, expected);
            let limits = ["north", "south"].map(|tenant| of(&standing.stored_limit_bytes, tenant));
            assert_eq!(limits, [None, expected[1].map(|_| 100)]);
        };
        check([7, 120], [Some(7), Some(120)]);
        // All of it was erased.
        check([8, 0], [Some(8), None]);
    }
}
