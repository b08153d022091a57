//! Keeps the ledger of open jobs true: every event as it comes, and all records at the start and whenever events may have
//! been missed. Shows what it says as the backlog, on every replica and at all times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use medfleet_core::{JobKey, JobRecord, PoolName, TenantId, UnixMillis, chain};
use medfleet_proto::work::v1::JobEvent;
use medfleet_queue::Queue;
use medfleet_runtime::Shutdown;
use tokio::sync::Notify;

use crate::convert;
use crate::metrics::Figures;
use crate::unit::ledger::{Ledger, Open, Sighting};

/// How often the backlog is shown.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// The open jobs. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenJobs {
    ledger: Arc<Mutex<Ledger>>,
    missed: Arc<Notify>,
}

impl OpenJobs {
    /// Takes an event, right when it comes: none of those that come is left out.
    pub(crate) fn take(&self, key: &JobKey, event: &JobEvent) {
        if convert::is_final(event) {
            self.lock().end(key, event.epoch);
        } else if let Some(sighting) = convert::sighting(event) {
            self.lock().take(key, sighting);
        }
    }

    /// Events may have been missed.
    pub(crate) fn missed(&self) {
        self.missed.notify_one();
    }

    /// How many jobs of a tenant have not ended.
    pub(crate) fn count(&self, tenant: &TenantId) -> u64 {
        self.lock().open_jobs(tenant)
    }

    /// As [`Ledger::has_few`].
    pub(crate) fn has_few(&self, tenant: &TenantId) -> bool {
        self.lock().has_few(tenant)
    }

    /// The jobs of each tenant that have not ended.
    pub(crate) fn counts(&self) -> HashMap<TenantId, Open> {
        let ledger = self.lock();
        let counts = ledger.counts();
        counts
            .map(|(tenant, open)| (tenant.clone(), open))
            .collect()
    }

    /// Jobs whose time is over.
    pub(crate) fn due(&self, now: UnixMillis) -> Vec<(JobKey, u32)> {
        self.lock().due(now)
    }

    /// Takes a record as it was read.
    pub(crate) fn take_record(&self, key: &JobKey, record: &JobRecord) {
        self.lock().take(key, Sighting::from(record));
    }

    /// Ends a round and begins the next. Gives the jobs that have not come further in the one that ends.
    pub(crate) fn next_round(&self) -> Vec<JobKey> {
        self.lock().next_round()
    }

    /// Whether a job has come no further in the round under way either.
    pub(crate) fn stands_still(&self, key: &JobKey) -> bool {
        self.lock().stands_still(key)
    }

    /// A job has ended, whether or not its event has come.
    pub(crate) fn end(&self, key: &JobKey, epoch: u32) {
        self.lock().end(key, epoch);
    }

    /// Reads all records whenever events may have been missed, until the shutdown.
    pub(crate) async fn follow(self, queue: Queue, shutdown: Shutdown) {
        let follow = async {
            loop {
                self.missed.notified().await;
                self.lock().begin_scan();
                let mut pages = queue.scan_records();
                while let Some(page) = pages.next().await {
                    let mut ledger = self.lock();
                    for (key, record) in page {
                        ledger.take(&key, Sighting::from(&record));
                    }
                }
                self.look_again(&queue).await;
                self.lock().end_scan();
            }
        };
        tokio::select! {
            () = follow => {}
            () = shutdown.begun() => {}
        }
    }

    /// Asks for the records of the jobs that the scan has not found: a server that is behind the others may have answered it,
    /// which knows nothing of the latest. What is forgotten here counts as no open job, and nobody ends it for its time.
    async fn look_again(&self, queue: &Queue) {
        let unseen = self.lock().unseen();
        for key in unseen {
            match queue.record(&key).await {
                Ok(Some((record, _))) => self.lock().take(&key, Sighting::from(&record)),
                Ok(None) => {}
                // Nobody has said that it is gone, and nothing reads all records again soon.
                Err(error) if error.is_transient() => self.lock().keep(&key),
                Err(error) => tracing::warn!(
                    error = chain(&error),
                    job = %key.job,
                    "an open job's record could not be read, and it counts no more"
                ),
            }
        }
    }

    /// Shows the backlog until the shutdown.
    pub(crate) async fn show(self, pools: Vec<PoolName>, figures: Figures, shutdown: Shutdown) {
        loop {
            {
                let ledger = self.lock();
                figures.show_backlog_seconds(&ledger.backlog(&pools));
                figures.standing.show_open(ledger.tenants());
            }
            tokio::select! {
                () = tokio::time::sleep(SHOW_EVERY) => {}
                () = shutdown.begun() => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Counts that a panic left wrong are put right by the next scan.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
