//! A stream read in order, from a place and then live, that goes on after restarts without losing or repeating a message.
//! Reads through an ephemeral consumer that is thrown away and made anew from the last sequence seen whenever anything
//! looks wrong: the connection was lost, heartbeats stopped, or a number was skipped.

use std::time::Duration;

use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::{UnixMillis, chain};
use serde_json::json;
use tokio::time::Instant;

use crate::ack;
use crate::api::{Api, Operation, repeatable, to_json};
use crate::{QueueError, Result};

/// Messages asked for at a time.
const BATCH: u64 = 256;
/// How long one request waits for messages.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that it is still there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Silence after which the consumer is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// When the server removes a consumer that nobody asks.
const INACTIVE: Duration = Duration::from_secs(60);
/// First and longest pause before a consumer is made anew.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

const CREATE: Operation = repeatable("read a stream");

#[derive(Debug)]
pub(crate) struct FeedMessage {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored_at: UnixMillis,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) payload: Bytes,
}

/// A reader and where it is.
#[derive(Debug)]
pub(crate) struct Feed {
    api: Api,
    stream: &'static str,
    /// The first sequence not yet seen.
    next: u64,
    source: Option<Source>,
}

/// The consumer in use and what it still owes.
#[derive(Debug)]
struct Source {
    inbox: Subscriber,
    reply: String,
    pull: String,
    losses: u64,
    /// Messages that the request under way may still bring.
    owed: u64,
    /// Consumer sequence of the latest message.
    delivered: u64,
}

enum Step {
    Message(FeedMessage),
    /// Nothing to yield yet.
    Again,
    /// Throw the consumer away.
    Broken(&'static str),
}

impl Feed {
    /// Opens a stream at sequence `from`, or after its end.
    pub(crate) async fn open(api: &Api, stream: &'static str, from: Option<u64>) -> Result<Self> {
        let next = match from {
            Some(from) => from,
            None => api.last_sequence(stream).await? + 1,
        };
        let mut feed = Self {
            api: api.clone(),
            stream,
            next,
            source: None,
        };
        feed.source = Some(feed.make_source().await?);
        Ok(feed)
    }

    /// The messages; ends only when our side of the connection is closed.
    pub(crate) fn stream(self) -> BoxStream<'static, FeedMessage> {
        futures::stream::unfold(self, |mut feed| async move {
            let message = feed.next_message().await?;
            Some((message, feed))
        })
        .boxed()
    }

    async fn next_message(&mut self) -> Option<FeedMessage> {
        let mut pause = PAUSE.0;
        // Said once, not at every try for as long as the queue is away.
        let mut is_told = false;
        loop {
            let Some(source) = &mut self.source else {
                match self.make_source().await {
                    Ok(source) => {
                        is_told = false;
                        self.source = Some(source);
                    }
                    Err(QueueError::Closed) => return None,
                    Err(error) => {
                        if !std::mem::replace(&mut is_told, true) {
                            tracing::warn!(
                                stream = self.stream,
                                error = chain(&error),
                                "cannot read a stream; trying again"
                            );
                        }
                        rest(&mut pause).await;
                    }
                }
                continue;
            };
            match source.step(&self.api, self.next).await {
                Step::Message(message) => {
                    self.next = message.sequence + 1;
                    return Some(message);
                }
                Step::Again => {}
                Step::Broken(reason) => {
                    tracing::info!(stream = self.stream, reason, "reading a stream anew");
                    self.source = None;
                    // One that breaks again and again without a message in between must not keep the server busy.
                    rest(&mut pause).await;
                }
            }
        }
    }

    async fn make_source(&mut self) -> Result<Source> {
        let losses = self.api.link.losses();
        let last = self.api.last_sequence(self.stream).await?;
        if last + 1 < self.next {
            // The server lost its store; what it has now is all new to us.
            tracing::warn!(
                stream = self.stream,
                "the stream is shorter than it was; reading it from its beginning"
            );
            self.next = 1;
        }
        let base = self.api.client.new_inbox();
        let name = base.rsplit('.').next().unwrap_or(&base).to_owned();
        let body = json!({
            "stream_name": self.stream,
            "config": {
                "name": name,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": self.next,
                "ack_policy": "none",
                "replay_policy": "instant",
                "max_deliver": 1,
                "mem_storage": true,
                "num_replicas": 1,
                "inactive_threshold": nanos(INACTIVE),
            },
        });
        let method = format!("CONSUMER.CREATE.{}.{name}", self.stream);
        self.api
            .call::<serde::de::IgnoredAny>(CREATE, &method, &body)
            .await?;
        let inbox = self.api.subscribe(CREATE, base.clone()).await?;
        Ok(Source {
            inbox,
            reply: base,
            pull: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{name}", self.stream),
            losses,
            owed: 0,
            delivered: 0,
        })
    }
}

impl Source {
    async fn step(&mut self, api: &Api, next: u64) -> Step {
        if self.owed == 0
            && let Err(reason) = self.ask(api).await
        {
            return Step::Broken(reason);
        }
        let silent = Instant::now() + SILENCE_MAX;
        let message = tokio::select! {
            // What has arrived is taken before the loss of the connection counts.
            biased;
            message = self.inbox.next() => message,
            () = api.link.lost_after(self.losses) => return Step::Broken("the connection was lost"),
            () = tokio::time::sleep_until(silent) => return Step::Broken("the server fell silent"),
        };
        match message {
            Some(message) => self.take(message, next),
            None => Step::Broken("the subscription ended"),
        }
    }

    async fn ask(&mut self, api: &Api) -> Result<(), &'static str> {
        let body = json!({
            "batch": BATCH,
            "expires": nanos(EXPIRES),
            "idle_heartbeat": nanos(HEARTBEAT),
        });
        let payload = to_json(CREATE, &body).map_err(|_| "the request cannot be written")?;
        let request = api
            .client
            .publish_with_reply(self.pull.clone(), self.reply.clone(), payload);
        match tokio::time::timeout(api.timeout, request).await {
            Ok(Ok(())) => {
                self.owed = BATCH;
                Ok(())
            }
            _ => Err("the request could not be sent"),
        }
    }

    fn take(&mut self, message: Message, next: u64) -> Step {
        match message.status.map(|status| status.as_u16()) {
            Some(100) => return Step::Again,
            // 404 and 408: the request is over, ask again.
            Some(404 | 408) => {
                self.owed = 0;
                return Step::Again;
            }
            Some(_) => return Step::Broken("the server ended the request"),
            None => {}
        }
        let Some(info) = message.reply.as_deref().and_then(ack::parse) else {
            return Step::Broken("a message without a place in its stream");
        };
        if info.consumer_sequence != self.delivered + 1 || info.stream_sequence < next {
            return Step::Broken("a message was skipped");
        }
        self.delivered = info.consumer_sequence;
        self.owed = self.owed.saturating_sub(1);
        Step::Message(FeedMessage {
            subject: message.subject.to_string(),
            sequence: info.stream_sequence,
            stored_at: info.stored_at,
            headers: message.headers,
            payload: message.payload,
        })
    }
}

/// Waits, and makes the next wait longer.
async fn rest(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(PAUSE.1);
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
