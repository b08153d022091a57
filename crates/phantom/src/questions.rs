//! Questions about a picture, with their answers.

use crate::chance::Chance;
use crate::labels::Label;
use crate::plan::{Plan, invented, invented_of};
use crate::record::Question;
use crate::report::{article, capital, has_zone_words, named, noun};

/// Four questions, in an order of chance: two whose answer is yes or a few words, two whose answer is no.
///
/// The shares in this file make each form of question be answered yes about as often as no, so that words alone don't tell
/// the answer.
pub(crate) fn questions(plans: &[Plan], chance: &mut Chance) -> Vec<Question> {
    let mut asked: Vec<Question> = Vec::new();
    while asked.len() < 2 {
        let more = if plans.is_empty() {
            normal(chance)
        } else {
            positive(plans, chance)
        };
        push(&mut asked, more);
    }
    let first = if plans.is_empty() {
        chance.happens(0.45).then(|| no(ANY.into()))
    } else {
        not_normal(plans, chance)
    };
    if let Some(first) = first {
        push(&mut asked, first);
    }
    while asked.len() < 4 {
        push(&mut asked, negative(plans, chance));
    }
    for last in (1..asked.len()).rev() {
        asked.swap(last, chance.below(last + 1));
    }
    asked
}

fn push(asked: &mut Vec<Question>, question: Question) {
    if asked
        .iter()
        .all(|other| other.question != question.question)
    {
        asked.push(question);
    }
}

fn yes(question: String) -> Question {
    Question {
        question,
        answer: "yes".into(),
    }
}

fn no(question: String) -> Question {
    Question {
        question,
        answer: "no".into(),
    }
}

const ANY: &str = "Is there any finding?";
const WHOLE: &str = "Is the chest normal?";
const LUNGS: &str = "Are the lungs clear?";
const HEART: &str = "Is the heart of normal size?";

/// A question about a normal picture whose answer is yes.
fn normal(chance: &mut Chance) -> Question {
    yes((*chance.one(&[WHOLE, WHOLE, LUNGS, LUNGS, HEART])).into())
}

/// A question about what isn't normal, as if it were.
fn not_normal(plans: &[Plan], chance: &mut Chance) -> Option<Question> {
    let has = |label| plans.iter().any(|plan| plan.label == label);
    let lungs = plans.iter().any(|plan| {
        !matches!(
            plan.label,
            Label::Cardiomegaly | Label::SupportDevice | Label::Fracture
        )
    });
    if has(Label::Cardiomegaly) && chance.happens(0.75) {
        Some(no(HEART.into()))
    } else if chance.happens(0.33) {
        Some(no(WHOLE.into()))
    } else if lungs && chance.happens(0.55) {
        Some(no(LUNGS.into()))
    } else {
        None
    }
}

/// Whether there is this label, on this side if it has one.
fn exists(label: Label, side: Option<&str>) -> String {
    let name = match label {
        Label::Cardiomegaly => return "Is the heart enlarged?".into(),
        Label::Oedema => return "Is there pulmonary oedema?".into(),
        Label::Atelectasis | Label::Consolidation => noun(label).to_owned(),
        _ => format!("a {}", noun(label)),
    };
    side.map_or_else(
        || format!("Is there {name}?"),
        |side| format!("Is there {name} on the {side}?"),
    )
}

/// What is asked about a label.
#[derive(Clone, Copy)]
enum Form {
    Exists,
    Side,
    /// Whether it is in a zone of a side.
    Zone,
    /// Whether it is a certain device.
    Device,
}

impl Form {
    /// One that suits the label.
    fn draw(label: Label, chance: &mut Chance) -> Self {
        if label == Label::SupportDevice {
            return if chance.happens(0.5) {
                Self::Device
            } else {
                Self::Exists
            };
        }
        if !label.is_sided() {
            return Self::Exists;
        }
        match chance.below(10) {
            0..4 => Self::Exists,
            4..8 => Self::Side,
            _ if has_zone_words(label) => Self::Zone,
            _ => Self::Side,
        }
    }

    fn ask(self, plan: &Plan) -> String {
        match self {
            Self::Exists => exists(plan.label, None),
            Self::Side => exists(plan.label, Some(plan.side.name())),
            Self::Zone => {
                let article = if plan.label.is_counted() { "a " } else { "" };
                format!("Is there {article}{}?", named(plan))
            }
            Self::Device => {
                let name = plan.device().name();
                format!("Is there {} {name}?", article(name))
            }
        }
    }
}

/// A question whose answer is yes or a few words.
fn positive(plans: &[Plan], chance: &mut Chance) -> Question {
    if chance.happens(0.065) {
        return yes(ANY.into());
    }
    let plan = chance.one(plans);
    if chance.happens(0.2)
        && let Some(question) = open(plans, plan)
    {
        return question;
    }
    yes(Form::draw(plan.label, chance).ask(plan))
}

/// A question about a finding whose answer is a few words, if there is but one such finding.
fn open(plans: &[Plan], plan: &Plan) -> Option<Question> {
    if plans
        .iter()
        .filter(|other| other.label == plan.label)
        .count()
        != 1
    {
        return None;
    }
    let (question, answer) = if plan.label.is_sided() {
        (
            format!("Which side is the {} on?", noun(plan.label)),
            plan.side.name(),
        )
    } else if plan.label == Label::SupportDevice {
        ("Which support device is seen?".into(), plan.device().name())
    } else {
        return None;
    };
    Some(Question {
        question,
        answer: format!("{}.", capital(answer)),
    })
}

/// A question whose answer is no: about what isn't there, or about what is there but elsewhere.
fn negative(plans: &[Plan], chance: &mut Chance) -> Question {
    loop {
        let other = if !plans.is_empty() && chance.happens(0.27) {
            elsewhere(chance.one(plans), chance)
        } else {
            invented(chance)
        };
        let form = Form::draw(other.label, chance);
        let is_true = plans.iter().any(|plan| form.ask(plan) == form.ask(&other));
        if !is_true {
            return no(form.ask(&other));
        }
    }
}

/// A finding that differs from one that is there in its side, its zone or its kind.
fn elsewhere(plan: &Plan, chance: &mut Chance) -> Plan {
    let mut other = plan.clone();
    if plan.label == Label::SupportDevice || chance.happens(0.3) {
        let drawn = invented_of(plan.label, chance);
        other.zone = drawn.zone;
        other.shape_seed = drawn.shape_seed;
    } else {
        other.side = plan.side.opposite();
    }
    other
}
