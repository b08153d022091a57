//! What a fleet leaves behind on disks, for tests that look for what must not be there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Fleet;

impl Fleet {
    /// Every byte that nats-server keeps of streams and buckets, and its log.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn queue_files(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let nats = self.nats.lock().await;
        let mut files = files_below(&nats.store())?;
        files.push(nats.log());
        // What the server has removed in the meantime is not kept.
        let read = |path: PathBuf| fs::read(&path).ok().map(|bytes| (path, bytes));
        Ok(files.into_iter().filter_map(read).collect())
    }

    /// The blobs of a kind, all of a tenant's.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn blobs_of(&self, tenant: &str, kind: &str) -> Result<Vec<Vec<u8>>> {
        let files = files_below(&self.blobs().join(tenant).join(kind))?;
        let read =
            |path: PathBuf| fs::read(&path).with_context(|| format!("read {}", path.display()));
        files.into_iter().map(read).collect()
    }
}

pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    files.sort();
    Ok(files)
}
