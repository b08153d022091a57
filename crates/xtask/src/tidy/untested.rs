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

/// Lines on which a block of code opens in a comment that rustdoc reads.
fn examples(text: &str) -> impl Iterator<Item = usize> {
    let mut is_open = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        let said = line.strip_prefix("///").or(line.strip_prefix("//!"))?;
        let language = said.trim().strip_prefix("```")?;
        is_open = !is_open;
        (is_open && language != "text").then_some(index + 1)
    })
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
    }
}
