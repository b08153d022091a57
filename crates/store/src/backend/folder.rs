//! A folder on a local disk. A put survives a power cut: the bytes go to a temporary file, which is synced, renamed into
//! place, and the folder is synced. Several processes may share the folder.

mod batch;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use medfleet_core::UnixMillis;

use super::{AtOnce, Backend, BackendError, Batch, Entry, Landed, Name, Version, add_used};

/// Where files wait until they are whole. No name begins with a full stop.
const TEMPORARY: &str = ".tmp";
/// Says whose the folder is.
const OWNER: &str = ".store";
/// More than any text in it that is ours.
const OWNER_BYTES_MAX: u64 = 1_024;
/// Only this user reads and writes: blobs hold patient data.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// How often a rename is tried against deletes that remove the emptied folder.
const PLACE_ATTEMPTS: u32 = 9;
/// Folders that are remembered: those of tenants and kinds stay, those of jobs come and go.
const ENTERED_MAX: usize = 4_096;
/// How old a folder is before it is remembered, far above the tick of any clock of a file system.
const ENTERED_AGE: Duration = Duration::from_secs(1);
/// Temporary files of crashed writers are removed when they are this old and the folder is opened, or sooner by reclaiming.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// Blobs in a folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: Arc<Root>,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    next: AtomicU64,
    entered: Entered,
}

impl Folder {
    /// Opens or creates the folder and removes what crashed writers left.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, BackendError> {
        let root = Root {
            path: path.into(),
            next: AtomicU64::new(0),
            entered: Entered::default(),
        };
        let open = || {
            create_folder(&root.path.join(TEMPORARY))?;
            let before = machine_time().checked_sub(LEFTOVER_AGE);
            root.remove_leftovers(before.map_or(UnixMillis(0), unix_millis))
        };
        open().map_err(|error| failed("open", error))?;
        Ok(Self {
            root: Arc::new(root),
        })
    }

    /// Whether a folder looks as one does that nothing was ever stored in: it is not there, or neither a note of its owner nor
    /// anything of ours is in it. So does the place where a disk is not mounted. Makes nothing.
    pub fn is_untouched(path: &Path) -> Result<bool, BackendError> {
        let look = || {
            if found(fs::metadata(path.join(OWNER)))?.is_some() {
                return Ok(false);
            }
            let Some(children) = found(fs::read_dir(path))? else {
                return Ok(true);
            };
            for child in children {
                let name = child?.file_name();
                if name
                    .to_str()
                    .is_some_and(|name| name.parse::<Name>().is_ok())
                {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        look().map_err(|error| failed("look at", error))
    }

    /// Whether the folder is this owner's, told by a text that only the owner can make. A folder that is nobody's yet, or whose
    /// note an operator has left empty, becomes this owner's.
    pub(crate) fn belongs_to(&self, owner: &str) -> Result<bool, BackendError> {
        let own = || {
            let path = self.root.path.join(OWNER);
            if found(fs::metadata(&path))?.is_none_or(|note| note.len() == 0) {
                self.root.write_to(&path, owner.as_bytes())?;
                let folder = self.root.path.display();
                tracing::info!(%folder, "the blob store's folder was nobody's, and is this fleet's now");
            }
            // Read back: of two owners that came at the same time, the later one has it.
            let mut text = Vec::new();
            File::open(&path)?
                .take(OWNER_BYTES_MAX)
                .read_to_end(&mut text)?;
            Ok(text == owner.as_bytes())
        };
        own().map_err(|error| failed("own", error))
    }

    /// Runs file work off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Root) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BackendError> {
        let root = Arc::clone(&self.root);
        match tokio::task::spawn_blocking(move || work(&root)).await {
            Ok(result) => result.map_err(|error| failed(operation, error)),
            Err(error) => Err(BackendError::failed(operation, true, error)),
        }
    }
}

#[async_trait]
impl Backend for Folder {
    async fn put(&self, name: &Name, bytes: Bytes) -> Result<(), BackendError> {
        self.put_timed(name, bytes).await.map(drop)
    }

    async fn put_timed(
        &self,
        name: &Name,
        bytes: Bytes,
    ) -> Result<Option<UnixMillis>, BackendError> {
        let name = name.clone();
        let write = move |root: &Root| root.write_to(&root.file(&name), &bytes).map(Some);
        self.blocking("write", write).await
    }

    async fn put_all(&self, objects: Vec<(Name, Bytes)>) -> Result<(), BackendError> {
        self.blocking("write", move |root| root.write_all(&objects))
            .await
    }

    async fn heads(&self, names: &[Name]) -> Result<Vec<Option<Entry>>, BackendError> {
        let names = names.to_vec();
        let look = move |root: &Root| names.into_iter().map(|name| root.head(name)).collect();
        self.blocking("look up", look).await
    }

    async fn get(&self, name: &Name, bytes_max: u64) -> Result<Option<Bytes>, BackendError> {
        let name = name.clone();
        let found = self
            .blocking("read", move |root| root.read(&name, bytes_max))
            .await?;
        match found {
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(bytes)) => Err(BackendError::TooLarge { bytes, bytes_max }),
            None => Ok(None),
        }
    }

    async fn get_all(
        &self,
        names: &[Name],
        bytes_max: u64,
    ) -> Result<Vec<Option<Bytes>>, BackendError> {
        let names = names.to_vec();
        let read = move |root: &Root| root.read_all(&names, bytes_max);
        let read = self.blocking("read", read).await?;
        read.map_err(|bytes| BackendError::TooLarge { bytes, bytes_max })
    }

    async fn head(&self, name: &Name) -> Result<Option<Entry>, BackendError> {
        let name = name.clone();
        self.blocking("look up", move |root| root.head(name)).await
    }

    async fn delete(&self, name: &Name) -> Result<bool, BackendError> {
        let name = name.clone();
        self.blocking("delete", move |root| root.delete(&name))
            .await
    }

    async fn version(&self, name: &Name) -> Result<Option<Version>, BackendError> {
        let name = name.clone();
        self.blocking("look up", move |root| root.version(&name))
            .await
    }

    /// No file system removes a file on a condition: what remains is the time between two calls, microseconds, in which a put
    /// could rename its file into this place.
    async fn delete_version(&self, name: &Name, version: &Version) -> Result<bool, BackendError> {
        let (name, version) = (name.clone(), version.clone());
        self.blocking("delete", move |root| {
            if root.version(&name)? == Some(version) {
                root.delete(&name)
            } else {
                Ok(false)
            }
        })
        .await
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, BackendError>> {
        let (folder, prefix) = (self.clone(), prefix.to_owned());
        let entries = async move {
            let listed = folder
                .blocking("list", move |root| root.list(&prefix))
                .await;
            match listed {
                Ok(entries) => stream::iter(entries).map(Ok).boxed(),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        stream::once(entries).flatten().boxed()
    }

    fn refreshes(&self) -> bool {
        true
    }

    async fn refresh(&self, name: &Name) -> Result<bool, BackendError> {
        let name = name.clone();
        self.blocking("refresh", move |root| root.refresh(&name))
            .await
    }

    /// What crashed writers left is no blob, and holds what one would: an erasure does not find it.
    async fn reclaim(&self, before: UnixMillis) -> Result<u64, BackendError> {
        self.blocking("reclaim", move |root| root.remove_leftovers(before))
            .await
    }

    fn at_once(&self) -> Option<&dyn AtOnce> {
        Some(self)
    }

    async fn used_by_owner(&self) -> Result<BTreeMap<String, u64>, BackendError> {
        self.blocking("measure", Root::used_by_owner).await
    }
}

#[async_trait]
impl AtOnce for Folder {
    async fn put_batch(&self, batch: Batch) -> Result<Option<Landed>, BackendError> {
        self.blocking("write", move |root| root.write_batch(batch))
            .await
    }
}

impl Root {
    fn file(&self, name: &Name) -> PathBuf {
        self.path.join(name.as_str())
    }

    fn head(&self, name: Name) -> io::Result<Option<Entry>> {
        let metadata = found(fs::metadata(self.file(&name)))?;
        metadata.map(|metadata| entry(name, &metadata)).transpose()
    }

    /// A put brings another file, and a refresh another time.
    fn version(&self, name: &Name) -> io::Result<Option<Version>> {
        let metadata = found(fs::metadata(self.file(name)))?;
        let version = metadata.map(|metadata| {
            let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
            let (number, bytes) = (metadata.ino(), metadata.len());
            Version::new(format!("{number} {seconds}.{nanos:09} {bytes}"))
        });
        Ok(version)
    }

    fn refresh(&self, name: &Name) -> io::Result<bool> {
        let file = found(OpenOptions::new().write(true).open(self.file(name)))?;
        let Some(file) = file else { return Ok(false) };
        file.set_modified(machine_time())?;
        Ok(true)
    }

    fn delete(&self, name: &Name) -> io::Result<bool> {
        let file = self.file(name);
        let Some(()) = found(fs::remove_file(&file))? else {
            return Ok(false);
        };
        self.tidy_after(&file)?;
        Ok(true)
    }

    /// Gives the file's time.
    fn write_to(&self, target: &Path, bytes: &[u8]) -> io::Result<UnixMillis> {
        let time = self.place_file(target, bytes)?;
        self.sync_from(target)?;
        Ok(time)
    }

    /// A whole, synced file in its place, whose way there is not durable yet. Gives its time, which the rename leaves as it is.
    fn place_file(&self, target: &Path, bytes: &[u8]) -> io::Result<UnixMillis> {
        let (mut file, temporary) = self.temporary()?;
        let placed = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| modified(&file.metadata()?))
            .and_then(|time| self.place(&temporary, target).map(|()| time));
        if placed.is_err() {
            // The write's own error matters; a leftover is removed when it is old.
            drop(fs::remove_file(&temporary));
        }
        placed
    }

    /// Makes the way from the root to a file durable. Up to a folder that is known to be: one just made, by this process
    /// or another, may not be yet.
    fn sync_from(&self, target: &Path) -> io::Result<()> {
        let mut unknown = Vec::new();
        for folder in target.ancestors().skip(1) {
            let open = File::open(folder)?;
            let identity = identity(&open.metadata()?);
            open.sync_all()?;
            if folder == self.path || self.entered.has(folder, identity) {
                break;
            }
            unknown.push((folder.to_owned(), identity));
        }
        self.entered.add(unknown, machine_time());
        Ok(())
    }

    /// Renames into a folder that may not be there yet, or that a concurrent delete may just have removed for being empty.
    fn place(&self, temporary: &Path, target: &Path) -> io::Result<()> {
        let folder = target.parent().unwrap_or(&self.path);
        for _ in 1..PLACE_ATTEMPTS {
            match fs::rename(temporary, target) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                placed => return placed,
            }
            // The way to it is synced with the file.
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        fs::rename(temporary, target)
    }

    /// After a delete: an erasure must not come back after a power cut, and an empty folder is not kept.
    fn tidy_after(&self, file: &Path) -> io::Result<()> {
        let folder = file.parent().unwrap_or(&self.path);
        match File::open(folder) {
            Ok(open) => open.sync_all()?,
            // A concurrent delete took the empty folder away, and synced that.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        if folder != self.path && fs::remove_dir(folder).is_ok() {
            return sync_folder_of(folder);
        }
        Ok(())
    }

    /// A new file that no other process has, whatever its process id.
    fn temporary(&self) -> io::Result<(File, PathBuf)> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{number}", std::process::id());
            let path = self.path.join(TEMPORARY).join(name);
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&path)
            {
                Ok(file) => return Ok((file, path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The content, or its length when that is more than the limit.
    fn read(&self, name: &Name, bytes_max: u64) -> io::Result<Option<Result<Bytes, u64>>> {
        let Some(file) = found(File::open(self.file(name)))? else {
            return Ok(None);
        };
        let length = file.metadata()?.len();
        if length > bytes_max {
            return Ok(Some(Err(length)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
        // No more than that: its end need not be looked for.
        file.take(length).read_to_end(&mut bytes)?;
        Ok(Some(Ok(bytes.into())))
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.walk(prefix, |name, metadata| {
            entries.push(entry(name, metadata)?);
            Ok(())
        })?;
        Ok(entries)
    }

    /// Summed up on the way: there may be millions of files.
    fn used_by_owner(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut used = BTreeMap::new();
        self.walk("", |name, metadata| {
            add_used(&mut used, &name, metadata.len());
            Ok(())
        })?;
        Ok(used)
    }

    fn walk(
        &self,
        prefix: &str,
        mut each: impl FnMut(Name, &fs::Metadata) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut folders = vec![prefix.to_owned()];
        while let Some(folder) = folders.pop() {
            let Some(children) = found(fs::read_dir(self.path.join(&folder)))? else {
                continue;
            };
            for child in children {
                let child = child?;
                // Names that are not ours (temporary files, a stranger's) are left alone.
                let Some(segment) = child.file_name().to_str().map(str::to_owned) else {
                    continue;
                };
                let text = if folder.is_empty() {
                    segment
                } else {
                    format!("{folder}/{segment}")
                };
                let Ok(name) = text.parse::<Name>() else {
                    continue;
                };
                let Some(metadata) = found(child.metadata())? else {
                    continue;
                };
                if metadata.is_dir() {
                    folders.push(text);
                } else {
                    each(name, &metadata)?;
                }
            }
        }
        Ok(())
    }

    /// Removes temporary files that were written last before `before`; how many. No write takes as long as they are old.
    fn remove_leftovers(&self, before: UnixMillis) -> io::Result<u64> {
        let folder = self.path.join(TEMPORARY);
        let mut removed = 0;
        for child in fs::read_dir(&folder)? {
            let child = child?;
            let Some(metadata) = found(child.metadata())? else {
                continue;
            };
            if !metadata.is_file() || modified(&metadata)? >= before {
                continue;
            }
            // Another process may remove the same file; then it is gone all the same.
            removed += u64::from(found(fs::remove_file(child.path()))?.is_some());
        }
        if removed > 0 {
            File::open(folder)?.sync_all()?;
        }
        Ok(removed)
    }
}

/// Files carry the machine's times, so their age is measured by the machine's clock.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with file times only, never used in a decision about jobs"
)]
fn machine_time() -> SystemTime {
    SystemTime::now()
}

fn entry(name: Name, metadata: &fs::Metadata) -> io::Result<Entry> {
    Ok(Entry {
        name,
        bytes: metadata.len(),
        modified: modified(metadata)?,
    })
}

fn modified(metadata: &fs::Metadata) -> io::Result<UnixMillis> {
    Ok(unix_millis(metadata.modified()?))
}

/// A time before 1970 counts as 1970.
fn unix_millis(time: SystemTime) -> UnixMillis {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// "Not there" is an answer, not an error.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Folders whose entries in their parents, up to the root, this process has seen synced.
#[derive(Debug, Default)]
struct Entered(Mutex<HashMap<PathBuf, Identity>>);

/// Tells a folder from another that took its place: its inode number, which may be used again, and its birth time, which may come
/// from a coarse clock.
type Identity = (u64, Option<SystemTime>);

impl Entered {
    fn has(&self, folder: &Path, identity: Identity) -> bool {
        let entered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entered.get(folder) == Some(&identity)
    }

    /// Those that are not too young to be told from what may come in their place.
    fn add(&self, mut folders: Vec<(PathBuf, Identity)>, now: SystemTime) {
        let is_told_apart = |made: Option<SystemTime>| {
            let age = made.and_then(|made| now.duration_since(made).ok());
            age.is_some_and(|age| age > ENTERED_AGE)
        };
        folders.retain(|(_, (_, made))| is_told_apart(*made));
        // Every change is whole, even after a panic elsewhere.
        let mut entered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entered.len() + folders.len() > ENTERED_MAX {
            entered.clear();
        }
        entered.extend(folders);
    }
}

fn identity(folder: &fs::Metadata) -> Identity {
    (folder.ino(), folder.created().ok())
}

/// Creates missing folders, each entered durably in its parent.
fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        create_folder(parent)?;
    }
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Ok(()) => {}
        // Another writer was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    sync_folder_of(path)
}

/// Makes the entry of `path` in its folder durable.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn failed(operation: &'static str, error: io::Error) -> BackendError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BackendError::Full,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::InvalidInput => {
            BackendError::failed(operation, false, error)
        }
        _ => BackendError::failed(operation, true, error),
    }
}

#[cfg(test)]
mod tests;
