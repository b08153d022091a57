//! Figures by contrast, on sets small enough to count by hand.

use super::*;

/// Ten records. Nodules: two at 1.5, of which one is named, and two at 4.5, both named; of six records without, two are said
/// to have one. An effusion at 1.2, named.
fn set_and_drafts() -> (Vec<Record>, Vec<Outcome>) {
    let lines = [
        (Some(("nodule", 1.5)), "There is a nodule."),
        (Some(("nodule", 1.5)), "Normal chest."),
        (Some(("nodule", 4.5)), "There is a nodule."),
        (Some(("nodule", 4.5)), "There is a nodule."),
        (Some(("pleural_effusion", 1.2)), "There is an effusion."),
        (None, "There is a nodule."),
        (None, "There is a nodule."),
        (None, "Normal chest."),
        (None, "Normal chest."),
        (None, "Normal chest."),
    ];
    let mut records = Vec::new();
    let mut outcomes = Vec::new();
    for (number, (finding, draft)) in lines.into_iter().enumerate() {
        let mut record = Record {
            id: format!("phantom-8-{number}"),
            ..Record::default()
        };
        for label in ["nodule", "pleural_effusion"] {
            record.labels.insert(label.into(), Truth::Negative);
        }
        if let Some((label, cnr)) = finding {
            record.labels.insert(label.into(), Truth::Positive);
            record.findings.push(Finding {
                label: label.into(),
                side: None,
                zone: None,
                size: None,
                cnr: Some(cnr),
                area: None,
            });
        }
        outcomes.push(Outcome {
            text: Some(draft.into()),
            ..Outcome::new(&record.id, Task::Report)
        });
        records.push(record);
    }
    (records, outcomes)
}

#[track_caller]
fn check_band(band: &Band, findings: usize, expected: &[(&str, f64, usize)]) {
    assert_eq!(band.findings, findings);
    for (name, value, count) in expected {
        let mut figures = band.figures.iter();
        let named = figures.find(|named| named.name == *name);
        let named = named.unwrap_or_else(|| panic!("no {name}"));
        let off = (named.figure.value - value).abs();
        assert!(off < 1e-9 && named.count == *count, "{named:?}");
        assert!(
            named.figure.low <= named.figure.value && named.figure.value <= named.figure.high,
            "{named:?}"
        );
    }
}

#[test]
fn f1_of_each_band() {
    let (records, outcomes) = set_and_drafts();
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    let [faint, plain] = evaluation.bands.as_slice() else {
        panic!("{:?}", evaluation.bands);
    };
    assert_eq!((faint.low, plain.low), (1.0, 4.0));
    // Half of the four nodules, so one of the two false ones: tp 1, fp 1, fn 1. With the effusion: tp 2.
    let expected = [
        ("macro_f1", f64::midpoint(0.5, 1.0), 3),
        ("micro_f1", 4.0 / 6.0, 3),
        ("recall", 2.0 / 3.0, 3),
    ];
    check_band(faint, 3, &expected);
    // tp 2, fp 1. No effusion is as plain, so it has no part in the mean.
    let expected = [
        ("macro_f1", 0.8, 2),
        ("micro_f1", 0.8, 2),
        ("recall", 1.0, 2),
    ];
    check_band(plain, 2, &expected);
    let names =
        |band: &Band| -> Vec<String> { band.labels.iter().map(|row| row.label.clone()).collect() };
    assert_eq!(names(faint), ["nodule", "pleural_effusion"]);
    assert_eq!(names(plain), ["nodule"]);
    let nodules = [faint, plain].map(|band| band.labels[0].counts.unwrap());
    assert_eq!(
        Counts::sum(&nodules, &[1.0, 1.0]),
        evaluation.labels[0].counts.unwrap()
    );
}

#[test]
fn labels_asked_for_alone_have_bands_too() {
    let (records, mut outcomes) = set_and_drafts();
    for outcome in &mut outcomes {
        outcome.task = Task::Classify;
    }
    let evaluation = evaluate(Task::Classify, &records, &outcomes, &options());
    let bands = &evaluation.bands;
    check_band(&bands[0], 3, &[("micro_f1", 4.0 / 6.0, 3)]);
    check_band(&bands[1], 2, &[("micro_f1", 0.8, 2)]);
    assert_eq!(bands[1].figures.len(), 2);
}

#[test]
fn a_label_is_in_the_band_of_its_plainest_finding() {
    let (mut records, outcomes) = set_and_drafts();
    let mut second = records[0].findings[0].clone();
    second.cnr = Some(4.9);
    records[0].findings.push(second);
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    let [faint, plain] = evaluation.bands.as_slice() else {
        panic!("{:?}", evaluation.bands);
    };
    // Findings are counted each, labels once a record.
    check_band(faint, 3, &[("micro_f1", 2.0 / 3.5, 2)]);
    check_band(plain, 3, &[("micro_f1", 6.0 / 7.5, 3)]);
}

#[test]
fn sets_without_contrast_have_no_bands() {
    let (mut records, outcomes) = set_and_drafts();
    for finding in records.iter_mut().flat_map(|record| &mut record.findings) {
        finding.cnr = None;
    }
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    assert!(evaluation.bands.is_empty());
    let page = crate::report::html(&evaluation, &mut |_| None);
    assert!(!page.contains("Contrast"));
    assert!(!crate::report::markdown(&evaluation).contains("Contrast"));
}
