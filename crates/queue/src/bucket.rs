//! A key-value bucket: one message per key, changed by compare-and-set on the key's sequence.
//! Laid out as NATS key-value buckets are, so that their tools can read them.

use async_nats::HeaderMap;
use bytes::Bytes;
use medfleet_core::UnixMillis;

use crate::api::{Api, BATCH_MAX, Operation, Stored, Which, is_conflict, once};
use crate::subject::BUCKET_PREFIX;
use crate::{Result, Revision};

#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    api: Api,
    name: String,
    stream: String,
}

/// A value and when it was written.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: Bytes,
    pub(crate) revision: Revision,
    pub(crate) written_at: UnixMillis,
}

const NEVER_WRITTEN: Revision = Revision::at(0);

impl Bucket {
    pub(crate) fn new(api: Api, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            api,
            stream: stream_of(&name),
            name,
        }
    }

    pub(crate) fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    fn entry(&self, stored: Stored) -> Entry {
        let prefix = "$KV.".len() + self.name.len() + 1;
        Entry {
            key: stored.subject.get(prefix..).unwrap_or_default().to_owned(),
            value: stored.payload,
            revision: Revision::at(stored.sequence),
            written_at: stored.stored_at,
        }
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let subject = self.subject(key);
        let which = Which::Last {
            last_by_subj: &subject,
        };
        let stored = self.api.get(&self.stream, which).await?;
        Ok(stored.map(|stored| self.entry(stored)))
    }

    /// The entries of many keys, without the missing ones; may be a moment old on a cluster.
    pub(crate) async fn get_many(&self, keys: &[String]) -> Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity(keys.len());
        for some in keys.chunks(BATCH_MAX) {
            let subjects: Vec<_> = some.iter().map(|key| self.subject(key)).collect();
            let stored = self.api.get_latest(&self.stream, &subjects).await?;
            entries.extend(stored.into_iter().map(|stored| self.entry(stored)));
        }
        Ok(entries)
    }

    /// Whether none of these keys has a value; may be a moment old on a cluster.
    pub(crate) async fn has_none(&self, keys: &[String]) -> Result<bool> {
        for some in keys.chunks(BATCH_MAX) {
            let subjects: Vec<_> = some.iter().map(|key| self.subject(key)).collect();
            if !self.api.has_none(&self.stream, &subjects).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Up to `count` entries in order of revision, the first at or after `from`; may be a moment old on a cluster.
    pub(crate) async fn run(&self, from: u64, count: usize) -> Result<Vec<Entry>> {
        let all = self.subject(">");
        let stored = self.api.get_run(&self.stream, &all, from, count).await?;
        Ok(stored
            .into_iter()
            .map(|stored| self.entry(stored))
            .collect())
    }

    /// Writes a key that has no value; `None` when it has one.
    pub(crate) async fn create(&self, key: &str, value: Bytes) -> Result<Option<Revision>> {
        self.update(key, value, NEVER_WRITTEN).await
    }

    /// Writes a key if its revision is still `revision`; `None` when it is not.
    pub(crate) async fn update(
        &self,
        key: &str,
        value: Bytes,
        revision: Revision,
    ) -> Result<Option<Revision>> {
        const UPDATE: Operation = once("change an entry");
        let mut headers = HeaderMap::new();
        headers.insert(
            "Nats-Expected-Last-Subject-Sequence",
            revision.sequence().to_string().as_str(),
        );
        let subject = self.subject(key);
        match self
            .api
            .publish(UPDATE, &subject, Some(headers), value)
            .await
        {
            Ok(sequence) => Ok(Some(Revision::at(sequence))),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a key, whatever it had.
    pub(crate) async fn put(&self, key: &str, value: Bytes) -> Result<Revision> {
        const PUT: Operation = crate::api::repeatable("write an entry");
        let subject = self.subject(key);
        let sequence = self.api.publish(PUT, &subject, None, value).await?;
        Ok(Revision::at(sequence))
    }

    /// Removes a key and its value, without a trace.
    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        self.api.purge(&self.stream, &self.subject(key)).await
    }

    /// Removes a key if its value was written as `revision` or before. Never another key, whatever has that revision now.
    pub(crate) async fn remove_up_to(&self, key: &str, revision: Revision) -> Result<()> {
        let (subject, last) = (self.subject(key), revision.sequence());
        self.api.purge_up_to(&self.stream, &subject, last).await
    }

    /// Removes the value written as `revision`, and no newer one.
    pub(crate) async fn remove_revision(&self, revision: Revision) -> Result<()> {
        self.api.delete(&self.stream, revision.sequence()).await
    }

    /// Every key that matches `filter` (a subject filter below the bucket), in order.
    pub(crate) async fn keys(&self, filter: &str) -> Result<Vec<String>> {
        let prefix = "$KV.".len() + self.name.len() + 1;
        let subjects = self
            .api
            .subjects(&self.stream, &self.subject(filter))
            .await?;
        let keys = subjects
            .iter()
            .filter_map(|subject| subject.get(prefix..))
            .map(str::to_owned);
        Ok(keys.collect())
    }
}

/// The stream behind a bucket.
pub(crate) fn stream_of(bucket: &str) -> String {
    format!("{BUCKET_PREFIX}{bucket}")
}
