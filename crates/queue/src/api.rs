//! JetStream's API over plain requests: one round trip each, every wait bounded, every error translated here.
//! Written on core requests because the hot paths need control that the client's layer above does not give:
//! no consumer lookups, leader reads, cancel-safe pulls, retries that know what is safe to repeat.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Request, client::RequestErrorKind};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::link::Link;
use crate::{Headers, QueueError, Result};

mod read;
pub(crate) use read::{BATCH_MAX, Stored, Which, parse_time};

/// The server's error codes that mean something to us.
pub(crate) mod code {
    /// The consumer does not exist.
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10014;
    /// No message has this sequence or subject.
    pub(crate) const NO_MESSAGE: u64 = 10037;
    /// The sequence to delete is not there.
    pub(crate) const SEQUENCE_NOT_FOUND: u64 = 10043;
    pub(crate) const MESSAGE_DELETE_FAILED: u64 = 10057;
    /// A stream of this name exists with another configuration.
    pub(crate) const STREAM_EXISTS: u64 = 10058;
    /// The stream does not exist.
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
    /// The expected last sequence of the subject is another.
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10071;
    /// The stream refused to store: its description says which limit.
    pub(crate) const STORE_FAILED: u64 = 10077;
    /// As `WRONG_LAST_SEQUENCE`, without the sequence in its text.
    pub(crate) const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10164;
}

/// First and longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Tries of a publish that is refused for a message which is not there.
const FIRST_TRIES: u32 = 16;

/// The JetStream API of one connection. A cheap clone.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) client: Client,
    pub(crate) link: Link,
    pub(crate) timeout: Duration,
    /// Whether any server may answer reads (one replica), or only the leader sees our latest write.
    pub(crate) any_server_is_current: bool,
}

#[derive(serde::Deserialize)]
struct Envelope {
    error: Option<ServerError>,
}

#[derive(serde::Deserialize)]
struct ServerError {
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The answer to a publish, refused or not: read at one go, as every write has one.
#[derive(serde::Deserialize)]
struct PubAck {
    error: Option<ServerError>,
    #[serde(default)]
    seq: u64,
}

/// What a request is about, for errors and for deciding what may be repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Whether doing it twice is the same as once, so that a lost answer is asked for again.
    pub(crate) repeatable: bool,
}

/// An operation that may be repeated.
pub(crate) const fn repeatable(name: &'static str) -> Operation {
    Operation {
        name,
        repeatable: true,
    }
}

/// An operation whose lost answer must be reported.
pub(crate) const fn once(name: &'static str) -> Operation {
    Operation {
        name,
        repeatable: false,
    }
}

enum Attempt {
    /// Nobody received it: safe to send again.
    NobodyThere,
    /// The connection was lost while waiting: it may or may not have been done.
    Lost,
    Failed(QueueError),
}

impl Api {
    /// Sends a request and waits for its answer, in all at most the request timeout. Behind a pointer: everything that asks the
    /// server would have a copy of this compiled into it, in each package that does so.
    pub(crate) fn send<'a>(
        &'a self,
        operation: Operation,
        subject: &'a str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> BoxFuture<'a, Result<Message>> {
        Box::pin(async move {
            let deadline = Instant::now() + self.timeout;
            let mut pause = PAUSE.0;
            loop {
                if self.link.is_closed() {
                    return Err(QueueError::Closed);
                }
                let request = request_of(headers.clone(), payload.clone());
                let attempt = self.attempt(operation, subject, request, deadline).await;
                let repeat = match attempt {
                    Ok(message) => return Ok(message),
                    Err(Attempt::Failed(error)) => return Err(error),
                    Err(Attempt::NobodyThere) => true,
                    Err(Attempt::Lost) => operation.repeatable,
                };
                if !repeat || Instant::now() + pause >= deadline {
                    return Err(QueueError::unavailable(operation.name));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        })
    }

    async fn attempt(
        &self,
        operation: Operation,
        subject: &str,
        request: Request,
        deadline: Instant,
    ) -> Result<Message, Attempt> {
        let losses = self.link.losses();
        let timed_out = || {
            Attempt::Failed(QueueError::TimedOut {
                operation: operation.name,
                waited: self.timeout,
            })
        };
        let answer = tokio::select! {
            // An answer that has come counts, whatever else has happened; and with it nothing else is looked at.
            biased;
            answer = self.client.send_request(subject.to_owned(), request) => answer,
            () = self.link.lost_after(losses) => return Err(Attempt::Lost),
            () = tokio::time::sleep_until(deadline) => return Err(timed_out()),
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Attempt::NobodyThere,
            RequestErrorKind::TimedOut => timed_out(),
            RequestErrorKind::MaxPayloadExceeded => Attempt::Failed(QueueError::TooLarge {
                what: operation.name,
                bytes: 0,
                bytes_max: self.client.max_payload(),
            }),
            RequestErrorKind::InvalidSubject => {
                Attempt::Failed(QueueError::malformed(operation.name, "not a subject"))
            }
            // The connection broke under the request, which the link will also say in a moment.
            RequestErrorKind::Other => Attempt::Lost,
        })
    }

    /// Calls the JSON API at `$JS.API.<method>`.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        operation: Operation,
        method: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let payload = to_json(operation, body)?;
        let subject = format!("$JS.API.{method}");
        let message = self.send(operation, &subject, None, payload).await?;
        read_answer(operation, method, &message)
    }

    /// Publishes to a stream and returns the sequence once it is durable there.
    pub(crate) async fn publish(
        &self,
        operation: Operation,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<u64> {
        let message = self.send(operation, subject, headers, payload).await?;
        let ack = serde_json::from_slice::<PubAck>(&message.payload);
        match ack.map_err(|_| unreadable(operation))? {
            PubAck {
                error: Some(error), ..
            } => Err(refusal(operation, subject, error)),
            PubAck { seq, .. } => Ok(seq),
        }
    }

    /// Publishes to a stream that refuses a second message of a subject; one that is there already is as good as ours.
    pub(crate) async fn publish_first(
        &self,
        operation: Operation,
        stream: &str,
        subject: &str,
        payload: Bytes,
    ) -> Result<()> {
        for tried in 0..FIRST_TRIES {
            let stored = self
                .publish(operation, subject, None, payload.clone())
                .await;
            match stored {
                Err(error) if is_code(&error, code::STORE_FAILED) => {}
                stored => return stored.map(|_| ()),
            }
            let which = Which::Last {
                last_by_subj: subject,
            };
            if self.get(stream, which).await?.is_some() {
                return Ok(());
            }
            // It was removed just now; or a leader refused ours for one that was never stored: what it had only promised,
            // a cluster loses with it.
            tokio::time::sleep(PAUSE.0 * tried).await;
        }
        Err(QueueError::Contended { tries: FIRST_TRIES })
    }

    /// Publishes without waiting for anyone: hints and text on core NATS.
    pub(crate) async fn tell(
        &self,
        operation: Operation,
        subject: String,
        payload: Bytes,
    ) -> Result<()> {
        let sent = tokio::time::timeout(self.timeout, self.client.publish(subject, payload)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(QueueError::Closed),
            Err(_) => Err(QueueError::TimedOut {
                operation: operation.name,
                waited: self.timeout,
            }),
        }
    }

    /// Subscribes on core NATS.
    pub(crate) async fn subscribe(
        &self,
        operation: Operation,
        subject: String,
    ) -> Result<async_nats::Subscriber> {
        let subscribed = async {
            let subscriber = self.client.subscribe(subject).await.ok()?;
            // Only after the flush has the server surely seen the subscription.
            self.client.flush().await.ok()?;
            Some(subscriber)
        };
        match tokio::time::timeout(self.timeout, subscribed).await {
            Ok(Some(subscriber)) => Ok(subscriber),
            Ok(None) => Err(QueueError::Closed),
            Err(_) => Err(QueueError::TimedOut {
                operation: operation.name,
                waited: self.timeout,
            }),
        }
    }
}

/// Without a limit of the client's own: whoever sends it waits until its own deadline at most.
fn request_of(headers: Option<HeaderMap>, payload: Bytes) -> Request {
    let request = Request::new().payload(payload).timeout(None);
    match headers {
        Some(headers) => request.headers(headers),
        None => request,
    }
}

pub(crate) fn to_json(operation: Operation, body: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|_| QueueError::malformed(operation.name, "not expressible as JSON"))
}

fn read_answer<T: DeserializeOwned>(
    operation: Operation,
    target: &str,
    message: &Message,
) -> Result<T> {
    let unreadable = |_| unreadable(operation);
    let envelope: Envelope = serde_json::from_slice(&message.payload).map_err(unreadable)?;
    match envelope.error {
        Some(error) => Err(refusal(operation, target, error)),
        None => serde_json::from_slice(&message.payload).map_err(unreadable),
    }
}

fn unreadable(operation: Operation) -> QueueError {
    QueueError::malformed(
        operation.name,
        "the server's answer is not what its API describes",
    )
}

/// The meaning of the server's refusal. A full stream and a taken subject share one code and differ in their text only.
fn refusal(operation: Operation, target: &str, error: ServerError) -> QueueError {
    let full = error.err_code == code::STORE_FAILED && !is_subject_taken(&error.description);
    // 10023 and 10047: the account or the disk is full.
    if full || matches!(error.err_code, 10023 | 10047) {
        return QueueError::Full {
            stream: stream_of(target),
            limit: error.description,
        };
    }
    // A taken subject also comes with status 503, and nothing about it is temporary.
    if error.code == 503 && error.err_code != code::STORE_FAILED {
        return QueueError::unavailable(operation.name);
    }
    QueueError::Refused {
        operation: operation.name,
        code: error.err_code,
        description: error.description,
    }
}

/// The stream of a subject, as an operator finds it in a list of streams; where the subject tells only of its kind, that.
fn stream_of(subject: &str) -> String {
    let mut tokens = subject.split('.');
    match (tokens.next(), tokens.next()) {
        (Some("$KV"), Some(bucket)) => crate::bucket::stream_of(bucket),
        (first, _) => first.unwrap_or(subject).to_owned(),
    }
}

fn is_subject_taken(description: &str) -> bool {
    description.contains("per subject")
}

/// Whether the server refused with this code.
pub(crate) fn is_code(error: &QueueError, wanted: u64) -> bool {
    matches!(error, QueueError::Refused { code, .. } if *code == wanted)
}

/// Whether a compare-and-set lost.
pub(crate) fn is_conflict(error: &QueueError) -> bool {
    is_code(error, code::WRONG_LAST_SEQUENCE) || is_code(error, code::WRONG_LAST_SEQUENCE_CONSTANT)
}

/// Our headers as the client's. Names and values that a header cannot hold are left out: they are trace context, which
/// never decides anything.
pub(crate) fn to_headers(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = name.parse::<async_nats::HeaderName>();
        let value = value.parse::<async_nats::HeaderValue>();
        if let (Ok(name), Ok(value)) = (name, value) {
            map.insert(name, value);
        }
    }
    map
}

/// The client's headers as ours, without the server's own (`Nats-…`).
pub(crate) fn from_headers(map: Option<&HeaderMap>) -> Headers {
    let Some(map) = map else {
        return Headers::new();
    };
    map.iter()
        .map(|(name, values)| (name.to_string(), values))
        .filter(|(name, _)| !name.starts_with("Nats-"))
        .filter_map(|(name, values)| Some((name, values.first()?.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u64, err_code: u64, description: &str) -> QueueError {
        let error = ServerError {
            code,
            err_code,
            description: description.to_owned(),
        };
        refusal(once("publish a unit"), "work.encode.p", error)
    }

    #[test]
    fn a_taken_subject_is_not_a_full_stream() {
        let taken = refused(
            503,
            code::STORE_FAILED,
            "maximum messages per subject exceeded",
        );
        assert!(is_code(&taken, code::STORE_FAILED) && !taken.is_transient());
        let full = refused(503, code::STORE_FAILED, "maximum bytes exceeded");
        assert!(matches!(full, QueueError::Full { .. }) && full.is_transient());
        assert_eq!(stream_of("$KV.JOBS_0.st-mary.1"), "KV_JOBS_0");
        assert_eq!(stream_of("audit.st-mary"), "audit");
        assert!(refused(503, 10008, "temporarily unavailable").is_transient());
        assert!(is_conflict(&refused(400, 10071, "wrong last sequence: 3")));
    }

    #[test]
    fn headers_pass_and_the_servers_own_do_not() {
        let ours = vec![("traceparent".to_owned(), "00-1-2-01".to_owned())];
        let mut map = to_headers(&ours);
        map.insert("Nats-Sequence", "4");
        assert_eq!(from_headers(Some(&map)), ours);
    }
}
