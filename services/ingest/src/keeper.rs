//! Keeps what is stored for as long as the operator says, and no longer; one replica at a time, by lease.
//!
//! A sweep does, tenant by tenant: jobs that ended longer ago than their retention are forgotten (record first, so that
//! nothing can start them over; then their dead letters, texts and references); jobs that have no record and references
//! have their dead letters removed, and their references let go;
//! erasures that broke are finished; blobs that nobody relies on and that are older than the longest job are deleted.
//! Each step can be repeated, and two keepers at a time do no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{JobId, JobKey, JobRecord, TenantId, UnixMillis, chain};
use medfleet_queue::{Queue, Revision};
use medfleet_runtime::{Clock, Shutdown};
use medfleet_store::{COLLECT_AGE_MIN, Holder, Relied};

use crate::blobs::Blobs;
use crate::config::RetentionConfig;
use crate::erase;
use crate::error::Refusal;
use crate::metrics::Figures;
use crate::stored::Counting;

/// Name of the lease.
const LEASE: &str = "keeper";
/// How far this machine's clock may be ahead of the queue's. Whatever is dated by another clock is deleted too early by as much.
const AHEAD_MAX: Duration = Duration::from_secs(10 * 60);

/// The jobs of a tenant that rely on something.
type Holders = BTreeMap<JobId, Holder>;

/// What keeping needs.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    pub(crate) config: RetentionConfig,
    /// The longest life of a job: no younger blob is deleted.
    pub(crate) time_to_live_max: Duration,
    pub(crate) queue: Queue,
    pub(crate) blobs: Blobs,
    /// Shows what tenants have stored: a sweep looks at all of it.
    pub(crate) counting: Counting,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) figures: Figures,
    pub(crate) shutdown: Shutdown,
    /// Tells this process from others.
    pub(crate) holder: String,
}

impl Keeper {
    /// Sweeps again and again until the shutdown.
    pub(crate) async fn run(self) {
        let every = self.config.sweep_every.get();
        self.figures.keeper.interval.set(every.as_secs_f64());
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = self.shutdown.begun() => return,
            }
            self.sweep_in_turn().await;
        }
    }

    /// One sweep, unless another process is at one.
    async fn sweep_in_turn(&self) {
        let mut lease = match self.queue.try_lease(LEASE, &self.holder).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return self.counting.leave_to_others(),
            Err(error) => return self.not_finished(&chain(&error)),
        };
        self.sweep_while(lease.hold()).await;
        if let Err(error) = lease.release().await {
            tracing::debug!(error = chain(&error), "the keeper's lease ends by itself");
        }
    }

    /// One sweep, cut off where `held` ends first.
    async fn sweep_while(&self, held: impl Future<Output = ()>) {
        tokio::select! {
            () = self.sweep_or_tell() => {}
            () = held => self.not_finished("the keeper's lease was lost"),
            () = self.shutdown.begun() => {}
        }
    }

    /// One sweep; one that does not come to its end is counted as what it leaves is.
    async fn sweep_or_tell(&self) {
        if let Err(error) = self.sweep_in_time().await {
            self.not_finished(&chain(&error));
        }
    }

    fn not_finished(&self, error: &str) {
        self.figures.keeper.failures.inc();
        tracing::warn!(error, "the sweep of stored data could not finish");
    }

    /// As [`Keeper::sweep`], unless this machine's clock is far ahead: what has become old by a wrong clock is gone for good.
    async fn sweep_in_time(&self) -> Result<(), Refusal> {
        let (own, queue) = (self.clock.now(), self.queue.time().await?);
        if is_older(queue, AHEAD_MAX, own) {
            self.figures.keeper.failures.inc();
            tracing::error!(
                ahead_seconds = own.0.saturating_sub(queue.0) / 1_000,
                "this machine's clock is ahead of the queue's: nothing that is stored is deleted by it"
            );
            return Ok(());
        }
        self.sweep().await
    }

    /// One pass over everything that is stored.
    pub(crate) async fn sweep(&self) -> Result<(), Refusal> {
        for tenant in self.counting.count().await?.into_keys() {
            // What cannot be read of one tenant is no reason to keep what others want gone.
            if let Err(error) = self.sweep_tenant(&tenant).await {
                self.left_undone("a tenant's stored data", (&tenant, None), &error);
            }
        }
        let reclaimed = self.blobs.reclaim(self.clock.now()).await?;
        self.figures.reclaimed.inc_by(reclaimed);
        self.figures.keeper.sweeps.inc();
        Ok(())
    }

    async fn sweep_tenant(&self, tenant: &TenantId) -> Result<(), Refusal> {
        let holders = self.blobs.holders(tenant).await?;
        for (job, holder) in &holders {
            let key = JobKey::new(tenant.clone(), job.clone());
            let swept = self.sweep_job(&key, holder).await;
            self.go_on("a job's stored data", &key, swept)?;
        }
        self.sweep_tombstones(tenant, &holders).await?;
        let (age, now) = (self.time_to_live_max, self.clock.now());
        let collected = self.blobs.collect(tenant, age, now).await?;
        self.figures.collected.inc_by(collected.deleted);
        self.figures.collected_bytes.inc_by(collected.deleted_bytes);
        Ok(())
    }

    /// A job that relies on something.
    async fn sweep_job(&self, key: &JobKey, holder: &Holder) -> Result<(), Refusal> {
        let now = self.clock.now();
        match self.queue.record(key).await? {
            Some((record, revision)) if self.is_over(&key.tenant, &record, now) => {
                self.forget(key, (&record, revision), holder).await
            }
            Some(_) => Ok(()),
            // Not a job that is being accepted just now, whose references come before its record.
            None if is_older(holder.latest, COLLECT_AGE_MIN, now) => {
                // Whoever forgot it may have come no further than its record.
                self.queue.discard_dead_of(key).await?;
                Ok(self.blobs.release_holder(holder).await?)
            }
            None => Ok(()),
        }
    }

    /// What fails for a while ends the sweep of a tenant, because the next step would fail too; what cannot be read is left.
    fn go_on(
        &self,
        what: &'static str,
        key: &JobKey,
        done: Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        match done {
            Err(error) if !error.is_transient() => {
                self.left_undone(what, (&key.tenant, Some(&key.job)), &error);
                Ok(())
            }
            done => done,
        }
    }

    fn left_undone(
        &self,
        what: &'static str,
        (tenant, job): (&TenantId, Option<&JobId>),
        error: &Refusal,
    ) {
        self.figures.keeper.failures.inc();
        tracing::warn!(
            error = chain(error),
            what,
            %tenant,
            job = job.map(display),
            "a sweep left something as it was"
        );
    }

    /// Finishes erasures that broke, and drops tombstones that nothing can run into any more.
    async fn sweep_tombstones(&self, tenant: &TenantId, holders: &Holders) -> Result<(), Refusal> {
        let mut relied = Relied::default();
        for (job, buried) in self.blobs.tombstones(tenant).await? {
            let relies = holders.contains_key(&job);
            let key = JobKey::new(tenant.clone(), job);
            let swept = self
                .sweep_tombstone(&key, buried, relies, &mut relied)
                .await;
            self.go_on("an erased job", &key, swept)?;
        }
        Ok(())
    }

    /// `relies`: whether the job had references when the sweep of its tenant began. `relied` goes from one job to the next.
    async fn sweep_tombstone(
        &self,
        key: &JobKey,
        buried: UnixMillis,
        relies: bool,
        relied: &mut Relied,
    ) -> Result<(), Refusal> {
        let now = self.clock.now();
        match self.queue.record(key).await? {
            Some((record, _)) if record.erased.is_some() && !relies => {}
            Some((record, _)) => {
                // It broke before the record was marked: unmarked, the job could be started over without its inputs.
                let record = match record.erased {
                    Some(_) => record,
                    None => erase::mark(&self.queue, &self.blobs, key, now).await?,
                };
                erase::remove(&self.queue, &self.blobs, (key, &record), relied).await?;
            }
            None if is_older(buried, self.time_to_live_max, now) => self.blobs.unbury(key).await?,
            None if relies => {
                self.blobs.erase(key, relied).await?;
            }
            None => {}
        }
        Ok(())
    }

    fn is_over(&self, tenant: &TenantId, record: &JobRecord, now: UnixMillis) -> bool {
        let keep = self.config.keep(tenant, record.class);
        let finished = record.times.finished.unwrap_or_default();
        // Whoever ended it may have a clock that is far behind; the accept was dated by the queue's.
        let ended = finished.max(record.times.accepted);
        // Nothing else says what a hub still has to erase.
        record.state.is_final() && !record.owes_erasure() && is_older(ended, keep, now)
    }

    /// The record goes first, unless it has changed since it was read: a job that was just started over stays.
    async fn forget(
        &self,
        key: &JobKey,
        (record, revision): (&JobRecord, Revision),
        holder: &Holder,
    ) -> Result<(), Refusal> {
        self.queue.remove_record(key, revision).await?;
        if self.queue.record(key).await?.is_some() {
            return Ok(());
        }
        self.queue.discard_dead_of(key).await?;
        erase::remove_texts(&self.blobs, key, record).await?;
        self.blobs.release_holder(holder).await?;
        self.figures.forgotten.inc();
        Ok(())
    }
}

fn is_older(at: UnixMillis, age: Duration, now: UnixMillis) -> bool {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    now.0.saturating_sub(at.0) > age
}

#[cfg(test)]
mod tests;
