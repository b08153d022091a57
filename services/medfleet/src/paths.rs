//! From the paths a person names to the files that are meant: a folder stands for every file in it, an archive too.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use medfleet_imaging::{Archive, Format, Limits, is_dicom_directory, members, sniff};
use tempfile::TempDir;

/// Most files one command takes.
pub(crate) const FILES_MAX: usize = 4096;
/// As much of a file as says what it is: the preamble and the file meta information.
const HEAD_BYTES: u64 = 1024;
/// Deepest nesting of folders that is followed.
const DEPTH_MAX: u32 = 16;

/// The files that `paths` stand for: files as named and in that order, folders with all their files sorted by path.
///
/// Hidden entries of folders are left out, links are followed.
///
/// # Errors
/// A path that is not there, a folder without files, more than [`FILES_MAX`] files.
pub(crate) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let before = found.len();
        collect(path, 0, &mut found)?;
        if found.len() == before {
            bail!(
                "{} holds no files: name a DICOM, PNG, JPEG, TIFF or NIfTI file, or a folder of them",
                path.display()
            );
        }
    }
    Ok(found)
}

/// Whether the file is an archive that can be opened, by its first bytes.
pub(crate) fn is_archive(path: &Path) -> Result<bool> {
    Ok(Archive::of(&head(path)?).is_some())
}

fn head(path: &Path) -> Result<Vec<u8>> {
    let unreadable = || format!("cannot read {}", path.display());
    let file = fs::File::open(path).with_context(unreadable)?;
    let mut head = Vec::new();
    file.take(HEAD_BYTES)
        .read_to_end(&mut head)
        .with_context(unreadable)?;
    Ok(head)
}

/// What a file is, where a medium with a DICOMDIR is told from a folder of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A DICOMDIR.
    Directory,
    /// Any other DICOM file.
    Dicom,
    /// Anything else.
    Other,
}

impl Kind {
    /// Told from its first [`HEAD_BYTES`] bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let head = &bytes[..bytes.len().min(HEAD_BYTES as usize)];
        if is_dicom_directory(head) {
            Self::Directory
        } else if sniff(head) == Ok(Format::Dicom) {
            Self::Dicom
        } else {
            Self::Other
        }
    }
}

/// The kind of a file.
fn kind(path: &Path) -> Result<Kind> {
    Ok(Kind::of(&head(path)?))
}

/// Files to send, with those of archives in a folder of their own that only this user can open and that goes with this.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// In order; the files of an archive stand in its place, in the archive's order.
    pub(crate) files: Vec<PathBuf>,
    /// The name by which a person knows each of them: for a file of an archive, the archive's path and the name in it.
    pub(crate) names: Vec<PathBuf>,
    /// Files left out because they lie beside a DICOMDIR or are one.
    pub(crate) beside: usize,
    _scratch: Scratch,
}

/// The files that `paths` stand for, see [`files`], with the archives among them opened within imaging's limits. That is done on
/// a thread of its own: if this is dropped half-way, what was unpacked is removed, and nothing is written after that.
///
/// # Errors
/// As [`files`], a file that cannot be read, an archive that is refused as a whole (half a study must not be taken for all of
/// it), or that is empty, and more than [`FILES_MAX`] files.
pub(crate) async fn unpacked(paths: Vec<PathBuf>) -> Result<Unpacked> {
    let scratch = Scratch::default();
    let folder = Arc::clone(&scratch.0);
    let opening = tokio::task::spawn_blocking(move || open_archives(files(&paths)?, &folder));
    let (found, beside) = opening.await.context("opening the files broke off")??;
    let (files, names) = found.into_iter().unzip();
    Ok(Unpacked {
        files,
        names,
        beside,
        _scratch: scratch,
    })
}

/// Where the files of archives lie: a folder that goes when this is dropped, also while another thread still writes to it.
#[derive(Debug, Default)]
struct Scratch(Arc<Mutex<Folder>>);

/// A temporary folder, made when the first file comes.
#[derive(Debug, Default)]
enum Folder {
    #[default]
    Unmade,
    Made(TempDir),
    /// It has gone, and is not made again.
    Gone,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that is being written is waited for, so that it goes with the others.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Folder::Gone;
    }
}

/// Writes a file under a number: nothing is ever written under a name that an archive chose.
fn put(folder: &Mutex<Folder>, number: usize, bytes: &[u8]) -> Result<PathBuf> {
    let mut folder = folder.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*folder, Folder::Unmade) {
        let private = fs::Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().permissions(private).tempdir();
        *folder = Folder::Made(made.context("cannot make a temporary folder")?);
    }
    let Folder::Made(made) = &*folder else {
        bail!("nobody waits for the files any more");
    };
    let file = made.path().join(format!("{number:05}"));
    fs::write(&file, bytes).context("cannot write to the temporary folder")?;
    Ok(file)
}

/// A file, and what a person knows it by.
type Found = (PathBuf, PathBuf);

/// The files with those of archives in place of these, and how many were left out beside a DICOMDIR.
fn open_archives(paths: Vec<PathBuf>, folder: &Mutex<Folder>) -> Result<(Vec<Found>, usize)> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        if !is_archive(&path)? {
            files.push((path.clone(), path));
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (before, mut written) = (files.len(), Ok(()));
        let opened = members(&bytes, &Limits::default(), &mut |member| {
            if written.is_ok() {
                let name = match member.name.trim_start_matches('/') {
                    // The only one of a gzip has none.
                    "" => path.clone(),
                    name => path.join(name),
                };
                let file = put(folder, files.len(), &member.bytes);
                written = file.map(|file| files.push((file, name)));
            }
        });
        opened.with_context(|| format!("cannot open {}", path.display()))?;
        written?;
        if files.len() == before {
            bail!(
                "{} holds no files: name an archive of DICOM, PNG, JPEG, TIFF or NIfTI files",
                path.display()
            );
        }
    }
    if files.len() > FILES_MAX {
        bail!("more than {FILES_MAX} files: submit one study at a time");
    }
    let beside = drop_what_lies_beside(&mut files)?;
    Ok((files, beside))
}

/// Where there is a DICOMDIR, keeps the DICOM files alone: the directory lists them, and the viewers and icons that lie beside
/// are no pictures of the patient. Returns how many are left out.
fn drop_what_lies_beside(files: &mut Vec<Found>) -> Result<usize> {
    let kinds = files
        .iter()
        .map(|(path, _)| kind(path))
        .collect::<Result<Vec<_>>>()?;
    if !kinds.contains(&Kind::Directory) {
        return Ok(0);
    }
    let before = files.len();
    let mut kinds = kinds.into_iter();
    files.retain(|_| kinds.next() == Some(Kind::Dicom));
    if files.is_empty() {
        bail!(
            "there is a DICOMDIR, and none of the files that it lists: name the folder that holds them too"
        );
    }
    Ok(before - files.len())
}

fn collect(path: &Path, depth: u32, found: &mut Vec<PathBuf>) -> Result<()> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !metadata.is_dir() {
        if found.len() == FILES_MAX {
            bail!("more than {FILES_MAX} files: submit one study at a time");
        }
        found.push(path.to_path_buf());
        return Ok(());
    }
    if depth == DEPTH_MAX {
        bail!(
            "{} is nested deeper than {DEPTH_MAX} folders: name the folder that holds the images",
            path.display()
        );
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.push(entry.path());
        }
    }
    entries.sort();
    entries
        .iter()
        .try_for_each(|entry| collect(entry, depth + 1, found))
}

#[cfg(test)]
mod tests {
    use medfleet_testkit::tar;

    use super::*;

    fn check(named: &[&str], expected: &[&str]) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        for file in [
            "b.dcm",
            "study/2.dcm",
            "study/1.dcm",
            "study/deep/3.dcm",
            "study/.hidden",
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, b"x").expect("a file");
        }
        fs::create_dir(root.join("empty")).expect("a folder");
        let named: Vec<PathBuf> = named.iter().map(|name| root.join(name)).collect();
        let found = files(&named).map_err(|error| format!("{error:#}"));
        match found {
            Ok(found) => {
                let expected: Vec<PathBuf> = expected.iter().map(|name| root.join(name)).collect();
                assert_eq!(found, expected);
            }
            Err(error) => assert!(expected.iter().all(|part| error.contains(part)), "{error}"),
        }
    }

    #[test]
    fn files_keep_their_order_and_folders_are_sorted() {
        check(
            &["b.dcm", "study"],
            &["b.dcm", "study/1.dcm", "study/2.dcm", "study/deep/3.dcm"],
        );
        check(
            &["study/2.dcm", "study/1.dcm"],
            &["study/2.dcm", "study/1.dcm"],
        );
    }

    #[tokio::test]
    async fn the_files_of_an_archive_stand_in_its_place_and_go_with_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.dcm"), b"first").expect("a file");
        fs::write(path("z.dcm"), b"last").expect("a file");
        let archive = tar(&[("../../2.dcm", b"two"), ("1.dcm", b"one")]);
        fs::write(path("study.tar"), &archive).expect("a file");
        let named = ["a.dcm", "study.tar", "z.dcm"].map(path).to_vec();
        let unpacked = unpacked(named).await.expect("it opens");
        let contents = unpacked
            .files
            .iter()
            .map(|file| fs::read(file).expect("there"));
        let contents: Vec<Vec<u8>> = contents.collect();
        assert_eq!(contents, [b"first".as_slice(), b"two", b"one", b"last"]);
        // A refusal tells a number; what was unpacked for the time being nobody could find.
        let known = ["a.dcm", "study.tar/../../2.dcm", "study.tar/1.dcm", "z.dcm"];
        assert_eq!(unpacked.names, known.map(path));
        let scratch = unpacked.files[1].parent().expect("a folder").to_owned();
        let mode = fs::metadata(&scratch)
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "nobody else can look into it");
        drop(unpacked);
        assert!(!scratch.exists(), "nothing of a study stays behind");
    }

    #[test]
    fn who_still_unpacks_when_all_is_over_writes_nothing() {
        let scratch = Scratch::default();
        let folder = Arc::clone(&scratch.0);
        let file = put(&folder, 0, b"x").expect("is written");
        drop(scratch);
        assert!(!file.exists(), "nothing of a study stays behind");
        put(&folder, 1, b"y").expect_err("nobody waits for it");
        assert!(!file.parent().expect("a folder").exists());
    }

    #[tokio::test]
    async fn a_broken_archive_is_refused_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("study.tar");
        let archive = tar(&[("1.dcm", b"one"), ("2.dcm", b"two")]);
        fs::write(&path, &archive[..1200]).expect("a file");
        let opened = unpacked(vec![path]).await;
        let error = opened.expect_err("cut short");
        assert!(error.to_string().contains("study.tar"), "{error:#}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        check(&["none.dcm"], &["cannot read", "none.dcm"]);
        check(&["empty"], &["holds no files"]);
    }
}
