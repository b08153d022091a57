//! Comparisons, on pairs small enough to count by hand.

use super::*;
use crate::record::{Changed, Prior};

type Truths<'a> = &'a [(&'a str, Option<Side>, &'a str)];

fn pair(number: usize, truths: Truths) -> Record {
    let changed = |(label, side, change): &(&str, Option<Side>, &str)| Changed {
        label: (*label).into(),
        side: *side,
        change: (*change).into(),
    };
    Record {
        id: format!("phantom-7-{number}"),
        prior: Some(Prior {
            changes: Some(truths.iter().map(changed).collect()),
            ..Prior::default()
        }),
        ..Record::default()
    }
}

fn compare(pairs: &[(Truths, &str)]) -> Evaluation {
    let mut records = Vec::new();
    let mut outcomes = Vec::new();
    for (number, (truths, draft)) in pairs.iter().enumerate() {
        let record = pair(number, truths);
        outcomes.push(Outcome {
            text: Some((*draft).into()),
            ..Outcome::new(&record.id, Task::Compare)
        });
        records.push(record);
    }
    evaluate(Task::Compare, &records, &outcomes, &options())
}

const LEFT: Option<Side> = Some(Side::Left);
const RIGHT: Option<Side> = Some(Side::Right);

#[test]
fn changes_are_counted_each() {
    let evaluation = compare(&[
        (
            &[
                ("pleural_effusion", LEFT, "worse"),
                ("nodule", RIGHT, "new"),
            ],
            "The left pleural effusion is better. The right nodule is new. The cardiomegaly is new.",
        ),
        (
            &[("cardiomegaly", Some(Side::Midline), "unchanged")],
            "The cardiomegaly is unchanged.",
        ),
        (
            &[("oedema", Some(Side::Bilateral), "resolved")],
            "Normal chest.",
        ),
        (&[], "No change since the prior."),
    ]);
    check(
        &evaluation,
        &[
            ("change_accuracy", 2.0 / 4.0),
            ("change_accuracy_named", 2.0 / 3.0),
            // The enlarged heart is in neither picture of the first pair.
            ("change_precision", 2.0 / 4.0),
            ("exact_pairs", 2.0 / 4.0),
            // New: tp 1, fp 1. Worse: missed. Unchanged: right. Resolved: missed. Better isn't in the set.
            ("macro_f1", (2.0 / 3.0 + 0.0 + 1.0 + 0.0) / 4.0),
        ],
    );
    let confusion = evaluation.confusion.as_ref().unwrap();
    assert_eq!(
        confusion.counts,
        [
            [1, 0, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 1],
            [1, 0, 0, 0, 0, 0],
        ]
    );
    assert_eq!(evaluation.worst[0].wrong, ["oedema is resolved, not named"]);
    assert_eq!(
        evaluation.worst[1].wrong,
        [
            "left pleural effusion is worse, said better",
            "cardiomegaly said new is in neither picture"
        ]
    );
    let better = &evaluation.labels[2];
    assert_eq!((better.label.as_str(), better.recall), ("better", None));
    assert_eq!(better.counts.unwrap().false_positive, 1.0);
    assert_eq!(better.counts.unwrap().true_negative, 4.0);
    let text = crate::report::markdown(&evaluation);
    assert!(text.contains("| worse | 0 | 0 | 1 | 0 | 0 | 0 |"), "{text}");
    let page = crate::report::html(&evaluation, &mut |_| None);
    assert!(page.contains("<h2>Confusion</h2>"));
}

#[test]
fn a_statement_is_of_the_finding_on_its_side() {
    let truths: Truths = &[
        ("pleural_effusion", LEFT, "worse"),
        ("pleural_effusion", RIGHT, "better"),
    ];
    let accuracy = |draft: &str, expected: f64| {
        check(
            &compare(&[(truths, draft)]),
            &[("change_accuracy", expected)],
        );
    };
    accuracy(
        "The left effusion is larger. The right effusion is smaller.",
        1.0,
    );
    accuracy("The right effusion is larger. The left is smaller.", 0.0);
    accuracy("The effusions are larger.", 0.5);
    accuracy("Bilateral effusions, unchanged.", 0.0);
}

#[test]
fn nothing_changed_is_said_of_everything() {
    let truths: Truths = &[("nodule", LEFT, "unchanged"), ("fracture", LEFT, "new")];
    let evaluation = compare(&[(truths, "No significant interval change.")]);
    check(
        &evaluation,
        &[("change_accuracy", 0.5), ("change_accuracy_named", 0.5)],
    );
}

#[test]
fn failed_pairs_are_wrong_and_records_without_a_pair_are_left_out() {
    let mut alone = pair(2, &[]);
    alone.prior = None;
    let mut unknown = pair(3, &[]);
    unknown.prior = Some(Prior::default());
    let records = [
        pair(0, &[]),
        pair(1, &[("nodule", LEFT, "new")]),
        alone,
        unknown,
    ];
    let evaluation = evaluate(Task::Compare, &records, &[], &options());
    assert_eq!((evaluation.records, evaluation.scored), (4, 2));
    assert_eq!(evaluation.failures.len(), 2);
    // Also where nothing was to be said.
    check(
        &evaluation,
        &[("exact_pairs", 0.0), ("change_accuracy", 0.0)],
    );
}

#[test]
fn names_that_are_not_known_are_told_and_not_scored() {
    let truths: Truths = &[("nodule", LEFT, "odd"), ("nodule", RIGHT, "Stable")];
    let draft = "The left nodule is larger. The right nodule is unchanged.";
    let evaluation = compare(&[(truths, draft)]);
    check(
        &evaluation,
        &[("change_accuracy", 1.0), ("exact_pairs", 1.0)],
    );
    assert_eq!(
        evaluation.notes[0],
        "not known, so that findings with it are not scored: odd"
    );
}
