//! What is stored is what was put: a read checks it and deletes what is damaged, and a put mends it.

use bytes::Bytes;
use medfleet_core::{BlobKind, Digest, TenantId, chain};

use super::{BlobStore, StoreError, blob_name};
use crate::backend::{BackendError, Entry, Name};

impl BlobStore {
    /// Reads a content and checks it against its name. One that is corrupt is deleted, so that no look takes it for what is
    /// there already; what a put has made of it meanwhile is not, and is read in its place.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Corrupt`], [`StoreError::TooLarge`] or the place's failure.
    pub async fn get(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<Bytes, StoreError> {
        if let Some(content) = self.read_sound(tenant, kind, digest).await? {
            return Ok(content);
        }
        // Once more before it is deleted: it may have been changed on its way here only. Whoever reads at the same time as it is
        // put again must not delete what was put: that is of another version than what was there before this read.
        let (name, backend) = (blob_name(tenant, kind, digest), &self.inner.backend);
        let version = backend.version(&name).await?;
        if let Some(content) = self.read_sound(tenant, kind, digest).await? {
            return Ok(content);
        }
        let deleted = match &version {
            Some(version) => backend.delete_version(&name, version).await,
            None => Ok(false),
        };
        match deleted {
            Ok(true) => tracing::warn!(%kind, %digest, "a corrupt blob was deleted"),
            Ok(false) => {
                if let Some(content) = self.read_sound(tenant, kind, digest).await? {
                    return Ok(content);
                }
            }
            Err(error) => tracing::warn!(
                error = chain(&error),
                %kind,
                %digest,
                "a corrupt blob stays"
            ),
        }
        Err(StoreError::Corrupt {
            kind,
            digest: *digest,
        })
    }

    /// Reads a content; none when it is not what its name says.
    async fn read_sound(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<Option<Bytes>, StoreError> {
        let bytes_max = self.inner.limits.blob_bytes_max;
        match self.read(tenant, kind, digest, bytes_max).await {
            Ok(Some(content)) => {
                let is_sound = self.digest(tenant, &content).await == *digest;
                Ok(is_sound.then_some(content))
            }
            Ok(None) => Err(StoreError::Missing {
                kind,
                digest: *digest,
            }),
            Err(StoreError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores a content where this was found. A place whose blobs cannot be made young without their bytes gets them anyway,
    /// which also mends what was damaged: comparing first would read in vain, from S3 as much again as is written. Where they
    /// can, reading costs less than the synced or replicated write that it saves, and nothing else tells damage: a folder has
    /// no checksums, and JetStream's entry keeps the digest of what was put, not of what its chunks are now.
    pub(super) async fn put_over(
        &self,
        kind: BlobKind,
        name: &Name,
        there: Option<&Entry>,
        content: Bytes,
    ) -> Result<(), StoreError> {
        self.check_size(kind, content.len())?;
        if self.inner.backend.refreshes()
            && there.is_some_and(|entry| entry.bytes == content.len() as u64)
            && self.has(name, &content).await?
            && self.inner.backend.refresh(name).await?
        {
            return Ok(());
        }
        self.write(name, content).await.map(drop)
    }

    /// Whether this very content is stored there: what was damaged since it was put is put again.
    async fn has(&self, name: &Name, content: &Bytes) -> Result<bool, StoreError> {
        match self.inner.backend.get(name, content.len() as u64).await {
            Ok(found) => Ok(found.is_some_and(|found| found == *content)),
            Err(BackendError::Damaged | BackendError::TooLarge { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
