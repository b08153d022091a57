//! Digests of weights: over what is stored, and over the form it is held in.

use medfleet_core::Digest;

use super::{Entry, Part, Weights};

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
    pub(crate) fn digests(&self) -> Digests {
        let text = self.part_digest(Part::Text);
        let encoder = self.part_digest(Part::Vision);
        let mut hasher = blake3::Hasher::new();
        for digest in [text, encoder, self.part_digest(Part::Projector)] {
            hasher.update(digest.unwrap_or(Digest::new([0; 32])).as_bytes());
        }
        Digests {
            model: Digest::new(*hasher.finalize().as_bytes()),
            encoder,
        }
    }

    fn part_digest(&self, part: Part) -> Option<Digest> {
        let prefix = self.prefix(part)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(part.canonical().as_bytes());
        for (name, entry) in self.entries.range(prefix.to_owned()..) {
            let Some(name) = name.strip_prefix(prefix) else {
                break;
            };
            // "model." is a prefix of every name in the in-memory scheme; other parts are not text.
            if part == Part::Text
                && (name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector."))
            {
                continue;
            }
            self.hash(&mut hasher, name, entry);
        }
        Some(Digest::new(*hasher.finalize().as_bytes()))
    }

    /// BLAKE3 over all tensors under their own names, for checkpoints that have one naming scheme.
    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for (name, entry) in &self.entries {
            self.hash(&mut hasher, name, entry);
        }
        Digest::new(*hasher.finalize().as_bytes())
    }

    fn hash(&self, hasher: &mut blake3::Hasher, name: &str, entry: &Entry) {
        let header = format!("\n{name}:{:?}{:?}:", entry.dtype, entry.shape);
        hasher.update(header.as_bytes());
        hasher.update(self.bytes(entry));
        self.let_go(entry);
    }
}
