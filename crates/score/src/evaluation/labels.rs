//! Labels: which of them a set has, what was said of each, and the figures of that. Also the two tasks that ask for labels
//! alone.

use super::{Case, Evaluation, LabelRow, Named, Pair, Part, Scene, band};
use crate::labeler::{self, Label, Reading};
use crate::metrics::auc::Ranked;
use crate::metrics::bootstrap::Figure;
use crate::metrics::multilabel::{Cell, Counts, Table, micro_f1};
use crate::outcome::Outcome;

/// A score from which on a label is there.
const SCORE_MIN: f64 = 0.5;

/// Scores that a case of rankings shows.
const HIGHEST: usize = 3;

/// The five conditions of MedGemma's and CheXbert's "top 5".
const FIVE: [Label; 5] = [
    Label::Atelectasis,
    Label::Cardiomegaly,
    Label::Consolidation,
    Label::Edema,
    Label::PleuralEffusion,
];

/// A label of a set.
pub(super) struct Column {
    /// The set's name for it.
    pub(super) name: String,
    pub(super) label: Option<Label>,
}

/// The labels of the set's records: those that the labeler knows in its order, then others by name.
pub(super) fn columns(scene: &Scene) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for pair in &scene.pairs {
        for name in pair.record.labels.keys() {
            if columns.iter().all(|column| column.name != *name) {
                let label = Label::named(name);
                columns.push(Column {
                    name: name.clone(),
                    label,
                });
            }
        }
    }
    columns.sort_by(|a, b| {
        let order = |column: &Column| (column.label.is_none(), column.label);
        order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
    });
    columns
}

/// Cells of every record and column: the truth as the set has it, and what `said` gives for a record's number; nothing is
/// said where it gives none.
pub(super) fn table(
    scene: &Scene,
    columns: &[Column],
    said: impl Fn(usize, &Column) -> Option<bool>,
) -> Table {
    let row = |(number, pair): (usize, &Pair)| {
        let cell = |column: &Column| {
            let truth = pair.record.labels.get(&column.name);
            let truth = truth.and_then(|truth| scene.uncertain.of(*truth))?;
            let said = said(number, column).unwrap_or(false);
            Some(Cell { truth, said })
        };
        columns.iter().map(cell).collect()
    };
    Table {
        labels: columns.iter().map(|column| column.name.clone()).collect(),
        rows: scene.pairs.iter().enumerate().map(row).collect(),
    }
}

/// Figures and rows of a table. `answered` tells which records have an answer: without one, an exact match is wrong even
/// where there is nothing to name, and "normal" isn't said.
pub(super) fn score(scene: &Scene, table: &Table, answered: &[bool], into: &mut Evaluation) {
    if table.labels.is_empty() {
        return;
    }
    let records = table.rows.len();
    let named = |name, title, figure| Named {
        name,
        title,
        figure,
        count: records,
    };
    let all: Vec<usize> = (0..table.labels.len()).collect();
    let title = "Macro F1 over labels";
    into.figures
        .extend(macro_of(scene, table, &all).map(|figure| named("macro_f1", title, figure)));
    let micro = scene
        .draws
        .figure(|weights| micro_f1(&table.counts(weights)));
    let title = "Micro F1 over labels";
    into.figures
        .extend(micro.map(|figure| named("micro_f1", title, figure)));
    let title = "Macro F1 over CheXpert's five";
    let five = five(table).and_then(|columns| macro_of(scene, table, &columns));
    into.figures
        .extend(five.map(|figure| named("macro_f1_5", title, figure)));
    let exact: Vec<Part> = table
        .rows
        .iter()
        .zip(answered)
        .map(|(row, answered)| {
            let right = row.iter().flatten().all(|cell| cell.truth == cell.said);
            let sum = f64::from(u8::from(right && *answered));
            Part { sum, count: 1 }
        })
        .collect();
    let title = "Records with every label right";
    into.figures
        .extend(Part::named(&exact, &scene.draws, "exact_labels", title));
    into.labels
        .extend(all.iter().map(|column| row_of(scene, table, *column)));
    into.notes.extend(absent(scene, table));
    let has_normal = |name: &String| Label::named(name) == Some(Label::NoFinding);
    if !table.labels.iter().any(has_normal) {
        let mut row = row_of(scene, &normal(table, answered), 0);
        row.derived = true;
        into.labels.push(row);
    }
}

/// Which labels no record has.
fn absent(scene: &Scene, table: &Table) -> Option<String> {
    let whole = table.counts(scene.draws.whole());
    let counted = table.labels.iter().zip(&whole);
    let absent: Vec<&str> = counted
        .filter(|(_, counts)| counts.support() == 0.0)
        .map(|(label, _)| label.as_str())
        .collect();
    (!absent.is_empty()).then(|| {
        format!(
            "no record has {}: by convention F1 is 0 there, and counts in the macro means",
            absent.join(", ")
        )
    })
}

/// The mean F1 of some labels. In a draw that by chance has none of a label that the set has, that label is left out: its F1 of
/// 0 would say nothing of the drafts. A label that the whole set hasn't counts 0, as in
/// [`crate::metrics::multilabel::macro_f1`].
fn macro_of(scene: &Scene, table: &Table, columns: &[usize]) -> Option<Figure> {
    let whole = table.counts(scene.draws.whole());
    scene.draws.figure(|weights| {
        let counts = columns.iter().map(|column| {
            let drawn = table.counts_of(*column, weights);
            (drawn.f1_if_any(), whole[*column].f1_if_any())
        });
        let f1s: Vec<f64> = counts
            .filter_map(|(drawn, whole)| drawn.or(if whole.is_none() { Some(0.0) } else { None }))
            .collect();
        (!f1s.is_empty()).then(|| f1s.iter().sum::<f64>() / f1s.len() as f64)
    })
}

/// The columns of the five, if the table has all of them.
fn five(table: &Table) -> Option<Vec<usize>> {
    let place = |five: &Label| {
        let mut names = table.labels.iter();
        names.position(|name| Label::named(name) == Some(*five))
    };
    FIVE.iter().map(place).collect()
}

fn row_of(scene: &Scene, table: &Table, column: usize) -> LabelRow {
    let counts = |weights: &[f64]| table.counts_of(column, weights);
    LabelRow::counted(table.labels[column].clone(), &scene.draws, counts)
}

/// Whether none of the labels is there, and none was said.
fn normal(table: &Table, answered: &[bool]) -> Table {
    let rows = table.rows.iter().zip(answered).map(|(row, answered)| {
        let truth = !row.iter().flatten().any(|cell| cell.truth);
        let said = *answered && !row.iter().flatten().any(|cell| cell.said);
        vec![Some(Cell { truth, said })]
    });
    Table {
        labels: vec!["normal".into()],
        rows: rows.collect(),
    }
}

/// Labels as scores or as text.
pub(super) fn classify(scene: &Scene, into: &mut Evaluation) {
    let columns = columns(scene);
    let readings: Vec<Option<Reading>> = scene
        .pairs
        .iter()
        .map(|pair| pair.whole()?.text.as_deref().map(labeler::read))
        .collect();
    let table = table(scene, &columns, |number, column| {
        let outcome = scene.pairs[number].whole()?;
        if !outcome.scores.is_empty() {
            return Some(score_of(outcome, column)? >= SCORE_MIN);
        }
        match column.label {
            Some(label) => Some(readings[number].as_ref()?.has(label)),
            None => Some(names(outcome.text.as_deref()?, &column.name)),
        }
    });
    let answered: Vec<bool> = scene
        .pairs
        .iter()
        .map(|pair| pair.whole().is_some())
        .collect();
    score(scene, &table, &answered, into);
    into.bands = band::bands(scene, &[], |_, _| Vec::new());
    band::add_f1(scene, &table, &mut into.bands);
    if scene.pairs.iter().any(|pair| {
        pair.whole()
            .is_some_and(|outcome| !outcome.scores.is_empty())
    }) {
        areas(scene, &columns, into);
    }
    finish(scene, &table, into);
}

/// Labels as scores that only rank.
pub(super) fn zero_shot(scene: &Scene, into: &mut Evaluation) {
    let columns = columns(scene);
    for column in &columns {
        into.labels.push(LabelRow::named(column.name.clone()));
    }
    let scores = areas(scene, &columns, into);
    misranked(scene, &columns, &scores, into);
    into.failures
        .extend(scene.pairs.iter().filter_map(|pair| pair.failure(None)));
}

/// Record, score and truth.
type Scored = (usize, f64, bool);

/// The areas under the labels' curves, and their mean. Returns each label's scores.
fn areas(scene: &Scene, columns: &[Column], into: &mut Evaluation) -> Vec<Vec<Scored>> {
    let mut ranked = Vec::with_capacity(columns.len());
    let mut all = Vec::with_capacity(columns.len());
    for column in columns {
        let scores = scene.pairs.iter().enumerate().filter_map(|(record, pair)| {
            let truth = pair.record.labels.get(&column.name)?;
            let truth = scene.uncertain.of(*truth)?;
            let score = pair.whole().and_then(|outcome| score_of(outcome, column));
            // Without a score, the worst rank.
            let worst = if truth {
                f64::NEG_INFINITY
            } else {
                f64::INFINITY
            };
            Some((
                record,
                score.filter(|score| !score.is_nan()).unwrap_or(worst),
                truth,
            ))
        });
        let scores: Vec<Scored> = scores.collect();
        ranked.push(Ranked::new(scores.iter().copied()));
        all.push(scores);
    }
    let mean = |weights: &[f64]| {
        let areas: Vec<f64> = ranked
            .iter()
            .filter_map(|ranked| ranked.auc(weights))
            .collect();
        (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
    };
    into.figures
        .extend(scene.draws.figure(mean).map(|figure| Named {
            name: "mean_auc",
            title: "Mean area under the ROC curves",
            figure,
            count: scene.pairs.len(),
        }));
    for (column, ranked) in columns.iter().zip(&ranked) {
        let auc = scene.draws.figure(|weights| ranked.auc(weights));
        if auc.is_none() {
            into.notes.push(format!(
                "{} has no area: all records have it, or none",
                column.name
            ));
        }
        if let Some(row) = into.labels.iter_mut().find(|row| row.label == column.name) {
            row.auc = auc;
        }
    }
    all
}

/// The records whose labels rank worst: of each label, which share of the records of the other truth lies on the right side
/// of this one, ties by half. The mean of that over all records is the area under the curve.
fn misranked(scene: &Scene, columns: &[Column], scores: &[Vec<Scored>], into: &mut Evaluation) {
    let mut shares: Vec<Vec<(&str, f64)>> = vec![Vec::new(); scene.pairs.len()];
    for (column, scores) in columns.iter().zip(scores) {
        let sorted = |truth: bool| {
            let of = scores.iter().filter(|(_, _, is)| *is == truth);
            let mut of: Vec<f64> = of.map(|(_, score, _)| *score).collect();
            of.sort_by(f64::total_cmp);
            of
        };
        let (with, without) = (sorted(true), sorted(false));
        for (record, score, truth) in scores {
            let others = if *truth { &without } else { &with };
            if others.is_empty() {
                continue;
            }
            let below = others.partition_point(|other| other < score);
            let tied = others.partition_point(|other| other <= score) - below;
            let share = (below as f64 + tied as f64 / 2.0) / others.len() as f64;
            let right = if *truth { share } else { 1.0 - share };
            shares[*record].push((column.name.as_str(), right));
        }
    }
    for (pair, shares) in scene.pairs.iter().zip(&shares) {
        let Some(outcome) = pair.whole() else {
            continue;
        };
        let wrong = shares.iter().filter(|(_, right)| *right < 0.5);
        let wrong: Vec<String> = wrong
            .map(|(name, right)| {
                let percent = (1.0 - right) * 100.0;
                format!("{name} ranks on the wrong side of {percent:.0} % of the others")
            })
            .collect();
        if wrong.is_empty() {
            continue;
        }
        let sum: f64 = shares.iter().map(|(_, right)| right).sum();
        into.worst.push(Case {
            id: pair.record.id.clone(),
            image: pair.image(),
            score: sum / shares.len() as f64,
            question: None,
            truth: there(scene, pair),
            said: highest(outcome),
            wrong,
        });
    }
}

fn there(scene: &Scene, pair: &Pair) -> String {
    let labels = pair.record.labels.iter();
    let there = labels.filter(|(_, truth)| scene.uncertain.of(**truth) == Some(true));
    let names: Vec<&str> = there.map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

fn highest(outcome: &Outcome) -> String {
    let mut scores: Vec<(&String, &f64)> = outcome.scores.iter().collect();
    scores.sort_by(|a, b| b.1.total_cmp(a.1));
    let scores = scores.iter().take(HIGHEST);
    let words: Vec<String> = scores
        .map(|(name, score)| format!("{name} {score:.2}"))
        .collect();
    format!("highest: {}", words.join(", "))
}

fn score_of(outcome: &Outcome, column: &Column) -> Option<f64> {
    let exact = outcome.scores.get(&column.name);
    let alike = || {
        let label = column.label?;
        let mut scores = outcome.scores.iter();
        scores
            .find(|(name, _)| Label::named(name) == Some(label))
            .map(|(_, score)| score)
    };
    exact.or_else(alike).copied()
}

/// Whether a text has the words of a label that the labeler doesn't know.
fn names(text: &str, label: &str) -> bool {
    let plain = |text: &str| crate::metrics::answer::normalised(&text.replace('_', " "));
    format!(" {} ", plain(text)).contains(&format!(" {} ", plain(label)))
}

/// Failures and worst cases of labels alone.
fn finish(scene: &Scene, table: &Table, into: &mut Evaluation) {
    for (pair, row) in scene.pairs.iter().zip(&table.rows) {
        into.failures.extend(pair.failure(None));
        let Some(outcome) = pair.whole() else {
            continue;
        };
        let (score, wrong) = mistakes(&table.labels, row);
        if wrong.is_empty() {
            continue;
        }
        let list = |pick: fn(&Cell) -> bool| {
            let cells = table.labels.iter().zip(row);
            let picked = cells.filter(|(_, cell)| cell.as_ref().is_some_and(pick));
            let names: Vec<&str> = picked.map(|(name, _)| name.as_str()).collect();
            if names.is_empty() {
                "none".into()
            } else {
                names.join(", ")
            }
        };
        into.worst.push(Case {
            id: pair.record.id.clone(),
            image: pair.image(),
            score,
            question: None,
            truth: list(|cell| cell.truth),
            said: outcome
                .text
                .clone()
                .unwrap_or_else(|| list(|cell| cell.said)),
            wrong,
        });
    }
}

/// The F1 of one record's labels, and its mistakes in words.
pub(super) fn mistakes(labels: &[String], row: &[Option<Cell>]) -> (f64, Vec<String>) {
    let mut counts = Counts::default();
    let mut wrong = Vec::new();
    for (label, cell) in labels.iter().zip(row) {
        match cell {
            Some(Cell {
                truth: true,
                said: true,
            }) => counts.true_positive += 1.0,
            Some(Cell {
                truth: true,
                said: false,
            }) => {
                counts.false_negative += 1.0;
                wrong.push(format!("missed {label}"));
            }
            Some(Cell {
                truth: false,
                said: true,
            }) => {
                counts.false_positive += 1.0;
                wrong.push(format!("{label} is not there"));
            }
            _ => {}
        }
    }
    let score = if wrong.is_empty() { 1.0 } else { counts.f1() };
    (score, wrong)
}
