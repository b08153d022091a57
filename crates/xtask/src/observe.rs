//! What people look at: the reference of metrics, alerts and recording rules with a runbook page for each alert, and the
//! dashboards. All of it is held against what the services really export, so that nothing asks for a metric that is not there.
//!
//! Reading order: `reference` (what the services export), `rules`, `dashboards` (their source), `grafana` (the JSON), `queries`,
//! `exported` (what a running fleet exports), `pages` (what the runbook quotes, and which metrics other pages name).

mod dashboards;
mod exported;
mod grafana;
mod pages;
mod queries;
mod reference;
mod rules;

use anyhow::Result;

use crate::derived::{Mode, settle};
use crate::{chart, fetch, process, violations};

/// Where the chart has its copy of the rules: a chart can only read what is inside it.
const CHART_RULES: &str = "helm/medfleet/files/rules.yaml";

/// Checks everything, or writes the derived files first.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let metrics = reference::read()?;
    let settle = |path: &str, wanted: &str| settle(mode, "observe", path, wanted);
    settle("docs/reference/metrics.md", &reference::page(&metrics))?;
    for dashboard in dashboards::all() {
        let path = format!("deploy/grafana/{}.json", dashboard.name);
        settle(&path, &grafana::json(&dashboard))?;
    }
    let rules = rules::text()?;
    settle(CHART_RULES, &rules)?;
    let mut violations = rules::check(&rules)?;
    violations.extend(queries::unknown(&rules, &rules, &metrics));
    violations.extend(pages::check(&rules, &metrics)?);
    let asked = queries::of_dashboards();
    for query in &asked {
        let unknown = queries::unknown(&query.expression, &rules, &metrics);
        violations.extend(
            unknown
                .iter()
                .map(|name| format!("{}: {name}", query.place)),
        );
    }
    violations::none("observe", &violations)?;
    rules::promtool_checks()?;
    queries::promtool_checks(&asked)?;
    // For the test that asks a running one (tests/it/dashboards.rs): tests bring nothing.
    fetch::debian::of_prometheus("prometheus")?;
    println!(
        "observe: {} metrics, {} alerts, {} queries of dashboards",
        metrics.len(),
        rules::alerts(&rules).len(),
        asked.len()
    );
    Ok(())
}

/// Asks a real Prometheus every query of every dashboard and of the chart, every series that a rule asks for, and which series
/// there are; fails when something has no answer, or when these are not those of the reference.
pub(crate) fn ask(server: &str) -> Result<()> {
    let answered = queries::ask(server, &rules::text()?);
    violations::none("series", &exported::amiss(server, &reference::read()?)?)?;
    answered
}

/// What a program of ours prints.
fn output(binary: &str, arguments: &[&str]) -> Result<String> {
    let path = chart::built(binary)?;
    process::capture(process::in_root(&path.to_string_lossy()).args(arguments))
}
