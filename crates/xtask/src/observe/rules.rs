//! The alerts: each with a page in the runbook, each tried in the tests, all of it accepted by Prometheus's own tool.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{fetch, places, process};

const FOLDER: &str = "deploy/prometheus";
const RULES: &str = "medfleet.rules.yaml";
const TESTS: &str = "medfleet.tests.yaml";
/// The way from an alert's name to its page.
const INDEX: &str = "docs/runbook/README.md";
/// What each page answers, in what looks alike on all of them: the eye finds the first command at once.
const SECTIONS: [&str; 5] = [
    "## What it means",
    "## How to look\n\nFirst: ",
    "## What to do",
    "## When to call for help",
    "## How it was tried",
];

/// What tells fleets under one Prometheus apart; the rules say where each label comes from.
const FLEET: &str = "cluster, namespace, job";

/// The rules as they are written.
pub(super) fn text() -> Result<String> {
    read(&format!("{FOLDER}/{RULES}"))
}

/// Names of the alerts.
pub(super) fn alerts(rules: &str) -> Vec<&str> {
    values(rules, "- alert: ").collect()
}

/// Alerts without a page or a test, pages without an alert, pages without a section, expressions that merge fleets.
pub(super) fn check(rules: &str) -> Result<Vec<String>> {
    let mut violations = merged(rules);
    let tests = read(&format!("{FOLDER}/{TESTS}"))?;
    let fires: BTreeSet<&str> = firing(&tests).collect();
    for alert in alerts(rules) {
        if !tests.contains(&format!("alertname: {alert}, exp_alerts: []")) {
            violations.push(format!("{alert}: no test in which it stays quiet"));
        }
        if !fires.contains(alert) {
            violations.push(format!("{alert}: no test in which it fires"));
        }
    }
    let pages: Vec<&str> = values(rules, "runbook: ").collect();
    if pages.len() != alerts(rules).len() {
        violations.push("an alert without a page in the runbook".to_owned());
    }
    for page in &pages {
        let found = read(page).unwrap_or_default();
        let missing = SECTIONS.iter().filter(|section| !found.contains(*section));
        violations.extend(missing.map(|section| format!("{page}: no section {section:?}")));
    }
    violations.extend(unlisted(&alerts(rules), &pages, &read(INDEX)?));
    for entry in fs::read_dir(places::root().join("docs/runbook"))? {
        let page = format!("docs/runbook/{}", entry?.file_name().to_string_lossy());
        if page != INDEX && !pages.contains(&page.as_str()) {
            violations.push(format!("{page}: no alert names it"));
        }
    }
    Ok(violations)
}

/// Alerts that the index does not lead from to their page. Alerts and pages stand in the same order.
fn unlisted(alerts: &[&str], pages: &[&str], index: &str) -> Vec<String> {
    let pairs = alerts.iter().zip(pages);
    let missing = pairs.filter(|&(&alert, &page)| {
        let file = page.rsplit('/').next().unwrap_or(page);
        !index.contains(&format!("[{alert}]({file})"))
    });
    missing
        .map(|(alert, page)| format!("{INDEX}: does not lead from {alert} to {page}"))
        .collect()
}

/// Aggregations and comparisons that drop a label which tells fleets apart, so that a healthy fleet could hide a broken one.
fn merged(rules: &str) -> Vec<String> {
    let kept = format!("({FLEET}");
    let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let mut violations = Vec::new();
    let code = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    for line in code {
        let listed = [" by ", " on "]
            .into_iter()
            .flat_map(|word| line.split(word).skip(1));
        let drops = listed.filter(|list| list.starts_with('(') && !list.starts_with(&kept));
        let over_all = ["sum(", "max(", "min(", "avg(", "count(", "group("]
            .into_iter()
            .flat_map(|word| line.match_indices(word))
            .filter(|(at, _)| !line[..*at].ends_with(is_name));
        if drops.count() + over_all.count() > 0 {
            violations.push(format!("merges fleets, {FLEET} first: {}", line.trim()));
        }
    }
    violations
}

/// Prometheus's own tool reads the rules and runs their tests.
pub(super) fn promtool_checks() -> Result<()> {
    let promtool = fetch::debian::of_prometheus("promtool")?;
    let run = |arguments: [&str; 3]| {
        let mut command = Command::new(&promtool);
        command.current_dir(places::root().join(FOLDER));
        process::run(command.args(arguments))
    };
    run(["check", "rules", RULES])?;
    run(["test", "rules", TESTS])
}

/// Alerts of which a test expects that they fire.
fn firing(tests: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = tests.lines().map(str::trim).collect();
    let pairs: Vec<(&str, &str)> = lines.windows(2).map(|pair| (pair[0], pair[1])).collect();
    pairs.into_iter().filter_map(|(line, next)| {
        let alert = line.strip_prefix("alertname: ")?;
        (next == "exp_alerts:").then_some(alert)
    })
}

fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| line.trim().strip_prefix(key))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(places::root().join(path)).with_context(|| format!("read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_and_what_fires_are_read() {
        assert_eq!(alerts("  - alert: A\n    expr: up\n  - record: x\n"), ["A"]);
        let tests = "alertname: A\n exp_alerts:\n - {}\nalertname: B\n exp_alerts: []\n";
        assert_eq!(firing(tests).collect::<Vec<_>>(), ["A"]);
    }

    #[test]
    fn the_index_leads_from_each_alert_to_its_page() {
        let found = |index: &str| unlisted(&["A"], &["docs/runbook/a.md"], index).len();
        assert_eq!(found("| [A](a.md) |"), 0);
        assert_eq!(found("| [A](b.md) |"), 1);
    }

    #[test]
    fn what_merges_fleets_is_found() {
        let check = |expression: &str, expected: usize| {
            let line = format!("        expr: {expression}");
            assert_eq!(merged(&line).len(), expected, "{expression}");
        };
        check("max(medfleet_x) == 0", 1);
        check("histogram_quantile(0.5, sum(rate(medfleet_x[5m])))", 1);
        check("sum by (stage) (medfleet_x)", 1);
        check("medfleet_x and on (stage) medfleet_y", 1);
        check("sum by (cluster, namespace, job, stage) (medfleet_x)", 0);
        check("medfleet_x and on (cluster, namespace, job) medfleet_y", 0);
        check("medfleet_x_sum(", 0);
        assert!(merged("# max(medfleet_x)").is_empty());
    }
}
