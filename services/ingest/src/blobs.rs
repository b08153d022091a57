//! What ingest asks of the blob store: studies in, results and the text so far out.

use std::future::ready;

use bytes::Bytes;
use medfleet_core::{BlobKind, Digest, JobKey, TenantId};
use medfleet_store::{BackendError, BlobStore, StoreError};

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

    /// Stores what a job brings; the job relies on it, and on `parts`, from now on. False when a part is gone.
    pub(crate) async fn keep(
        &self,
        key: &JobKey,
        contents: Vec<(BlobKind, Bytes)>,
        parts: &[(BlobKind, Digest)],
    ) -> Result<bool, StoreError> {
        let nothing = ready(Ok(()));
        match self.0.keep(key, contents, parts, nothing).await {
            Ok(_) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The job that was never accepted relies on nothing.
    pub(crate) async fn release(&self, key: &JobKey) -> Result<(), StoreError> {
        self.0.release(&key.tenant, &key.job).await
    }

    /// The text that the job's current attempt has written so far, as an encoded `TextChunk` of offset 0.
    pub(crate) async fn text_checkpoint(
        &self,
        key: &JobKey,
        epoch: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        self.0
            .get_mutable(&key.tenant, BlobKind::Text, &text_key(key, epoch))
            .await
    }

    /// Refuses what would not fit; what other callers bring meanwhile may still fill the store first.
    pub(crate) async fn check_headroom(&self, bytes: u64) -> Result<(), Refusal> {
        match self.0.headroom().await? {
            Some(free) if free < bytes => Err(Refusal::Store(StoreError::Full { bytes, free })),
            _ => Ok(()),
        }
    }
}

/// The key under which decode stores the text so far: `<job>.<epoch>`.
fn text_key(key: &JobKey, epoch: u32) -> Vec<u8> {
    format!("{}.{epoch}", key.job).into_bytes()
}

/// Whether there is no room now.
pub(crate) const fn is_full(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Full { .. } | StoreError::Backend(BackendError::Full)
    )
}
