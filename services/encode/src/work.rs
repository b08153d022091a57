//! The effects of one chunk in order: its tokens, found or made, are in the store and relied on, then their list is written,
//! then the job advances.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{BlobKind, Digest, JobKey, JobRecord, Move, Stage, TenantId, WorkUnit};
use medfleet_engine::{EncodeEngine, Purpose};
use medfleet_proto::work::v1::{FramesManifest, TokensEntry, TokensManifest};
use medfleet_store::{BlobStore, StoreError};
use medfleet_worker::{Ending, Handler, Started, chunk_key, handed_key};
use prost::Message;

use crate::cache::Cache;
use crate::claims::Claims;
use crate::elsewhere::Elsewhere;
use crate::error::EncodeError;
use crate::frames::{Wanted, Whose};
use crate::metrics::EncodeMetrics;
use crate::unit::{are_numbers, came_encoded, frames_of, is_last};

/// Imported tensors that are checked at a time: those of a job are one chunk, however many frames it has.
const CHECKED_MAX: usize = 8;

/// The stage.
pub(crate) struct Encode {
    pub(crate) store: BlobStore,
    pub(crate) engine: EncodeEngine,
    pub(crate) cache: Arc<Cache>,
    pub(crate) claims: Claims,
    pub(crate) elsewhere: Arc<Elsewhere>,
    /// Nanoseconds a frame took when frames were encoded last; 0 before the first.
    pub(crate) frame_nanos: AtomicU64,
    pub(crate) url: String,
    pub(crate) metrics: EncodeMetrics,
}

/// What is known of a chunk before its work begins.
pub(crate) struct Chunk {
    keys: Keys,
    content: Content,
}

/// The keys of the list of a chunk's tokens.
struct Keys {
    /// The job's own, which its decoder reads, or its hospital's edge.
    of_job: Vec<u8>,
    /// That of all jobs with these frames, for decoders of earlier releases: the last one to be encoded has it.
    of_frames: Vec<u8>,
}

impl Keys {
    fn of(unit: &WorkUnit, frames: &Digest, encoder: &Digest) -> Self {
        Self {
            of_job: handed_key((&unit.key.job, unit.epoch), frames, unit.unit),
            of_frames: chunk_key(frames, unit.unit, encoder),
        }
    }
}

enum Content {
    /// Its tokens came with the job, in an encoded study.
    Imported(Imported),
    /// Its frames, whose tokens are found in the cache or encoded.
    Frames(Vec<Wanted>),
}

/// Tokens that came with a job from a hospital's edge, checked.
struct Imported {
    /// Their names in the store.
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
        let missing = EncodeError::Manifest("the record names none");
        let digest = record.frames.ok_or(missing)?;
        let bytes = self.store.get(tenant, BlobKind::Frames, &digest).await?;
        let manifest = FramesManifest::decode(bytes)
            .map_err(|_| EncodeError::Manifest("it is not the encoding of a manifest"))?;
        Ok((digest, manifest))
    }

    /// Reads a chunk: the tokens that came with it, or its frames with their tokens or pixels.
    async fn chunk(&self, unit: &WorkUnit, record: &JobRecord) -> Result<Chunk, EncodeError> {
        let tenant = &unit.key.tenant;
        let (frames_digest, manifest) = self.manifest(tenant, record).await?;
        let description = self.engine.description();
        let content = match came_encoded(&manifest, unit.unit, description)? {
            Some(list) => Content::Imported(self.import(tenant, &list).await?),
            None => {
                let entries = frames_of(&manifest, unit.unit)?;
                let version = &manifest.preprocessing_version;
                Content::Frames(self.wanted(tenant, entries, version).await?)
            }
        };
        Ok(Chunk {
            keys: Keys::of(unit, &frames_digest, &description.encoder_digest),
            content,
        })
    }

    /// Checks each of the tokens that came with a job: they were not made by an encoder of this fleet.
    async fn import(
        &self,
        tenant: &TenantId,
        list: &TokensManifest,
    ) -> Result<Imported, EncodeError> {
        let entries = list.tokens.iter().enumerate();
        let blobs = entries.map(|(image, entry)| self.checked(tenant, image, entry));
        let blobs: Vec<_> = blobs.collect();
        Ok(Imported {
            blobs: stream::iter(blobs)
                .buffered(CHECKED_MAX)
                .try_collect()
                .await?,
            list: list.encode_to_vec().into(),
        })
    }

    /// The name of one image's tokens, which are there, as long as their shape says, and finite numbers.
    async fn checked(
        &self,
        tenant: &TenantId,
        image: usize,
        entry: &TokensEntry,
    ) -> Result<Digest, EncodeError> {
        let model = self.engine.description();
        let digest = Digest::from_slice(&entry.digest)
            .map_err(|_| EncodeError::Manifest("the digest of tokens has another length"))?;
        let bytes = self.store.get(tenant, BlobKind::Tokens, &digest).await;
        let bytes = bytes.map_err(|error| match error {
            StoreError::Missing { .. } => EncodeError::Gone,
            error => error.into(),
        })?;
        let wrong = |what| EncodeError::Tokens { image, what };
        let values = model.tokens_per_image as usize * model.token_width as usize;
        if bytes.len() != values * model.dtype.bytes() {
            return Err(wrong("as long as their shape"));
        }
        // The simulation's tokens are any bytes.
        if !model.is_simulated() && !are_numbers(&bytes, model.dtype) {
            return Err(wrong("finite numbers"));
        }
        Ok(digest)
    }
}

/// Has the job reference the tokens that came with it.
async fn adopt(store: &BlobStore, job: &JobKey, tokens: &[Digest]) -> Result<(), EncodeError> {
    let blobs = tokens.iter().map(|digest| (BlobKind::Tokens, *digest));
    let blobs: Vec<_> = blobs.collect();
    store.reference(&job.tenant, &job.job, &blobs).await?;
    Ok(())
}

/// Leaves the list of a chunk's tokens. No job references a list, so an old one, which could be collected before the job is
/// decoded, is written anew. Two jobs with the same frames have a list each: the tokens that the other's list names may be of
/// another dtype (where two pools differ in it), or be erased with the other job (where the encoders' devices differ).
async fn leave(
    store: &BlobStore,
    tenant: &TenantId,
    keys: &Keys,
    list: &Bytes,
) -> Result<(), EncodeError> {
    let keys: [&[u8]; 2] = [&keys.of_job, &keys.of_frames];
    let kind = BlobKind::TokensOfChunk;
    store.put_under_each(tenant, kind, &keys, list).await?;
    Ok(())
}

impl Handler for Encode {
    const STAGE: Stage = Stage::Encode;

    // One more chunk for each slot may wait, with its frames in memory, for tokens that others make.
    const ASIDE: usize = 1;

    type Inputs = Chunk;

    async fn read(&self, unit: &WorkUnit, record: &JobRecord) -> Result<Chunk, Ending> {
        Ok(self.chunk(unit, record).await?)
    }

    async fn work(&self, started: &Started, chunk: Chunk) -> Result<(), Ending> {
        let Chunk { keys, content } = chunk;
        let (unit, chunk) = (&started.unit, started.unit.unit);
        let list = match content {
            Content::Imported(Imported { blobs, list }) => {
                self.metrics.chunks_found.inc();
                adopt(&self.store, &unit.key, &blobs).await?;
                list
            }
            Content::Frames(wanted) => {
                let purpose = Purpose {
                    class: unit.class,
                    is_last: is_last(started.record.chunks, chunk),
                };
                let whose = Whose {
                    job: &unit.key,
                    purpose,
                    place: &started.place,
                };
                self.provide(&whose, wanted).await?.encode_to_vec().into()
            }
        };
        // Last: decoders of earlier releases read another job's by its name, and must find what it names.
        leave(&self.store, &unit.key.tenant, &keys, &list).await?;
        started.advance(&Move::ChunkEncoded { chunk }).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::{Class, JobId};
    use medfleet_store::FleetKey;
    use medfleet_testkit as kit;

    use super::*;

    #[tokio::test]
    async fn a_job_relies_on_tokens_that_came_with_it() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let key = JobKey::new("a".parse().expect("a tenant"), JobId::from_bytes([1; 16]));
        let tokens = Bytes::from_static(b"tokens");
        let tokens = store.put(&key.tenant, BlobKind::Tokens, tokens).await;
        let adopted = adopt(&store, &key, &[tokens.expect("stores")]).await;
        adopted.expect("stores");
        let holders = store.holders(&key.tenant).await.expect("lists");
        assert!(holders.contains_key(&key.job));
    }

    /// At encoders of different devices, or of pools of different types, with the same vision weights.
    #[tokio::test]
    async fn of_jobs_with_the_same_frames_each_leaves_a_list_of_its_own() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let (frames, encoder) = (Digest::new([1; 32]), Digest::new([2; 32]));
        let tenant = kit::tenant();
        let mut left = Vec::new();
        for (seed, list) in [(1, &b"of one"[..]), (2, &b"of the other"[..])] {
            let job = kit::record(seed, 1).0;
            let unit = kit::unit(&job, Stage::Encode, Class::Routine, 0);
            let keys = Keys::of(&unit, &frames, &encoder);
            let put = leave(&store, &tenant, &keys, &Bytes::from_static(list)).await;
            put.expect("stores");
            left.push((keys, list));
        }
        for (keys, list) in &left {
            let kind = BlobKind::TokensOfChunk;
            let own = store.get_mutable(&tenant, kind, &keys.of_job).await;
            assert_eq!(own.expect("works").as_deref(), Some(*list));
            // Decoders of earlier releases find the last one.
            let last = store.get_mutable(&tenant, kind, &keys.of_frames).await;
            assert_eq!(last.expect("works").as_deref(), Some(left[1].1));
        }
    }
}
