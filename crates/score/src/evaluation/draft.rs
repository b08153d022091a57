//! Reports: what the labeler reads in them, whether sides are right, and how alike the words are.

use std::collections::BTreeSet;

use super::labels::{self, Column};
use super::{Case, Evaluation, Named, Pair, Scene, band};
use crate::labeler::{self, Label, Reading};
use crate::metrics::bleu::{self, Statistics};
use crate::metrics::laterality::{self, Sides};
use crate::metrics::mean;
use crate::metrics::multilabel::{Cell, Table};
use crate::metrics::radcliq::{SubScores, radcliq};
use crate::metrics::radgraph::{self, Rewards, radcliq_part};
use crate::metrics::rouge::{Words, rouge};
use crate::outcome::Outcome;
use crate::record::{Finding, Record, Side};

/// Sub-scores of a report that isn't there.
const NOTHING: SubScores = SubScores {
    radgraph: 0.0,
    bertscore: 0.0,
    chexbert: 0.0,
    bleu2: 0.0,
};

const BANDS: &[(&str, &str)] = &[("recall", "Named"), ("recall_sided", "Named on its side")];

pub(super) fn evaluate(scene: &Scene, into: &mut Evaluation) {
    let drafts: Vec<Option<&str>> = scene
        .pairs
        .iter()
        .map(|pair| Some(pair.whole()?.text.as_deref().unwrap_or_default()))
        .collect();
    let readings: Vec<Reading> = drafts
        .iter()
        .map(|draft| draft.map(labeler::read).unwrap_or_default())
        .collect();
    let answered: Vec<bool> = drafts.iter().map(Option::is_some).collect();
    let table = table(scene, &readings, &answered, into);
    labels::score(scene, &table, &answered, into);
    let sides = sides(scene, &readings, into);
    words(scene, &drafts, into);
    graphs(scene, into);
    radcliqs(scene, into);
    into.bands = band::bands(scene, BANDS, |record, finding| {
        fate(
            &readings[record],
            &scene.pairs[record].record.findings[finding],
        )
    });
    band::add_f1(scene, &table, &mut into.bands);
    for (number, pair) in scene.pairs.iter().enumerate() {
        into.failures.extend(pair.failure(None));
        if let Some(draft) = drafts[number] {
            let row = &table.rows[number];
            into.worst
                .extend(case(pair, draft, &table.labels, (row, sides[number])));
        }
    }
}

/// Cells by the set's labels; where the set has none at all, by the labeler's reading of its reports, uncertain mentions
/// counting as there in both.
fn table(scene: &Scene, readings: &[Reading], answered: &[bool], into: &mut Evaluation) -> Table {
    let (known, unknown): (Vec<Column>, Vec<Column>) = labels::columns(scene)
        .into_iter()
        .partition(|column| column.label.is_some());
    for column in unknown {
        into.notes.push(format!(
            "the labeler doesn't know {}; it is not scored",
            column.name
        ));
    }
    let said = |number: usize, label: Label| answered[number] && readings[number].has(label);
    if !known.is_empty() {
        return labels::table(scene, &known, |number, column| {
            Some(said(number, column.label?))
        });
    }
    into.notes
        .push("the set has no labels: the labeler read its reports".into());
    let rows = scene.pairs.iter().enumerate().map(|(number, pair)| {
        let truth = pair.record.report.as_deref().map(labeler::read);
        let cell = |label| {
            let truth = truth.as_ref()?.has(label);
            let said = said(number, label);
            Some(Cell { truth, said })
        };
        Label::all().map(cell).collect()
    });
    Table {
        labels: Label::all()
            .map(|label| label.chexpert().to_owned())
            .collect(),
        rows: rows.collect(),
    }
}

fn true_sides(pair: &Pair, label: Label) -> BTreeSet<Side> {
    let of = pair
        .record
        .findings
        .iter()
        .filter(|finding| Label::named(&finding.label) == Some(label));
    laterality::halves(of.filter_map(|finding| finding.side))
}

fn sides(scene: &Scene, readings: &[Reading], into: &mut Evaluation) -> Vec<Sides> {
    let of = |(pair, reading): (&Pair, &Reading)| {
        let mut sides = Sides::default();
        for label in Label::all().filter(|label| label.is_sided() && reading.has(*label)) {
            let truth = true_sides(pair, label);
            if !truth.is_empty() {
                sides += laterality::compare(&laterality::halves(reading.sides(label)), &truth);
            }
        }
        sides
    };
    let sides: Vec<Sides> = scene.pairs.iter().zip(readings).map(of).collect();
    let figure = scene
        .draws
        .figure(|weights| laterality::accuracy(&sides, weights));
    into.figures.extend(figure.map(|figure| Named {
        name: "laterality",
        title: "Sides named rightly, of findings rightly named",
        figure,
        count: sides.iter().map(|sides| sides.named).sum(),
    }));
    sides
}

fn fate(reading: &Reading, finding: &Finding) -> band::Fate {
    let Some(label) = Label::named(&finding.label) else {
        return vec![None, None];
    };
    let named = reading.has(label);
    let on_side = finding.side.filter(|_| label.is_sided()).map(|side| {
        let said = laterality::halves(reading.sides(label));
        named && laterality::halves([side]).is_subset(&said)
    });
    let share = |is: bool| f64::from(u8::from(is));
    vec![Some(share(named)), on_side.map(share)]
}

/// BLEU and ROUGE against the set's reports.
fn words(scene: &Scene, drafts: &[Option<&str>], into: &mut Evaluation) {
    let references: Vec<Option<(&str, &str)>> = scene
        .pairs
        .iter()
        .zip(drafts)
        .map(|(pair, draft)| Some((draft.unwrap_or_default(), pair.record.report.as_deref()?)))
        .collect();
    let count = references.iter().flatten().count();
    if count == 0 {
        return;
    }
    let statistics: Vec<Option<Statistics>> = references
        .iter()
        .map(|pair| pair.map(|(said, truth)| Statistics::of(said, truth)))
        .collect();
    let titles = [
        ("bleu_1", "BLEU-1"),
        ("bleu_2", "BLEU-2"),
        ("bleu_3", "BLEU-3"),
        ("bleu_4", "BLEU-4"),
    ];
    for (order, (name, title)) in titles.into_iter().enumerate() {
        let figure = scene.draws.figure(|weights| {
            let mut sum = Statistics::default();
            for (statistics, weight) in statistics.iter().zip(weights) {
                if let Some(statistics) = statistics {
                    sum.add(statistics, *weight);
                }
            }
            Some(bleu::corpus(&sum, order + 1))
        });
        into.figures.extend(figure.map(|figure| Named {
            name,
            title,
            figure,
            count,
        }));
    }
    let rouges: Vec<Option<f64>> = references
        .iter()
        .map(|pair| pair.map(|(said, truth)| rouge(said, truth, Words::Whole).longest))
        .collect();
    into.figures
        .extend(mean_of(scene, &rouges, "rouge_l", "ROUGE-L"));
}

fn mean_of(
    scene: &Scene,
    values: &[Option<f64>],
    name: &'static str,
    title: &'static str,
) -> Option<Named> {
    let figure = scene.draws.figure(|weights| mean(values, weights))?;
    let count = values.iter().flatten().count();
    Some(Named {
        name,
        title,
        figure,
        count,
    })
}

/// Name and title of a reward, and which it is.
type Level = (&'static str, &'static str, fn(&Rewards) -> f64);

/// RadGraph, where somebody stored the graphs.
fn graphs(scene: &Scene, into: &mut Evaluation) {
    let rewards: Vec<Option<Rewards>> = scene
        .pairs
        .iter()
        .map(|pair| {
            let truth = pair.record.graph.as_ref()?;
            match pair.whole() {
                Some(outcome) => Some(radgraph::rewards(outcome.graph.as_ref()?, truth)),
                None => Some(Rewards::default()),
            }
        })
        .collect();
    // Only failures have a reward where nobody annotated the drafts: no figure then.
    let annotated = |pair: &Pair| pair.whole().is_some_and(|outcome| outcome.graph.is_some());
    if scene.pairs.iter().any(annotated) {
        let levels: [Level; 3] = [
            ("radgraph_simple", "RadGraph F1, entities", |rewards| {
                rewards.simple
            }),
            (
                "radgraph_partial",
                "RadGraph F1, entities and whether related",
                |rewards| rewards.partial,
            ),
            (
                "radgraph_complete",
                "RadGraph F1, entities and relations",
                |rewards| rewards.complete,
            ),
        ];
        for (name, title, level) in levels {
            let values: Vec<Option<f64>> = rewards
                .iter()
                .map(|rewards| rewards.as_ref().map(level))
                .collect();
            into.figures.extend(mean_of(scene, &values, name, title));
        }
    }
}

/// RadCliQ, where somebody stored what models make of the drafts, and the graphs.
fn radcliqs(scene: &Scene, into: &mut Evaluation) {
    let of = |pair: &Pair| joined(pair.whole()?, pair.record);
    if scene.pairs.iter().any(|pair| of(pair).is_some()) {
        let nothing = radcliq(&NOTHING);
        let values = scene.pairs.iter().map(|pair| match pair.whole() {
            Some(_) => of(pair),
            None => Some(nothing),
        });
        let values: Vec<Option<f64>> = values.collect();
        let title = "RadCliQ-v1 (lower is better)";
        into.figures
            .extend(mean_of(scene, &values, "radcliq", title));
    }
}

/// RadCliQ of a draft: what models make of it as it was stored, the rest of its text and its graph.
fn joined(outcome: &Outcome, record: &Record) -> Option<f64> {
    let learned = outcome.radcliq?;
    let (said, truth) = (outcome.graph.as_ref()?, record.graph.as_ref()?);
    let words = Statistics::spaced(outcome.text.as_deref()?, record.report.as_deref()?);
    Some(radcliq(&SubScores {
        radgraph: radcliq_part(said, truth),
        bertscore: learned.bertscore,
        chexbert: learned.chexbert,
        bleu2: bleu::coco(&words, 2),
    }))
}

/// A draft with mistakes.
fn case(
    pair: &Pair,
    draft: &str,
    labels: &[String],
    (row, sides): (&[Option<Cell>], Sides),
) -> Option<Case> {
    let (mut score, mut wrong) = labels::mistakes(labels, row);
    if sides.right < sides.named {
        wrong.push(format!("{} of {} sides right", sides.right, sides.named));
        score *= f64::midpoint(1.0, sides.right as f64 / sides.named as f64);
    }
    if wrong.is_empty() {
        return None;
    }
    let findings: Vec<String> = pair.record.findings.iter().map(described).collect();
    let report = pair.record.report.clone().unwrap_or_default();
    let truth = if findings.is_empty() {
        report
    } else {
        format!("{report}\n[{}]", findings.join("; "))
    };
    Some(Case {
        id: pair.record.id.clone(),
        image: pair.image(),
        score,
        question: None,
        truth,
        said: draft.to_owned(),
        wrong,
    })
}

/// A finding in a few words.
pub(super) fn described(finding: &Finding) -> String {
    let mut words = Vec::new();
    words.extend(finding.size.clone());
    match finding.side {
        Some(Side::Left) => words.push("left".into()),
        Some(Side::Right) => words.push("right".into()),
        Some(Side::Bilateral) => words.push("bilateral".into()),
        Some(Side::Midline) | None => {}
    }
    words.extend(finding.zone.clone());
    words.push(finding.label.replace('_', " "));
    words.extend(finding.cnr.map(|cnr| format!("(cnr {cnr:.1})")));
    words.join(" ")
}
