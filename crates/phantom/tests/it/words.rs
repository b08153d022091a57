//! Records, reports and questions say what is in the picture, and nothing else.

use medfleet_phantom::labels::Label;
use medfleet_phantom::{Change, Phantom};

use crate::{SEED, phantoms};

/// Phrases of each label; any of them names it.
fn phrases(label: Label) -> &'static [&'static str] {
    match label {
        Label::Cardiomegaly => &["cardiomegaly", "enlarged heart", "heart is enlarged"],
        Label::PleuralEffusion => &["pleural effusion"],
        Label::Pneumothorax => &["pneumothorax"],
        Label::Consolidation => &["consolidation"],
        Label::Nodule => &["nodule"],
        Label::Atelectasis => &["atelectasis"],
        Label::Oedema => &["pulmonary oedema"],
        Label::SupportDevice => &["endotracheal tube", "central venous catheter", "pacemaker"],
        Label::Fracture => &["rib fracture"],
    }
}

/// Whether a text affirms a label: a sentence names it and doesn't deny it.
fn affirms(text: &str, label: Label) -> bool {
    text.split('.').any(|sentence| {
        let sentence = sentence.to_lowercase();
        let denied = sentence
            .split_whitespace()
            .any(|word| word == "no" || word == "not");
        !denied
            && phrases(label)
                .iter()
                .any(|phrase| sentence.contains(phrase))
    })
}

#[test]
fn reports_name_exactly_the_findings() {
    for phantom in phantoms(300) {
        let record = phantom.record();
        let (findings, impression) = record
            .report
            .strip_prefix("Findings: ")
            .and_then(|text| text.split_once(" Impression: "))
            .expect("a report has both parts");
        for label in Label::ALL {
            let there = record.labels.has(label);
            assert_eq!(affirms(findings, label), there, "{label:?} in {findings}");
            assert_eq!(
                affirms(impression, label),
                there,
                "{label:?} in {impression}"
            );
        }
        assert!(!record.report.contains("  ") && !record.report.contains('\n'));
        let sentences = findings.matches('.').count();
        assert!((2..=5).contains(&sentences), "{findings}");
        let clear = record.labels.has(Label::Consolidation) && findings.contains("ungs are clear");
        assert!(!clear, "{findings}");
    }
}

#[test]
fn labels_follow_from_findings_and_none_is_twice() {
    for phantom in phantoms(300) {
        let record = phantom.record();
        assert!(record.findings.len() <= 3);
        for (number, finding) in record.findings.iter().enumerate() {
            assert!(record.labels.has(finding.label));
            assert!((1.0..=5.01).contains(&finding.cnr) || finding.label == Label::Cardiomegaly);
            assert_eq!(finding.size.is_some(), finding.label.is_sized());
            let twin = |other: &&medfleet_phantom::Finding| {
                other.label == finding.label && other.side == finding.side
            };
            assert!(!record.findings[..number].iter().any(|other| twin(&other)));
        }
    }
}

#[test]
fn questions_are_balanced_and_true() {
    let (mut yes, mut no) = (0, 0);
    for phantom in phantoms(400) {
        let record = phantom.record();
        assert_eq!(record.questions.len(), 4);
        for question in &record.questions {
            match question.answer.as_str() {
                "yes" => yes += 1,
                "no" => no += 1,
                words => assert!(words.ends_with('.')),
            }
            let sided = [("left", " on the left?"), ("right", " on the right?")];
            for finding in &record.findings {
                for (side, end) in sided {
                    let about = phrases(finding.label)
                        .iter()
                        .any(|phrase| question.question.contains(phrase));
                    if about && question.question.ends_with(end) {
                        let there = record
                            .findings
                            .iter()
                            .any(|other| other.label == finding.label && other.side.name() == side);
                        assert_eq!(question.answer == "yes", there, "{question:?}");
                    }
                }
            }
        }
    }
    let share = f64::from(yes) / f64::from(yes + no);
    assert!((0.42..0.55).contains(&share), "{share} are answered yes");
}

#[test]
fn numbers_of_findings_are_distributed_as_agreed() {
    for pairs in [false, true] {
        let mut counts = [0.0f64; 4];
        for index in 0..1000 {
            let record = Phantom::draw(SEED, index, pairs);
            counts[record.record().findings.len()] += 0.001;
        }
        for (count, expected) in counts.iter().zip([0.30, 0.35, 0.25, 0.10]) {
            assert!((count - expected).abs() < 0.05, "{counts:?}");
        }
    }
}

#[test]
fn a_pair_is_one_patient_and_its_changes_are_what_differs() {
    for index in (0..120).step_by(2) {
        let before = Phantom::draw(SEED, index, true);
        let after = Phantom::draw(SEED, index + 1, true);
        assert!(before.record().prior.is_none());
        let prior = after
            .record()
            .prior
            .as_ref()
            .expect("odd pictures have a prior");
        assert_eq!(prior.index, index);
        assert_eq!(prior.id, before.record().id);
        let has = |phantom: &Phantom, label, side| {
            let found = |finding: &&medfleet_phantom::Finding| {
                finding.label == label && finding.side == side
            };
            phantom
                .record()
                .findings
                .iter()
                .any(|finding| found(&finding))
        };
        for changed in &prior.changes {
            let there = (
                has(&before, changed.label, changed.side),
                has(&after, changed.label, changed.side),
            );
            let expected = match changed.change {
                Change::New => (false, true),
                Change::Resolved => (true, false),
                Change::Worse | Change::Better | Change::Unchanged => (true, true),
            };
            assert_eq!(there, expected, "{changed:?}");
        }
        for finding in before
            .record()
            .findings
            .iter()
            .chain(&after.record().findings)
        {
            let told = |changed: &&medfleet_phantom::Changed| {
                changed.label == finding.label && changed.side == finding.side
            };
            assert!(prior.changes.iter().any(|changed| told(&changed)));
        }
    }
}
