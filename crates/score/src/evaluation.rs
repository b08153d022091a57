//! From records and outcomes to figures: which formula, of what, for each task.
//!
//! A record that the task has no truth for is left out and counted. One that has truth but no answer counts as wrong: a
//! report that is missing names nothing, its labels are all missed and its exact match is wrong; its scores rank it as badly
//! as can be; its questions are answered wrongly; its boxes overlap nothing.

mod answer;
mod band;
mod compare;
mod draft;
mod labels;
mod localise;

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::metrics::bootstrap::{Bootstrap, Draws, Figure};
use crate::metrics::multilabel::Counts;
use crate::metrics::ratio;
use crate::outcome::{Outcome, Task};
use crate::record::{About, Record, Truth};

/// Cases that a report shows, at most.
pub(crate) const WORST_MAX: usize = 12;

/// What a record or an answer without content is listed with.
const MISSING: &str = "no prediction";

/// How an evaluation is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of the intervals.
    pub bootstrap: Bootstrap,
    /// What the set's uncertain labels count as. Uncertain words of a draft always count as there.
    pub uncertain: Uncertain,
    /// What the set is.
    pub about: About,
}

/// What an uncertain label counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Uncertain {
    /// There: RadEval's F1CheXbert, CheXpert's "U-Ones".
    Positive,
    /// Not there: CheXpert's "U-Zeros".
    Negative,
    /// Not known, left out: CheXpert's "U-Ignore".
    Unknown,
}

/// The figures of one task on one set.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    pub about: About,
    pub task: Task,
    pub records: usize,
    /// Records that the task has truth for; all figures are of these.
    pub scored: usize,
    pub bootstrap: Bootstrap,
    pub uncertain: Uncertain,
    pub figures: Vec<Named>,
    /// The labels, with their confusion counts.
    pub labels: Vec<LabelRow>,
    /// What was said of what is true, for tasks with more than two answers.
    pub confusion: Option<Confusion>,
    /// Findings by their contrast-to-noise ratio.
    pub bands: Vec<Band>,
    /// What got no answer, and why. All of it counts as wrong.
    pub failures: Vec<Failure>,
    pub worst: Vec<Case>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// A figure by name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Named {
    /// For programs, as `macro_f1`.
    pub name: &'static str,
    /// For readers.
    pub title: &'static str,
    #[serde(flatten)]
    pub figure: Figure,
    /// Of how many: records, questions, findings or sides.
    pub count: usize,
}

/// A label's row of the confusion table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelRow {
    /// The set's name for it.
    pub label: String,
    /// Whether it is made of the others (normal: none of them) and in no mean.
    pub derived: bool,
    /// Confusion counts, where something was said or not said.
    pub counts: Option<Counts>,
    /// Precision; none where it was never said.
    pub precision: Option<Figure>,
    /// Recall; none where no record has it.
    pub recall: Option<Figure>,
    /// F1; none where no record has it and none was said to.
    pub f1: Option<Figure>,
    /// Area under the ROC curve.
    pub auc: Option<Figure>,
    pub iou: Option<Figure>,
}

/// How often each was said of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confusion {
    pub truths: Vec<&'static str>,
    pub said: Vec<&'static str>,
    /// One row for each truth.
    pub counts: Vec<Vec<usize>>,
}

/// Findings of a band of contrast.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Band {
    /// Lowest contrast-to-noise ratio in it.
    pub low: f64,
    /// Highest, which is in the next band but for the last.
    pub high: f64,
    pub findings: usize,
    /// The labels of these findings, for tasks that score labels. Of the records without a label, each band counts its
    /// share.
    pub labels: Vec<LabelRow>,
    /// What became of them.
    pub figures: Vec<Named>,
}

/// Something without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub id: String,
    /// Which question or finding.
    pub item: Option<usize>,
    pub reason: String,
}

/// An answer beside the truth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// The record.
    pub id: String,
    pub image: Option<String>,
    /// 0 is worst, 1 is right.
    pub score: f64,
    pub question: Option<String>,
    pub truth: String,
    pub said: String,
    pub wrong: Vec<String>,
}

impl LabelRow {
    /// A row without any figure.
    fn named(label: String) -> Self {
        Self {
            label,
            derived: false,
            counts: None,
            precision: None,
            recall: None,
            f1: None,
            auc: None,
            iou: None,
        }
    }

    /// The row of a label whose confusion counts `counts` gives for weighted records. A rate of nothing is none, and draws
    /// that have nothing to take it of are left out of its interval.
    fn counted(label: String, draws: &Draws, counts: impl Fn(&[f64]) -> Counts) -> Self {
        let rate = |rate: fn(&Counts) -> Option<f64>| {
            let of = |weights: &[f64]| rate(&counts(weights));
            draws.figure(of)
        };
        Self {
            precision: rate(Counts::precision_if_any),
            recall: rate(Counts::recall_if_any),
            f1: rate(Counts::f1_if_any),
            counts: Some(counts(draws.whole())),
            ..Self::named(label)
        }
    }
}

impl Evaluation {
    /// A figure by its name, as `macro_f1`.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        let named = self.figures.iter().find(|named| named.name == name);
        named.map(|named| &named.figure)
    }
}

/// Scores `outcomes` of `task` against `records`. Outcomes of other tasks are passed over.
pub fn evaluate(
    task: Task,
    records: &[Record],
    outcomes: &[Outcome],
    options: &Options,
) -> Evaluation {
    let mut latest: HashMap<&str, BTreeMap<Option<usize>, &Outcome>> = HashMap::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.task == task) {
        let items = latest.entry(&outcome.id).or_default();
        items.insert(outcome.item, outcome);
    }
    let mut pairs = Vec::new();
    for record in records {
        let outcomes = latest.remove(record.id.as_str()).unwrap_or_default();
        if has_truth(task, record) {
            let outcomes = outcomes.into_values().collect();
            pairs.push(Pair { record, outcomes });
        }
    }
    // Draws go by place: the same set in another order is to give the same intervals.
    pairs.sort_by(|a, b| a.record.id.cmp(&b.record.id));
    let mut notes = Vec::new();
    if !latest.is_empty() {
        let count = latest.len();
        notes.push(format!(
            "{count} predictions belong to no record of the set and are not scored"
        ));
    }
    let mut evaluation = Evaluation {
        about: options.about.clone(),
        task,
        records: records.len(),
        scored: pairs.len(),
        bootstrap: options.bootstrap,
        uncertain: options.uncertain,
        figures: Vec::new(),
        labels: Vec::new(),
        confusion: None,
        bands: Vec::new(),
        failures: Vec::new(),
        worst: Vec::new(),
        notes,
    };
    let scene = Scene {
        draws: Draws::new(&options.bootstrap, pairs.len()),
        pairs,
        uncertain: options.uncertain,
    };
    match task {
        Task::Report => draft::evaluate(&scene, &mut evaluation),
        Task::Classify => labels::classify(&scene, &mut evaluation),
        Task::ZeroShot => labels::zero_shot(&scene, &mut evaluation),
        Task::Answer => answer::evaluate(&scene, &mut evaluation),
        Task::Localise => localise::evaluate(&scene, &mut evaluation),
        Task::Compare => compare::evaluate(&scene, &mut evaluation),
    }
    // Stable: equals stay in the order of their names.
    evaluation.worst.sort_by(|a, b| a.score.total_cmp(&b.score));
    evaluation.worst.truncate(WORST_MAX);
    evaluation
}

fn has_truth(task: Task, record: &Record) -> bool {
    match task {
        Task::Report => record.report.is_some() || !record.labels.is_empty(),
        Task::Classify | Task::ZeroShot => !record.labels.is_empty(),
        Task::Answer => !record.questions.is_empty(),
        Task::Localise => record.findings.iter().any(|finding| finding.area.is_some()),
        Task::Compare => {
            let prior = record.prior.as_ref();
            prior.is_some_and(|prior| prior.changes.is_some())
        }
    }
}

/// A record and what was said of it.
struct Pair<'a> {
    record: &'a Record,
    outcomes: Vec<&'a Outcome>,
}

/// All that a task's evaluation looks at.
struct Scene<'a> {
    pairs: Vec<Pair<'a>>,
    draws: Draws,
    uncertain: Uncertain,
}

impl Pair<'_> {
    /// The outcome of the whole record, unless it failed.
    fn whole(&self) -> Option<&Outcome> {
        self.item(None).ok()
    }

    /// The outcome of an item, or why there is none.
    fn item(&self, item: Option<usize>) -> Result<&Outcome, &str> {
        let outcome = self.outcomes.iter().find(|outcome| outcome.item == item);
        let outcome = outcome.ok_or(MISSING)?;
        outcome.failure.as_deref().map_or(Ok(*outcome), Err)
    }

    fn failure(&self, item: Option<usize>) -> Option<Failure> {
        let reason = self.item(item).err()?.to_owned();
        let id = self.record.id.clone();
        Some(Failure { id, item, reason })
    }

    fn image(&self) -> Option<String> {
        let shown = self
            .outcomes
            .iter()
            .find_map(|outcome| outcome.image.clone());
        shown.or_else(|| self.record.images.first().cloned())
    }
}

impl Uncertain {
    const fn of(self, truth: Truth) -> Option<bool> {
        match (truth, self) {
            (Truth::Positive, _) | (Truth::Uncertain, Self::Positive) => Some(true),
            (Truth::Negative, _) | (Truth::Uncertain, Self::Negative) => Some(false),
            (Truth::Uncertain, Self::Unknown) => None,
        }
    }
}

/// A sum over some of a record's items, and how many: two such add up to a mean over items, with records as the unit that
/// is drawn.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    sum: f64,
    count: usize,
}

impl Part {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// The mean over all items of weighted records.
    fn mean(parts: &[Self], weights: &[f64]) -> Option<f64> {
        let (mut sum, mut count) = (0.0, 0.0);
        for (part, weight) in parts.iter().zip(weights) {
            sum += part.sum * weight;
            count += part.count as f64 * weight;
        }
        (count > 0.0).then(|| ratio(sum, count))
    }

    /// The mean as a figure.
    fn named(
        parts: &[Self],
        draws: &Draws,
        name: &'static str,
        title: &'static str,
    ) -> Option<Named> {
        let figure = draws.figure(|weights| Self::mean(parts, weights))?;
        Some(Named {
            name,
            title,
            figure,
            count: parts.iter().map(|part| part.count).sum(),
        })
    }
}

#[cfg(test)]
mod tests;
