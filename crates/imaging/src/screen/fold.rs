//! Text as it is compared: small letters without accents, half-width and full-width forms as one, katakana as hiragana. Each
//! folded character knows the bytes that it came from.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Katakana with a hiragana of the same sound, and how far apart both are.
const KATAKANA: Range<u32> = 0x30a1..0x30f7;
const TO_HIRAGANA: u32 = 0x60;

/// A folded text.
pub(super) struct Folded {
    pub(super) chars: Vec<char>,
    /// Of each character, the bytes of the text it was made from.
    origins: Vec<Range<usize>>,
    /// The text's bytes.
    original: Vec<u8>,
}

impl Folded {
    pub(super) fn new(text: &str) -> Self {
        let (mut chars, mut origins) = (Vec::new(), Vec::new());
        for (at, character) in text.char_indices() {
            let origin = at..at + character.len_utf8();
            fold(character, |folded| {
                chars.push(folded);
                origins.push(origin.clone());
            });
        }
        Self {
            chars,
            origins,
            original: text.as_bytes().to_vec(),
        }
    }

    /// The bytes behind folded characters.
    pub(super) fn bytes(&self, range: Range<usize>) -> Range<usize> {
        let start = self
            .origins
            .get(range.start)
            .map_or(0, |origin| origin.start);
        let end = range
            .end
            .checked_sub(1)
            .and_then(|last| self.origins.get(last));
        start..end.map_or(start, |origin| origin.end)
    }

    /// Whether these bytes, if they are a range at all, only separate two parts of a name.
    pub(super) fn joins(&self, bytes: Range<usize>, comma: bool) -> bool {
        let joins =
            |byte: &u8| matches!(byte, b' ' | b'-' | b'^' | b'=') || (comma && *byte == b',');
        bytes.start <= bytes.end
            && self
                .original
                .get(bytes)
                .is_some_and(|between| between.iter().all(joins))
    }
}

/// A text folded, for comparison alone.
pub(super) fn folded(text: &str) -> Vec<char> {
    let mut chars = Vec::new();
    for character in text.chars() {
        fold(character, |folded| chars.push(folded));
    }
    chars
}

fn fold(character: char, mut put: impl FnMut(char)) {
    for lower in std::iter::once(character)
        .nfkd()
        .flat_map(char::to_lowercase)
    {
        match lower {
            mark if is_combining_mark(mark) => {}
            'ß' => "ss".chars().for_each(&mut put),
            'æ' => "ae".chars().for_each(&mut put),
            'œ' => "oe".chars().for_each(&mut put),
            'þ' => "th".chars().for_each(&mut put),
            'ø' => put('o'),
            'ł' => put('l'),
            'đ' | 'ð' => put('d'),
            'ı' => put('i'),
            kana if KATAKANA.contains(&u32::from(kana)) => {
                put(char::from_u32(u32::from(kana) - TO_HIRAGANA).unwrap_or(kana));
            }
            other => put(other),
        }
    }
}
