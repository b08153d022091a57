//! A date of birth as people write it: digits alone, with separators in each order, with the month's name in six languages. And
//! what else is written as a date.

use std::ops::{Range, RangeInclusive};

use super::Identifiers;
use super::fold::Folded;

/// Months as they are written, folded; abbreviations are their beginnings.
const MONTHS: [&[&str]; 12] = [
    &[
        "january", "januar", "janvier", "enero", "gennaio", "janeiro",
    ],
    &[
        "february",
        "februar",
        "fevrier",
        "febrero",
        "febbraio",
        "fevereiro",
    ],
    &["march", "marz", "maerz", "mars", "marzo", "marco"],
    &["april", "avril", "abril", "aprile"],
    &["may", "mai", "mayo", "maggio", "maio"],
    &["june", "juni", "juin", "junio", "giugno", "junho"],
    &["july", "juli", "juillet", "julio", "luglio", "julho"],
    &["august", "aout", "agosto"],
    &[
        "september",
        "septembre",
        "septiembre",
        "settembre",
        "setembro",
    ],
    &[
        "october", "oktober", "octobre", "octubre", "ottobre", "outubro",
    ],
    &["november", "novembre", "noviembre", "novembro"],
    &[
        "december",
        "dezember",
        "decembre",
        "diciembre",
        "dicembre",
        "dezembro",
    ],
];
const ABBREVIATION_LETTERS_MIN: usize = 3;
/// Words within a date.
const FILLERS: &[&str] = &["st", "nd", "rd", "th", "of", "de", "年", "月", "日"];
/// Separators between two parts.
const SEPARATORS_MAX: usize = 3;
/// Years that a date may have where nothing else says that it is one.
const YEARS: RangeInclusive<u32> = 1850..=2100;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BirthDate {
    year: u32,
    month: u32,
    day: u32,
}

/// A part of what may be a date.
pub(super) struct Part {
    value: Value,
    range: Range<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// With the count of its digits.
    Number(u32, usize),
    Month(u32),
}

impl Identifiers {
    /// A value of VR DA.
    pub(super) fn add_birth_date(&mut self, value: &str) {
        let digits: String = value.chars().filter(char::is_ascii_digit).collect();
        if digits.len() == 8
            && let Ok(number) = digits.parse::<u32>()
        {
            let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
            // Writers that know no date write zeros or ones.
            if (1..=12).contains(&month) && (1..=31).contains(&day) && year >= 1850 {
                self.birth_dates.insert(BirthDate { year, month, day });
            }
        }
    }
}

impl BirthDate {
    /// Where it is, as ranges of folded characters.
    pub(super) fn find(self, text: &Folded, parts: &[Part]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            if let Value::Number(number, digits) = part.value
                && self.as_digits(number, digits)
            {
                found.push(part.range.clone());
            }
            let Some([a, b, c]) = parts.get(index..index + 3) else {
                continue;
            };
            if self.is(a, b, c) && joined(&text.chars, a, b) && joined(&text.chars, b, c) {
                found.push(a.range.start..c.range.end);
            }
        }
        found
    }

    fn as_digits(self, number: u32, digits: usize) -> bool {
        let Self { year, month, day } = self;
        let short = year % 100;
        match digits {
            8 => [
                year * 10_000 + month * 100 + day,
                day * 1_000_000 + month * 10_000 + year,
                month * 1_000_000 + day * 10_000 + year,
            ]
            .contains(&number),
            6 => [
                short * 10_000 + month * 100 + day,
                day * 10_000 + month * 100 + short,
                month * 10_000 + day * 100 + short,
            ]
            .contains(&number),
            _ => false,
        }
    }

    fn is(self, a: &Part, b: &Part, c: &Part) -> bool {
        let year = |part: &Part| match part.value {
            Value::Number(number, 4) => number == self.year,
            Value::Number(number, 2) => number == self.year % 100,
            _ => false,
        };
        let day =
            |part: &Part| matches!(part.value, Value::Number(number, 1 | 2) if number == self.day);
        let month = |part: &Part| match part.value {
            Value::Number(number, 1 | 2) | Value::Month(number) => number == self.month,
            Value::Number(..) => false,
        };
        (day(a) && month(b) && year(c))
            || (month(a) && day(b) && year(c))
            || (year(a) && month(b) && day(c))
    }
}

impl Part {
    fn is_named(&self) -> bool {
        matches!(self.value, Value::Month(_))
    }

    fn is_day(&self) -> bool {
        matches!(self.value, Value::Number(1..=31, 1 | 2))
    }

    fn is_month(&self) -> bool {
        self.is_named() || matches!(self.value, Value::Number(1..=12, 1 | 2))
    }

    fn is_long_year(&self) -> bool {
        matches!(self.value, Value::Number(year, 4) if YEARS.contains(&year))
    }

    fn is_year(&self) -> bool {
        self.is_long_year() || matches!(self.value, Value::Number(_, 2))
    }

    /// Whether it is a month's whole name, and nothing else.
    fn is_whole_name(&self, text: &[char]) -> bool {
        let word: String = text[self.range.clone()].iter().collect();
        word != "may" && MONTHS.iter().any(|names| names.contains(&word.as_str()))
    }

    /// Whether no letter is right before it, as in "T2".
    fn is_free(&self, text: &[char]) -> bool {
        let before = self.range.start.checked_sub(1);
        before.is_none_or(|before| !text[before].is_alphabetic())
    }
}

/// Every date in a text, as ranges of folded characters: of day, month and year, or of two of them where they are plainly those.
pub(super) fn every(text: &[char]) -> Vec<Range<usize>> {
    let parts = parts(text);
    let mut found = Vec::new();
    for index in 0..parts.len() {
        let of = |count: usize| parts.get(index..index + count).unwrap_or_default();
        let range = whole(text, of(3)).or_else(|| half(text, of(2)));
        found.extend(range);
    }
    found
}

fn whole(text: &[char], three: &[Part]) -> Option<Range<usize>> {
    let [a, b, c] = three else { return None };
    let is_date = a.is_day() && b.is_month() && c.is_year()
        || a.is_month() && b.is_day() && c.is_year()
        || a.is_year() && b.is_month() && c.is_day();
    // Numbers alone may also be measures.
    let alike = || {
        let (first, second) = (between(text, a, b), between(text, b, c));
        first == second && ["/", ".", "-", "–"].contains(&first.as_str())
            || first == "年" && second == "月"
    };
    let told = a.is_named() || b.is_named() || alike();
    (is_date && told && a.is_free(text) && near(text, a, b) && near(text, b, c))
        .then_some(a.range.start..c.range.end)
}

fn half(text: &[char], two: &[Part]) -> Option<Range<usize>> {
    let [a, b] = two else { return None };
    let is_date = if a.is_named() {
        b.is_long_year() || a.is_whole_name(text) && b.is_day()
    } else if b.is_named() {
        a.is_day() && b.is_whole_name(text)
    } else {
        a.is_month() && b.is_long_year() && between(text, a, b) == "/"
    };
    (is_date && a.is_free(text) && near(text, a, b)).then_some(a.range.start..b.range.end)
}

/// Whether two parts are of one line and of one value.
fn near(text: &[char], a: &Part, b: &Part) -> bool {
    joined(text, a, b) && !between(text, a, b).contains('\\')
}

fn between(text: &[char], a: &Part, b: &Part) -> String {
    let between: String = text[a.range.end..b.range.start].iter().collect();
    between.trim().to_owned()
}

/// Numbers and names of months, the same for every date.
pub(super) fn parts(text: &[char]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let of = |test: fn(char) -> bool| {
            at..text[at..]
                .iter()
                .position(|c| !test(*c))
                .map_or(text.len(), |n| at + n)
        };
        let range = if text[at].is_ascii_digit() {
            of(|c| c.is_ascii_digit())
        } else if text[at].is_alphabetic() {
            of(char::is_alphabetic)
        } else {
            at += 1;
            continue;
        };
        let word: String = text[range.clone()].iter().collect();
        let value = if text[at].is_ascii_digit() {
            let digits = word.len();
            word.parse()
                .ok()
                .map(|number| Value::Number(number, digits))
        } else {
            month(&word).map(Value::Month)
        };
        at = range.end;
        parts.extend(value.map(|value| Part { value, range }));
    }
    parts
}

fn month(word: &str) -> Option<u32> {
    let long = word.chars().count() >= ABBREVIATION_LETTERS_MIN;
    let of = |names: &[&str]| names.iter().any(|name| long && name.starts_with(word));
    (1..)
        .zip(MONTHS)
        .find(|(_, names)| of(names))
        .map(|(number, _)| number)
}

/// Whether only separators and words of dates lie between two parts.
fn joined(text: &[char], a: &Part, b: &Part) -> bool {
    let between: String = text[a.range.end..b.range.start].iter().collect();
    let mut words = between
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty());
    let separators = between.chars().filter(|c| !c.is_alphabetic()).count();
    separators <= SEPARATORS_MAX
        && words.all(|word| FILLERS.contains(&word))
        && !between.contains('\n')
}
