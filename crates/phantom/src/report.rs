//! Reports: sentences from templates, findings in the order of labels, each label in one of a few fixed phrases.

use crate::chance::Chance;
use crate::labels::Label;
use crate::plan::{Change, Plan};

/// The report of a picture's findings.
pub(crate) fn report(plans: &[Plan], chance: &mut Chance) -> String {
    let mut sentences: Vec<String> = plans.iter().map(|plan| sentence(plan, chance)).collect();
    let absent: Vec<Label> = Label::ALL
        .into_iter()
        .filter(|label| plans.iter().all(|plan| plan.label != *label))
        .collect();
    let lungs_clear = plans.iter().all(|plan| {
        matches!(
            plan.label,
            Label::Cardiomegaly | Label::SupportDevice | Label::Fracture
        )
    });
    if lungs_clear && chance.happens(0.7) {
        sentences.push((*chance.one(&["The lungs are clear.", "Both lungs are clear."])).into());
    }
    let most = 5usize.saturating_sub(sentences.len());
    // Two sentences at least.
    let least = 2usize.saturating_sub(sentences.len()).max(1);
    let negatives = most.min(least + chance.below(2));
    let start = chance.below(absent.len());
    let mut chosen: Vec<Label> = (0..absent.len())
        .map(|number| absent[(start + number) % absent.len()])
        .filter(|label| negative(*label).is_some())
        .take(negatives)
        .collect();
    chosen.sort();
    for label in chosen {
        if let Some(phrases) = negative(label) {
            sentences.push((*chance.one(phrases)).into());
        }
    }
    let findings = sentences.join(" ");
    format!(
        "Findings: {findings} Impression: {}",
        impression(plans, chance)
    )
}

/// What changed since the picture before.
pub(crate) fn comparison(changes: &[(Plan, Change)], chance: &mut Chance) -> String {
    if changes.is_empty() {
        return (*chance.one(&[
            "Compared with the prior, there is no change.",
            "No change since the prior.",
        ]))
        .into();
    }
    let sentences: Vec<String> = changes
        .iter()
        .map(|(plan, change)| {
            let name = named(plan);
            match change {
                Change::New => format!("The {name} is new."),
                Change::Worse => format!("The {name} is {}.", chance.one(&["worse", "larger"])),
                Change::Better => format!("The {name} is {}.", chance.one(&["better", "smaller"])),
                Change::Unchanged => format!("The {name} is unchanged."),
                Change::Resolved if plan.label == Label::SupportDevice => {
                    format!("The {name} has been removed.")
                }
                Change::Resolved => format!("The {name} has resolved."),
            }
        })
        .collect();
    format!("Compared with the prior: {}", sentences.join(" "))
}

/// A finding as a noun with its side.
pub(crate) fn named(plan: &Plan) -> String {
    let side = plan.side.name();
    match plan.label {
        Label::Cardiomegaly => "cardiomegaly".into(),
        Label::Oedema => "pulmonary oedema".into(),
        Label::SupportDevice => plan.device().name().into(),
        label => match plan.zone {
            Some(zone) if has_zone_words(label) => {
                format!("{side} {} zone {}", zone.name(), noun(label))
            }
            _ => format!("{side} {}", noun(label)),
        },
    }
}

/// The fixed phrase of a label.
pub(crate) const fn noun(label: Label) -> &'static str {
    match label {
        Label::Cardiomegaly => "cardiomegaly",
        Label::PleuralEffusion => "pleural effusion",
        Label::Pneumothorax => "pneumothorax",
        Label::Consolidation => "consolidation",
        Label::Nodule => "nodule",
        Label::Atelectasis => "atelectasis",
        Label::Oedema => "pulmonary oedema",
        Label::SupportDevice => "support device",
        Label::Fracture => "rib fracture",
    }
}

/// Whether the zone is said: effusions are always low and pneumothoraces high.
pub(crate) const fn has_zone_words(label: Label) -> bool {
    matches!(
        label,
        Label::Consolidation | Label::Nodule | Label::Atelectasis | Label::Fracture
    )
}

fn sized(plan: &Plan) -> &'static str {
    plan.size.map_or("", |size| match plan.label {
        Label::Cardiomegaly | Label::Oedema => size.degree(),
        _ => size.name(),
    })
}

fn sentence(plan: &Plan, chance: &mut Chance) -> String {
    let size = sized(plan);
    let name = named(plan);
    match plan.label {
        Label::Cardiomegaly => match chance.below(4) {
            0 => "The heart is enlarged.".into(),
            1 => format!("There is {size} cardiomegaly."),
            2 => format!("{} cardiomegaly is seen.", capital(size)),
            _ => "There is an enlarged heart.".into(),
        },
        Label::Oedema => match chance.below(3) {
            0 => format!("There is {size} bilateral pulmonary oedema."),
            1 => format!("{} bilateral pulmonary oedema is seen.", capital(size)),
            _ => format!("The lungs show {size} bilateral pulmonary oedema."),
        },
        Label::SupportDevice => match chance.below(3) {
            0 => format!("{} {name} is in place.", capital(article(&name))),
            1 => format!("There is {} {name}.", article(&name)),
            _ => format!("{} {name} is seen.", capital(article(&name))),
        },
        Label::Fracture => match chance.below(3) {
            0 => format!("There is a {name}."),
            1 => format!("A {name} is seen."),
            _ => format!("A {name} is present."),
        },
        Label::Atelectasis => match chance.below(3) {
            0 => format!("There is {size} {name}."),
            1 => format!("{} {name} is seen.", capital(size)),
            _ => format!("{} {name} is present.", capital(size)),
        },
        _ => match chance.below(4) {
            0 => format!("There is a {size} {name}."),
            1 => format!("A {size} {name} is seen."),
            2 => format!("A {size} {name} is present."),
            _ => format!("{} {name}.", capital(size)),
        },
    }
}

fn impression(plans: &[Plan], chance: &mut Chance) -> String {
    if plans.is_empty() {
        return (*chance.one(&["No acute finding.", "Normal chest."])).into();
    }
    let short = |plan: &Plan| match (plan.label, plan.size) {
        (Label::Cardiomegaly, _) => "cardiomegaly".to_owned(),
        (Label::Oedema | Label::SupportDevice | Label::Fracture, _) | (_, None) => named(plan),
        (_, Some(size)) => format!("{} {}", size.name(), named(plan)),
    };
    let parts: Vec<String> = plans.iter().map(short).collect();
    match parts.split_last() {
        Some((last, before)) if !before.is_empty() => {
            format!("{} and {last}.", capital(&before.join(", ")))
        }
        _ => format!("{}.", capital(&parts.join(", "))),
    }
}

/// Sentences that say that a label is absent; none for those whose absence nobody reports.
const fn negative(label: Label) -> Option<&'static [&'static str]> {
    Some(match label {
        Label::Cardiomegaly => &[
            "The heart is of normal size.",
            "The heart is not enlarged.",
            "No cardiomegaly.",
        ],
        Label::PleuralEffusion => &["No pleural effusion.", "There is no pleural effusion."],
        Label::Pneumothorax => &["No pneumothorax.", "There is no pneumothorax."],
        Label::Consolidation => &["No consolidation.", "There is no consolidation."],
        Label::Nodule => &["No nodule.", "No nodule is seen."],
        Label::Oedema => &["No pulmonary oedema.", "There is no pulmonary oedema."],
        Label::Fracture => &["No rib fracture.", "There is no rib fracture."],
        Label::Atelectasis => &["No atelectasis."],
        Label::SupportDevice => return None,
    })
}

pub(crate) fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}

pub(crate) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}
