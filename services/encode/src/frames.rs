//! The image tokens of a chunk's frames. Where an earlier job of the tenant had the same frame they are found, in this
//! encoder's memory or in the store; those that another unit is encoding, here or in another process, are waited for; and only
//! the other frames are encoded. What is found counts only while the store has it: memory may not have heard of an erasure, and
//! nothing comes back from there.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{BlobKind, Digest, JobKey, TenantId};
use medfleet_engine::{Frame, Purpose};
use medfleet_proto::work::v1::{FrameEntry, TokensEntry, TokensManifest};
use medfleet_store::StoreError;
use medfleet_worker::{Place, made_for};
use prost::Message;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::cache::Made;
use crate::error::EncodeError;
use crate::metrics::{HeldOutcome, Tier};
use crate::unit::{fetched_from, frame_key, patience, still_good};
use crate::work::Encode;

/// Lists that are asked for at a time.
const ASKED_MAX: usize = 8;
/// Frames are claimed among encoders if the last one took at least this long, or if none was encoded yet.
const CLAIMED_NANOS_MIN: u64 = 20_000_000;

/// For whom frames are provided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whose<'a> {
    pub(crate) job: &'a JobKey,
    pub(crate) purpose: Purpose,
    /// The unit's place among those in hand, which it leaves while it waits for others.
    pub(crate) place: &'a Place,
}

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
    /// Where they were found; `None` for those that this unit made itself.
    tier: Option<Tier>,
}

/// Tokens that were made just now.
struct Fresh<'a> {
    frame: &'a Named,
    tokens: Made,
    entry: TokensEntry,
    bytes: Bytes,
}

impl Found {
    /// What the job has to reference: the tokens, and the list that leads to them.
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
        let known: Vec<&Named> = frames.iter().collect();
        let known = self.look(tenant, &known).await?;
        let has = frames.iter().zip(known);
        let has = has.map(|(frame, found)| self.has(tenant, frame, found));
        let has = try_join_all(has).await?;
        let wanted = frames.into_iter().zip(has);
        Ok(wanted.map(|(frame, has)| Wanted { frame, has }).collect())
    }

    /// The tokens of all frames of a chunk, which are in the store and relied on by the job from now on.
    pub(crate) async fn provide(
        &self,
        whose: &Whose<'_>,
        mut wanted: Vec<Wanted>,
    ) -> Result<TokensManifest, EncodeError> {
        let tenant = &whose.job.tenant;
        let missing = missing(&wanted);
        let until = Instant::now() + self.patience(whose, missing.len());
        // Waits for other slots that encode some of these frames; their tokens are then in the cache.
        let claiming = self.claims.take(tenant, &missing);
        let claim = timeout_at(until, whose.place.leave_for(claiming)).await;
        for wanted in &mut wanted {
            self.find_again(tenant, wanted);
        }
        let (mut made, mut awaited, mut since) = (0, HashSet::new(), None);
        while let Some(others) = self
            .round(whose, &mut wanted, &awaited, (until, &mut made))
            .await?
        {
            // While this unit waits, it holds neither a place nor a claim that another encoder could wait for.
            whose.place.leave();
            let begun = Instant::now();
            let since = *since.get_or_insert(begun);
            self.elsewhere.freed(&others, (since, until)).await;
            let waited = begun.elapsed().as_secs_f64();
            self.metrics.held_wait_seconds.observe(waited);
            self.look_again(tenant, &mut wanted, &others).await?;
            awaited = others;
        }
        drop(claim);
        if made == 0 {
            self.metrics.chunks_found.inc();
        }
        self.count(&wanted);
        Ok(self.listed(&wanted))
    }

    /// Encodes the frames that no other encoder is encoding, and has the job reference all tokens that are there by then. Gives the
    /// frames that are still missing as other encoders have claimed them, or `None` where none is missing. After `until` no frame
    /// is left to others. Adds the number of frames encoded here to `made`. `awaited` are those that the last round left to others.
    async fn round(
        &self,
        whose: &Whose<'_>,
        wanted: &mut [Wanted],
        awaited: &HashSet<Digest>,
        (until, made): (Instant, &mut usize),
    ) -> Result<Option<HashSet<Digest>>, EncodeError> {
        let mut turn = self.elsewhere.claim(&self.claimable(wanted)).await;
        // An encoder that had them claimed until now has left their tokens.
        self.look_again(&whose.job.tenant, wanted, &turn.own)
            .await?;
        turn.keep_only(&missing(wanted));
        let mut others = HashSet::new();
        if Instant::now() < until {
            others.clone_from(&turn.others);
        } else {
            let overdue = turn.others.len();
            self.metrics.was_held(HeldOutcome::Overdue, overdue);
        }
        self.count_awaited(wanted, awaited, &turn.own);
        let fresh = self.encode(whose, wanted, &others).await?;
        self.keep(whose.job, wanted, &fresh).await?;
        let tokens = fresh.iter().map(|fresh| (fresh.frame.name, fresh.tokens));
        let tokens: HashMap<Digest, Made> = tokens.collect();
        drop(fresh);
        *made += tokens.len();
        for wanted in wanted.iter_mut().filter(|wanted| wanted.is_missing()) {
            if let Some(tokens) = tokens.get(&wanted.frame.name) {
                wanted.has = Has::Tokens(Found {
                    tier: None,
                    ..self.found_here(&wanted.frame.entry, *tokens)
                });
            }
        }
        // Only now: other encoders look for the tokens as soon as the claims are gone.
        drop(turn);
        Ok(Some(others).filter(|others| !others.is_empty()))
    }

    /// The missing frames that are worth a claim. A claim takes about a millisecond, and a frame that takes only a few may as well
    /// be encoded twice.
    fn claimable(&self, wanted: &[Wanted]) -> HashSet<Digest> {
        match self.frame_nanos.load(Ordering::Relaxed) {
            1..CLAIMED_NANOS_MIN => HashSet::new(),
            _ => missing(wanted),
        }
    }

    /// How long a unit waits at most for so many frames.
    fn patience(&self, whose: &Whose<'_>, frames: usize) -> Duration {
        let took = self.frame_nanos.load(Ordering::Relaxed);
        let took = (took > 0).then(|| Duration::from_nanos(took));
        patience(whose.purpose.class, frames, took)
    }

    /// For each frame its tokens, where memory or the store has them; `None` for those that have to be encoded.
    async fn look(
        &self,
        tenant: &TenantId,
        frames: &[&Named],
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
        // Two answers for each: its tokens, and the list that leads to them.
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
            tier: Some(Tier::Store),
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
        let digest = Digest::from_slice(&entry.digest)
            .map_err(|_| EncodeError::Manifest("a frame's digest has another length"))?;
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

    /// As [`Encode::find_again`], of these frames, in the store too.
    async fn look_again(
        &self,
        tenant: &TenantId,
        wanted: &mut [Wanted],
        names: &HashSet<Digest>,
    ) -> Result<(), EncodeError> {
        let is_meant = |wanted: &Wanted| wanted.is_missing() && names.contains(&wanted.frame.name);
        let frames = wanted.iter().filter(|wanted| is_meant(wanted));
        let frames: Vec<&Named> = frames.map(|wanted| &wanted.frame).collect();
        if frames.is_empty() {
            return Ok(());
        }
        let known = self.look(tenant, &frames).await?;
        let meant = wanted.iter_mut().filter(|wanted| is_meant(wanted));
        for (wanted, found) in meant.zip(known) {
            if let Some(found) = found {
                wanted.has = Has::Tokens(found);
            }
        }
        Ok(())
    }

    /// Encodes what is missing and not made by others, each frame once, however often a chunk has it.
    async fn encode<'a>(
        &self,
        whose: &Whose<'_>,
        wanted: &'a [Wanted],
        others: &HashSet<Digest>,
    ) -> Result<Vec<Fresh<'a>>, EncodeError> {
        // Frames that others encode count as seen.
        let (mut missing, mut seen) = (Vec::new(), others.clone());
        for Wanted { frame, has } in wanted {
            if let Has::Pixels(pixels) = has
                && seen.insert(frame.name)
            {
                missing.push((frame, pixels));
            }
        }
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let Whose { job, purpose, .. } = *whose;
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
        let frame_nanos = encoded.device.as_nanos() / missing.len() as u128;
        let frame_nanos = u64::try_from(frame_nanos).unwrap_or(u64::MAX).max(1);
        self.frame_nanos.store(frame_nanos, Ordering::Relaxed);
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

    /// Counts what became of the frames that were left to others; `own` are those that this unit has claimed since.
    fn count_awaited(&self, wanted: &[Wanted], awaited: &HashSet<Digest>, own: &HashSet<Digest>) {
        let missing = missing(wanted);
        let found = awaited.difference(&missing).count();
        let left = awaited.intersection(own);
        let left = left.filter(|frame| missing.contains(*frame)).count();
        self.metrics.was_held(HeldOutcome::Found, found);
        self.metrics.was_held(HeldOutcome::Left, left);
    }

    /// Counts where each frame was.
    fn count(&self, wanted: &[Wanted]) {
        let mut made = HashSet::new();
        for wanted in wanted {
            let tier = wanted.found().and_then(|found| found.tier);
            // The chunk has this image more than once, and it was encoded for the first of them.
            let is_again = tier.is_none() && !made.insert(wanted.frame.name);
            self.metrics
                .looked(if is_again { Some(Tier::Memory) } else { tier });
        }
    }

    /// Stores the fresh tokens, each with the list that leads to them, and has the job reference them and those that were found.
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
        let found = wanted
            .iter()
            .filter_map(|wanted| Some(wanted.found()?.blobs(&wanted.frame)));
        let found: Vec<_> = found.flatten().collect();
        self.store.keep_found(job, contents, &found).await?;
        // Only now: had the job been erased meanwhile, nothing of it may stay in memory. No decoder asks for them earlier, as the
        // chunk's list is not written yet.
        for made in fresh {
            let (frame, bytes) = (made.frame.name, made.bytes.clone());
            self.cache.put(&job.tenant, frame, made.tokens, bytes);
        }
        Ok(())
    }

    /// The list of a chunk's tokens, in the order of its frames.
    fn listed(&self, wanted: &[Wanted]) -> TokensManifest {
        let entries = wanted.iter().map(|wanted| {
            let found = wanted.found();
            let found = found.expect("whatever nobody had was encoded just now");
            (found.entry.clone(), found.encoder_url.as_str())
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
            tier: Some(Tier::Memory),
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
        self.found().is_none()
    }

    fn found(&self) -> Option<&Found> {
        match &self.has {
            Has::Tokens(found) => Some(found),
            Has::Pixels(_) => None,
        }
    }
}

/// The frames of which there are no tokens yet.
pub(crate) fn missing(wanted: &[Wanted]) -> HashSet<Digest> {
    let missing = wanted.iter().filter(|wanted| wanted.is_missing());
    missing.map(|wanted| wanted.frame.name).collect()
}

#[cfg(test)]
pub(crate) mod tests;
