//! What the runbook's pages quote must exist: metrics that a service exports, lines that one of our programs logs, settings of a
//! file or of the chart. (The commands on them are tested beside the command line.) On all other pages only the metrics are
//! checked.

use std::fs;

use anyhow::{Context, Result};

use super::queries;
use super::reference::Metric;
use crate::{places, tidy};

const FOLDER: &str = "docs/runbook/";
/// Made of the metrics themselves.
const REFERENCE: &str = "docs/reference/metrics.md";
/// Every setting of every service but those that the chart decides.
const SCHEMA: &str = "helm/medfleet/values.schema.json";
/// What is typed, and so was never logged.
const PROGRAMS: [&str; 4] = ["medfleet ", "kubectl ", "nats ", "promtool "];
/// Dotted words that are files.
const FILES: [&str; 3] = [".md", ".rs", ".toml"];

/// Where what is quoted may be.
struct Places<'a> {
    sources: String,
    schema: String,
    rules: &'a str,
    metrics: &'a [Metric],
}

/// What a page quotes and nothing has.
pub(super) fn check(rules: &str, metrics: &[Metric]) -> Result<Vec<String>> {
    let files = tidy::files::list()?;
    let read = |path: &str| {
        fs::read_to_string(places::root().join(path)).with_context(|| format!("read {path}"))
    };
    let mut sources = String::new();
    for file in files.iter().filter(|file| is_source(file)) {
        sources.push_str(&one_line(&read(file)?));
    }
    let places = Places {
        sources,
        schema: read(SCHEMA)?,
        rules,
        metrics,
    };
    let mut violations = Vec::new();
    for page in files.iter().filter(|file| is_page(file)) {
        let text = read(page)?;
        let troubles = match page.starts_with(FOLDER) {
            true => places.missing(&text),
            false => places.unknown(&text),
        };
        violations.extend(troubles.iter().map(|trouble| format!("{page}: {trouble}")));
    }
    Ok(violations)
}

impl Places<'_> {
    fn missing(&self, page: &str) -> Vec<String> {
        let troubles = quoted(page).flat_map(|quoted| self.trouble(quoted));
        troubles.collect()
    }

    fn unknown(&self, page: &str) -> Vec<String> {
        let unknown = quoted(page).flat_map(|quoted| self.unknown_metrics(quoted));
        unknown.collect()
    }

    fn trouble(&self, quoted: &str) -> Vec<String> {
        let is_typed = PROGRAMS.iter().any(|program| quoted.starts_with(program));
        let is_said = quoted.contains(' ')
            && quoted
                .chars()
                .all(|char| char.is_ascii_alphabetic() || " ,'".contains(char));
        if !is_typed && is_said && !self.sources.contains(quoted) {
            return vec![format!("no program of ours says {quoted:?}")];
        }
        let setting = quoted.split(": ").next().unwrap_or(quoted);
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic() || c == '_')
        };
        let is_file = FILES.iter().any(|end| setting.ends_with(end));
        if let Some((_, key)) = setting.rsplit_once('.')
            && setting.split('.').all(is_word)
            && !is_file
            && !self.schema.contains(&format!("\"{key}\""))
            && !self.sources.contains(&format!("pub {key}: "))
        {
            return vec![format!("there is no setting {setting}")];
        }
        self.unknown_metrics(quoted)
    }

    /// A histogram may be named as a whole.
    fn unknown_metrics(&self, quoted: &str) -> Vec<String> {
        // Every stage has the same ones.
        let quoted = quoted.replace("<stage>", "encode");
        if self.metrics.iter().any(|metric| metric.name == quoted) {
            return Vec::new();
        }
        queries::unknown(&quoted, self.rules, self.metrics)
    }
}

fn is_page(file: &str) -> bool {
    let is_ours = file.starts_with("docs/") || file == "README.md";
    is_ours && file.ends_with(".md") && file != REFERENCE
}

/// What a page quotes. Blocks of code, whose fences are backticks too, are typed.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    let prose = page.split("```").step_by(2);
    prose.flat_map(|text| text.split('`').skip(1).step_by(2))
}

/// Whether the file is of a program that runs in a fleet, or of what these share.
fn is_source(file: &str) -> bool {
    let is_rust = file.ends_with(".rs") && file.contains("/src/");
    let is_ours = file.starts_with("services/") || file.starts_with("crates/");
    is_rust && is_ours && !file.starts_with("crates/xtask/")
}

/// A source in which no text is broken over lines.
fn one_line(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let mut text = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| text.push_str(part.trim_start()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_found() {
        let places = Places {
            sources: one_line("warn!(\"the hub is \\\n        away\"); pub ca_file: PathBuf"),
            schema: "{\"lease_ttl\": {}}".to_owned(),
            rules: "- record: medfleet:workers",
            metrics: &[],
        };
        let check = |page: &str, expected: usize| {
            let found = places.missing(page);
            assert_eq!(found.len(), expected, "{page}: {found:?}");
        };
        check(
            "`the hub is away`, `queue.lease_ttl`, `ingest.edge.ca_file`",
            0,
        );
        check("`the hub has gone`", 1);
        check("`queue.lease_time: 1s`", 1);
        check("`medfleet:workers` and `medfleet_<stage>_units_total`", 1);
        check("`medfleet dead list`, `kubectl proxy`, `intake.rs`", 0);
        check("```\nthe hub has gone\n```\n`a.b c`", 0);
        let elsewhere =
            "`the hub has gone`, `queue.lease_time: 1s`, `medfleet_gone_total`, `medfleet:workers`";
        assert_eq!(places.unknown(elsewhere).len(), 1);
    }
}
