//! `SHA256SUMS`: the list of a model's files with their digests, as `sha256sum` writes and reads it. Its own digest stands for
//! all of them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// The list's name, in the model's folder.
pub(crate) const LIST: &str = "SHA256SUMS";
/// Longest list that is read, in bytes.
pub(crate) const LIST_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read from a file at a time.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// A SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum([u8; 32]);

/// A text that is no SHA-256.
#[derive(Debug, thiserror::Error)]
#[error("a SHA-256 is 64 hexadecimal digits, as sha256sum prints it")]
pub(crate) struct NoSum;

impl Sum {
    /// Of bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of what a hasher was given.
    pub(crate) fn from_hasher(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// Of a file's content.
    pub(crate) fn of_file(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(Self::from_hasher(hasher)),
                read => hasher.update(&piece[..read]),
            }
        }
    }
}

impl FromStr for Sum {
    type Err = NoSum;

    fn from_str(text: &str) -> Result<Self, NoSum> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NoSum)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A list that was read or made.
#[derive(Debug)]
pub(crate) struct Sums {
    files: Vec<(String, Sum)>,
    text: String,
}

impl Sums {
    /// Of every file in a folder and below, but for hidden ones and a list that is there already.
    ///
    /// # Errors
    /// When something cannot be read, or has a name that cannot stand in a list.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self> {
        let mut names = BTreeSet::new();
        find(folder, "", &mut names)?;
        ensure!(
            !names.is_empty(),
            "{} has no file: name the folder with the model's files",
            folder.display()
        );
        let mut text = String::new();
        for name in names {
            let path = folder.join(&name);
            let sum = Sum::of_file(&path).with_context(|| format!("read {}", path.display()))?;
            text.push_str(&format!("{sum}  {name}\n"));
        }
        Self::parse(text.into_bytes(), None)
    }

    /// The list in a folder, which must have that digest.
    ///
    /// # Errors
    /// When there is none, when it is another than expected, and for a line that is none.
    pub(crate) fn read(folder: &Path, expected: Option<Sum>) -> Result<Self> {
        let path = folder.join(LIST);
        let bytes = fs::read(&path).with_context(|| {
            format!(
                "read {}, the list of the model's files: `medfleet weights list` makes it",
                path.display()
            )
        })?;
        Self::parse(bytes, expected).with_context(|| path.display().to_string())
    }

    /// From the list's bytes.
    ///
    /// # Errors
    /// When they are others than expected, and for a line that is none.
    pub(crate) fn parse(bytes: Vec<u8>, expected: Option<Sum>) -> Result<Self> {
        let found = Sum::of(&bytes);
        if let Some(expected) = expected {
            ensure!(
                found == expected,
                "the list of the model's files has the SHA-256 {found}, expected is {expected}: it is another model or another \
                 version of it"
            );
        }
        let text = String::from_utf8(bytes).context("the list of the model's files is no text")?;
        let mut files = Vec::new();
        for line in text.lines() {
            let Some((sum, name)) = entry(line) else {
                bail!(
                    "{line:?} is no line of a list: expected is a SHA-256, two spaces and a name below the folder"
                );
            };
            files.push((name.to_owned(), sum));
        }
        ensure!(!files.is_empty(), "the list names no file");
        Ok(Self { files, text })
    }

    /// Names, relative to the folder, and digests.
    pub(crate) fn files(&self) -> &[(String, Sum)] {
        &self.files
    }

    /// The list itself.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The list's own digest.
    pub(crate) fn sum(&self) -> Sum {
        Sum::of(self.text.as_bytes())
    }

    /// That every file is what the list says, and that no other lies beside one or beside the list: a loader might read it.
    pub(crate) fn check(&self, folder: &Path) -> Result<()> {
        for (name, expected) in &self.files {
            let path = folder.join(name);
            let found = Sum::of_file(&path)
                .with_context(|| format!("{} is in {LIST} and cannot be read", path.display()))?;
            ensure!(
                found == *expected,
                "{} has the SHA-256 {found}, {LIST} says {expected}: the file was changed or is not whole; bring it anew",
                path.display()
            );
        }
        self.check_others(folder)
    }

    /// That no file beside the list or a listed one is missing in the list.
    pub(crate) fn check_others(&self, folder: &Path) -> Result<()> {
        let listed: BTreeSet<_> = self
            .files
            .iter()
            .map(|(name, _)| folder.join(name))
            .collect();
        let mut folders: BTreeSet<&Path> = listed.iter().filter_map(|path| path.parent()).collect();
        // Also where the list names nothing that lies beside itself.
        folders.insert(folder);
        for place in folders {
            for entry in fs::read_dir(place).with_context(|| format!("read {}", place.display()))? {
                let entry = entry?;
                let name = entry.file_name();
                let is_known = name.to_string_lossy().starts_with('.') || name == LIST;
                ensure!(
                    is_known || entry.path().is_dir() || listed.contains(&entry.path()),
                    "{} is not in {LIST}: remove it, or make the list anew if it belongs to the model",
                    entry.path().display()
                );
            }
        }
        Ok(())
    }
}

/// Files below a folder, with `/` between the parts of their names.
fn find(folder: &Path, within: &str, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name =
            name.with_context(|| format!("{} has a name that is no text", path.display()))?;
        if name.starts_with('.') || name == LIST {
            continue;
        }
        if path.is_dir() {
            find(&path, &format!("{within}{name}/"), names)?;
        } else {
            names.insert(format!("{within}{name}"));
        }
    }
    Ok(())
}

/// A line of a list. A name that leads out of the folder is none.
fn entry(line: &str) -> Option<(Sum, &str)> {
    let (sum, name) = line.split_at_checked(64)?;
    let name = name
        .strip_prefix("  ")
        .or_else(|| name.strip_prefix(" *"))?;
    let name = name.strip_prefix("./").unwrap_or(name);
    let is_part = |part: &str| !["", ".", ".."].contains(&part);
    let is_good = name.split('/').all(is_part) && !name.contains('\\') && name != LIST;
    is_good.then_some((sum.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("vision")).expect("makes");
        for (name, content) in [
            ("config.json", "{}"),
            ("vision/tower", "weights"),
            (".cache", "x"),
        ] {
            fs::write(folder.path().join(name), content).expect("writes");
        }
        folder
    }

    #[test]
    fn a_list_is_what_sha256sum_writes() {
        let folder = model();
        let sums = Sums::of_folder(folder.path()).expect("lists");
        // As sha256sum prints them.
        let expected = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a  config.json\n\
                        9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c  vision/tower\n";
        assert_eq!(sums.text(), expected);
        let names: Vec<_> = sums.files().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["config.json", "vision/tower"]);
        sums.check(folder.path()).expect("is what was listed");
        let again = Sums::parse(sums.text().into(), Some(sums.sum()));
        assert_eq!(again.expect("is its own").sum(), sums.sum());
    }

    #[test]
    fn what_is_not_as_listed_is_named() {
        let folder = model();
        let path = |name: &str| folder.path().join(name);
        let sums = Sums::of_folder(folder.path()).expect("lists");
        fs::write(path(LIST), sums.text()).expect("writes");
        let check = |expected: &[&str]| {
            let found = Sums::read(folder.path(), Some(sums.sum()));
            let refused = found.and_then(|sums| sums.check(folder.path()));
            let refused = format!("{:#}", refused.expect_err("is not as listed"));
            for part in expected {
                assert!(refused.contains(part), "{refused}");
            }
        };
        fs::write(path("vision/tower"), "Weights").expect("writes");
        check(&["vision/tower has the SHA-256", "bring it anew"]);
        fs::remove_file(path("vision/tower")).expect("removes");
        check(&["vision/tower is in SHA256SUMS and cannot be read"]);
        fs::write(path("vision/tower"), "weights").expect("writes");
        fs::write(path("vision/more"), "weights").expect("writes");
        check(&["vision/more is not in SHA256SUMS"]);
        fs::remove_file(path("vision/more")).expect("removes");
        fs::write(path(LIST), format!("{}\n", sums.text())).expect("writes");
        check(&["expected is", "another model"]);
    }

    #[test]
    fn what_lies_beside_the_list_must_be_in_it() {
        let folder = model();
        let list = format!("{}  vision/tower\n", Sum::of(b"weights"));
        let sums = Sums::parse(list.into_bytes(), None).expect("is a list");
        let refused = sums.check(folder.path()).expect_err("config.json counts");
        let refused = refused.to_string();
        assert!(
            refused.contains("config.json is not in SHA256SUMS"),
            "{refused}"
        );
        fs::remove_file(folder.path().join("config.json")).expect("removes");
        sums.check(folder.path()).expect("is what was listed");
    }

    #[test]
    fn names_stay_in_the_folder() {
        let sum = "a1".repeat(32);
        let check = |rest: &str, expected: Option<&str>| {
            let line = format!("{sum}{rest}");
            assert_eq!(entry(&line).map(|(_, name)| name), expected, "{rest}");
        };
        check("  a/b", Some("a/b"));
        check("  ./a", Some("a"));
        check(" *a", Some("a"));
        for wrong in [
            "  ",
            "  /a",
            "  ../a",
            "  a/../b",
            " a",
            "",
            "  a//b",
            "  SHA256SUMS",
            "  a\\b",
        ] {
            check(wrong, None);
        }
        assert!(entry("a1  a").is_none());
        assert!(Sums::parse(b"\n".to_vec(), None).is_err());
        assert!(Sums::parse(Vec::new(), None).is_err());
    }
}
