//! The labeler on the generator's own words: `phantoms.jsonl` are the first records of a set of `medfleet phantom --pairs`.

use std::collections::BTreeSet;

use medfleet_score::labeler::{self, Label, Status};
use medfleet_score::metrics::laterality::halves;
use medfleet_score::record::Truth;
use medfleet_score::{Record, read_set};

fn phantoms() -> Vec<Record> {
    read_set(&include_bytes!("phantoms.jsonl")[..]).expect("the set is as the generator wrote it")
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
fn a_comparison_says_what_is_still_there() {
    let mut compared = 0;
    for record in phantoms() {
        let Some(prior) = record.prior else { continue };
        let report = prior.report.unwrap();
        let reading = labeler::read(&report);
        for changed in &prior.changes {
            compared += 1;
            let label = Label::named(&changed.label).unwrap();
            let others = prior
                .changes
                .iter()
                .filter(|other| other.label == changed.label);
            if others.count() == 1 {
                assert_eq!(reading.has(label), changed.change != "resolved", "{report}");
            }
        }
    }
    assert!(compared > 10);
}
