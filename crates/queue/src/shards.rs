//! The buckets of the job records, one for each shard: which one has a job's record, and what is asked of all of them.
//! A revision is a sequence of one shard's stream: it says nothing of a job in another.

use futures::future::try_join_all;
use medfleet_core::{JobId, JobKey, TenantId};

use crate::api::Api;
use crate::bucket::{Bucket, Entry};
use crate::{Queue, Result, subject};

impl Queue {
    /// In which shard a job's record is, by its place among them: where one does not answer, the others may.
    pub fn record_shard(&self, job: &JobId) -> usize {
        self.jobs.place(job)
    }

    /// How many shards the job records are in.
    pub fn record_shards(&self) -> usize {
        self.jobs.buckets.len()
    }
}

/// The buckets that the job records are spread over.
#[derive(Debug)]
pub(crate) struct Shards {
    buckets: Vec<Bucket>,
}

impl Shards {
    /// In so many; at least one.
    pub(crate) fn new(api: &Api, count: u8) -> Self {
        let names = subject::record_buckets(count);
        Self {
            buckets: names.map(|name| Bucket::new(api.clone(), name)).collect(),
        }
    }

    /// The place of a job's bucket among them.
    pub(crate) fn place(&self, job: &JobId) -> usize {
        job.shard(self.buckets.len())
    }

    /// The bucket of a job's record.
    pub(crate) fn of(&self, job: &JobId) -> &Bucket {
        &self.buckets[self.place(job)]
    }

    /// The bucket at a place.
    pub(crate) fn at(&self, place: usize) -> Option<&Bucket> {
        self.buckets.get(place)
    }

    pub(crate) async fn get(&self, key: &JobKey) -> Result<Option<Entry>> {
        self.of(&key.job).get(&key.to_string()).await
    }

    /// The keys of a tenant's records, in order of job id.
    pub(crate) async fn keys(&self, tenant: &TenantId) -> Result<Vec<String>> {
        let filter = format!("{tenant}.*");
        let keys = self.buckets.iter().map(|bucket| bucket.keys(&filter));
        let mut keys = try_join_all(keys).await?.concat();
        keys.sort_unstable();
        Ok(keys)
    }

    /// The entries of many keys, in order of the keys, without the missing ones; may be a moment old on a cluster.
    pub(crate) async fn get_many(&self, keys: &[String]) -> Result<Vec<Entry>> {
        let mut of_each = vec![Vec::new(); self.buckets.len()];
        for key in keys {
            // What names no job is nobody's record.
            if let Some(named) = subject::job_of_key(key) {
                of_each[self.place(&named.job)].push(key.clone());
            }
        }
        let asked = self.buckets.iter().zip(&of_each);
        let asked = asked.filter(|(_, keys)| !keys.is_empty());
        let entries = try_join_all(asked.map(|(bucket, keys)| bucket.get_many(keys))).await?;
        let mut entries = entries.concat();
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }
}
