//! From the paths a person names to the files that are meant: a folder stands for every file in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Most files one command takes.
pub(crate) const FILES_MAX: usize = 4096;
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
                "{} holds no files: name a DICOM, PNG or JPEG file, or a folder of them",
                path.display()
            );
        }
    }
    Ok(found)
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
            "{} is nested deeper than {DEPTH_MAX} folders",
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

    #[test]
    fn what_is_not_there_is_named() {
        check(&["none.dcm"], &["cannot read", "none.dcm"]);
        check(&["empty"], &["holds no files"]);
    }
}
