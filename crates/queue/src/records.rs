//! Job records: read, compare-and-set, and the read-apply-store loop that every stage uses.

use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use medfleet_core::protocol::Tried;
use medfleet_core::{
    JobId, JobKey, JobRecord, JobState, Move, Refused, TenantId, UnixMillis, chain, invariant,
    protocol,
};

use crate::api::BATCH_MAX;
use crate::bucket::Bucket;
use crate::wire::later::Later;
use crate::wire::{decode_record, encode_record, later_of_record};
use crate::{Queue, QueueError, Result, subject};

/// What a compare-and-set compares: the sequence of a record's latest change in the stream of its shard. Two of one sequence are
/// equal, whatever else is known of the record; of two jobs they say nothing.
#[derive(Debug, Clone, Copy)]
pub struct Revision {
    sequence: u64,
    /// A later release has written fields into it that this one does not know; whoever changes the record keeps them.
    is_later: bool,
}

impl Revision {
    /// The change of this sequence.
    pub const fn at(sequence: u64) -> Self {
        Self {
            sequence,
            is_later: false,
        }
    }

    pub const fn sequence(self) -> u64 {
        self.sequence
    }

    pub(crate) const fn is_later(self) -> bool {
        self.is_later
    }

    pub(crate) const fn with_later(self, is_later: bool) -> Self {
        Self { is_later, ..self }
    }
}

impl PartialEq for Revision {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Revision {}

impl PartialOrd for Revision {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Revision {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sequence.cmp(&other.sequence)
    }
}

impl Hash for Revision {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sequence.hash(state);
    }
}

/// Where a page of all records begins: in which shard, and at which change of its records. As a text it is the sequence, with
/// the shard before it where that is not the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageStart {
    shard: usize,
    sequence: u64,
}

impl PageStart {
    /// The first of a shard.
    const fn of(shard: usize) -> Self {
        Self { shard, sequence: 0 }
    }
}

impl fmt::Display for PageStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shard {
            0 => write!(f, "{}", self.sequence),
            shard => write!(f, "{shard}.{}", self.sequence),
        }
    }
}

impl FromStr for PageStart {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (shard, sequence) = text.split_once('.').unwrap_or(("0", text));
        Ok(Self {
            shard: shard.parse()?,
            sequence: sequence.parse()?,
        })
    }
}

/// What became of a create.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "made and matched once per round trip, never kept in numbers"
)]
pub enum Created {
    /// The record is stored.
    Created(Revision),
    /// There is one already; nothing was stored.
    Exists(JobRecord, Revision),
}

/// What became of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updated {
    Updated(Revision),
    /// Somebody changed it since the revision; nothing was stored.
    Conflict,
}

/// What became of a wish to move a job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "made and matched once per round trip, never kept in numbers"
)]
pub enum Applied {
    /// Stored, and its event published when state, chunks or attempt changed.
    Applied {
        /// The record as stored.
        record: JobRecord,
        before: JobRecord,
        /// Of the record as stored.
        revision: Revision,
    },
    /// The state machine does not allow it; nothing was stored.
    Refused {
        reason: Refused,
        /// The record as found.
        record: JobRecord,
    },
    /// The job was replayed since the work was made; nothing was stored.
    OtherEpoch {
        /// The record as found.
        record: JobRecord,
    },
    /// There is no such job, or it has expired.
    Missing,
}

impl From<Applied> for Tried {
    fn from(applied: Applied) -> Self {
        match applied {
            Applied::Applied { record, .. } => Self::Moved(record),
            Applied::Refused { reason, record } => Self::Refused { reason, record },
            Applied::OtherEpoch { record } => Self::OtherEpoch { record },
            Applied::Missing => Self::Missing,
        }
    }
}

/// What the one who moves a job has seen of it.
#[derive(Debug, Clone, Copy)]
pub enum Seen<'a> {
    /// Nothing; whatever epoch it is in.
    Nothing,
    /// The epoch that the move is for; a record of another one is left alone.
    Epoch(u32),
    /// The record, of the epoch that the move is for.
    Record(&'a JobRecord, Revision),
}

/// Tries of the read-apply-store loop. Contention on one job comes from its chunks, at most 32 at a time, and each round
/// lets one of them through.
const TRIES_MAX: u32 = 64;

/// Pause before a page of the scan of all records is asked for again.
const SCAN_AGAIN: Duration = Duration::from_millis(250);

impl Queue {
    /// Stores the record of a new job; its key makes the accept idempotent for as long as records are kept.
    ///
    /// # Errors
    /// Transient ones leave open whether it was stored: create again. [`QueueError::TooLarge`] above 1 KiB.
    pub async fn create_record(&self, key: &JobKey, record: &JobRecord) -> Result<Created> {
        check_invariants(invariant::violation(record))?;
        let value = encode_record(record, &Later::default())?;
        // A record that expires between create and read leaves room for one more create.
        for _ in 0..2 {
            let bucket = self.jobs.of(&key.job);
            let created = bucket.create(&key.to_string(), value.clone()).await?;
            if let Some(revision) = created {
                return Ok(Created::Created(revision));
            }
            if let Some((existing, revision)) = self.record(key).await? {
                return Ok(Created::Exists(existing, revision));
            }
        }
        Err(QueueError::Contended { tries: 2 })
    }

    /// Reads a record, never older than this process's own latest write.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`] for a record of a newer version.
    pub async fn record(&self, key: &JobKey) -> Result<Option<(JobRecord, Revision)>> {
        let Some(entry) = self.jobs.get(key).await? else {
            return Ok(None);
        };
        let record = decode_record(entry.value.clone())?;
        let is_later = !later_of_record(&entry.value)?.is_empty();
        Ok(Some((record, entry.revision.with_later(is_later))))
    }

    /// Stores a record if its revision is still `revision`. Prefer [`Queue::apply`].
    ///
    /// # Errors
    /// Transient ones leave open whether it was stored: read again. [`QueueError::Internal`] for a record that breaks an
    /// invariant by itself.
    pub async fn update_record(
        &self,
        key: &JobKey,
        record: &JobRecord,
        revision: Revision,
    ) -> Result<Updated> {
        check_invariants(invariant::violation(record))?;
        let updated = self.store_over(key, record, revision).await?;
        Ok(updated.map_or(Updated::Conflict, Updated::Updated))
    }

    /// Stores a record if its revision is still `revision`, with what a later release wrote into it; `None` when it is not.
    async fn store_over(
        &self,
        key: &JobKey,
        record: &JobRecord,
        revision: Revision,
    ) -> Result<Option<Revision>> {
        let mut later = Later::default();
        if revision.is_later {
            match self.jobs.get(key).await? {
                Some(entry) if entry.revision.sequence == revision.sequence => {
                    later = later_of_record(&entry.value)?;
                }
                _ => return Ok(None),
            }
        }
        let value = encode_record(record, &later)?;
        let bucket = self.jobs.of(&key.job);
        let stored = bucket.update(&key.to_string(), value, revision).await?;
        Ok(stored.map(|stored| stored.with_later(revision.is_later)))
    }

    /// Removes a record if its revision is still `revision`: the job is forgotten, and its request id is free again. Never another
    /// job's: a server that lost its latest writes gives their sequences to others.
    ///
    /// # Errors
    /// Transient ones: remove again.
    pub async fn remove_record(&self, key: &JobKey, revision: Revision) -> Result<()> {
        let bucket = self.jobs.of(&key.job);
        bucket.remove_up_to(&key.to_string(), revision).await
    }

    /// Moves a job: reads its record, applies `step`, stores it by compare-and-set, and does so again when somebody was
    /// faster. With `epoch`, a record of another epoch is left alone. Once stored, publishes the event of the change.
    ///
    /// # Errors
    /// Transient ones leave open whether the move was made, or made without its event: apply again (a move that was made
    /// is then refused) and use [`Queue::publish_event`]. [`QueueError::Internal`] for a move that would break an
    /// invariant: a defect, never stored.
    pub async fn apply(
        &self,
        key: &JobKey,
        epoch: Option<u32>,
        step: &Move,
        now: UnixMillis,
    ) -> Result<Applied> {
        let seen = epoch.map_or(Seen::Nothing, Seen::Epoch);
        let applied = self.apply_without_event(key, seen, step, now).await?;
        if let Applied::Applied { record, before, .. } = &applied
            && subject::event_token(record) != subject::event_token(before)
        {
            self.publish_event(key, record).await?;
        }
        Ok(applied)
    }

    /// As [`Queue::apply`], and leaves the event to the caller, who can publish it together with what comes next. A record
    /// that the caller has seen is not read again unless it has changed since.
    ///
    /// # Errors
    /// As [`Queue::apply`].
    pub async fn apply_without_event(
        &self,
        key: &JobKey,
        seen: Seen<'_>,
        step: &Move,
        now: UnixMillis,
    ) -> Result<Applied> {
        // What was seen may be old: it may lead to a write, which compares, but to no answer without one.
        if let Seen::Record(before, revision) = seen
            && let Ok(record) = before.apply(step, now)
            && record != *before
            && let Some(applied) = self.replace(key, before, revision, record).await?
        {
            return Ok(applied);
        }
        let epoch = match seen {
            Seen::Nothing => None,
            Seen::Epoch(epoch) => Some(epoch),
            Seen::Record(record, _) => Some(record.epoch),
        };
        for _ in 0..TRIES_MAX {
            let Some((before, revision)) = self.record(key).await? else {
                return Ok(Applied::Missing);
            };
            let record = match protocol::propose(&before, epoch, step, now) {
                Tried::Moved(record) => record,
                Tried::Refused { reason, record } => {
                    return Ok(Applied::Refused { reason, record });
                }
                Tried::OtherEpoch { record } => return Ok(Applied::OtherEpoch { record }),
                Tried::Missing => return Ok(Applied::Missing),
            };
            if let Some(applied) = self.replace(key, &before, revision, record).await? {
                return Ok(applied);
            }
        }
        Err(QueueError::Contended { tries: TRIES_MAX })
    }

    /// Stores the record after a step if the one before it is still at `revision`; `None` when it is not. A step that
    /// changes nothing is not stored.
    async fn replace(
        &self,
        key: &JobKey,
        before: &JobRecord,
        revision: Revision,
        record: JobRecord,
    ) -> Result<Option<Applied>> {
        check_invariants(invariant::violated_by_step(before, &record))?;
        let stored = if record == *before {
            Some(revision)
        } else {
            self.store_over(key, &record, revision).await?
        };
        Ok(stored.map(|revision| Applied::Applied {
            record,
            before: before.clone(),
            revision,
        }))
    }

    /// A page of a tenant's records in order of job id, after `after`, at most `limit`, only those in `states` (all when
    /// empty). Costs one listing of the tenant's keys in every shard a page, and may be a moment old on a cluster. A record that this
    /// version cannot read is left out and logged: it must not hide the others.
    pub async fn list_records(
        &self,
        tenant: &TenantId,
        after: Option<&JobId>,
        limit: usize,
        states: &[JobState],
    ) -> Result<Vec<(JobId, JobRecord)>> {
        let keys = self.jobs.keys(tenant).await?;
        let after = after.map(|job| format!("{tenant}.{job}"));
        let from = keys.partition_point(|key| after.as_ref().is_some_and(|after| key <= after));
        let mut page = Vec::new();
        // Without a filter every record read is wanted; with one, most may not be.
        let at_a_time = if states.is_empty() {
            limit.clamp(1, BATCH_MAX)
        } else {
            BATCH_MAX
        };
        for some in keys[from..].chunks(at_a_time) {
            if page.len() >= limit {
                break;
            }
            for entry in self.jobs.get_many(some).await? {
                let readable = readable(&entry.key, entry.value);
                let wanted = readable
                    .filter(|(_, record)| states.is_empty() || states.contains(&record.state));
                page.extend(wanted.map(|(key, record)| (key.job, record)));
            }
        }
        page.truncate(limit);
        Ok(page)
    }

    /// Records of every tenant as they are stored, shard by shard, in each in the order of their latest changes, from `from` on; and
    /// where the next page begins, if there may be one. May be a moment old on a cluster. A record that this version cannot
    /// read is left out and logged.
    pub async fn record_page(
        &self,
        from: PageStart,
    ) -> Result<(Vec<(JobKey, JobRecord)>, Option<PageStart>)> {
        let mut at = from;
        while let Some(bucket) = self.jobs.at(at.shard) {
            if let Some((page, next)) = page_of(bucket, at).await? {
                return Ok((page, Some(next)));
            }
            at = PageStart::of(at.shard + 1);
        }
        Ok((Vec::new(), None))
    }

    /// Every record of every tenant as it is stored, in pages, as [`Queue::record_page`] gives them; ends when all were
    /// read. A record that changes meanwhile may come again. Trouble is logged and retried, never yielded, and those of a shard that
    /// does not answer come behind the others; a record that this version cannot read is left out and logged.
    #[must_use]
    pub fn scan_records(&self) -> BoxStream<'static, Vec<(JobKey, JobRecord)>> {
        let left: VecDeque<_> = (0..self.record_shards()).map(PageStart::of).collect();
        // The shards of which it was said that they do not answer: once, not at every try.
        let begun = (self.clone(), left, BTreeSet::<usize>::new());
        let pages = stream::unfold(begun, |(queue, mut left, mut told)| async move {
            while let Some(from) = left.pop_front() {
                match page_of(queue.jobs.at(from.shard)?, from).await {
                    Ok(None) => {}
                    Ok(Some((page, next))) => {
                        told.remove(&from.shard);
                        left.push_front(next);
                        return Some((page, (queue, left, told)));
                    }
                    Err(QueueError::Closed) => return None,
                    Err(error) => {
                        if told.insert(from.shard) {
                            tracing::warn!(
                                error = chain(&error),
                                shard = from.shard,
                                "cannot read the job records; trying again"
                            );
                        }
                        left.push_back(from);
                        tokio::time::sleep(SCAN_AGAIN).await;
                    }
                }
            }
            None
        });
        pages.boxed()
    }
}

/// The records of a shard from there on, and where the next page of it begins; `None` behind its last.
async fn page_of(
    bucket: &Bucket,
    from: PageStart,
) -> Result<Option<(Vec<(JobKey, JobRecord)>, PageStart)>> {
    let entries = bucket.run(from.sequence, BATCH_MAX).await?;
    let Some(last) = entries.last() else {
        return Ok(None);
    };
    let next = PageStart {
        sequence: last.revision.sequence + 1,
        ..from
    };
    let page = entries
        .into_iter()
        .filter_map(|entry| readable(&entry.key, entry.value));
    Ok(Some((page.collect(), next)))
}

/// The record under a bucket's key. `None` for a key that is not ours, and for a record of another version.
fn readable(key: &str, value: Bytes) -> Option<(JobKey, JobRecord)> {
    let key = subject::job_of_key(key)?;
    match decode_record(value) {
        Ok(record) => Some((key, record)),
        Err(error) => {
            tracing::error!(
                job = %key.job,
                error = chain(&error),
                "a job record cannot be read and is left out"
            );
            None
        }
    }
}

fn check_invariants(violated: Option<&'static str>) -> Result<()> {
    match violated {
        Some(invariant) => Err(QueueError::Internal { invariant }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_its_sequence() {
        let (plain, later) = (Revision::at(3), Revision::at(3).with_later(true));
        assert_eq!(plain, later);
        assert_eq!(plain.cmp(&later), Ordering::Equal);
        assert!(later < Revision::at(4) && plain != Revision::at(4));
        let of_both = std::collections::HashSet::from([plain, later]);
        assert_eq!(of_both.len(), 1);
    }

    #[test]
    fn the_start_of_a_page_is_read_back_from_its_text() {
        for (shard, sequence, text) in [(0, 0, "0"), (0, 7, "7"), (3, 7, "3.7")] {
            let start = PageStart { shard, sequence };
            assert_eq!(start.to_string(), text);
            assert_eq!(text.parse(), Ok(start));
        }
        for text in ["", "x", "3.", ".7", "1.2.3", "-1"] {
            assert!(text.parse::<PageStart>().is_err(), "{text}");
        }
    }
}
