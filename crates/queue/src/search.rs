//! Looks for the jobs of a patient or a study, by the keyed hashes that their records carry. There is no index: it reads a
//! tenant's records, a bounded number at a time, and leaves out none that was there when it was asked.

use std::collections::HashSet;

use medfleet_core::{JobId, JobRecord, PseudonymHash, PseudonymKind, TenantId, chain};

use crate::api::BATCH_MAX;
use crate::bucket::Entry;
use crate::wire::decode_record;
use crate::{Queue, QueueError, Result, subject};

/// What a look through a part of a tenant's records found.
#[derive(Debug, Default)]
pub struct Found {
    /// Jobs of the patient or study, in order of job id.
    pub jobs: Vec<(JobId, JobRecord)>,
    /// Jobs whose records this version cannot read, in order: whose they are is not known.
    pub unreadable: Vec<JobId>,
    /// The last job that was looked at, where there are more after it.
    pub next: Option<JobId>,
}

impl Queue {
    /// The tenant's jobs with this pseudonym among at most `looked_max` records after `after`, in order of job id. Costs one
    /// listing of the tenant's keys. A record that this version cannot read is named apart, and logged.
    ///
    /// # Errors
    /// Transient ones: look again.
    pub async fn find_records(
        &self,
        tenant: &TenantId,
        after: Option<&JobId>,
        (kind, pseudonym): (PseudonymKind, &PseudonymHash),
        looked_max: usize,
    ) -> Result<Found> {
        let keys = self.jobs.keys(tenant).await?;
        let after = after.map(|job| format!("{tenant}.{job}"));
        let from = keys.partition_point(|key| after.as_ref().is_some_and(|after| key <= after));
        let to = keys.len().min(from.saturating_add(looked_max.max(1)));
        let mut found = Found::default();
        for some in keys[from..to].chunks(BATCH_MAX) {
            for entry in self.entries_now(some).await? {
                let Some(key) = subject::job_of_key(&entry.key) else {
                    continue;
                };
                match decode_record(entry.value) {
                    Ok(record) if record.pseudonyms.has(kind, pseudonym) => {
                        found.jobs.push((key.job, record));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(
                            job = %key.job,
                            error = chain(&error),
                            "a job record cannot be read: whose it is is not known"
                        );
                        found.unreadable.push(key.job);
                    }
                }
            }
        }
        if to < keys.len() {
            let mut looked_at = keys[from..to].iter().rev();
            let last = looked_at.find_map(|key| subject::job_of_key(key));
            let last = last.ok_or(QueueError::malformed(
                "the bucket of job records",
                "its keys name no jobs",
            ))?;
            found.next = Some(last.job);
        }
        Ok(found)
    }

    /// The entries of these keys, in order. One that the server which answered has not got yet is asked of the leader: on a
    /// cluster a record that is a moment old must not be missed.
    async fn entries_now(&self, keys: &[String]) -> Result<Vec<Entry>> {
        let mut entries = self.jobs.get_many(keys).await?;
        let missing: Vec<&String> = {
            let known: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
            let missing = keys.iter().filter(|key| !known.contains(key.as_str()));
            missing.collect()
        };
        for key in missing {
            if let Some(key) = subject::job_of_key(key) {
                entries.extend(self.jobs.get(&key).await?);
            }
        }
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }
}
