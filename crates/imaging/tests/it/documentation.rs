//! `docs/imaging.md` has the refusals, notes and reasons as the types have them, and names every version.

use std::collections::BTreeSet;
use std::path::Path;

use medfleet_imaging::{Convention, Note, Reason, Unused};

#[path = "../../examples/pictures/list.rs"]
mod list;

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
    for reason in Reason::ALL {
        let row = format!(
            "| `{}` | {} | {} |",
            reason.code(),
            reason.text(),
            reason.allowed()
        );
        assert!(PAGE.contains(&row), "the page lacks the row\n{row}");
    }
}

#[test]
fn lists_every_reason_to_leave_a_slice_out() {
    for unused in Unused::ALL {
        let row = format!("| `{}` | {} |", unused.code(), unused.text());
        assert!(PAGE.contains(&row), "the page lacks the row\n{row}");
    }
}

#[test]
fn lists_every_note() {
    assert_eq!(
        rows("Notes"),
        Note::ALL.iter().map(|note| note.as_str()).collect()
    );
}

#[test]
fn names_the_versions() {
    for convention in Convention::all() {
        assert!(PAGE.contains(&convention.version), "{}", convention.version);
    }
}

#[test]
fn shows_the_pictures_that_the_code_makes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpora = crate::corpus::cache().join("pydicom-data-1.0.0");
    for (name, png) in list::pictures(&root.join("tests"), &corpora) {
        let shown = std::fs::read(root.join("../../docs/imaging").join(&name)).unwrap_or_default();
        let pixels =
            |bytes: &[u8]| image::load_from_memory(bytes).map(|picture| picture.into_bytes());
        assert!(
            pixels(&shown).ok() == pixels(&png).ok(),
            "docs/imaging/{name} is not what comes out; `cargo run -p medfleet-imaging --example pictures -- {}` writes it",
            corpora.display()
        );
        assert!(
            PAGE.contains(&format!("(imaging/{name})")),
            "the page does not show {name}"
        );
    }
}
