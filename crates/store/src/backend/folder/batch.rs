//! Several files in one turn of a thread. Waking a thread and waiting for it costs more than writing a small file, and a folder
//! into which several go is synced once.
//!
//! Nothing is promised before the batch has returned, and by then every file is synced, renamed into place, and its way to the
//! root synced, as after a single write. Whatever ends it half-way leaves whole files or none.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;

use super::{Batch, Landed, Name, Root};

impl Root {
    /// Files are written in their order, the list last. None where what speaks against it is there to begin with.
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
        let mut synced = HashSet::new();
        // Of what was there too: whoever has renamed it there may not have come to this yet, or died before.
        for target in &placed {
            if synced.insert(target.parent()) {
                self.sync_from(target)?;
            }
        }
        let contents = contents.into_iter().map(|(name, _)| self.head(name));
        Ok(Some(Landed {
            listed,
            contents: contents.collect::<io::Result<_>>()?,
            // After the last write: of an erasure and this, whoever comes last sees the other's work.
            unless: self.head(unless)?,
            written_bytes,
        }))
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

    /// Makes a file young if it has this very content: what was damaged since it was put is put again.
    fn renew(&self, name: &Name, bytes: &Bytes) -> io::Result<bool> {
        let there = self.read(name, bytes.len() as u64)?;
        let is_same = there.is_some_and(|there| there.is_ok_and(|there| there == *bytes));
        Ok(is_same && self.refresh(name)?)
    }
}
