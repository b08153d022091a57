//! Flags whose value is a word of a closed set: they take the words that the set has, wherever it is kept.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// Reads one of these by its word.
pub(crate) fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    word: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let words = all.iter().map(move |one| word(*one));
    PossibleValuesParser::new(words).try_map(move |given| {
        let found = all.iter().find(|one| word(**one) == given);
        found.copied().ok_or("a word of another set")
    })
}

#[cfg(test)]
mod tests {
    use medfleet_core::Class;

    use super::*;

    #[test]
    fn the_words_of_a_set_are_taken_and_no_other() {
        let check = |given: &str, expected: Option<Class>| {
            let flag = clap::Arg::new("class").value_parser(one_of(Class::ALL, Class::as_str));
            let matches = clap::Command::new("medfleet")
                .arg(flag)
                .try_get_matches_from(["medfleet", given]);
            let found = matches
                .ok()
                .map(|found| found.get_one::<Class>("class").copied());
            assert_eq!(found.flatten(), expected, "{given}");
        };
        check("bulk", Some(Class::Bulk));
        check("BULK", None);
        check("report", None);
    }
}
