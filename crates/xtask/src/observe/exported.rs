//! What a running fleet exports, held against the reference: every series is of a metric there, with its labels and values, and
//! every metric there has one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result};

use super::reference::{self, Metric};
use crate::{fetch, process};

/// What a scrape adds, in Kubernetes too.
const ADDED: [&str; 7] = [
    "cluster",
    "namespace",
    "job",
    "instance",
    "pod",
    "container",
    "endpoint",
];
/// Metrics that a fleet exports only with a certain configuration. Each has a test of its own, in which its alert fires:
/// `tests/it/operators.rs` starts a fleet with a certificate.
const RARE: [&str; 1] = ["medfleet_certificate_end_time_seconds"];

/// The labels of one series.
type Series = BTreeMap<String, String>;

/// Asks a real server which series there are. What is not as the reference says, a line each.
pub(super) fn amiss(server: &str, metrics: &[Metric]) -> Result<Vec<String>> {
    let mut promtool = Command::new(fetch::debian::of_prometheus("promtool")?);
    promtool.args(["query", "-o", "json", "series"]);
    promtool.args(["--match={__name__=~\"medfleet_.+\"}", server]);
    let answer = process::capture(&mut promtool).context("the series could not be asked for")?;
    let series: Vec<Series> = serde_json::from_str(&answer).context("the series that there are")?;
    Ok(compared(&series, metrics))
}

/// Whether a label is not the service's own.
pub(super) fn is_added(label: &str) -> bool {
    ADDED.contains(&label)
}

/// Whether a selector is of something that few fleets export.
pub(super) fn is_rare(selector: &str) -> bool {
    RARE.iter().any(|rare| selector.starts_with(rare))
}

fn compared(series: &[Series], metrics: &[Metric]) -> Vec<String> {
    let known: BTreeMap<String, &Metric> = metrics
        .iter()
        .flat_map(|metric| metric.series().into_iter().map(move |name| (name, metric)))
        .collect();
    let of = |one: &Series, label: &str| one.get(label).cloned().unwrap_or_default();
    let processes: BTreeSet<String> = series.iter().map(|one| of(one, "instance")).collect();
    let mut amiss = BTreeSet::new();
    let mut exported: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for one in series {
        let name = of(one, "__name__");
        match known.get(&name) {
            Some(metric) => {
                let by = exported.entry(&metric.name).or_default();
                by.insert(of(one, "instance"));
                amiss.extend(trouble(one, metric));
            }
            None => {
                amiss.insert(format!("exported, not in the reference: {name}"));
            }
        }
    }
    for metric in metrics.iter().filter(|metric| !is_rare(&metric.name)) {
        let by = exported.get(metric.name.as_str()).map_or(0, BTreeSet::len);
        let least = match metric.of.as_str() {
            "every service" => processes.len(),
            _ => 1,
        };
        if by < least {
            let (name, all) = (&metric.name, processes.len());
            amiss.insert(format!(
                "in the reference, exported by {by} of {all} processes: {name}"
            ));
        }
    }
    amiss.into_iter().collect()
}

/// What is not as the reference says with a series of a metric.
fn trouble(one: &Series, metric: &Metric) -> Option<String> {
    let is_own = |label: &str| !is_added(label) && label != "__name__" && label != "le";
    let own: BTreeMap<&String, &String> = one.iter().filter(|(label, _)| is_own(label)).collect();
    let is_value = |label: &String, value: &String| {
        let values = metric.values.get(label);
        reference::is_open(label) || values.is_some_and(|values| values.contains(value))
    };
    let is_as_said = own.keys().copied().eq(&metric.labels)
        && own.iter().all(|(label, value)| is_value(label, value));
    let name = &metric.name;
    (!is_as_said)
        .then(|| format!("exported with labels that are not in the reference: {name} {own:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(of: &str, name: &str, kind: &str, label: &str) -> Metric {
        let metric = serde_json::json!({
            "of": of, "name": name, "type": kind, "help": "",
            "labels": [label], "values": {label: ["a", "b"]},
        });
        serde_json::from_value(metric).expect("a metric")
    }

    fn series(name: &str, instance: &str, label: &str, value: &str) -> Series {
        let labels = [
            ("__name__", name),
            ("instance", instance),
            ("job", "fleet"),
            ("le", "1.0"),
            (label, value),
        ];
        let owned = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
        Series::from(owned)
    }

    #[test]
    fn what_is_not_as_the_reference_says_is_told() {
        let metrics = [
            metric("every service", "medfleet_x", "gauge", "stage"),
            metric("ingest", "medfleet_y", "histogram", "pool"),
            metric("ingest", RARE[0], "gauge", "setting"),
        ];
        let check = |exported: &[Series], expected: &[&str]| {
            let found = compared(exported, &metrics);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found}");
            }
        };
        let well = [
            series("medfleet_x", "1", "stage", "a"),
            series("medfleet_x", "2", "stage", "b"),
            // What an operator has called a pool.
            series("medfleet_y_bucket", "2", "pool", "anything"),
        ];
        check(&well, &[]);
        check(&well[..2], &["by 0 of 2 processes: medfleet_y"]);
        let third = series("medfleet_y_sum", "3", "pool", "p");
        check(
            &[well[0].clone(), well[1].clone(), third],
            &["by 2 of 3 processes: medfleet_x"],
        );
        let with = |more: Series| [well.to_vec(), vec![more]].concat();
        let other = series("medfleet_z", "1", "stage", "a");
        check(&with(other), &["not in the reference: medfleet_z"]);
        let value = series("medfleet_x", "1", "stage", "c");
        check(
            &with(value),
            &["labels that are not in the reference: medfleet_x"],
        );
        let label = series("medfleet_x", "1", "class", "a");
        check(
            &with(label),
            &["labels that are not in the reference: medfleet_x"],
        );
        let whole = series("medfleet_y", "1", "pool", "a");
        check(&with(whole), &["not in the reference: medfleet_y"]);
    }
}
