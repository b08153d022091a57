//! The labeler on the generator's own words: `phantoms.jsonl` are the first records of a set of `medfleet phantom --pairs`.

use std::collections::BTreeSet;

use medfleet_score::labeler::{self, Label, Status};
use medfleet_score::metrics::laterality::halves;
use medfleet_score::record::{Change, Truth};
use medfleet_score::{Record, read_set};

fn phantoms() -> Vec<Record> {
    read_set(&include_bytes!("../phantoms.jsonl")[..])
        .expect("the set is as the generator wrote it")
}

#[test]
fn a_report_says_what_its_record_has() {
    let records = phantoms();
    assert!(records.len() >= 40);
    for record in records {
        let report = record.report.unwrap();
        let reading = labeler::read(&report);
        for (name, truth) in &record.labels {
            let label = Label::named(name).unwrap();
            let status = reading.status(label);
            if *truth == Truth::Positive {
                assert_eq!(status, Status::Positive, "{name}: {report}");
            } else {
                assert!(status <= Status::Negative, "{name}: {report}");
            }
            if label.is_sided() {
                let of = record
                    .findings
                    .iter()
                    .filter(|finding| finding.label == *name);
                let truth: BTreeSet<_> = halves(of.filter_map(|finding| finding.side));
                assert_eq!(halves(reading.sides(label)), truth, "{name}: {report}");
            }
        }
    }
}

#[test]
fn a_comparison_says_what_became_of_each_finding() {
    for record in phantoms() {
        let Some(prior) = record.prior else { continue };
        let report = prior.report.unwrap();
        let changes = prior.changes.unwrap();
        let comparison = labeler::compare(&report);
        let said: Vec<_> = comparison
            .statements
            .iter()
            .map(|statement| (statement.label, statement.change))
            .collect();
        let truth: Vec<_> = changes
            .iter()
            .map(|changed| {
                let label = Label::named(&changed.label).unwrap();
                (label, Change::named(&changed.change).unwrap())
            })
            .collect();
        assert_eq!(said, truth, "{report}");
        assert_eq!(comparison.same, changes.is_empty(), "{report}");
        for (statement, changed) in comparison.statements.iter().zip(&changes) {
            if statement.label.is_sided() {
                assert_eq!(statement.side, changed.side, "{report}");
            }
        }
    }
}

#[test]
fn a_comparison_says_what_is_still_there() {
    let mut compared = 0;
    for record in phantoms() {
        let Some(prior) = record.prior else { continue };
        let report = prior.report.unwrap();
        let reading = labeler::read(&report);
        let changes = prior.changes.unwrap_or_default();
        for changed in &changes {
            compared += 1;
            let label = Label::named(&changed.label).unwrap();
            let others = changes.iter().filter(|other| other.label == changed.label);
            if others.count() == 1 {
                assert_eq!(reading.has(label), changed.change != "resolved", "{report}");
            }
        }
    }
    assert!(compared > 10);
}
