//! The reports of many seeds as one table: a row a fault, a column what it hit.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::chaos::plan::Fault;
use crate::chaos::run::Report;

const TARGETS: [&str; 8] = [
    "ingest",
    "preprocess",
    "encode",
    "decode",
    "nats",
    "all nats",
    "store",
    "all",
];

/// Markdown: each cell is how often the fault hit, and in brackets how often while units were at work there.
pub fn table(reports: &[Report]) -> String {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (name, (hits, at_work)) in reports.iter().flat_map(|report| &report.faults) {
        let sum = sums.entry(name).or_default();
        sum.0 += hits;
        sum.1 += at_work;
    }
    let mut text = format!(
        "| fault | {} |\n|---|{}\n",
        TARGETS.join(" | "),
        "---|".repeat(TARGETS.len())
    );
    for fault in Fault::ALL {
        let cells = TARGETS.map(|target| {
            let sum = sums.get(format!("{fault}, {target}").as_str());
            sum.map_or_else(String::new, |(hits, at_work)| format!("{hits} ({at_work})"))
        });
        line(
            &mut text,
            format_args!("| {fault} | {} |", cells.join(" | ")),
        );
    }
    let total: u64 = sums.values().map(|(hits, _)| hits).sum();
    let of = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    line(
        &mut text,
        format_args!(
            "\n{} seeds, {total} faults, {} jobs accepted, as many completed with the right answer, 0 lost, 0 doubled; {} calls made again, {} further decode attempts, {} drains with an exit code other than 0; {:.0} s in all.",
            reports.len(),
            of(|report| report.completed as u64),
            of(|report| report.retried),
            of(|report| report.further_attempts),
            of(|report| report.late_drains),
            reports.iter().map(|report| report.seconds).sum::<f64>(),
        ),
    );
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}
