//! Follows one job for one caller: durable events by reading, then live ones, text put together without gap or repeat,
//! and at the end whatever text is still missing. A watch that is slow, or unsure, starts over from durable state. Where this
//! process has heard all that was told of a job, a watch begins with that, and looks at durable state a little later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{BlobKind, JobKey, JobRecord, JobState, UnixMillis, chain};
use medfleet_proto::v1::{self, watch_job_response::Event};
use medfleet_proto::work::v1::{JobEvent, TextChunk};
use medfleet_queue::{Queue, QueueError};
use medfleet_runtime::{Clock, Shutdown};
use prost::Message;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tonic::Status;

use crate::blobs::Blobs;
use crate::config::WatchConfig;
use crate::convert;
use crate::error::{self, Refusal};
use crate::fanout::{Fanout, Signal, Subscription, Told};
use crate::metrics::Figures;
use crate::stitch::{Out, Piece, Stitch};
use crate::tokens::{Caller, Tokens};

/// How often a record is read again that does not show yet what an event says.
const RECORD_READS_MAX: u32 = 50;
/// Pause between these reads.
const RECORD_READ_PAUSE: Duration = Duration::from_millis(20);
/// How soon a watch that began with what this process has heard reads durable state: the event of an end may never have come.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What watching needs.
#[derive(Debug, Clone)]
pub(crate) struct Watching {
    pub(crate) config: WatchConfig,
    pub(crate) queue: Queue,
    pub(crate) blobs: Blobs,
    pub(crate) fanout: Fanout,
    pub(crate) tokens: Tokens,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) figures: Figures,
    pub(crate) shutdown: Shutdown,
}

/// How a job ended; the same for all its watchers.
#[derive(Debug)]
pub(crate) struct Finished {
    epoch: u32,
    attempt: u32,
    job: v1::Job,
    at: UnixMillis,
    /// The whole text; none if there is no result.
    text: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Durable state must be read.
    Reading,
    /// Signals are followed.
    Following,
    /// Nothing comes any more.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Watch {
    watching: Arc<Watching>,
    caller: Caller,
    key: JobKey,
    subscription: Subscription,
    /// Last durable event sent.
    sequence: u64,
    epoch: u32,
    stitch: Stitch,
    ready: VecDeque<v1::WatchJobResponse>,
    phase: Phase,
    /// When to read the stored text, while text is missing.
    checkpoint_at: Option<Instant>,
    reread_at: Instant,
    /// The record that was read when the watch began, until durable state is read for the first time; `None` where the watch began
    /// with what this process had heard.
    first: Option<JobRecord>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watching.figures.watches.dec();
    }
}

impl Watch {
    /// Begins to follow a job that exists.
    pub(crate) async fn begin(
        watching: Arc<Watching>,
        (caller, key): (Caller, JobKey),
        request: &v1::WatchJobRequest,
    ) -> Result<Self, Refusal> {
        let subscription = watching.fanout.subscribe(&key);
        let heard = watching.fanout.heard(&key, watching.queue.losses());
        let reread_every = watching.config.reread_every.get();
        let (first, phase, look_after) = match &heard {
            // The job exists, and no event of its end was heard.
            Some(_) => (None, Phase::Following, reread_every.min(LOOK_AFTER)),
            None => match watching.queue.record(&key).await? {
                Some((record, _)) => (Some(record), Phase::Reading, reread_every),
                None => return Err(Refusal::NotFound { what: "job" }),
            },
        };
        let position = request.text_position.unwrap_or_default();
        let ahead = watching.config.ahead_bytes_max.as_usize();
        watching.figures.watches.inc();
        let mut watch = Self {
            stitch: Stitch::at(position.attempt, position.offset_bytes, ahead),
            reread_at: Instant::now() + look_after,
            watching,
            caller,
            key,
            subscription,
            sequence: request.after_sequence,
            epoch: 0,
            ready: VecDeque::new(),
            phase,
            checkpoint_at: None,
            first,
        };
        for told in heard.into_iter().flatten() {
            watch.push_progress(told);
        }
        Ok(watch)
    }

    /// Has it written down that its caller watches, unless that was done for another watch that is still open.
    pub(crate) async fn audit_once(
        &self,
        audit: impl Future<Output = Result<(), QueueError>>,
    ) -> Result<(), Refusal> {
        let mut audited = self.subscription.topic.audited.lock().await;
        if !audited.contains(&self.caller.actor) {
            audit.await?;
            audited.insert(self.caller.actor.clone());
        }
        Ok(())
    }

    /// The stream of responses. It runs only while the caller takes them.
    pub(crate) fn into_stream(
        self,
    ) -> impl futures::Stream<Item = Result<v1::WatchJobResponse, Status>> {
        futures::stream::unfold(self, |mut watch| async move {
            let next = watch.next().await?;
            Some((next, watch))
        })
    }

    async fn next(&mut self) -> Option<Result<v1::WatchJobResponse, Status>> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            let step = match self.phase {
                Phase::Ended => return None,
                Phase::Reading => self.read().await,
                Phase::Following => self.follow().await,
            };
            if let Err(refusal) = step {
                self.phase = Phase::Ended;
                return Some(Err(error::status(&refusal)));
            }
        }
    }

    /// Reads everything durable that was not sent yet.
    async fn read(&mut self) -> Result<(), Refusal> {
        // A watch may last for days; it ends once its token is withdrawn.
        if !self.watching.tokens.still_knows(&self.caller) {
            return Err(Refusal::WrongToken);
        }
        self.phase = Phase::Following;
        self.reread_at = Instant::now() + self.watching.config.reread_every.get();
        while let Some((sequence, event)) = self
            .watching
            .queue
            .next_event(&self.key, self.sequence)
            .await?
        {
            self.take_event(sequence, event).await?;
            if self.phase == Phase::Ended {
                return Ok(());
            }
        }
        // The first record still serves, as signals bring whatever has changed since. A final one is read again: the job may
        // have been erased meanwhile.
        let first = self.first.take();
        let first = first.filter(|first| !first.state.is_final() && first.epoch >= self.epoch);
        let record = match first {
            Some(record) => record,
            None => self.record().await?,
        };
        if record.state.is_final() {
            // The event of the end was never published, or the caller has seen it before.
            return self.finish(record).await;
        }
        self.epoch = record.epoch;
        if matches!(record.state, JobState::Decoding | JobState::Forwarded) {
            self.read_checkpoint().await?;
        }
        Ok(())
    }

    /// Waits for the next thing to do.
    async fn follow(&mut self) -> Result<(), Refusal> {
        let wake_at = self
            .checkpoint_at
            .map_or(self.reread_at, |at| at.min(self.reread_at));
        tokio::select! {
            signal = self.subscription.signals.recv() => match signal {
                Ok(Signal::Event(sequence, event)) => self.take_event(sequence, event).await?,
                Ok(Signal::Text(chunk)) => self.take_text(&chunk),
                Ok(Signal::Missed) | Err(RecvError::Closed) => self.phase = Phase::Reading,
                Err(RecvError::Lagged(_)) => {
                    self.watching.figures.watch_resyncs.inc();
                    self.phase = Phase::Reading;
                }
            },
            () = tokio::time::sleep_until(wake_at) => {
                if Instant::now() >= self.reread_at {
                    self.phase = Phase::Reading;
                } else {
                    self.read_checkpoint().await?;
                }
            }
            () = self.watching.shutdown.begun() => return Err(Refusal::Stopping),
        }
        Ok(())
    }

    async fn take_event(&mut self, sequence: u64, event: JobEvent) -> Result<(), Refusal> {
        if sequence <= self.sequence {
            return Ok(());
        }
        if convert::is_final(&event) {
            if let Some(finished) = self.known(event.epoch).await
                && let Some(is_erased) = still_stands(finished.epoch, &self.record().await?)
            {
                self.sequence = sequence;
                self.push_finished(&finished, is_erased);
                return Ok(());
            }
            if let Some(record) = self.end(&event).await? {
                self.sequence = sequence;
                return self.finish(record).await;
            }
        }
        self.push_progress((sequence, event));
        Ok(())
    }

    fn push_progress(&mut self, (sequence, event): Told) {
        if sequence <= self.sequence {
            return;
        }
        self.sequence = sequence;
        let time = UnixMillis(event.time_unix_millis);
        self.push(time, Event::Progress(convert::progress(&event)));
    }

    /// The record of a job whose final event has come, once the record is final too; `None` if the job was replayed since, which
    /// makes the event an ordinary one.
    async fn end(&mut self, event: &JobEvent) -> Result<Option<JobRecord>, Refusal> {
        for _ in 0..RECORD_READS_MAX {
            let record = self.record().await?;
            if record.epoch != event.epoch {
                self.epoch = record.epoch;
                return Ok(None);
            }
            if record.state.is_final() {
                return Ok(Some(record));
            }
            // The server that answered has the event, and not yet the record.
            tokio::time::sleep(RECORD_READ_PAUSE).await;
        }
        // An outdated server answers (`Queue::outdated_max`). The caller watches again, and then meets another one, or this one
        // when it knows more.
        Err(Refusal::Queue(QueueError::unavailable(
            "read the record of a job that ended",
        )))
    }

    /// Sends the text that is missing and the final state.
    async fn finish(&mut self, record: JobRecord) -> Result<(), Refusal> {
        let topic = Arc::clone(&self.subscription.topic);
        let mut known = topic.finished.lock().await;
        if let Some(finished) = known.clone().filter(|known| known.epoch == record.epoch) {
            drop(known);
            let is_erased = self.record().await?.erased.is_some();
            self.push_finished(&finished, is_erased);
            return Ok(());
        }
        let finished = Arc::new(self.read_finished(record).await?);
        *known = Some(Arc::clone(&finished));
        drop(known);
        self.push_finished(&finished, false);
        Ok(())
    }

    /// How the job ended, if another watcher of this process has read it.
    async fn known(&self, epoch: u32) -> Option<Arc<Finished>> {
        let known = self.subscription.topic.finished.lock().await;
        known.clone().filter(|finished| finished.epoch == epoch)
    }

    /// Sends how the job ended. The text in memory may have been erased since it was read.
    fn push_finished(&mut self, finished: &Finished, is_erased: bool) {
        match &finished.text {
            _ if is_erased => {}
            Some(text) => {
                let mut out = Vec::new();
                self.stitch.finish(finished.attempt, text, &mut out);
                self.push_text(out);
            }
            // Texts come by another subscription than events: a piece that was published before the end may have arrived after
            // it, and nothing else contains it.
            None => {
                while let Ok(signal) = self.subscription.signals.try_recv() {
                    if let Signal::Text(chunk) = signal {
                        self.take_text(&chunk);
                    }
                }
            }
        }
        self.push(finished.at, Event::Final(finished.job.clone()));
        self.phase = Phase::Ended;
    }

    async fn read_finished(&self, record: JobRecord) -> Result<Finished, Refusal> {
        let text = match &record.result {
            Some(digest) => match self
                .watching
                .blobs
                .get(&self.key.tenant, BlobKind::Result, digest)
                .await?
            {
                Some(bytes) => {
                    let result = v1::Result::decode(bytes)
                        .map_err(|_| Refusal::Broken { what: "a result" })?;
                    Some(convert::result_text(&result).to_owned())
                }
                // Erased or expired since; the final state is sent all the same.
                None => None,
            },
            None => None,
        };
        Ok(Finished {
            epoch: record.epoch,
            attempt: record.attempt,
            job: convert::job(&self.key.job, &record),
            at: record.times.finished.unwrap_or(record.times.accepted),
            text,
        })
    }

    fn take_text(&mut self, chunk: &TextChunk) {
        if chunk.epoch != self.epoch {
            return;
        }
        let mut out = Vec::new();
        let piece = Piece {
            attempt: chunk.attempt,
            offset: chunk.offset_bytes,
            text: &chunk.text,
        };
        self.stitch.offer(piece, &mut out);
        self.push_text(out);
        if !self.stitch.is_missing_text() {
            self.checkpoint_at = None;
        } else if self.checkpoint_at.is_none() {
            self.checkpoint_at = Some(Instant::now());
        }
    }

    /// Reads the text so far, and plans to do so again while text is missing.
    async fn read_checkpoint(&mut self) -> Result<(), Refusal> {
        match self
            .watching
            .blobs
            .text_checkpoint(&self.key, self.epoch)
            .await
        {
            Ok(Some(bytes)) => {
                let chunk = TextChunk::decode(bytes).map_err(|_| Refusal::Broken {
                    what: "the text so far",
                })?;
                self.take_text(&chunk);
            }
            Ok(None) => {}
            // The next try, or the result at the end, has the text as well.
            Err(error) => {
                tracing::debug!(error = chain(&error), "the text so far could not be read");
            }
        }
        self.checkpoint_at = self
            .stitch
            .is_missing_text()
            .then(|| Instant::now() + self.watching.config.checkpoint_every.get());
        Ok(())
    }

    async fn record(&self) -> Result<JobRecord, Refusal> {
        let found = self.watching.queue.record(&self.key).await?;
        found
            .map(|(record, _)| record)
            .ok_or(Refusal::NotFound { what: "job" })
    }

    fn push_text(&mut self, out: Vec<Out>) {
        let now = self.watching.clock.now();
        for out in out {
            let event = match out {
                Out::Reset { attempt } => Event::Reset(v1::TextReset { attempt }),
                Out::Delta {
                    attempt,
                    offset,
                    text,
                } => Event::Text(v1::TextDelta {
                    attempt,
                    offset_bytes: offset,
                    text,
                }),
            };
            self.push(now, event);
        }
    }

    fn push(&mut self, at: UnixMillis, event: Event) {
        let time = Some(convert::timestamp(at));
        self.ready.push_back(v1::WatchJobResponse {
            sequence: self.sequence,
            time,
            event: Some(event),
        });
    }
}

/// Whether an end that was read earlier, of this epoch, still holds: `None` if the job was started over since, else whether it was
/// erased since.
fn still_stands(epoch: u32, record: &JobRecord) -> Option<bool> {
    (record.epoch == epoch && record.state.is_final()).then_some(record.erased.is_some())
}

#[cfg(test)]
mod tests;
