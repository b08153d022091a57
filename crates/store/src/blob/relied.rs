//! What the jobs of one tenant rely on, kept in memory for as long as somebody erases or collects: each list of references
//! is read once, however many jobs are looked at.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::StreamExt;
use medfleet_core::{BlobKind, Digest, JobId, TenantId, UnixMillis};

use super::references::{LIST_BYTES_MAX, REFERENCES};
use super::{BlobStore, StoreError};
use crate::backend::{BackendError, Entry, Name};

/// A blob by kind and name.
type Blob = (BlobKind, Digest);

/// What the jobs of one tenant rely on, as far as it was read. Begins empty; every erasure brings it up to date, which costs
/// a listing of names, and the contents only of lists that it has not read yet.
#[derive(Debug, Default)]
pub struct Relied {
    lists: BTreeMap<Name, List>,
    /// In how many lists a blob is.
    counts: HashMap<Blob, u32>,
}

/// One list of references. It never changes.
#[derive(Debug)]
struct List {
    blobs: Vec<Blob>,
    /// When it was written last, by the place's clock.
    modified: UnixMillis,
}

/// What one job holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Each of its blobs, and whether another job relies on it too.
    pub(super) blobs: HashMap<Blob, bool>,
    /// Its lists.
    pub(super) lists: Vec<Name>,
    /// When the latest of them was written, by the place's clock.
    pub(super) latest: UnixMillis,
}

impl Relied {
    /// Whether any job relies on it.
    pub(super) fn has(&self, blob: &Blob) -> bool {
        self.counts.contains_key(blob)
    }

    /// What a job holds.
    pub(super) fn held_by(&self, tenant: &TenantId, job: &JobId) -> Held {
        let above = Name::of(&[tenant.as_str(), REFERENCES, job.as_str()]);
        let below = format!("{above}/");
        let near = self.lists.range(above.clone()..);
        let near = near.take_while(|(name, _)| name.as_str().starts_with(above.as_str()));
        let mut held = Held::default();
        let mut own: HashMap<Blob, u32> = HashMap::new();
        for (name, list) in near.filter(|(name, _)| name.as_str().starts_with(&below)) {
            held.latest = held.latest.max(list.modified);
            held.lists.push(name.clone());
            for blob in &list.blobs {
                *own.entry(*blob).or_default() += 1;
            }
        }
        let blobs = own.into_iter().map(|(blob, own)| {
            let all = self.counts.get(&blob).copied().unwrap_or_default();
            (blob, all > own)
        });
        held.blobs = blobs.collect();
        held
    }

    fn add(&mut self, name: Name, list: List) {
        for blob in &list.blobs {
            *self.counts.entry(*blob).or_default() += 1;
        }
        self.lists.insert(name, list);
    }

    /// A list that is gone.
    pub(super) fn remove(&mut self, name: &Name) {
        for blob in self
            .lists
            .remove(name)
            .into_iter()
            .flat_map(|list| list.blobs)
        {
            if let Some(count) = self.counts.get_mut(&blob) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&blob);
                }
            }
        }
    }

    /// The lists that are known and not among these.
    fn without(&self, there: &HashSet<Name>) -> Vec<Name> {
        let gone = self.lists.keys().filter(|name| !there.contains(*name));
        gone.cloned().collect()
    }
}

impl BlobStore {
    /// Brings what is known of a tenant's references up to date. Says whether a list was read that was not known.
    pub(super) async fn read_references(
        &self,
        tenant: &TenantId,
        relied: &mut Relied,
    ) -> Result<bool, StoreError> {
        let backend = &self.inner.backend;
        let (mut there, mut is_news) = (HashSet::new(), false);
        let mut lists = backend.list(&format!("{tenant}/{REFERENCES}"));
        while let Some(entry) = lists.next().await {
            let Entry { name, modified, .. } = entry?;
            there.insert(name.clone());
            if let Some(known) = relied.lists.get_mut(&name) {
                known.modified = known.modified.max(modified);
                continue;
            }
            let content = match backend.get(&name, LIST_BYTES_MAX).await {
                Ok(Some(content)) => content,
                // A list that is gone by now was released by its job.
                Ok(None) => continue,
                Err(BackendError::Damaged) => {
                    return Err(StoreError::CorruptReferences {
                        tenant: tenant.clone(),
                    });
                }
                Err(error) => return Err(error.into()),
            };
            let blobs = self.read_list(tenant, &content)?.into_iter().collect();
            relied.add(name, List { blobs, modified });
            is_news = true;
        }
        // A listing may leave out what is written anew meanwhile: gone is only what is not found by its name either.
        for name in relied.without(&there) {
            if backend.head(&name).await?.is_none() {
                relied.remove(&name);
            }
        }
        Ok(is_news)
    }

    /// What a job holds and whether others do too, as it is now.
    pub(super) async fn held_by(
        &self,
        tenant: &TenantId,
        job: &JobId,
        relied: &mut Relied,
    ) -> Result<Held, StoreError> {
        // Reading lists may take minutes: once more for what was relied on meanwhile.
        if self.read_references(tenant, relied).await? {
            self.read_references(tenant, relied).await?;
        }
        Ok(relied.held_by(tenant, job))
    }
}
