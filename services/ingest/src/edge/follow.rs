//! Follows one job at the hub: its events become ours, its text is passed on, and its end becomes the end here.
//!
//! Order at the end: the result stored here → the record, by compare-and-set → its event. What breaks is begun again from
//! the record and from what was passed on already; an event or a piece of text that comes twice is stored or shown once.

use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{
    BlobKind, Ended, Failure, FailureReason, JobId, JobKey, JobRecord, JobState, Move, Outcome,
    chain,
};
use medfleet_proto::v1::{self, watch_job_response::Event};
use medfleet_proto::work::v1::{JobEvent, TextChunk};
use medfleet_runtime::Clock;
use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Instrument;

use super::Edge;
use super::offer::job_of;
use super::plan::{self, Duty, Trouble};
use super::uplink::Behalf;
use crate::accept::trace_of;
use crate::convert;
use crate::metrics::HubOutcome;

/// How often a job's record is looked at while the hub does the job: hints may be lost.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// How often the text so far is stored.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// A job that is followed, and how far.
pub(super) struct Follow {
    pub(super) edge: Arc<Edge>,
    pub(super) key: JobKey,
    /// Its record may have changed.
    pub(super) hint: Arc<Notify>,
    /// The hub's sequence of the last event that was passed on.
    sequence: u64,
    attempt: u32,
    text: String,
    /// When to store the text, if there is more of it than is stored.
    checkpoint_at: Option<Instant>,
    tries: u32,
}

/// What to do next.
enum Next {
    /// Nothing is owed any more.
    Done,
    /// Look at the record again.
    Again,
}

impl Follow {
    pub(super) fn new(edge: Arc<Edge>, key: JobKey, hint: Arc<Notify>) -> Self {
        Self {
            edge,
            key,
            hint,
            sequence: 0,
            attempt: 0,
            text: String::new(),
            checkpoint_at: None,
            tries: 0,
        }
    }

    /// Follows until nothing is owed any more.
    pub(super) async fn run(mut self) -> JobKey {
        loop {
            match self.once().await {
                Ok(Next::Done) => return self.key,
                Ok(Next::Again) => self.tries = 0,
                Err(trouble) => {
                    let edge = Arc::clone(&self.edge);
                    let wait = edge.wait_after(&self.key, &trouble, self.tries);
                    // A wish of the tenant is no reason to ask the hub sooner.
                    wait.await;
                    self.tries += 1;
                }
            }
        }
    }

    async fn once(&mut self) -> Result<Next, Trouble> {
        let edge = Arc::clone(&self.edge);
        let key = self.key.clone();
        let Some((record, _)) = edge.queue.record(&key).await? else {
            return Ok(Next::Done);
        };
        let headers = trace_of(&record);
        let behalf = Behalf {
            tenant: &key.tenant,
            headers: &headers,
        };
        // Whoever moved it may have come no further than the record.
        edge.queue.publish_event(&key, &record).await?;
        match plan::duty(&record) {
            Duty::Nothing => Ok(Next::Done),
            Duty::Erase(job) => {
                match edge.uplink.erase(behalf, &job).await {
                    // What it has lost is erased, unless an outdated server of it does not know a job that just came.
                    Err(Trouble::NotThere) if plan::is_new_there(&record, edge.clock.known()) => {
                        return Err(Trouble::Later("the hub may not know the job yet", None));
                    }
                    Ok(()) | Err(Trouble::NotThere) => {}
                    Err(trouble) => return Err(trouble),
                }
                edge.end(&key, &record, &Move::ErasedAtHub).await?;
                edge.edge_figures().count(HubOutcome::Erased);
                Ok(Next::Done)
            }
            Duty::Follow { job, cancel } => {
                if cancel {
                    // Before each watch: a hub that answered and then lost its latest writes has forgotten that it was told.
                    edge.uplink.cancel(behalf, &job).await?;
                }
                match self.watch(behalf, &record, &job).await {
                    Err(Trouble::NotThere) => self.missing(behalf, &record, &job).await,
                    watched => watched,
                }
            }
        }
    }

    async fn watch(
        &mut self,
        behalf: Behalf<'_>,
        record: &JobRecord,
        job: &JobId,
    ) -> Result<Next, Trouble> {
        let edge = Arc::clone(&self.edge);
        let hint = Arc::clone(&self.hint);
        let request = v1::WatchJobRequest {
            name: convert::job_name(job),
            after_sequence: self.sequence,
            text_position: (self.attempt > 0).then_some(v1::TextPosition {
                attempt: self.attempt,
                offset_bytes: self.text.len() as u64,
            }),
        };
        let mut stream = edge.uplink.watch(behalf, request).await?;
        let mut look_at = Instant::now() + LOOK_EVERY;
        loop {
            let wake_at = self.checkpoint_at.map_or(look_at, |at| at.min(look_at));
            let message = tokio::select! {
                message = stream.message() => message,
                () = hint.notified() => return Ok(Next::Again),
                () = tokio::time::sleep_until(wake_at) => {
                    if self.checkpoint_at.is_some_and(|at| at <= Instant::now()) {
                        self.store_text(record).await?;
                    }
                    if look_at <= Instant::now() {
                        look_at = Instant::now() + LOOK_EVERY;
                        let now = edge.queue.record(&self.key).await?;
                        if now.is_none_or(|(now, _)| plan::duty(&now) != plan::duty(record)) {
                            return Ok(Next::Again);
                        }
                    }
                    continue;
                }
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return Err(Trouble::Later("the hub ended a watch early", None)),
                Err(status) => return Err(edge.uplink.broken(behalf, status)),
            };
            edge.uplink.heard_from(behalf);
            if let Some(job_now) = self.take(record, message).await? {
                plan::is_of(&job_now.name, job)?;
                return self.ended(behalf, record, (job, &job_now)).await;
            }
            // It goes on. An end that cannot be taken is asked for again ever more seldom.
            self.tries = 0;
        }
    }

    /// Passes a message on. The job, when it has ended.
    async fn take(
        &mut self,
        record: &JobRecord,
        message: v1::WatchJobResponse,
    ) -> Result<Option<v1::Job>, Trouble> {
        match message.event {
            Some(Event::Progress(progress)) => {
                self.pass_on(record, message.sequence, message.time, &progress)
                    .await?;
                self.sequence = message.sequence;
            }
            Some(Event::Reset(reset)) => {
                self.attempt = reset.attempt;
                self.text.clear();
            }
            Some(Event::Text(delta)) => {
                if delta.attempt != self.attempt {
                    self.attempt = delta.attempt;
                    self.text.clear();
                }
                if delta.offset_bytes == self.text.len() as u64 {
                    self.text.push_str(&delta.text);
                }
                let chunk = TextChunk {
                    attempt: delta.attempt,
                    offset_bytes: delta.offset_bytes,
                    text: delta.text,
                    epoch: record.epoch,
                };
                self.edge.queue.publish_text(&self.key, &chunk).await?;
                self.checkpoint_at
                    .get_or_insert_with(|| Instant::now() + CHECKPOINT_EVERY);
            }
            Some(Event::Final(job)) => return Ok(Some(job)),
            None => {}
        }
        Ok(None)
    }

    async fn pass_on(
        &self,
        record: &JobRecord,
        sequence: u64,
        time: Option<prost_types::Timestamp>,
        progress: &v1::JobProgress,
    ) -> Result<(), Trouble> {
        let state = convert::state_from(progress.state);
        // What was done here, and how it ended, is told by our own record.
        let done_here = match record.is_encoded_here() {
            true => JobState::Encoding,
            false => JobState::Accepted,
        };
        let is_news = state.is_some_and(|state| state > done_here && state < JobState::Forwarded);
        if !is_news {
            return Ok(());
        }
        let (chunks_total, chunks_done) = match record.is_encoded_here() {
            true => (record.chunks.total, record.chunks.done()),
            false => (progress.chunks_total, progress.chunks_done),
        };
        let time = time.map(convert::unix_millis);
        let event = JobEvent {
            state: progress.state,
            time_unix_millis: time.unwrap_or_else(|| self.edge.clock.now()).0,
            chunks_total,
            chunks_done,
            attempt: self.attempt,
            epoch: record.epoch,
            ..JobEvent::default()
        };
        let queue = &self.edge.queue;
        queue.publish_hub_event(&self.key, sequence, &event).await?;
        Ok(())
    }

    /// Stores the text so far, for who begins to watch now.
    async fn store_text(&mut self, record: &JobRecord) -> Result<(), Trouble> {
        self.checkpoint_at = None;
        let chunk = TextChunk {
            attempt: self.attempt,
            offset_bytes: 0,
            text: self.text.clone(),
            epoch: record.epoch,
        };
        let bytes = chunk.encode_to_vec().into();
        let stored = self.edge.blobs.put_text(&self.key, record.epoch, bytes);
        if let Err(error) = stored.await {
            // The result at the end has the text as well.
            let job = &self.key.job;
            tracing::warn!(error = chain(&error), %job, "the text so far was not stored");
        }
        Ok(())
    }

    /// The hub's job has ended.
    async fn ended(
        &mut self,
        behalf: Behalf<'_>,
        record: &JobRecord,
        (id, job): (&JobId, &v1::Job),
    ) -> Result<Next, Trouble> {
        let outcome = match job.state() {
            v1::JobState::Completed => Some(self.result(behalf, record, id).await?),
            _ => None,
        };
        let gone = || {
            let text = "the hub completed the job and has its result no more";
            Outcome::Failed(Failure::new(FailureReason::Internal, text))
        };
        let ended = plan::ended(job, || outcome.unwrap_or_else(gone));
        let not_ended = Trouble::Later("the hub ended a watch of a job that goes on", None);
        self.finish(record, ended.ok_or(not_ended)?).await
    }

    /// Fetches the result and stores it. The job relies on it from then on, as on its files.
    async fn result(
        &self,
        behalf: Behalf<'_>,
        record: &JobRecord,
        id: &JobId,
    ) -> Result<Outcome, Trouble> {
        let gone = || {
            let text = "the hub completed the job and has its result no more";
            Ok(Outcome::Failed(Failure::new(FailureReason::Internal, text)))
        };
        let mut result = match self.edge.uplink.result(behalf, id).await {
            Ok(result) => result,
            // The result, or the whole job: one that is lost is handed on again.
            Err(Trouble::NotThere) => {
                let request = plan::request_id(&self.key.job, record);
                let known = self.edge.uplink.find(behalf, request).await?;
                return known.map_or(Err(Trouble::NotThere), |_| gone());
            }
            Err(Trouble::Refused(_)) => return gone(),
            // Such as one that was put back from a backup in this moment: it goes on.
            Err(Trouble::OtherState) => {
                return Err(Trouble::Later("the hub's job is no longer completed", None));
            }
            Err(trouble) => return Err(trouble),
        };
        plan::is_of(&result.job, id)?;
        // Everything else of it is the hub's: here the job has its own name.
        result.job = convert::job_name(&self.key.job);
        let bytes = bytes::Bytes::from(result.encode_to_vec());
        let blobs = &self.edge.blobs;
        let digest = blobs.digest(&self.key.tenant, &bytes).await;
        let contents = vec![(BlobKind::Result, digest, bytes)];
        blobs.keep(&self.key, contents, &[]).await?;
        Ok(Outcome::Completed(digest))
    }

    async fn finish(&self, record: &JobRecord, ended: Ended) -> Result<Next, Trouble> {
        self.edge.end(&self.key, record, &Move::End(ended)).await?;
        self.edge.edge_figures().count(HubOutcome::Ended);
        // Erased in between, it has to be erased at the hub as well.
        Ok(Next::Again)
    }

    /// The hub has lost the job, such as with a backup that is older: it is given again, under the same request id.
    async fn missing(
        &mut self,
        behalf: Behalf<'_>,
        record: &JobRecord,
        job: &JobId,
    ) -> Result<Next, Trouble> {
        let fail = |text: &str| Ended {
            outcome: Outcome::Failed(Failure::new(FailureReason::Internal, text)),
            attempt: 0,
            chunks: record.chunks,
        };
        if self.edge.is_over(record) {
            let ended = fail("the hub does not know the job any more, and its time is over");
            return self.finish(record, ended).await;
        }
        let forwarded = record.forwarded.as_ref();
        if forwarded.is_some_and(|forwarded| forwarded.is_cancel_wanted) {
            if plan::is_new_there(record, self.edge.clock.known()) {
                return Err(Trouble::Later("the hub may not know the job yet", None));
            }
            // Nothing is left to stop, and nothing is sent only to be stopped.
            let ended = Ended {
                outcome: Outcome::Cancelled,
                ..fail("")
            };
            return self.finish(record, ended).await;
        }
        tracing::warn!(job = %self.key.job, "the hub has lost a job; it is handed on again");
        let span = self.edge.span(&self.key, record);
        let again = self.edge.submit(behalf, &self.key, record);
        let again = again.instrument(span).await;
        match again {
            Ok(again) if again.name == convert::job_name(job) => {
                let edge = Arc::clone(&self.edge);
                let (key, hint) = (self.key.clone(), Arc::clone(&self.hint));
                let tries = self.tries;
                *self = Self {
                    tries,
                    ..Self::new(edge, key, hint)
                };
                Err(Trouble::Later("the hub had lost the job", None))
            }
            Ok(other) => {
                // Such as a hub that was set up anew with another key. Nobody here would ever ask for that job.
                self.edge.uplink.erase(behalf, &job_of(&other)?).await?;
                let ended = fail("the hub lost the job, and would not take it under its name");
                self.finish(record, ended).await
            }
            Err(Trouble::Refused(why)) => {
                let outcome = Outcome::Failed(plan::refused(&why));
                let ended = Ended {
                    outcome,
                    ..fail("")
                };
                self.finish(record, ended).await
            }
            Err(trouble) => Err(trouble),
        }
    }
}
