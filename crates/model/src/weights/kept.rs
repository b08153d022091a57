//! Quantised matrices kept on disk between starts: a folder's weights are twice as large as what they become, and quantising
//! them takes every core for seconds.
//!
//! A file holds the rows of all matrices as GGUF has them, whatever machine wrote it, and a digest of every sixteen rows.
//! Those digests are sealed together with the digest of the weights that the rows were made of. Rows are checked where they
//! are used: what is laid out for the kernels are the bytes that were hashed. Rows that do not pass are quantised again
//! from the model's files, and put right. Nothing here is needed: without the file a start takes longer.
//!
//! The file is not synced to disk: what a power cut leaves of it does not pass.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use medfleet_core::Digest;

use super::digest::is_text;
use super::quantised::{NOW, ROWS};
use super::{Part, Stored, Weights};
use crate::error::LoadError;
use crate::partial::Partial;

/// What the file is. Its version changes with the way blocks are made and with everything below.
const MAGIC: &[u8; 32] = b"medfleet quantised q8_0 rows v1\n";
/// Magic, digest of the model's weights, digest of the plan, seal.
const HEAD_BYTES: usize = 4 * HASH_BYTES;
const HASH_BYTES: usize = 32;

type Hash = [u8; HASH_BYTES];

/// No digest of rows: these were never kept.
const NONE: Hash = [0; HASH_BYTES];

/// What became of the quantised matrices that an earlier start kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum QuantisedCache {
    /// None was asked for.
    #[default]
    Off,
    /// All were there, and were checked.
    Read,
    /// There were none for these weights: quantised from the model's files, and kept for the next start.
    Written,
    /// The same, but they could not be kept.
    NotWritten {
        /// Why, in one line.
        reason: String,
    },
    /// Some or all did not pass: these were quantised from the model's files, and kept for the next start where that could be
    /// done.
    Damaged {
        /// What did not pass, in one line.
        reason: String,
    },
}

/// Matrices that are read from a file, or written to one while they are quantised.
pub(super) struct Kept {
    folder: PathBuf,
    plan: Plan,
    /// Why a file that was there is not used.
    refused: Option<String>,
    state: State,
}

enum State {
    Reading(Reading),
    Writing(Writing),
    /// Why nothing can be written.
    Neither(String),
}

/// Where which rows are in the file; it follows from names and shapes alone.
struct Plan {
    places: BTreeMap<String, Place>,
    /// Groups of rows that have a digest.
    groups: usize,
    /// Where the digests begin, in bytes from the start of the file.
    table: u64,
}

#[derive(Clone, Copy)]
struct Place {
    from: u64,
    row_bytes: usize,
    rows: usize,
    /// The group of its first rows.
    group: usize,
}

struct Reading {
    path: PathBuf,
    file: File,
    table: Vec<Hash>,
    /// Groups that did not pass.
    damaged: AtomicUsize,
    /// Rows made of the model's files are others than those that were kept.
    differs: AtomicBool,
}

struct Writing {
    partial: Partial,
    table: Mutex<Vec<Hash>>,
    /// The first write that failed.
    failed: Mutex<Option<io::Error>>,
}

impl Weights {
    /// Takes the quantised matrices from `folder` where they are there for weights of the digest `model`, and keeps them there
    /// otherwise. `stamp` is what the model's files are known by before their digest is.
    pub(crate) fn keep(&mut self, folder: &Path, model: Option<Digest>, stamp: Digest) {
        let plan = Plan::of(self);
        let mut refused = None;
        let found = model.map(|model| plan.open(&file_of(folder, model), model));
        let state = match found {
            Some(Ok(Some(reading))) => State::Reading(reading),
            other => {
                if let Some(Err(reason)) = other {
                    refused = Some(reason);
                }
                match Writing::start(folder, stamp, plan.groups) {
                    Ok(writing) => State::Writing(writing),
                    Err(reason) => State::Neither(reason),
                }
            }
        };
        self.kept = Some(Kept {
            folder: folder.to_owned(),
            plan,
            refused,
            state,
        });
    }

    /// To be called once everything is loaded and the files were found to be what they were: `model` is the digest of all of
    /// their weights.
    ///
    /// # Errors
    /// [`LoadError::QuantisedCache`] where rows of the file and rows made of the model's files differ, though the digest of
    /// the weights is the same. The file is gone then.
    pub(crate) fn finish_kept(&self, model: Digest) -> Result<QuantisedCache, LoadError> {
        let Some(kept) = &self.kept else {
            return Ok(QuantisedCache::Off);
        };
        let outcome = match &kept.state {
            State::Reading(reading) => return reading.finish(),
            State::Writing(writing) => {
                match writing.finish(&kept.plan, model, &file_of(&kept.folder, model)) {
                    Ok(()) => QuantisedCache::Written,
                    Err(error) => QuantisedCache::NotWritten {
                        reason: error.to_string(),
                    },
                }
            }
            State::Neither(reason) => QuantisedCache::NotWritten {
                reason: reason.clone(),
            },
        };
        Ok(match (&kept.refused, outcome) {
            (None, outcome) => outcome,
            (Some(damage), QuantisedCache::NotWritten { reason }) => QuantisedCache::Damaged {
                reason: format!("{damage}; it could not be made anew: {reason}"),
            },
            (Some(damage), _) => QuantisedCache::Damaged {
                reason: damage.clone(),
            },
        })
    }
}

impl Kept {
    /// Rows of the matrix `name`, at most sixteen, from a multiple of sixteen on. False where `into` is not to be used: the
    /// rows are not there, or are not what they were.
    pub(super) fn get(&self, name: &str, rows: &Range<usize>, into: &mut [u8]) -> bool {
        let State::Reading(reading) = &self.state else {
            return false;
        };
        let Some((from, group)) = self.plan.find(name, rows) else {
            return false;
        };
        let expected = reading.table[group];
        if expected == NONE {
            return false;
        }
        if reading.file.read_exact_at(into, from).is_ok() && hash(into) == expected {
            return true;
        }
        reading.damaged.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// The same rows, quantised from the model's files.
    pub(super) fn put(&self, name: &str, rows: &Range<usize>, bytes: &[u8]) {
        let Some((from, group)) = self.plan.find(name, rows) else {
            return;
        };
        match &self.state {
            State::Reading(reading) if reading.table[group] == NONE => {}
            State::Reading(reading) => {
                if hash(bytes) == reading.table[group] {
                    // Where that fails, the next start finds the damage again.
                    let _ = reading.file.write_all_at(bytes, from);
                } else {
                    reading.differs.store(true, Ordering::Relaxed);
                }
            }
            State::Writing(writing) => writing.put(from, group, bytes),
            State::Neither(_) => {}
        }
    }
}

impl Plan {
    /// Of the language model's matrices.
    fn of(weights: &Weights) -> Self {
        let prefix = weights.prefix(Part::Text).unwrap_or_default();
        let mut places = BTreeMap::new();
        let (mut from, mut group) = (HEAD_BYTES as u64, 0);
        for (name, entry) in weights.entries.range(prefix.to_owned()..) {
            let Some(rest) = name.strip_prefix(prefix) else {
                break;
            };
            let (Stored::Safetensors(_), [rows, inputs]) = (entry.dtype, &entry.shape[..]) else {
                continue;
            };
            let Some(row_bytes) = NOW.row_bytes(*inputs).filter(|_| is_text(rest)) else {
                continue;
            };
            let place = Place {
                from,
                row_bytes,
                rows: *rows,
                group,
            };
            places.insert(name.clone(), place);
            from += (rows * row_bytes) as u64;
            group += rows.div_ceil(ROWS);
        }
        Self {
            places,
            groups: group,
            table: from,
        }
    }

    /// Where rows begin in the file, and their group; `None` for rows that are no group.
    fn find(&self, name: &str, rows: &Range<usize>) -> Option<(u64, usize)> {
        let place = self.places.get(name)?;
        let end = place.rows.min(rows.start + ROWS);
        if !rows.start.is_multiple_of(ROWS) || rows.end != end {
            return None;
        }
        let from = place.from + (rows.start * place.row_bytes) as u64;
        Some((from, place.group + rows.start / ROWS))
    }

    fn digest(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        for (name, place) in &self.places {
            let line = format!("{name}:{}x{}@{}\n", place.rows, place.row_bytes, place.from);
            hasher.update(line.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// What a file begins with. It seals its digests together with what they are of.
    fn head(&self, model: Digest, table: &[Hash]) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..HASH_BYTES].copy_from_slice(MAGIC);
        head[HASH_BYTES..2 * HASH_BYTES].copy_from_slice(model.as_bytes());
        head[2 * HASH_BYTES..3 * HASH_BYTES].copy_from_slice(&self.digest());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head[..3 * HASH_BYTES]);
        hasher.update(table.as_flattened());
        head[3 * HASH_BYTES..].copy_from_slice(hasher.finalize().as_bytes());
        head
    }

    /// Opens a file of these weights; nothing where there is none. No row is read.
    fn open(&self, path: &Path, model: Digest) -> Result<Option<Reading>, String> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        // A folder that cannot be written to serves as well; rows are then not put right.
        let opened = opened.or_else(|_| File::open(path));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("it cannot be read: {error}")),
        };
        let unreadable = |error: io::Error| format!("it cannot be read: {error}");
        let expected = self.table + (self.groups * HASH_BYTES) as u64;
        let found = file.metadata().map_err(unreadable)?.len();
        if found != expected {
            return Err(format!("it has {found} bytes, expected {expected}"));
        }
        let (mut head, mut table) = ([0; HEAD_BYTES], vec![NONE; self.groups]);
        file.read_exact_at(&mut head, 0).map_err(unreadable)?;
        file.read_exact_at(table.as_flattened_mut(), self.table)
            .map_err(unreadable)?;
        if head != self.head(model, &table) {
            return Err("its digests are not those of these weights".to_owned());
        }
        Ok(Some(Reading {
            path: path.to_owned(),
            file,
            table,
            damaged: AtomicUsize::new(0),
            differs: AtomicBool::new(false),
        }))
    }
}

impl Reading {
    fn finish(&self) -> Result<QuantisedCache, LoadError> {
        if self.differs.load(Ordering::Relaxed) {
            // Where it stays, the next start says the same.
            let _ = fs::remove_file(&self.path);
            return Err(LoadError::QuantisedCache {
                file: self.path.display().to_string(),
            });
        }
        Ok(match self.damaged.load(Ordering::Relaxed) {
            0 => QuantisedCache::Read,
            damaged => QuantisedCache::Damaged {
                reason: format!("{damaged} of {} groups of rows", self.table.len()),
            },
        })
    }
}

impl Writing {
    /// Makes the file under a name of its own. One process writes it at a time; another's start takes longer.
    fn start(folder: &Path, stamp: Digest, groups: usize) -> Result<Self, String> {
        let partial = Partial::begin(folder.join(format!("{stamp}.partial")));
        Ok(Self {
            partial: partial.map_err(|error| error.to_string())?,
            table: Mutex::new(vec![NONE; groups]),
            failed: Mutex::new(None),
        })
    }

    fn put(&self, from: u64, group: usize, bytes: &[u8]) {
        if locked(&self.failed).is_some() {
            return;
        }
        match self.partial.file().write_all_at(bytes, from) {
            Ok(()) => locked(&self.table)[group] = hash(bytes),
            Err(error) => *locked(&self.failed) = Some(error),
        }
    }

    /// Seals the file and gives it its name. A load that fails before that leaves nothing either.
    fn finish(&self, plan: &Plan, model: Digest, path: &Path) -> io::Result<()> {
        let sealed = self.seal(plan, model);
        let named = sealed.and_then(|()| self.partial.name(path));
        if named.is_err() {
            self.partial.discard();
        }
        named
    }

    fn seal(&self, plan: &Plan, model: Digest) -> io::Result<()> {
        if let Some(error) = locked(&self.failed).take() {
            return Err(error);
        }
        let (file, table) = (self.partial.file(), locked(&self.table));
        // Room for rows that were never asked for, as of a matrix that the model leaves aside.
        file.set_len(plan.table)?;
        file.write_all_at(table.as_flattened(), plan.table)?;
        file.write_all_at(&plan.head(model, &table), 0)
    }
}

/// Where a folder has the matrices of these weights.
fn file_of(folder: &Path, model: Digest) -> PathBuf {
    folder.join(format!("{model}-q8_0.rows"))
}

fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// What a panic elsewhere leaves is whole: every change is one assignment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
