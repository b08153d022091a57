//! Tests that nothing would run: in a target whose manifest says that it has none, or as an example in a comment.

use std::fs;

use anyhow::{Context, Result};

use super::workspace::{Target, Workspace};
use crate::places;

/// Where a test is written that no command of the gate runs.
pub(crate) fn check(workspace: &Workspace, files: &[String]) -> Result<Vec<String>> {
    let targets: Vec<&Target> = workspace
        .members()
        .flat_map(|package| &package.targets)
        .filter(|target| target.may_have_tests())
        .collect();
    let mut violations = Vec::new();
    for name in files.iter().filter(|name| name.ends_with(".rs")) {
        let path = places::root().join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
        let path = path.to_string_lossy();
        if targets
            .iter()
            .any(|target| is_untested(&path, target, &targets))
            && has_test(&text)
        {
            violations.push(format!(
                "{name}: has a test that is not run: take `test = false` out of the manifest"
            ));
        }
        violations.extend(examples(&text).map(|line| {
            format!("{name}:{line}: an example in a comment is not run: write a test, or ```text")
        }));
    }
    Ok(violations)
}

/// Whether the file is a part of an untested target: its main file, and all below its folder unless a tested one lies there.
fn is_untested(path: &str, target: &Target, all: &[&Target]) -> bool {
    let shares = |other: &&Target| other.test && other.folder() == target.folder();
    let below = || path.starts_with(target.folder()) && !all.iter().any(shares);
    !target.test && (path == target.src_path || below())
}

fn has_test(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

/// Spaces that make code of a line.
const CODE_INDENT: usize = 4;

/// Lines on which a block of code opens in a comment that rustdoc reads: after a fence, or indented.
fn examples(text: &str) -> impl Iterator<Item = usize> {
    let mut comment = Comment::default();
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        let said = line.strip_prefix("///").or(line.strip_prefix("//!"));
        let opens = match said {
            Some(said) => comment.opens_code(said.strip_prefix(' ').unwrap_or(said)),
            None => {
                comment = Comment::default();
                false
            }
        };
        opens.then_some(index + 1)
    })
}

/// What is known of a comment after some of its lines.
#[derive(Default)]
struct Comment {
    is_fenced: bool,
    is_indented: bool,
    /// An indented line after a paragraph's is the paragraph's.
    is_after_text: bool,
    /// Where the text of the list's item begins, of which what follows may be a part.
    item: usize,
}

impl Comment {
    /// Whether code that rustdoc would run begins on this line.
    fn opens_code(&mut self, said: &str) -> bool {
        let text = said.trim_start();
        if let Some(language) = text.strip_prefix("```") {
            self.is_fenced = !self.is_fenced;
            (self.is_indented, self.is_after_text) = (false, false);
            return self.is_fenced && language.trim() != "text";
        }
        if self.is_fenced {
            return false;
        }
        if text.is_empty() {
            self.is_after_text = false;
            return false;
        }
        let indent = said.len() - text.len();
        if indent < self.item && !self.is_after_text {
            self.item = 0;
        }
        if !self.is_after_text && indent >= self.item + CODE_INDENT {
            let was_indented = std::mem::replace(&mut self.is_indented, true);
            return !was_indented;
        }
        self.is_indented = false;
        // A heading is no paragraph.
        self.is_after_text = !text.starts_with('#');
        if let Some(width) = marker(text) {
            self.item = indent + width;
        }
        false
    }
}

/// Length of what marks a list's item, with the space behind it.
fn marker(text: &str) -> Option<usize> {
    let number = text.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &text[number..];
    let marks: &[&str] = match number {
        0 => &["- ", "* ", "+ "],
        _ => &[". ", ") "],
    };
    let is_item = marks.iter().any(|mark| rest.starts_with(mark));
    is_item.then_some(number + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, test: bool) -> Target {
        Target {
            kind: vec!["lib".to_owned()],
            src_path: path.to_owned(),
            test,
        }
    }

    #[test]
    fn a_test_counts_where_its_target_is_run() {
        let (library, program) = (
            target("/a/src/lib.rs", true),
            target("/a/src/main.rs", false),
        );
        let alone = target("/b/src/lib.rs", false);
        let all = [&library, &program, &alone];
        let untested = |path| all.iter().any(|target| is_untested(path, target, &all));
        assert!(untested("/a/src/main.rs") && untested("/b/src/x/y.rs"));
        assert!(!untested("/a/src/x.rs") && !untested("/b/tests/it/main.rs"));
        let test = format!("    #[{}]\n    fn holds() {{}}\n", "test");
        assert!(has_test(&test) && !has_test("/// Runs `#[test]`.\n"));
    }

    #[test]
    fn examples_in_comments_are_found_and_texts_are_not() {
        let of = |text: &str| examples(text).collect::<Vec<_>>();
        assert_eq!(of("//! ```text\n//! a\n//! ```\n"), Vec::<usize>::new());
        assert_eq!(of("fn a() {}\n/// ```\n/// a();\n/// ```\n"), [2]);
        // Indented code is code, and an example too.
        assert_eq!(of("/// As in\n///\n///     a();\n///     b();\n"), [3]);
        assert_eq!(of("    //!     a();\n"), [1]);
        assert_eq!(of("/// # Use\n///     a();\n///\n///     b();\n"), [2]);
        assert_eq!(of("/// - one\n///\n///       a();\n"), [3]);
        let none: [usize; 0] = [];
        assert_eq!(of("/// A sentence that\n///     goes on.\n"), none);
        assert_eq!(of("/// - one\n///\n///   - two\n///     goes on\n"), none);
        assert_eq!(of("/// 1. one\n///\n///    goes on\n"), none);
        assert_eq!(of("/// ```text\n///\n///     a\n/// ```\n"), none);
        assert_eq!(
            of("    fn a() {}\n    // not rustdoc's\n    //     a\n"),
            none
        );
    }
}
