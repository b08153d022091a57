//! What one tenant may send in a minute, so that no neighbour can fill the fleet. Counted by each replica for itself: with N
//! of them behind one address a tenant may send up to N times as much.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use medfleet_core::{TenantId, UnixMillis};
use medfleet_runtime::Clock;

use crate::config::{Quota, QuotasConfig};
use crate::error::Refusal;

/// The time that a quota is for.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts what tenants send. All clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Quotas {
    config: Arc<QuotasConfig>,
    clock: Arc<dyn Clock>,
    spent: Arc<Mutex<HashMap<TenantId, Spent>>>,
}

#[derive(Debug, Default)]
struct Spent {
    jobs: Bucket,
    bytes: Bucket,
}

/// What is in it runs out evenly: a full minute's worth in a minute.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bucket {
    level: f64,
    at: UnixMillis,
}

impl Bucket {
    /// Adds `amount`, unless that would make it run over; then says when it will not. What is larger than the whole bucket
    /// is let in when it is empty.
    fn add(&mut self, amount: u64, per_window: u64, now: UnixMillis) -> Result<(), Duration> {
        let (amount, most) = (amount as f64, per_window as f64);
        let passed = now.0.saturating_sub(self.at.0).max(0) as f64 / 1000.0;
        let per_second = most / WINDOW.as_secs_f64();
        let level = (self.level - passed * per_second).max(0.0);
        let over = level + amount.min(most) - most;
        if over > 0.0 {
            return Err(Duration::from_secs_f64(over / per_second));
        }
        *self = Self {
            level: level + amount,
            at: now,
        };
        Ok(())
    }
}

impl Quotas {
    pub(crate) fn new(config: QuotasConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            config: Arc::new(config),
            clock,
            spent: Arc::default(),
        }
    }

    /// Counts a new job.
    pub(crate) fn job(&self, tenant: &TenantId) -> Result<(), Refusal> {
        let most = self.of(tenant).jobs_per_minute.map(u64::from);
        self.spend(tenant, most, 1, |spent| &mut spent.jobs)
            .map_err(|retry_after| Refusal::Quota {
                what: "jobs a minute",
                retry_after,
            })
    }

    /// Counts bytes that are sent for the first time.
    pub(crate) fn bytes(&self, tenant: &TenantId, count: u64) -> Result<(), Refusal> {
        let most = self.of(tenant).bytes_per_minute.map(|size| size.get());
        self.spend(tenant, most, count, |spent| &mut spent.bytes)
            .map_err(|retry_after| Refusal::Quota {
                what: "bytes a minute",
                retry_after,
            })
    }

    fn of(&self, tenant: &TenantId) -> &Quota {
        let of_tenant = self.config.tenants.get(tenant.as_str());
        of_tenant.unwrap_or(&self.config.default)
    }

    fn spend(
        &self,
        tenant: &TenantId,
        most: Option<u64>,
        amount: u64,
        bucket: impl FnOnce(&mut Spent) -> &mut Bucket,
    ) -> Result<(), Duration> {
        let Some(most) = most else {
            return Ok(());
        };
        // Numbers only: whatever a panic left is as good as any.
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        bucket(spent.entry(tenant.clone()).or_default()).add(amount, most, self.clock.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    #[test]
    fn a_minutes_worth_at_once_then_evenly() {
        let mut bucket = Bucket::default();
        let mut add = |amount, at| bucket.add(amount, 60, UnixMillis(at));
        let start = 10 * MINUTE;
        assert_eq!(add(60, start), Ok(()));
        assert_eq!(add(1, start), Err(Duration::from_secs(1)));
        assert_eq!(add(10, start + 4_000), Err(Duration::from_secs(6)));
        assert_eq!(add(10, start + 10_000), Ok(()));
        assert_eq!(add(60, start + 10_000 + MINUTE), Ok(()));
    }

    #[test]
    fn what_is_larger_than_a_minutes_worth_goes_alone() {
        let mut bucket = Bucket::default();
        let start = UnixMillis(10 * MINUTE);
        assert_eq!(bucket.add(600, 60, start), Ok(()));
        // Ten minutes' worth has to run out first.
        let wait = bucket.add(60, 60, start);
        assert_eq!(wait, Err(Duration::from_secs(600)));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_away() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.add(60, 60, UnixMillis(10 * MINUTE)), Ok(()));
        assert!(bucket.add(1, 60, UnixMillis(9 * MINUTE)).is_err());
    }
}
