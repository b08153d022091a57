//! Blobs in JetStream's object store, for fleets on many machines without another shared store.
//! Laid out as NATS object stores are (chunks under one subject, then one entry that names them), so their tools can read
//! them; read without consumers, which would cost the server more than the bytes do.

use std::collections::HashSet;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::HeaderMap;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt, TryStreamExt, stream};
use medfleet_core::{UnixMillis, chain};
use medfleet_store::{Backend, BackendError, Entry, Name, Version};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::api::{Api, BATCH_MAX, Operation, Stored, Which, is_conflict, once};
use crate::streams::ensure_stream;
use crate::{Queue, QueueError, Replicas, Result};

mod meta;
use meta::Meta;

/// Largest chunk; half of the payload that our server configurations allow.
const CHUNK_BYTES: usize = 512 * 1024;
/// Chunks of one object that are under way at a time.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Chunks read in one round trip: 8 MiB.
const CHUNKS_PER_READ: usize = 16;
/// Tries when an object is replaced while it is read or written.
const TRIES: usize = 8;

/// One bucket of objects. Made on the server when it is first used.
#[derive(Debug, Clone)]
pub struct Objects {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    api: Api,
    bucket: String,
    stream: String,
    replicas: usize,
    bytes_max: u64,
    made: OnceCell<()>,
}

impl Queue {
    /// Blobs in a bucket of JetStream's object store. `bucket` is letters, digits, `-` and `_`; its size limit is
    /// `stream_bytes_max.objects`.
    pub fn objects(&self, bucket: &str, replicas: Replicas) -> Objects {
        let mut api = self.api.clone();
        api.any_server_is_current = replicas == Replicas::One;
        Objects {
            inner: Arc::new(Inner {
                api,
                bucket: bucket.to_owned(),
                stream: format!("OBJ_{bucket}"),
                replicas: replicas.count(),
                bytes_max: self.config.stream_bytes_max.objects.get(),
                made: OnceCell::new(),
            }),
        }
    }
}

impl Inner {
    /// Makes the bucket on the server, once.
    async fn ready(&self) -> Result<()> {
        if self.made.initialized() {
            return Ok(());
        }
        let body = json!({
            "name": self.stream,
            "subjects": [format!("$O.{}.C.>", self.bucket), format!("$O.{}.M.>", self.bucket)],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": self.replicas,
            "max_bytes": i64::try_from(self.bytes_max).unwrap_or(i64::MAX),
            "max_msgs": -1,
            "max_consumers": -1,
            "max_msg_size": -1,
            "max_age": 0,
            "allow_rollup_hdrs": true,
            "allow_direct": true,
        });
        let make = || ensure_stream(&self.api, &self.stream, &body);
        self.made.get_or_try_init(make).await.map(|_| ())
    }

    fn entry_subject(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(name))
    }

    fn chunk_subject(&self, id: &str) -> String {
        format!("$O.{}.C.{id}", self.bucket)
    }

    /// The entry of a name and its sequence.
    async fn find(&self, name: &Name) -> Result<Option<(Meta, Stored)>> {
        let subject = self.entry_subject(name.as_str());
        let which = Which::Last {
            last_by_subj: &subject,
        };
        let Some(stored) = self.api.get(&self.stream, which).await? else {
            return Ok(None);
        };
        let meta = Meta::read(&stored.payload)?;
        Ok((!meta.deleted).then_some((meta, stored)))
    }

    async fn put(&self, name: &Name, bytes: Bytes) -> Result<()> {
        self.ready().await?;
        let id = self.fresh_id();
        let chunk_subject = self.chunk_subject(&id);
        let chunks = match self.put_chunks(&chunk_subject, &bytes).await {
            Ok(chunks) => chunks,
            Err(error) => {
                self.discard(&chunk_subject).await;
                return Err(error);
            }
        };
        let meta = Meta {
            name: name.to_string(),
            bucket: self.bucket.clone(),
            id,
            bytes: bytes.len() as u64,
            chunks,
            digest: Meta::digest_of(&Sha256::digest(&bytes)),
            deleted: false,
        };
        for _ in 0..TRIES {
            let before = self.find(name).await?;
            let sequence = before.as_ref().map_or(0, |(_, stored)| stored.sequence);
            if !self.put_entry(&meta, sequence).await? {
                continue;
            }
            // The old chunks are unreachable now; left over after a crash here they are garbage, not data.
            if let Some((old, _)) = before
                && old.id != meta.id
            {
                self.discard(&self.chunk_subject(&old.id)).await;
            }
            return Ok(());
        }
        self.discard(&chunk_subject).await;
        Err(QueueError::Contended {
            tries: TRIES as u32,
        })
    }

    async fn put_chunks(&self, subject: &str, bytes: &Bytes) -> Result<usize> {
        const PUT: Operation = once("store a chunk");
        // After a failure no chunk is sent, and those under way are waited for: the caller removes the chunks. One that the
        // server stores after that, and what is left when a put is dropped half-way, keep their room until `reclaim`.
        let failed = AtomicBool::new(false);
        let results: Vec<Result<u64>> = stream::iter((0..bytes.len()).step_by(CHUNK_BYTES))
            .take_while(|_| ready(!failed.load(Ordering::Relaxed)))
            .map(|start| {
                let end = bytes.len().min(start + CHUNK_BYTES);
                self.api
                    .publish(PUT, subject, None, bytes.slice(start..end))
                    .inspect_err(|_| failed.store(true, Ordering::Relaxed))
            })
            .buffered(CHUNKS_IN_FLIGHT)
            .collect()
            .await;
        let sequences = results.into_iter().collect::<Result<Vec<u64>>>()?;
        // Readers take the chunks in the order of the stream. A retry after a missing leader can change it.
        if sequences.is_sorted() {
            Ok(sequences.len())
        } else {
            Err(QueueError::unavailable(PUT.name))
        }
    }

    /// Writes the entry if its sequence is still `expected`; false when it is not.
    async fn put_entry(&self, meta: &Meta, expected: u64) -> Result<bool> {
        const PUT: Operation = once("store an object's entry");
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        headers.insert(
            "Nats-Expected-Last-Subject-Sequence",
            expected.to_string().as_str(),
        );
        let subject = self.entry_subject(&meta.name);
        let stored = self
            .api
            .publish(PUT, &subject, Some(headers), meta.write())
            .await;
        match stored {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes chunks that no entry names any more.
    async fn discard(&self, chunk_subject: &str) {
        if let Err(error) = self.api.purge(&self.stream, chunk_subject).await {
            tracing::warn!(
                error = chain(&error),
                "unused chunks stay in the object store"
            );
        }
    }

    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Read> {
        self.ready().await?;
        for _ in 0..TRIES {
            let Some((meta, _)) = self.find(name).await? else {
                return Ok(Read::Missing);
            };
            if meta.bytes > bytes_max {
                return Ok(Read::TooLarge { bytes: meta.bytes });
            }
            let bytes = self.read_chunks(&meta).await?;
            if meta.describes(&bytes) {
                return Ok(Read::Found(bytes));
            }
            // What one server has damaged or lost is whole at the others, and whoever is told of damage deletes them all.
            if !self.api.any_server_is_current {
                let bytes = self.read_chunks_of_leader(&meta).await?;
                if meta.describes(&bytes) {
                    return Ok(Read::Found(bytes));
                }
            }
            // Replaced or deleted between entry and chunks, or damaged; the entry tells which.
            let now = self.find(name).await?;
            if now.is_some_and(|(now, _)| now.id == meta.id) {
                return Ok(Read::Damaged);
            }
        }
        Err(QueueError::Contended {
            tries: TRIES as u32,
        })
    }

    async fn read_chunks(&self, meta: &Meta) -> Result<Bytes> {
        let subject = self.chunk_subject(&meta.id);
        let mut parts = Vec::with_capacity(meta.chunks);
        let mut next = 1;
        while parts.len() < meta.chunks {
            let wanted = (meta.chunks - parts.len()).min(CHUNKS_PER_READ);
            let mut run = self
                .api
                .get_run(&self.stream, &subject, next, wanted)
                .await?;
            if run.is_empty() && !self.api.any_server_is_current {
                // The server that answered may not have them yet; the leader does.
                let which = Which::Next {
                    seq: next,
                    next_by_subj: &subject,
                };
                run.extend(self.api.get_from_leader(&self.stream, which).await?);
            }
            let Some(last) = run.last() else { break };
            next = last.sequence + 1;
            parts.extend(run.into_iter().map(|stored| stored.payload));
        }
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        for part in parts {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    /// The same by the leader's copies alone, one chunk in a round trip.
    async fn read_chunks_of_leader(&self, meta: &Meta) -> Result<Bytes> {
        let subject = self.chunk_subject(&meta.id);
        let (mut whole, mut next) = (BytesMut::new(), 1);
        for _ in 0..meta.chunks {
            let which = Which::Next {
                seq: next,
                next_by_subj: &subject,
            };
            let Some(chunk) = self.api.get_from_leader(&self.stream, which).await? else {
                break;
            };
            next = chunk.sequence + 1;
            whole.extend_from_slice(&chunk.payload);
        }
        Ok(whole.freeze())
    }

    async fn delete(&self, name: &Name) -> Result<bool> {
        self.ready().await?;
        let Some((meta, _)) = self.find(name).await? else {
            return Ok(false);
        };
        let subject = self.entry_subject(name.as_str());
        self.api.purge(&self.stream, &subject).await?;
        self.discard(&self.chunk_subject(&meta.id)).await;
        Ok(true)
    }

    /// The entry's place in the stream and the id of its chunks. A refresh keeps the chunks and moves the entry.
    async fn version(&self, name: &Name) -> Result<Option<Version>> {
        self.ready().await?;
        let found = self.find(name).await?;
        Ok(found.map(|(meta, stored)| Version::new(format!("{} {}", stored.sequence, meta.id))))
    }

    /// Removes this very entry, and then its chunks unless an entry that came since names them.
    async fn delete_version(&self, name: &Name, version: &Version) -> Result<bool> {
        let parts = version.as_str().split_once(' ');
        let Some((Ok(sequence), id)) = parts.map(|(at, id)| (at.parse::<u64>(), id)) else {
            return Ok(false);
        };
        let found = self.find(name).await?;
        if found.is_none_or(|(_, stored)| stored.sequence != sequence) {
            return Ok(false);
        }
        // Never another's: a server that lost its latest writes since gives their sequences to others.
        let subject = self.entry_subject(name.as_str());
        self.api
            .purge_up_to(&self.stream, &subject, sequence)
            .await?;
        // Who refreshed or replaced it just before has moved it: then there is another entry, and nothing was removed.
        let now = self.find(name).await?;
        if now.as_ref().is_none_or(|(meta, _)| meta.id != id) {
            self.discard(&self.chunk_subject(id)).await;
        }
        Ok(now.is_none())
    }

    async fn refresh(&self, name: &Name) -> Result<bool> {
        self.ready().await?;
        let Some((meta, stored)) = self.find(name).await? else {
            return Ok(false);
        };
        if self.put_entry(&meta, stored.sequence).await? {
            return Ok(true);
        }
        // Written by another just now, which is as young as it gets, or deleted.
        Ok(self.find(name).await?.is_some())
    }

    /// The names below a prefix, read from the subjects alone.
    async fn names(&self, prefix: &str) -> Result<Vec<Name>> {
        self.ready().await?;
        let base = self.entry_subject("");
        let subjects = self.api.subjects(&self.stream, &format!("{base}>")).await?;
        // There may be a million: none is kept longer than it takes to read it.
        let names = subjects.into_iter().filter_map(|subject| {
            let name = URL_SAFE.decode(subject.strip_prefix(&base)?).ok()?;
            // Names that are not ours were put there by somebody else's tool.
            String::from_utf8(name).ok()?.parse::<Name>().ok()
        });
        Ok(names
            .filter(|name| is_below(name.as_str(), prefix))
            .collect())
    }

    /// The entries of at most [`BATCH_MAX`] subjects that were listed a moment ago; those deleted meanwhile are left out.
    async fn latest(&self, subjects: &[String]) -> Result<Vec<Stored>> {
        let mut stored = self.api.get_latest(&self.stream, subjects).await?;
        if stored.len() == subjects.len() {
            return Ok(stored);
        }
        // The server that answered may not have them yet. An entry that counts as gone costs its chunks, so ask the leader.
        let found: HashSet<String> = stored.iter().map(|one| one.subject.clone()).collect();
        for subject in subjects.iter().filter(|subject| !found.contains(*subject)) {
            let which = Which::Last {
                last_by_subj: subject,
            };
            stored.extend(self.api.get(&self.stream, which).await?);
        }
        Ok(stored)
    }

    async fn entries(&self, names: Vec<Name>) -> Result<Vec<Entry>> {
        let subjects: Vec<_> = names
            .iter()
            .map(|name| self.entry_subject(name.as_str()))
            .collect();
        let stored = self.latest(&subjects).await?;
        let mut entries = Vec::with_capacity(stored.len());
        for one in stored {
            let meta = Meta::read(&one.payload)?;
            if let (false, Ok(name)) = (meta.deleted, meta.name.parse()) {
                entries.push(Entry {
                    name,
                    bytes: meta.bytes,
                    modified: one.stored_at,
                });
            }
        }
        Ok(entries)
    }

    /// Removes chunks that no entry names and that are older than `before`: of a put that was dropped half-way, or of an
    /// object whose replacement was. The chunks are listed first: whatever names one of them by then was written before.
    async fn reclaim(&self, before: UnixMillis) -> Result<u64> {
        self.ready().await?;
        let base = self.chunk_subject("");
        let chunks = self.api.subjects(&self.stream, &format!("{base}>")).await?;
        let entries = self.entry_subject("");
        let entries = self
            .api
            .subjects(&self.stream, &format!("{entries}>"))
            .await?;
        let mut named = HashSet::new();
        for page in entries.chunks(BATCH_MAX) {
            for stored in self.latest(page).await? {
                named.insert(self.chunk_subject(&Meta::read(&stored.payload)?.id));
            }
        }
        let mut reclaimed = 0;
        for subject in chunks.iter().filter(|subject| !named.contains(*subject)) {
            let which = Which::Last {
                last_by_subj: subject,
            };
            let last = self.api.get(&self.stream, which).await?;
            if last.is_some_and(|last| last.stored_at < before) {
                self.api.purge(&self.stream, subject).await?;
                reclaimed += 1;
            }
        }
        Ok(reclaimed)
    }

    /// An id that nobody else has made: the unique end of an inbox name.
    fn fresh_id(&self) -> String {
        let inbox = self.api.client.new_inbox();
        inbox.rsplit('.').next().unwrap_or(&inbox).to_owned()
    }
}

enum Read {
    Found(Bytes),
    Missing,
    /// Its chunks are not what its entry says.
    Damaged,
    TooLarge {
        bytes: u64,
    },
}

fn is_below(name: &str, prefix: &str) -> bool {
    prefix.is_empty()
        || name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn failed(operation: &'static str) -> impl Fn(QueueError) -> BackendError {
    move |error| match error {
        QueueError::Full { .. } => BackendError::Full,
        error => BackendError::failed(operation, error.is_transient(), error),
    }
}

#[async_trait]
impl Backend for Objects {
    async fn put(&self, name: &Name, bytes: Bytes) -> Result<(), BackendError> {
        self.inner.put(name, bytes).await.map_err(failed("put"))
    }

    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Option<Bytes>, BackendError> {
        match self
            .inner
            .get(name, bytes_max)
            .await
            .map_err(failed("get"))?
        {
            Read::Found(bytes) => Ok(Some(bytes)),
            Read::Missing => Ok(None),
            Read::Damaged => Err(BackendError::Damaged),
            Read::TooLarge { bytes } => Err(BackendError::TooLarge { bytes, bytes_max }),
        }
    }

    async fn head(&self, name: &Name) -> Result<Option<Entry>, BackendError> {
        let head = failed("head");
        self.inner.ready().await.map_err(&head)?;
        let found = self.inner.find(name).await.map_err(&head)?;
        Ok(found.map(|(meta, stored)| Entry {
            name: name.clone(),
            bytes: meta.bytes,
            modified: stored.stored_at,
        }))
    }

    async fn delete(&self, name: &Name) -> Result<bool, BackendError> {
        self.inner.delete(name).await.map_err(failed("delete"))
    }

    async fn version(&self, name: &Name) -> Result<Option<Version>, BackendError> {
        self.inner.version(name).await.map_err(failed("look up"))
    }

    async fn delete_version(&self, name: &Name, version: &Version) -> Result<bool, BackendError> {
        let deleted = self.inner.delete_version(name, version).await;
        deleted.map_err(failed("delete"))
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, BackendError>> {
        let inner = Arc::clone(&self.inner);
        let prefix = prefix.to_owned();
        let pages = async move {
            let names = stream::iter(inner.names(&prefix).await?);
            let pages = names.chunks(BATCH_MAX).map(Ok::<_, QueueError>);
            let entries = pages.and_then(move |page| {
                let inner = Arc::clone(&inner);
                async move { inner.entries(page).await }
            });
            Ok::<_, QueueError>(entries)
        };
        stream::once(pages)
            .try_flatten()
            .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
            .try_flatten()
            .map_err(failed("list"))
            .boxed()
    }

    fn refreshes(&self) -> bool {
        true
    }

    async fn refresh(&self, name: &Name) -> Result<bool, BackendError> {
        self.inner.refresh(name).await.map_err(failed("refresh"))
    }

    async fn reclaim(&self, before: UnixMillis) -> Result<u64, BackendError> {
        let reclaimed = self.inner.reclaim(before).await;
        reclaimed.map_err(failed("reclaim"))
    }

    async fn used_bytes(&self) -> Result<Option<u64>, BackendError> {
        let measure = failed("measure");
        self.inner.ready().await.map_err(&measure)?;
        let used = self.inner.api.used_bytes(&self.inner.stream).await;
        used.map(Some).map_err(&measure)
    }
}

#[cfg(test)]
mod tests;
