//! Any store that the object_store crate speaks to: S3 and what is compatible with it, and memory for tests.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::UnixMillis;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{Backend, BackendError, Entry, Name, Version};

/// Blobs in an object store. Object stores answer a put only when the object is durable.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
}

impl Objects {
    /// In memory, gone with the process. For tests and simulations.
    pub fn in_memory() -> Self {
        Self {
            store: Arc::new(object_store::memory::InMemory::new()),
        }
    }

    /// Over a configured client.
    pub(crate) fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Backend for Objects {
    async fn put(&self, name: &Name, bytes: Bytes) -> Result<(), BackendError> {
        let put = self.store.put(&path(name), bytes.into()).await;
        put.map(drop).map_err(|error| failed("write", error))
    }

    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Option<Bytes>, BackendError> {
        let Some(found) = found("read", self.store.get(&path(name)).await)? else {
            return Ok(None);
        };
        let bytes = found.meta.size;
        if bytes > bytes_max {
            return Err(BackendError::TooLarge { bytes, bytes_max });
        }
        found
            .bytes()
            .await
            .map(Some)
            .map_err(|error| failed("read", error))
    }

    async fn head(&self, name: &Name) -> Result<Option<Entry>, BackendError> {
        let found = found("look up", self.store.head(&path(name)).await)?;
        Ok(found.map(|meta| entry(name.clone(), &meta)))
    }

    /// By the tag of its content, and the time: the same content written again over a damaged one may have the tag of both.
    /// The library knows no delete on a condition, so `delete_version` looks right before.
    async fn version(&self, name: &Name) -> Result<Option<Version>, BackendError> {
        let found = found("look up", self.store.head(&path(name)).await)?;
        Ok(found.map(|meta| {
            let (tag, time) = (meta.e_tag.as_deref(), meta.last_modified.timestamp_millis());
            Version::new(format!("{} {time} {}", tag.unwrap_or_default(), meta.size))
        }))
    }

    /// Without the look of `delete`: what is written in between would go too.
    async fn delete_version(&self, name: &Name, version: &Version) -> Result<bool, BackendError> {
        if self.version(name).await?.as_ref() != Some(version) {
            return Ok(false);
        }
        let deleted = found("delete", self.store.delete(&path(name)).await)?;
        Ok(deleted.is_some())
    }

    async fn delete(&self, name: &Name) -> Result<bool, BackendError> {
        // Object stores answer a delete of nothing as done, so what was there is asked first.
        let there = self.head(name).await?.is_some();
        found("delete", self.store.delete(&path(name)).await)?;
        Ok(there)
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, BackendError>> {
        let prefix = (!prefix.is_empty()).then(|| Path::from(prefix));
        let listed = self.store.list(prefix.as_ref());
        let entries = listed.filter_map(|listed| async move {
            match listed {
                // A name that is not ours is a stranger's object in the same bucket.
                Ok(meta) => {
                    let name = meta.location.as_ref().parse::<Name>().ok()?;
                    Some(Ok(entry(name, &meta)))
                }
                Err(error) => Some(Err(failed("list", error))),
            }
        });
        entries.boxed()
    }
}

fn path(name: &Name) -> Path {
    Path::from(name.as_str())
}

fn entry(name: Name, meta: &ObjectMeta) -> Entry {
    let modified = UnixMillis(meta.last_modified.timestamp_millis());
    Entry {
        name,
        bytes: meta.size,
        modified,
    }
}

/// "Not there" is an answer, not an error.
pub(crate) fn found<T>(
    operation: &'static str,
    result: Result<T, Error>,
) -> Result<Option<T>, BackendError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(operation, error)),
    }
}

/// Only refusals that a retry can't change are final.
pub(crate) fn failed(operation: &'static str, error: Error) -> BackendError {
    let is_final = matches!(
        error,
        Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::UnknownConfigurationKey { .. }
    );
    BackendError::failed(operation, !is_final, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        crate::contract::run(Arc::new(Objects::in_memory())).await;
    }
}
