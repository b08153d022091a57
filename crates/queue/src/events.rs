//! What a job tells the outside: durable events, and text and cancel hints on core NATS.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::{JobKey, JobRecord, chain};
use medfleet_proto::work::v1::{JobEvent, TextChunk};

use crate::api::{Operation, Which, repeatable};
use crate::feed::{Feed, FeedMessage};
use crate::wire::{decode, encode, event_of};
use crate::{Queue, QueueError, Result, subject};

impl Queue {
    /// Publishes the event of where a record stands now. The same event is stored once, however often it is published.
    /// An event is news, the record is what counts: with the stream full no work stops, and who watches reads records.
    ///
    /// # Errors
    /// Transient ones: publish again.
    pub async fn publish_event(&self, key: &JobKey, record: &JobRecord) -> Result<()> {
        const PUBLISH: Operation = repeatable("publish an event");
        let event = encode(&event_of(record, (self.clock)()));
        self.publish_news(PUBLISH, &subject::event(key, record), event)
            .await
    }

    /// Publishes into EVENTS what is stored once under its subject; a full stream stops nothing.
    pub(crate) async fn publish_news(
        &self,
        operation: Operation,
        subject: &str,
        event: Bytes,
    ) -> Result<()> {
        let published = self
            .api
            .publish_first(operation, subject::EVENTS, subject, event)
            .await;
        match published {
            Err(error @ QueueError::Full { .. }) => {
                tracing::error!(
                    error = chain(&error),
                    "an event is lost; raise queue.stream_bytes_max.events or shorten queue.event_retention"
                );
                Ok(())
            }
            published => published,
        }
    }

    /// The first event of a job after a sequence, with its own sequence; 0 begins at the beginning.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`].
    pub async fn next_event(
        &self,
        key: &JobKey,
        after_sequence: u64,
    ) -> Result<Option<(u64, JobEvent)>> {
        let filter = subject::events_of(key);
        let which = Which::Next {
            // A client may send any number.
            seq: after_sequence.saturating_add(1),
            next_by_subj: &filter,
        };
        let stored = self.api.get(subject::EVENTS, which).await?;
        stored
            .map(|stored| Ok((stored.sequence, decode("an event", stored.payload)?)))
            .transpose()
    }

    /// The latest epoch and the latest attempt that is still told of a job, by its stored events and its dead letters; none when
    /// nothing is known of a job of this name. They outlive the job's record where that is lost alone: units, events, letters and
    /// text of theirs are still about, and who accepts the job again begins it in the epoch after, and counts attempts on. What
    /// tells of it is of any epoch: those before may have gone by their age. Costs two readings at once where there was no such
    /// job.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`].
    pub async fn last_epoch(&self, key: &JobKey) -> Result<Option<(u32, u32)>> {
        let (said, buried) =
            futures::try_join!(self.last_said_epoch(key), self.last_dead_epoch(key))?;
        Ok(match (said, buried) {
            (None, None) => None,
            (said, buried) => {
                let (epoch, attempt) = said.unwrap_or_default();
                Some((epoch.max(buried.unwrap_or_default()), attempt))
            }
        })
    }

    /// As [`Queue::last_epoch`], of its events alone.
    async fn last_said_epoch(&self, key: &JobKey) -> Result<Option<(u32, u32)>> {
        let mut after = 0;
        let mut last: Option<(u32, u32)> = None;
        while let Some((sequence, event)) = self.next_event(key, after).await? {
            after = sequence;
            let (epoch, attempt) = last.unwrap_or_default();
            last = Some((event.epoch.max(epoch), event.attempt.max(attempt)));
        }
        Ok(last)
    }

    /// Every event of every job from now on, in order, with job and sequence. One consumer on the server; goes on after a
    /// restart without losing or repeating one. Ends only with the connection.
    ///
    /// # Errors
    /// When the stream cannot be read at all; later trouble is logged and retried, never yielded.
    pub async fn events(&self) -> Result<BoxStream<'static, Result<(JobKey, u64, JobEvent)>>> {
        let feed = Feed::open(&self.api, subject::EVENTS, None).await?;
        Ok(feed.stream().map(job_event).boxed())
    }

    /// Sends text of a job to whoever listens; nobody keeps it.
    ///
    /// # Errors
    /// When it could not be handed to the connection in time.
    pub async fn publish_text(&self, key: &JobKey, text: &TextChunk) -> Result<()> {
        const SEND: Operation = repeatable("send text");
        self.api.tell(SEND, subject::text(key), encode(text)).await
    }

    /// The text of all jobs from now on. What is sent while the connection is down is missed: read the checkpoint.
    pub async fn texts(&self) -> Result<BoxStream<'static, (JobKey, TextChunk)>> {
        const LISTEN: Operation = repeatable("listen to text");
        let messages = self.api.subscribe(LISTEN, "text.*.*".to_owned()).await?;
        let texts = messages.filter_map(|message| async move {
            let key = subject::job_of(&message.subject)?;
            // Text that this version cannot read is missed like any other lost text; the checkpoint has it.
            Some((key, decode("text", message.payload).ok()?))
        });
        Ok(texts.boxed())
    }

    /// Hints to workers that a job was cancelled; the record is what counts.
    ///
    /// # Errors
    /// When it could not be handed to the connection in time.
    pub async fn publish_cancel(&self, key: &JobKey) -> Result<()> {
        const SEND: Operation = repeatable("send a cancel hint");
        self.api
            .tell(SEND, subject::cancel(key), Bytes::new())
            .await
    }

    /// Cancel hints of all jobs from now on.
    pub async fn cancels(&self) -> Result<BoxStream<'static, JobKey>> {
        const LISTEN: Operation = repeatable("listen to cancel hints");
        let messages = self.api.subscribe(LISTEN, "cancel.*.*".to_owned()).await?;
        let keys = messages.filter_map(|message| async move { subject::job_of(&message.subject) });
        Ok(keys.boxed())
    }
}

impl Queue {
    /// Hints to whoever keeps something of a job in memory that it was erased.
    ///
    /// # Errors
    /// When it could not be handed to the connection in time.
    pub async fn publish_erased(&self, key: &JobKey) -> Result<()> {
        const SEND: Operation = repeatable("send an erasure hint");
        self.api
            .tell(SEND, subject::erased(key), Bytes::new())
            .await
    }

    /// Erasure hints of all jobs from now on.
    pub async fn erasures(&self) -> Result<BoxStream<'static, JobKey>> {
        const LISTEN: Operation = repeatable("listen to erasure hints");
        let messages = self.api.subscribe(LISTEN, "erased.*.*".to_owned()).await?;
        let keys = messages.filter_map(|message| async move { subject::job_of(&message.subject) });
        Ok(keys.boxed())
    }
}

fn job_event(message: FeedMessage) -> Result<(JobKey, u64, JobEvent)> {
    let key = subject::job_of(&message.subject)
        .ok_or(QueueError::malformed("an event", "its subject"))?;
    let event = decode("an event", message.payload)?;
    Ok((key, message.sequence, event))
}
