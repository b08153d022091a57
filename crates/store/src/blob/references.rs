//! References: a job says which blobs it relies on, and until it lets go they are not collected.
//!
//! One small object per call, `<tenant>/refs/<job>/<hash of the list>`, holds the list as lines of kind and digest under a
//! checksum. Letting go deletes the job's objects. The object is durable before the blobs are touched, and taking a
//! reference makes the blobs young again, so that a collection already under way leaves them alone.

use std::collections::{BTreeMap, HashSet};
use std::future::ready;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, join};
use medfleet_core::{BlobKind, Digest, JobId, JobKey, TenantId, UnixMillis};

use super::collect::tombstone;
use super::{BlobStore, CHECKSUM_BYTES, StoreError, blob_name, to_its_end};
use crate::backend::{AtOnce, BackendError, Batch, Entry, Name};

/// Most blobs in one call; more is a caller's mistake (a job has at most 32 chunks and a few lists).
const REFERENCES_MAX: usize = 4_096;
/// Most bytes of one list that are read: kind, space, digest and line break a blob.
pub(super) const LIST_BYTES_MAX: u64 = (REFERENCES_MAX as u64) * 96 + CHECKSUM_BYTES as u64;
/// A blob younger than this needs no refresh when it is referenced; far below [`super::COLLECT_AGE_MIN`].
const YOUNG_MILLIS: i64 = 10 * 60 * 1_000;
/// Contents that are written one after the other in one call of the place, which then waits so often for its disk: few and
/// small ones. Others are written beside each other.
const AT_ONCE_MAX: usize = 2;
const AT_ONCE_BYTES_MAX: u64 = 256 << 10;
/// Blobs refreshed at the same time.
const REFRESHES: usize = 8;

/// The segment of a tenant's references; no blob kind is called so.
pub(super) const REFERENCES: &str = "refs";
/// The segment of a tenant's tombstones.
pub(super) const ERASED: &str = "erased";

/// Which blobs a job or a tenant references.
pub(super) type References = HashSet<(BlobKind, Digest)>;

/// A content with its kind and its name.
pub type Named = (BlobKind, Digest, Bytes);

/// What a job relies on, as one listing found it.
#[derive(Debug, Clone, Default)]
pub struct Holder {
    /// When its latest reference was taken, by the place's clock.
    pub latest: UnixMillis,
    lists: Vec<Name>,
}

/// What is to be kept for a job.
struct Keep<'a> {
    key: &'a JobKey,
    contents: &'a [Named],
    /// Names of the contents, followed by those of the other blobs that the job relies on.
    named: &'a [(BlobKind, Digest)],
    /// Whether those other blobs were stored for other jobs.
    is_others: bool,
}

/// What was found right after everything was written.
struct Placed {
    look: Look,
    /// When the reference was taken, by the place's clock; `None` where its list is gone again, so that the time is unknown.
    taken: Option<UnixMillis>,
}

/// What one look has found: blobs, and whether their job was erased.
struct Look {
    is_erased: bool,
    blobs: Vec<Looked>,
}

/// One blob as it was found.
struct Looked {
    kind: BlobKind,
    digest: Digest,
    name: Name,
    entry: Option<Entry>,
}

/// Puts blobs together with what was found under their names; all three are in the same order.
fn looked(
    blobs: &[(BlobKind, Digest)],
    names: Vec<Name>,
    entries: Vec<Option<Entry>>,
) -> Vec<Looked> {
    let blobs = blobs.iter().zip(names).zip(entries);
    let blobs = blobs.map(|(((kind, digest), name), entry)| Looked {
        kind: *kind,
        digest: *digest,
        name,
        entry,
    });
    blobs.collect()
}

impl BlobStore {
    /// The job relies on these blobs from now on; durable when this returns. Taking the same reference again is fine.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when one of them is not there (the reference is taken all the same, so that the caller can
    /// put the blob again and go on); [`StoreError::JobErased`] for an erased job.
    pub async fn reference(
        &self,
        tenant: &TenantId,
        job: &JobId,
        blobs: &[(BlobKind, Digest)],
    ) -> Result<(), StoreError> {
        let key = JobKey::new(tenant.clone(), job.clone());
        self.keep_named(&key, Vec::new(), blobs, ready(Ok(())))
            .await
    }

    /// Stores contents and takes the job's reference on them and on `also`, all at the same time, so that the disk is waited for
    /// once. `meanwhile` runs beside that; the blobs that `also` names have to be there only when it has ended. Gives the names of
    /// the contents in their order. Once begun it goes on to its end, also when it is dropped, and an erased job leaves nothing
    /// behind.
    ///
    /// # Errors
    /// As [`BlobStore::put`] and [`BlobStore::reference`], and the error of `meanwhile`.
    pub async fn keep(
        &self,
        key: &JobKey,
        contents: Vec<(BlobKind, Bytes)>,
        also: &[(BlobKind, Digest)],
        meanwhile: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) -> Result<Vec<Digest>, StoreError> {
        let digests = contents
            .iter()
            .map(|(_, content)| self.digest(&key.tenant, content));
        let digests = join_all(digests).await;
        let named = contents.into_iter().zip(&digests);
        let named = named.map(|((kind, content), digest)| (kind, *digest, content));
        self.keep_named(key, named.collect(), also, meanwhile)
            .await?;
        Ok(digests)
    }

    /// As [`BlobStore::keep`], of contents whose names the caller has made with [`BlobStore::digest`].
    pub async fn keep_named(
        &self,
        key: &JobKey,
        contents: Vec<Named>,
        also: &[(BlobKind, Digest)],
        meanwhile: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.keep_whose(key, contents, (also, false), meanwhile)
            .await
    }

    /// As [`BlobStore::keep_named`], where the blobs `found` were stored for other jobs. They are made young whatever their age,
    /// so that an erasure of those jobs that has already begun leaves them. A place that cannot do so without their bytes (S3)
    /// may lose a blob that is referenced between the erasure's last look at references and its deletes.
    ///
    /// # Errors
    /// As [`BlobStore::keep`]; [`StoreError::Missing`] for a blob that an erasure has deleted just before.
    pub async fn keep_found(
        &self,
        key: &JobKey,
        contents: Vec<Named>,
        found: &[(BlobKind, Digest)],
    ) -> Result<(), StoreError> {
        self.keep_whose(key, contents, (found, true), ready(Ok(())))
            .await
    }

    /// `is_others`: whether the blobs `also` were stored for other jobs.
    async fn keep_whose(
        &self,
        key: &JobKey,
        contents: Vec<Named>,
        (also, is_others): (&[(BlobKind, Digest)], bool),
        meanwhile: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (store, key, also) = (self.clone(), key.clone(), also.to_vec());
        to_its_end(async move {
            let named = contents.iter().map(|(kind, digest, _)| (*kind, *digest));
            let named: Vec<_> = named.chain(also).collect();
            let keep = Keep {
                key: &key,
                contents: &contents,
                named: &named,
                is_others,
            };
            store.keep_all(&keep, meanwhile).await
        })
        .await
    }

    /// Does all of a keep, and undoes it if the job was erased meanwhile.
    async fn keep_all(
        &self,
        keep: &Keep<'_>,
        meanwhile: impl Future<Output = Result<(), StoreError>> + Send,
    ) -> Result<(), StoreError> {
        let kept = self.put_and_rely(keep, meanwhile).await?;
        let (is_erased, kept) = match kept {
            Ok(is_erased) => (is_erased, Ok(())),
            // The job is looked at also after a failure, as a part of it may be stored.
            Err(error) => (None, Err(error)),
        };
        match self.still_wanted(keep.key, keep.named, is_erased).await {
            Err(StoreError::JobErased) => Err(StoreError::JobErased),
            wanted => kept.and(wanted),
        }
    }

    /// Stores and references. Also after a failure it ends only when everything that it began has ended.
    ///
    /// # Errors
    /// The outer one: nothing was written yet. The inner one: some of it may be stored. Without one, whether the job was erased, if
    /// that was looked at after the last write.
    async fn put_and_rely(
        &self,
        keep: &Keep<'_>,
        meanwhile: impl Future<Output = Result<(), StoreError>> + Send,
    ) -> Result<Result<Option<bool>, StoreError>, StoreError> {
        let batch = self.batch_of(keep).await?;
        let placed = match (self.inner.backend.at_once(), batch) {
            (Some(place), Some(batch)) => {
                let (landed, meanwhile) = join!(self.land(keep, place, batch), meanwhile);
                match landed {
                    Ok(Some(placed)) => meanwhile.map(|()| placed),
                    Ok(None) => return Err(StoreError::JobErased),
                    Err(error) => Err(error),
                }
            }
            _ => {
                // Contents that are stored already need no writing. The other blobs need not be there before `meanwhile` has ended.
                let contents = &keep.named[..keep.contents.len()];
                let before = self.look(keep.key, contents).await?;
                if before.is_erased {
                    return Err(StoreError::JobErased);
                }
                self.place_each(keep, &before, meanwhile).await
            }
        };
        Ok(match placed {
            Ok(placed) => self.settled(keep, placed).await,
            Err(error) => Err(error),
        })
    }

    /// The keep as one batch, for a place that can do batches. `None` where it cannot; where there is so much to write that
    /// separate calls side by side are faster; where a limit may refuse something, as a refusal names a single blob; and where
    /// the job relies on other blobs too, which may come only later.
    async fn batch_of(&self, keep: &Keep<'_>) -> Result<Option<Batch>, StoreError> {
        let JobKey { tenant, job } = keep.key;
        let (contents, limits) = (keep.contents, self.inner.limits);
        let mut bytes: u64 = contents.iter().map(|(_, _, it)| it.len() as u64).sum();
        let is_small = bytes <= AT_ONCE_BYTES_MAX.min(limits.blob_bytes_max);
        let is_all = keep.named.len() == contents.len();
        if self.inner.backend.at_once().is_none()
            || !is_small
            || !is_all
            || !(1..=AT_ONCE_MAX).contains(&contents.len())
        {
            return Ok(None);
        }
        let list = self.list_of(tenant, job, keep.named);
        bytes += list.1.len() as u64;
        if self.headroom().await?.is_some_and(|free| free < bytes) {
            return Ok(None);
        }
        let contents = contents.iter().map(|(kind, digest, content)| {
            let name = blob_name(tenant, *kind, digest);
            (name, content.clone())
        });
        Ok(Some(Batch {
            contents: contents.collect(),
            list,
            unless: tombstone(tenant, job),
        }))
    }

    /// Writes a batch. `None` for an erased job, of which nothing was written.
    async fn land(
        &self,
        keep: &Keep<'_>,
        place: &dyn AtOnce,
        batch: Batch,
    ) -> Result<Option<Placed>, StoreError> {
        let names: Vec<Name> = batch
            .contents
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        let bytes: u64 = batch.contents.iter().map(|(_, it)| it.len() as u64).sum();
        let landed = match place.put_batch(batch).await {
            Ok(Some(landed)) => landed,
            Ok(None) => return Ok(None),
            Err(BackendError::Full) => return Err(self.full(bytes, 0)),
            Err(error) => return Err(error.into()),
        };
        self.inner.room.wrote(landed.written_bytes);
        Ok(Some(Placed {
            look: Look {
                is_erased: landed.unless.is_some(),
                blobs: looked(keep.named, names, landed.contents),
            },
            taken: Some(landed.listed),
        }))
    }

    /// Stores and references at the same time, with a call of the place for each object, and then looks at the outcome.
    async fn place_each(
        &self,
        keep: &Keep<'_>,
        before: &Look,
        meanwhile: impl Future<Output = Result<(), StoreError>> + Send,
    ) -> Result<Placed, StoreError> {
        let put = self.put_all(keep.contents, before);
        let rely = self.rely(&keep.key.tenant, &keep.key.job, keep.named);
        let (put, taken, meanwhile) = join!(put, rely, meanwhile);
        put.and(meanwhile)?;
        let taken = taken?;
        let look = self.look(keep.key, keep.named).await?;
        Ok(Placed { look, taken })
    }

    /// Makes sure that the contents are still there and the other blobs are. Gives whether the job was erased, if that was
    /// looked at after the last write.
    async fn settled(&self, keep: &Keep<'_>, placed: Placed) -> Result<Option<bool>, StoreError> {
        let (key, contents, named) = (keep.key, keep.contents, keep.named);
        let Placed { look, taken } = placed;
        match self.confirm(keep, &look, taken).await {
            // A collection that began before the reference was taken has deleted it. It is stored again, and no collection takes it
            // now that it is referenced.
            Err(StoreError::Missing { digest, .. })
                if contents.iter().any(|(_, content, _)| *content == digest) =>
            {
                let there = self.look(key, &named[..contents.len()]).await?;
                self.put_all(contents, &there).await?;
                let again = self.look(key, named).await?;
                self.confirm(keep, &again, taken).await
            }
            confirmed => confirmed,
        }
    }

    /// Stores contents, given what a look has found in their places.
    async fn put_all(&self, contents: &[Named], there: &Look) -> Result<(), StoreError> {
        let puts = contents.iter().zip(&there.blobs);
        let puts = puts.map(|((kind, _, content), found)| {
            let there = found.entry.as_ref();
            self.put_over(*kind, &found.name, there, content.clone())
        });
        join_all(puts).await.into_iter().collect()
    }

    /// Looks at blobs and at the job's tombstone, in any order: whatever was put before the look is seen.
    async fn look(&self, key: &JobKey, blobs: &[(BlobKind, Digest)]) -> Result<Look, StoreError> {
        let named = blobs
            .iter()
            .map(|(kind, digest)| blob_name(&key.tenant, *kind, digest));
        let mut names: Vec<Name> = named.collect();
        names.push(tombstone(&key.tenant, &key.job));
        let mut entries = self.inner.backend.heads(&names).await?;
        let is_erased = entries.pop().flatten().is_some();
        Ok(Look {
            is_erased,
            blobs: looked(blobs, names, entries),
        })
    }

    /// Erases the job again if it was erased while the blobs were stored, as that erasure may have missed them. None is left
    /// behind: either the tombstone was put before this look, and is seen here, or it was put after, and the erasure sees the
    /// blobs.
    async fn still_wanted(
        &self,
        key: &JobKey,
        named: &[(BlobKind, Digest)],
        is_erased: Option<bool>,
    ) -> Result<(), StoreError> {
        let JobKey { tenant, job } = key;
        let is_erased = match is_erased {
            Some(is_erased) => is_erased,
            None => self.is_erased(tenant, job).await?,
        };
        if !is_erased {
            return Ok(());
        }
        // The list is written again, beyond the byte cap if need be, so that the new erasure finds the blobs: the earlier one
        // may have deleted the list before the last of them was stored.
        let mut listed = Ok(());
        for part in named.chunks(REFERENCES_MAX) {
            let (name, content) = self.list_of(tenant, job, part);
            let put = self.inner.backend.put(&name, content).await;
            listed = listed.and(put);
        }
        self.erase(tenant, job).await?;
        listed?;
        Err(StoreError::JobErased)
    }

    /// Records that the job relies on these blobs, whether they are there or not; durable when this returns. Gives the place's
    /// time of that; `None` where the list is gone again, so that the time is unknown.
    async fn rely(
        &self,
        tenant: &TenantId,
        job: &JobId,
        blobs: &[(BlobKind, Digest)],
    ) -> Result<Option<UnixMillis>, StoreError> {
        let mut taken = None;
        for part in blobs.chunks(REFERENCES_MAX) {
            let (name, content) = self.list_of(tenant, job, part);
            // The time of the list just written is the present time by the place's clock.
            let time = self.write(&name, content).await?;
            taken = taken.max(time);
        }
        Ok(taken)
    }

    /// Makes sure that the blobs of a reference taken at `taken` are there and not about to be collected: old ones are made
    /// young. All count as old if that time is unknown. Blobs of other jobs always do, as they may be about to be erased with
    /// those jobs. Gives whether the look found the job erased; `None` if something was written since the look.
    async fn confirm(
        &self,
        keep: &Keep<'_>,
        look: &Look,
        taken: Option<UnixMillis>,
    ) -> Result<Option<bool>, StoreError> {
        let is_young = |entry: &Entry| {
            taken.is_some_and(|taken| taken.0.saturating_sub(entry.modified.0) < YOUNG_MILLIS)
        };
        let others = keep.is_others && self.inner.backend.refreshes();
        let old = look.blobs.iter().enumerate().filter(|(index, blob)| {
            let is_other = others && *index >= keep.contents.len();
            is_other || !blob.entry.as_ref().is_some_and(is_young)
        });
        let old: Vec<&Looked> = old.map(|(_, blob)| blob).collect();
        let refreshed: Vec<_> = old.iter().map(|blob| self.rejuvenate(blob)).collect();
        let refreshed = futures::stream::iter(refreshed).buffer_unordered(REFRESHES);
        // Each of them is waited for, whatever becomes of the others: a write that is dropped half-way may still be done later.
        let refreshed: Vec<_> = refreshed.collect().await;
        refreshed.into_iter().collect::<Result<(), StoreError>>()?;
        Ok(old.is_empty().then_some(look.is_erased))
    }

    /// Makes sure that an old blob is there and not about to be collected.
    async fn rejuvenate(&self, blob: &Looked) -> Result<(), StoreError> {
        let backend = &self.inner.backend;
        let Looked {
            kind, digest, name, ..
        } = blob;
        let missing = StoreError::Missing {
            kind: *kind,
            digest: *digest,
        };
        if blob.entry.is_none() {
            return Err(missing);
        }
        if backend.refresh(name).await? {
            return Ok(());
        }
        // The place cannot make it young without its bytes, so the same bytes are written again.
        let content = match backend.get(name, u64::MAX).await {
            // Counts as missing, so that a caller that has the content puts it again.
            Err(BackendError::Damaged) => None,
            found => found?,
        };
        backend.put(name, content.ok_or(missing)?).await?;
        Ok(())
    }

    /// The job lets go of everything. Blobs that nobody else references are then collected when they are old enough.
    ///
    /// # Errors
    /// The place's failure; letting go again finishes it.
    pub async fn release(&self, tenant: &TenantId, job: &JobId) -> Result<(), StoreError> {
        let lists = self
            .inner
            .backend
            .list(&format!("{tenant}/{REFERENCES}/{job}"));
        let lists: Vec<_> = lists.map_ok(|list| list.name).try_collect().await?;
        for list in &lists {
            self.inner.backend.delete(list).await?;
        }
        Ok(())
    }

    /// As [`BlobStore::release`], of what [`BlobStore::holders`] has seen and nothing that came since: many jobs for one
    /// listing, which at some places is as long as all that they store. A list that was written anew since stays, too: its job
    /// begins again, under the name that it had.
    ///
    /// # Errors
    /// The place's failure; letting go again finishes it.
    pub async fn release_holder(&self, holder: &Holder) -> Result<(), StoreError> {
        let backend = &self.inner.backend;
        for list in &holder.lists {
            // The version is read before the age: who writes the list anew from now on changes it, and the delete then does nothing.
            let version = backend.version(list).await?;
            let Some((version, entry)) = version.zip(backend.head(list).await?) else {
                continue;
            };
            if entry.modified <= holder.latest {
                backend.delete_version(list, &version).await?;
            }
        }
        Ok(())
    }

    /// The jobs of a tenant that hold references.
    pub async fn holders(&self, tenant: &TenantId) -> Result<BTreeMap<JobId, Holder>, StoreError> {
        let mut holders: BTreeMap<JobId, Holder> = BTreeMap::new();
        let mut lists = self.inner.backend.list(&format!("{tenant}/{REFERENCES}"));
        while let Some(entry) = lists.next().await {
            let entry = entry?;
            let job = entry.name.as_str().split('/').nth(2);
            // What has no job's name is not a list of ours.
            if let Some(job) = job.and_then(|job| JobId::new(job).ok()) {
                let holder = holders.entry(job).or_default();
                holder.latest = entry.modified.max(holder.latest);
                holder.lists.push(entry.name);
            }
        }
        Ok(holders)
    }

    fn list_of(
        &self,
        tenant: &TenantId,
        job: &JobId,
        blobs: &[(BlobKind, Digest)],
    ) -> (Name, Bytes) {
        let mut lines: Vec<_> = blobs
            .iter()
            .map(|(kind, digest)| format!("{kind} {digest}\n"))
            .collect();
        lines.sort();
        let text = lines.concat();
        let key = self.tenant_key(tenant);
        let digest = key.of_key(text.as_bytes());
        let name = Name::of(&[
            tenant.as_str(),
            REFERENCES,
            job.as_str(),
            &digest.to_string(),
        ]);
        let checksum = key.checksum(&digest, text.as_bytes());
        (name, [checksum.as_bytes(), text.as_bytes()].concat().into())
    }

    /// The blobs of a list.
    pub(super) fn read_list(
        &self,
        tenant: &TenantId,
        content: &[u8],
    ) -> Result<References, StoreError> {
        let corrupt = || StoreError::CorruptReferences {
            tenant: tenant.clone(),
        };
        let (checksum, text) = content
            .split_at_checked(CHECKSUM_BYTES)
            .ok_or_else(corrupt)?;
        let key = self.tenant_key(tenant);
        let digest = key.of_key(text);
        if key.checksum(&digest, text).as_bytes()[..] != *checksum {
            return Err(corrupt());
        }
        let text = std::str::from_utf8(text).map_err(|_| corrupt())?;
        let read = |line: &str| {
            let (kind, digest) = line.split_once(' ')?;
            Some((
                kind.parse::<BlobKind>().ok()?,
                digest.parse::<Digest>().ok()?,
            ))
        };
        text.lines()
            .map(|line| read(line).ok_or_else(corrupt))
            .collect()
    }
}
