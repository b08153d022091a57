//! Text on its way to watchers: every piece at once over the queue, the whole text about once a second as a checkpoint blob for
//! those who come late. The result's text is exactly these pieces, one after the other; the last piece is in the result alone.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use medfleet_core::{BlobKind, JobKey};
use medfleet_engine::{DecodeEvent, DecodeStream, Done};
use medfleet_proto::work::v1::TextChunk;
use medfleet_queue::Queue;
use medfleet_store::{BlobStore, StoreError};
use medfleet_worker::text_key;
use prost::Message;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::error::DecodeError;

/// The text of one attempt.
pub(crate) struct Writer {
    pub(crate) queue: Queue,
    pub(crate) store: BlobStore,
    pub(crate) key: JobKey,
    pub(crate) epoch: u32,
    pub(crate) attempt: u32,
    pub(crate) every: Duration,
}

/// A text that is at its end.
pub(crate) struct Text {
    pub(crate) whole: String,
    /// Bytes of it that were published to watchers.
    pub(crate) published: usize,
}

impl Text {
    /// What was not published.
    pub(crate) fn rest(&self) -> &str {
        self.whole.get(self.published..).unwrap_or_default()
    }
}

impl Writer {
    /// Stores the text so far, for watchers that come late. The caller only logs a failure: the job does not need it. Once begun
    /// it goes on to its end, also when it is dropped; the store sees to it that an erased job leaves no text.
    pub(crate) fn checkpoint(&self, text: &str) -> BoxFuture<'static, Result<(), StoreError>> {
        let chunk = self.chunk(0, text);
        let key = text_key(&self.key.job, self.epoch);
        let (store, job) = (self.store.clone(), self.key.clone());
        async move {
            let content = chunk.encode_to_vec().into();
            store
                .put_mutable_of(&job, BlobKind::Text, &key, content)
                .await?;
            Ok(())
        }
        .boxed()
    }

    fn chunk(&self, offset: usize, text: &str) -> TextChunk {
        TextChunk {
            attempt: self.attempt,
            offset_bytes: offset as u64,
            text: text.to_owned(),
            epoch: self.epoch,
        }
    }

    /// Publishes a piece and adds it to the text.
    pub(crate) async fn append(&self, text: &mut String, piece: &str) {
        self.publish(text.len(), piece).await;
        text.push_str(piece);
    }

    /// Publishes a piece of text, which begins at byte `offset` of the whole.
    pub(crate) async fn publish(&self, offset: usize, piece: &str) {
        if piece.is_empty() {
            return;
        }
        let chunk = self.chunk(offset, piece);
        if let Err(error) = self.queue.publish_text(&self.key, &chunk).await {
            // Best effort: checkpoint and result have the text too.
            tracing::debug!(%error, "a piece of text was not published");
        }
    }

    /// Publishes the text as it comes and returns all of it. The piece that comes with the end is not published: the result, which
    /// is stored next, brings it to every watcher, and until then nobody takes the text for complete. A text that turns out to be
    /// unusable has no result, so whoever finds that out publishes [`Text::rest`].
    pub(crate) async fn run(&self, stream: &mut DecodeStream) -> Result<(Text, Done), DecodeError> {
        let mut text = String::new();
        let mut due = interval_at(Instant::now() + self.every, self.every);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stored, mut storing): (usize, Option<BoxFuture<'static, _>>) = (0, None);
        loop {
            tokio::select! {
                biased;
                event = stream.next() => {
                    let (piece, done) = gathered(stream, event?)?;
                    if let Some(done) = done {
                        let published = text.len();
                        text.push_str(&piece);
                        return Ok((Text { whole: text, published }, done));
                    }
                    self.append(&mut text, &piece).await;
                }
                outcome = ready(&mut storing) => {
                    storing = None;
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a checkpoint of the text was not stored");
                    }
                }
                _ = due.tick() => {
                    if storing.is_none() && stored < text.len() {
                        stored = text.len();
                        storing = Some(self.checkpoint(&text));
                    }
                }
            }
        }
    }
}

/// An event together with those that have already come behind it, as one piece of text, and the end if it is among them.
fn gathered(
    stream: &mut DecodeStream,
    first: DecodeEvent,
) -> Result<(String, Option<Done>), DecodeError> {
    let mut piece = match first {
        DecodeEvent::Text(delta) => delta,
        DecodeEvent::Done(done) => return Ok((String::new(), Some(done))),
    };
    while let Some(event) = stream.next().now_or_never() {
        match event? {
            DecodeEvent::Text(delta) => piece.push_str(&delta),
            DecodeEvent::Done(done) => return Ok((piece, Some(done))),
        }
    }
    Ok((piece, None))
}

/// The checkpoint under way; pending for ever when there is none.
async fn ready<T>(storing: &mut Option<BoxFuture<'static, T>>) -> T {
    match storing {
        Some(storing) => storing.await,
        None => std::future::pending().await,
    }
}
