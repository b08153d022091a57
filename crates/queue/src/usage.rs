//! How full the queue is and how long its oldest unit has waited: for metrics and the status page, and for whether there is room
//! for more than what must go on.

use medfleet_core::{Class, PoolName, Stage, UnixMillis};
use serde::Deserialize;
use serde_json::json;

use crate::api::{Operation, Which, repeatable};
use crate::{Queue, QueueError, Result, layout, subject};

/// Streams that are read in one call; a fleet has about fifteen, and one more for each shard of its records.
const STREAMS_MAX: usize = 256;

/// The share of a stream's room that is kept for what must go on when it fills: the last sixteenth.
const RESERVE_SHARE: u64 = 16;
/// The share of it that is kept for what makes room, and for operators: half of the reserve.
const LAST_SHARE: u64 = 2 * RESERVE_SHARE;

/// How full one stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamUsage {
    pub stream: String,
    pub messages: u64,
    pub bytes: u64,
    /// Sequence of its last message.
    pub last_sequence: u64,
    /// Bytes that it may hold; none without a limit.
    pub bytes_max: Option<u64>,
    /// Messages that it may hold; none without a limit.
    pub messages_max: Option<u64>,
}

impl StreamUsage {
    /// Whether only its reserve is left. One without a limit has no end.
    pub fn is_at_reserve(&self) -> bool {
        self.has_only(RESERVE_SHARE)
    }

    /// Whether only half of its reserve is left.
    pub fn is_at_half_reserve(&self) -> bool {
        self.has_only(LAST_SHARE)
    }

    /// How much of what it may hold it holds, of bytes or of messages, whichever is more; none without a limit.
    pub fn percent(&self) -> Option<u64> {
        let percent = |used: u64, most: Option<u64>| {
            let most = most.filter(|most| *most > 0)?;
            Some(used.saturating_mul(100) / most)
        };
        percent(self.bytes, self.bytes_max).max(percent(self.messages, self.messages_max))
    }

    /// Whether no more is left than one part of so many.
    fn has_only(&self, share: u64) -> bool {
        let is_used =
            |used: u64, most: Option<u64>| most.is_some_and(|most| used >= most - most / share);
        is_used(self.bytes, self.bytes_max) || is_used(self.messages, self.messages_max)
    }
}

/// Of a stream's room what is not its reserve.
pub(crate) const fn without_reserve(bytes_max: u64) -> u64 {
    bytes_max - bytes_max / RESERVE_SHARE
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    streams: Vec<Info>,
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct Info {
    config: Config,
    state: State,
}

#[derive(Deserialize)]
struct Config {
    name: String,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    max_msgs: i64,
}

#[derive(Deserialize)]
struct State {
    messages: u64,
    bytes: u64,
    #[serde(default)]
    last_seq: u64,
}

impl Queue {
    /// Every stream of the account with what is in it.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`] when there are more streams than one call tells.
    pub async fn usage(&self) -> Result<Vec<StreamUsage>> {
        const LIST: Operation = repeatable("list the streams");
        let listed: Listed = self
            .api
            .call(LIST, "STREAM.LIST", &json!({"offset": 0}))
            .await?;
        if listed.total > STREAMS_MAX {
            return Err(QueueError::malformed(
                "the list of streams",
                "the account has too many others",
            ));
        }
        // -1 is no limit.
        let limit = |most: i64| u64::try_from(most).ok().filter(|most| *most > 0);
        let usage = listed.streams.into_iter().map(|info| StreamUsage {
            stream: info.config.name,
            messages: info.state.messages,
            bytes: info.state.bytes,
            last_sequence: info.state.last_seq,
            bytes_max: limit(info.config.max_bytes),
            messages_max: limit(info.config.max_msgs),
        });
        Ok(usage.collect())
    }

    /// Whether the fleet has any job, ended or not. False where no process of it has ever made its streams.
    pub async fn has_records(&self) -> Result<bool> {
        for stream in self.api.stream_names().await? {
            // Whatever number of shards they are in: it may be asked before that is agreed.
            if subject::is_record_stream(&stream) && layout::has_records(&self.api, &stream).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Since when the oldest unfinished unit of a (stage, pool, class) is where it is: in a worker's hands, released, or
    /// waiting for release.
    pub async fn oldest(
        &self,
        stage: Stage,
        pool: &PoolName,
        class: Class,
    ) -> Result<Option<UnixMillis>> {
        let work = subject::work_filter(stage, pool, class);
        let released = self.first(subject::work_stream(stage), &work).await?;
        let stream = subject::intake_stream(stage);
        let intake = subject::intake_filter(stage, pool, class);
        let waiting = self.first(stream, &intake).await?;
        Ok(released.into_iter().chain(waiting).min())
    }

    async fn first(&self, stream: &str, filter: &str) -> Result<Option<UnixMillis>> {
        let which = Which::Next {
            seq: 1,
            next_by_subj: filter,
        };
        let found = self.api.get_direct(stream, which).await?;
        Ok(found.map(|stored| stored.stored_at))
    }

    /// Whether the queue takes writes right now: writes an entry that nobody reads, and takes it back.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn try_write(&self, writer: &str) -> Result<()> {
        let name = format!("write-check-{writer}");
        match self.try_lease(&name, writer).await? {
            Some(lease) => lease.release().await,
            // The entry of a check before this one, whose answer was lost; it ends by itself.
            None => Ok(()),
        }
    }

    /// Who holds a lease; none when nobody does.
    pub async fn lease_holder(&self, name: &str) -> Result<Option<String>> {
        let found = self.leases.get(name).await?;
        Ok(found.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuller_of_bytes_and_messages_counts() {
        let check = |bytes_max, messages_max, expected: Option<u64>| {
            let usage = StreamUsage {
                stream: "INTAKE_PREPROCESS".to_owned(),
                messages: 9,
                bytes: 20,
                last_sequence: 9,
                bytes_max,
                messages_max,
            };
            assert_eq!(usage.percent(), expected, "{usage:?}");
        };
        check(None, None, None);
        check(Some(0), None, None);
        check(Some(100), None, Some(20));
        check(Some(100), Some(10), Some(90));
        check(Some(20), Some(10), Some(100));
        check(None, Some(10), Some(90));
    }
}
