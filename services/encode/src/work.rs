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
    /// Whether an edge hands on what is made here.
    pub(crate) for_edge: bool,
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
    /// The key of the list of its tokens, for decode.
    key: Vec<u8>,
    /// The key of the list that is left for a hospital's edge.
    handed: Vec<u8>,
    content: Content,
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
            key: chunk_key(&frames_digest, unit.unit, &description.encoder_digest),
            handed: handed_key((&unit.key.job, unit.epoch), &frames_digest, unit.unit),
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
        let digest = Digest::from_slice(&entry.digest).map_err(|_| EncodeError::Manifest {
            reason: "the digest of tokens has another length",
        })?;
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

    /// Leaves the list of a chunk's tokens for the hospital's edge that hands the job on, under `handed`.
    async fn leave_for_edge(
        &self,
        tenant: &TenantId,
        handed: &[u8],
        list: Bytes,
    ) -> Result<(), EncodeError> {
        let put = self
            .store
            .put_mutable(tenant, BlobKind::TokensOfChunk, handed, list);
        put.await?;
        Ok(())
    }
}

/// Takes the job's reference on tokens that came with it, and writes their list anew under `key`.
async fn adopt(
    store: &BlobStore,
    job: &JobKey,
    key: &[u8],
    imported: Imported,
) -> Result<(), EncodeError> {
    let JobKey { tenant, job } = job;
    let blobs = imported.blobs.into_iter();
    let blobs: Vec<_> = blobs.map(|digest| (BlobKind::Tokens, digest)).collect();
    store.reference(tenant, job, &blobs).await?;
    // No job references a list, so an old one could be collected before this job is decoded.
    store
        .put_mutable(tenant, BlobKind::TokensOfChunk, key, imported.list)
        .await?;
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
        let Chunk {
            key,
            handed,
            content,
        } = chunk;
        let (unit, chunk) = (&started.unit, started.unit.unit);
        let list = match content {
            Content::Imported(imported) => {
                self.metrics.chunks_found.inc();
                let list = imported.list.clone();
                adopt(&self.store, &unit.key, &key, imported).await?;
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
                let list = self.provide(&whose, wanted).await?;
                let list = Bytes::from(list.encode_to_vec());
                // The list is written last: decoders of other jobs read it by its name, and must find what it names.
                let (tenant, kind) = (&unit.key.tenant, BlobKind::TokensOfChunk);
                let put = self.store.put_mutable(tenant, kind, &key, list.clone());
                put.await?;
                list
            }
        };
        if self.for_edge {
            self.leave_for_edge(&unit.key.tenant, &handed, list).await?;
        }
        started.advance(&Move::ChunkEncoded { chunk }).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::JobId;
    use medfleet_store::FleetKey;

    use super::*;

    #[tokio::test]
    async fn a_list_that_was_collected_is_there_again_when_its_chunk_is_adopted() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let key = JobKey {
            tenant: "a".parse().expect("a tenant"),
            job: JobId::from_bytes([1; 16]),
        };
        let tokens = Bytes::from_static(b"tokens");
        let tokens = store.put(&key.tenant, BlobKind::Tokens, tokens).await;
        let imported = Imported {
            blobs: vec![tokens.expect("stores")],
            list: Bytes::from_static(b"list"),
        };
        // It was old, and the keeper has collected it since it was read.
        let adopted = adopt(&store, &key, b"chunk", imported).await;
        adopted.expect("stores");
        let list = store.get_mutable(&key.tenant, BlobKind::TokensOfChunk, b"chunk");
        assert_eq!(list.await.expect("works").as_deref(), Some(&b"list"[..]));
        let holders = store.holders(&key.tenant).await.expect("lists");
        assert!(holders.contains_key(&key.job));
    }
}
