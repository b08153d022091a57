//! SigLIP's text side before the tower: canonical text, pieces, and 64 ids.
//!
//! The model saw lower-case text without ASCII punctuation, always padded to the full length; its pooled vector is the
//! one of the last position, so other padding gives another embedding. Since the text loses its punctuation first, it
//! can never spell a control token.

use std::path::Path;

use prost::Message;
use tokenizers::Tokenizer as Library;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Replace, Sequence};

use crate::error::{EmbedError, LoadError};

const SENTENCEPIECE: &str = "spiece.model";
/// The files that decide what is made of a text, and its embedding, beside the weights.
pub(super) const SETTINGS: [&str; 3] = ["config.json", SENTENCEPIECE, "tokenizer.json"];
const END: &str = "</s>";
/// Stands for what has no piece.
const UNKNOWN: &str = "<unk>";
/// The piece of a space alone, before what has none.
const SPACE: &str = "\u{2581}";
/// SentencePiece's number for unigram models.
const UNIGRAM: i32 = 1;

/// Text to ids, always as many as the tower has positions.
pub(super) struct TextTokenizer {
    library: Library,
    /// A space is put before the first word here; tokenizer.json does so itself.
    prefix: bool,
    end: u32,
    unknown: Option<u32>,
    space: Option<u32>,
    positions: usize,
}

/// What the model is shown of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadText {
    /// As many as the tower has positions.
    pub(super) ids: Vec<u32>,
    /// It goes on where the ids end.
    pub is_cut: bool,
    /// Something in it has no piece: the model sees that there is something, and not what.
    pub has_unknown: bool,
    /// Something in it has a piece.
    pub has_known: bool,
}

impl ReadText {
    /// Whether the model is shown the same.
    pub fn reads_as(&self, other: &Self) -> bool {
        self.ids == other.ids
    }
}

/// The parts of SentencePiece's model file that matter here, by the field numbers of its public schema.
#[derive(Clone, PartialEq, Message)]
struct ModelFile {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(float, tag = "2")]
    score: f32,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, tag = "35")]
    byte_fallback: bool,
    #[prost(int32, tag = "40")]
    unk_id: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", tag = "2")]
    charsmap: Vec<u8>,
}

impl TextTokenizer {
    /// From `spiece.model` of `dir`, or else its `tokenizer.json`; ids must have rows in an embedding of `rows`.
    pub(super) fn load(dir: &Path, rows: usize, positions: usize) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::Tokenizer { reason };
        let path = dir.join(SENTENCEPIECE);
        let (library, prefix) = if path.is_file() {
            let bytes = std::fs::read(path).map_err(LoadError::unreadable(SENTENCEPIECE))?;
            (sentencepiece(&bytes)?, true)
        } else {
            let json = crate::config::read(dir, "tokenizer.json")?;
            let mut library = Library::from_bytes(json).map_err(|e| refuse(first_line(&e)))?;
            library.with_padding(None);
            library
                .with_truncation(None)
                .map_err(|e| refuse(first_line(&e)))?;
            (library, false)
        };
        let id_max = library.get_vocab(true).into_values().max().unwrap_or(0);
        if id_max as usize >= rows {
            return Err(LoadError::TokenizerTooLarge { id_max, rows });
        }
        let end = library
            .token_to_id(END)
            .ok_or(LoadError::MissingToken { token: END })?;
        Ok(Self {
            unknown: library.token_to_id(UNKNOWN),
            space: library.token_to_id(SPACE),
            library,
            prefix,
            end,
            positions,
        })
    }

    /// `positions` ids: the text's, cut off where it is too long, the end token, and that again as padding.
    pub(super) fn read(&self, text: &str) -> Result<ReadText, EmbedError> {
        let mut canonical = canonical(text);
        if self.prefix && !canonical.is_empty() {
            canonical.insert_str(0, SPACE);
        }
        let encoding = self
            .library
            .encode_fast(canonical, false)
            .map_err(|_| EmbedError::Tokenize)?;
        let mut ids = encoding.get_ids().to_vec();
        let is_cut = ids.len() >= self.positions;
        let has_unknown = ids.iter().any(|id| self.unknown == Some(*id));
        let empty = [self.unknown, self.space];
        let has_known = ids.iter().any(|id| !empty.contains(&Some(*id)));
        ids.truncate(self.positions - 1);
        ids.resize(self.positions, self.end);
        Ok(ReadText {
            ids,
            is_cut,
            has_unknown,
            has_known,
        })
    }
}

/// Lower case, no ASCII punctuation, runs of white space made one space, none at the ends.
fn canonical(text: &str) -> String {
    let lower = text.to_lowercase();
    let kept = lower.chars().filter(|c| !c.is_ascii_punctuation());
    // Python counts the four information separators as white space, Rust does not.
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let text: String = kept.collect();
    let words: Vec<&str> = text.split(space).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

fn first_line(error: &tokenizers::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or("unusable").to_owned()
}

/// The library's tokenizer from SentencePiece's file.
fn sentencepiece(bytes: &[u8]) -> Result<Library, LoadError> {
    let refuse = |reason: &str| LoadError::Tokenizer {
        reason: format!("{SENTENCEPIECE}: {reason}"),
    };
    let file = ModelFile::decode(bytes).map_err(|_| refuse("it does not parse"))?;
    let trainer = file.trainer.unwrap_or_default();
    if trainer.model_type.unwrap_or(UNIGRAM) != UNIGRAM || trainer.byte_fallback {
        return Err(refuse("allowed is a unigram model without byte fallback"));
    }
    let pieces: Vec<(String, f64)> = file
        .pieces
        .into_iter()
        .map(|piece| (piece.text, f64::from(piece.score)))
        .collect();
    let unk = usize::try_from(trainer.unk_id).map_err(|_| refuse("it has no unknown piece"))?;
    let model = Unigram::from(pieces, Some(unk), false).map_err(|e| refuse(&first_line(&e)))?;
    let mut library = Library::new(model);
    let replace = |pattern: ReplacePattern, with: &str| {
        Replace::new(pattern, with)
            .map(NormalizerWrapper::from)
            .map_err(|e| refuse(&first_line(&e)))
    };
    let mut steps = Vec::new();
    let charsmap = file.normalizer.unwrap_or_default().charsmap;
    if !charsmap.is_empty() {
        let map =
            Precompiled::from(&charsmap).map_err(|_| refuse("its character map is damaged"))?;
        steps.push(NormalizerWrapper::from(map));
    }
    steps.push(replace(ReplacePattern::Regex(" +".to_owned()), "\u{2581}")?);
    library
        .with_normalizer(Some(Sequence::new(steps)))
        .map_err(|e| refuse(&first_line(&e)))?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_made_canonical() {
        let check = |text: &str, expected: &str| assert_eq!(canonical(text), expected);
        check("  A chest X-ray,\tnormal.\n", "a chest xray normal");
        check("«ÄÖ» — 5 %", "«äö» — 5");
        check("</s> <unk>", "s unk");
        check("a\u{1f}b\u{a0}c", "a b c");
        check("?!", "");
    }
}
