//! Several files in one call of a blocking thread. To wake a thread and wait for it costs more than to write a small file, and a
//! folder that gets several of the files is synced once.
//!
//! When the batch returns, every file is synced and renamed into place, and every folder on its way to the root is synced, as after
//! a single write. If it breaks off half-way, each file is there whole or not at all.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use super::{Batch, Landed, Name, Root};

impl Root {
    /// Writes the contents in their order, then the list. `None`, and nothing is written, where [`Batch::unless`] is there already.
    pub(super) fn write_batch(&self, batch: Batch) -> io::Result<Option<Landed>> {
        let Batch {
            contents,
            list: (list, listing),
            unless,
        } = batch;
        if self.head(unless.clone())?.is_some() {
            return Ok(None);
        }
        let mut placed = Vec::with_capacity(contents.len() + 1);
        let mut written_bytes = 0;
        for (name, bytes) in &contents {
            let target = self.file(name);
            if !self.renew(name, bytes)? {
                self.place_file(&target, bytes)?;
                written_bytes += bytes.len() as u64;
            }
            placed.push(target);
        }
        let target = self.file(&list);
        let listed = self.place_file(&target, &listing)?;
        placed.push(target);
        written_bytes += listing.len() as u64;
        // Also the folders of files that were there already: the process that put them may not have synced these yet, or have died
        // before.
        self.sync_ways(&placed)?;
        let contents = contents.into_iter().map(|(name, _)| self.head(name));
        Ok(Some(Landed {
            listed,
            contents: contents.collect::<io::Result<_>>()?,
            // Looked at after the last write: an erasure that put its tombstone later sees the files, one that put it earlier is
            // seen here.
            unless: self.head(unless)?,
            written_bytes,
        }))
    }

    /// Writes several files.
    pub(super) fn write_all(&self, objects: &[(Name, Bytes)]) -> io::Result<()> {
        let mut placed = Vec::with_capacity(objects.len());
        for (name, bytes) in objects {
            let target = self.file(name);
            self.place_file(&target, bytes)?;
            placed.push(target);
        }
        self.sync_ways(&placed)
    }

    /// Makes the ways from the root to several files durable.
    fn sync_ways(&self, placed: &[PathBuf]) -> io::Result<()> {
        let mut synced = HashSet::new();
        for target in placed {
            if synced.insert(target.parent()) {
                self.sync_from(target)?;
            }
        }
        Ok(())
    }

    /// The contents of several files, or the length of one that is longer than the limit.
    pub(super) fn read_all(
        &self,
        names: &[Name],
        bytes_max: u64,
    ) -> io::Result<Result<Vec<Option<Bytes>>, u64>> {
        let read = names.iter().map(|name| self.read(name, bytes_max));
        let read = read.collect::<io::Result<Vec<_>>>()?;
        Ok(read.into_iter().map(Option::transpose).collect())
    }

    /// Makes a file young if it has exactly this content. False for a file that is missing or damaged, which is to be put again.
    fn renew(&self, name: &Name, bytes: &Bytes) -> io::Result<bool> {
        let there = self.read(name, bytes.len() as u64)?;
        let is_same = there.is_some_and(|there| there.is_ok_and(|there| there == *bytes));
        Ok(is_same && self.refresh(name)?)
    }
}
