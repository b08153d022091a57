//! The blob store that services use: content under keyed names, mutable texts with checksums, references, collection, erasure.

mod collect;
mod references;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::{BlobKind, Digest, JobKey, TenantId, UnixMillis};
use tokio::time::Instant;

use crate::backend::{Backend, BackendError, Name};
use crate::key::{FleetKey, TenantKey};

pub use collect::{COLLECT_AGE_MIN, Collected, Erased};
pub use references::Holder;

/// Contents from this length on are hashed off the async threads: 256 KiB take about 0.1 ms on one core.
const HASH_INLINE_BYTES_MAX: usize = 256 << 10;
/// Length of the checksum before the content of a mutable blob, in bytes.
const CHECKSUM_BYTES: usize = 32;
/// How long a counted number of used bytes is good; what this process writes in between is added to it.
const USED_BYTES_AGE: Duration = Duration::from_secs(10);

/// Limits of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest blob, in bytes.
    pub blob_bytes_max: u64,
    /// Most bytes in all; none means that only the place itself is the limit.
    pub capacity_bytes: Option<u64>,
}

/// A blob could not be stored or found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Larger than the limit.
    #[error("{kind} blob has {bytes} bytes, blob_bytes_max is {bytes_max}")]
    TooLarge {
        /// What it holds.
        kind: BlobKind,
        /// Its length.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The byte cap is reached; try later.
    #[error("the blob store is full: {free} bytes free, {bytes} needed")]
    Full {
        /// What was to be stored.
        bytes: u64,
        /// What is left.
        free: u64,
    },
    /// There is no such blob of this tenant.
    #[error("{kind} blob {digest} is missing")]
    Missing {
        /// What it should hold.
        kind: BlobKind,
        /// Its name.
        digest: Digest,
    },
    /// The stored bytes are not what was put. They are never returned.
    #[error("{kind} blob {digest} is corrupt")]
    Corrupt {
        /// What it should hold.
        kind: BlobKind,
        /// Its name.
        digest: Digest,
    },
    /// A list of references can't be read; nothing is collected or erased while that is so.
    #[error("a list of references of tenant {tenant} is corrupt")]
    CorruptReferences {
        /// Whose.
        tenant: TenantId,
    },
    /// The job was erased; nothing may be stored for it any more.
    #[error("the job was erased")]
    JobErased,
    /// The place failed.
    #[error("blob store operation failed")]
    Backend(#[from] BackendError),
}

impl StoreError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Backend(error) => error.is_transient(),
            _ => false,
        }
    }
}

/// A stored blob, without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its name.
    pub digest: Digest,
    /// Length in bytes; of a mutable blob with its checksum.
    pub bytes: u64,
    /// When it was written or last put again, by the place's clock.
    pub modified: UnixMillis,
}

/// The blobs of all tenants. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    key: FleetKey,
    limits: Limits,
    used: Mutex<Option<Used>>,
}

/// Used bytes: when they were counted, and what it was then plus what this process wrote since.
#[derive(Clone, Copy)]
struct Used {
    counted: Instant,
    bytes: u64,
}

impl fmt::Debug for BlobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStore")
            .field("limits", &self.inner.limits)
            .finish_non_exhaustive()
    }
}

impl BlobStore {
    /// Over a backend, with the fleet's key.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, key: FleetKey, limits: Limits) -> Self {
        let used = Mutex::new(None);
        Self {
            inner: Arc::new(Inner {
                backend,
                key,
                limits,
                used,
            }),
        }
    }

    /// In memory, gone with the process, without byte cap. For tests and simulations.
    #[must_use]
    pub fn in_memory(key: FleetKey) -> Self {
        let limits = Limits {
            blob_bytes_max: 64 << 20,
            capacity_bytes: None,
        };
        Self::new(Arc::new(crate::backend::Objects::in_memory()), key, limits)
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// The fleet's key, for other keyed names such as job ids.
    #[must_use]
    pub fn key(&self) -> &FleetKey {
        &self.inner.key
    }

    /// The name that a content has for this tenant, without storing it.
    pub async fn digest(&self, tenant: &TenantId, content: &Bytes) -> Digest {
        let key = self.tenant_key(tenant);
        hash(content, move |content| key.of_content(content)).await
    }

    /// Stores a content and gives its name. When this returns, the blob survives a power cut. A blob that is there
    /// already with the right length is not written again, but counts as new for collection.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::Full`] or the place's failure.
    pub async fn put(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        content: Bytes,
    ) -> Result<Digest, StoreError> {
        self.check_size(kind, content.len())?;
        let digest = self.digest(tenant, &content).await;
        self.put_named(tenant, kind, &digest, content).await?;
        Ok(digest)
    }

    /// Stores a content whose name the caller has made with [`BlobStore::digest`]; a wrong one would make a blob that is
    /// corrupt from the start. Otherwise as [`BlobStore::put`].
    ///
    /// # Errors
    /// As [`BlobStore::put`].
    pub async fn put_named(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
        content: Bytes,
    ) -> Result<(), StoreError> {
        self.check_size(kind, content.len())?;
        let name = blob_name(tenant, kind, digest);
        let backend = &self.inner.backend;
        let there = backend.head(&name).await?;
        if there.is_some_and(|entry| entry.bytes == content.len() as u64)
            && backend.refresh(&name).await?
        {
            return Ok(());
        }
        self.write(&name, content).await
    }

    /// Reads a content and checks it against its name.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Corrupt`], [`StoreError::TooLarge`] or the place's failure.
    pub async fn get(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<Bytes, StoreError> {
        let bytes_max = self.inner.limits.blob_bytes_max;
        let content = self.read(tenant, kind, digest, bytes_max).await?;
        let content = content.ok_or(StoreError::Missing {
            kind,
            digest: *digest,
        })?;
        if self.digest(tenant, &content).await == *digest {
            Ok(content)
        } else {
            Err(StoreError::Corrupt {
                kind,
                digest: *digest,
            })
        }
    }

    /// Stores a text that changes, under a key instead of its content; the last put wins. Durable when it returns.
    /// Gives the blob's name, by which it is referenced and deleted.
    ///
    /// # Errors
    /// As [`BlobStore::put`].
    pub async fn put_mutable(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
        content: Bytes,
    ) -> Result<Digest, StoreError> {
        self.check_size(kind, content.len())?;
        let tenant_key = self.tenant_key(tenant);
        let digest = tenant_key.of_key(key);
        let framed = hash(&content, move |content| {
            let mut framed = BytesMut::with_capacity(CHECKSUM_BYTES + content.len());
            framed.put_slice(tenant_key.checksum(&digest, content).as_bytes());
            framed.put_slice(content);
            framed.freeze()
        });
        self.write(&blob_name(tenant, kind, &digest), framed.await)
            .await?;
        Ok(digest)
    }

    /// Reads what [`BlobStore::put_mutable`] stored last under the key; none when there is nothing.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::TooLarge`] or the place's failure.
    pub async fn get_mutable(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
    ) -> Result<Option<Bytes>, StoreError> {
        let tenant_key = self.tenant_key(tenant);
        let digest = tenant_key.of_key(key);
        let bytes_max = self
            .inner
            .limits
            .blob_bytes_max
            .saturating_add(CHECKSUM_BYTES as u64);
        let Some(mut content) = self.read(tenant, kind, &digest, bytes_max).await? else {
            return Ok(None);
        };
        let corrupt = StoreError::Corrupt { kind, digest };
        if content.len() < CHECKSUM_BYTES {
            return Err(corrupt);
        }
        let stored = content.split_to(CHECKSUM_BYTES);
        let found = hash(&content, move |content| {
            tenant_key.checksum(&digest, content)
        })
        .await;
        if found.as_bytes()[..] == stored[..] {
            Ok(Some(content))
        } else {
            Err(corrupt)
        }
    }

    /// As [`BlobStore::put_mutable`], for what belongs to one job: an erased job leaves nothing behind.
    ///
    /// # Errors
    /// [`StoreError::JobErased`], and as [`BlobStore::put`].
    pub async fn put_mutable_of(
        &self,
        job: &JobKey,
        kind: BlobKind,
        key: &[u8],
        content: Bytes,
    ) -> Result<Digest, StoreError> {
        let digest = self.put_mutable(&job.tenant, kind, key, content).await?;
        // Whoever comes last of the two, this look or the erasure's tombstone, sees the other's work.
        if self.is_erased(&job.tenant, &job.job).await? {
            self.delete(&job.tenant, kind, &digest).await?;
            return Err(StoreError::JobErased);
        }
        Ok(digest)
    }

    /// Removes a text that changes. True when it was there.
    ///
    /// # Errors
    /// The place's failure.
    pub async fn delete_mutable(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
    ) -> Result<bool, StoreError> {
        let digest = self.tenant_key(tenant).of_key(key);
        self.delete(tenant, kind, &digest).await
    }

    /// Length and age of a blob; none when there is none.
    ///
    /// # Errors
    /// The place's failure.
    pub async fn head(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<Option<Head>, StoreError> {
        let entry = self
            .inner
            .backend
            .head(&blob_name(tenant, kind, digest))
            .await?;
        let head = |bytes, modified| Head {
            digest: *digest,
            bytes,
            modified,
        };
        Ok(entry.map(|entry| head(entry.bytes, entry.modified)))
    }

    /// Whether there is such a blob. Its content is checked only by [`BlobStore::get`].
    ///
    /// # Errors
    /// The place's failure.
    pub async fn exists(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        Ok(self.head(tenant, kind, digest).await?.is_some())
    }

    /// Length of a blob in bytes; none when there is none.
    ///
    /// # Errors
    /// The place's failure.
    pub async fn size(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<Option<u64>, StoreError> {
        Ok(self
            .head(tenant, kind, digest)
            .await?
            .map(|head| head.bytes))
    }

    /// Removes a blob, referenced or not. True when it was there.
    ///
    /// # Errors
    /// The place's failure.
    pub async fn delete(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        Ok(self
            .inner
            .backend
            .delete(&blob_name(tenant, kind, digest))
            .await?)
    }

    /// All blobs of one kind of a tenant, in any order.
    pub fn list(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
    ) -> BoxStream<'static, Result<Head, StoreError>> {
        let entries = self.inner.backend.list(&format!("{tenant}/{kind}"));
        let heads = entries.filter_map(|entry| async move {
            match entry {
                Ok(entry) => {
                    let (_, last) = entry.name.as_str().rsplit_once('/')?;
                    // What has no digest for a name is not a blob of ours.
                    let digest = last.parse().ok()?;
                    Some(Ok(Head {
                        digest,
                        bytes: entry.bytes,
                        modified: entry.modified,
                    }))
                }
                Err(error) => Some(Err(StoreError::from(error))),
            }
        });
        heads.boxed()
    }

    /// Bytes that may still be stored under the cap; none without a cap. Counted at most every ten seconds, and what
    /// other processes wrote meanwhile is not in it.
    ///
    /// # Errors
    /// The place's failure.
    pub async fn headroom(&self) -> Result<Option<u64>, StoreError> {
        let Some(capacity) = self.inner.limits.capacity_bytes else {
            return Ok(None);
        };
        let used = *self
            .inner
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let used = match used {
            Some(used) if used.counted.elapsed() < USED_BYTES_AGE => used.bytes,
            _ => {
                let Some(bytes) = self.inner.backend.used_bytes().await? else {
                    return Ok(None);
                };
                let counted = Instant::now();
                *self
                    .inner
                    .used
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(Used { counted, bytes });
                bytes
            }
        };
        Ok(Some(capacity.saturating_sub(used)))
    }

    fn tenant_key(&self, tenant: &TenantId) -> TenantKey {
        self.inner.key.of_tenant(tenant)
    }

    fn check_size(&self, kind: BlobKind, bytes: usize) -> Result<(), StoreError> {
        let (bytes, bytes_max) = (bytes as u64, self.inner.limits.blob_bytes_max);
        if bytes > bytes_max {
            Err(StoreError::TooLarge {
                kind,
                bytes,
                bytes_max,
            })
        } else {
            Ok(())
        }
    }

    /// Writes under the byte cap.
    async fn write(&self, name: &Name, content: Bytes) -> Result<(), StoreError> {
        let bytes = content.len() as u64;
        if let Some(free) = self.headroom().await?.filter(|free| *free < bytes) {
            return Err(StoreError::Full { bytes, free });
        }
        match self.inner.backend.put(name, content).await {
            Ok(()) => {}
            Err(BackendError::Full) => return Err(StoreError::Full { bytes, free: 0 }),
            Err(error) => return Err(error.into()),
        }
        if let Some(used) = &mut *self
            .inner
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            used.bytes = used.bytes.saturating_add(bytes);
        }
        Ok(())
    }

    async fn read(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
        bytes_max: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        match self
            .inner
            .backend
            .get(&blob_name(tenant, kind, digest), bytes_max)
            .await
        {
            Ok(found) => Ok(found),
            Err(BackendError::TooLarge { bytes, bytes_max }) => Err(StoreError::TooLarge {
                kind,
                bytes,
                bytes_max,
            }),
            Err(error) => Err(error.into()),
        }
    }
}

/// `<tenant>/<kind>/<digest>`.
fn blob_name(tenant: &TenantId, kind: BlobKind, digest: &Digest) -> Name {
    Name::of(&[tenant.as_str(), kind.as_str(), &digest.to_string()])
}

/// Runs a hash over the content, off the async threads when it is long.
async fn hash<T: Send + 'static>(
    content: &Bytes,
    work: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> T {
    if content.len() < HASH_INLINE_BYTES_MAX {
        return work(content);
    }
    let content = content.clone();
    match tokio::task::spawn_blocking(move || work(&content)).await {
        Ok(value) => value,
        // Hashing can't fail; a panic in it goes on where the caller is.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests;
