//! Digests of weights: over what is stored, and over the form it is held in.

use medfleet_core::Digest;

use super::{Entry, Part, Weights};
use crate::error::LoadError;

/// Bytes hashed at a time. They are read into one buffer: a page of the map that is touched counts as this process's memory.
const PIECE_BYTES: usize = 2 << 20;
/// Bytes that are worth hashing on several threads.
const PARALLEL_MIN: usize = 1 << 18;

/// Digests of what was loaded, by content: the naming scheme and the sharding make no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Text, vision and projector together.
    pub model: Digest,
    /// The vision tower alone: image tokens fit every model that shares it. Absent in text-only checkpoints.
    pub encoder: Option<Digest>,
}

impl Digests {
    /// The same weights with the language model's matrices in another form ([`Weights::held`]) are another model, which
    /// writes other text; the vision tower is what it was.
    pub(crate) fn held(self, form: &str) -> Self {
        if form.is_empty() {
            return self;
        }
        let mut hasher = blake3::Hasher::new_derive_key("medfleet quantised model v1");
        hasher.update(self.model.as_bytes()).update(form.as_bytes());
        Self {
            model: Digest::new(*hasher.finalize().as_bytes()),
            ..self
        }
    }
}

impl Weights {
    /// BLAKE3 over names (without the scheme's prefix), stored dtypes, shapes and bytes, in order of names.
    pub(crate) fn digests(&self) -> Result<Digests, LoadError> {
        let text = self.part_digest(Part::Text)?;
        let encoder = self.part_digest(Part::Vision)?;
        let mut hasher = blake3::Hasher::new();
        for digest in [text, encoder, self.part_digest(Part::Projector)?] {
            hasher.update(digest.unwrap_or(Digest::new([0; 32])).as_bytes());
        }
        Ok(Digests {
            model: Digest::new(*hasher.finalize().as_bytes()),
            encoder,
        })
    }

    fn part_digest(&self, part: Part) -> Result<Option<Digest>, LoadError> {
        let Some(prefix) = self.prefix(part) else {
            return Ok(None);
        };
        let mut piece = vec![0; PIECE_BYTES];
        let mut hasher = blake3::Hasher::new();
        hasher.update(part.canonical().as_bytes());
        for (name, entry) in self.entries.range(prefix.to_owned()..) {
            let Some(name) = name.strip_prefix(prefix) else {
                break;
            };
            if part == Part::Text && !is_text(name) {
                continue;
            }
            self.hash(&mut hasher, name, entry, &mut piece)?;
        }
        Ok(Some(Digest::new(*hasher.finalize().as_bytes())))
    }

    /// BLAKE3 over all tensors under their own names, for checkpoints that have one naming scheme.
    pub(crate) fn digest(&self) -> Result<Digest, LoadError> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut hasher = blake3::Hasher::new();
        for (name, entry) in &self.entries {
            self.hash(&mut hasher, name, entry, &mut piece)?;
        }
        Ok(Digest::new(*hasher.finalize().as_bytes()))
    }

    fn hash(
        &self,
        hasher: &mut blake3::Hasher,
        name: &str,
        entry: &Entry,
        piece: &mut [u8],
    ) -> Result<(), LoadError> {
        let header = format!("\n{name}:{:?}{:?}:", entry.dtype, entry.shape);
        hasher.update(header.as_bytes());
        let mut from = entry.bytes.start;
        while from < entry.bytes.end {
            let count = piece.len().min(entry.bytes.end - from);
            let piece = &mut piece[..count];
            self.shards[entry.shard].read(from, piece)?;
            if count < PARALLEL_MIN {
                hasher.update(piece);
            } else {
                hasher.update_rayon(piece);
            }
            from += count;
        }
        Ok(())
    }
}

/// Whether a name that begins as those of the text do is one: "model." is a prefix of every name in the in-memory scheme.
/// The name is without its prefix.
pub(super) fn is_text(name: &str) -> bool {
    !name.starts_with("vision_tower.") && !name.starts_with("multi_modal_projector.")
}
