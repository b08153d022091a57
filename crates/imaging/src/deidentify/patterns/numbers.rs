//! Numbers that may be of a person: long ones, groups of digits with anything between them, what a label says is one, places behind
//! a label, ages above 89. Measures, sizes, levels of the spine and rows of round values are none.

use std::ops::Range;

use super::people::is_clinical;
use super::tokens::{Kind, Tokens, has};

/// Digits in a row that may be a number of a person.
const DIGITS_MIN: usize = 5;
/// The same with separators between them, as in telephone numbers and dates.
const GROUPED_DIGITS_MIN: usize = 6;
/// The same in two groups with a blank between them.
const PAIRED_DIGITS_MIN: usize = 7;
/// The same behind a label.
const LABELLED_DIGITS_MIN: usize = 3;
/// Pieces between two groups of digits.
const BETWEEN_MAX: usize = 3;
const BETWEEN: &str = ".-–‑/()+";
/// What makes the number before it a measure.
const UNITS: &str = "x mm cm m µm um ml l kv kvp ma mas s ms sec min h hz khz mhz t mt hu deg mg g kg mci mbq gbq mgy gy slices \
    views images bit bits px pixel pixels percent mmhg bpm y yr yrs year years";
/// Letters of vertebrae.
const LEVELS: &str = "c t th l s d co hwk bwk lwk swk";
const NUMBERED: &str = "tel telephone telefon téléphone teléfono telefono phone fax telefax mobile mobil handy cell mrn ssn iban \
    pid";
const PLACED: &str =
    "address adresse anschrift wohnhaft plz zip postcode dirección indirizzo endereço";
/// Ages from here to the highest are hidden (the HIPAA safe-harbour rule).
const AGES: std::ops::RangeInclusive<u32> = 90..=130;
const BEFORE_AGES: &str = "age aged alter alt âge edad età idade";
const BEHIND_AGES: &str =
    "y yo yr yrs year years jahr jahre jahren jährig jährige jähriger ans an años anni anos";
/// Characters of a group of an IBAN, and groups of the shortest.
const IBAN_GROUP: usize = 4;
const IBAN_GROUPS_MIN: usize = 4;

/// Finds one that begins here.
type Find = fn(&Tokens<'_>, usize) -> Option<Range<usize>>;

/// Where they are.
pub(super) fn numbers(tokens: &Tokens<'_>) -> Vec<Range<usize>> {
    const FINDERS: [Find; 4] = [iban, age, labelled, place];
    let mut found = chains(tokens);
    for find in FINDERS {
        let mut at = 0;
        while at < tokens.len() {
            let range = find(tokens, at);
            at = range.as_ref().map_or(at + 1, |range| range.end);
            found.extend(range);
        }
    }
    found
}

/// Whether a word without blanks is one.
pub(super) fn is_number(word: &str) -> bool {
    if is_size(word) || is_level(word) {
        return false;
    }
    let groups = word.split(|c: char| !c.is_numeric());
    let groups = groups.map(|group| group.chars().count());
    let groups: Vec<usize> = groups.filter(|digits| *digits > 0).collect();
    let all: usize = groups.iter().sum();
    let date = groups.len() == 3 && word.contains(['/', '-', '.']) && all >= 4;
    groups.iter().any(|digits| *digits >= DIGITS_MIN) || all >= GROUPED_DIGITS_MIN || date
}

fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| matches!(c, '(' | ')' | '.' | ',' | ';' | ':'))
}

/// "512x512", "0.5x0.5x3.0mm".
fn is_size(word: &str) -> bool {
    const TIMES: [char; 4] = ['x', 'X', '×', '*'];
    let is_measure = |side: &str| {
        let (whole, fraction) = side.split_once(['.', ',']).unwrap_or((side, "0"));
        is_digits(whole, 4) && is_digits(fraction, 3)
    };
    let word = bare(word).trim_end_matches(char::is_alphabetic);
    word.contains(TIMES) && word.split(TIMES).all(is_measure)
}

/// "L4/L5", "Th10-Th12".
fn is_level(word: &str) -> bool {
    bare(word).split(['-', '–', '/', ',']).all(|level| {
        let number = level.trim_start_matches(char::is_alphabetic);
        let letters = level.strip_suffix(number).unwrap_or_default();
        has(LEVELS, &letters.to_lowercase()) && is_digits(number, 2)
    })
}

fn is_digits(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Groups of digits with blanks and the like between them.
fn chains(tokens: &Tokens<'_>) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !is_group(tokens, at) {
            at += 1;
            continue;
        }
        let (groups, end) = chain(tokens, at);
        let mut start = at;
        while let Some(before) = start.checked_sub(1)
            && tokens.is_mark(before, "+(")
        {
            start = before;
        }
        found.extend(is_long(&groups).then_some(start..end));
        at = end;
    }
    found
}

/// The groups from this one, and where they end.
fn chain<'a>(tokens: &Tokens<'a>, from: usize) -> (Vec<&'a str>, usize) {
    let (mut groups, mut end) = (vec![tokens.text(from)], from + 1);
    loop {
        let mut next = end;
        while next < end + BETWEEN_MAX
            && (tokens.is(next, Kind::Blank) || tokens.is_mark(next, BETWEEN))
        {
            next += 1;
        }
        if next == end || !is_group(tokens, next) {
            return (groups, end);
        }
        groups.push(tokens.text(next));
        end = next + 1;
    }
}

/// Whether groups of digits are too many for anything that is measured.
fn is_long(groups: &[&str]) -> bool {
    let digits: usize = groups.iter().map(|group| group.chars().count()).sum();
    let two = |group: &&&str| group.len() > 1;
    let led = groups
        .iter()
        .filter(two)
        .any(|group| group.starts_with('0'));
    // "0 500 1000".
    let round = !led && groups.iter().all(|group| group.ends_with('0'));
    let many = digits >= PAIRED_DIGITS_MIN || digits >= GROUPED_DIGITS_MIN && groups.len() > 2;
    many && !round && groups.iter().filter(two).count() > 1
}

/// Whether a number may be a group of digits of a longer one.
fn is_group(tokens: &Tokens<'_>, at: usize) -> bool {
    tokens.is(at, Kind::Number)
        && tokens.kind_before(at) != Some(Kind::Word)
        && !tokens.is(at + 1, Kind::Word)
        && !tokens.is_word(tokens.behind_blank(at + 1), UNITS)
        && !is_decimal(tokens, at)
}

/// Whether a number is one half of a decimal one.
fn is_decimal(tokens: &Tokens<'_>, at: usize) -> bool {
    let before = |at: usize, mark: &str| {
        let is_number = |at| tokens.is(at, Kind::Number);
        at >= 2 && tokens.is_mark(at - 1, mark) && is_number(at - 2)
    };
    let behind = |at: usize, mark: &str| before(at + 2, mark) && tokens.is(at + 2, Kind::Number);
    if before(at, ",") || behind(at, ",") {
        return true;
    }
    let (has_whole, has_fraction) = (before(at, "."), behind(at, "."));
    let first = if has_whole { at - 2 } else { at };
    let last = if has_fraction { at + 2 } else { at };
    let whole = tokens.text(first);
    has_whole != has_fraction
        && !before(first, ".")
        && !behind(last, ".")
        && is_digits(whole, 4)
        && (whole == "0" || !whole.starts_with('0'))
}

/// An account number in groups of four.
fn iban(tokens: &Tokens<'_>, from: usize) -> Option<Range<usize>> {
    let country = tokens.text(from);
    if !tokens.is(from, Kind::Word) || country.len() != 2 || !tokens.is(from + 1, Kind::Number) {
        return None;
    }
    let (mut at, mut groups, mut end) = (from, 0, from);
    loop {
        let mut characters = 0;
        while characters <= IBAN_GROUP && is_of_iban(tokens, at) {
            characters += tokens.text(at).chars().count();
            at += 1;
        }
        let fits = (1..=IBAN_GROUP).contains(&characters);
        if !fits || groups == 0 && characters < IBAN_GROUP {
            break;
        }
        (groups, end) = (groups + 1, at);
        if characters < IBAN_GROUP || !tokens.is(at, Kind::Blank) {
            break;
        }
        at += 1;
    }
    (groups >= IBAN_GROUPS_MIN).then_some(from..end)
}

fn is_of_iban(tokens: &Tokens<'_>, at: usize) -> bool {
    let capital = |c: char| c.is_ascii_uppercase();
    tokens.is(at, Kind::Number) || tokens.is(at, Kind::Word) && tokens.text(at).chars().all(capital)
}

/// The number alone: its unit says nothing.
fn age(tokens: &Tokens<'_>, at: usize) -> Option<Range<usize>> {
    let years: u32 = tokens.text(at).parse().ok()?;
    if !AGES.contains(&years) {
        return None;
    }
    let unit = tokens.behind_blank(tokens.behind_mark(tokens.behind_blank(at + 1), "-"));
    let is_unit = tokens.is_word(unit, BEHIND_AGES)
        || tokens.is_word(unit, "j") && tokens.is_mark(unit + 1, ".");
    let mut before = at;
    while let Some(back) = before.checked_sub(1)
        && (tokens.is(back, Kind::Blank)
            || tokens.is_mark(back, ":=")
            || tokens.is_word(back, "of"))
    {
        before = back;
    }
    let is_labelled = before > 0 && tokens.is_word(before - 1, BEFORE_AGES);
    (is_unit || is_labelled).then_some(at..at + 1)
}

/// What a label is of, and whether there is a colon between.
fn behind_label(tokens: &Tokens<'_>, at: usize, labels: &str) -> Option<(usize, bool)> {
    if !tokens.is_word(at, labels) {
        return None;
    }
    let point = |at| tokens.behind_blank(tokens.behind_mark(at, "."));
    let mut next = point(at + 1);
    if tokens.is_word(next, "no nr number code") {
        next = point(next + 1);
    }
    let colon = tokens.is_mark(next, ":=#：");
    let of = if colon {
        tokens.behind_space(next + 1)
    } else {
        next
    };
    Some((of, colon))
}

/// A number behind its label, with letters at its digits.
fn labelled(tokens: &Tokens<'_>, at: usize) -> Option<Range<usize>> {
    let (start, _) = behind_label(tokens, at, NUMBERED)?;
    let (mut at, mut end, mut digits) = (start, start, 0);
    loop {
        let number = tokens.is(at, Kind::Number);
        let beside = tokens.kind_before(at) == Some(Kind::Number);
        let letters = beside || tokens.is(at + 1, Kind::Number);
        if number || tokens.is(at, Kind::Word) && letters {
            end = at + 1;
        } else if !tokens.is(at, Kind::Blank) && !tokens.is_mark(at, BETWEEN) {
            break;
        }
        if number {
            digits += tokens.text(at).chars().count();
        }
        at += 1;
    }
    (digits >= LABELLED_DIGITS_MIN).then_some(start..end)
}

/// Streets, cities and their codes behind a label: with a colon to the end of the line or a semicolon, otherwise as far as there are
/// numbers and words with a capital.
fn place(tokens: &Tokens<'_>, at: usize) -> Option<Range<usize>> {
    let (start, colon) = behind_label(tokens, at, PLACED)?;
    let is_code = |at| {
        let letters = tokens.is(at, Kind::Word) && tokens.is(at + 1, Kind::Number);
        letters || tokens.is(at, Kind::Number)
    };
    if !colon && !is_code(start) {
        return None;
    }
    let (mut at, mut end) = (start, start);
    loop {
        let word = tokens.is(at, Kind::Word);
        let ends = is_clinical(tokens, at) && !tokens.is_word(at, WITHIN_PLACES);
        if word && !is_code(at) && (ends || !colon && !tokens.is_large(at)) {
            break;
        }
        if word || matches!(tokens.kind(at), Some(Kind::Number | Kind::Mask)) {
            end = at + 1;
        } else if !tokens.is(at, Kind::Blank) && !tokens.is_mark(at, ",.-–/#'’") {
            break;
        }
        at += 1;
    }
    let is_masked = (start..end).all(|at| tokens.is(at, Kind::Mask));
    (!is_masked).then_some(start..end)
}

/// Words of the clinic that are in names of places.
const WITHIN_PLACES: &str = "am in of the";
