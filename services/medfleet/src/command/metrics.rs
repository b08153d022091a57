//! `medfleet metrics`: every metric of every service, from the registries themselves, so that no list can be wrong.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use medfleet_core::{Stage, UnixMillis};
use medfleet_runtime::Metrics;
use medfleet_worker::{WorkerMetrics, register_connection, register_store};
use serde_json::{Value, json};

use crate::exit::{CommandResult, Exit};
use crate::show;

/// Flags of `metrics`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// One JSON object per metric and line on stdout
    #[arg(long)]
    json: bool,
}

/// A metric as a scraper sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Metric {
    /// Which services have it.
    of: &'static str,
    name: String,
    kind: String,
    /// Each with the values that it is seen with.
    labels: BTreeMap<String, BTreeSet<String>>,
    help: String,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let metrics = all()?;
    if args.json {
        for metric in &metrics {
            show::print_json(&metric.json())?;
        }
    } else {
        for metric in &metrics {
            let labels: Vec<&str> = metric.labels.keys().map(String::as_str).collect();
            let labels = labels.join(", ");
            show::print(&format!(
                "{}  {}  {{{labels}}}  {}: {}",
                metric.name, metric.kind, metric.of, metric.help
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// Of all services, each with what it has besides the others.
fn all() -> anyhow::Result<Vec<Metric>> {
    let every = |metrics: &Metrics| {
        metrics.describe("medfleet-x", "0", UnixMillis(0));
        metrics.certificates([("ingest.tls.cert".to_owned(), UnixMillis(0))]);
        register_connection(metrics, || true);
        register_store(metrics, || 0);
    };
    let mut all = of("every service", &Metrics::new(), every)?;
    let shared: BTreeSet<String> = all.iter().map(|metric| metric.name.clone()).collect();
    let workers = |metrics: &Metrics| {
        for stage in Stage::ALL {
            WorkerMetrics::register(metrics, *stage, 1).touch();
        }
    };
    let services: [Service<'_>; 5] = [
        ("workers", &workers),
        ("ingest", &medfleet_ingest::every_metric),
        ("preprocess", &medfleet_preprocess::every_metric),
        ("encode", &medfleet_encode::every_metric),
        ("decode", &medfleet_decode::every_metric),
    ];
    for (name, register) in services {
        let found = of(name, &Metrics::new(), register)?;
        let ours = found.into_iter();
        all.extend(ours.filter(|metric| !shared.contains(&metric.name)));
    }
    Ok(all)
}

/// A service and what registers its metrics.
type Service<'a> = (&'static str, &'a dyn Fn(&Metrics));

fn of(
    service: &'static str,
    metrics: &Metrics,
    register: impl FnOnce(&Metrics),
) -> anyhow::Result<Vec<Metric>> {
    register(metrics);
    let text = metrics.encode().context("write the metrics")?;
    Ok(parse(service, &text))
}

/// Reads OpenMetrics text: `# HELP`, `# TYPE`, then samples.
fn parse(of: &'static str, text: &str) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            metrics.push(Metric {
                of,
                name: format!("{name}{suffix}"),
                kind: kind.to_owned(),
                labels: BTreeMap::new(),
                // The library ends every help with a dot of its own.
                help: help.trim_end_matches('.').to_owned(),
            });
        } else if !line.starts_with('#')
            && let Some(metric) = metrics.last_mut()
        {
            for (label, value) in labels(line) {
                metric.labels.entry(label).or_default().insert(value);
            }
        }
    }
    metrics
}

/// The labels of a sample with their values, without a histogram's own.
fn labels(line: &str) -> impl Iterator<Item = (String, String)> {
    // Our own examples: no value has a comma, a brace or a quotation mark in it.
    let inside = line.split_once('{').and_then(|(_, rest)| {
        let (inside, _) = rest.split_once('}')?;
        Some(inside)
    });
    let pairs = inside.unwrap_or_default().split(',');
    pairs
        .filter_map(|label| label.split_once('='))
        .filter(|(name, _)| *name != "le")
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
}

impl Metric {
    fn json(&self) -> Value {
        json!({
            "of": self.of,
            "name": self.name,
            "type": self.kind,
            "labels": self.labels.keys().collect::<Vec<_>>(),
            "values": self.labels,
            "help": self.help,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_give_their_labels() {
        let text = "# HELP a_b How long.\n# TYPE a_b histogram\na_b_bucket{le=\"1.0\",class=\"x\"} 1\n\
                    # HELP c Things.\n# TYPE c counter\nc_total 1\n# EOF\n";
        let found = parse("x", text);
        assert_eq!(found.len(), 2);
        let values = BTreeSet::from(["x".to_owned()]);
        let expected = BTreeMap::from([("class".to_owned(), values)]);
        assert_eq!(found[0].labels, expected);
        assert_eq!(found[0].help, "How long");
        assert_eq!(found[1].name, "c_total");
        assert!(found[1].labels.is_empty());
    }

    #[test]
    fn every_value_of_a_closed_label_is_seen() {
        let closed = [("class", 4), ("stage", 3), ("verdict", 4), ("job_known", 2)];
        for metric in all().expect("registries encode") {
            for (label, values) in &metric.labels {
                let expected = closed.iter().find(|(closed, _)| closed == label);
                if let Some((_, expected)) = expected {
                    assert_eq!(values.len(), *expected, "{metric:?}");
                }
            }
        }
    }

    #[test]
    fn no_metric_is_without_help_or_twice() {
        let all = all().expect("registries encode");
        let mut names: Vec<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before, "{names:?}");
        for metric in &all {
            assert!(metric.name.starts_with("medfleet_"), "{metric:?}");
            assert!(!metric.help.is_empty(), "{metric:?}");
            let forbidden = ["job", "upload", "study", "patient", "trace_id"];
            let ids = forbidden.map(|id| metric.labels.contains_key(id));
            assert!(!ids.contains(&true), "ids are in traces only: {metric:?}");
        }
        assert!(names.contains(&"medfleet_backlog_units"), "{names:?}");
    }
}
