//! Rules about single files: their length, their first line, their name, and no path of somebody's machine in them.

use std::fs;

use anyhow::{Context, Result};

use crate::{places, process};

/// Lines at which a file has to be divided.
const LINES_MAX: usize = 600;

/// Starts of paths that exist on one machine only, in two halves so that this file does not name them itself.
const MACHINE_PATHS: &[(&str, &str)] = &[
    ("/", "root/"),
    ("/", "home/"),
    ("/", "work/"),
    ("/", "Users/"),
];

/// Files that are not written by us: their text is not checked.
const NOT_OURS: &[&str] = &["Cargo.lock", "LICENSE"];

/// Everything git tracks or would track, relative to the root, sorted.
pub(crate) fn list() -> Result<Vec<String>> {
    let mut git = process::in_root("git");
    git.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]);
    let listing = process::capture(&mut git)?;
    let mut files: Vec<String> = listing
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    files.sort();
    files.dedup();
    // A file deleted in the work tree but not yet in the index is listed too.
    files.retain(|name| places::root().join(name).is_file());
    Ok(files)
}

/// Violations in all of the files; binary files are left out.
pub(crate) fn check(files: &[String]) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for name in files
        .iter()
        .filter(|name| !NOT_OURS.contains(&name.as_str()))
    {
        let bytes = fs::read(places::root().join(name)).with_context(|| format!("read {name}"))?;
        if let Ok(text) = std::str::from_utf8(&bytes) {
            violations.extend(check_text(name, text));
        }
    }
    Ok(violations)
}

fn check_text(name: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    if name.ends_with("/mod.rs") {
        violations.push(format!("{name}: write foo.rs beside foo/, not foo/mod.rs"));
    }
    let lines = text.lines().count();
    if extension == "rs" && lines > LINES_MAX {
        violations.push(format!("{name}: {lines} lines, {LINES_MAX} is the limit"));
    }
    let openings: &[&str] = match extension {
        "rs" | "proto" | "js" | "cc" => &["//"],
        "py" => &["#", "\"\"\""],
        "sh" => &["#"],
        _ => &[""],
    };
    if !openings.iter().any(|opening| text.starts_with(opening)) {
        violations.push(format!(
            "{name}: does not open with a comment on its purpose"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        if MACHINE_PATHS
            .iter()
            .any(|(slash, rest)| names_machine_path(line, &format!("{slash}{rest}")))
        {
            violations.push(format!(
                "{name}:{}: names a path of one machine",
                number + 1
            ));
        }
    }
    violations
}

/// Whether the line has the path from the root of a file system, not as a part of a longer relative one.
fn names_machine_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| {
            c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '~' | '>' | '}' | '*')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, expected: &[&str]) {
        let found = check_text(name, text);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found} does not say {expected}");
        }
    }

    #[test]
    fn rust_files_open_with_their_purpose() {
        check("crates/a/src/lib.rs", "//! Why.\n", &[]);
        check("crates/a/src/lib.rs", "use std::fs;\n", &["does not open"]);
        check("notes.txt", "anything", &[]);
    }

    #[test]
    fn long_files_and_module_files_are_refused() {
        check("crates/a/src/b/mod.rs", "//! Why.\n", &["not foo/mod.rs"]);
        check(
            "crates/a/src/b.rs",
            &"// line\n".repeat(601),
            &["601 lines"],
        );
        check("crates/a/src/b.rs", &"// line\n".repeat(600), &[]);
    }

    #[test]
    fn paths_of_one_machine_are_found_and_relative_ones_are_not() {
        let machine = format!("{}{}", "/", "home/someone/x");
        check("a.md", &format!("see {machine}"), &["a.md:1: names a path"]);
        check(
            "a.md",
            "see medfleet/work/v1/work.proto and `proto/medfleet/work/`",
            &[],
        );
    }
}
