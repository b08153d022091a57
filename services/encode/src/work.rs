//! The effects of one chunk in order: its tokens, found or made, are in the store and relied on, then their list is written,
//! then the job advances.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{BlobKind, Digest, JobKey, JobRecord, Move, Stage, TenantId, WorkUnit};
use medfleet_engine::{Description, EncodeEngine, Purpose};
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
    pub(crate) claims: Claims,
    pub(crate) elsewhere: Arc<Elsewhere>,
    /// How long a frame took when frames were encoded last; 0 before the first.
    pub(crate) frame_nanos: AtomicU64,
    pub(crate) url: String,
    pub(crate) metrics: EncodeMetrics,
}

/// A chunk as its job has it.
pub(crate) struct Chunk {
    /// Under which its tokens are found.
    key: Vec<u8>,
    /// Under which an edge finds them.
    handed: Vec<u8>,
    content: Content,
}

enum Content {
    /// It came encoded.
    Came(Came),
    /// Its frames are found or encoded.
    Frames(Vec<Wanted>),
}

/// Tokens that came with a job.
struct Came {
    /// Their names.
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
        let description = self.engine.description();
        let content = match came_encoded(&manifest, unit.unit, description)? {
            Some(came) => Content::Came(self.came(tenant, &came).await?),
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

    /// The blobs of a chunk that came encoded, each looked at: whoever sent them is no encoder of this fleet.
    async fn came(&self, tenant: &TenantId, came: &TokensManifest) -> Result<Came, EncodeError> {
        let entries = came.tokens.iter().enumerate();
        let blobs = entries.map(|(image, entry)| self.looked_at(tenant, image, entry));
        let blobs: Vec<_> = blobs.collect();
        Ok(Came {
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

    /// Leaves the list for an edge.
    async fn hand(&self, tenant: &TenantId, handed: &[u8], list: Bytes) -> Result<(), EncodeError> {
        let put = self
            .store
            .put_mutable(tenant, BlobKind::TokensOfChunk, handed, list);
        put.await?;
        Ok(())
    }
}

/// Takes the job's reference on what came with it, and makes the list last as long as this job.
async fn take(store: &BlobStore, job: &JobKey, key: &[u8], came: Came) -> Result<(), EncodeError> {
    let JobKey { tenant, job } = job;
    let blobs = came.blobs.into_iter();
    let blobs: Vec<_> = blobs.map(|digest| (BlobKind::Tokens, digest)).collect();
    store.reference(tenant, job, &blobs).await?;
    // Nobody references the list: an old one could be collected before this job is decoded.
    store
        .put_mutable(tenant, BlobKind::TokensOfChunk, key, came.list)
        .await?;
    Ok(())
}

impl Handler for Encode {
    const STAGE: Stage = Stage::Encode;

    // It waits for tokens that others make, with its own frames in memory.
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
            Content::Came(came) => {
                self.metrics.chunks_found.inc();
                let list = came.list.clone();
                take(&self.store, &unit.key, &key, came).await?;
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
                // In this order: decoders of other jobs read the list by its name, and must find what it names.
                let (tenant, kind) = (&unit.key.tenant, BlobKind::TokensOfChunk);
                let put = self.store.put_mutable(tenant, kind, &key, list.clone());
                put.await?;
                list
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
    use medfleet_core::JobId;
    use medfleet_store::FleetKey;

    use super::*;

    #[tokio::test]
    async fn a_list_that_came_is_there_again_when_its_chunk_is_taken() {
        let store = BlobStore::in_memory(FleetKey::new([1; 32]));
        let key = JobKey {
            tenant: "a".parse().expect("a tenant"),
            job: JobId::from_bytes([1; 16]),
        };
        let tokens = Bytes::from_static(b"tokens");
        let tokens = store.put(&key.tenant, BlobKind::Tokens, tokens).await;
        let came = Came {
            blobs: vec![tokens.expect("stores")],
            list: Bytes::from_static(b"list"),
        };
        // It was old, and the keeper has collected it since it was read.
        let taken = take(&store, &key, b"chunk", came).await;
        taken.expect("takes");
        let list = store.get_mutable(&key.tenant, BlobKind::TokensOfChunk, b"chunk");
        assert_eq!(list.await.expect("works").as_deref(), Some(&b"list"[..]));
        let holders = store.holders(&key.tenant).await.expect("lists");
        assert!(holders.contains_key(&key.job));
    }
}
