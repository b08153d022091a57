//! The effects of one chunk in order: find its tokens or make them, store them, then advance the job.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{BlobKind, Digest, JobKey, JobRecord, Move, Stage, TenantId, WorkUnit};
use medfleet_engine::{Description, EncodeEngine, Frame, Purpose};
use medfleet_proto::work::v1::{FrameEntry, FramesManifest, TokensEntry, TokensManifest};
use medfleet_store::{BlobStore, StoreError};
use medfleet_worker::{Ending, Handler, Started, chunk_key, handed_key};
use prost::Message;
use tracing::Instrument;

use crate::cache::Cache;
use crate::error::EncodeError;
use crate::metrics::EncodeMetrics;
use crate::unit::{are_numbers, came_encoded, frames_of, is_last, still_good};

/// Tokens that came with a job and are looked at at a time: all of a job's are one chunk, as many as it has frames.
const LOOKED_AT_MAX: usize = 8;
/// The device of a model that computes nothing.
const SIMULATED: &str = "simulated";

/// The stage.
pub(crate) struct Encode {
    pub(crate) store: BlobStore,
    /// Whether an edge hands on what is made here.
    pub(crate) for_edge: bool,
    pub(crate) engine: EncodeEngine,
    pub(crate) cache: Arc<Cache>,
    pub(crate) url: String,
    pub(crate) metrics: EncodeMetrics,
}

/// A chunk as its job has it.
pub(crate) struct Chunk {
    /// Under which its tokens are found.
    key: Vec<u8>,
    /// Under which an edge finds them.
    handed: Vec<u8>,
    entries: Vec<FrameEntry>,
    content: Content,
}

enum Content {
    /// Encoded before.
    Encoded(Found),
    /// To be encoded.
    Frames(Vec<Frame>),
}

/// What an earlier job has left of a chunk.
struct Found {
    /// The names of its tokens.
    blobs: Vec<Digest>,
    /// The list of them, as it is stored.
    list: Bytes,
}

impl Encode {
    async fn manifest(
        &self,
        tenant: &TenantId,
        record: &JobRecord,
    ) -> Result<(Digest, FramesManifest), EncodeError> {
        let missing = EncodeError::Manifest {
            reason: "the record names none",
        };
        let digest = record.frames.ok_or(missing)?;
        let bytes = self.store.get(tenant, BlobKind::Frames, &digest).await?;
        let manifest = FramesManifest::decode(bytes).map_err(|_| EncodeError::Manifest {
            reason: "it is not the encoding of a manifest",
        })?;
        Ok((digest, manifest))
    }

    /// What there is of a chunk.
    async fn chunk(&self, unit: &WorkUnit, record: &JobRecord) -> Result<Chunk, EncodeError> {
        let tenant = &unit.key.tenant;
        let (frames_digest, manifest) = self.manifest(tenant, record).await?;
        let entries = frames_of(&manifest, unit.unit)?.to_vec();
        let encoder = &self.engine.description().encoder_digest;
        let key = chunk_key(&frames_digest, unit.unit, encoder);
        let came = came_encoded(&manifest, unit.unit, self.engine.description())?;
        let content = match came {
            Some(came) => Content::Encoded(self.came(tenant, &came).await?),
            None => match self.found(tenant, &key, &entries).await? {
                Some(found) => Content::Encoded(found),
                None => {
                    let frames = entries.iter().map(|entry| self.frame(tenant, entry));
                    Content::Frames(try_join_all(frames).await?)
                }
            },
        };
        Ok(Chunk {
            key,
            handed: handed_key((&unit.key.job, unit.epoch), &frames_digest, unit.unit),
            entries,
            content,
        })
    }

    /// The blobs of a chunk that came encoded, each looked at: whoever sent them is no encoder of this fleet.
    async fn came(&self, tenant: &TenantId, came: &TokensManifest) -> Result<Found, EncodeError> {
        let entries = came.tokens.iter().enumerate();
        let blobs = entries.map(|(image, entry)| self.looked_at(tenant, image, entry));
        let blobs: Vec<_> = blobs.collect();
        Ok(Found {
            blobs: stream::iter(blobs)
                .buffered(LOOKED_AT_MAX)
                .try_collect()
                .await?,
            list: came.encode_to_vec().into(),
        })
    }

    async fn looked_at(
        &self,
        tenant: &TenantId,
        image: usize,
        entry: &TokensEntry,
    ) -> Result<Digest, EncodeError> {
        let Description {
            tokens_per_image,
            token_width,
            dtype,
            device,
            ..
        } = self.engine.description();
        let digest = Digest::from_slice(&entry.digest).map_err(|_| EncodeError::Manifest {
            reason: "the digest of tokens has another length",
        })?;
        let bytes = self.store.get(tenant, BlobKind::Tokens, &digest).await;
        let bytes = bytes.map_err(|error| match error {
            StoreError::Missing { .. } => EncodeError::Manifest {
                reason: "tokens that came with it are gone",
            },
            error => error.into(),
        })?;
        let wrong = |what| EncodeError::Tokens { image, what };
        let values = *tokens_per_image as usize * *token_width as usize;
        if bytes.len() != values * dtype.size_bytes() {
            return Err(wrong("as long as their shape"));
        }
        // The simulation's tokens are any bytes.
        if device != SIMULATED && !are_numbers(&bytes, *dtype) {
            return Err(wrong("finite numbers"));
        }
        Ok(digest)
    }

    /// The blobs of a chunk that was encoded before, by whichever job, when all of them are still there.
    async fn found(
        &self,
        tenant: &TenantId,
        key: &[u8],
        frames: &[FrameEntry],
    ) -> Result<Option<Found>, EncodeError> {
        let list = match self
            .store
            .get_mutable(tenant, BlobKind::TokensOfChunk, key)
            .await
        {
            Ok(Some(list)) => list,
            // What cannot be read is made again.
            Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Ok(stored) = TokensManifest::decode(list.clone()) else {
            return Ok(None);
        };
        let Some(blobs) = still_good(&stored, frames, self.engine.description()) else {
            return Ok(None);
        };
        let there = blobs
            .iter()
            .map(|digest| self.store.exists(tenant, BlobKind::Tokens, digest));
        let there = try_join_all(there).await?;
        let all = there.into_iter().all(|there| there);
        Ok(all.then_some(Found { blobs, list }))
    }

    /// Encodes a chunk and stores its tokens and their manifest, which is given back.
    async fn make(
        &self,
        job: &JobKey,
        key: &[u8],
        entries: &[FrameEntry],
        (frames, purpose): (Vec<Frame>, Purpose),
    ) -> Result<Bytes, EncodeError> {
        let tenant = &job.tenant;
        let description = self.engine.description();
        let span = tracing::debug_span!(
            "encode images",
            gen_ai.operation.name = "embeddings",
            gen_ai.request.model = %description.model,
            medfleet.frames = entries.len(),
        );
        let encoded = self.engine.encode(frames, purpose).instrument(span).await?;
        self.metrics.frames.inc_by(entries.len() as u64);
        self.metrics.chunk_frames.observe(entries.len() as f64);
        self.metrics
            .device_seconds
            .observe(encoded.device.as_secs_f64());
        let contents = encoded
            .tokens
            .iter()
            .map(|tokens| (BlobKind::Tokens, tokens.bytes.clone()));
        let contents: Vec<_> = contents.collect();
        let digests = contents
            .iter()
            .map(|(_, bytes)| self.store.digest(tenant, bytes));
        let blobs = join_all(digests).await;
        let made = encoded.tokens.iter().zip(&blobs).zip(entries);
        let tokens = made.map(|((tokens, digest), entry)| TokensEntry {
            digest: Bytes::copy_from_slice(digest.as_bytes()),
            count: tokens.count,
            width: tokens.width,
            dtype: tokens.dtype.as_str().to_owned(),
            frame_digest: entry.digest.clone(),
        });
        let manifest = TokensManifest {
            tokens: tokens.collect(),
            encoder_digest: Bytes::copy_from_slice(description.encoder_digest.as_bytes()),
            encoder_url: self.url.clone(),
            device: description.device.clone(),
        };
        let manifest = Bytes::from(manifest.encode_to_vec());
        // In this order: decoders of other jobs read the manifest by its name, and must find what it names.
        self.store.keep(job, contents, &[], ready(Ok(()))).await?;
        // Not sooner: of a job that was erased meanwhile nothing stays here. No decoder asks before the list is there.
        for (digest, tokens) in blobs.into_iter().zip(encoded.tokens) {
            self.cache.put(tenant, digest, tokens.bytes);
        }
        self.store
            .put_mutable(tenant, BlobKind::TokensOfChunk, key, manifest.clone())
            .await?;
        Ok(manifest)
    }

    /// Leaves the list for an edge.
    async fn hand(&self, tenant: &TenantId, handed: &[u8], list: Bytes) -> Result<(), EncodeError> {
        let put = self
            .store
            .put_mutable(tenant, BlobKind::TokensOfChunk, handed, list);
        put.await?;
        Ok(())
    }

    async fn frame(&self, tenant: &TenantId, entry: &FrameEntry) -> Result<Frame, EncodeError> {
        let digest = Digest::from_slice(&entry.digest).map_err(|_| EncodeError::Manifest {
            reason: "a frame's digest has another length",
        })?;
        let pixels = self.store.get(tenant, BlobKind::Frame, &digest).await?;
        Ok(Frame {
            side: entry.width,
            channels: entry.channels,
            pixels,
        })
    }
}

/// Takes the job's reference on what an earlier one has left of a chunk, and makes it last as long as this job.
async fn take(
    store: &BlobStore,
    job: &JobKey,
    key: &[u8],
    found: Found,
) -> Result<(), EncodeError> {
    let JobKey { tenant, job } = job;
    let blobs = found.blobs.into_iter();
    let blobs: Vec<_> = blobs.map(|digest| (BlobKind::Tokens, digest)).collect();
    store.reference(tenant, job, &blobs).await?;
    // Nobody references the list: an old one could be collected before this job is decoded.
    store
        .put_mutable(tenant, BlobKind::TokensOfChunk, key, found.list)
        .await?;
    Ok(())
}

impl Handler for Encode {
    const STAGE: Stage = Stage::Encode;

    type Inputs = Chunk;

    async fn read(&self, unit: &WorkUnit, record: &JobRecord) -> Result<Chunk, Ending> {
        Ok(self.chunk(unit, record).await?)
    }

    async fn work(&self, started: &Started, chunk: Chunk) -> Result<(), Ending> {
        let Chunk {
            key,
            handed,
            entries,
            content,
        } = chunk;
        let (unit, chunk) = (&started.unit, started.unit.unit);
        let list = match content {
            Content::Encoded(found) => {
                self.metrics.chunks_found.inc();
                let list = found.list.clone();
                take(&self.store, &unit.key, &key, found).await?;
                list
            }
            Content::Frames(frames) => {
                let purpose = Purpose {
                    class: unit.class,
                    is_last: is_last(started.record.chunks, chunk),
                };
                self.make(&unit.key, &key, &entries, (frames, purpose))
                    .await?
            }
        };
        if self.for_edge {
            self.hand(&unit.key.tenant, &handed, list).await?;
        }
        started.advance(&Move::ChunkEncoded { chunk }).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::{Class, JobId};
    use medfleet_engine::{Simulated, SimulatedShape, SimulatedTiming};
    use medfleet_runtime::Metrics;
    use medfleet_store::FleetKey;

    use super::*;

    #[tokio::test]
    async fn of_an_erased_job_no_tokens_stay_in_memory() {
        let shape = SimulatedShape {
            frame_side: 8,
            ..SimulatedShape::default()
        };
        let simulated = Simulated::new(shape, SimulatedTiming::default());
        let engine = EncodeEngine::start(Box::new(simulated), 1).expect("a thread starts");
        let encode = Encode {
            store: BlobStore::in_memory(FleetKey::new([1; 32])),
            for_edge: false,
            engine,
            cache: Arc::new(Cache::new(64 << 20)),
            url: String::new(),
            metrics: EncodeMetrics::register(&Metrics::new()),
        };
        let make = async |job: [u8; 16]| {
            let key = JobKey {
                tenant: "a".parse().expect("a tenant"),
                job: JobId::from_bytes(job),
            };
            let frame = Frame {
                side: 8,
                channels: 1,
                pixels: vec![job[0]; 64].into(),
            };
            let purpose = Purpose {
                class: Class::Routine,
                is_last: true,
            };
            let entries = [FrameEntry::default()];
            let input = (vec![frame], purpose);
            encode.make(&key, b"chunk", &entries, input).await
        };
        let erased = JobKey {
            tenant: "a".parse().expect("a tenant"),
            job: JobId::from_bytes([1; 16]),
        };
        let erasure = encode.store.erase(&erased.tenant, &erased.job).await;
        erasure.expect("erases");
        let refused = make([1; 16]).await;
        assert!(
            matches!(refused, Err(EncodeError::Store(StoreError::JobErased))),
            "{refused:?}"
        );
        assert_eq!(encode.cache.bytes().0, 0);
        make([2; 16]).await.expect("this one was not");
        assert_ne!(encode.cache.bytes().0, 0);
    }

    #[tokio::test]
    async fn a_list_that_was_found_is_there_again_when_its_chunk_is_taken() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let key = JobKey {
            tenant: "a".parse().expect("a tenant"),
            job: JobId::from_bytes([1; 16]),
        };
        let tokens = Bytes::from_static(b"tokens");
        let tokens = store.put(&key.tenant, BlobKind::Tokens, tokens).await;
        let found = Found {
            blobs: vec![tokens.expect("stores")],
            list: Bytes::from_static(b"list"),
        };
        // It was old, and the keeper has collected it since it was read.
        let taken = take(&store, &key, b"chunk", found).await;
        taken.expect("takes");
        let list = store.get_mutable(&key.tenant, BlobKind::TokensOfChunk, b"chunk");
        assert_eq!(list.await.expect("works").as_deref(), Some(&b"list"[..]));
        let holders = store.holders(&key.tenant).await.expect("lists");
        assert!(holders.contains_key(&key.job));
    }
}
