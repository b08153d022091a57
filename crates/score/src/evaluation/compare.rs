//! Comparisons with the picture before: whether what became of each finding is said rightly.
//!
//! What a draft says is read by [`labeler::compare`]. A statement is of a true finding of its label whose side it names, or
//! of any of that label if either has no side. A statement that is of no finding of either picture is spurious. "No change"
//! says of every finding that isn't spoken of by itself that it is unchanged. A failed draft says nothing.

use std::collections::BTreeSet;

use super::{Case, Confusion, Evaluation, LabelRow, Named, Pair, Part, Scene};
use crate::labeler::{self, Comparison, Label, Statement};
use crate::metrics::laterality::halves;
use crate::metrics::multilabel::{Counts, macro_f1};
use crate::metrics::ratio;
use crate::record::{Change, Changed, Side};

/// Rows and columns of the confusion table: the changes, and as row what isn't there, as column what isn't named.
const SIZE: usize = Change::ALL.len() + 1;
/// The last row and column.
const NONE: usize = SIZE - 1;

/// Row: what is true. Column: what was said.
type Grid = [[f64; SIZE]; SIZE];

/// One finding of a pair.
struct True {
    label: Label,
    sides: BTreeSet<Side>,
    change: Change,
    said: Option<Change>,
    /// In words.
    name: String,
}

/// What became of a pair's findings, and of what was said.
struct Compared {
    findings: Vec<True>,
    /// Statements of findings that are in neither picture.
    spurious: Vec<Statement>,
    answered: bool,
}

pub(super) fn evaluate(scene: &Scene, into: &mut Evaluation) {
    let labels = vocabulary(scene);
    into.notes.extend(unknown(scene));
    let pairs: Vec<Compared> = scene
        .pairs
        .iter()
        .map(|pair| compared(pair, &labels))
        .collect();
    let grids: Vec<Grid> = pairs.iter().map(Compared::grid).collect();
    figures(scene, &pairs, &grids, into);
    for change in Change::ALL {
        let counts = |weights: &[f64]| counts_of(&sum(&grids, weights), change as usize);
        let row = LabelRow::counted(change.name().into(), &scene.draws, counts);
        into.labels.push(row);
    }
    let whole = sum(&grids, scene.draws.whole());
    into.notes.extend(commonest(&whole));
    into.confusion = Some(Confusion {
        truths: names("not there"),
        said: names("not named"),
        counts: whole
            .iter()
            .map(|row| row.iter().map(|count| *count as usize).collect())
            .collect(),
    });
    for (pair, compared) in scene.pairs.iter().zip(&pairs) {
        into.failures.extend(pair.failure(None));
        into.worst.extend(case(pair, compared));
    }
}

fn names(last: &'static str) -> Vec<&'static str> {
    let changes = Change::ALL.into_iter().map(Change::name);
    changes.chain([last]).collect()
}

/// What became of each finding of a pair, where it is known.
fn changes<'a>(pair: &'a Pair) -> impl Iterator<Item = &'a Changed> {
    let known = pair.record.prior.iter();
    known.filter_map(|prior| prior.changes.as_ref()).flatten()
}

/// The labels that the set knows of: what a draft says of others is neither right nor wrong.
fn vocabulary(scene: &Scene) -> BTreeSet<Label> {
    let mut labels = BTreeSet::new();
    for pair in &scene.pairs {
        labels.extend(changes(pair).filter_map(|changed| Label::named(&changed.label)));
        labels.extend(
            pair.record
                .labels
                .keys()
                .filter_map(|name| Label::named(name)),
        );
    }
    labels
}

/// Names that nothing can be made of.
fn unknown(scene: &Scene) -> Option<String> {
    let mut names = BTreeSet::new();
    for pair in &scene.pairs {
        for changed in changes(pair) {
            if Label::named(&changed.label).is_none() {
                names.insert(changed.label.as_str());
            }
            if Change::named(&changed.change).is_none() {
                names.insert(changed.change.as_str());
            }
        }
    }
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| {
        format!(
            "not known, so that findings with it are not scored: {}",
            names.join(", ")
        )
    })
}

fn compared(pair: &Pair, labels: &BTreeSet<Label>) -> Compared {
    let outcome = pair.whole();
    let text = outcome.and_then(|outcome| outcome.text.as_deref());
    let said: Comparison = text.map(labeler::compare).unwrap_or_default();
    let mut findings: Vec<True> = Vec::new();
    // Findings whose change has no name that is known: what is said of them is neither right nor wrong.
    let mut unscored: Vec<True> = Vec::new();
    for changed in changes(pair) {
        let Some(label) = Label::named(&changed.label) else {
            continue;
        };
        let change = Change::named(&changed.change);
        let side = match changed.side {
            Some(Side::Left) => "left ",
            Some(Side::Right) => "right ",
            Some(Side::Bilateral | Side::Midline) | None => "",
        };
        let mut finding = True {
            label,
            sides: halves(changed.side),
            change: change.unwrap_or(Change::Unchanged),
            said: None,
            name: format!("{side}{}", changed.label.replace('_', " ")),
        };
        finding.said = finding.said_in(&said);
        if change.is_some() {
            findings.push(finding);
        } else {
            unscored.push(finding);
        }
    }
    let is_known = |statement: &Statement| {
        let mut known = findings.iter().chain(&unscored);
        known.any(|finding| finding.is_of(statement))
    };
    let spurious = said
        .statements
        .iter()
        .filter(|statement| labels.contains(&statement.label) && !is_known(statement));
    Compared {
        spurious: spurious.cloned().collect(),
        findings,
        answered: outcome.is_some(),
    }
}

impl True {
    /// Whether a statement is of this finding.
    fn is_of(&self, statement: &Statement) -> bool {
        let sides = halves(statement.side);
        let alike = self.sides.is_empty() || sides.is_empty() || !sides.is_disjoint(&self.sides);
        statement.label == self.label && alike
    }

    /// What a draft says became of it: the statement that names its side before one that names none.
    fn said_in(&self, said: &Comparison) -> Option<Change> {
        let statements = said.statements.iter();
        let of: Vec<&Statement> = statements.filter(|other| self.is_of(other)).collect();
        let mut sided = of
            .iter()
            .filter(|statement| !halves(statement.side).is_empty());
        let statement = sided.next().or_else(|| of.first());
        let change = statement.map(|statement| statement.change);
        change.or(said.same.then_some(Change::Unchanged))
    }
}

impl Compared {
    fn grid(&self) -> Grid {
        let mut grid = [[0.0; SIZE]; SIZE];
        for finding in &self.findings {
            let said = finding.said.map_or(NONE, |said| said as usize);
            grid[finding.change as usize][said] += 1.0;
        }
        for statement in &self.spurious {
            grid[NONE][statement.change as usize] += 1.0;
        }
        grid
    }

    fn right(&self) -> usize {
        let right = |finding: &&True| finding.said == Some(finding.change);
        self.findings.iter().filter(right).count()
    }

    fn named(&self) -> usize {
        let named = self.findings.iter();
        named.filter(|finding| finding.said.is_some()).count()
    }

    fn is_right(&self) -> bool {
        self.answered && self.spurious.is_empty() && self.right() == self.findings.len()
    }
}

fn sum(grids: &[Grid], weights: &[f64]) -> Grid {
    let mut sum = [[0.0; SIZE]; SIZE];
    for (grid, weight) in grids.iter().zip(weights) {
        for (sums, counts) in sum.iter_mut().zip(grid) {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count * weight;
            }
        }
    }
    sum
}

/// One change against all others.
fn counts_of(grid: &Grid, change: usize) -> Counts {
    let there: f64 = grid[change].iter().sum();
    let said: f64 = grid.iter().map(|row| row[change]).sum();
    let all: f64 = grid.iter().flatten().sum();
    let both = grid[change][change];
    Counts {
        true_positive: both,
        false_positive: said - both,
        false_negative: there - both,
        true_negative: all - said - there + both,
    }
}

fn figures(scene: &Scene, pairs: &[Compared], grids: &[Grid], into: &mut Evaluation) {
    type Share = fn(&Compared) -> (usize, usize);
    let shares: [(&str, &str, Share); 4] = [
        ("change_accuracy", "Changes said rightly", |pair| {
            (pair.right(), pair.findings.len())
        }),
        (
            "change_accuracy_named",
            "Changes said rightly, of findings named",
            |pair| (pair.right(), pair.named()),
        ),
        ("change_precision", "Said changes that are right", |pair| {
            (pair.right(), pair.named() + pair.spurious.len())
        }),
        ("exact_pairs", "Pairs with every change right", |pair| {
            (usize::from(pair.is_right()), 1)
        }),
    ];
    for (name, title, share) in shares {
        let part = |pair: &Compared| {
            let (right, count) = share(pair);
            let sum = right as f64;
            Part { sum, count }
        };
        let parts: Vec<Part> = pairs.iter().map(part).collect();
        into.figures
            .extend(Part::named(&parts, &scene.draws, name, title));
    }
    // Over the changes that the set has; in a draw, over those that it has of them.
    let whole = sum(grids, scene.draws.whole());
    let had: Vec<usize> = (0..NONE)
        .filter(|change| counts_of(&whole, *change).support() > 0.0)
        .collect();
    let figure = scene.draws.figure(|weights| {
        let drawn = sum(grids, weights);
        let counts = had.iter().map(|change| counts_of(&drawn, *change));
        let counts: Vec<Counts> = counts.filter(|counts| counts.support() > 0.0).collect();
        macro_f1(&counts)
    });
    let named = figure.map(|figure| Named {
        name: "macro_f1",
        title: "Macro F1 over kinds of change",
        figure,
        count: pairs.iter().map(|pair| pair.findings.len()).sum(),
    });
    into.figures.extend(named);
}

/// What one word for every finding would reach.
fn commonest(whole: &Grid) -> Option<String> {
    let supports = Change::ALL.map(|change| whole[change as usize].iter().sum::<f64>());
    let all: f64 = supports.iter().sum();
    let most = Change::ALL
        .into_iter()
        .max_by(|a, b| supports[*a as usize].total_cmp(&supports[*b as usize]))?;
    (all > 0.0).then(|| {
        format!(
            "who says \"{}\" of every finding is right in {:.3} of them",
            most.name(),
            ratio(supports[most as usize], all)
        )
    })
}

fn case(pair: &Pair, compared: &Compared) -> Option<Case> {
    if !compared.answered || compared.is_right() {
        return None;
    }
    let mut wrong = Vec::new();
    for finding in &compared.findings {
        let (name, change) = (&finding.name, finding.change.name());
        match finding.said {
            Some(said) if said == finding.change => {}
            Some(said) => wrong.push(format!("{name} is {change}, said {}", said.name())),
            None => wrong.push(format!("{name} is {change}, not named")),
        }
    }
    for statement in &compared.spurious {
        let label = statement.label;
        let name = label.phantom().unwrap_or_else(|| label.chexpert());
        let name = name.replace('_', " ");
        let change = statement.change.name();
        wrong.push(format!("{name} said {change} is in neither picture"));
    }
    let truth = compared.findings.iter();
    let truth = truth.map(|finding| format!("{} {}", finding.name, finding.change.name()));
    let truth: Vec<String> = truth.collect();
    let all = compared.findings.len() + compared.spurious.len();
    let said = pair.whole().and_then(|outcome| outcome.text.clone());
    Some(Case {
        id: pair.record.id.clone(),
        image: pair.image(),
        score: ratio(compared.right() as f64, all as f64),
        question: None,
        truth: if truth.is_empty() {
            "no change".into()
        } else {
            truth.join("; ")
        },
        said: said.unwrap_or_default(),
        wrong,
    })
}
