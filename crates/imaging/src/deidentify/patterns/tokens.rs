//! A text in pieces: words, numbers, and each sign between them.

use std::ops::Range;

use unicode_normalization::char::is_combining_mark;

use super::MASK;
use crate::IdentifierKind;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Letters, with apostrophes between them.
    Word,
    Number,
    /// White space within a line.
    Blank,
    /// The end of a line, or of one of several values.
    Break,
    /// Any other character.
    Mark(char),
    /// What stands where something was taken out.
    Mask,
}

struct Token<'a> {
    kind: Kind,
    text: &'a str,
    start: usize,
}

/// All pieces of a text, by their place among them. There is nothing beyond the last.
pub(super) struct Tokens<'a>(Vec<Token<'a>>);

impl<'a> Tokens<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let (mut tokens, mut rest, mut start) = (Vec::new(), text, 0);
        while let Some(first) = rest.chars().next() {
            let (kind, length) = piece(rest, first);
            let (text, behind) = rest.split_at(length);
            tokens.push(Token { kind, text, start });
            (rest, start) = (behind, start + length);
        }
        Self(tokens)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn kind(&self, at: usize) -> Option<Kind> {
        self.0.get(at).map(|token| token.kind)
    }

    /// Of the piece before.
    pub(super) fn kind_before(&self, at: usize) -> Option<Kind> {
        at.checked_sub(1).and_then(|before| self.kind(before))
    }

    pub(super) fn text(&self, at: usize) -> &'a str {
        self.0.get(at).map_or("", |token| token.text)
    }

    pub(super) fn is(&self, at: usize, kind: Kind) -> bool {
        self.kind(at) == Some(kind)
    }

    /// Whether it is a word of a list, however it is written.
    pub(super) fn is_word(&self, at: usize, list: &str) -> bool {
        self.is(at, Kind::Word) && has(list, &self.text(at).to_lowercase())
    }

    pub(super) fn is_mark(&self, at: usize, marks: &str) -> bool {
        matches!(self.kind(at), Some(Kind::Mark(mark)) if marks.contains(mark))
    }

    /// Whether it is a word with a capital, or of a script without small letters.
    pub(super) fn is_large(&self, at: usize) -> bool {
        let text = self.text(at);
        self.is(at, Kind::Word) && (text.contains(char::is_uppercase) || !has_small(text))
    }

    /// The place itself, or the next where such a mark is.
    pub(super) fn behind_mark(&self, at: usize, marks: &str) -> usize {
        at + usize::from(self.is_mark(at, marks))
    }

    /// Behind blanks, which are one piece.
    pub(super) fn behind_blank(&self, at: usize) -> usize {
        at + usize::from(self.is(at, Kind::Blank))
    }

    /// Behind white space of every kind.
    pub(super) fn behind_space(&self, mut at: usize) -> usize {
        while matches!(self.kind(at), Some(Kind::Blank | Kind::Break)) {
            at += 1;
        }
        at
    }

    /// The bytes of pieces.
    pub(super) fn bytes(&self, range: &Range<usize>) -> Range<usize> {
        let start = self.0.get(range.start).map_or(0, |token| token.start);
        let last = range.end.checked_sub(1).and_then(|last| self.0.get(last));
        start..last.map_or(start, |token| token.start + token.text.len())
    }
}

/// Whether a list of words with blanks between them has this one.
pub(super) fn has(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace().any(|of| of == word)
}

pub(super) fn has_small(text: &str) -> bool {
    text.contains(char::is_lowercase)
}

fn piece(text: &str, first: char) -> (Kind, usize) {
    let is_break = |c: char| matches!(c, '\n' | '\r' | '\\');
    if let Some(mask) = mask_of(text) {
        (Kind::Mask, mask)
    } else if first.is_alphabetic() {
        (Kind::Word, word(text))
    } else if first.is_numeric() {
        (Kind::Number, run(text, char::is_numeric))
    } else if is_break(first) {
        (Kind::Break, first.len_utf8())
    } else if first.is_whitespace() {
        let blank = |c: char| c.is_whitespace() && !is_break(c);
        (Kind::Blank, run(text, blank))
    } else {
        (Kind::Mark(first), first.len_utf8())
    }
}

/// Bytes of the mask that a text begins with.
fn mask_of(text: &str) -> Option<usize> {
    let kinds = [
        IdentifierKind::Name,
        IdentifierKind::Number,
        IdentifierKind::BirthDate,
        IdentifierKind::Place,
    ];
    let mut masks = kinds.into_iter().map(IdentifierKind::mask).chain([MASK]);
    masks.find(|mask| text.starts_with(*mask)).map(str::len)
}

fn run(text: &str, is: impl Fn(char) -> bool) -> usize {
    text.find(|c: char| !is(c)).unwrap_or(text.len())
}

/// Bytes of the word that a text begins with.
fn word(text: &str) -> usize {
    let is_letter = |c: char| c.is_alphabetic() || is_combining_mark(c);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let joins = matches!(c, '\'' | '’') && chars.peek().is_some_and(|(_, c)| is_letter(*c));
        if !is_letter(c) && !joins {
            return at;
        }
    }
    text.len()
}
