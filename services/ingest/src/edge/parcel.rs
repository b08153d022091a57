//! What is sent to the hub for a job: its files as the client sent them; or, where its images stay here, one file with their
//! tokens, and the task as it was screened here. Of a job whose images stay, no file of the client's is ever sent.

use std::ops::Range;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use medfleet_core::{BlobKind, Digest, JobKey, JobRecord};
use medfleet_proto::v1;
use medfleet_proto::work::v1::{
    EncodedFrame, EncodedStudy, FramesManifest, StudyInput, StudyManifest, TextScreening,
    TokensManifest,
};
use medfleet_worker::{encoded, handed_key, handed_key_of_any_job};
use prost::Message;

use super::Edge;
use super::plan::Trouble;
use crate::config::Travels;
use crate::error::Refusal;
use crate::validate::is_searched;

/// What is sent.
pub(super) struct Parcel {
    pub(super) task: Option<v1::Task>,
    pub(super) decoding: Option<v1::DecodingParameters>,
    pub(super) files: Vec<Outgoing>,
}

/// A file on its way.
pub(super) struct Outgoing {
    pub(super) size_bytes: u64,
    /// In order.
    pub(super) parts: Vec<Part>,
    pub(super) modality: String,
    /// Images that it stands for, if it is an encoded study.
    pub(super) encoded_images: u32,
}

/// A part of a file.
pub(super) enum Part {
    /// Made just now.
    Made(Bytes),
    /// To be read.
    Stored(BlobKind, Digest),
}

const BROKEN_STUDY: Refusal = Refusal::Broken {
    what: "a study manifest",
};
const BROKEN_FRAMES: Refusal = Refusal::Broken {
    what: "a frames manifest",
};

impl Edge {
    /// What is sent of a job that is ready to be handed on.
    pub(super) async fn parcel(&self, key: &JobKey, record: &JobRecord) -> Result<Parcel, Trouble> {
        let study = self.blob(key, BlobKind::Study, &record.study).await?;
        let study = StudyManifest::decode(study).map_err(|_| BROKEN_STUDY)?;
        if let Some(frames) = &record.frames {
            return self.encoded((key, record.epoch), frames, study).await;
        }
        if self.config.travels(&key.tenant) == Travels::Tokens {
            let what = "the tokens of a job whose images stay here";
            return Err(Refusal::Broken { what }.into());
        }
        let files = study.inputs.iter().map(as_sent);
        Ok(Parcel {
            files: files.collect::<Result<_, _>>()?,
            task: study.task,
            decoding: study.decoding,
        })
    }

    /// The tokens of a job's images, as one file.
    async fn encoded(
        &self,
        (key, epoch): (&JobKey, u32),
        frames_digest: &Digest,
        study: StudyManifest,
    ) -> Result<Parcel, Trouble> {
        // It may have been accepted when its files could still travel.
        study.decoding.as_ref().map_or(Ok(()), is_searched)?;
        let frames = self.blob(key, BlobKind::Frames, frames_digest).await?;
        let mut frames = FramesManifest::decode(frames).map_err(|_| BROKEN_FRAMES)?;
        // A task that was not screened must not leave the site.
        let screening = frames.screening.as_mut().ok_or(BROKEN_FRAMES)?;
        let masked = screening.masked_task.take();
        let mut parcel = Parcel {
            task: masked.or(study.task),
            decoding: study.decoding,
            files: Vec::new(),
        };
        if study.inputs.is_empty() {
            return Ok(parcel);
        }
        let chunks = (0_u32..).zip(&frames.chunk_starts);
        let lists = chunks.map(|(chunk, _)| self.list((key, epoch), frames_digest, chunk));
        let lists = try_join_all(lists).await?;
        let images = u32::try_from(study.inputs.len()).unwrap_or(u32::MAX);
        let (mut head, tokens) = head(frames, &lists, images)?;
        let checksums = tokens.iter().map(|tokens| self.checksum(key, tokens));
        let checksums: Vec<_> = checksums.collect();
        let checksums = stream::iter(checksums).buffered(self.config.uploads_max);
        let checksums: Vec<(Bytes, u64)> = checksums.try_collect().await?;
        let mut size_bytes = 0;
        for (frame, (checksum, bytes)) in head.frames.iter_mut().zip(checksums) {
            frame.tokens_checksum = checksum;
            size_bytes += bytes;
        }
        let begin = encoded::beginning(&head).map_err(|error| {
            tracing::error!(
                error = medfleet_core::chain(&error),
                "the encoded images of a job make no file"
            );
            BROKEN_FRAMES
        })?;
        size_bytes += begin.len() as u64;
        let tokens = tokens.into_iter();
        let tokens = tokens.map(|tokens| Part::Stored(BlobKind::Tokens, tokens));
        let parts = std::iter::once(Part::Made(begin)).chain(tokens);
        parcel.files.push(Outgoing {
            size_bytes,
            parts: parts.collect(),
            modality: String::new(),
            encoded_images: head.image_count,
        });
        Ok(parcel)
    }

    /// The list of a chunk's tokens, which this site's encoder has left for the edge.
    async fn list(
        &self,
        (key, epoch): (&JobKey, u32),
        frames: &Digest,
        chunk: u32,
    ) -> Result<TokensManifest, Trouble> {
        let name = handed_key((&key.job, epoch), frames, chunk);
        let mut found = self.blobs.tokens_list(&key.tenant, &name).await?;
        if found.is_none() {
            let name = handed_key_of_any_job(frames, chunk);
            found = self.blobs.tokens_list(&key.tenant, &name).await?;
        }
        let what = "the list of a job's tokens (an encoder of an earlier release leaves it only with encode.for_edge)";
        let found = found.ok_or(Refusal::Broken { what })?;
        let what = "the list of a job's tokens";
        Ok(TokensManifest::decode(found).map_err(|_| Refusal::Broken { what })?)
    }

    async fn checksum(&self, key: &JobKey, tokens: &Digest) -> Result<(Bytes, u64), Trouble> {
        let tokens = self.blob(key, BlobKind::Tokens, tokens).await?;
        Ok((encoded::checksum(&tokens), tokens.len() as u64))
    }

    /// A part of a file, in memory.
    pub(super) async fn part(&self, key: &JobKey, part: &Part) -> Result<Bytes, Trouble> {
        match part {
            Part::Made(bytes) => Ok(bytes.clone()),
            Part::Stored(kind, digest) => self.blob(key, *kind, digest).await,
        }
    }

    async fn blob(&self, key: &JobKey, kind: BlobKind, digest: &Digest) -> Result<Bytes, Trouble> {
        let found = self.blobs.get(&key.tenant, kind, digest).await?;
        found.ok_or(Trouble::Here(Refusal::Broken {
            what: "a file of a job that waits for the hub",
        }))
    }
}

/// A file as it was sent to this edge.
fn as_sent(input: &StudyInput) -> Result<Outgoing, Refusal> {
    let parts = input.part_digests.iter().map(|part| {
        let digest = Digest::from_slice(part).map_err(|_| BROKEN_STUDY)?;
        Ok::<_, Refusal>(Part::Stored(BlobKind::Input, digest))
    });
    Ok(Outgoing {
        size_bytes: input.size_bytes,
        parts: parts.collect::<Result<_, _>>()?,
        modality: input.modality.clone(),
        encoded_images: input.encoded_images,
    })
}

/// The head of an encoded study, without checksums, and the names of its tokens in order. Pure.
///
/// # Errors
/// [`Refusal::Broken`] where the lists are not those of the frames, or not of one encoder.
fn head(
    frames: FramesManifest,
    lists: &[TokensManifest],
    image_count: u32,
) -> Result<(EncodedStudy, Vec<Digest>), Refusal> {
    let what = "the lists of a job's tokens, which are not of its frames";
    let wrong = Refusal::Broken { what };
    let what = "the tokens of a job as one, as several encoders made them";
    let several = Refusal::Broken { what };
    let count = frames.frames.len();
    let ranges = ranges(&frames.chunk_starts, count);
    let lengths = ranges.iter().map(|range| range.len());
    if !lengths.eq(lists.iter().map(|list| list.tokens.len())) {
        return Err(wrong);
    }
    let entries: Vec<_> = lists.iter().flat_map(|list| &list.tokens).collect();
    let mut pairs = frames.frames.iter().zip(&entries);
    let (Some(list), Some(first)) = (lists.first(), entries.first()) else {
        return Err(wrong);
    };
    if entries.len() != count || !pairs.all(|(frame, entry)| entry.frame_digest == frame.digest) {
        return Err(wrong);
    }
    let shape = (first.count, first.width, first.dtype.as_str());
    let mut shapes = entries.iter();
    let is_one = shapes.all(|entry| (entry.count, entry.width, entry.dtype.as_str()) == shape);
    if !is_one
        || lists
            .iter()
            .any(|other| other.encoder_digest != list.encoder_digest)
    {
        return Err(several);
    }
    let is_one_device = lists.iter().all(|other| other.device == list.device);
    let tokens = entries
        .iter()
        .map(|entry| Digest::from_slice(&entry.digest));
    let tokens = tokens.collect::<Result<Vec<_>, _>>().map_err(|_| wrong)?;
    let masked = frames.screening.map(|screening| screening.masked);
    let head = EncodedStudy {
        image_count,
        files_refused: frames.files_refused,
        preprocessing_version: frames.preprocessing_version,
        input_digests: frames.input_digests,
        screening: masked.map(|masked| TextScreening {
            masked_task: None,
            masked,
        }),
        encoder_digest: list.encoder_digest.clone(),
        device: match is_one_device {
            true => list.device.clone(),
            false => String::new(),
        },
        tokens_per_frame: first.count,
        token_width: first.width,
        dtype: first.dtype.clone(),
        frames: frames
            .frames
            .into_iter()
            .map(|frame| EncodedFrame {
                width: frame.width,
                channels: frame.channels,
                info: frame.info,
                tokens_checksum: Bytes::new(),
            })
            .collect(),
    };
    Ok((head, tokens))
}

/// The frames of each chunk.
fn ranges(starts: &[u32], frames: usize) -> Vec<Range<usize>> {
    let starts = starts.iter().map(|start| *start as usize);
    let ends = starts.clone().skip(1).chain(std::iter::once(frames));
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

#[cfg(test)]
mod tests;
