//! What ingest asks of the blob store: studies in, results and the text so far out.

use std::collections::BTreeMap;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use medfleet_core::{BlobKind, Digest, JobId, JobKey, TenantId, UnixMillis};
use medfleet_store::{
    BackendError, BlobStore, Collected, Erased, Holder, Named, Relied, StoreError,
};
use medfleet_worker::text_key;

use crate::error::Refusal;

/// The blob store as ingest uses it.
#[derive(Debug, Clone)]
pub(crate) struct Blobs(BlobStore);

impl Blobs {
    pub(crate) const fn new(store: BlobStore) -> Self {
        Self(store)
    }

    pub(crate) async fn put(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        content: Bytes,
    ) -> Result<Digest, StoreError> {
        self.0.put(tenant, kind, content).await
    }

    /// None when it is gone: erased, or past its retention.
    pub(crate) async fn get(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<Option<Bytes>, StoreError> {
        match self.0.get(tenant, kind, digest).await {
            Ok(content) => Ok(Some(content)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The name that a content has, without storing it.
    pub(crate) async fn digest(&self, tenant: &TenantId, content: &Bytes) -> Digest {
        self.0.digest(tenant, content).await
    }

    /// Stores what a job brings, under the names that [`Blobs::digest`] gave; the job relies on it, and on `parts`, from now on.
    /// False when a part is gone.
    pub(crate) async fn keep(
        &self,
        key: &JobKey,
        contents: Vec<Named>,
        parts: &[(BlobKind, Digest)],
    ) -> Result<bool, StoreError> {
        let nothing = ready(Ok(()));
        match self.0.keep_named(key, contents, parts, nothing).await {
            Ok(()) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The job that was never accepted relies on nothing.
    pub(crate) async fn release(&self, key: &JobKey) -> Result<(), StoreError> {
        self.0.release(&key.tenant, &key.job).await
    }

    /// As [`Blobs::release`], of what was listed of the job.
    pub(crate) async fn release_holder(&self, holder: &Holder) -> Result<(), StoreError> {
        self.0.release_holder(holder).await
    }

    /// From now on nothing can be kept for the job.
    pub(crate) async fn bury(&self, key: &JobKey) -> Result<(), StoreError> {
        self.0.bury(&key.tenant, &key.job).await
    }

    /// Whatever only this job relies on goes. `relied` goes from one job of the tenant to the next.
    pub(crate) async fn erase(
        &self,
        key: &JobKey,
        relied: &mut Relied,
    ) -> Result<Erased, StoreError> {
        self.0.erase_among(&key.tenant, &key.job, relied).await
    }

    /// The tombstone goes, once no work of the job can be anywhere.
    pub(crate) async fn unbury(&self, key: &JobKey) -> Result<(), StoreError> {
        self.0.remove_tombstone(&key.tenant, &key.job).await
    }

    pub(crate) async fn stored_bytes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        self.0.stored_bytes().await
    }

    pub(crate) async fn holders(
        &self,
        tenant: &TenantId,
    ) -> Result<BTreeMap<JobId, Holder>, StoreError> {
        self.0.holders(tenant).await
    }

    pub(crate) async fn tombstones(
        &self,
        tenant: &TenantId,
    ) -> Result<Vec<(JobId, UnixMillis)>, StoreError> {
        self.0.tombstones(tenant).await
    }

    pub(crate) async fn collect(
        &self,
        tenant: &TenantId,
        older_than: Duration,
        now: UnixMillis,
    ) -> Result<Collected, StoreError> {
        self.0.collect(tenant, older_than, now).await
    }

    pub(crate) async fn reclaim(&self, now: UnixMillis) -> Result<u64, StoreError> {
        self.0.reclaim(now).await
    }

    /// Removes the text that the job's attempts of an epoch have stored. True when there was one.
    pub(crate) async fn delete_text(&self, key: &JobKey, epoch: u32) -> Result<bool, StoreError> {
        let text = text_key(&key.job, epoch);
        self.0
            .delete_mutable(&key.tenant, BlobKind::Text, &text)
            .await
    }

    /// The text that the job's current attempt has written so far, as an encoded `TextChunk` of offset 0.
    pub(crate) async fn text_checkpoint(
        &self,
        key: &JobKey,
        epoch: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        self.0
            .get_mutable(&key.tenant, BlobKind::Text, &text_key(&key.job, epoch))
            .await
    }

    /// The list of a chunk's tokens that an encoder of a hospital's edge has left, as an encoded `TokensManifest`.
    pub(crate) async fn tokens_list(
        &self,
        tenant: &TenantId,
        name: &[u8],
    ) -> Result<Option<Bytes>, StoreError> {
        self.0
            .get_mutable(tenant, BlobKind::TokensOfChunk, name)
            .await
    }

    /// Stores the text that the job's current attempt has written so far, as an encoded `TextChunk` of offset 0.
    pub(crate) async fn put_text(
        &self,
        key: &JobKey,
        epoch: u32,
        text: Bytes,
    ) -> Result<(), StoreError> {
        let name = text_key(&key.job, epoch);
        let put = self.0.put_mutable_of(key, BlobKind::Text, &name, text);
        put.await.map(drop)
    }

    /// Refuses what would not fit; what other callers bring meanwhile may still fill the store first.
    pub(crate) async fn check_headroom(&self, bytes: u64) -> Result<(), Refusal> {
        match self.0.headroom().await? {
            Some(free) if free < bytes => Err(Refusal::Store(StoreError::Full { bytes, free })),
            _ => Ok(()),
        }
    }
}

/// Whether there is no room now.
pub(crate) const fn is_full(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Full { .. } | StoreError::Backend(BackendError::Full)
    )
}
