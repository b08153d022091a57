//! The image tokens of a chunk's frames. Where an earlier job of the tenant had the same frame they are found, in this
//! encoder's memory or in the store, and only the other frames are encoded. What is found counts only while the store has it:
//! memory may not have heard of an erasure, and nothing comes back from there.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{BlobKind, Digest, JobKey, TenantId};
use medfleet_engine::{Frame, Purpose};
use medfleet_proto::work::v1::{FrameEntry, TokensEntry, TokensManifest};
use medfleet_store::StoreError;
use medfleet_worker::made_for;
use prost::Message;
use tracing::Instrument;

use crate::cache::Made;
use crate::error::EncodeError;
use crate::metrics::Tier;
use crate::unit::{fetched_from, frame_key, still_good};
use crate::work::Encode;

/// Lists that are asked for at a time.
const ASKED_MAX: usize = 8;

/// A frame of a chunk, and what there is of it.
pub(crate) struct Wanted {
    frame: Named,
    has: Has,
}

/// A frame, and by what its tokens are found.
struct Named {
    entry: FrameEntry,
    /// The key of the list in the store that leads to them.
    key: Vec<u8>,
    /// The name of that list, by which memory knows the frame too.
    name: Digest,
}

enum Has {
    Tokens(Found),
    Pixels(Frame),
}

/// Tokens that are there.
struct Found {
    entry: TokensEntry,
    tokens: Digest,
    /// Where the encoder answers that made them.
    encoder_url: String,
    tier: Tier,
}

/// Tokens that were made just now.
struct Fresh<'a> {
    frame: &'a Named,
    tokens: Made,
    entry: TokensEntry,
    bytes: Bytes,
}

impl Found {
    /// What the job relies on.
    fn blobs(&self, frame: &Named) -> [(BlobKind, Digest); 2] {
        [
            (BlobKind::Tokens, self.tokens),
            (BlobKind::TokensOfChunk, frame.name),
        ]
    }
}

impl Encode {
    /// Each frame with its tokens where they are known, else with its pixels.
    pub(crate) async fn wanted(
        &self,
        tenant: &TenantId,
        entries: &[FrameEntry],
        preprocessing_version: &str,
    ) -> Result<Vec<Wanted>, EncodeError> {
        let frames = entries.iter().map(|entry| {
            let key = frame_key(entry, preprocessing_version, self.engine.description());
            Named {
                entry: entry.clone(),
                name: self.store.name_of(tenant, &key),
                key,
            }
        });
        let frames: Vec<Named> = frames.collect();
        let known = self.look(tenant, &frames).await?;
        let has = frames.iter().zip(known);
        let has = has.map(|(frame, found)| self.has(tenant, frame, found));
        let has = try_join_all(has).await?;
        let wanted = frames.into_iter().zip(has);
        Ok(wanted.map(|(frame, has)| Wanted { frame, has }).collect())
    }

    /// The tokens of all frames of a chunk, which are in the store and relied on by the job from now on.
    pub(crate) async fn provide(
        &self,
        (job, purpose): (&JobKey, Purpose),
        mut wanted: Vec<Wanted>,
    ) -> Result<TokensManifest, EncodeError> {
        let missing = wanted.iter().filter(|wanted| wanted.is_missing());
        let missing: HashSet<Digest> = missing.map(|wanted| wanted.frame.name).collect();
        // What another slot encodes meanwhile is found when it has done so.
        let claim = self.claims.take(&job.tenant, &missing).await;
        for wanted in &mut wanted {
            self.find_again(&job.tenant, wanted);
        }
        let fresh = self.encode(job, &wanted, purpose).await?;
        self.keep(job, &wanted, &fresh).await?;
        drop(claim);
        Ok(self.listed(&wanted, &fresh))
    }

    /// What is known of each frame's tokens, in their order; nothing of those that have to be made.
    async fn look(
        &self,
        tenant: &TenantId,
        frames: &[Named],
    ) -> Result<Vec<Option<Found>>, EncodeError> {
        let known = frames.iter().map(|frame| self.known(tenant, frame));
        let known: Vec<_> = known.collect();
        let known = stream::iter(known).buffered(ASKED_MAX);
        let mut known: Vec<Option<Found>> = known.try_collect().await?;
        let blobs = known.iter().zip(frames);
        let blobs = blobs.filter_map(|(found, frame)| Some(found.as_ref()?.blobs(frame)));
        let blobs: Vec<_> = blobs.flatten().collect();
        if blobs.is_empty() {
            return Ok(known);
        }
        let there = self.store.which_exist(tenant, &blobs).await?;
        // Tokens and the list that leads to them.
        let mut there = there.chunks_exact(2);
        for known in &mut known {
            let Some(found) = known else { continue };
            let is_there = there.next().is_some_and(|both| both.iter().all(|is| *is));
            if !is_there {
                self.cache.remove(tenant, found.tokens);
                *known = None;
            }
        }
        Ok(known)
    }

    /// What memory, or else the store, says of a frame's tokens.
    async fn known(&self, tenant: &TenantId, frame: &Named) -> Result<Option<Found>, EncodeError> {
        if let Some(made) = self.cache.find(tenant, frame.name) {
            return Ok(Some(self.found_here(&frame.entry, made)));
        }
        let kind = BlobKind::TokensOfChunk;
        let list = match self.store.get_mutable(tenant, kind, &frame.key).await {
            Ok(Some(list)) => list,
            // What cannot be read is made again.
            Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Ok(list) = TokensManifest::decode(list) else {
            return Ok(None);
        };
        let frames = std::slice::from_ref(&frame.entry);
        let tokens = still_good(&list, frames, self.engine.description());
        let (Some([tokens]), Some(entry)) = (tokens.as_deref(), list.tokens.first()) else {
            return Ok(None);
        };
        Ok(Some(Found {
            entry: entry.clone(),
            tokens: *tokens,
            encoder_url: list.encoder_url.clone(),
            tier: Tier::Store,
        }))
    }

    async fn has(
        &self,
        tenant: &TenantId,
        frame: &Named,
        found: Option<Found>,
    ) -> Result<Has, EncodeError> {
        if let Some(found) = found {
            return Ok(Has::Tokens(found));
        }
        let entry = &frame.entry;
        let digest = Digest::from_slice(&entry.digest).map_err(|_| EncodeError::Manifest {
            reason: "a frame's digest has another length",
        })?;
        let pixels = self.store.get(tenant, BlobKind::Frame, &digest).await?;
        Ok(Has::Pixels(Frame {
            side: entry.width,
            channels: entry.channels,
            pixels,
        }))
    }

    /// Takes what another slot has made since the frame was looked for.
    fn find_again(&self, tenant: &TenantId, wanted: &mut Wanted) {
        if wanted.is_missing()
            && let Some(made) = self.cache.find(tenant, wanted.frame.name)
        {
            wanted.has = Has::Tokens(self.found_here(&wanted.frame.entry, made));
        }
    }

    /// Encodes what is missing, each frame once, however often a chunk has it.
    async fn encode<'a>(
        &self,
        job: &JobKey,
        wanted: &'a [Wanted],
        purpose: Purpose,
    ) -> Result<Vec<Fresh<'a>>, EncodeError> {
        let missing = self.missing(wanted);
        if missing.is_empty() {
            self.metrics.chunks_found.inc();
            return Ok(Vec::new());
        }
        let span = tracing::debug_span!(
            "encode images",
            gen_ai.operation.name = "embeddings",
            gen_ai.request.model = %self.engine.description().model,
            // Unsigned it would reach a collector as text.
            medfleet.frames = missing.len() as i64,
        );
        let pixels = missing.iter().map(|(_, pixels)| (*pixels).clone());
        let encoding = self.engine.encode(pixels.collect(), purpose);
        let encoded = encoding.instrument(span).await?;
        self.metrics.frames.inc_by(missing.len() as u64);
        self.metrics.chunk_frames.observe(missing.len() as f64);
        let seconds = encoded.device.as_secs_f64();
        self.metrics.device_seconds.observe(seconds);
        let digests = encoded.tokens.iter();
        let digests = digests.map(|tokens| self.store.digest(&job.tenant, &tokens.bytes));
        let digests = join_all(digests).await;
        let made_for = made_for(self.store.key(), job);
        let fresh = missing.into_iter().zip(encoded.tokens).zip(digests);
        let fresh = fresh.map(|(((frame, _), encoded), tokens)| {
            let tokens = Made { tokens, made_for };
            Fresh {
                frame,
                tokens,
                entry: self.entry(&frame.entry, tokens),
                bytes: encoded.bytes,
            }
        });
        Ok(fresh.collect())
    }

    /// The frames that have to be encoded, each once; and counts where the others are.
    fn missing<'a>(&self, wanted: &'a [Wanted]) -> Vec<(&'a Named, &'a Frame)> {
        let (mut missing, mut seen) = (Vec::new(), HashSet::new());
        for Wanted { frame, has } in wanted {
            match has {
                Has::Tokens(found) => self.metrics.looked(Some(found.tier)),
                Has::Pixels(pixels) if seen.insert(frame.name) => {
                    self.metrics.looked(None);
                    missing.push((frame, pixels));
                }
                // The same image once more in this chunk.
                Has::Pixels(_) => self.metrics.looked(Some(Tier::Memory)),
            }
        }
        missing
    }

    /// Stores what was made, each tokens with the list that leads to them, and has the job rely on that and on what was found.
    async fn keep(
        &self,
        job: &JobKey,
        wanted: &[Wanted],
        fresh: &[Fresh<'_>],
    ) -> Result<(), EncodeError> {
        let mut contents = Vec::with_capacity(2 * fresh.len());
        for made in fresh {
            let list = self.list(vec![made.entry.clone()], self.url.clone());
            let list = Bytes::from(list.encode_to_vec());
            let (kind, key) = (BlobKind::TokensOfChunk, &made.frame.key);
            let list = self.store.named(&job.tenant, kind, key, &list).await;
            contents.push((BlobKind::Tokens, made.tokens.tokens, made.bytes.clone()));
            contents.push(list);
        }
        let found = wanted.iter().filter_map(|wanted| match &wanted.has {
            Has::Tokens(found) => Some(found.blobs(&wanted.frame)),
            Has::Pixels(_) => None,
        });
        let found: Vec<_> = found.flatten().collect();
        self.store.keep_found(job, contents, &found).await?;
        // Not sooner: of a job that was erased meanwhile nothing stays here. No decoder asks before its chunk's list is there.
        for made in fresh {
            let (frame, bytes) = (made.frame.name, made.bytes.clone());
            self.cache.put(&job.tenant, frame, made.tokens, bytes);
        }
        Ok(())
    }

    /// The list of a chunk's tokens, in the order of its frames.
    fn listed(&self, wanted: &[Wanted], fresh: &[Fresh<'_>]) -> TokensManifest {
        let fresh = fresh.iter().map(|fresh| (fresh.frame.name, &fresh.entry));
        let fresh: HashMap<Digest, &TokensEntry> = fresh.collect();
        let entries = wanted.iter().map(|wanted| match &wanted.has {
            Has::Tokens(found) => (found.entry.clone(), found.encoder_url.as_str()),
            Has::Pixels(_) => {
                let entry = fresh.get(&wanted.frame.name).copied();
                let entry = entry.expect("whatever had no tokens was encoded just now");
                (entry.clone(), self.url.as_str())
            }
        });
        let (tokens, encoders): (Vec<TokensEntry>, Vec<&str>) = entries.unzip();
        let encoder_url = fetched_from(encoders.into_iter()).to_owned();
        self.list(tokens, encoder_url)
    }

    fn list(&self, tokens: Vec<TokensEntry>, encoder_url: String) -> TokensManifest {
        let description = self.engine.description();
        TokensManifest {
            tokens,
            encoder_digest: Bytes::copy_from_slice(description.encoder_digest.as_bytes()),
            encoder_url,
            device: description.device.clone(),
        }
    }

    /// What memory says of a frame's tokens.
    fn found_here(&self, frame: &FrameEntry, made: Made) -> Found {
        Found {
            entry: self.entry(frame, made),
            tokens: made.tokens,
            encoder_url: self.url.clone(),
            tier: Tier::Memory,
        }
    }

    /// Tokens that were made here are of the shape and type that the engine says, which checks each.
    fn entry(&self, frame: &FrameEntry, made: Made) -> TokensEntry {
        let description = self.engine.description();
        TokensEntry {
            digest: Bytes::copy_from_slice(made.tokens.as_bytes()),
            count: description.tokens_per_image,
            width: description.token_width,
            dtype: description.dtype.as_str().to_owned(),
            frame_digest: frame.digest.clone(),
            made_for: Bytes::copy_from_slice(&made.made_for),
        }
    }
}

impl Wanted {
    fn is_missing(&self) -> bool {
        matches!(self.has, Has::Pixels(_))
    }
}

#[cfg(test)]
mod tests;
