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
    /// The contents, and what else the job relies on.
    named: &'a [(BlobKind, Digest)],
    /// Whether the latter was stored for other jobs.
    is_others: bool,
}

/// What was found right after everything was written.
struct Placed {
    look: Look,
    /// When the reference was taken; none where no list is there any more that would tell it.
    taken: Option<UnixMillis>,
}

/// Blobs, and whether their job was erased: looked at together.
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

/// Blobs with what was found under their names, all in one order.
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
        let key = JobKey {
            tenant: tenant.clone(),
            job: job.clone(),
        };
        self.keep_named(&key, Vec::new(), blobs, ready(Ok(())))
            .await
    }

    /// Stores contents and takes the job's reference on them and on `also`, all at the same time: one wait for the disk.
    /// What `also` names need be there only when `meanwhile` has ended, which runs beside. Gives the contents' names, in
    /// order. What has begun goes on to its end when this is dropped, and an erased job leaves nothing behind.
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
    ///
    /// # Errors
    /// As [`BlobStore::keep`].
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

    /// As [`BlobStore::keep_named`], where `found` was stored for other jobs: it is made young whatever its age, so that an
    /// erasure of those which began before leaves it. In a place that cannot do so without the bytes (S3), a blob can go that
    /// is found in the time between the erasure's last look at references and its deletes.
    ///
    /// # Errors
    /// As [`BlobStore::keep`]; [`StoreError::Missing`] for what an erasure was quicker with.
    pub async fn keep_found(
        &self,
        key: &JobKey,
        contents: Vec<Named>,
        found: &[(BlobKind, Digest)],
    ) -> Result<(), StoreError> {
        self.keep_whose(key, contents, (found, true), ready(Ok(())))
            .await
    }

    /// `is_others`: what the job also relies on was stored for other jobs.
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

    /// All of a keep, to its end.
    async fn keep_all(
        &self,
        keep: &Keep<'_>,
        meanwhile: impl Future<Output = Result<(), StoreError>> + Send,
    ) -> Result<(), StoreError> {
        let kept = self.put_and_rely(keep, meanwhile).await?;
        let (is_erased, kept) = match kept {
            Ok(is_erased) => (is_erased, Ok(())),
            // Also after a failure: a part of it may be there.
            Err(error) => (None, Err(error)),
        };
        match self.still_wanted(keep.key, keep.named, is_erased).await {
            Err(StoreError::JobErased) => Err(StoreError::JobErased),
            wanted => kept.and(wanted),
        }
    }

    /// Ends only when everything that it began has ended, also after a failure. Gives whether the job was erased, where that
    /// was looked at after the last write. The outer error is of before the first.
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
                // What lies there already needs no writing. What else the job relies on is not asked for yet.
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

    /// What a place that can do so is to do at one go. None where it cannot, where it would wait long, where something may be
    /// refused, which is said of one blob, and where the job relies on more, which need be there only later.
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

    /// Has the place do it at one go; none for an erased job, of which nothing was written.
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
            Err(BackendError::Full) => return Err(StoreError::Full { bytes, free: 0 }),
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

    /// Stores and references at the same time, one call of the place each, then looks.
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

    /// Makes sure that what was written is still there, and that what else the job relies on is. Gives whether the job was
    /// erased, where that was looked at after the last write.
    async fn settled(&self, keep: &Keep<'_>, placed: Placed) -> Result<Option<bool>, StoreError> {
        let (key, contents, named) = (keep.key, keep.contents, keep.named);
        let Placed { look, taken } = placed;
        match self.confirm(keep, &look, taken).await {
            // A collection that had begun before took it just now; from here on it is referenced.
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

    /// Stores contents where a look found what it did.
    async fn put_all(&self, contents: &[Named], there: &Look) -> Result<(), StoreError> {
        let puts = contents.iter().zip(&there.blobs);
        let puts = puts.map(|((kind, _, content), found)| {
            let there = found.entry.as_ref();
            self.put_over(*kind, &found.name, there, content.clone())
        });
        join_all(puts).await.into_iter().collect()
    }

    /// One look at blobs and at the job's tombstone, in whatever order the place answers: what was put before it counts.
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

    /// An erasure that came while the blobs were put may have missed them: it is done over. Whoever comes last of the two,
    /// this look or the tombstone, sees the other's work.
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
        // Once more, and past the byte cap: the erasure may have let go of the list before the last of its blobs landed.
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

    /// Writes down that the job relies on these blobs, there or not; durable when this returns. Gives the place's time; none
    /// where no list is there any more that would tell it.
    async fn rely(
        &self,
        tenant: &TenantId,
        job: &JobId,
        blobs: &[(BlobKind, Digest)],
    ) -> Result<Option<UnixMillis>, StoreError> {
        let mut taken = None;
        for part in blobs.chunks(REFERENCES_MAX) {
            let (name, content) = self.list_of(tenant, job, part);
            // The list just written says what time it is by the place's clock.
            let time = self.write(&name, content).await?;
            taken = taken.max(time);
        }
        Ok(taken)
    }

    /// Makes sure that blobs which were relied on at `taken` are there and not about to be collected; at an unknown time every
    /// one of them counts as old, and others' always, which may be about to be erased with their jobs. Gives whether the look
    /// found the job erased; none when something was written since.
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
        // All of them end, whatever becomes of one: a write that is dropped half-way may land later.
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
        // The place can't make it younger without its bytes: it is written again as it is.
        let content = match backend.get(name, u64::MAX).await {
            // Whoever has the content puts it again.
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
        self.release_lists(&lists).await
    }

    /// As [`BlobStore::release`], of what [`BlobStore::holders`] has seen and nothing that came since: many jobs for one
    /// listing, which at some places is as long as all that they store.
    ///
    /// # Errors
    /// The place's failure; letting go again finishes it.
    pub async fn release_holder(&self, holder: &Holder) -> Result<(), StoreError> {
        self.release_lists(&holder.lists).await
    }

    async fn release_lists(&self, lists: &[Name]) -> Result<(), StoreError> {
        for list in lists {
            self.inner.backend.delete(list).await?;
        }
        Ok(())
    }

    /// The jobs of a tenant that hold references.
    ///
    /// # Errors
    /// The place's failure.
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
