//! What one tenant may send in a minute, so that no neighbour can fill the fleet. Counted by each replica for itself: with N
//! of them behind one address a tenant may send up to N times as much. Open jobs are counted over all replicas, and stored bytes
//! by what the store holds (`stored`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use medfleet_core::setting::ByteSize;
use medfleet_core::{Class, TenantId, UnixMillis};
use medfleet_runtime::Clock;

use crate::config::{Quota, QuotasConfig};
use crate::error::Refusal;
use crate::stored::{Held, Over, Stored};

/// The time that a quota is for.
const WINDOW: Duration = Duration::from_secs(60);
/// Longest time that a tenant is told to wait for the next count of what is stored. Another quota, with a restart, may let it in
/// sooner than a count that takes hours.
pub(crate) const COUNT_WAITED_FOR_MAX: Duration = Duration::from_secs(600);

/// Counts what tenants send. All clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Quotas {
    config: Arc<QuotasConfig>,
    /// What a tenant is told to wait that has as many open jobs, or as much stored, as it may have; for the latter at least.
    retry_after: Duration,
    clock: Arc<dyn Clock>,
    spent: Arc<Mutex<HashMap<TenantId, Spent>>>,
    stored: Stored,
}

#[derive(Debug, Default)]
struct Spent {
    jobs: Bucket,
    stat: Bucket,
    bytes: Bucket,
}

/// What is in it runs out evenly: a full minute's worth in a minute.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bucket {
    level: f64,
    at: UnixMillis,
}

impl Bucket {
    /// What is in it now. A clock that was set back empties nothing, and nothing is waited for twice.
    fn run_out(&mut self, per_window: u64, now: UnixMillis) {
        let passed = now.0.saturating_sub(self.at.0).max(0) as f64 / 1000.0;
        self.level = (self.level - passed * per_second(per_window)).max(0.0);
        self.at = now;
    }

    /// How long until `amount` fits; nothing when it does. What is larger than the whole bucket fits when it is empty.
    fn wait(&self, amount: u64, per_window: u64) -> Option<Duration> {
        let most = per_window as f64;
        let over = self.level + (amount as f64).min(most) - most;
        (over > 0.0).then(|| Duration::from_secs_f64(over / per_second(per_window)))
    }
}

fn per_second(per_window: u64) -> f64 {
    per_window as f64 / WINDOW.as_secs_f64()
}

/// What is to be counted: of which bucket, how much, and how much fits.
struct Charge {
    bucket: fn(&mut Spent) -> &mut Bucket,
    what: &'static str,
    amount: u64,
    most: Option<u64>,
}

impl Quotas {
    pub(crate) fn new(config: QuotasConfig, retry_after: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            config: Arc::new(config),
            retry_after,
            clock,
            spent: Arc::default(),
            stored: Stored::default(),
        }
    }

    /// Takes room for bytes that a tenant is about to store, if it may have so many.
    pub(crate) fn hold(&self, tenant: &TenantId, bytes: u64) -> Result<Held, Refusal> {
        let most = self.stored_bytes_max(tenant);
        // Nothing that is erased would make it fit.
        if let Some(most) = most.filter(|most| bytes > *most) {
            return Err(Refusal::TooLarge {
                what: "what this tenant stores (its quota stored_bytes_max)",
                allowed: ByteSize::from_bytes(most).to_string(),
            });
        }
        let counted_in = self.stored.next_count_in().min(COUNT_WAITED_FOR_MAX);
        let over = |Over { used, allowed }| Refusal::Stored {
            used,
            brings: bytes,
            allowed,
            // Before it is counted anew nothing can be known to be gone.
            retry_after: self.retry_after.max(counted_in),
        };
        self.stored.hold(tenant, bytes, most).map_err(over)
    }

    /// For who brings nothing that has not found its room already: refused by no quota of stored bytes.
    pub(crate) fn hold_nothing(&self, tenant: &TenantId) -> Held {
        self.stored.hold_nothing(tenant)
    }

    /// What tenants have stored.
    pub(crate) const fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Bytes that a tenant may have stored; none without a quota.
    pub(crate) fn stored_bytes_max(&self, tenant: &TenantId) -> Option<u64> {
        self.of(tenant).stored_bytes_max.map(ByteSize::get)
    }

    /// Whether any tenant has a quota of stored bytes.
    pub(crate) fn bound_stored_bytes(&self) -> bool {
        let mut all = self.config.tenants.values().chain([&self.config.default]);
        all.any(|quota| quota.stored_bytes_max.is_some())
    }

    /// Something of a tenant's was erased.
    pub(crate) fn made_room(&self, tenant: &TenantId) {
        if self.stored_bytes_max(tenant).is_some() {
            self.stored.want_count();
        }
    }

    /// Counts a new job, which would be accepted in this class, with the bytes inside its request: both or neither. A STAT job does
    /// not count as a job where it counts for itself.
    pub(crate) fn job(&self, tenant: &TenantId, bytes: u64, class: Class) -> Result<(), Refusal> {
        let quota = self.of(tenant);
        let most = quota.jobs_per_minute.map(u64::from);
        let job = Charge {
            bucket: |spent| &mut spent.jobs,
            what: "jobs a minute",
            amount: 1,
            most: most.filter(|_| !counts_for_itself(quota, class)),
        };
        self.charge(tenant, &[job, of_bytes(quota, bytes)])
    }

    /// The class in which a new job would be accepted now: in STAT only within its tenant's budget. Counts nothing.
    pub(crate) fn class_now(&self, tenant: &TenantId, asked: Class) -> Class {
        let (Class::Stat, Some(most)) = (asked, self.of(tenant).stat_per_minute) else {
            return asked;
        };
        let (most, now) = (u64::from(most), self.clock.now());
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let is_left = spent.get_mut(tenant).is_none_or(|spent| {
            spent.stat.run_out(most, now);
            spent.stat.wait(1, most).is_none()
        });
        match most > 0 && is_left {
            true => Class::Stat,
            false => Class::Urgent,
        }
    }

    /// Whether a tenant has a budget of STAT jobs.
    pub(crate) fn bound_stat(&self, tenant: &TenantId) -> bool {
        self.of(tenant).stat_per_minute.is_some()
    }

    /// Counts a job of class STAT; false when it is more than its tenant's budget.
    pub(crate) fn stat(&self, tenant: &TenantId) -> bool {
        let job = Charge {
            bucket: |spent| &mut spent.stat,
            what: "STAT jobs a minute",
            amount: 1,
            most: self.of(tenant).stat_per_minute.map(u64::from),
        };
        self.of(tenant).stat_per_minute != Some(0) && self.charge(tenant, &[job]).is_ok()
    }

    /// A STAT job that was counted has not come to be.
    pub(crate) fn stat_unspent(&self, tenant: &TenantId) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spent) = spent.get_mut(tenant) {
            spent.stat.level = (spent.stat.level - 1.0).max(0.0);
        }
    }

    /// Whether a tenant with so many open jobs may have one more, which would be accepted in this class.
    pub(crate) fn one_more(
        &self,
        tenant: &TenantId,
        open: u64,
        class: Class,
    ) -> Result<(), Refusal> {
        let quota = self.of(tenant);
        match quota.open_jobs_max {
            Some(most) if open >= u64::from(most) && !counts_for_itself(quota, class) => {
                Err(Refusal::Quota {
                    what: "open jobs",
                    retry_after: self.retry_after,
                })
            }
            _ => Ok(()),
        }
    }

    /// Counts bytes of a new upload.
    pub(crate) fn bytes(&self, tenant: &TenantId, count: u64) -> Result<(), Refusal> {
        self.charge(tenant, &[of_bytes(self.of(tenant), count)])
    }

    fn of(&self, tenant: &TenantId) -> &Quota {
        let of_tenant = self.config.tenants.get(tenant.as_str());
        of_tenant.unwrap_or(&self.config.default)
    }

    fn charge(&self, tenant: &TenantId, charges: &[Charge]) -> Result<(), Refusal> {
        if charges.iter().all(|charge| charge.most.is_none()) {
            return Ok(());
        }
        let now = self.clock.now();
        // Numbers only: whatever a panic left is as good as any.
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = spent.entry(tenant.clone()).or_default();
        for charge in charges {
            let Some(most) = charge.most else { continue };
            let bucket = (charge.bucket)(spent);
            bucket.run_out(most, now);
            if let Some(retry_after) = bucket.wait(charge.amount, most) {
                let what = charge.what;
                return Err(Refusal::Quota { what, retry_after });
            }
        }
        for charge in charges.iter().filter(|charge| charge.most.is_some()) {
            (charge.bucket)(spent).level += charge.amount as f64;
        }
        Ok(())
    }
}

/// Whether the other quotas of jobs are not for one of this class: a tenant's routine work keeps out no STAT job within its budget
/// of these. Without a budget nothing else would bound them.
fn counts_for_itself(quota: &Quota, class: Class) -> bool {
    class == Class::Stat && quota.stat_per_minute.is_some()
}

fn of_bytes(quota: &Quota, amount: u64) -> Charge {
    Charge {
        bucket: |spent| &mut spent.bytes,
        what: "bytes a minute",
        amount,
        most: quota.bytes_per_minute.map(|size| size.get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    /// Adds where it fits, else says how long until it would.
    fn add(bucket: &mut Bucket, amount: u64, at: i64) -> Result<(), Duration> {
        bucket.run_out(60, UnixMillis(at));
        match bucket.wait(amount, 60) {
            Some(wait) => Err(wait),
            None => {
                bucket.level += amount as f64;
                Ok(())
            }
        }
    }

    #[test]
    fn a_minutes_worth_at_once_then_evenly() {
        let mut bucket = Bucket::default();
        let start = 10 * MINUTE;
        assert_eq!(add(&mut bucket, 60, start), Ok(()));
        assert_eq!(add(&mut bucket, 1, start), Err(Duration::from_secs(1)));
        let early = add(&mut bucket, 10, start + 4_000);
        assert_eq!(early, Err(Duration::from_secs(6)));
        assert_eq!(add(&mut bucket, 10, start + 10_000), Ok(()));
        assert_eq!(add(&mut bucket, 60, start + 10_000 + MINUTE), Ok(()));
    }

    #[test]
    fn what_is_larger_than_a_minutes_worth_goes_alone() {
        let mut bucket = Bucket::default();
        assert_eq!(add(&mut bucket, 600, 10 * MINUTE), Ok(()));
        // Ten minutes' worth has to run out first.
        let wait = add(&mut bucket, 60, 10 * MINUTE);
        assert_eq!(wait, Err(Duration::from_secs(600)));
    }

    #[test]
    fn a_clock_that_goes_back_neither_gives_away_nor_locks_out() {
        let mut bucket = Bucket::default();
        assert_eq!(add(&mut bucket, 60, 100 * MINUTE), Ok(()));
        let back = 10 * MINUTE;
        assert_eq!(add(&mut bucket, 1, back), Err(Duration::from_secs(1)));
        assert_eq!(add(&mut bucket, 1, back + 1_000), Ok(()));
    }

    #[derive(Debug)]
    struct Still;

    impl Clock for Still {
        fn now(&self) -> UnixMillis {
            UnixMillis(MINUTE)
        }
    }

    /// The quotas of one tenant, while time stands still.
    fn still(quota: Quota) -> (Quotas, TenantId) {
        let config = QuotasConfig {
            default: quota,
            ..QuotasConfig::default()
        };
        let quotas = Quotas::new(config, Duration::from_secs(5), Arc::new(Still));
        (quotas, TenantId::new("st-mary").expect("a tenant"))
    }

    #[test]
    fn stat_jobs_have_a_budget() {
        let check = |budget, expected: [bool; 3]| {
            let (quotas, tenant) = still(Quota {
                stat_per_minute: budget,
                ..Quota::default()
            });
            assert_eq!([(); 3].map(|()| quotas.stat(&tenant)), expected);
        };
        check(None, [true; 3]);
        check(Some(2), [true, true, false]);
        check(Some(0), [false; 3]);
    }

    #[test]
    fn open_jobs_have_a_limit_that_stat_within_its_budget_passes() {
        let check = |budget: Option<u32>, open: u64, asked: Class, is_let_in: bool| {
            let (quotas, tenant) = still(Quota {
                open_jobs_max: Some(2),
                stat_per_minute: budget,
                ..Quota::default()
            });
            let class = quotas.class_now(&tenant, asked);
            let found = match quotas.one_more(&tenant, open, class) {
                Ok(()) => true,
                Err(Refusal::Quota {
                    what: "open jobs", ..
                }) => false,
                refused => panic!("{refused:?}"),
            };
            assert_eq!(found, is_let_in, "{budget:?}, {open}, {asked}");
        };
        check(None, 1, Class::Routine, true);
        check(None, 2, Class::Routine, false);
        check(Some(1), 2, Class::Urgent, false);
        check(Some(1), 2, Class::Stat, true);
        check(Some(0), 2, Class::Stat, false);
        // Nothing else would bound them.
        check(None, 2, Class::Stat, false);
    }

    #[test]
    fn stat_within_its_budget_is_kept_out_by_no_other_jobs_of_the_minute() {
        let check = |budget: Option<u32>, is_let_in: bool| {
            let (quotas, tenant) = still(Quota {
                jobs_per_minute: Some(1),
                stat_per_minute: budget,
                ..Quota::default()
            });
            assert!(quotas.job(&tenant, 0, Class::Routine).is_ok());
            assert!(quotas.job(&tenant, 0, Class::Routine).is_err());
            let class = quotas.class_now(&tenant, Class::Stat);
            let found = quotas.job(&tenant, 0, class).is_ok();
            assert_eq!(found, is_let_in, "{budget:?}");
        };
        check(Some(1), true);
        check(Some(0), false);
        check(None, false);
    }

    #[test]
    fn what_class_a_job_would_have_costs_nothing() {
        let (quotas, tenant) = still(Quota {
            stat_per_minute: Some(1),
            ..Quota::default()
        });
        let check = |asked, expected| assert_eq!(quotas.class_now(&tenant, asked), expected);
        check(Class::Stat, Class::Stat);
        check(Class::Stat, Class::Stat);
        assert!(quotas.stat(&tenant));
        check(Class::Stat, Class::Urgent);
        check(Class::Bulk, Class::Bulk);
    }

    #[test]
    fn what_cannot_fit_whatever_is_erased_is_not_to_be_sent_again() {
        let (quotas, tenant) = still(Quota {
            stored_bytes_max: Some(ByteSize::from_bytes(100)),
            ..Quota::default()
        });
        let check = |bytes, is_too_large: bool| {
            let refused = quotas.hold(&tenant, bytes);
            let found = match &refused {
                Err(Refusal::TooLarge { .. }) => true,
                Err(Refusal::Stored { .. }) => false,
                _ => panic!("{bytes}: {refused:?}"),
            };
            assert_eq!(found, is_too_large, "{bytes}");
        };
        check(101, true);
        let held = quotas.hold(&tenant, 60).expect("there is room");
        check(100, false);
        check(41, false);
        drop(held);
        assert!(quotas.hold(&tenant, 100).is_ok());
        let other = TenantId::new("st-john").expect("a tenant");
        assert!(quotas.bound_stored_bytes() && quotas.stored_bytes_max(&other) == Some(100));
    }

    #[test]
    fn a_refused_job_costs_no_bytes() {
        let (quotas, tenant) = still(Quota {
            jobs_per_minute: Some(1),
            bytes_per_minute: Some(ByteSize::from_bytes(100)),
            ..Quota::default()
        });
        assert!(quotas.job(&tenant, 40, Class::Routine).is_ok());
        for _ in 0..5 {
            let refused = quotas.job(&tenant, 40, Class::Routine);
            assert!(matches!(
                refused,
                Err(Refusal::Quota {
                    what: "jobs a minute",
                    ..
                })
            ));
        }
        assert!(quotas.bytes(&tenant, 60).is_ok(), "only 40 were spent");
        assert!(quotas.bytes(&tenant, 1).is_err());
    }
}
