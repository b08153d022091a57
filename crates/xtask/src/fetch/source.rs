//! Packages of which the index has the source alone: taken by their SHA-256, and their `setup.py` is not run.
//!
//! pip builds a source before it hands it over, to know what it is, and builds with the setuptools that the index has that day.
//! So a build backend of ours stands in the place of setuptools, and only repeats what the source says of itself.
//! Of a source whose `pyproject.toml` names another backend pip would run that one, once its SHA-256 was compared: look into a
//! package before its digest is pinned.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{downloaded, pip_download};

/// `setuptools.build_meta`, as far as pip asks it. A source distribution says in `PKG-INFO` what a built one says in `METADATA`.
const BACKEND: &str = "\
import email, pathlib, sys

def prepare_metadata_for_build_wheel(folder, settings=None):
    said = pathlib.Path('PKG-INFO').read_text(encoding='utf-8')
    fields = email.message_from_string(said)
    name = fields['Name'].replace('-', '_')
    info = pathlib.Path(folder, f\"{name}-{fields['Version']}.dist-info\")
    info.mkdir()
    info.joinpath('METADATA').write_text(said, encoding='utf-8')
    return info.name

# What pip takes for a source that names no backend.
__legacy__ = sys.modules[__name__]
";

/// The source of `requirement`, below `work`; `index` says where pip looks, if not where it is set up to.
pub(super) fn download(
    work: &Path,
    requirement: &str,
    sha256: &str,
    index: &[&OsStr],
) -> Result<PathBuf> {
    let name = requirement.split("==").next().unwrap_or_default();
    let pinned = work.join("requirements.txt");
    let line = format!("{requirement} --hash=sha256:{sha256}\n");
    fs::write(&pinned, line).with_context(|| format!("write {}", pinned.display()))?;
    let backend = work.join("backend");
    let package = backend.join("setuptools");
    fs::create_dir_all(&package).with_context(|| format!("create {}", package.display()))?;
    for (file, text) in [("__init__.py", ""), ("build_meta.py", BACKEND)] {
        fs::write(package.join(file), text).with_context(|| format!("write {file}"))?;
    }
    let mut pip = pip_download();
    pip.env("PYTHONPATH", &backend);
    pip.args(["--no-build-isolation", "--use-pep517", "--no-binary", name]);
    pip.args(["--require-hashes", "--requirement"]).arg(&pinned);
    downloaded(pip.args(index), work, ".tar.gz")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{fetch, process};

    #[test]
    fn a_source_is_taken_by_its_digest_and_not_run() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shelf = folder.path().join("shelf");
        let source = shelf.join("all-data-1.2");
        fs::create_dir_all(&source).expect("a folder");
        let said = "Metadata-Version: 2.1\nName: all-data\nVersion: 1.2\n\nFiles.\n";
        for (file, text) in [
            ("PKG-INFO", said),
            ("setup.py", "raise SystemExit('it was run')\n"),
        ] {
            fs::write(source.join(file), text).expect("a file");
        }
        let archive = shelf.join("all-data-1.2.tar.gz");
        let mut tar = Command::new("tar");
        tar.current_dir(&shelf).args(["--create", "--gzip"]);
        tar.arg("--file").arg(&archive).arg("all-data-1.2");
        process::run(&mut tar).expect("an archive");
        let sha256 = fetch::sha256(&fs::read(&archive).expect("readable"));
        let take = |name: &str, sha256: &str| {
            let work = folder.path().join(name);
            fs::create_dir(&work).expect("a folder");
            let index = ["--no-index", "--find-links"].map(OsStr::new);
            let index = [&index[..], &[shelf.as_os_str()]].concat();
            download(&work, "all-data==1.2", sha256, &index)
        };
        let taken = take("right", &sha256).expect("works");
        assert_eq!(fetch::sha256(&fs::read(taken).expect("readable")), sha256);
        take("wrong", &"0".repeat(64)).expect_err("other bytes than pinned");
    }
}
