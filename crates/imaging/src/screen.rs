//! Free text without the names and numbers of a header: what a person typed into a question must not tell the model, or whoever
//! gets an object, whose picture it is.
//!
//! [`Identifiers`] come from headers and never leave: they can be looked for, counted and masked, not read. Only what a header
//! says is found; another person's name in the text is not.
//!
//! Reading order: this file, `collect` (from a header), `needle` (what is looked for and where), `fold` (letters compared as
//! people write them), `birth_date` (in its spellings).

mod birth_date;
mod collect;
mod fold;
mod needle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Serialize;

use birth_date::BirthDate;
use fold::Folded;
use needle::{Needle, Sorted};

pub use collect::identifiers;

/// Different identifiers that are kept of the headers of one job. Every instance has a UID of its own, and a job may have
/// several archives of thousands. A text is compared only with those that begin as one of its words does.
pub(crate) const IDENTIFIERS_MAX: usize = 65_536;
/// Characters of one: an address is the longest text that they are taken from (PS3.5 6.2, ST).
pub(crate) const IDENTIFIER_CHARS_MAX: usize = 1024;

/// What an identifier is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum IdentifierKind {
    /// Of a person: patient, relative, physician, operator.
    Name,
    /// A number or code of patient, study, order or device.
    Number,
    /// The patient's date of birth.
    BirthDate,
    /// An institution or an address.
    Place,
}

impl IdentifierKind {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Number => "NUMBER",
            Self::BirthDate => "BIRTH_DATE",
            Self::Place => "PLACE",
        }
    }

    /// What stands in the text instead. Without a character that would need escaping in JSON.
    pub fn mask(self) -> &'static str {
        match self {
            Self::Name => "[name]",
            Self::Number => "[number]",
            Self::BirthDate => "[date of birth]",
            Self::Place => "[place]",
        }
    }
}

/// What headers say about who a picture is of.
#[derive(Clone, Default)]
pub struct Identifiers {
    needles: BTreeSet<Needle>,
    birth_dates: BTreeSet<BirthDate>,
    /// Whether there was one that is longer than any is, and is not among them: of a few it takes as much memory as of all.
    too_long: bool,
}

/// A text, and what was taken out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screened {
    /// The text, with masks.
    pub text: String,
    /// How often something of a kind was masked.
    pub masked: BTreeMap<IdentifierKind, u32>,
}

impl std::fmt::Debug for Identifiers {
    /// How many there are, never which.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.needles.len() + self.birth_dates.len();
        f.debug_struct("Identifiers")
            .field("count", &count)
            .finish_non_exhaustive()
    }
}

/// Byte ranges of everything in a text that is written as a date.
pub(crate) fn dates(text: &str) -> Vec<Range<usize>> {
    let folded = Folded::new(text);
    let dates = birth_date::every(&folded.chars);
    dates.into_iter().map(|date| folded.bytes(date)).collect()
}

impl Identifiers {
    /// Adds those of another header of the job.
    pub fn merge(&mut self, other: Self) {
        self.needles.extend(other.needles);
        self.birth_dates.extend(other.birth_dates);
        self.too_long |= other.too_long;
    }

    /// Whether there are more than are kept, or longer ones; then a text can't be said to be free of them.
    pub fn too_many(&self) -> bool {
        self.too_long || self.needles.len() + self.birth_dates.len() > IDENTIFIERS_MAX
    }

    /// Masks them in a text.
    pub fn screen(&self, text: &str) -> Screened {
        let folded = Folded::new(text);
        let found = self.found(&folded, text.len());
        let (mut out, mut masked, mut done) =
            (String::with_capacity(text.len()), BTreeMap::new(), 0);
        for (start, (end, kind)) in found {
            let range = start..end;
            if range.end <= done {
                continue;
            }
            if range.start >= done {
                out.push_str(&text[done..range.start]);
                out.push_str(kind.mask());
                *masked.entry(kind).or_insert(0) += 1;
            }
            // What overlaps the one before goes with it.
            done = range.end;
        }
        out.push_str(&text[done..]);
        Screened { text: out, masked }
    }

    /// Byte ranges of the text, of those that begin at one place the longest: where each begins, where it ends, and what it is.
    /// `bytes`: of the text.
    fn found(&self, text: &Folded, bytes: usize) -> BTreeMap<usize, (usize, IdentifierKind)> {
        let mut found = BTreeMap::new();
        // At which bytes of the text names begin and end.
        let (mut name_starts, mut name_ends) = (vec![false; bytes + 1], vec![false; bytes + 1]);
        let mut weak = Vec::new();
        for (first, starts) in &needle::starts(text) {
            // They are sorted by their characters.
            let from_here = self.needles.range(Needle::least(*first)..);
            let from_here = from_here.take_while(|needle| needle.begins_with(*first));
            let sorted = Sorted::new(from_here);
            for start in starts {
                let mut longest: Option<(Range<usize>, IdentifierKind)> = None;
                sorted.find(text, *start, |needle, end| {
                    let range = text.bytes(*start..end);
                    if needle.weak {
                        weak.push((range, needle.kind));
                        return;
                    }
                    if needle.kind == IdentifierKind::Name {
                        name_starts[range.start] = true;
                        name_ends[range.end] = true;
                    }
                    if longest
                        .as_ref()
                        .is_none_or(|(longest, _)| longest.end < range.end)
                    {
                        longest = Some((range, needle.kind));
                    }
                });
                if let Some((range, kind)) = longest {
                    put_longest(&mut found, range, kind);
                }
            }
        }
        let parts = birth_date::parts(&text.chars);
        let dates = self.birth_dates.iter();
        for range in dates.flat_map(|date| date.find(text, &parts)) {
            put_longest(&mut found, text.bytes(range), IdentifierKind::BirthDate);
        }
        // A word that is also an everyday one counts beside another part of a name: "No, Ji Woo", not "Ji Woo, no fever". Beyond
        // the nearest there is that part itself in between.
        for (range, kind) in weak {
            let next = (range.end..=bytes).find(|at| name_starts[*at]);
            let last = (0..=range.start).rfind(|at| name_ends[*at]);
            if next.is_some_and(|next| text.joins(range.end..next, true))
                || last.is_some_and(|last| text.joins(last..range.start, false))
            {
                put_longest(&mut found, range, kind);
            }
        }
        found
    }
}

fn put_longest(
    found: &mut BTreeMap<usize, (usize, IdentifierKind)>,
    range: Range<usize>,
    kind: IdentifierKind,
) {
    let longest = found.entry(range.start).or_insert((range.end, kind));
    if longest.0 < range.end {
        *longest = (range.end, kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(add: impl FnOnce(&mut Identifiers)) -> Identifiers {
        let mut identifiers = Identifiers::default();
        add(&mut identifiers);
        identifiers
    }

    #[track_caller]
    fn check(identifiers: &Identifiers, text: &str, expected: &str) {
        assert_eq!(identifiers.screen(text).text, expected, "{text}");
    }

    #[test]
    fn names_are_found_in_every_order_and_case_and_only_as_words() {
        let names = with(|all| all.add_name("van der Doe^Jane Mary^^Dr^"));
        check(
            &names,
            "Is JANE DOE's lung clear?",
            "Is [name] [name]'s lung clear?",
        );
        check(
            &names,
            "doe, jane-mary: effusion",
            "[name], [name]-[name]: effusion",
        );
        check(
            &names,
            "does the doe-like shadow matter",
            "does the [name]-like shadow matter",
        );
        check(&names, "janet has no effusion", "janet has no effusion");
        assert_eq!(names.screen("Doe, Doe").masked[&IdentifierKind::Name], 2);
    }

    #[test]
    fn letters_are_compared_as_people_write_them() {
        let german = with(|all| all.add_name("MUELLER^HEINZ"));
        check(
            &german,
            "Herr Müller, Muller, Mueller",
            "Herr [name], [name], [name]",
        );
        let french = with(|all| all.add_name("Lefèvre^Zoé"));
        check(&french, "LEFEVRE zoe", "[name] [name]");
        let japanese = with(|all| all.add_name("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"));
        check(
            &japanese,
            "山田太郎さん、やまだ ヤマダ",
            "[name]さん、[name] [name]",
        );
        let korean = with(|all| all.add_name("Kim^Cheolsu=金^哲秀=김^철수"));
        check(&korean, "김철수는 기침", "[name]는 기침");
        let chinese = with(|all| all.add_name("Wang^XiaoDong=王^小东"));
        check(&chinese, "王小东 王道", "[name] 王道");
    }

    #[test]
    fn everyday_words_count_beside_a_name_only() {
        let names = with(|all| all.add_name("NO^JI WOO"));
        check(
            &names,
            "No mass? Ji Woo No, no fever. No, Ji Woo",
            "No mass? [name] [name] [name], no fever. [name], [name] [name]",
        );
    }

    #[test]
    fn numbers_are_found_in_other_groupings() {
        let numbers = with(|all| {
            all.add_number("00123-45678", 4);
            all.add_number("77", 4);
        });
        check(
            &numbers,
            "MRN12345678, 123 45 678 or 00123-45678",
            "MRN[number], [number] or [number]",
        );
        check(&numbers, "912345678 and 77 mm", "912345678 and 77 mm");
    }

    /// Each compared by itself at each place of the text would take minutes.
    #[test]
    fn names_that_begin_alike_are_found_together() {
        let long = "a".repeat(1_000);
        let names = with(|all| {
            (2..1_000).for_each(|n| all.add_name(&long[..n]));
            (0..10_000).for_each(|n| all.add_name(&format!("{long}{n}")));
        });
        // Each begins in the one before, and ends behind it.
        check(&names, &"a ".repeat(8_000), "[name] ");
        check(&names, "a-b, a b, ab, aa", "a-b, a b, ab, [name]");
    }

    #[test]
    fn the_longest_is_masked_and_an_everyday_word_beside_a_shorter_one_too() {
        let all = with(|all| {
            all.add_name("Ann^Lee");
            all.add_name("Ann Lee^No");
            all.add_place("Annlee Hospital");
        });
        check(&all, "Ann Lee Hospital, no", "[place], no");
        check(&all, "no Ann, Lee no", "[name] [name], [name] [name]");
        check(&all, "no, Ann Lee Hospital", "[name], [place]");
    }

    #[test]
    fn the_instances_of_a_large_study_are_not_too_many() {
        let uid = |instance: u32| format!("1.2.840.99999.{instance}");
        let uids = with(|all| (0..20_000).for_each(|n| all.add_number(&uid(n), 10)));
        assert!(!uids.too_many());
        check(
            &uids,
            "1.2.840.99999.1234, not 1.2.840.99999.20000",
            "[number], not 1.2.840.99999.20000",
        );
    }

    #[test]
    fn birth_dates_are_found_in_their_spellings() {
        let date = with(|all| all.add_birth_date("19600312"));
        for text in [
            "19600312",
            "1960-03-12",
            "12.03.1960",
            "12/3/60",
            "3/12/1960",
            "12 March 1960",
            "March 12th, 1960",
            "12. März 1960",
            "12 mars 1960",
            "12 marzo 1960",
            "12 de março de 1960",
            "12MAR1960",
            "12-Mar-60",
            "600312",
            "１９６０／０３／１２",
        ] {
            check(&date, &format!("born {text}."), "born [date of birth].");
        }
        check(&date, "1960年3月12日生", "[date of birth]日生");
        check(
            &date,
            "seen 12.03.2024, 13/3/60",
            "seen 12.03.2024, 13/3/60",
        );
    }

    #[test]
    fn places_are_found_as_a_whole() {
        let places = with(|all| all.add_place("St. Planted Hospital"));
        check(&places, "from ST PLANTED  HOSPITAL", "from [place]");
        check(&places, "a hospital", "a hospital");
    }

    #[test]
    fn nothing_of_them_is_shown() {
        let names = with(|all| all.add_name("Doe^Jane"));
        assert!(!format!("{names:?}").to_lowercase().contains("doe"));
    }
}
