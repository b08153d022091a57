//! In how many shards the job records are: agreed by all processes of a fleet before one of them reads or writes a record.
//!
//! Whoever counts otherwise would not find what is there, and a unit without a record is dropped as done with. So the number is
//! an entry of a bucket, made and changed by compare-and-set; and it is in the names of the record streams, so that a process
//! that counts otherwise finds no stream at all. It is changed only where no record is kept: first nobody can write to the
//! streams of the old number any more, then they are looked into, then they are taken away, each right after one more look, and
//! only then is the new number said.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::api::{Api, Operation, Which, code, is_code, repeatable};
use crate::bucket::{Bucket, stream_of};
use crate::streams::Present;
use crate::subject::{self, BUCKET_PREFIX, FLEET, FLEET_STREAM};
use crate::{QueueError, Result};

/// The entry that says it.
const KEY: &str = "record_shards";
/// Looks at the entry before a quarrel between processes with different settings counts as an error.
const TRIES: u32 = 32;

/// In how many shards the job records of a fleet are, as its processes have agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgreedShards {
    /// So many, and there are records: it stays so.
    Kept(u8),
    /// So many, and no record is kept: an ingest that starts makes it what it was told.
    Free(u8),
    /// It was one number and is to be the other. The next ingest that starts ends that.
    Changing {
        /// What it was.
        from: u8,
        /// What it becomes, unless there are records.
        to: u8,
    },
}

/// What the entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// They are in so many shards.
    Of(u8),
    /// They were in so many, of which nobody has made sure yet that they are empty; then it will be the other number.
    Changing { from: u8, to: u8 },
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(count) => write!(f, "{count}"),
            Self::Changing { from, to } => write!(f, "{from}>{to}"),
        }
    }
}

impl Layout {
    fn read(text: &[u8]) -> Result<Self> {
        let malformed = || {
            QueueError::malformed(
                "the number of shards that KV_FLEET has of the job records",
                "not a number, nor two with > between them",
            )
        };
        let count = |text: &str| {
            let count = text.parse::<u8>().ok().filter(|count| *count > 0);
            count.ok_or_else(malformed)
        };
        let text = std::str::from_utf8(text).map_err(|_| malformed())?;
        Ok(match text.split_once('>') {
            None => Self::Of(count(text)?),
            Some((from, to)) => Self::Changing {
                from: count(from)?,
                to: count(to)?,
            },
        })
    }

    fn value(self) -> Bytes {
        self.to_string().into()
    }

    /// Why a process that was told this number cannot go on.
    fn refuses(self, set: u8) -> QueueError {
        let found = match self {
            Self::Of(count) => count,
            Self::Changing { from, to } if from == set => to,
            Self::Changing { from, .. } => from,
        };
        QueueError::RecordShards { found, set }
    }
}

/// What became of the streams of a number.
enum Closed {
    /// They are gone; they had no record.
    Gone,
    /// They have records and are open, but for those that had none and are gone already.
    Used,
    /// Somebody who starts has made them anew meanwhile.
    Disturbed,
}

/// Agrees with all others on the number that this process was told, or refuses. Who owns the streams' limits may change it where
/// no record is kept, and finishes what another began to change.
pub(crate) async fn agree(api: &Api, set: u8, present: Present) -> Result<()> {
    let fleet = Bucket::new(api.clone(), FLEET);
    for _ in 0..TRIES {
        let Some(entry) = fleet.get(KEY).await? else {
            let first = Layout::Of(already(api).await?.unwrap_or(set));
            // Where another process was faster, its number counts.
            fleet.create(KEY, first.value()).await?;
            continue;
        };
        let layout = Layout::read(&entry.value)?;
        if layout == Layout::Of(set) {
            // A server that did not sync may have forgotten the latest change of the entry, and records it has not.
            return match used_elsewhere(api, set).await? {
                Some(found) => Err(QueueError::RecordShards { found, set }),
                None => Ok(()),
            };
        }
        if present == Present::Left {
            return Err(layout.refuses(set));
        }
        let next = match layout {
            Layout::Of(from) => {
                if is_used(api, from).await? {
                    return Err(layout.refuses(set));
                }
                Layout::Changing { from, to: set }
            }
            Layout::Changing { from, to } => match close(api, from).await? {
                Closed::Gone => Layout::Of(to),
                Closed::Used => Layout::Of(from),
                Closed::Disturbed => continue,
            },
        };
        // Where another process was faster, the next look tells.
        let changed = fleet.update(KEY, next.value(), entry.revision).await?;
        if changed.is_some() {
            tracing::info!(
                before = %layout,
                after = %next,
                "changed the number of shards of the job records"
            );
        }
    }
    Err(QueueError::Contended { tries: TRIES })
}

/// What the fleet has agreed on; none where no process of it has ever started. Changes nothing.
pub(crate) async fn agreed(api: &Api) -> Result<Option<AgreedShards>> {
    let names = api.stream_names().await?;
    let entry = match names.iter().any(|name| name == FLEET_STREAM) {
        true => Bucket::new(api.clone(), FLEET).get(KEY).await?,
        false => None,
    };
    let layout = entry.map(|entry| Layout::read(&entry.value)).transpose()?;
    let count = match layout {
        Some(Layout::Changing { from, to }) => {
            return Ok(Some(AgreedShards::Changing { from, to }));
        }
        // As for a process that starts, other streams that have records count for more than the entry.
        Some(Layout::Of(count)) => Some(used_elsewhere(api, count).await?.unwrap_or(count)),
        None => already(api).await?,
    };
    let Some(count) = count else {
        return Ok(None);
    };
    Ok(Some(match is_used(api, count).await? {
        true => AgreedShards::Kept(count),
        false => AgreedShards::Free(count),
    }))
}

/// Makes sure that nobody has changed the number while this process made its streams.
pub(crate) async fn confirm(api: &Api, set: u8) -> Result<()> {
    let fleet = Bucket::new(api.clone(), FLEET);
    let entry = fleet.get(KEY).await?;
    // The server has lost it since, and the next start says it again.
    let entry = entry.ok_or(QueueError::unavailable(
        "agree on the number of shards of the job records",
    ))?;
    let layout = Layout::read(&entry.value)?;
    match layout {
        Layout::Of(count) if count == set => return Ok(()),
        // Ours were made after whoever changed it had taken them away: a process of ours that still runs must not find them.
        Layout::Of(_) => {
            close(api, set).await?;
        }
        // Ours may have come behind the last look of whoever changes it: who says the new number now has to look once more.
        Layout::Changing { from, .. } if from == set => {
            fleet.update(KEY, layout.value(), entry.revision).await?;
        }
        Layout::Changing { .. } => {}
    }
    Err(layout.refuses(set))
}

/// In how many shards the records are of a fleet that has not written it down: one of an earlier release has one.
async fn already(api: &Api) -> Result<Option<u8>> {
    let (mut there, mut used) = (BTreeSet::new(), BTreeSet::new());
    for stream in api.stream_names().await? {
        if let Some(count) = subject::shards_of(&stream) {
            there.insert(count);
            if has_records(api, &stream).await? {
                used.insert(count);
            }
        }
    }
    if used.len() > 1 {
        return Err(QueueError::malformed(
            "the job records",
            "streams of several numbers of shards have some; expected those of one, and KV_FLEET says nothing",
        ));
    }
    Ok(used.first().or(there.first()).copied())
}

/// Another number of shards that has records.
async fn used_elsewhere(api: &Api, set: u8) -> Result<Option<u8>> {
    for stream in api.stream_names().await? {
        if let Some(count) = subject::shards_of(&stream)
            && count != set
            && has_records(api, &stream).await?
        {
            return Ok(Some(count));
        }
    }
    Ok(None)
}

/// Whether there is a record in any of so many shards.
async fn is_used(api: &Api, count: u8) -> Result<bool> {
    for bucket in subject::record_buckets(count) {
        if has_records(api, &stream_of(&bucket)).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a stream of records has any. What is written behind the last of a closed one is none.
pub(crate) async fn has_records(api: &Api, stream: &str) -> Result<bool> {
    let bucket = stream.strip_prefix(BUCKET_PREFIX).unwrap_or(stream);
    api.has(stream, &subject::all_of(bucket)).await
}

/// Takes away the streams of so many shards, unless they have records.
async fn close(api: &Api, count: u8) -> Result<Closed> {
    let (mut is_used, mut is_disturbed) = (false, false);
    for bucket in subject::record_buckets(count) {
        match look_into_closed(api, &bucket).await {
            Ok(has_some) => is_used |= has_some,
            Err(error) if is_open_again(&error) => is_disturbed = true,
            Err(error) => return Err(error),
        }
    }
    match (is_used, is_disturbed) {
        (true, _) => {
            open(api, count).await?;
            Ok(Closed::Used)
        }
        (false, true) => Ok(Closed::Disturbed),
        (false, false) => take_away(api, count).await,
    }
}

/// Takes away streams that were closed and had no records. Looks into each of them once more, right before: somebody who starts
/// with their number opens one after the other meanwhile, and who runs with it may have stored a record by then. Those that are
/// gone had none, and are made anew by whoever starts with their number.
///
/// Between its last look and its removal a stream is not safe from both of these at once: a server removes one whatever is in it,
/// and a seal, which nobody could open, could not be taken off either where the look finds a record.
async fn take_away(api: &Api, count: u8) -> Result<Closed> {
    for bucket in subject::record_buckets(count) {
        match look_into_closed(api, &bucket).await {
            Ok(false) => api.remove_stream(&stream_of(&bucket)).await?,
            Ok(true) => {
                open(api, count).await?;
                return Ok(Closed::Used);
            }
            Err(error) if is_open_again(&error) => return Ok(Closed::Disturbed),
            Err(error) => return Err(error),
        }
    }
    Ok(Closed::Gone)
}

/// Opens the streams of so many shards that are there.
async fn open(api: &Api, count: u8) -> Result<()> {
    for bucket in subject::record_buckets(count) {
        let stream = stream_of(&bucket);
        if set_subject(api, &stream, &subject::all_of(&bucket)).await? {
            api.purge(&stream, &subject::closed(&bucket)).await?;
        }
    }
    Ok(())
}

/// Whether nobody took what was written to a closed stream, or nobody knew of it.
const fn is_open_again(error: &QueueError) -> bool {
    matches!(error, QueueError::Unavailable { .. })
}

/// Whether a bucket has records once nobody can write to it any more. False where there is no such bucket.
async fn look_into_closed(api: &Api, bucket: &str) -> Result<bool> {
    const LAST: Operation = repeatable("write behind the last record");
    let (stream, closed) = (stream_of(bucket), subject::closed(bucket));
    if !set_subject(api, &stream, &closed).await? {
        return Ok(false);
    }
    // What was on its way is stored before this is.
    let last = api.publish(LAST, &closed, None, Bytes::new()).await?;
    let first = Which::Next {
        seq: 1,
        next_by_subj: ">",
    };
    match api.get_from_leader(&stream, first).await? {
        Some(first) if first.subject != closed => Ok(true),
        Some(first) if first.sequence >= last => Ok(false),
        // A server that does not know yet that it leads no more has not got what was just written, nor perhaps a record.
        _ => Err(QueueError::unavailable(LAST.name)),
    }
}

#[derive(Deserialize)]
struct Info {
    config: Map<String, Value>,
}

/// Lets a stream take this subject, and no other. False where there is no such stream.
async fn set_subject(api: &Api, stream: &str, subject: &str) -> Result<bool> {
    const INFO: Operation = repeatable("look at a stream");
    const UPDATE: Operation = repeatable("change what a stream takes");
    let method = format!("STREAM.INFO.{stream}");
    let mut config = match api.call::<Info>(INFO, &method, &json!({})).await {
        Ok(info) => info.config,
        Err(error) if is_code(&error, code::STREAM_NOT_FOUND) => return Ok(false),
        Err(error) => return Err(error),
    };
    config.insert("subjects".to_owned(), json!([subject]));
    let method = format!("STREAM.UPDATE.{stream}");
    match api.call::<IgnoredAny>(UPDATE, &method, &config).await {
        Ok(_) => Ok(true),
        Err(error) if is_code(&error, code::STREAM_NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anyhow::{Context, ensure};
    use medfleet_core::UnixMillis;
    use medfleet_testkit::NatsServer;

    use super::*;
    use crate::{Queue, QueueConfig};

    /// A server whose records are in so many shards.
    async fn start(record_shards: u8) -> anyhow::Result<(NatsServer, Queue)> {
        let server = NatsServer::start().await?;
        let config = QueueConfig {
            record_shards,
            ..QueueConfig::at(server.url())
        };
        let queue = Queue::connect(&config, Arc::new(|| UnixMillis(0))).await?;
        queue.ensure(&[]).await?;
        Ok((server, queue))
    }

    /// Somebody who starts with the old number opens the streams again, and somebody who runs with it accepts a job.
    #[tokio::test]
    async fn a_record_that_comes_behind_the_first_look_is_not_taken_away() -> anyhow::Result<()> {
        let (_server, queue) = start(2).await?;
        let api = &queue.api;
        for bucket in subject::record_buckets(2) {
            ensure!(!look_into_closed(api, &bucket).await?);
            // What was written behind the last record is none.
            ensure!(!has_records(api, &stream_of(&bucket)).await?);
        }
        let name = subject::record_buckets(2).last().context("a shard")?;
        let stream = stream_of(&name);
        ensure!(set_subject(api, &stream, &subject::all_of(&name)).await?);
        let bucket = Bucket::new(api.clone(), name);
        bucket
            .create("a.1", Bytes::new())
            .await?
            .context("stored")?;
        ensure!(matches!(take_away(api, 2).await?, Closed::Used));
        ensure!(has_records(api, &stream).await?);
        // And it takes the next one, as do all once somebody has started with their number.
        bucket
            .create("a.2", Bytes::new())
            .await?
            .context("stored")?;
        queue.ensure(&[]).await?;
        ensure!(bucket.keys(">").await? == ["a.1", "a.2"]);
        ensure!(
            api.stream_names()
                .await?
                .contains(&stream_of("JOBS_0_OF_2"))
        );
        Ok(())
    }

    /// It stood still between its last look and saying the new number, while somebody made the streams of the old one anew.
    #[tokio::test]
    async fn who_says_the_new_number_looks_again_behind_whoever_starts_with_the_old_one()
    -> anyhow::Result<()> {
        let (_server, queue) = start(1).await?;
        let fleet = Bucket::new(queue.api.clone(), FLEET);
        let begun = Layout::Changing { from: 1, to: 8 };
        let entry = fleet.get(KEY).await?.context("it is agreed")?;
        let begun = fleet.update(KEY, begun.value(), entry.revision).await?;
        let begun = begun.context("nobody else changes it")?;
        let refused = confirm(&queue.api, 1).await;
        let is_refused = matches!(refused, Err(QueueError::RecordShards { found: 8, set: 1 }));
        ensure!(is_refused, "{refused:?}");
        let said = fleet.update(KEY, Layout::Of(8).value(), begun).await?;
        ensure!(said.is_none(), "it did not look again");
        Ok(())
    }

    #[test]
    fn what_the_entry_says_is_read_back_or_refused() {
        for layout in [
            Layout::Of(1),
            Layout::Of(32),
            Layout::Changing { from: 1, to: 8 },
        ] {
            let read = Layout::read(&layout.value());
            assert!(matches!(read, Ok(read) if read == layout), "{read:?}");
        }
        for text in ["", "0", "8>", ">8", "8>0", "256", "eight"] {
            assert!(Layout::read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_a_number_that_is_not_the_one_that_was_set() {
        let check = |layout: Layout, set: u8, expected: u8| {
            let error = layout.refuses(set);
            let is_right = matches!(
                error,
                QueueError::RecordShards { found, set: of } if found == expected && of == set
            );
            assert!(is_right && !error.is_transient(), "{error:?}");
        };
        check(Layout::Of(8), 1, 8);
        check(Layout::Changing { from: 8, to: 1 }, 1, 8);
        check(Layout::Changing { from: 8, to: 1 }, 8, 1);
        check(Layout::Changing { from: 8, to: 1 }, 4, 8);
    }
}
