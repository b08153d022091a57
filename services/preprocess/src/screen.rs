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
