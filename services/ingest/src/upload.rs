//! Takes files in: parts become durable one by one, and the upload's record says how far they reach, so that any replica
//! can go on where another stopped. Parts are cut at fixed places, so that the same file always has the same parts.
//!
//! A handle lives on from each part that is stored: a slow line that carries one part in that time is served to the end. One
//! that is half over lives on, too, from each resuming, so that the first files of a study are there when the last one is.
//! The parts themselves are collected at the age that jobs can have, whatever the handle says.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use medfleet_core::{BlobKind, TenantId, UploadId};
use medfleet_proto::v1::{self, upload_input_request::Content};
use medfleet_proto::work::v1::UploadRecord;
use medfleet_queue::{Queue, Revision, Updated};
use medfleet_runtime::{Clock, Random, Shutdown};
use tonic::{Code, Status};

use crate::accept::UPLOAD_GONE;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::convert;
use crate::error::Refusal;
use crate::metrics::Figures;
use crate::places::Places;
use crate::quota::Quotas;
use crate::stored::Held;

/// Largest message of an upload; part of the public contract.
const CHUNK_BYTES_MAX: usize = 2 << 20;

/// What taking files in needs.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    pub(crate) config: Arc<Config>,
    pub(crate) queue: Queue,
    pub(crate) blobs: Blobs,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) figures: Figures,
    pub(crate) quotas: Quotas,
    pub(crate) shutdown: Shutdown,
    /// One per upload in progress.
    pub(crate) places: Places,
}

/// An upload under way: its record, and bytes that wait for their part to be full.
#[derive(Debug)]
struct Open {
    tenant: TenantId,
    id: UploadId,
    record: UploadRecord,
    revision: Revision,
    waiting: BytesMut,
    /// Room for what is still to come; none where nothing is.
    held: Option<Held>,
}

/// Counts an upload in progress for as long as it lives.
struct Counted(Figures);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.uploads.dec();
    }
}

impl Uploads {
    /// How far an upload has come.
    pub(crate) async fn get(&self, tenant: &TenantId, name: &str) -> Result<v1::Upload, Refusal> {
        let id = convert::upload_id("name", name)?;
        let (record, _) = self.find(tenant, &id).await?;
        Ok(convert::upload(&id, &record))
    }

    /// Takes one stream: opens or resumes an upload and stores what comes.
    pub(crate) async fn take<S>(
        &self,
        tenant: TenantId,
        mut messages: S,
    ) -> Result<v1::Upload, Refusal>
    where
        S: Stream<Item = Result<v1::UploadInputRequest, Status>> + Unpin,
    {
        let busy = || Refusal::Busy {
            what: "too many uploads are in progress",
            retry_after: self.config.limits.retry_after.get(),
        };
        let _place = self.places.take(&tenant).ok_or_else(busy)?;
        self.figures.uploads.inc();
        let _counted = Counted(self.figures.clone());
        let Some(Content::Start(start)) = self.next(&mut messages).await? else {
            return Err(Refusal::invalid(
                "start",
                "must be the first message of the stream",
            ));
        };
        let mut open = self.open(tenant, start).await?;
        while let Some(content) = self.next(&mut messages).await? {
            let Content::Chunk(chunk) = content else {
                return Err(Refusal::invalid("start", "must be the first message only"));
            };
            if chunk.len() > CHUNK_BYTES_MAX {
                return Err(Refusal::invalid("chunk", "at most 2MiB a message"));
            }
            let known = open.record.committed_bytes + open.waiting.len() as u64;
            if known + chunk.len() as u64 > open.record.total_bytes {
                return Err(Refusal::invalid(
                    "chunk",
                    "more data than start.total_bytes declared",
                ));
            }
            // However slowly it comes, a part comes in its time.
            if open.record.expire_unix_millis <= self.clock.now().0 {
                return Err(UPLOAD_GONE);
            }
            open.waiting.extend_from_slice(&chunk);
            self.store_parts(&mut open).await?;
        }
        Ok(convert::upload(&open.id, &open.record))
    }

    /// The next message, within the time that a client may be silent.
    async fn next<S>(&self, messages: &mut S) -> Result<Option<Content>, Refusal>
    where
        S: Stream<Item = Result<v1::UploadInputRequest, Status>> + Unpin,
    {
        let message = tokio::select! {
            message = tokio::time::timeout(self.config.limits.upload_idle_max.get(), messages.next()) => message,
            () = self.shutdown.begun() => return Err(Refusal::Stopping),
        };
        match message {
            Err(_) => Err(Refusal::Idle),
            Ok(None) => Ok(None),
            Ok(Some(Err(status))) => Err(broken(&status)),
            Ok(Some(Ok(message))) => {
                let content = message.content;
                content
                    .map(Some)
                    .ok_or_else(|| Refusal::invalid("content", "needs start or chunk"))
            }
        }
    }

    async fn open(&self, tenant: TenantId, start: v1::UploadStart) -> Result<Open, Refusal> {
        let most = self
            .config
            .limits
            .input_bytes_max
            .min(self.config.limits.study_bytes_max);
        if start.total_bytes == 0 {
            return Err(Refusal::invalid(
                "start.total_bytes",
                format!("is required, 1 byte to {most}"),
            ));
        }
        if start.total_bytes > most.get() {
            return Err(Refusal::TooLarge {
                what: "start.total_bytes",
                allowed: most.to_string(),
            });
        }
        if start.upload.is_empty() {
            return self.create(tenant, start).await;
        }
        let id = convert::upload_id("start.upload", &start.upload)?;
        let (mut record, mut revision) = self.find(&tenant, &id).await?;
        if record.total_bytes != start.total_bytes {
            let allowed = format!("must be {}, as declared at first", record.total_bytes);
            return Err(Refusal::invalid("start.total_bytes", allowed));
        }
        if record.committed_bytes > start.offset {
            return Err(Refusal::Moved);
        }
        if record.committed_bytes < start.offset {
            let allowed = format!("must be the committed offset, {}", record.committed_bytes);
            return Err(Refusal::invalid("start.offset", allowed));
        }
        // What was let in and never sent is not kept free for it.
        let held = match record.total_bytes - record.committed_bytes {
            0 => None,
            missing => Some(self.quotas.hold(&tenant, missing)?),
        };
        let fresh = self.expires();
        let half = i64::try_from(self.time_to_live_millis() / 2).unwrap_or(i64::MAX);
        if record.expire_unix_millis < fresh.saturating_sub(half) {
            record.expire_unix_millis = fresh;
            let updated = self.queue.update_upload(&tenant, &id, &record, revision);
            match updated.await? {
                Updated::Updated(stored) => revision = stored,
                Updated::Conflict => return Err(Refusal::Moved),
            }
        }
        Ok(Open {
            tenant,
            id,
            record,
            revision,
            waiting: BytesMut::new(),
            held,
        })
    }

    fn time_to_live_millis(&self) -> u64 {
        self.config.limits.upload_time_to_live.as_millis()
    }

    /// When a handle ends of which a part is stored now.
    fn expires(&self) -> i64 {
        let now = self.clock.now().0;
        now.saturating_add_unsigned(self.time_to_live_millis())
    }

    async fn create(&self, tenant: TenantId, start: v1::UploadStart) -> Result<Open, Refusal> {
        if start.offset != 0 {
            return Err(Refusal::invalid(
                "start.offset",
                "must be 0 for a new upload",
            ));
        }
        self.blobs.check_headroom(start.total_bytes).await?;
        // Counted whole when it begins: a file that is refused half-way would only be sent again. And only where there is room
        // for it: whoever comes back until there is would have used up its quota by then.
        let held = self.quotas.hold(&tenant, start.total_bytes)?;
        self.quotas.bytes(&tenant, start.total_bytes)?;
        let id = UploadId::from_bytes(self.random.id());
        let record = UploadRecord {
            total_bytes: start.total_bytes,
            part_digests: Vec::new(),
            committed_bytes: 0,
            expire_unix_millis: self.expires(),
            beyond_job: String::new(),
        };
        let revision = self.queue.create_upload(&tenant, &id, &record).await?;
        Ok(Open {
            tenant,
            id,
            record,
            revision,
            waiting: BytesMut::new(),
            held: Some(held),
        })
    }

    async fn find(
        &self,
        tenant: &TenantId,
        id: &UploadId,
    ) -> Result<(UploadRecord, Revision), Refusal> {
        match self.queue.upload(tenant, id).await? {
            Some(found) if found.0.expire_unix_millis > self.clock.now().0 => Ok(found),
            _ => Err(UPLOAD_GONE),
        }
    }

    /// Makes every full part durable; the last one may be shorter.
    async fn store_parts(&self, open: &mut Open) -> Result<(), Refusal> {
        loop {
            let missing = open.record.total_bytes - open.record.committed_bytes;
            let part = self.config.limits.upload_part_bytes.get().min(missing);
            if part == 0 || (open.waiting.len() as u64) < part {
                return Ok(());
            }
            // At most 8 MiB by the configuration's check.
            let part = open
                .waiting
                .split_to(usize::try_from(part).unwrap_or(usize::MAX))
                .freeze();
            let bytes = part.len() as u64;
            if let Some(held) = &mut open.held {
                held.begin(bytes);
            }
            let digest = self.blobs.put(&open.tenant, BlobKind::Input, part).await?;
            open.record
                .part_digests
                .push(Bytes::copy_from_slice(digest.as_bytes()));
            if let Some(held) = &mut open.held {
                held.landed();
            }
            open.record.committed_bytes += bytes;
            open.record.expire_unix_millis = self.expires().max(open.record.expire_unix_millis);
            let updated = self
                .queue
                .update_upload(&open.tenant, &open.id, &open.record, open.revision)
                .await?;
            match updated {
                Updated::Updated(revision) => open.revision = revision,
                Updated::Conflict => return Err(Refusal::Moved),
            }
        }
    }
}

/// Why a stream cannot be read on.
fn broken(status: &Status) -> Refusal {
    match status.code() {
        // Sent again it would be as large: who is told of silence resumes, and sends it again.
        Code::OutOfRange => Refusal::invalid("chunk", "at most 2MiB a message"),
        // The client is gone; what was stored stays, and this answer reaches nobody.
        _ => Refusal::Idle,
    }
}

#[cfg(test)]
mod tests;
