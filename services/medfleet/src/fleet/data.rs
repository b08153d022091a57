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
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::client::AddressFile;

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
    /// Another fleet runs on it, or it cannot be written.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root)
            .with_context(|| format!("cannot make the data folder {}", root.display()))?;
        // Absolute, so that clients in other folders find what the address file names.
        let root =
            fs::canonicalize(root).with_context(|| format!("cannot open {}", root.display()))?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make {} private", root.display()))?;
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another fleet runs on the data folder {}: stop it, or choose another folder with --data DIR",
                root.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
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

    /// A subfolder, made if it is not there.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
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

    #[test]
    fn secrets_are_made_once_and_private() {
        let (_folder, data) = open();
        let (path, text, made) = data.secret("token", || "abc".to_owned()).expect("is made");
        assert_eq!((text.as_str(), made), ("abc", true));
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
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
