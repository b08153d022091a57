//! Quantised matrices that an earlier start kept: the same bits as quantised ones, and nothing of a file that is not whole.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::fixtures::{Fixtures, tiny_copy, tiny_dir};
use super::on;
use super::proposals::bits;
use crate::digests::Memory;
use crate::{Dtype, FolderSource, LoadError, LoadOptions, Model, Parts, QuantisedCache};

/// Bytes before the first row: a magic number and three digests.
const HEAD_BYTES: u64 = 128;

fn options(device: &str, dtype: Dtype) -> LoadOptions {
    on(device.parse().unwrap(), dtype)
}

fn source(path: &Path, cache: Option<&Path>) -> FolderSource {
    FolderSource {
        quantised: true,
        quantised_cache: cache.map(Path::to_owned),
        ..FolderSource::new(path)
    }
}

fn load(path: &Path, cache: Option<&Path>) -> Model {
    Model::load_folder(&source(path, cache), options("cpu", Dtype::F32)).unwrap()
}

fn logits(model: &Model) -> Vec<Vec<u32>> {
    let case = Fixtures::read().case(model, "short");
    bits(&case.all_logits(model))
}

/// The one file of rows in a cache.
fn rows(cache: &Path) -> PathBuf {
    let files = std::fs::read_dir(cache).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let mut rows = files.filter(|path| path.extension().is_some_and(|end| end == "rows"));
    let found = rows.next().unwrap();
    assert!(rows.next().is_none(), "one file for one model");
    found
}

/// Turns every bit of the byte that lies `at` bytes in.
fn damage(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    let (file, mut byte) = (file.unwrap(), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn kept_rows_are_the_same_bits() {
    let cache = TempDir::new().unwrap();
    let mut expected = QuantisedCache::Written;
    // One file serves every level and what is computed in.
    for (device, dtype) in [
        ("cpu", Dtype::F32),
        ("cpu", Dtype::Bf16),
        ("cpu:portable", Dtype::F32),
        ("cpu:generic", Dtype::F32),
    ] {
        let load = |cache| Model::load_folder(&source(&tiny_dir(), cache), options(device, dtype));
        let found = load(Some(cache.path())).unwrap();
        let fresh = load(None).unwrap();
        assert_eq!(found.quantised_cache(), &expected, "{device} {dtype}");
        assert_eq!(fresh.quantised_cache(), &QuantisedCache::Off);
        assert_eq!(found.digests(), fresh.digests());
        assert_eq!(logits(&found), logits(&fresh), "{device} {dtype}");
        expected = QuantisedCache::Read;
    }
    // The vision tower alone asks for none and leaves none.
    let vision = LoadOptions {
        parts: Parts::Vision,
        ..options("cpu", Dtype::F32)
    };
    let vision = Model::load_folder(&source(&tiny_dir(), Some(cache.path())), vision).unwrap();
    assert_eq!(vision.quantised_cache(), &QuantisedCache::Off);
    rows(cache.path());
}

#[test]
fn a_damaged_file_is_refused_and_made_anew() {
    let cache = TempDir::new().unwrap();
    let fresh = logits(&load(&tiny_dir(), None));
    let written = load(&tiny_dir(), Some(cache.path()));
    assert_eq!(written.quantised_cache(), &QuantisedCache::Written);
    let file = rows(cache.path());
    let whole = std::fs::read(&file).unwrap();
    let last = whole.len() as u64 - 1;
    // Magic, digest of the weights, plan, seal; rows; the digests of rows.
    for at in [0, 32, 64, 96, HEAD_BYTES, last / 2, last] {
        damage(&file, at);
        let found = load(&tiny_dir(), Some(cache.path()));
        assert!(
            matches!(found.quantised_cache(), QuantisedCache::Damaged { .. }),
            "byte {at}: {:?}",
            found.quantised_cache()
        );
        assert_eq!(logits(&found), fresh, "byte {at}");
        assert_eq!(std::fs::read(&file).unwrap(), whole, "byte {at}");
        let found = load(&tiny_dir(), Some(cache.path()));
        assert_eq!(found.quantised_cache(), &QuantisedCache::Read, "byte {at}");
    }
    // Cut off, and longer than it is.
    for length in [0, HEAD_BYTES, last, last + 2] {
        let open = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
        open.set_len(length).unwrap();
        let found = load(&tiny_dir(), Some(cache.path()));
        assert!(
            matches!(found.quantised_cache(), QuantisedCache::Damaged { .. }),
            "{length} bytes"
        );
        assert_eq!(logits(&found), fresh, "{length} bytes");
        assert_eq!(std::fs::read(&file).unwrap(), whole, "{length} bytes");
    }
}

/// Else every start would say again that it is made anew, and why it is not would be said nowhere.
#[test]
fn a_damaged_file_that_cannot_be_made_anew_says_both() {
    let cache = TempDir::new().unwrap();
    load(&tiny_dir(), Some(cache.path()));
    damage(&rows(cache.path()), 0);
    // In the place of the file that would be written.
    let dir = tiny_dir();
    let memory = Memory::new(&[dir.as_path()], None).unwrap();
    let partial = cache.path().join(format!("{}.partial", memory.stamp()));
    std::fs::create_dir(partial).unwrap();
    let found = load(&dir, Some(cache.path()));
    let QuantisedCache::Damaged { reason } = found.quantised_cache() else {
        panic!("{:?}", found.quantised_cache());
    };
    assert!(
        reason.contains("digests are not") && reason.contains("could not be made anew"),
        "{reason}"
    );
    assert_eq!(logits(&found), logits(&load(&dir, None)));
}

#[test]
fn rows_of_other_weights_are_never_used() {
    let (dir, cache) = (tiny_copy(), TempDir::new().unwrap());
    let first = load(dir.path(), Some(cache.path()));
    let before = rows(cache.path());
    // Other values in the same places: the last tensor's last bytes, then the sign of every value of the file.
    let weights = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[head..]
        .chunks_exact_mut(4)
        .for_each(|value| value[3] ^= 0x80);
    std::fs::write(&weights, &bytes).unwrap();
    let fresh = load(dir.path(), None);
    assert_ne!(first.digests(), fresh.digests());
    // A digest that is remembered wrongly, of the first weights, whose rows are there: where one is damaged it is found
    // out, and neither is believed again.
    let plain = *Model::load(&tiny_dir(), options("cpu", Dtype::F32))
        .unwrap()
        .digests();
    let memory = Memory::new(&[dir.path()], Some(cache.path())).unwrap();
    memory.keep(&plain);
    damage(&before, HEAD_BYTES);
    let source = source(dir.path(), Some(cache.path()));
    let refused = Model::load_folder(&source, options("cpu", Dtype::F32)).unwrap_err();
    assert!(
        matches!(refused, LoadError::QuantisedCache { .. }),
        "{refused}"
    );
    assert!(!before.exists() && memory.recall().is_none());
    let again = load(dir.path(), Some(cache.path()));
    assert_eq!(again.quantised_cache(), &QuantisedCache::Written);
    assert_eq!(again.digests(), fresh.digests());
    assert_eq!(logits(&again), logits(&fresh));
}

#[test]
fn a_folder_that_cannot_be_written_to_stops_nothing() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let found = load(&tiny_dir(), Some(&file));
    assert!(
        matches!(found.quantised_cache(), QuantisedCache::NotWritten { .. }),
        "{:?}",
        found.quantised_cache()
    );
    assert_eq!(logits(&found), logits(&load(&tiny_dir(), None)));
}
