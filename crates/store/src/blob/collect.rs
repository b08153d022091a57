//! What removes blobs: collection of what nobody references, and erasure of what one job referenced.
//!
//! Collection deletes a blob only when no reference names it and it is older than the longest job. Putting or referencing
//! a blob makes it young, so a job that begins to rely on an old blob during a collection keeps it. The blob's age is
//! asked once more just before the delete; what remains is the time between that question and the delete, milliseconds,
//! in which a put of exactly that blob could be answered "already there". Its job then fails closed with a missing blob.
//!
//! Erasure deletes young blobs too. It looks for references until just before the deletes (of many jobs it reads each list
//! once, and lists the names again for each), and keeps a blob that was put or made young after it had begun: somebody else
//! may be about to rely on it. What it keeps so, it leaves with the job's reference, for the erasure that follows: that of the
//! job's own late worker, or the next sweep's.
//!
//! Its tombstone needs room. Where there is none, the job's blobs are deleted first to make it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use medfleet_core::{BlobKind, JobId, TenantId, UnixMillis};

use super::references::ERASED;
use super::relied::{Held, Relied};
use super::{BlobStore, StoreError, blob_name};
use crate::backend::{BackendError, Name};

/// No younger blob is collected, whatever the caller asks for. Taking a reference relies on it: it does not refresh blobs that are
/// much younger than this.
pub const COLLECT_AGE_MIN: Duration = Duration::from_secs(3600);
/// Most milliseconds between the writing of a list and that of a blob that it names: they are written at the same time.
const LANDING_MILLIS: i64 = 60 * 1_000;

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs looked at.
    pub seen: u64,
    pub deleted: u64,
    pub deleted_bytes: u64,
}

/// What an erasure did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Erased {
    pub deleted: u64,
    /// Blobs kept because another job references them too, or because they were put during the erasure.
    pub kept: u64,
}

impl BlobStore {
    /// What each tenant that has anything stored has, in bytes: contents, whoever wrote them, and lists of references. Looks at
    /// everything that is stored; what is written or removed meanwhile may or may not be in it.
    pub async fn stored_bytes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        let used = self.inner.backend.used_by_owner().await?.into_iter();
        // What is not under a tenant's name is not ours.
        let ours = used.filter_map(|(owner, bytes)| Some((TenantId::new(owner).ok()?, bytes)));
        Ok(ours.collect())
    }

    /// Deletes the tenant's blobs that no job references and that are older than `older_than`, which must be longer than
    /// the longest job and counts as at least [`COLLECT_AGE_MIN`]. `now` is compared with the place's clock.
    ///
    /// # Errors
    /// [`StoreError::CorruptReferences`] before anything is deleted; the place's failure, after which it can be repeated.
    pub async fn collect(
        &self,
        tenant: &TenantId,
        older_than: Duration,
        now: UnixMillis,
    ) -> Result<Collected, StoreError> {
        let age_min =
            i64::try_from(older_than.max(COLLECT_AGE_MIN).as_millis()).unwrap_or(i64::MAX);
        let is_old = |modified: UnixMillis| now.0.saturating_sub(modified.0) > age_min;
        let mut relied = Relied::default();
        self.read_references(tenant, &mut relied).await?;
        let mut collected = Collected::default();
        for kind in BlobKind::ALL {
            let mut blobs = self.list(tenant, *kind);
            while let Some(blob) = blobs.next().await {
                let blob = blob?;
                collected.seen += 1;
                if !is_old(blob.modified) || relied.has(&(*kind, blob.digest)) {
                    continue;
                }
                // The list may be minutes old by now.
                let now_there = self.head(tenant, *kind, &blob.digest).await?;
                if now_there.is_none_or(|head| !is_old(head.modified)) {
                    continue;
                }
                if self.delete(tenant, *kind, &blob.digest).await? {
                    self.inner.room.removed(blob.bytes);
                    collected.deleted += 1;
                    collected.deleted_bytes += blob.bytes;
                }
            }
        }
        Ok(collected)
    }

    /// Deletes every blob that only this job references, lets go of the rest, and leaves a tombstone: from then on nothing
    /// can be referenced for the job. Repeating it after a failure finishes it.
    ///
    /// # Errors
    /// [`StoreError::CorruptReferences`] or the place's failure.
    pub async fn erase(&self, tenant: &TenantId, job: &JobId) -> Result<Erased, StoreError> {
        self.erase_among(tenant, job, &mut Relied::default()).await
    }

    /// As [`BlobStore::erase`], for one of many jobs of the tenant. The caller passes the same `relied` for each of them, so
    /// that the other jobs' lists are read only once.
    pub async fn erase_among(
        &self,
        tenant: &TenantId,
        job: &JobId,
        relied: &mut Relied,
    ) -> Result<Erased, StoreError> {
        // The tombstone comes first, so that a stage that is still at work cannot bring anything back after the deletes.
        let begun = self.begin_erasure(tenant, job).await?;
        let held = self.held_by(tenant, job, relied).await?;
        let (erased, is_done) = self.delete_held(tenant, &held, begun).await?;
        // Only the lists that were read here are deleted. A late worker that has written another one since finds the tombstone, and
        // erases the job again by that list.
        if is_done {
            for list in &held.lists {
                self.inner.backend.delete(list).await?;
                relied.remove(list);
            }
        }
        Ok(erased)
    }

    /// Deletes what only one job holds, unless it was put after `begun`. False when such a blob was kept.
    async fn delete_held(
        &self,
        tenant: &TenantId,
        held: &Held,
        begun: UnixMillis,
    ) -> Result<(Erased, bool), StoreError> {
        let mut erased = Erased::default();
        let mut is_done = true;
        for ((kind, digest), is_shared) in &held.blobs {
            if *is_shared {
                erased.kept += 1;
                continue;
            }
            let (name, backend) = (blob_name(tenant, *kind, digest), &self.inner.backend);
            // The version is read before the age: a job that comes to rely on the blob from now on changes the version, and the
            // delete then does nothing.
            let version = backend.version(&name).await?;
            let Some((version, head)) = version.zip(self.head(tenant, *kind, digest).await?) else {
                continue;
            };
            // A put in the same tick of the place's clock as `begun` counts as older. That is safe: a job that relies on such a
            // blob writes its list at the same time, before both readings.
            if head.modified <= begun && backend.delete_version(&name, &version).await? {
                self.inner.room.removed(head.bytes);
                erased.deleted += 1;
            } else if self.exists(tenant, *kind, digest).await? {
                erased.kept += 1;
                is_done = false;
            }
        }
        Ok((erased, is_done))
    }

    /// Deletes what only this job holds before it has a tombstone, to make room for one. Without a tombstone the present time of
    /// the place is unknown. So blobs that may have been put after the job's latest list stay, as do the lists, for the erasure
    /// itself.
    async fn make_room(&self, tenant: &TenantId, job: &JobId) -> Result<(), StoreError> {
        let mut relied = Relied::default();
        let held = self.held_by(tenant, job, &mut relied).await?;
        let landed = UnixMillis(held.latest.0.saturating_add(LANDING_MILLIS));
        self.delete_held(tenant, &held, landed).await?;
        Ok(())
    }

    /// Leaves the job's tombstone, or refreshes the one that is there, and gives the place's time of that. A job may be erased more
    /// than once, and each erasure has to know what was put since its own beginning.
    async fn begin_erasure(
        &self,
        tenant: &TenantId,
        job: &JobId,
    ) -> Result<UnixMillis, StoreError> {
        let (name, backend) = (tombstone(tenant, job), &self.inner.backend);
        if backend.head(&name).await?.is_none() {
            self.bury(tenant, job).await?;
        }
        // A tombstone that was just put is refreshed too: the time that a folder gives a written file is coarser, and a little
        // behind.
        let refreshed = match backend.refresh(&name).await {
            Err(BackendError::Full) => {
                self.make_room(tenant, job).await?;
                backend.refresh(&name).await
            }
            refreshed => refreshed,
        };
        if !refreshed? {
            self.bury(tenant, job).await?;
        }
        let left = backend.head(&name).await?;
        // If the tombstone was removed meanwhile the time is unknown, and everything counts as put since.
        Ok(left.map_or(UnixMillis(i64::MIN), |left| left.modified))
    }

    /// The erased jobs of a tenant, each with the time of its latest erasure, finished or not.
    pub async fn tombstones(
        &self,
        tenant: &TenantId,
    ) -> Result<Vec<(JobId, UnixMillis)>, StoreError> {
        let mut found = Vec::new();
        let mut entries = self.inner.backend.list(&format!("{tenant}/{ERASED}"));
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            let job = entry.name.as_str().rsplit('/').next();
            let job = job.and_then(|job| JobId::new(job).ok());
            found.extend(job.map(|job| (job, entry.modified)));
        }
        Ok(found)
    }

    /// Removes a tombstone. Call it only once no work on its job can be left anywhere.
    pub async fn remove_tombstone(&self, tenant: &TenantId, job: &JobId) -> Result<(), StoreError> {
        self.inner.backend.delete(&tombstone(tenant, job)).await?;
        Ok(())
    }

    /// Gives back what crashed writers left in the place that no name leads to and that is older than [`COLLECT_AGE_MIN`]. Gives
    /// how many writes that were.
    pub async fn reclaim(&self, now: UnixMillis) -> Result<u64, StoreError> {
        let age = i64::try_from(COLLECT_AGE_MIN.as_millis()).unwrap_or(i64::MAX);
        let before = UnixMillis(now.0.saturating_sub(age));
        Ok(self.inner.backend.reclaim(before).await?)
    }

    /// Leaves the tombstone of a job that is about to be erased: from now on nothing can be referenced for it. In a place
    /// without room for it, what only the job relies on is deleted first.
    ///
    /// # Errors
    /// The place's failure. It is full only if none of the job's blobs could be deleted.
    pub async fn bury(&self, tenant: &TenantId, job: &JobId) -> Result<(), StoreError> {
        let (name, backend) = (tombstone(tenant, job), &self.inner.backend);
        match backend.put(&name, Bytes::new()).await {
            Err(BackendError::Full) => {
                self.make_room(tenant, job).await?;
                backend.put(&name, Bytes::new()).await?;
            }
            buried => buried?,
        }
        Ok(())
    }

    pub async fn is_erased(&self, tenant: &TenantId, job: &JobId) -> Result<bool, StoreError> {
        Ok(self
            .inner
            .backend
            .head(&tombstone(tenant, job))
            .await?
            .is_some())
    }
}

pub(super) fn tombstone(tenant: &TenantId, job: &JobId) -> Name {
    Name::of(&[tenant.as_str(), ERASED, job.as_str()])
}
