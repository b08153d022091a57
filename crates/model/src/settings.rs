//! Digest of what decides a text beside the weights: the configuration, the tokens that end a text, the vocabulary. The same
//! weights with another of these write another text, and their digest is the same.

use std::io::ErrorKind;
use std::path::Path;

use medfleet_core::Digest;

use crate::error::LoadError;
use crate::gguf::file::file_name;
use crate::gguf::value::Metadata;

/// What a folder of Gemma 3 has of it.
pub(crate) const OF_FOLDER: [&str; 3] = ["config.json", "generation_config.json", "tokenizer.json"];

/// What was taken in so far.
pub(crate) struct Settings(blake3::Hasher);

impl Settings {
    pub(crate) fn new() -> Self {
        Self(blake3::Hasher::new_derive_key("medfleet model settings v1"))
    }

    /// Takes in these files of a folder.
    pub(crate) fn files(self, dir: &Path, names: &[&str]) -> Result<Self, LoadError> {
        let mut names = names.iter();
        names.try_fold(self, |settings, name| settings.file(&dir.join(name)))
    }

    /// Takes in a file, whole. That it is not there is a setting too: whoever needs it has said so.
    pub(crate) fn file(mut self, path: &Path) -> Result<Self, LoadError> {
        let name = file_name(path);
        match std::fs::read(path) {
            Ok(content) => self.add(&name, &content),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(LoadError::Read { file: name, source }),
        }
        Ok(self)
    }

    /// Takes in what a GGUF says of itself, its vocabulary included.
    pub(crate) fn metadata(mut self, metadata: &Metadata) -> Self {
        for (key, value) in &metadata.values {
            self.add(key, format!("{value:?}").as_bytes());
        }
        self
    }

    pub(crate) fn digest(self) -> Digest {
        Digest::new(*self.0.finalize().as_bytes())
    }

    fn add(&mut self, name: &str, content: &[u8]) {
        // Lengths come first, so that nothing can be cut otherwise.
        for part in [name.as_bytes(), content] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::value::Value;

    #[test]
    fn every_file_and_which_it_is_counts() {
        let dir = tempfile::tempdir().unwrap();
        let of = |names: &[&str]| Settings::new().files(dir.path(), names).unwrap().digest();
        let nothing = of(&["a", "b"]);
        std::fs::write(dir.path().join("a"), "1").unwrap();
        let first = of(&["a", "b"]);
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let second = of(&["a", "b"]);
        std::fs::write(dir.path().join("b"), "2").unwrap();
        let found = [nothing, first, second, of(&["a", "b"])];
        let different = found.iter().collect::<std::collections::HashSet<_>>();
        assert_eq!(different.len(), found.len());
        assert_eq!(of(&["a"]), nothing, "others do not count");
        std::fs::create_dir(dir.path().join("c")).unwrap();
        let unreadable = Settings::new().files(dir.path(), &["c"]);
        assert!(matches!(unreadable.err(), Some(LoadError::Read { .. })));
    }

    #[test]
    fn what_a_gguf_says_counts() {
        let of = |factor: f64| {
            let key = "gemma3.rope.scaling.factor".to_owned();
            let values = [(key, Value::Float(factor))].into_iter().collect();
            let file = "a.gguf".to_owned();
            Settings::new()
                .metadata(&Metadata { file, values })
                .digest()
        };
        assert_eq!(of(8.0), of(8.0));
        assert_ne!(of(8.0), of(1.0));
    }
}
