//! What each tenant has stored, for its quota of stored bytes.
//!
//! The store itself is asked, again and again, for everything that it holds: contents are shared among the jobs of a tenant, and
//! go by erasure, retention and collection, so that a number which each of these had to change would soon be wrong. On top come
//! the bytes that this process has stored since the last count began, whether or not the count saw them, and those that are on
//! their way. So a number is never too small by what this process took in, is too large for no longer than until the next count,
//! and is right again after any crash. It may be too small by what the other replicas and the workers stored since.
//!
//! Before the first count of a process has ended only what it took in itself counts, and nothing is shown.
//!
//! Where no tenant has such a quota nothing is listed for this: the keeper, which has to look at everything in any case, counts
//! when it sweeps.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use medfleet_core::{TenantId, chain};
use medfleet_runtime::Shutdown;
use medfleet_store::StoreError;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::blobs::Blobs;
use crate::metrics::Figures;
use crate::quota::Quotas;

/// Time between two counts.
const EVERY: Duration = Duration::from_secs(60);
/// The same after a count that broke: until the first has ended nobody is refused for what was stored before.
const EVERY_BROKEN: Duration = Duration::from_secs(15);
/// Least pause after a count, also where a tenant waits for the next one.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// A pause is at least so many times what the count took: in a store of a million objects that may be minutes.
const PAUSE_PER_COUNT: u32 = 10;

/// What tenants have stored. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    /// Somebody waits for the next count.
    wanted: Notify,
    /// Held by the one that counts.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By the last count; none before the first.
    counted: Option<BTreeMap<TenantId, u64>>,
    /// What came through this process since.
    came: HashMap<TenantId, Came>,
    /// When the next count will have ended, as far as that can be told.
    next: Option<Instant>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Came {
    /// Bytes stored since the last count began.
    stored: u64,
    /// Of these, the bytes stored since the count began that is under way.
    late: u64,
    /// Bytes on their way.
    coming: u64,
}

/// A tenant has, or would have, more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Over {
    /// Bytes that it has, with those on their way.
    pub(crate) used: u64,
    /// Bytes that it may have.
    pub(crate) allowed: u64,
}

/// Bytes of a tenant that are on their way into the store, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    stored: Stored,
    tenant: TenantId,
    bytes: u64,
    /// Of these, the bytes that are being written.
    begun: u64,
}

impl Seen {
    fn used(&self, tenant: &TenantId) -> u64 {
        let counted = self.counted.as_ref();
        let counted = counted.and_then(|counted| counted.get(tenant));
        let counted = counted.copied().unwrap_or(0);
        let came = self.came.get(tenant);
        let came = came.map_or(0, |came| came.stored.saturating_add(came.coming));
        counted.saturating_add(came)
    }

    fn hold(&mut self, tenant: &TenantId, bytes: u64, allowed: Option<u64>) -> Result<(), Over> {
        let used = self.used(tenant);
        // Also who brings nothing: what becomes of a job is stored too.
        if let Some(allowed) = allowed
            && used.saturating_add(bytes.max(1)) > allowed
        {
            return Err(Over { used, allowed });
        }
        let came = self.came.entry(tenant.clone()).or_default();
        came.coming = came.coming.saturating_add(bytes);
        Ok(())
    }

    fn landed(&mut self, tenant: &TenantId, bytes: u64) {
        let came = self.came.entry(tenant.clone()).or_default();
        came.coming = came.coming.saturating_sub(bytes);
        came.stored = came.stored.saturating_add(bytes);
        came.late = came.late.saturating_add(bytes);
    }

    fn let_go(&mut self, tenant: &TenantId, bytes: u64) {
        if let Some(came) = self.came.get_mut(tenant) {
            came.coming = came.coming.saturating_sub(bytes);
        }
    }

    fn begin_count(&mut self) {
        for came in self.came.values_mut() {
            came.late = 0;
        }
    }

    fn end_count(&mut self, counted: BTreeMap<TenantId, u64>) {
        self.counted = Some(counted);
        for came in self.came.values_mut() {
            came.stored = came.late;
        }
        self.came.retain(|_, came| *came != Came::default());
    }

    /// Without what is on its way; none before the first count.
    fn all(&self) -> Option<BTreeMap<TenantId, u64>> {
        let mut all = self.counted.clone()?;
        for (tenant, came) in &self.came {
            let used = all.entry(tenant.clone()).or_default();
            *used = used.saturating_add(came.stored);
        }
        Some(all)
    }
}

impl Stored {
    /// Takes room for bytes that a tenant is about to store, if it may have so many.
    pub(crate) fn hold(
        &self,
        tenant: &TenantId,
        bytes: u64,
        allowed: Option<u64>,
    ) -> Result<Held, Over> {
        let held = self.lock().hold(tenant, bytes, allowed);
        if let Err(over) = held {
            // Some of it may be gone since the last count: by the time that the tenant comes back it is counted anew.
            self.want_count();
            return Err(over);
        }
        Ok(self.held(tenant, bytes))
    }

    /// For who brings nothing.
    pub(crate) fn hold_nothing(&self, tenant: &TenantId) -> Held {
        self.held(tenant, 0)
    }

    fn held(&self, tenant: &TenantId, bytes: u64) -> Held {
        Held {
            stored: self.clone(),
            tenant: tenant.clone(),
            bytes,
            begun: 0,
        }
    }

    /// Whoever waits for room need not wait for the next count in its turn.
    pub(crate) fn want_count(&self) {
        self.0.wanted.notify_one();
    }

    /// What each tenant has, in bytes: by the last count, and with what came through this process since. None before the first.
    pub(crate) fn all(&self) -> Option<BTreeMap<TenantId, u64>> {
        self.lock().all()
    }

    /// How long until the next count will have ended, as far as that can be told: before that nobody who is refused has room.
    pub(crate) fn next_count_in(&self) -> Duration {
        let next = self.lock().next;
        next.map_or(Duration::ZERO, |next| {
            next.saturating_duration_since(Instant::now())
        })
    }

    fn expect_count_in(&self, time: Duration) {
        self.lock().next = Instant::now().checked_add(time);
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Numbers that a panic left wrong are put right by the next counts.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// So many of the bytes are being written from now on: whatever becomes of the call, they may come to be in the store.
    pub(crate) fn begin(&mut self, bytes: u64) {
        self.begun = self.begun.saturating_add(bytes).min(self.bytes);
    }

    /// As [`Held::begin`], for all of them.
    pub(crate) fn begin_all(&mut self) {
        self.begun = self.bytes;
    }

    /// What was being written is in the store now, or may be.
    pub(crate) fn landed(&mut self) {
        let bytes = std::mem::take(&mut self.begun);
        self.bytes -= bytes;
        self.stored.lock().landed(&self.tenant, bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.landed();
        self.stored.lock().let_go(&self.tenant, self.bytes);
    }
}

/// Counts what each tenant has stored, again and again.
#[derive(Debug, Clone)]
pub(crate) struct Counting {
    pub(crate) quotas: Quotas,
    pub(crate) blobs: Blobs,
    pub(crate) figures: Figures,
}

impl Counting {
    /// Again and again until the shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let counting = async {
            let mut took = Duration::ZERO;
            loop {
                took = self.count_and_pause(took).await;
            }
        };
        tokio::select! {
            () = counting => {}
            () = shutdown.begun() => {}
        }
    }

    /// Gives what the count took; `last` is what the one before took.
    async fn count_and_pause(&self, last: Duration) -> Duration {
        let stored = self.quotas.stored();
        let begun = Instant::now();
        stored.expect_count_in(last);
        let every = match self.count().await {
            Ok(_) => EVERY,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "what tenants have stored could not be counted; the last count goes on to hold"
                );
                EVERY_BROKEN
            }
        };
        let took = begun.elapsed();
        let pause = took.saturating_mul(PAUSE_PER_COUNT).max(PAUSE_MIN);
        stored.expect_count_in(pause.saturating_add(took));
        sleep(pause).await;
        tokio::select! {
            () = sleep(every.saturating_sub(pause)) => {}
            () = stored.0.wanted.notified() => {}
        }
        took
    }

    /// Looks at everything that is stored, and shows what there is. One at a time: a second count would forget what the first
    /// may have missed.
    pub(crate) async fn count(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        let stored = self.quotas.stored();
        let _turn = stored.0.counting.lock().await;
        stored.lock().begin_count();
        let counted = self.blobs.stored_bytes().await?;
        stored.lock().end_count(counted.clone());
        self.show();
        Ok(counted)
    }

    /// Another process counts: what this one knows would only grow old, unless it counts for itself.
    pub(crate) fn leave_to_others(&self) {
        if !self.quotas.bound_stored_bytes() {
            self.quotas.stored().lock().counted = None;
            self.show();
        }
    }

    fn show(&self) {
        let stored = self.quotas.stored().all().unwrap_or_default();
        let allowed = |tenant: &TenantId| self.quotas.stored_bytes_max(tenant);
        self.figures.standing.show_stored(&stored, allowed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use medfleet_core::setting::ByteSize;
    use medfleet_core::{BlobKind, UnixMillis};
    use medfleet_runtime::{ManualClock, Metrics};
    use medfleet_store::{BlobStore, FleetKey};

    use super::*;
    use crate::config::{Quota, QuotasConfig};
    use crate::error::Refusal;
    use crate::quota::COUNT_WAITED_FOR_MAX;

    const ALLOWED: u64 = 100;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    fn hold(stored: &Stored, bytes: u64) -> Result<Held, Over> {
        stored.hold(&tenant("north"), bytes, Some(ALLOWED))
    }

    /// Stores so many bytes.
    fn land(stored: &Stored, bytes: u64) {
        let mut held = hold(stored, bytes).expect("fits");
        held.begin_all();
    }

    fn count(stored: &Stored, bytes: u64) {
        let counted = BTreeMap::from([(tenant("north"), bytes)]);
        stored.lock().end_count(counted);
    }

    fn used(stored: &Stored) -> u64 {
        stored.lock().used(&tenant("north"))
    }

    #[test]
    fn what_is_stored_and_what_is_on_its_way_is_as_much_as_is_allowed() {
        let stored = Stored::default();
        stored.lock().begin_count();
        count(&stored, 40);
        let mut held = hold(&stored, 60).expect("just fits");
        let over = Over {
            used: 100,
            allowed: ALLOWED,
        };
        assert_eq!(hold(&stored, 1).expect_err("it is full"), over);
        // A job brings forth more than it brings.
        assert_eq!(hold(&stored, 0).expect_err("it is full"), over);
        held.begin(25);
        held.landed();
        assert_eq!((used(&stored), held.bytes), (100, 35));
        // The rest never came.
        drop(held);
        assert_eq!(used(&stored), 65);
        land(&stored, 35);
        assert_eq!(used(&stored), 100);
    }

    /// Its caller hung up, which keeps no write from its end.
    #[test]
    fn what_was_being_written_when_its_call_broke_is_counted() {
        let stored = Stored::default();
        let mut held = hold(&stored, 60).expect("fits");
        held.begin(20);
        drop(held);
        assert_eq!(used(&stored), 20);
    }

    #[test]
    fn a_tenant_without_a_quota_and_another_one_are_never_over() {
        let stored = Stored::default();
        count(&stored, 1_000);
        assert!(hold(&stored, 0).is_err());
        let other = stored.hold(&tenant("south"), ALLOWED, Some(ALLOWED));
        let unbounded = stored.hold(&tenant("north"), u64::MAX, None);
        assert!(other.is_ok() && unbounded.is_ok());
    }

    #[test]
    fn before_the_first_count_nothing_is_known_but_what_came_since() {
        let stored = Stored::default();
        land(&stored, 40);
        assert_eq!((stored.all(), used(&stored)), (None, 40));
        assert!(hold(&stored, 61).is_err());
        stored.lock().begin_count();
        count(&stored, 70);
        assert_eq!(stored.all(), Some(BTreeMap::from([(tenant("north"), 70)])));
    }

    #[test]
    fn who_is_refused_is_told_to_come_when_it_is_counted_anew() {
        let config = QuotasConfig {
            default: Quota {
                stored_bytes_max: Some(ByteSize::from_bytes(ALLOWED)),
                ..Quota::default()
            },
            ..QuotasConfig::default()
        };
        let clock = Arc::new(ManualClock::at(UnixMillis(0)));
        let quotas = Quotas::new(config, PAUSE_MIN, clock);
        count(quotas.stored(), ALLOWED);
        let told = || match quotas.hold(&tenant("north"), 1) {
            Err(Refusal::Stored { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        };
        assert_eq!(told(), PAUSE_MIN);
        quotas.stored().expect_count_in(COUNT_WAITED_FOR_MAX / 2);
        assert!(told() > COUNT_WAITED_FOR_MAX / 4, "{:?}", told());
        quotas.stored().expect_count_in(COUNT_WAITED_FOR_MAX * 60);
        assert_eq!(told(), COUNT_WAITED_FOR_MAX);
        quotas.stored().expect_count_in(Duration::ZERO);
        assert_eq!(told(), PAUSE_MIN);
    }

    /// A count sees of what is written meanwhile as much as it happens to.
    #[test]
    fn what_lands_during_a_count_is_not_lost_and_is_not_counted_for_ever() {
        let stored = Stored::default();
        land(&stored, 10);
        stored.lock().begin_count();
        land(&stored, 5);
        assert_eq!(used(&stored), 15);
        // It saw the first and missed the second.
        count(&stored, 10);
        assert_eq!(used(&stored), 15);
        stored.lock().begin_count();
        // It saw both of them.
        count(&stored, 15);
        assert_eq!(used(&stored), 15);
        assert!(stored.lock().came.is_empty(), "nothing is kept of it");
    }

    #[test]
    fn a_count_that_breaks_changes_nothing() {
        let stored = Stored::default();
        stored.lock().begin_count();
        count(&stored, 10);
        let _coming = hold(&stored, 20).expect("fits");
        land(&stored, 30);
        for _ in 0..3 {
            stored.lock().begin_count();
            assert_eq!(used(&stored), 60);
        }
        // What was erased is out of the next one that ends; what is on its way is not in any.
        count(&stored, 0);
        assert_eq!(used(&stored), 20);
    }

    #[tokio::test]
    async fn who_is_refused_finds_a_count_that_is_wanted() {
        let stored = Stored::default();
        count(&stored, ALLOWED);
        hold(&stored, 1).expect_err("it is full");
        stored.0.wanted.notified().await;
    }

    #[tokio::test]
    async fn the_store_is_what_says_how_much_there_is() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let clock = Arc::new(ManualClock::at(UnixMillis(0)));
        let quotas = Quotas::new(QuotasConfig::default(), PAUSE_MIN, clock);
        let counting = Counting {
            quotas: quotas.clone(),
            blobs: Blobs::new(store.clone()),
            figures: Figures::new(&Metrics::new()),
        };
        let north = tenant("north");
        for _ in 0..2 {
            let film = Bytes::from_static(b"film");
            let put = store.put(&north, BlobKind::Input, film);
            put.await.expect("stores");
        }
        let counted = BTreeMap::from([(north.clone(), 4)]);
        assert_eq!(counting.count().await.expect("counts"), counted);
        assert_eq!(quotas.stored().all(), Some(counted));
        let film = store.digest(&north, &Bytes::from_static(b"film")).await;
        let deleted = store.delete(&north, BlobKind::Input, &film).await;
        assert!(deleted.expect("deletes"));
        assert!(counting.count().await.expect("counts").is_empty());
        assert_eq!(quotas.stored().all(), Some(BTreeMap::new()));
    }
}
