//! What is looked for, and where it counts as found.

use std::collections::BTreeMap;

use super::fold::{Folded, folded};
use super::{IDENTIFIER_CHARS_MAX, IdentifierKind, Identifiers};

/// Shorter parts of names are initials.
const NAME_LETTERS_MIN: usize = 2;
/// Shorter spellings without umlauts would be everyday words.
const VARIANT_LETTERS_MIN: usize = 4;
/// Numbers from this length on are found in other groupings too.
const GROUPED_MIN: usize = 6;
const PLACE_LETTERS_MIN: usize = 4;

/// Words that are names and also everyday words of a question. Alone they are let through: a question without its "no" asks
/// something else.
const EVERYDAY: &[&str] = &[
    "a", "all", "an", "and", "any", "are", "as", "at", "be", "but", "by", "can", "der", "des",
    "die", "do", "dr", "du", "el", "for", "from", "has", "he", "her", "him", "his", "if", "in",
    "is", "it", "la", "le", "les", "los", "may", "me", "mr", "mrs", "ms", "my", "no", "not", "of",
    "on", "or", "per", "prof", "see", "she", "so", "that", "the", "this", "to", "und", "up", "van",
    "von", "was", "we", "with", "yes", "you",
];

/// One thing to look for, folded, without what separates its parts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Needle {
    chars: Vec<char>,
    /// What may stand between its characters in a text, besides nothing.
    gap: Gap,
    pub(super) kind: IdentifierKind,
    /// Counts only beside another one.
    pub(super) weak: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    None,
    /// One separator.
    One,
    /// Any number of them.
    Any,
}

impl Identifiers {
    /// A value of VR PN: groups by `=`, components by `^`.
    pub(super) fn add_name(&mut self, value: &str) {
        for group in value.split('=') {
            let components: Vec<&str> = group.split('^').map(str::trim).collect();
            let words = components.iter().flat_map(|component| {
                component.split(|c: char| c.is_whitespace() || matches!(c, '-' | ',' | '.'))
            });
            for word in words {
                self.add_word(word);
            }
            // Scripts without spaces write family and given name as one.
            let whole: String = components.iter().take(2).copied().collect();
            if whole.chars().any(is_unspaced) {
                self.add_word(&whole);
            }
        }
    }

    fn add_word(&mut self, word: &str) {
        let letters = word.chars().filter(|c| c.is_alphanumeric()).count();
        if letters < NAME_LETTERS_MIN {
            return;
        }
        let chars = alphanumeric(word);
        if self.is_too_long(&chars) {
            return;
        }
        let weak = EVERYDAY.contains(&chars.iter().collect::<String>().as_str());
        let mut add = |chars: Vec<char>| {
            self.needles.insert(Needle {
                chars,
                gap: Gap::One,
                kind: IdentifierKind::Name,
                weak,
            });
        };
        // ASCII headers write umlauts as two letters, and people in questions as one without dots.
        let plain: String = chars.iter().collect();
        let plain = plain
            .replace("ae", "a")
            .replace("oe", "o")
            .replace("ue", "u");
        if plain.len() >= VARIANT_LETTERS_MIN {
            add(plain.chars().collect());
        }
        let spelled: String = word
            .to_lowercase()
            .replace('ä', "ae")
            .replace('ö', "oe")
            .replace('ü', "ue")
            .replace('å', "aa");
        add(alphanumeric(&spelled));
        add(chars);
    }

    /// A number or code with at least this many letters and digits.
    pub(super) fn add_number(&mut self, value: &str, least: usize) {
        let chars = alphanumeric(value);
        if self.is_too_long(&chars) {
            return;
        }
        let zeros = chars.iter().take_while(|c| **c == '0').count();
        for chars in [chars.clone(), chars[zeros..].to_vec()] {
            if chars.len() < least {
                continue;
            }
            let gap = if chars.len() >= GROUPED_MIN {
                Gap::One
            } else {
                Gap::None
            };
            self.needles.insert(Needle {
                chars,
                gap,
                kind: IdentifierKind::Number,
                weak: false,
            });
        }
    }

    /// Whether it is longer than any identifier is. It is not kept, and that is noted.
    fn is_too_long(&mut self, chars: &[char]) -> bool {
        let is_too_long = chars.len() > IDENTIFIER_CHARS_MAX;
        self.too_long |= is_too_long;
        is_too_long
    }

    /// An institution or an address.
    pub(super) fn add_place(&mut self, value: &str) {
        let chars = alphanumeric(value);
        if self.is_too_long(&chars) {
            return;
        }
        if chars.len() >= PLACE_LETTERS_MIN {
            self.needles.insert(Needle {
                chars,
                gap: Gap::Any,
                kind: IdentifierKind::Place,
                weak: false,
            });
        }
    }
}

impl Needle {
    /// None that begins with this character sorts before it.
    pub(super) fn least(first: char) -> Self {
        Self {
            chars: vec![first],
            gap: Gap::None,
            kind: IdentifierKind::Name,
            weak: false,
        }
    }

    pub(super) fn begins_with(&self, first: char) -> bool {
        self.chars.first() == Some(&first)
    }
}

/// Needles that begin with one character, of each gap in their order.
pub(super) struct Sorted<'a>([(Gap, Vec<&'a Needle>); 3]);

impl<'a> Sorted<'a> {
    /// Of needles in their order.
    pub(super) fn new(needles: impl Iterator<Item = &'a Needle>) -> Self {
        let mut sorted = [Gap::None, Gap::One, Gap::Any].map(|gap| (gap, Vec::new()));
        for needle in needles {
            let of_gap = sorted.iter_mut().find(|(gap, _)| *gap == needle.gap);
            if let Some((_, of_gap)) = of_gap {
                of_gap.push(needle);
            }
        }
        Self(sorted)
    }

    /// Those that are in the text from `start` on, where a word begins with their first character, each with its end. The text is
    /// gone through once for all of a gap, as they are sorted.
    pub(super) fn find(&self, text: &Folded, start: usize, mut each: impl FnMut(&Needle, usize)) {
        let text = text.chars.as_slice();
        for (gap, needles) in &self.0 {
            let (mut left, mut at) = (needles.as_slice(), start);
            for index in 0.. {
                if index > 0 {
                    at = gap.behind(text, at);
                }
                let Some(next) = text.get(at) else { break };
                let of = |needle: &&Needle| needle.chars.get(index).copied();
                // Nearly always all of them, or none, go on alike.
                if left.first().and_then(of) != Some(*next)
                    || left.last().and_then(of) != Some(*next)
                {
                    let below = left.partition_point(|needle| of(needle) < Some(*next));
                    let to = left.partition_point(|needle| of(needle) <= Some(*next));
                    left = &left[below..to];
                }
                at += 1;
                // They come before those that are longer.
                let is_whole = |needle: &&&Needle| needle.chars.len() == index + 1;
                let whole = left.iter().take_while(is_whole).count();
                if border(text, at) {
                    let found = left[..whole].iter().copied();
                    found.for_each(|needle| each(needle, at));
                }
                left = &left[whole..];
                if left.is_empty() {
                    break;
                }
            }
        }
    }
}

impl Gap {
    /// Where the next character of a needle may be; none of them is a separator.
    fn behind(self, text: &[char], at: usize) -> usize {
        let most = match self {
            Self::None => 0,
            Self::One => 1,
            Self::Any => usize::MAX,
        };
        let between = text.iter().skip(at).take(most);
        at + between.take_while(|c| is_separator(**c)).count()
    }
}

/// Where a word may begin, by its first character.
pub(super) fn starts(text: &Folded) -> BTreeMap<char, Vec<usize>> {
    let mut starts: BTreeMap<char, Vec<usize>> = BTreeMap::new();
    for (at, first) in text.chars.iter().enumerate() {
        if border(&text.chars, at) {
            starts.entry(*first).or_default().push(at);
        }
    }
    starts
}

/// Whether a word may begin or end at this place: between two letters or two digits none does, unless the script has no spaces.
fn border(text: &[char], at: usize) -> bool {
    let (Some(before), Some(after)) = (at.checked_sub(1).map(|before| text[before]), text.get(at))
    else {
        return true;
    };
    if is_unspaced(before) || is_unspaced(*after) {
        return true;
    }
    let is_inside_word = before.is_alphabetic() && after.is_alphabetic();
    let is_inside_number = before.is_numeric() && after.is_numeric();
    !(is_inside_word || is_inside_number)
}

fn is_separator(c: char) -> bool {
    !c.is_alphanumeric()
}

/// Han, kana and Hangul, the latter also decomposed.
fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c), 0x1100..=0x11ff | 0x3040..=0x30ff | 0x3130..=0x318f | 0x3400..=0x9fff | 0xac00..=0xd7af | 0xf900..=0xfaff | 0xff66..=0xff9f | 0x20000..=0x3ffff)
}

fn alphanumeric(text: &str) -> Vec<char> {
    let chars = folded(text).into_iter();
    chars.filter(|c| c.is_alphanumeric()).collect()
}
