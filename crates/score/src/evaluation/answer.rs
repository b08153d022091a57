//! Questions: whether closed ones are answered rightly, and how many words of open ones are.

use super::{Case, Evaluation, LabelRow, Part, Scene};
use crate::metrics::answer::{closed, exact, normalised, token_f1};
use crate::metrics::multilabel::{Cell, Counts};
use crate::record::QuestionKind;

/// One question's answer.
struct Answered {
    record: usize,
    kind: QuestionKind,
    /// The right answer, if it is yes or no.
    truth: Option<bool>,
    /// What was said, if it is yes or no.
    said: Option<bool>,
    exact: f64,
    right: f64,
    f1: f64,
}

pub(super) fn evaluate(scene: &Scene, into: &mut Evaluation) {
    let mut answers = Vec::new();
    for (record, pair) in scene.pairs.iter().enumerate() {
        for (number, question) in pair.record.questions.iter().enumerate() {
            // A record with one question needs no number.
            let only = pair.record.questions.len() == 1 && pair.item(Some(number)).is_err();
            let item = if only && pair.outcomes.iter().any(|outcome| outcome.item.is_none()) {
                None
            } else {
                Some(number)
            };
            into.failures.extend(pair.failure(item));
            let said = pair
                .item(item)
                .ok()
                .map(|outcome| outcome.text.as_deref().unwrap_or_default());
            let share = |is: bool| f64::from(u8::from(is));
            let scores = |said: &str| {
                let right = match question.kind {
                    QuestionKind::Closed => closed(said, &question.answer),
                    QuestionKind::Open => exact(said, &question.answer),
                };
                (
                    share(exact(said, &question.answer)),
                    share(right),
                    token_f1(said, &question.answer),
                )
            };
            let (exact, right, f1) = said.map_or((0.0, 0.0, 0.0), scores);
            answers.push(Answered {
                record,
                kind: question.kind,
                truth: polarity(&question.answer).filter(|_| question.kind == QuestionKind::Closed),
                said: said.and_then(polarity),
                exact,
                right,
                f1,
            });
            if let Some(said) = said.filter(|_| right < 1.0) {
                into.worst.push(Case {
                    id: pair.record.id.clone(),
                    image: pair.image(),
                    score: f1,
                    question: Some(question.question.clone()),
                    truth: question.answer.clone(),
                    said: said.to_owned(),
                    wrong: vec!["wrong answer".into()],
                });
            }
        }
    }
    figures(scene, &answers, into);
    for (label, yes) in [("yes", true), ("no", false)] {
        into.labels.extend(row(scene, &answers, label, yes));
    }
}

fn figures(scene: &Scene, answers: &[Answered], into: &mut Evaluation) {
    type Value = fn(&Answered) -> Option<f64>;
    let figures: [(&str, &str, Value); 6] = [
        (
            "yes_no_accuracy",
            "Yes/no questions answered rightly",
            |answer| answer.truth.map(|_| answer.right),
        ),
        (
            "closed_accuracy",
            "Closed questions answered rightly",
            |answer| (answer.kind == QuestionKind::Closed).then_some(answer.right),
        ),
        ("exact_match", "Answers that match exactly", |answer| {
            Some(answer.exact)
        }),
        ("token_f1", "Tokenised F1 of all answers", |answer| {
            Some(answer.f1)
        }),
        (
            "open_exact_match",
            "Open questions answered exactly",
            |answer| (answer.kind == QuestionKind::Open).then_some(answer.exact),
        ),
        (
            "open_token_f1",
            "Tokenised F1 of open questions",
            |answer| (answer.kind == QuestionKind::Open).then_some(answer.f1),
        ),
    ];
    for (name, title, value) in figures {
        let mut parts = vec![Part::default(); scene.pairs.len()];
        for answer in answers {
            if let Some(value) = value(answer) {
                parts[answer.record].add(value);
            }
        }
        into.figures
            .extend(Part::named(&parts, &scene.draws, name, title));
    }
}

/// Yes or no, by the first word.
fn polarity(answer: &str) -> Option<bool> {
    match normalised(answer).split(' ').next() {
        Some("yes") => Some(true),
        Some("no") => Some(false),
        _ => None,
    }
}

/// Confusion of yes or of no. An answer that is neither says neither.
fn row(scene: &Scene, answers: &[Answered], label: &str, yes: bool) -> Option<LabelRow> {
    let mut records = vec![Counts::default(); scene.pairs.len()];
    let mut any = false;
    for answer in answers {
        let Some(truth) = answer.truth else { continue };
        any = true;
        let (truth, said) = (truth == yes, answer.said == Some(yes));
        records[answer.record].add(Cell { truth, said }, 1.0);
    }
    let counts = |weights: &[f64]| Counts::sum(&records, weights);
    any.then(|| LabelRow::counted(label.into(), &scene.draws, counts))
}
