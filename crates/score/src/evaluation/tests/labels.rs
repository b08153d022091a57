//! Labels: their rates, and scores that rank.

use super::*;

#[test]
fn a_rate_of_nothing_is_none() {
    let records = set(9);
    let drafts = drafts(&records, |_| "There is an endotracheal tube.".into());
    let evaluation = evaluate(Task::Report, &records, &drafts, &options());
    let row = |name: &str| {
        let mut rows = evaluation.labels.iter();
        rows.find(|row| row.label == name).unwrap()
    };
    // There and never said: no precision. Never there, but said: no recall. Neither: no F1.
    let effusion = row("pleural_effusion");
    assert_eq!(effusion.precision, None);
    assert_eq!(effusion.recall.unwrap().value, 0.0);
    assert_eq!(effusion.f1.unwrap().value, 0.0);
    let fracture = row("fracture");
    assert_eq!((fracture.precision, fracture.f1), (None, None));
    // One of nine has a device, and all are said to.
    let device = row("support_device");
    let (precision, recall) = (device.precision.unwrap(), device.recall.unwrap());
    assert!((precision.value - 1.0 / 9.0).abs() < 1e-9);
    assert!(precision.low < precision.value && precision.value < precision.high);
    assert_eq!((recall.value, recall.low), (1.0, 1.0));
    let mut none = records;
    none.retain(|record| record.labels["support_device"] == Truth::Negative);
    let evaluation = evaluate(Task::Report, &none, &drafts, &options());
    let device = evaluation
        .labels
        .iter()
        .find(|row| row.label == "support_device");
    let device = device.unwrap();
    assert_eq!((device.recall, device.f1.unwrap().value), (None, 0.0));
}

#[test]
fn labels_by_scores_and_by_words() {
    let records = set(30);
    let scored: Vec<Outcome> = records
        .iter()
        .map(|record| Outcome {
            // By another of the label's names.
            scores: record
                .labels
                .iter()
                .map(|(label, truth)| {
                    let name = crate::labeler::Label::named(label).unwrap().chexpert();
                    (
                        name.to_owned(),
                        if *truth == Truth::Positive { 0.8 } else { 0.1 },
                    )
                })
                .collect(),
            ..Outcome::new(&record.id, Task::Classify)
        })
        .collect();
    let evaluation = evaluate(Task::Classify, &records, &scored, &options());
    check(
        &evaluation,
        &[("exact_labels", 1.0), ("mean_auc", 1.0), ("micro_f1", 1.0)],
    );
    let worded: Vec<Outcome> = drafts(&records, truth)
        .into_iter()
        .map(|outcome| Outcome {
            task: Task::Classify,
            ..outcome
        })
        .collect();
    let evaluation = evaluate(Task::Classify, &records, &worded, &options());
    check(&evaluation, &[("exact_labels", 1.0)]);
    assert!(evaluation.figure("mean_auc").is_none());
}

#[test]
fn missing_scores_rank_worst() {
    let records = set(30);
    let evaluation = evaluate(Task::ZeroShot, &records, &[], &options());
    check(&evaluation, &[("mean_auc", 0.0)]);
    assert_eq!(evaluation.failures.len(), 30);
}

#[test]
fn the_worst_ranked_are_shown() {
    let records = set(30);
    let mut outcomes = Vec::new();
    for record in &records {
        let of = |truth: &Truth| if *truth == Truth::Positive { 2.0 } else { -2.0 };
        let scores = record.labels.iter();
        outcomes.push(Outcome {
            scores: scores
                .map(|(label, truth)| (label.clone(), of(truth)))
                .collect(),
            ..Outcome::new(&record.id, Task::ZeroShot)
        });
    }
    let perfect = evaluate(Task::ZeroShot, &records, &outcomes, &options());
    assert!(perfect.worst.is_empty());
    // A normal picture that looks most of all like an effusion: all that have one rank behind it.
    outcomes[0].scores.insert("pleural_effusion".into(), 3.0);
    let evaluation = evaluate(Task::ZeroShot, &records, &outcomes, &options());
    let [case] = evaluation.worst.as_slice() else {
        panic!("{:?}", evaluation.worst);
    };
    assert_eq!(case.id, records[0].id);
    assert_eq!(
        case.wrong,
        ["pleural_effusion ranks on the wrong side of 100 % of the others"]
    );
    assert_eq!(case.truth, "none");
    assert!(case.said.starts_with("highest: pleural_effusion 3.00, "));
}
