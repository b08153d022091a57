//! Pure: the texts of a task without what the headers of its inputs say about the patient.

use std::collections::BTreeMap;

use medfleet_imaging::{IdentifierKind, Identifiers};
use medfleet_proto::v1;
use medfleet_proto::v1::task::Kind;
use medfleet_proto::work::v1 as wire;

/// Screens every text that a model would read. A task in which nothing is found is not repeated, so that jobs about one study
/// share their frames manifest, and with it the encoded images.
pub(crate) fn screen(task: Option<&v1::Task>, identifiers: &Identifiers) -> wire::TextScreening {
    let mut masked = BTreeMap::new();
    let task = task.map(|task| v1::Task {
        kind: task.kind.clone().map(|kind| {
            of_kind(kind, &mut |text| {
                let screened = identifiers.screen(&text);
                for (kind, count) in screened.masked {
                    *masked.entry(kind).or_insert(0_u32) += count;
                }
                screened.text
            })
        }),
    });
    wire::TextScreening {
        masked_task: task.filter(|_| !masked.is_empty()),
        masked: masked.into_iter().map(masked_text).collect(),
    }
}

/// Whether a model would read any text of the task.
pub(crate) fn has_text(task: Option<&v1::Task>) -> bool {
    let mut has_text = false;
    if let Some(kind) = task.and_then(|task| task.kind.clone()) {
        of_kind(kind, &mut |text| {
            has_text |= !text.is_empty();
            text
        });
    }
    has_text
}

fn masked_text((kind, count): (IdentifierKind, u32)) -> wire::MaskedText {
    wire::MaskedText {
        kind: kind.code().to_owned(),
        count,
    }
}

/// Every task with its texts named, so that a new one is not forgotten here.
fn of_kind(kind: Kind, screen: &mut impl FnMut(String) -> String) -> Kind {
    match kind {
        Kind::Report(v1::ReportTask { clinical_context }) => Kind::Report(v1::ReportTask {
            clinical_context: screen(clinical_context),
        }),
        Kind::Answer(v1::AnswerTask { question }) => Kind::Answer(v1::AnswerTask {
            question: screen(question),
        }),
        Kind::Compare(v1::CompareTask { clinical_context }) => Kind::Compare(v1::CompareTask {
            clinical_context: screen(clinical_context),
        }),
        Kind::Localise(v1::LocaliseTask { target }) => Kind::Localise(v1::LocaliseTask {
            target: screen(target),
        }),
        Kind::Extract(v1::ExtractTask { json_schema }) => Kind::Extract(v1::ExtractTask {
            json_schema: screen(json_schema),
        }),
        Kind::Classify(v1::ClassifyTask { labels }) => Kind::Classify(v1::ClassifyTask {
            labels: labels.into_iter().map(screen).collect(),
        }),
        Kind::ZeroShot(v1::ZeroShotTask { labels }) => Kind::ZeroShot(v1::ZeroShotTask {
            labels: labels.into_iter().map(screen).collect(),
        }),
        Kind::Embed(v1::EmbedTask {}) => Kind::Embed(v1::EmbedTask {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_text_where_a_model_would_read_some() {
        let check = |kind: Option<Kind>, expected: bool| {
            let task = v1::Task { kind };
            assert_eq!(has_text(Some(&task)), expected, "{task:?}");
        };
        let report = |text: &str| {
            let clinical_context = text.to_owned();
            Some(Kind::Report(v1::ReportTask { clinical_context }))
        };
        let labels = |labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Some(Kind::Classify(v1::ClassifyTask { labels }))
        };
        check(report(""), false);
        check(report("Cough for three days."), true);
        check(labels(&["", "effusion"]), true);
        check(labels(&[]), false);
        check(Some(Kind::Embed(v1::EmbedTask {})), false);
        check(None, false);
        assert!(!has_text(None));
    }
}
