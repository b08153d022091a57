//! Hands one job on to the hub.
//!
//! Order: its files at the hub → submitted there, under a request id that follows from the job's name → the record says so,
//! by compare-and-set → its intake message goes. Whoever finds the message again asks the hub first whether it has the job.

use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc;
use futures::{SinkExt, StreamExt, stream};
use medfleet_core::{
    Failure, FailureReason, JobId, JobKey, JobRecord, JobState, Move, Stage, UnixMillis,
};
use medfleet_proto::v1::{self, upload_input_request::Content};
use medfleet_queue::{Applied, Headers, IntakeEntry};
use medfleet_runtime::{Clock, telemetry};
use medfleet_store::StoreError;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::Edge;
use super::parcel::{Outgoing, Parcel};
use super::plan::{self, Trouble};
use super::uplink::Behalf;
use crate::accept::trace_of;
use crate::config::UPLOADS_RENEWED_EVERY;
use crate::convert;
use crate::error::Refusal;
use crate::metrics::HubOutcome;
use crate::unit::Removal;
use crate::work::remove;

/// Files of a job up to this many bytes in all are sent within the submit request, without uploads.
const INLINE_BYTES_MAX: u64 = 256 << 10;
/// Bytes of a file in one message of an upload. Progress of an upload is seen in steps of this size.
const CHUNK_BYTES: usize = 128 << 10;
/// Whatever line carries a message in the minute that the hub gives it carries a request in its two. On a slower line than a
/// request needs, a job of a small file would be refused as late again and again, and a large file would pass.
const _: () = assert!(INLINE_BYTES_MAX / 120 <= CHUNK_BYTES as u64 / 60);
/// Pieces that wait to be sent.
const CHUNKS_AHEAD: usize = 2;
/// Resumes of an upload in a row after which the hub has stored no more of it; then the whole job is tried again later, and all of
/// it sent anew.
const RESUMES_MAX: u32 = 16;

/// Uploads that the hub is asked to keep at a time.
const KEPT_AT_A_TIME: usize = 16;

/// The answer may be that of an outdated server. If it were believed, the job would be forgotten, and its intake message removed.
const BEHIND: Trouble = Trouble::Later("the job's record is behind", None);

/// What became of an intake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// The hub has the job: it is to be followed.
    AtHub,
    /// The job has ended, or is gone.
    Over,
}

/// What to do with a job next.
enum Next {
    Done(Offered),
    /// Look at its record again. `is_doubtful`: whether the hub may have it without our record saying so.
    Again {
        is_doubtful: bool,
    },
}

impl Edge {
    /// Brings one intake message to its end, which was read when the connection to the queue had been lost so often.
    /// `is_doubtful`: whether the hub may have the job without our record saying so. `is_held`: whether an operator holds it back, so
    /// that it is not sent; what has ended, or the hub has already, is brought to its end all the same.
    pub(super) async fn offer(
        self: Arc<Self>,
        (entry, losses): (&IntakeEntry, u64),
        (mut is_doubtful, is_held): (bool, bool),
    ) -> Result<Offered, Trouble> {
        let key = &entry.unit.key;
        let offered = loop {
            let record = self.queue.record(key).await?.map(|(record, _)| record);
            let found = record.as_ref().map(|record| record.epoch);
            if plan::is_behind(found, entry, self.as_of()) {
                return Err(BEHIND);
            }
            let Some(record) = record.filter(|record| record.epoch == entry.unit.epoch) else {
                break Offered::Over;
            };
            let span = self.span(key, &record);
            let headers = headers_of(&span, &record);
            let step = self.offer_step(entry, &record, &headers, (is_doubtful, is_held));
            match step.instrument(span).await? {
                Next::Done(offered) => break offered,
                Next::Again { is_doubtful: next } => is_doubtful = next,
            }
        };
        let message = (entry.unit.stage, Removal::One(entry.sequence));
        remove(&self.queue, losses, message).await?;
        Ok(offered)
    }

    async fn offer_step(
        &self,
        entry: &IntakeEntry,
        record: &JobRecord,
        headers: &Headers,
        (is_doubtful, is_held): (bool, bool),
    ) -> Result<Next, Trouble> {
        let key = &entry.unit.key;
        let behalf = Behalf {
            tenant: &key.tenant,
            headers,
        };
        if record.forwarded.is_some() {
            return Ok(Next::Done(Offered::AtHub));
        }
        if record.state.is_final() {
            // The process that ended it may have died before it published the event.
            self.queue.publish_event(key, record).await?;
        }
        if !record.state.is_final() && !plan::is_ready(entry.unit.stage, record) {
            return self.not_ready(entry, record).await;
        }
        if !record.state.is_final() && self.is_over(record) {
            self.end(key, record, &Move::Expire).await?;
            self.figures.expired.inc();
            return Ok(Next::Again { is_doubtful });
        }
        let known = match is_doubtful {
            true => {
                let id = plan::request_id(&key.job, record);
                self.uplink.find(behalf, id).await?
            }
            false => None,
        };
        match known {
            Some(job) if record.state.is_final() => {
                self.note_ended(behalf, (key, record), &job).await
            }
            None if is_doubtful && plan::has_just_ended(record, self.clock.known()) => {
                Err(Trouble::Unsure)
            }
            None if record.state.is_final() => Ok(Next::Done(Offered::Over)),
            Some(job) => self.note(behalf, (key, record), &job).await,
            // The hub does not have it. That question may have taken long, and the job may have ended here meanwhile.
            None if is_doubtful => Ok(Next::Again { is_doubtful: false }),
            None if is_held => Err(Trouble::Held),
            None => match self.submit(behalf, key, record).await {
                Ok(job) => self.note(behalf, (key, record), &job).await,
                Err(Trouble::Ended) => Ok(Next::Again { is_doubtful: false }),
                Err(Trouble::Refused(why)) => {
                    let failed = self.fail(key, record, plan::refused(&why)).await?;
                    self.edge_figures().count(HubOutcome::Refused);
                    Ok(failed)
                }
                Err(Trouble::Here(refusal @ Refusal::Invalid(_))) => {
                    let text = refusal.to_string();
                    let failure = Failure::new(FailureReason::InputRefused, text);
                    self.fail(key, record, failure).await
                }
                // What is missing or damaged fails the job, as at a worker, and as there not by the word of a server that may not have
                // got it yet; other trouble with the store an operator can mend.
                Err(Trouble::Here(
                    refusal @ (Refusal::Broken { .. }
                    | Refusal::Store(
                        StoreError::Missing { .. } | StoreError::Corrupt { .. },
                    )),
                )) if !plan::is_new_here(entry, self.as_of()) => {
                    self.unreadable(key, record, &refusal).await
                }
                Err(trouble) => Err(trouble),
            },
        }
    }

    /// The queue's time as far as it is known, and how outdated an answer of the queue may be.
    fn as_of(&self) -> (Option<UnixMillis>, Duration) {
        (self.clock.known(), self.queue.outdated_max())
    }

    /// Whether a job's time is over by the queue's clock; never as long as that is unknown.
    pub(super) fn is_over(&self, record: &JobRecord) -> bool {
        self.clock.known().is_some_and(|now| record.expires <= now)
    }

    /// Deals with a job that is neither as it was accepted nor fully encoded.
    async fn not_ready(&self, entry: &IntakeEntry, record: &JobRecord) -> Result<Next, Trouble> {
        let stage = entry.unit.stage;
        if stage == Stage::Decode && record.state != JobState::Decoding {
            // A decode unit exists only once every image is encoded, so this record is that of an outdated server.
            return Err(BEHIND);
        }
        if plan::is_to_release(stage, record) {
            // Publishing it again changes nothing if it is released already. It may also be here because a worker has set it aside.
            self.queue.publish_work(&entry.unit, &entry.headers).await?;
        }
        if stage == Stage::Preprocess && self.works_here() {
            tracing::debug!(state = %record.state, "a job is with the workers of this site");
        } else {
            tracing::error!(state = %record.state, "a job is with workers that an edge does not have; make it a hub again to finish it");
        }
        Ok(Next::Done(Offered::Over))
    }

    /// Fails a job of which something that was stored cannot be read back.
    async fn unreadable(
        &self,
        key: &JobKey,
        record: &JobRecord,
        refusal: &Refusal,
    ) -> Result<Next, Trouble> {
        tracing::error!(
            error = medfleet_core::chain(refusal),
            "a job cannot be read back to be handed on"
        );
        let mut text = "what was stored for the job cannot be read back at the edge".to_owned();
        if let Refusal::Broken { what } = refusal {
            text = format!("{text}: {what}");
        }
        let failure = Failure::new(FailureReason::Integrity, text);
        self.fail(key, record, failure).await
    }

    /// Fails a job that the hub does not have.
    async fn fail(
        &self,
        key: &JobKey,
        record: &JobRecord,
        failure: Failure,
    ) -> Result<Next, Trouble> {
        self.end(key, record, &Move::Fail(failure)).await?;
        Ok(Next::Again { is_doubtful: false })
    }

    /// Records that the hub has the job.
    async fn note(
        &self,
        behalf: Behalf<'_>,
        (key, record): (&JobKey, &JobRecord),
        job: &v1::Job,
    ) -> Result<Next, Trouble> {
        let step = Move::Forward {
            job: job_of(job)?,
            class: convert::class_from(job.class).unwrap_or(record.class),
        };
        let now = self.clock.now();
        let applied = self.queue.apply(key, Some(record.epoch), &step, now);
        match applied.await? {
            Applied::Applied { .. } => {
                self.edge_figures().count(HubOutcome::Forwarded);
                Ok(Next::Done(Offered::AtHub))
            }
            // It ended here meanwhile.
            Applied::Refused { record, .. } if record.state.is_final() => {
                self.note_ended(behalf, (key, &record), job).await
            }
            Applied::Refused { .. } => Ok(Next::Again { is_doubtful: true }),
            // Replayed or forgotten since it was read, or the answer of an outdated server: the next try finds out.
            Applied::OtherEpoch { .. } | Applied::Missing => Err(BEHIND),
        }
    }

    /// Stops a job at the hub that has ended here, and records that the hub has it: what was sent is erased there when it is
    /// erased here, also long after.
    async fn note_ended(
        &self,
        behalf: Behalf<'_>,
        (key, record): (&JobKey, &JobRecord),
        job: &v1::Job,
    ) -> Result<Next, Trouble> {
        let job = job_of(job)?;
        self.uplink.cancel(behalf, &job).await?;
        let step = Move::FoundAtHub { job };
        let now = self.clock.now();
        let applied = self.queue.apply(key, Some(record.epoch), &step, now);
        match applied.await? {
            // Whoever follows it erases it there if it was erased here.
            Applied::Applied { .. } => Ok(Next::Done(Offered::AtHub)),
            Applied::Refused { .. } | Applied::OtherEpoch { .. } | Applied::Missing => Err(BEHIND),
        }
    }

    /// Ends a job here; one that has ended already is left as it is.
    pub(super) async fn end(
        &self,
        key: &JobKey,
        record: &JobRecord,
        step: &Move,
    ) -> Result<(), Trouble> {
        let now = self.clock.now();
        let applied = self.queue.apply(key, Some(record.epoch), step, now);
        applied.await.map(drop).map_err(Trouble::from)
    }

    /// Sends the job's files and submits it.
    pub(super) async fn submit(
        &self,
        behalf: Behalf<'_>,
        key: &JobKey,
        record: &JobRecord,
    ) -> Result<v1::Job, Trouble> {
        let parcel = self.parcel(key, record).await?;
        let bytes = parcel.files.iter().map(|file| file.size_bytes);
        let is_small = bytes.sum::<u64>() <= INLINE_BYTES_MAX;
        match self
            .submit_as(behalf, (key, record), &parcel, is_small)
            .await
        {
            // A hub may take less within a request than others do (its `ingest.limits.inline_bytes_max`).
            Err(Trouble::Refused(why)) if is_small && plan::is_to_upload(&why) => {
                self.submit_as(behalf, (key, record), &parcel, false).await
            }
            submitted => submitted,
        }
    }

    /// Sends the files within the request, or as uploads before it.
    async fn submit_as(
        &self,
        behalf: Behalf<'_>,
        (key, record): (&JobKey, &JobRecord),
        parcel: &Parcel,
        is_within: bool,
    ) -> Result<v1::Job, Trouble> {
        let inputs: Vec<_> = parcel
            .files
            .iter()
            .map(|file| async move {
                let source = match is_within {
                    true => v1::input::Source::Content(self.whole(key, file).await?.into()),
                    false => v1::input::Source::Upload(self.send(behalf, key, file).await?),
                };
                Ok::<_, Trouble>(v1::Input {
                    source: Some(source),
                    modality: file.modality.clone(),
                    encoded_images: file.encoded_images,
                })
            })
            .collect();
        let inputs = self.all_sent((behalf, key), &parcel.files, inputs).await?;
        // Files may be on the line for hours.
        if !is_within && self.has_ended(key, record).await? {
            return Err(Trouble::Ended);
        }
        let left = plan::time_left(record, self.clock.now());
        let request = v1::SubmitJobRequest {
            request_id: plan::request_id(&key.job, record),
            task: parcel.task.clone(),
            inputs,
            class: convert::class(record.class).into(),
            model: record.model.clone(),
            decoding: parcel.decoding.clone(),
            time_to_live: prost_types::Duration::try_from(left).ok(),
            // Whose the study is stays here: what is erased here is erased there by its name.
            patient_pseudonym: String::new(),
            study_pseudonyms: Vec::new(),
        };
        match self.uplink.submit(behalf, request).await {
            // An upload of it has expired; or it is there already, as it was sent another time.
            Err(Trouble::NotThere) => Err(Trouble::Later("an upload has expired at the hub", None)),
            Err(Trouble::Taken) => {
                let id = plan::request_id(&key.job, record);
                let found = self.uplink.find(behalf, id).await?;
                found.ok_or(Trouble::Later("the hub contradicts itself", None))
            }
            submitted => submitted,
        }
    }

    /// Whether a job has ended, or was started over, since its record was read.
    async fn has_ended(&self, key: &JobKey, record: &JobRecord) -> Result<bool, Trouble> {
        let now = self.queue.record(key).await?;
        let has_ended = |now: JobRecord| now.epoch != record.epoch || now.state.is_final();
        Ok(now.is_some_and(|(now, _)| has_ended(now)))
    }

    /// Sends all files, some at a time. Until the last is there, the hub is asked to keep the others.
    async fn all_sent(
        &self,
        (behalf, key): (Behalf<'_>, &JobKey),
        files: &[Outgoing],
        inputs: Vec<impl Future<Output = Result<v1::Input, Trouble>>>,
    ) -> Result<Vec<v1::Input>, Trouble> {
        let mut sent: Vec<Option<v1::Input>> = vec![None; inputs.len()];
        let inputs = inputs.into_iter().enumerate();
        let inputs = inputs.map(|(index, input)| async move { (index, input.await) });
        let inputs: Vec<_> = inputs.collect();
        // In whichever order they come: one that waited behind a larger one would be kept by nobody.
        let inputs = stream::iter(inputs).buffer_unordered(self.config.uploads_max);
        let mut inputs = std::pin::pin!(inputs);
        let mut keep_at = Instant::now() + UPLOADS_RENEWED_EVERY;
        loop {
            let next = tokio::select! {
                next = inputs.next() => next,
                () = tokio::time::sleep_until(keep_at) => {
                    self.keep((behalf, key), files, &sent).await;
                    keep_at = Instant::now() + UPLOADS_RENEWED_EVERY;
                    continue;
                }
            };
            match next {
                Some((index, input)) => {
                    if let Some(place) = sent.get_mut(index) {
                        *place = Some(input?);
                    }
                }
                None => return Ok(sent.into_iter().flatten().collect()),
            }
        }
    }

    /// Asks the hub to keep what was sent.
    async fn keep(
        &self,
        (behalf, key): (Behalf<'_>, &JobKey),
        files: &[Outgoing],
        sent: &[Option<v1::Input>],
    ) {
        let uploads = files.iter().zip(sent).filter_map(|(file, input)| {
            let source = input.as_ref()?.source.as_ref()?;
            match source {
                v1::input::Source::Upload(name) => Some((name.as_str(), file.size_bytes)),
                v1::input::Source::Content(_) => None,
            }
        });
        let asks = uploads.map(|upload| self.uplink.keep_upload(behalf, upload));
        let asks: Vec<_> = asks.collect();
        let mut asks = stream::iter(asks).buffer_unordered(KEPT_AT_A_TIME);
        while let Some(kept) = asks.next().await {
            if let Err(trouble) = kept {
                // It is asked again; of an upload that is gone all the same, submitting says so.
                self.tell(key, &trouble);
            }
        }
    }

    async fn whole(&self, key: &JobKey, file: &Outgoing) -> Result<Vec<u8>, Trouble> {
        let mut content = Vec::new();
        for part in &file.parts {
            content.extend_from_slice(&self.part(key, part).await?);
        }
        Ok(content)
    }

    /// Uploads a file; where the connection breaks, from where the hub has it.
    async fn send(
        &self,
        behalf: Behalf<'_>,
        key: &JobKey,
        file: &Outgoing,
    ) -> Result<String, Trouble> {
        let start = v1::UploadStart {
            total_bytes: file.size_bytes,
            ..v1::UploadStart::default()
        };
        // Of the parts that were read, how long they are: of what the hub has, nothing is read again.
        let mut lengths = Vec::new();
        let mut upload = self
            .send_from(behalf, key, (file, &mut lengths), start)
            .await?;
        let mut tries = 0;
        while tries < RESUMES_MAX {
            let stored = upload.committed_bytes;
            let start = v1::UploadStart {
                upload: upload.name.clone(),
                offset: stored,
                total_bytes: file.size_bytes,
            };
            let sent = self
                .send_from(behalf, key, (file, &mut lengths), start)
                .await;
            upload = match sent {
                Ok(sent) if sent.complete => return Ok(sent.name),
                Ok(sent) => sent,
                // What was still on its way may have moved the place from which the hub goes on; an older release refuses then.
                Err(trouble @ (Trouble::Later(..) | Trouble::Defect | Trouble::Refused(_))) => {
                    self.wait_after(key, &trouble, tries).await;
                    match self.uplink.upload_of(behalf, upload.name.clone()).await {
                        Err(Trouble::Later(..) | Trouble::Defect) => upload,
                        found => found?,
                    }
                }
                Err(Trouble::NotThere) => break,
                Err(trouble) => return Err(trouble),
            };
            tries = plan::fruitless(tries, stored, upload.committed_bytes);
        }
        tracing::warn!(
            "an upload to the hub broke again and again, or expired there; is the line too slow for ingest.edge.answer_max, or for a part of a file within the hub's ingest.limits.upload_time_to_live?"
        );
        Err(Trouble::Later("an upload broke again and again", None))
    }

    /// Opens an upload, with an empty name and nothing else, or sends the rest of one.
    async fn send_from(
        &self,
        behalf: Behalf<'_>,
        key: &JobKey,
        (file, lengths): (&Outgoing, &mut Vec<usize>),
        start: v1::UploadStart,
    ) -> Result<v1::Upload, Trouble> {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let sending = self.send_parts(key, (file, lengths), start, sender);
        let receiving = self.uplink.upload(behalf, receiver);
        let sending = std::pin::pin!(sending);
        let receiving = std::pin::pin!(receiving);
        match futures::future::select(sending, receiving).await {
            // Everything is on its way: what still lies in buffers has to be through before the hub can answer.
            futures::future::Either::Left((Ok(()), receiving)) => {
                let answer = timeout(self.line_patience(), receiving).await;
                answer.unwrap_or(Err(Trouble::Later("the hub did not answer in time", None)))
            }
            futures::future::Either::Left((Err(trouble), _)) => Err(trouble),
            // The hub has ended it: it has an answer already, such as a refusal.
            futures::future::Either::Right((answer, _)) => answer,
        }
    }

    async fn send_parts(
        &self,
        key: &JobKey,
        (file, lengths): (&Outgoing, &mut Vec<usize>),
        start: v1::UploadStart,
        mut sender: mpsc::Sender<v1::UploadInputRequest>,
    ) -> Result<(), Trouble> {
        let is_opening = start.upload.is_empty();
        let mut skip = start.offset;
        self.send_message(&mut sender, Content::Start(start))
            .await?;
        if is_opening {
            return Ok(());
        }
        for (index, part) in file.parts.iter().enumerate() {
            if let Some(rest) = plan::after(lengths.get(index), skip) {
                skip = rest;
                continue;
            }
            let part = self.part(key, part).await?;
            if lengths.len() == index {
                lengths.push(part.len());
            }
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(part.len());
            skip -= known as u64;
            let rest = part.slice(known..);
            let mut begin = 0;
            while begin < rest.len() {
                let end = (begin + CHUNK_BYTES).min(rest.len());
                let chunk = Content::Chunk(rest.slice(begin..end));
                self.send_message(&mut sender, chunk).await?;
                begin = end;
            }
        }
        Ok(())
    }

    async fn send_message(
        &self,
        sender: &mut mpsc::Sender<v1::UploadInputRequest>,
        content: Content,
    ) -> Result<(), Trouble> {
        let message = v1::UploadInputRequest {
            content: Some(content),
        };
        match timeout(self.line_patience(), sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            // The call is over; its answer says why.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => Err(Trouble::Later("the hub takes no more of a file", None)),
        }
    }

    /// How long nothing may move on the connection of files: a system gives its buffers free in large steps.
    fn line_patience(&self) -> Duration {
        plan::patience(self.config.answer_max.get(), plan::BUFFERED_BYTES_MAX)
    }
}

/// What continues the job's trace at the hub.
pub(super) fn headers_of(span: &tracing::Span, record: &JobRecord) -> Headers {
    match telemetry::inject(span) {
        none if none.is_empty() => trace_of(record),
        headers => headers,
    }
}

/// The hub's name of a job.
pub(super) fn job_of(job: &v1::Job) -> Result<JobId, Trouble> {
    let id = convert::job_id(&job.name);
    id.map_err(|_| Trouble::Later("the hub names its job as medfleet does not", None))
}
