//! The data folder of a local fleet: one fleet at a time, secrets readable by their owner only, every file whole or absent.
//!
//! ```text
//! lock           held while a fleet runs
//! address.json   where clients connect; there only while the fleet accepts jobs
//! token          bearer token of the local tenant, generated on the first start
//! tokens.toml    hashes of all tokens that are accepted, with their tenants
//! key            the fleet key that names blobs and jobs
//! blobs/         the blob store
//! nats/          nats-server's configuration, log and streams
//! digests/       digests of model files that were read
//! ```
//!
//! A folder that was there before us keeps its permissions: only what we make in it is private.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::client::AddressFile;

/// Held while a fleet runs; tells a fleet's folder from any other.
const LOCK: &str = "lock";
/// All that a fleet makes in its folder, and all that is ever made private there.
const OURS: [&str; 8] = [
    LOCK,
    AddressFile::NAME,
    "token",
    "tokens.toml",
    "key",
    "blobs",
    "nats",
    "digests",
];
/// The owner's own permissions.
const OWNER: u32 = 0o700;
/// Permissions of everybody else.
const OTHERS: u32 = 0o077;

/// An open data folder; no other fleet can open it until this is dropped, and the system frees it if we die.
#[derive(Debug)]
pub(crate) struct Data {
    root: PathBuf,
    _lock: File,
}

impl Data {
    /// Opens the folder, makes it if it is not there, and takes its lock.
    ///
    /// # Errors
    /// Another fleet runs on it, it cannot be written, or it was there, open to others and used for something else.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let made = make(root)
            .with_context(|| format!("cannot make the data folder {}", root.display()))?;
        // Absolute, so that clients in other folders find what the address file names.
        let root =
            fs::canonicalize(root).with_context(|| format!("cannot open {}", root.display()))?;
        if !made {
            check_found(&root)?;
        }
        let lock = take_lock(&root)?;
        for path in OURS.map(|name| root.join(name)) {
            close(&path).with_context(|| format!("cannot make {} private", path.display()))?;
        }
        let data = Self { root, _lock: lock };
        // A fleet that was killed leaves its address behind.
        data.remove_address(&data.address_file())?;
        Ok(data)
    }

    /// The folder itself, absolute.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the address file goes.
    pub(crate) fn address_file(&self) -> PathBuf {
        self.root.join(AddressFile::NAME)
    }

    /// A subfolder, made if it is not there, for its owner only.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        let made = DirBuilder::new().recursive(true).mode(OWNER).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// The text of a private file, without its line end; made by `make` on the first start. Says whether it was made now.
    pub(crate) fn secret(
        &self,
        name: &str,
        make: impl FnOnce() -> String,
    ) -> Result<(PathBuf, String, bool)> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok((path, text.trim_end().to_owned(), false)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = make();
                write_whole(&path, format!("{text}\n").as_bytes())?;
                Ok((path, text, true))
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Says where clients connect. Only now do waiting scripts and `submit` find the fleet.
    pub(crate) fn write_address(&self, path: &Path, address: &AddressFile) -> Result<()> {
        let mut json = serde_json::to_vec(address).context("cannot write the address as JSON")?;
        json.push(b'\n');
        write_whole(path, &json)
    }

    /// Takes an address file away: nothing answers there any more.
    pub(crate) fn remove_address(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Makes the folder for its owner only, and its parents as any other folder. False when it was there.
fn make(root: &Path) -> std::io::Result<bool> {
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(OWNER).create(root) {
        Ok(()) => Ok(true),
        Err(_) if root.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Refuses a folder that others can look into and that holds something, unless a fleet of ours lived there before: such a folder
/// was probably named by mistake (`--data /tmp`), and neither may our secrets lie among other people's files, nor may this
/// command make those files private.
fn check_found(root: &Path) -> Result<()> {
    let unreadable = || format!("cannot open {}", root.display());
    let metadata = fs::metadata(root).with_context(unreadable)?;
    if metadata.mode() & OTHERS == 0 || has_our_lock(root)? {
        return Ok(());
    }
    let mut entries = fs::read_dir(root).with_context(unreadable)?;
    if entries.next().is_none() {
        return Ok(());
    }
    bail!(
        "{0} is open to others and holds what is not a fleet's: choose a folder that is not there yet or is empty, \
         such as --data {0}/medfleet, or, if nobody else needs it, close this one first: chmod 700 {0}",
        root.display()
    )
}

/// Whether a fleet that ran as us lived here. In a folder that all can write, anybody can put a file of that name.
fn has_our_lock(root: &Path) -> Result<bool> {
    let Ok(lock) = fs::symlink_metadata(root.join(LOCK)) else {
        return Ok(false);
    };
    // The owner of an unnamed temporary file tells which user we are on this file system.
    let ours = tempfile::tempfile_in(root).and_then(|file| file.metadata());
    let ours = ours.with_context(|| format!("cannot write to {}", root.display()))?;
    Ok(lock.is_file() && lock.uid() == ours.uid())
}

fn take_lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path);
    let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "another fleet runs on the data folder {}: stop it, or choose another folder with --data DIR",
            root.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Takes a file or folder away from others. A link stays as it is: what it leads to is not ours.
fn close(path: &Path) -> std::io::Result<()> {
    let mode = match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() || found.is_dir() => found.mode(),
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mode & OTHERS == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & OWNER))
}

/// Writes a file that only its owner can read, whole or not at all: beside its place, synced, then renamed.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_added_extension(format!("{}.new", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Data) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = Data::open(&folder.path().join("data")).expect("opens");
        (folder, data)
    }

    #[test]
    fn a_second_fleet_is_refused_until_the_first_has_gone() {
        let (folder, data) = open();
        let path = folder.path().join("data");
        let error = Data::open(&path).expect_err("it is in use");
        assert!(error.to_string().contains("another fleet runs"), "{error}");
        drop(data);
        Data::open(&path).expect("free again");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("is there").mode() & 0o777
    }

    /// A folder that others can look into, with these files of theirs.
    fn found(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), open).expect("is opened");
        for name in files {
            fs::write(folder.path().join(name), "theirs").expect("a file");
        }
        folder
    }

    #[test]
    fn what_is_made_is_private() {
        let (_folder, data) = open();
        assert_eq!(mode(data.root()), 0o700);
        assert_eq!(mode(&data.root().join(LOCK)), 0o600);
        assert_eq!(mode(&data.folder("blobs").expect("is made")), 0o700);
    }

    #[test]
    fn a_folder_that_others_use_is_refused_and_stays_as_it_is() {
        let folder = found(&["theirs"]);
        let error = Data::open(folder.path()).expect_err("it is not ours");
        assert!(error.to_string().contains("--data"), "{error}");
        assert_eq!(mode(folder.path()), 0o755);
        let names = fs::read_dir(folder.path()).expect("is listed").count();
        assert_eq!(names, 1, "nothing was added");
    }

    #[test]
    fn a_link_is_no_lock_of_ours() {
        let folder = found(&["theirs"]);
        let link = folder.path().join(LOCK);
        std::os::unix::fs::symlink(folder.path().join("theirs"), link).expect("a link");
        Data::open(folder.path()).expect_err("it is not ours");
    }

    #[test]
    fn an_empty_folder_is_taken_as_it_is_and_found_again() {
        let folder = found(&[]);
        for _ in 0..2 {
            let data = Data::open(folder.path()).expect("opens");
            assert_eq!(mode(data.root()), 0o755);
            assert_eq!(mode(&data.folder("nats").expect("is made")), 0o700);
        }
    }

    #[test]
    fn a_private_folder_may_hold_other_things() {
        let folder = found(&["theirs"]);
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(folder.path(), private).expect("is closed");
        Data::open(folder.path()).expect("opens");
    }

    #[test]
    fn what_an_earlier_fleet_left_open_is_closed() {
        let folder = found(&[LOCK, "key", "theirs"]);
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("blobs")).expect("a folder");
        let open = || fs::Permissions::from_mode(0o755);
        fs::set_permissions(path("blobs"), open()).expect("is opened");
        fs::set_permissions(path("key"), open()).expect("is opened");
        fs::set_permissions(path("theirs"), open()).expect("is opened");
        let _data = Data::open(folder.path()).expect("opens");
        assert_eq!(mode(&path("blobs")), 0o700);
        assert_eq!(mode(&path("key")), 0o700);
        assert_eq!(mode(&path("theirs")), 0o755);
    }

    #[test]
    fn secrets_are_made_once_and_private() {
        let (_folder, data) = open();
        let (path, text, made) = data.secret("token", || "abc".to_owned()).expect("is made");
        assert_eq!((text.as_str(), made), ("abc", true));
        assert_eq!(mode(&path), 0o600);
        let (_, text, made) = data
            .secret("token", || "other".to_owned())
            .expect("is read");
        assert_eq!((text.as_str(), made), ("abc", false));
    }

    #[test]
    fn the_address_comes_and_goes_whole() {
        let (_folder, data) = open();
        let address = AddressFile {
            server: "http://127.0.0.1:1".into(),
            token_file: "/t".into(),
        };
        let path = data.address_file();
        data.write_address(&path, &address).expect("is written");
        assert_eq!(
            AddressFile::read(data.root()).expect("reads"),
            Some(address)
        );
        data.remove_address(&path).expect("is removed");
        data.remove_address(&path).expect("twice is fine");
        assert_eq!(AddressFile::read(data.root()).expect("reads"), None);
    }
}
