//! `docs/imaging.md` has one row for each refusal code, and no other.

use std::collections::BTreeSet;

use medfleet_imaging::{Note, PREPROCESSING_VERSION, Reason};

const PAGE: &str = include_str!("../../../../docs/imaging.md");

/// The words in backticks that open a table row of the section.
fn rows(section: &str) -> BTreeSet<&'static str> {
    let body = PAGE
        .split("\n## ")
        .find_map(|part| part.strip_prefix(section))
        .expect("the section exists");
    body.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect()
}

#[test]
fn lists_every_refusal_code() {
    assert_eq!(
        rows("What is refused"),
        Reason::ALL.iter().map(|reason| reason.code()).collect()
    );
}

#[test]
fn lists_every_note() {
    assert_eq!(
        rows("Notes"),
        Note::ALL.iter().map(|note| note.as_str()).collect()
    );
}

#[test]
fn names_the_version() {
    assert!(PAGE.contains(PREPROCESSING_VERSION));
}
