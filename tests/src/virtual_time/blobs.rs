//! The blob store in memory: what is put is durable when it is answered, is named by tenant, kind and content, and may be
//! away for a while. A tenant never finds what another has stored.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use medfleet_core::{BlobKind, Digest, FailureReason, TenantId};
use medfleet_worker::Ending;

use super::timeline::Timeline;

type Blobs = BTreeMap<(TenantId, BlobKind, Vec<u8>), Vec<u8>>;

pub(super) struct BlobShelf {
    timeline: Timeline,
    blobs: RefCell<Blobs>,
    pub(super) away_until: Cell<u64>,
}

/// The name of a blob, by whose it is and what it holds.
pub(super) fn digest(tenant: &TenantId, bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("medfleet virtual blob v1");
    hasher.update(tenant.as_str().as_bytes());
    hasher.update(&[0]);
    hasher.update(bytes);
    Digest::new(*hasher.finalize().as_bytes())
}

impl BlobShelf {
    pub(super) fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            blobs: RefCell::default(),
            away_until: Cell::new(0),
        }
    }

    async fn reach(&self) -> Result<(), Ending> {
        self.timeline.sleep(self.timeline.between(0, 3)).await;
        if self.away_until.get() > self.timeline.now() {
            return Err(Ending::retry("the store is away"));
        }
        Ok(())
    }

    /// Stores a blob under its content's name.
    pub(super) async fn put(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        bytes: Vec<u8>,
    ) -> Result<Digest, Ending> {
        let name = digest(tenant, &bytes);
        self.put_as(tenant, kind, name.as_bytes(), bytes).await?;
        Ok(name)
    }

    /// Stores a blob under a key of its own, in place of the one before.
    pub(super) async fn put_as(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
        bytes: Vec<u8>,
    ) -> Result<(), Ending> {
        self.reach().await?;
        let name = (tenant.clone(), kind, key.to_vec());
        self.blobs.borrow_mut().insert(name, bytes);
        // It may be stored and the answer still be a failure.
        self.reach().await
    }

    /// Reads a blob by a key of its own.
    pub(super) async fn get_as(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, Ending> {
        self.reach().await?;
        Ok(self.peek(tenant, kind, key))
    }

    /// Reads a blob by its content's name, and looks whether it is that content.
    pub(super) async fn get(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        name: &Digest,
    ) -> Result<Vec<u8>, Ending> {
        let found = self.get_as(tenant, kind, name.as_bytes()).await?;
        let intact = found.filter(|bytes| digest(tenant, bytes) == *name);
        intact.ok_or_else(|| Ending::fail(FailureReason::Integrity, format!("{kind} {name}")))
    }

    /// What is there, for the check.
    pub(super) fn peek(&self, tenant: &TenantId, kind: BlobKind, key: &[u8]) -> Option<Vec<u8>> {
        let name = (tenant.clone(), kind, key.to_vec());
        self.blobs.borrow().get(&name).cloned()
    }
}
