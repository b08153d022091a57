//! Digests of weights, remembered between starts: hashing a large checkpoint takes seconds and its files hardly ever
//! change. What is remembered holds for exactly these files: names, sizes, and the file system's own record of which file
//! it is and when it last changed, which no program can set back.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use medfleet_core::Digest;
use serde::{Deserialize, Serialize};

use crate::error::LoadError;
use crate::partial::Partial;
use crate::weights::Digests;

/// Changes with the way digests are computed.
const VERSION: &str = "medfleet-digests-1";

#[derive(Serialize, Deserialize)]
struct Remembered {
    model: String,
    encoder: Option<String>,
}

/// One model's files of weights as they are when this is made, which is to be before they are read, and the place in a cache
/// for their digests.
pub(crate) struct Memory {
    places: Vec<PathBuf>,
    stamp: Digest,
    place: Option<PathBuf>,
}

impl Memory {
    /// For weights in these files, and in the safetensors of these folders. Without a cache nothing is remembered.
    pub(crate) fn new(places: &[&Path], cache: Option<&Path>) -> Result<Self, LoadError> {
        let places: Vec<PathBuf> = places.iter().map(|place| (*place).to_owned()).collect();
        let stamp = stamp(&places)?;
        Ok(Self {
            places,
            stamp,
            place: cache.map(|cache| cache.join(format!("{stamp}.json"))),
        })
    }

    /// What these files are known by, without being read.
    pub(crate) const fn stamp(&self) -> Digest {
        self.stamp
    }

    /// From the cache where it knows these files. One that cannot be read costs time, nothing else.
    pub(crate) fn recall(&self) -> Option<Digests> {
        recall(self.place.as_deref()?)
    }

    /// Puts what was computed into the cache.
    pub(crate) fn keep(&self, digests: &Digests) {
        if let Some(place) = &self.place {
            // Without the file the next start computes again, which is slow and right.
            let _ = store(place, digests);
        }
    }

    /// Takes it out of the cache.
    pub(crate) fn forget(&self) {
        if let Some(place) = &self.place {
            // It may never have been there.
            let _ = std::fs::remove_file(place);
        }
    }

    /// To be called when all is read: that the files are still what they were, so that digest and weights are of the same.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        if stamp(&self.places)? == self.stamp {
            return Ok(());
        }
        let places = self.places.iter().map(|place| place.display().to_string());
        Err(LoadError::Changed {
            place: places.collect::<Vec<_>>().join(", "),
        })
    }
}

/// A line for the file, or for each of the folder's safetensors, as they are now.
fn look(place: &Path) -> std::io::Result<Vec<String>> {
    if !place.is_dir() {
        return Ok(vec![line(place)?]);
    }
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(place)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains(".safetensors") {
            lines.push(line(&path)?);
        }
    }
    Ok(lines)
}

fn line(path: &Path) -> std::io::Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of = std::fs::metadata(path)?;
    let (which, when) = ((of.dev(), of.ino()), (of.ctime(), of.ctime_nsec()));
    Ok(format!("{name} {} {which:?} {when:?}", of.len()))
}

/// Of all files in these places, as they are now.
fn stamp(places: &[PathBuf]) -> Result<Digest, LoadError> {
    let mut lines = Vec::new();
    for place in places {
        let name = place.display().to_string();
        lines.extend(look(place).map_err(LoadError::unreadable(&name))?);
    }
    lines.sort();
    let mut hasher = blake3::Hasher::new();
    hasher.update(VERSION.as_bytes());
    for line in lines {
        hasher.update(b"\n").update(line.as_bytes());
    }
    Ok(Digest::new(*hasher.finalize().as_bytes()))
}

fn recall(place: &Path) -> Option<Digests> {
    let text = std::fs::read_to_string(place).ok()?;
    let Remembered { model, encoder } = serde_json::from_str(&text).ok()?;
    let encoder = match encoder {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    Some(Digests {
        model: model.parse().ok()?,
        encoder,
    })
}

/// Whole or not at all, whoever else writes the same, which another that is at it does as well.
fn store(place: &Path, digests: &Digests) -> std::io::Result<()> {
    let value = Remembered {
        model: digests.model.to_string(),
        encoder: digests.encoder.map(|digest| digest.to_string()),
    };
    let partial = Partial::begin(place.with_extension("json.partial"))?;
    let mut file = partial.file();
    file.write_all(serde_json::to_string(&value)?.as_bytes())?;
    partial.name(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// As a load does: from the cache, or computed and put there.
    fn digests(memory: &Memory, compute: impl FnOnce() -> Digests) -> Digests {
        memory.recall().unwrap_or_else(|| {
            let digests = compute();
            memory.keep(&digests);
            digests
        })
    }

    #[test]
    fn digests_are_computed_once_for_the_same_files() {
        let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = kept.path().join("below");
        let weights = dir.path().join("model-00001-of-00001.safetensors");
        std::fs::write(&weights, b"one").unwrap();
        let computed = Cell::new(0u8);
        let get = || {
            let memory = Memory::new(&[dir.path()], Some(&cache)).unwrap();
            digests(&memory, || {
                computed.set(computed.get() + 1);
                Digests {
                    model: Digest::new([computed.get(); 32]),
                    encoder: None,
                }
            })
        };
        assert_eq!(get(), get());
        assert_eq!(computed.get(), 1);
        // Other files beside the weights make no difference.
        std::fs::write(dir.path().join("README.md"), b"text").unwrap();
        assert_eq!(get().model, Digest::new([1; 32]));
        // Another file of the same name and size is other weights.
        let other = dir.path().join("other");
        std::fs::write(&other, b"two").unwrap();
        std::fs::rename(&other, &weights).unwrap();
        assert_eq!(get().model, Digest::new([2; 32]));
        // A file by itself is remembered as one.
        let other = Memory::new(&[dir.path(), &weights], Some(&cache)).unwrap();
        let missing = Memory::new(&[&dir.path().join("missing")], Some(&cache));
        assert!(other.recall().is_none() && missing.is_err());
        // A damaged cache is computed anew.
        for entry in std::fs::read_dir(&cache).unwrap() {
            std::fs::write(entry.unwrap().path(), b"{").unwrap();
        }
        assert_eq!(get().model, Digest::new([3; 32]));
        // What is forgotten as well.
        Memory::new(&[dir.path()], Some(&cache)).unwrap().forget();
        assert_eq!(get().model, Digest::new([4; 32]));
    }

    /// A process may be killed at any moment, and many may start with the same folder.
    #[test]
    fn what_a_killed_process_left_is_written_over() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("model.safetensors"), b"one").unwrap();
        let memory = Memory::new(&[dir.path()], Some(cache.path())).unwrap();
        let left = cache
            .path()
            .join(format!("{}.json.partial", memory.stamp()));
        std::fs::write(&left, "x".repeat(1000)).unwrap();
        let computed = Digests {
            model: Digest::new([5; 32]),
            encoder: None,
        };
        memory.keep(&computed);
        assert_eq!(memory.recall(), Some(computed));
        let files = std::fs::read_dir(cache.path()).unwrap().count();
        assert_eq!(files, 1, "nothing else is left behind");
        // While another writes it: that one's is as good.
        memory.forget();
        let other = Partial::begin(left).unwrap();
        memory.keep(&computed);
        assert_eq!(memory.recall(), None);
        drop(other);
        memory.keep(&computed);
        assert_eq!(memory.recall(), Some(computed));
    }

    #[test]
    fn a_cache_that_cannot_be_written_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let computed = Digests {
            model: Digest::new([7; 32]),
            encoder: Some(Digest::new([8; 32])),
        };
        let memory = Memory::new(&[dir.path()], Some(&file.join("below"))).unwrap();
        assert_eq!(digests(&memory, || computed), computed);
    }

    #[test]
    fn files_that_change_while_they_are_read_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("model.safetensors");
        std::fs::write(&weights, b"one").unwrap();
        let memory = Memory::new(&[dir.path()], None).unwrap();
        assert!(memory.check().is_ok() && memory.recall().is_none());
        std::fs::write(dir.path().join("config.json"), b"{}").unwrap();
        assert!(memory.check().is_ok());
        std::fs::write(&weights, b"longer").unwrap();
        let error = memory.check().unwrap_err();
        assert!(matches!(error, LoadError::Changed { .. }), "{error}");
        std::fs::remove_file(&weights).unwrap();
        assert!(memory.check().is_err());
    }
}
