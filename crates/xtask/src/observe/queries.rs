//! What dashboards, rules and the chart ask: every name in it is one that a service exports or a rule records, Prometheus can
//! read it, and where a fleet runs it has data.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::dashboards;
use super::exported;
use super::reference::{self, Metric, STAGES};
use crate::{fetch, places, process};

/// A query with its variables filled in.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// Dashboard and panel, the rules, or the chart.
    pub(super) place: String,
    pub(super) expression: String,
}

/// Every query of every dashboard, once for each value of a variable that is part of a name.
pub(super) fn of_dashboards() -> Vec<Query> {
    let mut queries = Vec::new();
    for dashboard in dashboards::all() {
        for panel in &dashboard.panels {
            for target in &panel.targets {
                let place = format!("{} / {}", dashboard.name, panel.title);
                queries.extend(filled(&target.expression).into_iter().map(|expression| {
                    let place = place.clone();
                    Query { place, expression }
                }));
            }
        }
    }
    queries
}

fn filled(expression: &str) -> Vec<String> {
    let plain = expression
        .replace("$__rate_interval", "5m")
        .replace("$cluster", ".*")
        .replace("$namespace", ".*")
        .replace("$job", ".*")
        .replace("$tenant", ".*")
        .replace("$pool", ".*");
    if !plain.contains("$stage") && !plain.contains("${stage}") {
        return vec![plain];
    }
    let of = |stage: &str| plain.replace("${stage}", stage).replace("$stage", stage);
    STAGES.map(of).to_vec()
}

/// Every series that a rule asks for, by the labels that the rule chooses by or keeps: each of these must be there.
fn of_rules(rules: &str) -> Vec<Query> {
    let code = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let mut asked = BTreeSet::new();
    for line in code {
        asked.extend(selectors(line));
        let listed = [" by (", " on ("]
            .into_iter()
            .flat_map(|word| line.split(word).skip(1));
        for (labels, rest) in listed.filter_map(|part| part.split_once(')')) {
            let kept = labels.split(',').map(str::trim);
            let kept = kept.filter(|label| !exported::is_added(label));
            let kept: Vec<String> = kept.map(|label| format!("{label}!=\"\"")).collect();
            let first = selectors(rest).into_iter().next();
            let name = first.and_then(|first| Some(first.split('{').next()?.to_owned()));
            if let Some(name) = name.filter(|_| !kept.is_empty()) {
                asked.insert(format!("{name}{{{}}}", kept.join(",")));
            }
        }
    }
    let asked = asked.into_iter().filter(|asked| !exported::is_rare(asked));
    let query = |expression| Query {
        place: "rules".to_owned(),
        expression,
    };
    asked.map(query).collect()
}

/// What the chart has the autoscalers ask of a stage, in either of its measures (`chart/scaling.rs` holds the chart against it).
fn of_chart() -> Vec<Query> {
    let stages = ["seconds", "units"]
        .into_iter()
        .flat_map(|measure| STAGES.map(|stage| (measure, stage)));
    let query = |(measure, stage)| Query {
        place: "chart".to_owned(),
        expression: format!(
            "sum(max by (class) (max_over_time(medfleet_backlog_{measure}{{stage=\"{stage}\",pool!=\"\",class!=\"\"}}[1m])))"
        ),
    };
    stages.map(query).collect()
}

/// Names of ours in a line of a rule, each with what it is chosen by.
fn selectors(line: &str) -> Vec<String> {
    let is_part = |char: char| char.is_ascii_alphanumeric() || "_:".contains(char);
    let (mut found, mut rest) = (Vec::new(), line);
    while let Some(begin) = rest.find("medfleet") {
        let from = &rest[begin..];
        let end = from.find(|char: char| !is_part(char));
        let end = end.unwrap_or(from.len());
        let (name, behind) = from.split_at(end);
        let chosen = behind.strip_prefix('{').and_then(|by| by.split_once('}'));
        if name.starts_with("medfleet_") || name.starts_with("medfleet:") {
            found.push(match chosen {
                Some((by, _)) => format!("{name}{{{by}}}"),
                None => name.to_owned(),
            });
        }
        rest = behind;
    }
    found
}

/// Names in a text that neither a service exports nor a rule records.
pub(super) fn unknown(text: &str, rules: &str, metrics: &[Metric]) -> Vec<String> {
    let mut known = reference::series(metrics);
    let recorded = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "));
    known.extend(recorded.map(str::to_owned));
    let groups = ["medfleet.recording", "medfleet.alerts"].map(str::to_owned);
    known.extend(groups);
    let names = names(text);
    let unknown = names.into_iter().filter(|name| !known.contains(name));
    unknown
        .map(|name| format!("{name} is no metric of any service and no rule records it"))
        .collect()
}

/// Every name of ours in a text, without the comments.
fn names(text: &str) -> BTreeSet<String> {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let is_part = |char: char| char.is_ascii_alphanumeric() || "_:.".contains(char);
    let words = code.flat_map(|line| line.split(move |char: char| !is_part(char)));
    let ours = words.filter(|word| word.starts_with("medfleet_") || word.starts_with("medfleet:"));
    ours.map(str::to_owned).collect()
}

/// Prometheus's own tool reads every query.
pub(super) fn promtool_checks(queries: &[Query]) -> Result<()> {
    let rules: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| json!({"record": format!("query:{number}"), "expr": query.expression}))
        .collect();
    // YAML is a superset of JSON.
    let file = json!({"groups": [{"name": "queries", "rules": rules}]});
    let path = places::scratch("observe")?.join("queries.json");
    fs::write(&path, file.to_string())?;
    let mut promtool = Command::new(fetch::debian::of_prometheus("promtool")?);
    promtool.args(["check", "rules"]).arg(&path);
    process::run(&mut promtool).context("a query of a dashboard cannot be read")
}

/// Asks a real server every query.
pub(super) fn ask(server: &str, rules: &str) -> Result<()> {
    let queries = [of_dashboards(), of_rules(rules), of_chart()].concat();
    let mut promtool = Command::new(fetch::debian::of_prometheus("promtool")?);
    promtool.args(["query", "instant", server, &all_at_once(&queries)]);
    let answer = process::capture(&mut promtool).context("the queries could not be asked")?;
    let found = found(&answer);
    for (number, query) in queries.iter().enumerate() {
        if !found.contains(&number) {
            println!("observe: no data: {}: {}", query.place, query.expression);
        }
    }
    println!(
        "observe: {} of {} queries have data at {server}",
        found.len(),
        queries.len()
    );
    if found.len() < queries.len() {
        bail!("{} queries without data", queries.len() - found.len());
    }
    Ok(())
}

/// One query that has a series for each of these that has data: a number, which a quantile of nothing is not. Nothing that a
/// dashboard shows is below zero.
fn all_at_once(queries: &[Query]) -> String {
    let counted = queries.iter().enumerate().map(|(number, query)| {
        let expression = &query.expression;
        format!("label_replace(count(({expression}) >= 0), \"query\", \"{number}\", \"\", \"\")")
    });
    counted.collect::<Vec<_>>().join(" or ")
}

/// The numbers of those that have data, from promtool's answer.
fn found(answer: &str) -> BTreeSet<usize> {
    let numbers = answer.lines().filter_map(|line| {
        let (number, _) = line.strip_prefix("{query=\"")?.split_once('"')?;
        number.parse().ok()
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_comments_are_not() {
        let text = "# medfleet_nothing\nsum(rate(medfleet_a_total{x=\"medfleet-b\"}[5m])) > medfleet:c:d\n";
        let found: Vec<String> = names(text).into_iter().collect();
        assert_eq!(found, ["medfleet:c:d", "medfleet_a_total"]);
        assert_eq!(unknown(text, "- record: medfleet:c:d", &[]).len(), 1);
    }

    #[test]
    fn who_has_data_is_read_from_the_answer() {
        let answer =
            "{query=\"0\"} => 1 @[1795791226.405]\n{query=\"12\"} => 3 @[1795791226.405]\n";
        assert_eq!(found(answer), BTreeSet::from([0, 12]));
        assert_eq!(found(""), BTreeSet::new());
        let query = |expression: &str| Query {
            place: String::new(),
            expression: expression.to_owned(),
        };
        let expected = "label_replace(count((a / b) >= 0), \"query\", \"0\", \"\", \"\") or \
                        label_replace(count((c) >= 0), \"query\", \"1\", \"\", \"\")";
        assert_eq!(all_at_once(&[query("a / b"), query("c")]), expected);
    }

    #[test]
    fn what_rules_ask_for_is_asked_with_the_labels_that_they_keep() {
        let check = |line: &str, expected: &[&str]| {
            let found = of_rules(line).into_iter().map(|query| query.expression);
            assert_eq!(found.collect::<Vec<_>>(), expected, "{line}");
        };
        check("# medfleet_x", &[]);
        check("  - name: medfleet.alerts", &[]);
        check(
            "expr: medfleet:a{class=~\"x|y\"} > 3 or medfleet_b[15m]",
            &["medfleet:a{class=~\"x|y\"}", "medfleet_b"],
        );
        check(
            "expr: sum by (cluster, namespace, job, stage, le) (rate(medfleet_a_bucket[5m]))",
            &[
                "medfleet_a_bucket",
                "medfleet_a_bucket{stage!=\"\",le!=\"\"}",
            ],
        );
        check(
            "expr: medfleet_a and on (cluster, namespace, job, pool) medfleet_b{x=\"y\"}",
            &[
                "medfleet_a",
                "medfleet_b{pool!=\"\"}",
                "medfleet_b{x=\"y\"}",
            ],
        );
        // Another test has one.
        check("expr: medfleet_certificate_end_time_seconds", &[]);
    }

    #[test]
    fn a_stage_in_a_name_is_three_queries() {
        assert_eq!(filled("medfleet_${stage}_x{pool=~\"$pool\"}").len(), 3);
        assert_eq!(filled("x[$__rate_interval]"), ["x[5m]"]);
        assert_eq!(filled("x{job=~\"$job\"}"), ["x{job=~\".*\"}"]);
    }
}
