//! Small contents that are needed together, read or written in one call of the place: where it is a folder, each call wakes a
//! thread, which costs more than it takes to read or write a list.

use bytes::Bytes;
use medfleet_core::{BlobKind, Digest, TenantId};

use super::{BlobStore, StoreError, blob_name};
use crate::backend::{BackendError, Name};

impl BlobStore {
    /// Contents as [`BlobStore::get`] reads each, and what [`BlobStore::put_mutable`] stored last under each of the keys, none
    /// where there is nothing; both in their order. For lists: large contents are read sooner side by side.
    ///
    /// # Errors
    /// As [`BlobStore::get`] and [`BlobStore::get_mutable`], of the first that cannot be read.
    pub async fn get_together<const CONTENTS: usize>(
        &self,
        tenant: &TenantId,
        contents: [(BlobKind, Digest); CONTENTS],
        texts: &[(BlobKind, Vec<u8>)],
    ) -> Result<([Bytes; CONTENTS], Vec<Option<Bytes>>), StoreError> {
        let keyed = texts
            .iter()
            .map(|(kind, key)| (*kind, self.name_of(tenant, key)));
        let blobs = contents.iter().copied().chain(keyed);
        let names = blobs.map(|(kind, digest)| blob_name(tenant, kind, &digest));
        let names: Vec<Name> = names.collect();
        let read = self
            .inner
            .backend
            .get_all(&names, self.framed_bytes_max())
            .await;
        // Each is read by itself then, which says what is wrong with which.
        let mut read = read.unwrap_or_default().into_iter();
        let mut found = [const { Bytes::new() }; CONTENTS];
        for (place, (kind, digest)) in found.iter_mut().zip(contents) {
            let content = read.next().flatten();
            let content = content.filter(|content| self.check_size(kind, content.len()).is_ok());
            let is_sound = match &content {
                Some(content) => self.digest(tenant, content).await == digest,
                None => false,
            };
            *place = match content {
                Some(content) if is_sound => content,
                // Not there, or damaged: `get` decides what that means and what is to be done.
                _ => self.get(tenant, kind, &digest).await?,
            };
        }
        let mut said = Vec::with_capacity(texts.len());
        for (kind, key) in texts {
            said.push(match read.next() {
                Some(Some(content)) => Some(
                    self.unframed(tenant, *kind, key.as_slice(), content)
                        .await?,
                ),
                Some(None) => None,
                None => self.get_mutable(tenant, *kind, key).await?,
            });
        }
        Ok((found, said))
    }

    /// As [`BlobStore::put_mutable`], the same text under each of these keys. For lists: large contents are written sooner side by
    /// side.
    ///
    /// # Errors
    /// As [`BlobStore::put`]; it may be there under some of the keys.
    pub async fn put_under_each(
        &self,
        tenant: &TenantId,
        kind: BlobKind,
        keys: &[&[u8]],
        content: &Bytes,
    ) -> Result<(), StoreError> {
        self.check_size(kind, content.len())?;
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            let (_, digest, framed) = self.named(tenant, kind, key, content).await;
            objects.push((blob_name(tenant, kind, &digest), framed));
        }
        let bytes: u64 = objects.iter().map(|(_, framed)| framed.len() as u64).sum();
        if let Some(free) = self.headroom().await?.filter(|free| *free < bytes) {
            return Err(self.full(bytes, free));
        }
        match self.inner.backend.put_all(objects).await {
            Ok(()) => {}
            Err(BackendError::Full) => return Err(self.full(bytes, 0)),
            Err(error) => return Err(error.into()),
        }
        self.inner.room.wrote(bytes);
        Ok(())
    }
}
