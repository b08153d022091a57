//! The architecture page against the tree: what it names exists, and every package has its place in it.

use std::fs;

use anyhow::{Context, Result};

use super::workspace::Workspace;
use crate::places;

const PAGE: &str = "docs/architecture.md";

/// Top folders whose paths the page may name.
const TOP: &[&str] = &[
    "crates/",
    "services/",
    "proto/",
    "tests/",
    "docs/",
    "deploy/",
    "helm/",
    ".ci/",
    ".cargo/",
];

/// Names on the page that are not there, and packages that the page leaves out.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let page =
        fs::read_to_string(places::root().join(PAGE)).with_context(|| format!("read {PAGE}"))?;
    let named = names(&page);
    let mut violations = Vec::new();
    for name in &named {
        if is_path(name) && !places::root().join(name).exists() {
            violations.push(format!("{PAGE}: names `{name}`, which is not there"));
        }
        if name.starts_with("medfleet-")
            && !workspace.members().any(|package| package.name == *name)
        {
            violations.push(format!(
                "{PAGE}: names the package `{name}`, which is not there"
            ));
        }
    }
    for package in workspace.members() {
        let folder = package.folder();
        if !named
            .iter()
            .any(|name| name.trim_end_matches('/') == folder)
        {
            violations.push(format!("{PAGE}: does not say what `{folder}` is for"));
        }
    }
    Ok(violations)
}

/// What the page sets in backticks on one line.
fn names(page: &str) -> Vec<&str> {
    page.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

fn is_path(name: &str) -> bool {
    let plain = !name.contains([' ', '*', '<', '{', '$']);
    plain && TOP.iter().any(|top| name.starts_with(top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_stands_in_backticks() {
        assert_eq!(names("a `b` c `d/e`\n`f`"), ["b", "d/e", "f"]);
    }

    #[test]
    fn paths_are_told_from_other_names() {
        assert!(is_path("crates/core"));
        assert!(is_path("docs/architecture.md"));
        assert!(!is_path("work.<stage>.<pool>"));
        assert!(!is_path("cargo xtask ci"));
    }
}
