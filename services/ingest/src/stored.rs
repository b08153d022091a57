//! What each tenant has stored, for its quota of stored bytes.
//!
//! The store itself is asked, again and again, for everything that it holds: contents are shared among the jobs of a tenant, and
//! go by erasure, retention and collection, so that a number which each of these had to change would soon be wrong. On top come
//! the bytes that this process has stored since the last count began, whether or not the count saw them, and those that are on
//! their way. So a number is never too small by what this process took in, is too large for no longer than until the next count,
//! and is right again after any crash. It may be too small by what the other replicas and the workers stored since.
//!
//! Before the first count of a process only what it took in itself counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use medfleet_core::TenantId;
use medfleet_runtime::Shutdown;
use medfleet_runtime::exit::chain;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::blobs::Blobs;
use crate::metrics::Figures;
use crate::quota::Quotas;

/// Time between two counts, where some tenant has a quota of stored bytes, and where the number is only shown.
const EVERY: Duration = Duration::from_secs(60);
const EVERY_UNBOUNDED: Duration = Duration::from_secs(600);
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
}

#[derive(Debug, Default)]
struct Seen {
    /// By the last count.
    counted: BTreeMap<TenantId, u64>,
    /// What came through this process since.
    came: HashMap<TenantId, Came>,
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
}

impl Seen {
    fn used(&self, tenant: &TenantId) -> u64 {
        let counted = self.counted.get(tenant).copied().unwrap_or(0);
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
        self.counted = counted;
        for came in self.came.values_mut() {
            came.stored = came.late;
        }
        self.came.retain(|_, came| *came != Came::default());
    }

    /// Without what is on its way.
    fn all(&self) -> BTreeMap<TenantId, u64> {
        let mut all = self.counted.clone();
        for (tenant, came) in &self.came {
            let used = all.entry(tenant.clone()).or_default();
            *used = used.saturating_add(came.stored);
        }
        all
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
        Ok(Held {
            stored: self.clone(),
            tenant: tenant.clone(),
            bytes,
        })
    }

    /// Whoever waits for room need not wait for the next count in its turn.
    pub(crate) fn want_count(&self) {
        self.0.wanted.notify_one();
    }

    /// What each tenant has, in bytes: by the last count, and with what came through this process since.
    pub(crate) fn all(&self) -> BTreeMap<TenantId, u64> {
        self.lock().all()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Numbers that a panic left wrong are put right by the next counts.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// So many of the bytes are in the store now.
    pub(crate) fn landed(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.stored.lock().landed(&self.tenant, bytes);
    }

    /// All of them may be in the store now.
    pub(crate) fn landed_all(mut self) {
        self.landed(self.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stored.lock().let_go(&self.tenant, self.bytes);
    }
}

/// What counts.
#[derive(Debug)]
pub(crate) struct Counting {
    pub(crate) quotas: Quotas,
    pub(crate) blobs: Blobs,
    pub(crate) figures: Figures,
}

impl Counting {
    /// Again and again until the shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let stored = self.quotas.stored();
        let every = match self.quotas.bound_stored_bytes() {
            true => EVERY,
            false => EVERY_UNBOUNDED,
        };
        let counting = async {
            loop {
                let begun = Instant::now();
                self.count(stored).await;
                let pause = begun.elapsed().saturating_mul(PAUSE_PER_COUNT);
                let pause = pause.max(PAUSE_MIN);
                sleep(pause).await;
                tokio::select! {
                    () = sleep(every.saturating_sub(pause)) => {}
                    () = stored.0.wanted.notified() => {}
                }
            }
        };
        tokio::select! {
            () = counting => {}
            () = shutdown.begun() => {}
        }
    }

    async fn count(&self, stored: &Stored) {
        stored.lock().begin_count();
        match self.blobs.stored_bytes().await {
            Ok(counted) => stored.lock().end_count(counted),
            Err(error) => tracing::warn!(
                error = chain(&error),
                "what tenants have stored could not be counted; the last count goes on to hold"
            ),
        }
        let allowed = |tenant: &TenantId| self.quotas.stored_bytes_max(tenant);
        self.figures.standing.show_stored(&stored.all(), allowed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use medfleet_core::{BlobKind, UnixMillis};
    use medfleet_runtime::{ManualClock, Metrics};
    use medfleet_store::{BlobStore, FleetKey};

    use super::*;
    use crate::config::QuotasConfig;

    const ALLOWED: u64 = 100;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    fn hold(stored: &Stored, bytes: u64) -> Result<Held, Over> {
        stored.hold(&tenant("north"), bytes, Some(ALLOWED))
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
        held.landed(25);
        assert_eq!((used(&stored), held.bytes), (100, 35));
        // The rest never came.
        drop(held);
        assert_eq!(used(&stored), 65);
        hold(&stored, 35).expect("just fits").landed_all();
        assert_eq!(used(&stored), 100);
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

    /// A count sees of what is written meanwhile as much as it happens to.
    #[test]
    fn what_lands_during_a_count_is_not_lost_and_is_not_counted_for_ever() {
        let stored = Stored::default();
        hold(&stored, 10).expect("fits").landed_all();
        stored.lock().begin_count();
        hold(&stored, 5).expect("fits").landed_all();
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
        hold(&stored, 30).expect("fits").landed_all();
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
        counting.count(quotas.stored()).await;
        assert_eq!(quotas.stored().all(), BTreeMap::from([(north.clone(), 4)]));
        let film = store.digest(&north, &Bytes::from_static(b"film")).await;
        let deleted = store.delete(&north, BlobKind::Input, &film).await;
        assert!(deleted.expect("deletes"));
        counting.count(quotas.stored()).await;
        assert!(quotas.stored().all().is_empty());
    }
}
