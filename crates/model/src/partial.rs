//! A file that is being written, under a name of its own, until it is whole and takes the place of another. One process writes it
//! at a time: in pods every process has the id 1, so that no name follows from it, and one by chance would be left behind for
//! good by every process that is killed meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file, locked for as long as this lives. Unless it is [named](Partial::name) it is gone with this.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// An empty file here, in a folder that is made where it is missing. What a process that was killed has left is written over.
    ///
    /// # Errors
    /// When another process has it, or the place's failure.
    pub(crate) fn begin(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path)?;
        file.try_lock()
            .map_err(|error| io::Error::other(error.to_string()))?;
        // Whoever had the lock may have finished, and renamed this very file, since it was opened.
        if !is_named(&file, &path)? {
            return Err(io::Error::other("another process has just written it"));
        }
        file.set_len(0)?;
        Ok(Self { path, file })
    }

    /// What to write to.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name.
    pub(crate) fn name(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }

    /// Removes it, since it takes room. Once it is named its old name is gone already, or another process's, which is about to
    /// find out and does without.
    pub(crate) fn discard(&self) {
        if is_named(&self.file, &self.path).unwrap_or(false) {
            // Where it cannot be removed, the next start writes over it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Whether this is the file of that name.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let (ours, named) = (file.metadata()?, fs::metadata(path)?);
    Ok((ours.dev(), ours.ino()) == (named.dev(), named.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_not_finished_is_gone_and_one_writes_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, whole) = (folder.path().join("a/x.partial"), folder.path().join("x"));
        let first = Partial::begin(partial.clone()).unwrap();
        first.file().write_all(b"half").unwrap();
        assert!(Partial::begin(partial.clone()).is_err(), "another has it");
        drop(first);
        assert!(!partial.exists());
        // As who is killed leaves it.
        fs::write(&partial, b"longer than what comes").unwrap();
        let second = Partial::begin(partial.clone()).unwrap();
        second.file().write_all(b"whole").unwrap();
        second.name(&whole).unwrap();
        // The name is another's now, and stays.
        fs::write(&partial, b"").unwrap();
        drop(second);
        assert_eq!(fs::read(&whole).unwrap(), b"whole");
        assert!(partial.exists());
    }
}
