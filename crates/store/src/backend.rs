//! What a place to store must do. Folder and object stores are here; JetStream's object store implements the same trait
//! in the queue crate, which owns that library. [`crate::contract`] tests every one of them in the same way.

mod folder;
mod object;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::BoxStream;
use medfleet_core::UnixMillis;

pub use folder::Folder;
pub use object::Objects;
pub(crate) use object::{failed, found};

/// Objects looked up, or read together, at the same time.
const LOOK_UPS: usize = 16;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 512;

/// The name of a stored object: segments of `[a-z0-9-]` with `/` between. Holds no patient data by construction:
/// only tenant names, kinds, digests and job ids are ever put in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// A text that is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name is segments of a-z, 0-9 and '-' with '/' between, at most {NAME_BYTES_MAX} bytes")]
pub struct NameError;

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first segment: whose it is.
    fn owner(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// From segments that are names of ours already: tenants, kinds, digests, job ids.
    pub(crate) fn of(segments: &[&str]) -> Self {
        let name = segments.join("/");
        debug_assert!(name.parse::<Self>().is_ok(), "segments are checked types");
        Self(name)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |segment: &str| {
            !segment.is_empty()
                && segment
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if text.len() <= NAME_BYTES_MAX && text.split('/').all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One stored object, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    /// Length in bytes.
    pub bytes: u64,
    /// When it was written or refreshed, by the store's clock.
    pub modified: UnixMillis,
}

/// Identifies one writing of an object, in a form of the place's own. A write and a refresh make a new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

impl Version {
    /// From the place's own words.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }

    /// The place's own words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A backend could not do it.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("object has {bytes} bytes, at most {bytes_max} are read")]
    TooLarge {
        bytes: u64,
        /// The caller's limit.
        bytes_max: u64,
    },
    #[error("the blob store is full")]
    Full,
    /// The place knows by itself that the object's bytes are not those that were put. Whoever reads it may delete it, so that
    /// it is put again.
    #[error("the object's bytes are not those that were put")]
    Damaged,
    #[error("the blob store failed to {operation}")]
    Failed {
        /// What was tried: a verb.
        operation: &'static str,
        /// Whether the same call may succeed later.
        transient: bool,
        source: Box<dyn Error + Send + Sync>,
    },
}

impl BackendError {
    /// Any failure of an operation.
    pub fn failed(
        operation: &'static str,
        transient: bool,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Failed {
            operation,
            transient,
            source: source.into(),
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Damaged => false,
            Self::Full => true,
            Self::Failed { transient, .. } => *transient,
        }
    }
}

/// What is stored for a job in one call.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Contents under names that follow from their bytes. One that is there already, with the same bytes, is only made young.
    pub contents: Vec<(Name, Bytes)>,
    /// The list that names the job and its contents; always written.
    pub list: (Name, Bytes),
    /// If this object exists at the beginning, nothing is written: the job's tombstone.
    pub unless: Name,
}

/// What a [`Batch`] has left, looked at after its last write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// When the list was written, by the store's clock.
    pub listed: UnixMillis,
    /// The contents, in their order.
    pub contents: Vec<Option<Entry>>,
    /// [`Batch::unless`], if it has come since the beginning.
    pub unless: Option<Entry>,
    pub written_bytes: u64,
}

/// A place in which one call for several objects costs less than a call for each.
#[async_trait]
pub trait AtOnce: Send + Sync {
    /// Writes a batch, then looks at what is there. When it returns, everything survives a power cut, as after [`Backend::put`].
    /// After an error, or if the process dies meanwhile, any of the objects may be there, each of them whole. `None` if the
    /// batch was not begun because of [`Batch::unless`].
    async fn put_batch(&self, batch: Batch) -> Result<Option<Landed>, BackendError>;
}

/// A place to store objects under names.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync {
    /// Writes the whole object or nothing, over what was there. When it returns, the object survives a power cut, and
    /// every later read anywhere sees it.
    async fn put(&self, name: &Name, bytes: Bytes) -> Result<(), BackendError>;

    /// As [`Backend::put`], for several small objects, in any order. After an error any of them may be there, each of them whole.
    async fn put_all(&self, objects: Vec<(Name, Bytes)>) -> Result<(), BackendError> {
        let puts = objects
            .iter()
            .map(|(name, bytes)| self.put(name, bytes.clone()));
        try_join_all(puts).await?;
        Ok(())
    }

    /// Reads the whole object; none when there is none. More than `bytes_max` is refused before it is read.
    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Option<Bytes>, BackendError>;

    /// As [`Backend::get`], for several objects, in their order; where one of them cannot be read, so are all. They may be read in
    /// another order.
    async fn get_all(
        &self,
        names: &[Name],
        bytes_max: u64,
    ) -> Result<Vec<Option<Bytes>>, BackendError> {
        let mut found = Vec::with_capacity(names.len());
        for some in names.chunks(LOOK_UPS) {
            let some = some.iter().map(|name| self.get(name, bytes_max));
            found.extend(try_join_all(some).await?);
        }
        Ok(found)
    }

    /// Length and time; none when there is none.
    async fn head(&self, name: &Name) -> Result<Option<Entry>, BackendError>;

    /// As [`Backend::put`], and gives the object's time by the store's clock; none when it is gone again.
    async fn put_timed(
        &self,
        name: &Name,
        bytes: Bytes,
    ) -> Result<Option<UnixMillis>, BackendError> {
        self.put(name, bytes).await?;
        Ok(self.head(name).await?.map(|entry| entry.modified))
    }

    /// As [`Backend::head`], for several objects, in their order; they may be looked up in another.
    async fn heads(&self, names: &[Name]) -> Result<Vec<Option<Entry>>, BackendError> {
        let mut entries = Vec::with_capacity(names.len());
        for some in names.chunks(LOOK_UPS) {
            entries.extend(try_join_all(some.iter().map(|name| self.head(name))).await?);
        }
        Ok(entries)
    }

    /// The way to do several things in one call, where there is one that is better than one call each.
    fn at_once(&self) -> Option<&dyn AtOnce> {
        None
    }

    /// Removes the object. True when it was there.
    async fn delete(&self, name: &Name) -> Result<bool, BackendError>;

    /// Which writing of the object is there; none when there is none.
    async fn version(&self, name: &Name) -> Result<Option<Version>, BackendError> {
        let entry = self.head(name).await?;
        Ok(entry.map(|entry| Version::new(format!("{}-{}", entry.modified.0, entry.bytes))))
    }

    /// Removes the object if this writing of it is there. True when it was. Where the place cannot do that at one go, it is
    /// looked at right before: what is written in between, a round trip at most, goes too.
    async fn delete_version(&self, name: &Name, version: &Version) -> Result<bool, BackendError> {
        if self.version(name).await?.as_ref() == Some(version) {
            self.delete(name).await
        } else {
            Ok(false)
        }
    }

    /// Every object whose name begins with the segments of `prefix` (without a `/` at its end; empty means all), in any
    /// order. Objects written or deleted meanwhile may or may not appear.
    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, BackendError>>;

    /// Whether [`Backend::refresh`] can do anything here.
    fn refreshes(&self) -> bool {
        false
    }

    /// Makes an existing object as young as if it were written now, without sending its bytes. False when the object is
    /// not there or the place can't do that; the caller then writes it again.
    async fn refresh(&self, _name: &Name) -> Result<bool, BackendError> {
        Ok(false)
    }

    /// Removes what broken writes left before `before` and no name leads to; says how many writes those were.
    async fn reclaim(&self, _before: UnixMillis) -> Result<u64, BackendError> {
        Ok(0)
    }

    /// Bytes stored, by the first segment of the names, which says whose they are. One look at everything: what is written or
    /// deleted meanwhile may or may not be in it.
    async fn used_by_owner(&self) -> Result<BTreeMap<String, u64>, BackendError> {
        let mut used = BTreeMap::new();
        let mut entries = self.list("");
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            add_used(&mut used, &entry.name, entry.bytes);
        }
        Ok(used)
    }

    /// All bytes stored, for the byte cap; none when the place has no useful answer.
    async fn used_bytes(&self) -> Result<Option<u64>, BackendError> {
        let used = self.used_by_owner().await?;
        Ok(Some(used.into_values().fold(0, u64::saturating_add)))
    }
}

/// Adds an object to what its owner has. Owners are few, objects many.
fn add_used(used: &mut BTreeMap<String, u64>, name: &Name, bytes: u64) {
    let owner = name.owner();
    match used.get_mut(owner) {
        Some(sum) => *sum = sum.saturating_add(bytes),
        None => {
            used.insert(owner.to_owned(), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_folder() {
        let check =
            |text: &str, good: bool| assert_eq!(text.parse::<Name>().is_ok(), good, "{text:?}");
        check("a/frame/00ff", true);
        check("a", true);
        check("", false);
        check("/a", false);
        check("a/", false);
        check("a//b", false);
        check("a/../b", false);
        check("a/.tmp", false);
        check("A", false);
        check(&"a".repeat(513), false);
    }
}
