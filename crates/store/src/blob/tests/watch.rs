//! A place under the eyes of a test: what the test does around the calls to it, and otherwise the place as it is.

use super::*;
use crate::backend::{Entry, Version};

/// The place itself.
pub(super) type Place = Arc<dyn Backend>;

/// What a place is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Put,
    Get,
    Delete,
    Refresh,
}

/// What a test does around the calls.
#[async_trait]
pub(super) trait Watch: fmt::Debug + Send + Sync {
    /// Before a call. An error is its answer, and the place is not asked.
    async fn before(&self, _: &Place, _: Call, _: &Name) -> Result<(), BackendError> {
        Ok(())
    }

    /// After a call, whatever came of it.
    async fn after(&self, _: &Place, _: Call, _: &Name) -> Result<(), BackendError> {
        Ok(())
    }

    /// The time that is told of an object.
    fn time(&self, _: &Name, time: UnixMillis) -> UnixMillis {
        time
    }

    /// Whether a put tells its time.
    fn puts_tell_time(&self) -> bool {
        true
    }
}

pub(super) fn watched(place: &Place, watch: Arc<dyn Watch>) -> Place {
    let place = Arc::clone(place);
    Arc::new(Watched { place, watch })
}

#[derive(Debug)]
struct Watched {
    place: Place,
    watch: Arc<dyn Watch>,
}

impl Watched {
    async fn around<T: Send>(
        &self,
        call: Call,
        name: &Name,
        asked: impl Future<Output = Result<T, BackendError>> + Send,
    ) -> Result<T, BackendError> {
        self.watch.before(&self.place, call, name).await?;
        let answer = asked.await;
        self.watch.after(&self.place, call, name).await?;
        answer
    }
}

#[async_trait]
impl Backend for Watched {
    async fn put(&self, name: &Name, bytes: Bytes) -> Result<(), BackendError> {
        self.around(Call::Put, name, self.place.put(name, bytes))
            .await
    }

    async fn put_timed(
        &self,
        name: &Name,
        bytes: Bytes,
    ) -> Result<Option<UnixMillis>, BackendError> {
        self.put(name, bytes).await?;
        let entry = self.head(name).await?;
        let entry = entry.filter(|_| self.watch.puts_tell_time());
        Ok(entry.map(|entry| entry.modified))
    }

    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Option<Bytes>, BackendError> {
        self.around(Call::Get, name, self.place.get(name, bytes_max))
            .await
    }

    async fn head(&self, name: &Name) -> Result<Option<Entry>, BackendError> {
        let found = self.place.head(name).await?;
        Ok(found.map(|entry| Entry {
            modified: self.watch.time(name, entry.modified),
            ..entry
        }))
    }

    async fn delete(&self, name: &Name) -> Result<bool, BackendError> {
        self.around(Call::Delete, name, self.place.delete(name))
            .await
    }

    async fn version(&self, name: &Name) -> Result<Option<Version>, BackendError> {
        self.place.version(name).await
    }

    async fn delete_version(&self, name: &Name, version: &Version) -> Result<bool, BackendError> {
        let asked = self.place.delete_version(name, version);
        self.around(Call::Delete, name, asked).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, BackendError>> {
        self.place.list(prefix)
    }

    fn refreshes(&self) -> bool {
        self.place.refreshes()
    }

    async fn refresh(&self, name: &Name) -> Result<bool, BackendError> {
        self.around(Call::Refresh, name, self.place.refresh(name))
            .await
    }
}
