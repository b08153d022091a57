//! The blob store that services use: content under keyed names, mutable texts with checksums, references, collection, erasure.

mod collect;
mod references;
mod relied;
mod room;
mod sound;
mod together;

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::{BlobKind, Digest, JobKey, TenantId, UnixMillis};
use tracing::instrument::{Instrument, WithSubscriber};

use crate::backend::{Backend, BackendError, Name};
use crate::key::{FleetKey, TenantKey};
use room::Room;

pub use collect::{COLLECT_AGE_MIN, Collected, Erased};
pub use references::{Holder, Named};
pub use relied::Relied;

/// Contents from this length on are hashed off the async threads: 256 KiB take about 0.1 ms on one core.
const HASH_INLINE_BYTES_MAX: usize = 256 << 10;
/// Length of the checksum before the content of a mutable blob, in bytes.
const CHECKSUM_BYTES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub blob_bytes_max: u64,
    /// Most bytes in all; none means that only the place itself is the limit.
    pub capacity_bytes: Option<u64>,
}

/// A blob could not be stored or found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{kind} blob has {bytes} bytes, store.blob_bytes_max is {bytes_max}")]
    TooLarge {
        kind: BlobKind,
        bytes: u64,
        bytes_max: u64,
    },
    #[error("the blob store is full: {free} bytes free, {bytes} needed")]
    Full { bytes: u64, free: u64 },
    /// There is no such blob of this tenant.
    #[error("{kind} blob {digest} is missing")]
    Missing { kind: BlobKind, digest: Digest },
    /// The stored bytes are not what was put. They are never returned.
    #[error("{kind} blob {digest} is corrupt")]
    Corrupt { kind: BlobKind, digest: Digest },
    /// A list of references can't be read; nothing is collected or erased while that is so.
    #[error("a list of references of tenant {tenant} is corrupt")]
    CorruptReferences { tenant: TenantId },
    /// The job was erased; nothing may be stored for it any more.
    #[error("the job was erased")]
    JobErased,
    #[error("blob store operation failed")]
    Backend(#[from] BackendError),
}

impl StoreError {
    /// Whether the same call may succeed later.
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
    pub digest: Digest,
    /// Length in bytes; of a mutable blob with its checksum.
    pub bytes: u64,
    /// When it was written or last put again, by the place's clock.
    pub modified: UnixMillis,
}

/// The blobs of all tenants. Cheap to clone; all clones are one.
///
/// Every call may fail as its place does ([`StoreError::Backend`]); what else may go wrong is said of each.
#[derive(Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    key: FleetKey,
    limits: Limits,
    room: Room,
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
    pub fn new(backend: Arc<dyn Backend>, key: FleetKey, limits: Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                backend,
                key,
                limits,
                room: Room::default(),
            }),
        }
    }

    /// In memory, gone with the process, without byte cap. For tests and simulations.
    pub fn in_memory(key: FleetKey) -> Self {
        let limits = Limits {
            blob_bytes_max: 64 << 20,
            capacity_bytes: None,
        };
        Self::new(Arc::new(crate::backend::Objects::in_memory()), key, limits)
    }

    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// The fleet's key, for other keyed names such as job ids.
    pub fn key(&self) -> &FleetKey {
        &self.inner.key
    }

    /// The name that a content has for this tenant, without storing it.
    pub async fn digest(&self, tenant: &TenantId, content: &Bytes) -> Digest {
        let key = self.tenant_key(tenant);
        hash(content, move |content| key.of_content(content)).await
    }

    /// Stores a content and gives its name. When this returns, the blob survives a power cut, and counts as new for
    /// collection. In a place that can make a blob young without its bytes (a folder, JetStream), one that is there already is
    /// read, and written again only when it is damaged; elsewhere (S3) it is always written again.
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
    pub async fn put_named(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
        content: Bytes,
    ) -> Result<(), StoreError> {
        let (name, backend) = (blob_name(tenant, kind, digest), &self.inner.backend);
        let there = if backend.refreshes() {
            backend.head(&name).await?
        } else {
            None
        };
        self.put_over(kind, &name, there.as_ref(), content).await
    }

    /// Stores a text that changes, under a key instead of its content; the last put wins. Durable when it returns.
    /// Gives the blob's name, by which it is referenced and deleted.
    pub async fn put_mutable(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
        content: Bytes,
    ) -> Result<Digest, StoreError> {
        self.check_size(kind, content.len())?;
        let (_, digest, framed) = self.named(tenant, kind, key, &content).await;
        self.write(&blob_name(tenant, kind, &digest), framed)
            .await?;
        Ok(digest)
    }

    /// A text that changes as [`BlobStore::put_mutable`] would store it under this key, for [`BlobStore::keep_named`]: with
    /// its checksum, and under its name.
    pub async fn named(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
        content: &Bytes,
    ) -> Named {
        let tenant_key = self.tenant_key(tenant);
        let digest = tenant_key.of_key(key);
        let framed = hash(content, move |content| {
            let mut framed = BytesMut::with_capacity(CHECKSUM_BYTES + content.len());
            framed.put_slice(tenant_key.checksum(&digest, content).as_bytes());
            framed.put_slice(content);
            framed.freeze()
        });
        (kind, digest, framed.await)
    }

    /// The name of what [`BlobStore::put_mutable`] stores under a key.
    pub fn name_of(&self, tenant: &TenantId, key: &[u8]) -> Digest {
        self.tenant_key(tenant).of_key(key)
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
        let digest = self.name_of(tenant, key);
        let bytes_max = self.framed_bytes_max();
        let Some(content) = self.read(tenant, kind, &digest, bytes_max).await? else {
            return Ok(None);
        };
        let content = self.unframed(tenant, kind, key, content).await?;
        Ok(Some(content))
    }

    /// Most bytes of a text that changes, with its checksum.
    fn framed_bytes_max(&self) -> u64 {
        let content_max = self.inner.limits.blob_bytes_max;
        content_max.saturating_add(CHECKSUM_BYTES as u64)
    }

    /// What was stored under a key, without its checksum, which is compared.
    async fn unframed(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
        mut content: Bytes,
    ) -> Result<Bytes, StoreError> {
        let tenant_key = self.tenant_key(tenant);
        let digest = tenant_key.of_key(key);
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
            Ok(content)
        } else {
            Err(corrupt)
        }
    }

    /// As [`BlobStore::put_mutable`], for what belongs to one job: an erased job leaves nothing behind, also when this is
    /// dropped half-way.
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
        let (store, job, key) = (self.clone(), job.clone(), key.to_vec());
        to_its_end(async move {
            let put = store.put_mutable(&job.tenant, kind, &key, content).await;
            // Whichever comes last, this look or the erasure's tombstone, sees the other's work. Also after a failure, as the
            // text may have been stored all the same.
            if store.is_erased(&job.tenant, &job.job).await? {
                store.delete_mutable(&job.tenant, kind, &key).await?;
                return Err(StoreError::JobErased);
            }
            put
        })
        .await
    }

    /// Removes a text that changes. True when it was there.
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
    pub async fn exists(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        Ok(self.head(tenant, kind, digest).await?.is_some())
    }

    /// As [`BlobStore::exists`], for several blobs in their order, asked of the place together.
    pub async fn which_exist(
        &self,
        tenant: &TenantId,
        blobs: &[(BlobKind, Digest)],
    ) -> Result<Vec<bool>, StoreError> {
        let names = blobs.iter();
        let names = names.map(|(kind, digest)| blob_name(tenant, *kind, digest));
        let names: Vec<Name> = names.collect();
        let entries = self.inner.backend.heads(&names).await?;
        Ok(entries.iter().map(Option::is_some).collect())
    }

    /// Removes a blob, referenced or not. True when it was there.
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

    /// Bytes that may still be stored under the cap; none without a cap. Counted every ten seconds, or less often where
    /// counting takes long, and what other processes wrote meanwhile is not in it.
    pub async fn headroom(&self) -> Result<Option<u64>, StoreError> {
        let Some(capacity) = self.inner.limits.capacity_bytes else {
            return Ok(None);
        };
        let count = self.inner.backend.used_bytes();
        let used = self.inner.room.used(count).await?;
        Ok(used.map(|used| capacity.saturating_sub(used)))
    }

    /// How many writes found no room since this store was opened, those of all clones.
    #[must_use]
    pub fn full_writes(&self) -> u64 {
        self.inner.room.refusals()
    }

    /// Counts a write that found no room.
    fn full(&self, bytes: u64, free: u64) -> StoreError {
        self.inner.room.refused();
        StoreError::Full { bytes, free }
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

    /// Writes under the byte cap. Gives the place's time; none when what was written is gone again.
    async fn write(&self, name: &Name, content: Bytes) -> Result<Option<UnixMillis>, StoreError> {
        let bytes = content.len() as u64;
        if let Some(free) = self.headroom().await?.filter(|free| *free < bytes) {
            return Err(self.full(bytes, free));
        }
        let time = match self.inner.backend.put_timed(name, content).await {
            Ok(time) => time,
            Err(BackendError::Full) => return Err(self.full(bytes, 0)),
            Err(error) => return Err(error.into()),
        };
        self.inner.room.wrote(bytes);
        Ok(time)
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
            Err(BackendError::Damaged) => Err(StoreError::Corrupt {
                kind,
                digest: *digest,
            }),
            Err(error) => Err(error.into()),
        }
    }
}

/// `<tenant>/<kind>/<digest>`.
fn blob_name(tenant: &TenantId, kind: BlobKind, digest: &Digest) -> Name {
    Name::of(&[tenant.as_str(), kind.as_str(), &digest.to_string()])
}

/// Runs to its end, in a task of its own, what would leave something behind if it broke off half-way: the caller may be dropped,
/// as a worker is when its job is cancelled, but what it has begun to write lands all the same.
#[expect(
    clippy::disallowed_methods,
    reason = "outlives its caller on purpose; it is a few operations of the store, and the process's end may still cut it off"
)]
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let work = work.in_current_span().with_current_subscriber();
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => Err(BackendError::failed("finish", true, error).into()),
    }
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
