//! What the three stages do with a started unit: their lists are made and read by the services' own pure functions
//! (`unit.rs` of each); pixels, tokens and text are hashes. The job fails, stumbles or kills its worker where its fate says so.

use std::rc::Rc;

use medfleet_core::{BlobKind, Digest, FailureReason, JobRecord, Move, Stage, TenantId, WorkUnit};
use medfleet_decode::unit as decode;
use medfleet_encode::unit as encode;
use medfleet_engine::{Description, Dtype};
use medfleet_preprocess::unit as preprocess;
use medfleet_proto::v1;
use medfleet_proto::work::v1 as work;
use medfleet_worker::{Ending, handed_key};
use prost::Message;

use super::blobs::{BlobShelf, digest};
use super::load::{Asked, Fate};
use super::wire::Wire;
use super::{Plant, World};

/// Frames that one chunk has.
const FRAMES_PER_CHUNK: u32 = 2;
/// Bytes of a result before its text: the attempt that wrote it.
pub(super) const RESULT_HEAD: usize = 4;

/// What every worker of the fleet runs.
pub(super) fn model() -> Description {
    Description {
        model: "virtual".to_owned(),
        model_digest: Digest::new([1; 32]),
        settings_digest: Digest::new([3; 32]),
        encoder_digest: Digest::new([2; 32]),
        device: "none".to_owned(),
        dtype: Dtype::Bf16,
        weights: String::new(),
        reproducible: true,
        frame_side: 8,
        tokens_per_image: 4,
        token_width: 4,
        context_tokens_max: 1_024,
    }
}

/// What preprocessing makes of a file.
fn frame_of(input: &[u8]) -> Vec<u8> {
    hashed("medfleet virtual frame v1", &[input])
}

/// What encoding makes of a frame.
fn tokens_of(frame: &[u8]) -> Vec<u8> {
    hashed("medfleet virtual tokens v1", &[frame])
}

/// What decoding makes of a prompt and the tokens of all images, in order.
fn text_of(prompt: &[u8], tokens: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = vec![prompt];
    parts.extend(tokens.iter().map(Vec::as_slice));
    hashed("medfleet virtual text v1", &parts)
}

/// The right answer, worked out from what was sent.
pub(super) fn answer(asked: &Asked) -> Vec<u8> {
    let images = asked.images.iter();
    let tokens: Vec<_> = images.map(|image| tokens_of(&frame_of(image))).collect();
    text_of(&asked.task().encode_to_vec(), &tokens)
}

fn hashed(purpose: &'static str, parts: &[&[u8]]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().as_bytes().to_vec()
}

/// A unit whose start is recorded.
pub(super) struct Started<'a> {
    pub(super) wire: &'a Wire,
    pub(super) world: &'a Rc<World>,
    pub(super) unit: &'a WorkUnit,
    pub(super) record: &'a JobRecord,
}

impl Started<'_> {
    fn tenant(&self) -> &TenantId {
        &self.unit.key.tenant
    }

    /// The key of the list of a chunk's tokens.
    fn list_key(&self, frames: &Digest, chunk: u32) -> Vec<u8> {
        handed_key((&self.unit.key.job, self.unit.epoch), frames, chunk)
    }

    fn blobs(&self) -> &BlobShelf {
        &self.world.blobs
    }

    /// Makes the outputs durable; what the record is to say then.
    pub(super) async fn outputs(&self) -> Result<Move, Ending> {
        let stage = self.unit.stage;
        let (shortest, longest) = match stage {
            Stage::Preprocess => (20, 200),
            Stage::Encode => (50, 500),
            Stage::Decode => (200, 2_500),
        };
        let timeline = &self.wire.timeline;
        timeline.sleep(timeline.between(shortest, longest)).await;
        self.suffer().await?;
        match stage {
            Stage::Preprocess => self.preprocess().await,
            Stage::Encode => self.encode().await,
            Stage::Decode => self.decode().await,
        }
    }

    /// What the job does to whoever works on it.
    async fn suffer(&self) -> Result<(), Ending> {
        let (stage, epoch) = (self.unit.stage, self.unit.epoch);
        let asked = self.world.asked.get(&self.unit.key);
        match asked.map(|asked| asked.fate) {
            Some(Fate::Refused) if stage == Stage::Preprocess => Err(Ending::fail(
                FailureReason::InputRefused,
                "a file that nobody reads",
            )),
            Some(Fate::Kills(killed)) if stage == killed && epoch == 0 => {
                self.world.kill(&self.wire.process, 200);
                // Dropped here.
                std::future::pending::<()>().await;
                Ok(())
            }
            _ if !self.wire.is_calm() && self.wire.timeline.once_in(60) => {
                self.wire.process.count_mishaps();
                Err(Ending::wrong("the model stumbled"))
            }
            _ => Ok(()),
        }
    }

    async fn preprocess(&self) -> Result<Move, Ending> {
        let study = self.study().await?;
        let mut frames = Vec::new();
        for (input, index) in study.inputs.iter().zip(0..) {
            let Some(part) = input.part_digests.first() else {
                return Err(Ending::fail(
                    FailureReason::Integrity,
                    "an input of no parts",
                ));
            };
            let part = name(part, "an input")?;
            let bytes = self.blobs().get(self.tenant(), BlobKind::Input, &part);
            let frame = frame_of(&bytes.await?);
            let kept = self.blobs().put(self.tenant(), BlobKind::Frame, frame);
            frames.push(work::FrameEntry {
                digest: kept.await?.as_bytes().to_vec().into(),
                width: 8,
                channels: 1,
                info: Some(v1::FrameUsed {
                    input_index: index,
                    ..v1::FrameUsed::default()
                }),
            });
        }
        let frame_count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let chunk_starts = preprocess::chunk_starts(frame_count, FRAMES_PER_CHUNK);
        let chunks = u32::try_from(chunk_starts.len()).unwrap_or(u32::MAX);
        let manifest = work::FramesManifest {
            frames,
            chunk_starts,
            screening: Some(work::TextScreening::default()),
            ..work::FramesManifest::default()
        };
        let manifest = manifest.encode_to_vec();
        let kept = self.blobs().put(self.tenant(), BlobKind::Frames, manifest);
        Ok(Move::Preprocessed {
            frames: kept.await?,
            chunks,
            frame_count,
        })
    }

    async fn encode(&self) -> Result<Move, Ending> {
        let (tenant, chunk, model) = (self.tenant(), self.unit.unit, model());
        let (named, manifest) = self.manifest().await?;
        let frames = encode::frames_of(&manifest, chunk)?;
        let mut wanted = Vec::new();
        let mut made = Vec::new();
        for frame in frames {
            let key = encode::frame_key(frame, &manifest.preprocessing_version, &model);
            let found = self.found(&key, frame).await?;
            if found.is_none() {
                let pixels = name(&frame.digest, "a frame")?;
                let pixels = self.blobs().get(tenant, BlobKind::Frame, &pixels).await?;
                made.push(tokens_of(&pixels));
            }
            wanted.push((frame, key, found));
        }
        if self.wire.plant == Plant::SwapsTokens {
            made.reverse();
        }
        let mut made = made.into_iter();
        let mut tokens = Vec::new();
        for (frame, key, found) in wanted {
            tokens.push(match found {
                Some(found) => found,
                None => {
                    let made = made.next().unwrap_or_default();
                    self.leave(&key, frame, made).await?
                }
            });
        }
        let key = self.list_key(&named, chunk);
        let list = list_of(tokens).encode_to_vec();
        let kept = self
            .blobs()
            .put_as(tenant, BlobKind::TokensOfChunk, &key, list);
        kept.await?;
        Ok(Move::ChunkEncoded { chunk })
    }

    /// The tokens of a frame that an earlier job has left.
    async fn found(
        &self,
        key: &[u8],
        frame: &work::FrameEntry,
    ) -> Result<Option<work::TokensEntry>, Ending> {
        let (tenant, kind) = (self.tenant(), BlobKind::TokensOfChunk);
        let Some(list) = self.blobs().get_as(tenant, kind, key).await? else {
            return Ok(None);
        };
        let list = read::<work::TokensManifest>(&list)?;
        let good = encode::still_good(&list, std::slice::from_ref(frame), &model());
        let Some([tokens]) = good.as_deref() else {
            return Ok(None);
        };
        let kind = BlobKind::Tokens;
        let there = self.blobs().get_as(tenant, kind, tokens.as_bytes()).await?;
        Ok(there.and(list.tokens.into_iter().next()))
    }

    /// Stores the tokens of a frame, and the list that leads to them.
    async fn leave(
        &self,
        key: &[u8],
        frame: &work::FrameEntry,
        made: Vec<u8>,
    ) -> Result<work::TokensEntry, Ending> {
        let (tenant, model) = (self.tenant(), model());
        let kept = self.blobs().put(tenant, BlobKind::Tokens, made).await?;
        let entry = work::TokensEntry {
            digest: kept.as_bytes().to_vec().into(),
            count: model.tokens_per_image,
            width: model.token_width,
            dtype: model.dtype.as_str().to_owned(),
            frame_digest: frame.digest.clone(),
            ..work::TokensEntry::default()
        };
        let list = list_of(vec![entry.clone()]).encode_to_vec();
        let kept = self
            .blobs()
            .put_as(tenant, BlobKind::TokensOfChunk, key, list);
        kept.await?;
        Ok(entry)
    }

    async fn decode(&self) -> Result<Move, Ending> {
        let tenant = self.tenant();
        let study = self.study().await?;
        let (named, manifest) = self.manifest().await?;
        let parts = decode::chunks(&manifest, self.record.image_count)?;
        if parts.len() != self.record.chunks.total as usize {
            return Err(Ending::fail(
                FailureReason::Integrity,
                "another number of chunks",
            ));
        }
        let model = model();
        let mut tokens = Vec::new();
        for ((first, frames), chunk) in parts.into_iter().zip(0..) {
            let key = self.list_key(&named, chunk);
            let list = self.blobs().get_as(tenant, BlobKind::TokensOfChunk, &key);
            let Some(list) = list.await? else {
                return Err(Ending::fail(
                    FailureReason::ImageMissing,
                    "a chunk without tokens",
                ));
            };
            let list = read::<work::TokensManifest>(&list)?;
            for digest in decode::declared(&list, first, frames, &model)? {
                let bytes = self.blobs().get(tenant, BlobKind::Tokens, &digest);
                tokens.push(bytes.await?);
            }
        }
        let task = decode::screened_task(&study, &manifest)?;
        let attempt = self.record.attempt;
        let mut result = attempt.to_le_bytes().to_vec();
        result.extend(text_of(&task.encode_to_vec(), &tokens));
        let kept = self.blobs().put(tenant, BlobKind::Result, result);
        Ok(Move::Complete {
            attempt,
            result: kept.await?,
        })
    }

    async fn study(&self) -> Result<work::StudyManifest, Ending> {
        let named = &self.record.study;
        let bytes = self.blobs().get(self.tenant(), BlobKind::Study, named);
        read(&bytes.await?)
    }

    async fn manifest(&self) -> Result<(Digest, work::FramesManifest), Ending> {
        let named = self.record.frames.ok_or_else(|| {
            Ending::fail(
                FailureReason::Integrity,
                "the record names no frames manifest",
            )
        })?;
        let bytes = self.blobs().get(self.tenant(), BlobKind::Frames, &named);
        Ok((named, read(&bytes.await?)?))
    }
}

/// Stores what a client sends: its files and what is asked of them. The name of the latter.
pub(super) async fn store_study(blobs: &BlobShelf, asked: &Asked) -> Result<Digest, Ending> {
    let tenant = &asked.key.tenant;
    for image in &asked.images {
        blobs.put(tenant, BlobKind::Input, image.clone()).await?;
    }
    blobs.put(tenant, BlobKind::Study, study_of(asked)).await
}

/// The study manifest of a job, encoded.
pub(super) fn study_of(asked: &Asked) -> Vec<u8> {
    let inputs = asked.images.iter().map(|image| work::StudyInput {
        part_digests: vec![digest(&asked.key.tenant, image).as_bytes().to_vec().into()],
        size_bytes: image.len() as u64,
        ..work::StudyInput::default()
    });
    let study = work::StudyManifest {
        inputs: inputs.collect(),
        task: Some(asked.task()),
        ..work::StudyManifest::default()
    };
    study.encode_to_vec()
}

fn list_of(tokens: Vec<work::TokensEntry>) -> work::TokensManifest {
    work::TokensManifest {
        tokens,
        encoder_digest: model().encoder_digest.as_bytes().to_vec().into(),
        ..work::TokensManifest::default()
    }
}

fn read<M: Message + Default>(bytes: &[u8]) -> Result<M, Ending> {
    M::decode(bytes)
        .map_err(|_| Ending::fail(FailureReason::Integrity, "not the encoding of a list"))
}

fn name(bytes: &[u8], what: &str) -> Result<Digest, Ending> {
    Digest::from_slice(bytes).map_err(|_| Ending::fail(FailureReason::Integrity, what))
}
