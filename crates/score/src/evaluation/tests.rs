//! Each task on a small set: what is right, wrong, mirrored, missing and guessed has to come out as such.

mod bands;
mod compare;
mod labels;

use super::*;
use crate::metrics::boxes::Rect;
use crate::metrics::radcliq::Learned;
use crate::metrics::radgraph::{Entity, Graph};
use crate::outcome::SaidBox;
use crate::record::{Finding, Question, QuestionKind, Side};

const SIDED: [(&str, &str); 6] = [
    ("pleural_effusion", "pleural effusion"),
    ("pneumothorax", "pneumothorax"),
    ("consolidation", "consolidation"),
    ("nodule", "nodule"),
    ("atelectasis", "atelectasis"),
    ("fracture", "rib fracture"),
];
const UNSIDED: [(&str, &str); 3] = [
    ("cardiomegaly", "cardiomegaly"),
    ("oedema", "pulmonary oedema"),
    ("support_device", "pacemaker"),
];

/// Phantoms with every label, side and band; a third of them normal.
fn set(count: usize) -> Vec<Record> {
    (0..count).map(phantom).collect()
}

fn phantom(number: usize) -> Record {
    let mut record = Record {
        id: format!("phantom-9-{number:04}"),
        ..Record::default()
    };
    let mut sentences = Vec::new();
    let mut add = |label: &str, words: &str, side: Side, cnr: f64| {
        let word = match side {
            Side::Left => "left ",
            Side::Right => "right ",
            _ => "",
        };
        sentences.push(format!("There is a {word}{words}."));
        let top = (number * 37 % 700) as f64;
        record.findings.push(Finding {
            label: label.into(),
            side: Some(side),
            zone: None,
            size: None,
            cnr: Some(cnr),
            area: Some(Rect::new(top, top / 2.0, top + 200.0, top / 2.0 + 150.0).unwrap()),
        });
    };
    let cnr = 1.0 + (number % 41) as f64 / 10.0;
    if !number.is_multiple_of(3) {
        let (label, words) = SIDED[number / 3 % 6];
        let side = if number.is_multiple_of(2) {
            Side::Left
        } else {
            Side::Right
        };
        add(label, words, side, cnr);
    }
    if number % 3 == 2 {
        let (label, words) = UNSIDED[number / 3 % 3];
        add(label, words, Side::Midline, cnr);
    }
    for (label, _) in SIDED.iter().chain(&UNSIDED) {
        let there = record
            .findings
            .iter()
            .any(|finding| finding.label == *label);
        let truth = if there {
            Truth::Positive
        } else {
            Truth::Negative
        };
        record.labels.insert((*label).into(), truth);
    }
    record.report = Some(if sentences.is_empty() {
        "Normal chest. No pleural effusion.".into()
    } else {
        sentences.join(" ")
    });
    let question = |question: &str, answer: &str, kind| Question {
        question: question.into(),
        answer: answer.into(),
        kind,
    };
    let any = if record.findings.is_empty() {
        "no"
    } else {
        "yes"
    };
    record.questions = vec![
        question("Is there any finding?", any, QuestionKind::Closed),
        question("Which side?", "Left.", QuestionKind::Open),
    ];
    record
}

fn options() -> Options {
    Options {
        bootstrap: Bootstrap {
            resamples: 200,
            ..Bootstrap::seeded(1)
        },
        uncertain: Uncertain::Positive,
        about: About {
            name: "test".into(),
            description: String::new(),
            phantom: true,
        },
    }
}

/// Drafts, made of the records by `say`.
fn drafts(records: &[Record], say: impl Fn(&Record) -> String) -> Vec<Outcome> {
    let draft = |record: &Record| Outcome {
        text: Some(say(record)),
        ..Outcome::new(&record.id, Task::Report)
    };
    records.iter().map(draft).collect()
}

fn truth(record: &Record) -> String {
    record.report.clone().unwrap_or_default()
}

#[track_caller]
fn check(evaluation: &Evaluation, expected: &[(&str, f64)]) {
    for (name, expected) in expected {
        let figure = evaluation
            .figure(name)
            .unwrap_or_else(|| panic!("no {name}"));
        assert!(
            (figure.value - expected).abs() < 1e-9,
            "{name}: {figure:?}, expected {expected}"
        );
        assert!(
            figure.low <= figure.value && figure.value <= figure.high,
            "{name}: {figure:?}"
        );
    }
}

#[test]
fn a_perfect_draft_is_right_in_everything() {
    let records = set(90);
    let evaluation = evaluate(Task::Report, &records, &drafts(&records, truth), &options());
    let names = [
        "macro_f1",
        "micro_f1",
        "macro_f1_5",
        "exact_labels",
        "laterality",
        "bleu_1",
        "bleu_4",
        "rouge_l",
    ];
    check(&evaluation, &names.map(|name| (name, 1.0)));
    assert!(
        evaluation.worst.is_empty()
            && evaluation.failures.is_empty()
            && evaluation.notes.is_empty()
    );
    assert_eq!(evaluation.bands.len(), 4);
    assert_eq!(
        evaluation
            .bands
            .iter()
            .map(|band| band.findings)
            .sum::<usize>(),
        90
    );
    assert!(
        evaluation
            .bands
            .iter()
            .all(|band| band.figures.iter().all(|named| named.figure.value == 1.0))
    );
    assert_eq!(evaluation.labels.len(), 10);
    // Also in draws that have none of a rare label.
    assert!(
        evaluation
            .labels
            .iter()
            .all(|row| row.f1.unwrap().low == 1.0)
    );
    assert_eq!(evaluation.figure("macro_f1").unwrap().low, 1.0);
    assert!(evaluation.labels[9].derived);
    assert_eq!(evaluation.labels[9].counts.unwrap().true_positive, 30.0);
}

#[test]
fn the_order_of_records_and_outcomes_does_not_matter() {
    let mut records = set(60);
    let mut outcomes = drafts(&records, |record| {
        if record.id.ends_with('7') {
            "Normal chest.".into()
        } else {
            truth(record)
        }
    });
    let first =
        serde_json::to_string(&evaluate(Task::Report, &records, &outcomes, &options())).unwrap();
    records.reverse();
    outcomes.rotate_left(17);
    let second =
        serde_json::to_string(&evaluate(Task::Report, &records, &outcomes, &options())).unwrap();
    assert_eq!(first, second);
}

#[test]
fn mirrored_drafts_lose_their_sides_only() {
    let records = set(90);
    let outcomes = drafts(&records, |record| {
        truth(record)
            .replace("left", "LEFT")
            .replace("right", "left")
            .replace("LEFT", "right")
    });
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    check(&evaluation, &[("macro_f1", 1.0), ("laterality", 0.0)]);
    assert_eq!(evaluation.worst.len(), WORST_MAX);
    assert_eq!(evaluation.worst[0].wrong, ["0 of 1 sides right"]);
    let sided = evaluation.bands[0]
        .figures
        .iter()
        .find(|named| named.name == "recall_sided")
        .unwrap();
    assert_eq!(sided.figure.value, 0.0);
}

#[test]
fn the_same_words_for_every_picture_score_as_guessing() {
    let records = set(90);
    let blank = evaluate(
        Task::Report,
        &records,
        &drafts(&records, |_| "Normal chest.".into()),
        &options(),
    );
    check(
        &blank,
        &[
            ("macro_f1", 0.0),
            ("micro_f1", 0.0),
            ("exact_labels", 1.0 / 3.0),
        ],
    );
    assert!(blank.figure("laterality").is_none());
    let always = evaluate(
        Task::Report,
        &records,
        &drafts(&records, |_| "There is a left pleural effusion.".into()),
        &options(),
    );
    // Ten effusions of ninety: P = 1/9, R = 1, so F1 = 0.2; half of them are left.
    check(&always, &[("macro_f1", 0.2 / 9.0), ("laterality", 0.5)]);
    let outcomes: Vec<Outcome> = records
        .iter()
        .map(|record| Outcome {
            scores: record
                .labels
                .keys()
                .map(|label| (label.clone(), 0.3))
                .collect(),
            ..Outcome::new(&record.id, Task::ZeroShot)
        })
        .collect();
    check(
        &evaluate(Task::ZeroShot, &records, &outcomes, &options()),
        &[("mean_auc", 0.5)],
    );
}

#[test]
fn failures_are_wrong_and_listed() {
    let records = set(9);
    let mut outcomes = drafts(&records, truth);
    outcomes[0].text = None;
    outcomes[0].failure = Some("deadline exceeded".into());
    outcomes[1].failure = Some("rejected".into());
    outcomes.pop();
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    let reasons: Vec<&str> = evaluation
        .failures
        .iter()
        .map(|failure| failure.reason.as_str())
        .collect();
    assert_eq!(reasons, ["deadline exceeded", "rejected", MISSING]);
    assert_eq!(evaluation.scored, 9);
    check(&evaluation, &[("exact_labels", 6.0 / 9.0)]);
    // The normal one that failed isn't said to be normal, though nothing was named.
    assert_eq!(evaluation.labels[9].counts.unwrap().false_negative, 1.0);
    let all = evaluate(Task::Report, &records, &[], &options());
    check(
        &all,
        &[
            ("macro_f1", 0.0),
            ("exact_labels", 0.0),
            ("rouge_l", 0.0),
            ("bleu_1", 0.0),
        ],
    );
    assert_eq!(all.failures.len(), 9);
}

#[test]
fn a_later_outcome_replaces_an_earlier_one() {
    let records = set(3);
    let mut outcomes = drafts(&records, |_| "nothing".into());
    outcomes.extend(drafts(&records, truth));
    outcomes.push(Outcome::new("stranger", Task::Report));
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    check(&evaluation, &[("exact_labels", 1.0), ("rouge_l", 1.0)]);
    assert_eq!(
        evaluation.notes,
        [
            "1 predictions belong to no record of the set and are not scored",
            "no record has nodule, oedema, consolidation, atelectasis, pneumothorax, fracture, support_device: by convention F1 is 0 there, and counts in the macro means"
        ]
    );
}

#[test]
fn reports_without_labels_are_read_by_the_labeler() {
    let mut records = set(18);
    for record in &mut records {
        record.labels.clear();
        record.findings.clear();
    }
    let evaluation = evaluate(Task::Report, &records, &drafts(&records, truth), &options());
    check(&evaluation, &[("micro_f1", 1.0), ("exact_labels", 1.0)]);
    assert_eq!(evaluation.labels.len(), 14);
    assert!(evaluation.bands.is_empty());
}

#[test]
fn uncertain_labels_count_as_told() {
    let mut record = phantom(0);
    record.labels = BTreeMap::from([
        ("Edema".into(), Truth::Uncertain),
        ("Pneumonia".into(), Truth::Positive),
    ]);
    record.labels.insert("Hernia".into(), Truth::Positive);
    let outcomes = drafts(std::slice::from_ref(&record), |_| "Pneumonia.".into());
    let counts = |uncertain| {
        let options = Options {
            uncertain,
            ..options()
        };
        let evaluation = evaluate(
            Task::Report,
            std::slice::from_ref(&record),
            &outcomes,
            &options,
        );
        assert!(evaluation.notes[0].starts_with("the labeler doesn't know Hernia"));
        evaluation.labels[0].counts.unwrap()
    };
    assert_eq!(counts(Uncertain::Positive).false_negative, 1.0);
    assert_eq!(counts(Uncertain::Negative).true_negative, 1.0);
    assert_eq!(counts(Uncertain::Unknown), Counts::default());
}

#[test]
fn questions() {
    let records = set(30);
    let mut outcomes = Vec::new();
    for record in &records {
        for (number, question) in record.questions.iter().enumerate() {
            outcomes.push(Outcome {
                item: Some(number),
                text: Some(if number == 0 {
                    question.answer.clone()
                } else {
                    "on the left".into()
                }),
                ..Outcome::new(&record.id, Task::Answer)
            });
        }
    }
    outcomes[0].text = Some("Yes, there is.".into());
    outcomes[2].failure = Some("late".into());
    let evaluation = evaluate(Task::Answer, &records, &outcomes, &options());
    check(
        &evaluation,
        &[
            ("yes_no_accuracy", 28.0 / 30.0),
            ("closed_accuracy", 28.0 / 30.0),
            ("exact_match", 28.0 / 60.0),
            ("open_token_f1", 2.0 / 3.0),
            ("open_exact_match", 0.0),
        ],
    );
    assert_eq!(
        evaluation.failures,
        [Failure {
            id: records[1].id.clone(),
            item: Some(0),
            reason: "late".into()
        }]
    );
    let no = evaluation.labels[1].counts.unwrap();
    assert_eq!(
        (no.true_positive, no.false_negative, no.false_positive),
        (9.0, 1.0, 0.0)
    );
    assert_eq!(evaluation.worst[0].said, "Yes, there is.");
}

#[test]
fn boxes() {
    let records = set(60);
    let said = |record: &Record, shift: f64| -> Vec<SaidBox> {
        let of = |finding: &Finding| {
            let [top, left, bottom, right]: [f64; 4] = finding.area.unwrap().into();
            SaidBox {
                label: Some(finding.label.clone()),
                side: finding.side,
                area: Rect::new(top, left + shift, bottom, right + shift).unwrap(),
            }
        };
        record.findings.iter().map(of).collect()
    };
    let outcomes = |shift| -> Vec<Outcome> {
        let outcome = |record: &Record| Outcome {
            boxes: said(record, shift),
            ..Outcome::new(&record.id, Task::Localise)
        };
        records.iter().map(outcome).collect()
    };
    let perfect = evaluate(Task::Localise, &records, &outcomes(0.0), &options());
    check(
        &perfect,
        &[("mean_iou", 1.0), ("recall_50", 1.0), ("precision_50", 1.0)],
    );
    assert_eq!((perfect.scored, perfect.labels.len()), (40, 9));
    // Two thirds of the width in common: 100 of 200.
    let shifted = evaluate(Task::Localise, &records, &outcomes(50.0), &options());
    check(&shifted, &[("mean_iou", 0.5), ("recall_50", 1.0)]);
    let off = evaluate(Task::Localise, &records, &outcomes(150.0), &options());
    check(
        &off,
        &[("mean_iou", 0.0), ("recall_50", 0.0), ("precision_50", 0.0)],
    );
    assert!(!off.worst.is_empty());
    let missing = evaluate(Task::Localise, &records, &[], &options());
    check(&missing, &[("mean_iou", 0.0), ("recall_50", 0.0)]);
    assert_eq!(missing.failures.len(), 40);
}

#[test]
fn boxes_asked_for_one_by_one_belong_to_their_finding() {
    let record = phantom(5);
    let ask = |number: usize| Outcome {
        item: Some(number),
        boxes: vec![SaidBox {
            label: None,
            side: None,
            area: record.findings[0].area.unwrap(),
        }],
        ..Outcome::new(&record.id, Task::Localise)
    };
    let mut far = record.clone();
    far.findings[1].area = Some(Rect::new(900.0, 900.0, 950.0, 950.0).unwrap());
    let evaluation = evaluate(Task::Localise, &[far], &[ask(0), ask(1)], &options());
    check(
        &evaluation,
        &[("mean_iou", 0.5), ("recall_50", 0.5), ("precision_50", 0.5)],
    );
}

#[test]
fn stored_graphs_and_what_models_make_of_texts() {
    let entity = |tokens: &str| Entity {
        tokens: tokens.into(),
        label: "OBS-DP".into(),
        relations: Vec::new(),
    };
    let graph = |tokens: &str| Graph {
        entities: BTreeMap::from([("1".into(), entity(tokens)), ("2".into(), entity("heart"))]),
    };
    let mut records = set(3);
    let mut outcomes = drafts(&records, truth);
    for (record, outcome) in records.iter_mut().zip(&mut outcomes) {
        record.graph = Some(graph("large"));
        outcome.graph = Some(graph("small"));
    }
    outcomes[2].failure = Some("late".into());
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    check(
        &evaluation,
        &[
            ("radgraph_simple", 1.0 / 3.0),
            ("radgraph_complete", 1.0 / 3.0),
        ],
    );
    assert!(evaluation.figure("radcliq").is_none());

    for outcome in &mut outcomes {
        outcome.radcliq = Some(Learned {
            bertscore: 0.5,
            chexbert: 0.75,
        });
    }
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    // Of two drafts with half of the entities and no relation, 0.567338 each; of one that is missing, 2.450143.
    check(&evaluation, &[("radcliq", 1.194_939_399_887_858_8)]);
    records[0].graph = None;
    let evaluation = evaluate(Task::Report, &records, &outcomes, &options());
    let figure = evaluation.figure("radcliq").unwrap();
    assert!((figure.value - f64::midpoint(0.567_337_550, 2.450_143_100)).abs() < 1e-8);
}
