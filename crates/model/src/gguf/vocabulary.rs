//! The tokenizer from the vocabulary inside a GGUF file, the same as the one of tokenizer.json.
//!
//! llama.cpp stores SentencePiece pieces with their scores; Gemma's tokenizer.json is byte-pair encoding with a list of
//! merges. A piece's score is its rank, so the merges follow: every split of a piece into two pieces, by score, then by
//! the length of the first and the second part, both falling. For Gemma 3 this gives exactly the 514,906 merges of
//! tokenizer.json, in their order (a test compares the ids of both).

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Library};

use super::value::Metadata;
use crate::error::LoadError;
use crate::tokenizer::Tokenizer;

/// ggml's kinds of token.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// SentencePiece's sign for a space.
const SPACE: char = '\u{2581}';

/// Builds the tokenizer; `rows` and `with_images` as in [`Tokenizer::load`].
pub(crate) fn tokenizer(
    meta: &Metadata,
    rows: usize,
    with_images: bool,
) -> Result<Tokenizer, LoadError> {
    meta.require_text("tokenizer.ggml.model", "llama")?;
    let kinds = meta.integers("tokenizer.ggml.token_type")?;
    let scores = meta.floats("tokenizer.ggml.scores")?;
    let stored = meta.texts("tokenizer.ggml.tokens")?;
    for (key, found) in [
        ("tokenizer.ggml.token_type", kinds.len()),
        ("tokenizer.ggml.scores", scores.len()),
    ] {
        if found != stored.len() {
            let expected = format!("{} entries, one per token", stored.len());
            return Err(meta
                .error(key, format!("{found} entries"), &expected)
                .into());
        }
    }
    // Runs of spaces are stored as spaces, everything else with the sign.
    let pieces: Vec<String> = stored
        .iter()
        .zip(kinds)
        .map(|(piece, kind)| match *kind {
            USER_DEFINED => piece.replace(' ', "\u{2581}"),
            _ => piece.clone(),
        })
        .collect();
    let merges = merges(&pieces, |index| match kinds[index] {
        NORMAL => scores[index],
        // The converter writes a placeholder; SentencePiece ranks these before all others.
        _ => 0.0,
    });
    let vocab: Vocab = (0u32..)
        .zip(&pieces)
        .map(|(id, p)| (p.clone(), id))
        .collect();
    let refuse = |error: tokenizers::Error| LoadError::Tokenizer {
        reason: error
            .to_string()
            .lines()
            .next()
            .unwrap_or("unusable")
            .to_owned(),
    };
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token("<unk>".to_owned())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(refuse)?;
    let mut library = Library::new(model);
    let spaces = Replace::new(" ", SPACE.to_string()).map_err(refuse)?;
    library.with_normalizer(Some(spaces)).map_err(refuse)?;
    let split = Split::new(
        SplitPattern::String(" ".to_owned()),
        SplitDelimiterBehavior::MergedWithPrevious,
        false,
    );
    library.with_pre_tokenizer(Some(split.map_err(refuse)?));
    let added = pieces
        .iter()
        .zip(kinds)
        .filter(|(_, kind)| **kind != NORMAL && **kind != BYTE);
    let added = added
        .map(|(piece, kind)| AddedToken::from(piece.clone(), *kind == CONTROL).normalized(false));
    library.add_tokens(added).map_err(refuse)?;
    Tokenizer::new(library, rows, with_images)
}

/// All merges, best first.
fn merges(pieces: &[String], score: impl Fn(usize) -> f64) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = (0..).zip(pieces).map(|(id, p)| (p.as_str(), id)).collect();
    struct Merge<'a> {
        score: f64,
        lengths: (usize, usize),
        parts: (&'a str, &'a str),
    }
    let mut all = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let count = piece.chars().count();
        let borders = piece.char_indices().enumerate().skip(1);
        let mut of_piece: Vec<_> = borders
            .filter_map(|(chars, (byte, _))| {
                let parts = piece.split_at(byte);
                let order = (*ids.get(parts.0)?, *ids.get(parts.1)?);
                let merge = Merge {
                    score: score(index),
                    lengths: (chars, count - chars),
                    parts,
                };
                Some((order, merge))
            })
            .collect();
        of_piece.sort_by_key(|(order, _)| *order);
        all.extend(of_piece.into_iter().map(|(_, merge)| merge));
    }
    // Stable: equal ones stay in the order of the vocabulary.
    all.sort_by(|a, b| {
        let by_score = b.score.total_cmp(&a.score);
        by_score.then_with(|| b.lengths.cmp(&a.lengths))
    });
    all.into_iter()
        .map(|merge| (merge.parts.0.to_owned(), merge.parts.1.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_ranked_by_score_then_by_length() {
        let pieces = ["a", "b", "c", "ab", "bc", "abc"].map(str::to_owned);
        let scores = [-9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
        let found = merges(&pieces, |index| scores[index]);
        let expected = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")];
        let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(found, expected);
    }
}
