//! The small ledgers beside the records: accepts to sweep, jobs set aside, uploads, dead letters, audit, pauses.

use std::time::Duration;

use bytes::Bytes;
use medfleet_core::{Class, FailureReason, JobKey, TenantId, UnixMillis, UploadId, chain};
use medfleet_proto::work::v1::{AuditEntry, DeadLetter, PauseRecord, UploadRecord, WorkUnit};

use crate::api::{Operation, Stored, Which, code, once, repeatable};
use crate::bucket::Entry;
use crate::wire::{decode, encode, later_of_upload, reason_to_wire, unit_from_wire};
use crate::{Queue, QueueError, Result, Revision, Updated, subject};

/// Notes of one kind: the filter of their keys, and the job that each is of.
type Kind = (&'static str, fn(&Entry) -> Option<JobKey>);

impl Queue {
    /// Notes that a job is about to be accepted or started over, before its publish, so that a sweeper can finish it.
    ///
    /// # Errors
    /// Transient ones: put again.
    pub async fn put_pending(&self, key: &JobKey) -> Result<Revision> {
        self.pending.put(&key.to_string(), Bytes::new()).await
    }

    /// As [`Queue::put_pending`], under a key of the caller's own, made of its name (`holder`: letters and digits) and a number
    /// (`sheet`). It overwrites the note under that key, whose job must need none any more.
    ///
    /// # Errors
    /// Transient ones: note again.
    pub async fn note_accept(
        &self,
        (holder, sheet): (&str, u64),
        key: &JobKey,
    ) -> Result<Revision> {
        let sheet = subject::accept_key(holder, sheet);
        self.pending.put(&sheet, key.to_string().into()).await
    }

    /// Removes this note, and no other, once the publish is confirmed: another accept or replay of the job may have made one since.
    /// One that was written or listed when the connection had been lost less often ([`Queue::losses`]) stays, for the next sweep: a
    /// server that lost its latest writes gives its place to another's.
    ///
    /// # Errors
    /// Transient ones: remove again, or leave it to the sweeper.
    pub async fn remove_pending(&self, noted: Revision, losses: u64) -> Result<()> {
        if self.losses() != losses {
            return Ok(());
        }
        self.pending.remove_revision(noted).await
    }

    /// Accepts noted longer ago than `older_than`, by the server's clock, which also dates the notes. A job may have several.
    pub async fn list_pending(&self, older_than: Duration) -> Result<Vec<(JobKey, Revision)>> {
        let by_job: Kind = ("*.*", |entry| subject::job_of_key(&entry.key));
        let by_sheet: Kind = (subject::ACCEPTS, |entry| {
            subject::job_of_key(std::str::from_utf8(&entry.value).ok()?)
        });
        self.notes(&[by_job, by_sheet], older_than).await
    }

    /// Notes that a unit of the job is about to be taken out of the queue, so that a sweeper queues what the job waits for by
    /// its record.
    ///
    /// # Errors
    /// Transient ones: note again.
    pub(crate) async fn note_aside(&self, key: &JobKey) -> Result<()> {
        let key = subject::aside_key(key);
        self.pending.put(&key, Bytes::new()).await.map(drop)
    }

    /// Whether a job was set aside, and what it waits for was not queued again since.
    pub async fn is_aside(&self, key: &JobKey) -> Result<bool> {
        let noted = self.pending.get(&subject::aside_key(key)).await?;
        Ok(noted.is_some())
    }

    /// Jobs set aside longer ago than `older_than`, by the server's clock. Once what they wait for is queued,
    /// [`Queue::remove_pending`] removes the note.
    pub async fn list_aside(&self, older_than: Duration) -> Result<Vec<(JobKey, Revision)>> {
        let aside: Kind = (subject::ASIDE, |entry| subject::job_of_aside(&entry.key));
        self.notes(&[aside], older_than).await
    }

    async fn notes(&self, kinds: &[Kind], older_than: Duration) -> Result<Vec<(JobKey, Revision)>> {
        let age = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let latest = self.time().await?.0.saturating_sub(age);
        let mut old = Vec::new();
        for (filter, job_of) in kinds {
            let keys = self.pending.keys(filter).await?;
            let entries = self.pending.get_many(&keys).await?;
            let entries = entries
                .iter()
                .filter(|entry| entry.written_at.0 <= latest)
                .filter_map(|entry| Some((job_of(entry)?, entry.revision)));
            old.extend(entries);
        }
        Ok(old)
    }

    /// Notes a new upload. It is forgotten when nothing was added to it for the upload's time to live.
    ///
    /// # Errors
    /// [`QueueError::Refused`] when the id is taken, and transient ones.
    pub async fn create_upload(
        &self,
        tenant: &TenantId,
        upload: &UploadId,
        record: &UploadRecord,
    ) -> Result<Revision> {
        let key = subject::upload_key(tenant, upload);
        let created = self.uploads.create(&key, encode(record)).await?;
        created.ok_or_else(|| QueueError::Refused {
            operation: "note an upload",
            code: code::WRONG_LAST_SEQUENCE,
            description: "the upload exists already".to_owned(),
        })
    }

    /// An upload under way.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`].
    pub async fn upload(
        &self,
        tenant: &TenantId,
        upload: &UploadId,
    ) -> Result<Option<(UploadRecord, Revision)>> {
        let key = subject::upload_key(tenant, upload);
        let Some(entry) = self.uploads.get(&key).await? else {
            return Ok(None);
        };
        let is_later = !later_of_upload(&entry.value)?.is_empty();
        let record = decode("an upload record", entry.value)?;
        Ok(Some((record, entry.revision.with_later(is_later))))
    }

    /// Stores how far an upload is, if its revision is still `revision`, with what a later release wrote into its record.
    ///
    /// # Errors
    /// Transient ones leave open whether it was stored: read again.
    pub async fn update_upload(
        &self,
        tenant: &TenantId,
        upload: &UploadId,
        record: &UploadRecord,
        revision: Revision,
    ) -> Result<Updated> {
        let key = subject::upload_key(tenant, upload);
        let mut value = encode(record);
        if revision.is_later() {
            match self.uploads.get(&key).await? {
                Some(entry) if entry.revision.sequence() == revision.sequence() => {
                    let later = later_of_upload(&entry.value)?;
                    value = [&value[..], &later[..]].concat().into();
                }
                _ => return Ok(Updated::Conflict),
            }
        }
        let updated = self.uploads.update(&key, value, revision).await?;
        Ok(updated.map_or(Updated::Conflict, |stored| {
            Updated::Updated(stored.with_later(revision.is_later()))
        }))
    }

    /// Stores a dead letter; of a job's epoch one is stored, the first.
    ///
    /// # Errors
    /// [`QueueError::Malformed`] without a proper unit, [`QueueError::Full`], and transient ones: publish again.
    pub async fn publish_dead(&self, letter: &DeadLetter) -> Result<()> {
        const PUBLISH: Operation = repeatable("publish a dead letter");
        let unit = letter
            .unit
            .as_ref()
            .ok_or(QueueError::malformed("a dead letter", "it names no unit"))?;
        let unit = unit_from_wire(unit)?;
        let subject = subject::dead(&unit.key, unit.epoch);
        self.api
            .publish_first(PUBLISH, subject::DEAD, &subject, encode(letter))
            .await
    }

    /// Dead letters after a sequence, of one tenant or of all, oldest first, at most `limit`. One that cannot be read says so, with
    /// the job and the epoch that its subject names: the others are told, and it can be discarded.
    pub async fn dead_letters(
        &self,
        tenant: Option<&TenantId>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, DeadLetter)>> {
        let filter = subject::dead_of(tenant);
        let mut letters = Vec::new();
        let mut next = after.saturating_add(1);
        while letters.len() < limit {
            let count = (limit - letters.len()).min(crate::api::BATCH_MAX);
            let run = self
                .api
                .get_run(subject::DEAD, &filter, next, count)
                .await?;
            let Some(last) = run.last() else { break };
            next = last.sequence + 1;
            letters.extend(run.into_iter().map(|one| (one.sequence, letter_of(one))));
        }
        Ok(letters)
    }

    /// One dead letter, as [`Queue::dead_letters`] tells it.
    pub async fn dead_letter(&self, sequence: u64) -> Result<Option<DeadLetter>> {
        let which = Which::Sequence { seq: sequence };
        let stored = self.api.get(subject::DEAD, which).await?;
        Ok(stored.map(letter_of))
    }

    /// The dead letter of a job's epoch with its sequence, as [`Queue::dead_letters`] tells it.
    pub async fn dead_letter_of(
        &self,
        key: &JobKey,
        epoch: u32,
    ) -> Result<Option<(u64, DeadLetter)>> {
        let subject = subject::dead(key, epoch);
        let which = Which::Last {
            last_by_subj: &subject,
        };
        let stored = self.api.get(subject::DEAD, which).await?;
        Ok(stored.map(|stored| (stored.sequence, letter_of(stored))))
    }

    /// The latest epoch of a job of which a dead letter is kept.
    pub(crate) async fn last_dead_epoch(&self, key: &JobKey) -> Result<Option<u32>> {
        let filter = subject::dead_of_job(key);
        let (mut next, mut last) = (1, None);
        loop {
            let which = Which::Next {
                seq: next,
                next_by_subj: &filter,
            };
            let Some(letter) = self.api.get(subject::DEAD, which).await? else {
                return Ok(last);
            };
            next = letter.sequence + 1;
            last = last.max(subject::epoch_of_dead(&letter.subject));
        }
    }

    /// Removes the dead letter of a job's epoch that has this sequence; one that is gone is fine. Never another job's: a server that
    /// lost its latest writes gives their sequences to others.
    ///
    /// # Errors
    /// Transient ones: discard again.
    pub async fn discard_dead(&self, key: &JobKey, epoch: u32, sequence: u64) -> Result<()> {
        let subject = subject::dead(key, epoch);
        self.api
            .purge_up_to(subject::DEAD, &subject, sequence)
            .await
    }

    /// Removes every dead letter of a job; none is fine.
    ///
    /// # Errors
    /// Transient ones: remove again.
    pub async fn discard_dead_of(&self, key: &JobKey) -> Result<()> {
        self.api
            .purge(subject::DEAD, &subject::dead_of_job(key))
            .await
    }

    /// Appends to a tenant's audit stream.
    ///
    /// # Errors
    /// [`QueueError::Full`], and transient ones, which leave open whether it was stored: an entry may then be there twice.
    pub async fn audit(&self, tenant: &TenantId, entry: &AuditEntry) -> Result<()> {
        const APPEND: Operation = once("append to the audit");
        self.api
            .publish(APPEND, &subject::audit(tenant), None, encode(entry))
            .await
            .map(|_| ())
    }

    /// Holds work back: that of a tenant, of a class, or of one class of one tenant. One that is held back stays so.
    ///
    /// # Errors
    /// Transient ones: put again.
    pub async fn put_pause(&self, pause: &Pause) -> Result<()> {
        let record = PauseRecord {
            tenant: pause
                .tenant
                .as_ref()
                .map_or_else(String::new, TenantId::to_string),
            class: pause
                .class
                .map_or_else(String::new, |class| class.to_string()),
            actor: pause.actor.clone(),
            time_unix_millis: pause.at.0,
        };
        let key = subject::pause_key(pause.tenant.as_ref(), pause.class);
        self.pauses.create(&key, encode(&record)).await.map(drop)
    }

    /// Lets it go on; what is not held back is fine.
    ///
    /// # Errors
    /// Transient ones: remove again.
    pub async fn remove_pause(
        &self,
        tenant: Option<&TenantId>,
        class: Option<Class>,
    ) -> Result<()> {
        self.pauses.remove(&subject::pause_key(tenant, class)).await
    }

    /// Everything that is held back, in order of tenant and class.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`]: a pause that cannot be read must not count as none.
    pub async fn pauses(&self) -> Result<Vec<Pause>> {
        let bad = |field| QueueError::malformed("a pause", field);
        let keys = self.pauses.keys("*.*").await?;
        let mut entries = self.pauses.get_many(&keys).await?;
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let pauses = entries.into_iter().map(|entry| {
            let record: PauseRecord = decode("a pause", entry.value)?;
            let tenant = match record.tenant.as_str() {
                "" => None,
                tenant => Some(TenantId::new(tenant).map_err(|_| bad("tenant"))?),
            };
            let class = match record.class.as_str() {
                "" => None,
                class => Some(class.parse().map_err(|_| bad("class"))?),
            };
            Ok(Pause {
                tenant,
                class,
                actor: record.actor,
                at: UnixMillis(record.time_unix_millis),
            })
        });
        pauses.collect()
    }
}

/// Work that an operator holds back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Whose; every tenant's without.
    pub tenant: Option<TenantId>,
    /// Of which class; of every class without.
    pub class: Option<Class>,
    /// Name of the token that paused it.
    pub actor: String,
    pub at: UnixMillis,
}

/// A letter as it was stored, or what its subject says of it.
fn letter_of(stored: Stored) -> DeadLetter {
    let Stored {
        subject,
        sequence,
        stored_at,
        payload,
    } = stored;
    decode("a dead letter", payload).unwrap_or_else(|error| {
        tracing::warn!(
            error = chain(&error),
            sequence,
            "a dead letter cannot be read"
        );
        let unit = subject::job_of(&subject).map(|key| WorkUnit {
            tenant: key.tenant.to_string(),
            job: key.job.to_string(),
            epoch: subject::epoch_of_dead(&subject).unwrap_or_default(),
            ..WorkUnit::default()
        });
        DeadLetter {
            unit,
            reason: reason_to_wire(FailureReason::Internal) as i32,
            message: "this dead letter cannot be read: replay its job, or discard it".to_owned(),
            time_unix_millis: stored_at.0,
        }
    })
}
