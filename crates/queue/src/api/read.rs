//! Reading single stored messages: by sequence, by subject, the next one of a filter, many at once.
//! A direct get is answered by any server that holds a copy, a message get by the leader only.

use async_nats::{HeaderMap, Message};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use medfleet_core::UnixMillis;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::{Api, Operation, code, is_code, once, repeatable, to_json};
use crate::{QueueError, Result};

/// A message as a stream holds it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored_at: UnixMillis,
    pub(crate) payload: Bytes,
}

/// Which message.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(crate) enum Which<'a> {
    Sequence {
        seq: u64,
    },
    /// The last of a subject, which has no wildcards.
    Last {
        last_by_subj: &'a str,
    },
    /// The first at or after `seq` whose subject matches.
    Next {
        seq: u64,
        next_by_subj: &'a str,
    },
}

#[derive(Deserialize)]
struct MessageGet {
    message: EncodedMessage,
}

#[derive(Deserialize)]
struct EncodedMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
    time: String,
}

#[derive(Deserialize)]
struct StreamInfo {
    state: StreamState,
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct StreamState {
    #[serde(default)]
    last_seq: u64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    subjects: Option<std::collections::BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
struct StreamNames {
    /// None where there is none.
    #[serde(default)]
    streams: Option<Vec<String>>,
    #[serde(default)]
    total: usize,
}

const GET: Operation = repeatable("read a message");
const LIST: Operation = repeatable("list subjects");
/// Most messages asked for in one batch; servers answer at most 1,024 subjects.
pub(crate) const BATCH_MAX: usize = 256;
/// Names by which a page of a list reaches back into the one before. Names that go away meanwhile move all later ones
/// forward; only when more than these went is the list begun again.
const OVERLAP: usize = 256;
/// Times that a list is begun.
const LIST_TRIES: u32 = 8;

impl Api {
    /// Reads one message so that it is never older than our own latest write.
    pub(crate) async fn get(&self, stream: &str, which: Which<'_>) -> Result<Option<Stored>> {
        if self.any_server_is_current {
            self.get_direct(stream, which).await
        } else {
            self.get_from_leader(stream, which).await
        }
    }

    /// Reads one message from whichever server answers.
    pub(crate) async fn get_direct(
        &self,
        stream: &str,
        which: Which<'_>,
    ) -> Result<Option<Stored>> {
        let base = format!("$JS.API.DIRECT.GET.{stream}");
        let (subject, payload) = match which {
            // As a part of the request's own subject, which spares the server the JSON: workers read a record for each unit.
            Which::Last { last_by_subj } => (format!("{base}.{last_by_subj}"), Bytes::new()),
            which => (base, to_json(GET, &which)?),
        };
        let message = self.send(GET, &subject, None, payload).await?;
        match message.status.map(|status| status.as_u16()) {
            Some(404) => Ok(None),
            Some(_) => Err(QueueError::unavailable(GET.name)),
            None => direct(message).map(Some),
        }
    }

    /// Reads one message from the stream's leader.
    pub(crate) async fn get_from_leader(
        &self,
        stream: &str,
        which: Which<'_>,
    ) -> Result<Option<Stored>> {
        let method = format!("STREAM.MSG.GET.{stream}");
        let answer: MessageGet = match self.call(GET, &method, &which).await {
            Ok(answer) => answer,
            Err(error) if is_code(&error, code::NO_MESSAGE) => return Ok(None),
            // As a direct get of it says.
            Err(error) if is_code(&error, code::STREAM_NOT_FOUND) => {
                return Err(QueueError::unavailable(GET.name));
            }
            Err(error) => return Err(error),
        };
        let EncodedMessage {
            subject,
            seq,
            data,
            time,
        } = answer.message;
        let payload = STANDARD
            .decode(data)
            .map_err(|_| unreadable("its payload"))?;
        Ok(Some(Stored {
            subject,
            sequence: seq,
            stored_at: parse_time(&time).ok_or_else(|| unreadable("its time"))?,
            payload: payload.into(),
        }))
    }

    /// Reads the latest message of each of at most [`BATCH_MAX`] subjects in one round trip; subjects without one are left out.
    pub(crate) async fn get_latest(
        &self,
        stream: &str,
        subjects: &[String],
    ) -> Result<Vec<Stored>> {
        if subjects.is_empty() {
            return Ok(Vec::new());
        }
        let body = json!({ "multi_last": subjects, "batch": subjects.len() });
        self.get_batch(stream, &body).await
    }

    /// Whether none of these subjects, at most [`BATCH_MAX`], which may have wildcards, has a message; in one round trip.
    pub(crate) async fn has_none(&self, stream: &str, subjects: &[String]) -> Result<bool> {
        let body = json!({ "multi_last": subjects, "batch": 1 });
        let payload = to_json(GET, &body)?;
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        // Where there is something it comes as the answer, and the end of the batch behind it, which nobody waits for.
        let answer = self.send(GET, &subject, None, payload).await?;
        let is_missing = answer.status.is_some_and(|status| status.as_u16() == 404);
        // The same number also says that one of them went away in this moment, and nothing of the others.
        Ok(is_missing && answer.description.as_deref() == Some("No Results"))
    }

    /// Reads up to `count` messages of a subject in order of sequence, in one round trip.
    pub(crate) async fn get_run(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        count: usize,
    ) -> Result<Vec<Stored>> {
        let body = json!({ "seq": from.max(1), "next_by_subj": subject, "batch": count });
        self.get_batch(stream, &body).await
    }

    async fn get_batch(&self, stream: &str, body: &serde_json::Value) -> Result<Vec<Stored>> {
        const READ: Operation = repeatable("read messages");
        let timed_out = || QueueError::TimedOut {
            operation: READ.name,
            waited: self.timeout,
        };
        let unavailable = || QueueError::unavailable(READ.name);
        let losses = self.link.losses();
        let deadline = Instant::now() + self.timeout;
        let inbox = self.client.new_inbox();
        let mut answers = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|_| QueueError::Closed)?;
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let payload = to_json(READ, body)?;
        let request = self.client.publish_with_reply(subject, inbox, payload);
        tokio::time::timeout_at(deadline, request)
            .await
            .map_err(|_| timed_out())?
            .map_err(|_| QueueError::Closed)?;
        let mut found = Vec::new();
        loop {
            let message = tokio::select! {
                message = answers.next() => message.ok_or(QueueError::Closed)?,
                () = self.link.lost_after(losses) => return Err(unavailable()),
                () = tokio::time::sleep_until(deadline) => return Err(timed_out()),
            };
            match message.status.map(|status| status.as_u16()) {
                // 204 ends the batch, 404 says that there is nothing.
                Some(204 | 404) => return Ok(found),
                Some(_) => return Err(unavailable()),
                None => found.push(direct(message)?),
            }
        }
    }

    /// Every subject of a stream that matches, in order. One that is there all the time is never left out.
    pub(crate) async fn subjects(&self, stream: &str, filter: &str) -> Result<Vec<String>> {
        let method = format!("STREAM.INFO.{stream}");
        for _ in 0..LIST_TRIES {
            if let Some(all) = self.subjects_joined(&method, filter).await? {
                return Ok(all);
            }
        }
        Err(QueueError::Contended { tries: LIST_TRIES })
    }

    /// The pages of a list, put together; none when two of them do not meet.
    async fn subjects_joined(&self, method: &str, filter: &str) -> Result<Option<Vec<String>>> {
        let mut all = Vec::new();
        loop {
            // The server sorts anew for every page, so an offset is another name after a delete.
            let offset = all.len().saturating_sub(OVERLAP);
            let body = json!({ "subjects_filter": filter, "offset": offset });
            let info: StreamInfo = self.call(LIST, method, &body).await?;
            let page = info.state.subjects.unwrap_or_default();
            let is_last = offset + page.len() >= info.total;
            let page: Vec<String> = page.into_keys().collect();
            let Some(gained) = join(&mut all, page) else {
                return Ok(None);
            };
            if is_last {
                return Ok(Some(all));
            }
            if gained == 0 {
                return Ok(None);
            }
        }
    }

    /// How many messages a stream has of the subject that it has most of, among those that match; 0 where there is no stream.
    pub(crate) async fn most_of_a_subject(&self, stream: &str, filter: &str) -> Result<u64> {
        let method = format!("STREAM.INFO.{stream}");
        let (mut most, mut offset) = (0, 0);
        loop {
            let body = json!({ "subjects_filter": filter, "offset": offset });
            let info: StreamInfo = match self.call(LIST, &method, &body).await {
                Err(error) if is_code(&error, code::STREAM_NOT_FOUND) => return Ok(0),
                info => info?,
            };
            let page = info.state.subjects.unwrap_or_default();
            most = page.values().copied().fold(most, u64::max);
            offset += page.len();
            if page.is_empty() || offset >= info.total {
                return Ok(most);
            }
        }
    }

    /// The sequence of the latest message of a stream.
    pub(crate) async fn last_sequence(&self, stream: &str) -> Result<u64> {
        let method = format!("STREAM.INFO.{stream}");
        let info: StreamInfo = self.call(LIST, &method, &json!({})).await?;
        Ok(info.state.last_seq)
    }

    /// The bytes that a stream uses on disk.
    pub(crate) async fn used_bytes(&self, stream: &str) -> Result<u64> {
        let method = format!("STREAM.INFO.{stream}");
        let info: StreamInfo = self.call(LIST, &method, &json!({})).await?;
        Ok(info.state.bytes)
    }

    /// Whether a stream has a message of this subject, which may have wildcards, as its leader says; not where there is no
    /// stream.
    pub(crate) async fn has(&self, stream: &str, subject: &str) -> Result<bool> {
        let method = format!("STREAM.MSG.GET.{stream}");
        let first = Which::Next {
            seq: 1,
            next_by_subj: subject,
        };
        let found = self.call::<serde::de::IgnoredAny>(GET, &method, &first);
        match found.await {
            Ok(_) => Ok(true),
            Err(error)
                if is_code(&error, code::NO_MESSAGE) || is_code(&error, code::STREAM_NOT_FOUND) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The names of all streams of the account.
    pub(crate) async fn stream_names(&self) -> Result<Vec<String>> {
        const NAMES: Operation = repeatable("list the names of the streams");
        let mut all = Vec::new();
        loop {
            let body = json!({ "offset": all.len() });
            let page: StreamNames = self.call(NAMES, "STREAM.NAMES", &body).await?;
            let names = page.streams.unwrap_or_default();
            let is_last = names.is_empty();
            all.extend(names);
            if is_last || all.len() >= page.total {
                return Ok(all);
            }
        }
    }

    /// Removes a stream with all that is in it; one that is gone is fine.
    pub(crate) async fn remove_stream(&self, stream: &str) -> Result<()> {
        const REMOVE: Operation = repeatable("remove a stream");
        let method = format!("STREAM.DELETE.{stream}");
        let removed = self
            .call::<serde::de::IgnoredAny>(REMOVE, &method, &json!({}))
            .await;
        match removed {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, code::STREAM_NOT_FOUND) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes one message; one that is gone is fine. Not asked for again when its answer is lost with the connection: a server
    /// that lost its latest writes gives their sequences to others, which may be confirmed by then.
    pub(crate) async fn delete(&self, stream: &str, sequence: u64) -> Result<()> {
        const DELETE: Operation = once("delete a message");
        let method = format!("STREAM.MSG.DELETE.{stream}");
        let body = json!({ "seq": sequence, "no_erase": true });
        let deleted = self
            .call::<serde::de::IgnoredAny>(DELETE, &method, &body)
            .await;
        match deleted {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            // Said of a sequence beyond the end, and of a disk in trouble: look which.
            Err(error) if is_code(&error, code::MESSAGE_DELETE_FAILED) => {
                match self.get(stream, Which::Sequence { seq: sequence }).await? {
                    None => Ok(()),
                    Some(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes every message of a subject.
    pub(crate) async fn purge(&self, stream: &str, subject: &str) -> Result<()> {
        const PURGE: Operation = repeatable("purge a subject");
        let what = json!({ "filter": subject });
        self.purge_what(PURGE, stream, &what).await
    }

    /// Deletes the messages of a subject up to a sequence. Not asked for again when its answer is lost, as [`Api::delete`].
    pub(crate) async fn purge_up_to(
        &self,
        stream: &str,
        subject: &str,
        sequence: u64,
    ) -> Result<()> {
        const PURGE: Operation = once("purge a subject up to a sequence");
        // The server keeps the one that it is told, and all behind it.
        let kept = sequence.saturating_add(1);
        let what = json!({ "filter": subject, "seq": kept });
        self.purge_what(PURGE, stream, &what).await
    }

    async fn purge_what(
        &self,
        operation: Operation,
        stream: &str,
        what: &serde_json::Value,
    ) -> Result<()> {
        let method = format!("STREAM.PURGE.{stream}");
        self.call::<serde::de::IgnoredAny>(operation, &method, what)
            .await
            .map(|_| ())
    }
}

/// Adds what a page has after the last name of `all`, both in order; says how many names that were. None when the page
/// begins after that name: names between the two may be missing.
fn join(all: &mut Vec<String>, page: Vec<String>) -> Option<usize> {
    let held = all.len();
    let known = match all.last() {
        Some(last) if page.first().is_none_or(|first| first > last) => return None,
        Some(last) => page.partition_point(|name| name <= last),
        None => 0,
    };
    all.extend(page.into_iter().skip(known));
    Some(all.len() - held)
}

fn is_gone(error: &QueueError) -> bool {
    is_code(error, code::NO_MESSAGE) || is_code(error, code::SEQUENCE_NOT_FOUND)
}

fn unreadable(reason: &'static str) -> QueueError {
    QueueError::malformed("a stored message", reason)
}

fn direct(message: Message) -> Result<Stored> {
    let headers = message.headers.unwrap_or_default();
    let sequence = header(&headers, "Nats-Sequence").and_then(|text| text.parse().ok());
    let stored_at = header(&headers, "Nats-Time-Stamp").and_then(parse_time);
    Ok(Stored {
        subject: header(&headers, "Nats-Subject")
            .ok_or_else(|| unreadable("its subject"))?
            .to_owned(),
        sequence: sequence.ok_or_else(|| unreadable("its sequence"))?,
        stored_at: stored_at.ok_or_else(|| unreadable("its time"))?,
        payload: message.payload,
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.as_str())
}

/// Unix milliseconds of a time such as `2026-11-23T21:00:00.123456789Z`; only UTC, which is all that servers write.
pub(crate) fn parse_time(text: &str) -> Option<UnixMillis> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut clock = clock.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    let mut millis = 0;
    for place in 0..3 {
        let digit = fraction.as_bytes().get(place).copied().unwrap_or(b'0');
        millis = millis * 10 + i64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    // Days since 1970-01-01 in the proleptic Gregorian calendar, counted in years that begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(UnixMillis(seconds * 1000 + millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_joined_only_where_they_meet() {
        let names = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        let check = |held: &str, page: &str, expected: Option<&str>| {
            let mut all = names(held);
            let gained = join(&mut all, names(page));
            let joined = gained.map(|_| all.concat());
            assert_eq!(joined.as_deref(), expected, "{held} {page}");
            assert!(gained.is_none_or(|gained| held.len() + gained == all.len()));
        };
        check("", "", Some(""));
        check("", "ab", Some("ab"));
        check("abc", "bcde", Some("abcde"));
        check("abc", "bc", Some("abc"));
        // The last one is gone, and another came before it: every later one is in the page.
        check("abd", "bce", Some("abde"));
        // Two went, and what stands at the offset now may have left one out.
        check("abc", "de", None);
        check("abc", "", None);
    }

    #[test]
    fn times_are_read() {
        let check = |text: &str, expected: Option<i64>| {
            assert_eq!(parse_time(text), expected.map(UnixMillis), "{text}");
        };
        check("1970-01-01T00:00:00Z", Some(0));
        check("2000-02-29T12:30:15.5Z", Some(951_827_415_500));
        check("2026-11-23T21:00:00.123456789Z", Some(1_795_467_600_123));
        check("2026-11-23T21:00:00.123+01:00", None);
        check("yesterday", None);
    }
}
