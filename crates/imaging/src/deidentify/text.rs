//! Text that stays: without the header's own names and numbers, and without what looks like an identifier wherever it is from.

use dicom_core::VR;

use crate::Identifiers;

/// Digits in a row that may be a number of a person.
const DIGITS_MIN: usize = 5;
/// The same with separators between them, as in telephone numbers and dates.
const GROUPED_DIGITS_MIN: usize = 6;
/// What stands before the name of a person.
const TITLES: &[&str] = &[
    "dr", "prof", "mr", "mrs", "ms", "miss", "herr", "frau", "mme", "doctor", "patient:", "name:",
];
const MASK: &str = "[removed]";

/// The text without them; `None` if there was nothing to take out.
pub(super) fn clean(text: &str, vr: VR, identifiers: &Identifiers) -> Option<String> {
    let screened = identifiers.screen(text);
    let found = !screened.masked.is_empty();
    // Codes have no room for a mask, nor for anything that was not meant to be a word of a list.
    if vr == VR::CS {
        return found.then(String::new);
    }
    let (cleaned, patterns) = patterns(&screened.text);
    (found || patterns).then_some(cleaned)
}

/// Whether the value representation has room for it (PS3.5 6.2), in characters of each value.
pub(super) fn fits(text: &str, vr: VR) -> bool {
    let most = match vr {
        VR::AE | VR::SH | VR::CS => 16,
        VR::LO | VR::PN => 64,
        VR::ST => 1024,
        VR::LT => 10_240,
        _ => usize::MAX,
    };
    let mut values = text.split('\\');
    values.all(|value| value.chars().count() <= most)
}

/// Masks words with many digits, addresses of mail, and what follows a title. White space stays as it is.
fn patterns(text: &str) -> (String, bool) {
    let (mut out, mut found, mut titled) = (String::with_capacity(text.len()), false, false);
    for piece in text.split_inclusive(|c: char| c.is_whitespace() || c == '\\') {
        let word = piece.trim_end_matches(|c: char| c.is_whitespace() || c == '\\');
        let bare = word.trim_end_matches(['.', ',']).to_lowercase();
        let named = titled && word.chars().any(char::is_alphabetic);
        titled = TITLES.contains(&bare.as_str()) || TITLES.contains(&word.to_lowercase().as_str());
        if !titled && (named || is_number(word) || is_mail(word)) {
            out.push_str(MASK);
            out.push_str(&piece[word.len()..]);
            found = true;
        } else {
            out.push_str(piece);
        }
    }
    (out, found)
}

fn is_number(word: &str) -> bool {
    let (mut row, mut most, mut all) = (0, 0, 0);
    for c in word.chars() {
        row = if c.is_numeric() { row + 1 } else { 0 };
        most = most.max(row);
        all += usize::from(c.is_numeric());
    }
    let groups = word
        .split(|c: char| !c.is_numeric())
        .filter(|group| !group.is_empty());
    let date = groups.count() == 3 && word.contains(['/', '-', '.']) && all >= 4;
    most >= DIGITS_MIN || all >= GROUPED_DIGITS_MIN || date
}

fn is_mail(word: &str) -> bool {
    word.split_once('@')
        .is_some_and(|(name, host)| !name.is_empty() && host.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(patterns(text).0, expected);
    }

    #[test]
    fn what_looks_like_an_identifier_is_masked_and_prose_is_not() {
        check("CHEST 2 VIEWS, 120 kV", "CHEST 2 VIEWS, 120 kV");
        check("MRN 4711234 of Dr. Doe", "MRN [removed] of Dr. [removed]");
        check(
            "call 555-0199-22 or a.b@c.org ",
            "call [removed] or [removed] ",
        );
        check("seen 12/3/60\r\nSlice 1.25", "seen [removed]\r\nSlice 1.25");
    }

    #[test]
    fn codes_are_emptied_as_there_is_no_room_for_a_mask() {
        let none = Identifiers::default();
        assert_eq!(clean("PRIMARY", VR::CS, &none), None);
        assert!(fits("[name]", VR::SH) && !fits("[name] [name] [name]", VR::SH));
    }
}
