//! Links between the pages: each leads to something that is there, and what follows its `#` to a heading of that page.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::places;

/// Links of all pages that lead nowhere. Those to other sites are not followed.
pub(crate) fn check(files: &[String]) -> Result<Vec<String>> {
    let mut pages = BTreeMap::new();
    for name in files.iter().filter(|name| name.ends_with(".md")) {
        let text = fs::read_to_string(places::root().join(name))
            .with_context(|| format!("read {name}"))?;
        pages.insert(name.as_str(), text);
    }
    Ok(broken(&pages, |path| places::root().join(path).exists()))
}

fn broken(pages: &BTreeMap<&str, String>, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut violations = Vec::new();
    for (page, text) in pages {
        for target in links(text) {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = from_root(page, path);
            if !is_there(&path) {
                violations.push(format!("{page}: links to {target}, which is not there"));
                continue;
            }
            let other = pages.get(path.as_str()).filter(|_| !heading.is_empty());
            if other.is_some_and(|other| !anchors(other).any(|anchor| anchor == heading)) {
                violations.push(format!(
                    "{page}: links to {target}, and {path} has no such heading"
                ));
            }
        }
    }
    violations
}

/// What the text's links lead to, within the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let after = prose(text).flat_map(|line| line.split("](").skip(1));
    let targets = after.filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://") && !target.contains(char::is_whitespace))
}

/// What the headings of a page are called in links to them.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim()))
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

/// The lines that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// A path that is told from a page, from the root of the repository.
fn from_root(page: &str, path: &str) -> String {
    if path.is_empty() {
        return page.to_owned();
    }
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let other = "# Other\n\n## What it means, here\n\n```\n# no heading\n```\n";
        let pages = BTreeMap::from([
            ("docs/how-to/a.md", text.to_owned()),
            ("docs/b.md", other.to_owned()),
        ]);
        let is_there = |path: &str| ["docs/how-to/a.md", "docs/b.md", "docs/c.png"].contains(&path);
        let found = broken(&pages, is_there);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found} does not say {expected}");
        }
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        check("# A\n[b](../b.md#what-it-means-here), ![c](../c.png)", &[]);
        check("# A\nsee [above](#a) and [site](https://a.example/b)", &[]);
        check("```\n[b](gone.md)\n```\n", &[]);
        check("[b](b.md)", &["links to b.md, which is not there"]);
        check(
            "[b](../b.md#no-heading)",
            &["docs/b.md has no such heading"],
        );
        check("[b](../b.md) [c](../d.png)", &["d.png"]);
    }
}
