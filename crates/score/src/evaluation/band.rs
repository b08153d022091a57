//! Findings by their contrast-to-noise ratio: how hard they are to see.

use super::{Band, LabelRow, Named, Part, Scene};
use crate::labeler::Label;
use crate::metrics::multilabel::{Counts, Table, macro_f1, micro_f1};
use crate::metrics::ratio;
use crate::record::Finding;

/// Edges of the bands; what is below the first or above the last is in the outer ones.
const EDGES: [f64; 5] = [1.0, 2.0, 3.0, 4.0, 5.0];

/// What became of one finding: each figure's value for it, where it has one.
pub(super) type Fate = Vec<Option<f64>>;

/// Bands of `figures` (name and title), whose values of a record's finding `fate` gives.
pub(super) fn bands(
    scene: &Scene,
    figures: &[(&'static str, &'static str)],
    fate: impl Fn(usize, usize) -> Fate,
) -> Vec<Band> {
    let records = scene.pairs.len();
    let bands = EDGES.len() - 1;
    let mut parts = vec![vec![vec![Part::default(); records]; figures.len()]; bands];
    let mut counts = vec![0; bands];
    for (number, pair) in scene.pairs.iter().enumerate() {
        for (finding, known) in pair.record.findings.iter().enumerate() {
            let Some(cnr) = known.cnr else { continue };
            let band = place(cnr);
            counts[band] += 1;
            for (parts, value) in parts[band].iter_mut().zip(fate(number, finding)) {
                if let Some(value) = value {
                    parts[number].add(value);
                }
            }
        }
    }
    let band = |(band, parts): (usize, Vec<Vec<Part>>)| {
        let named = figures
            .iter()
            .zip(&parts)
            .filter_map(|((name, title), parts)| Part::named(parts, &scene.draws, name, title));
        Band {
            low: EDGES[band],
            high: EDGES[band + 1],
            findings: counts[band],
            labels: Vec::new(),
            figures: named.collect(),
        }
    };
    let bands = parts.into_iter().enumerate().map(band);
    bands.filter(|band| band.findings > 0).collect()
}

/// Which band a ratio is in.
fn place(cnr: f64) -> usize {
    let inner = &EDGES[1..EDGES.len() - 1];
    inner.iter().filter(|edge| cnr >= **edge).count()
}

/// Adds the F1 of labels to bands, before their other figures.
///
/// A label of a record is in the band of its plainest finding. What isn't there has no contrast: of the records without a
/// label, those that were said to have it among them, a band counts the share that it has of the records with the label.
/// So precision is that of a set as rich in the label as the whole one, and the bands' counts add up to the set's.
pub(super) fn add_f1(scene: &Scene, table: &Table, bands: &mut [Band]) {
    let banded = Banded {
        table,
        places: places(scene, table),
    };
    for band in bands {
        let at = place(band.low);
        // Labels without a finding in a band say nothing of it, nor does a draw that has none.
        let with = |columns: &[usize], weights: &[f64]| -> Vec<Counts> {
            let counts = columns
                .iter()
                .map(|column| banded.counts(*column, at, weights));
            counts.filter(|counts| counts.support() > 0.0).collect()
        };
        let mut columns: Vec<usize> = (0..table.labels.len()).collect();
        columns.retain(|column| !with(&[*column], scene.draws.whole()).is_empty());
        let supports = with(&columns, scene.draws.whole());
        let count: usize = supports
            .iter()
            .map(|counts| counts.support() as usize)
            .sum();
        let named = [
            (
                "macro_f1",
                "Macro F1",
                scene
                    .draws
                    .figure(|weights| macro_f1(&with(&columns, weights))),
            ),
            (
                "micro_f1",
                "Micro F1",
                scene
                    .draws
                    .figure(|weights| micro_f1(&with(&columns, weights))),
            ),
        ];
        let named = named.into_iter().filter_map(|(name, title, figure)| {
            Some(Named {
                name,
                title,
                figure: figure?,
                count,
            })
        });
        band.figures = named.chain(std::mem::take(&mut band.figures)).collect();
        let row = |column: usize| {
            let counts = |weights: &[f64]| banded.counts(column, at, weights);
            LabelRow::counted(table.labels[column].clone(), &scene.draws, counts)
        };
        band.labels = columns.into_iter().map(row).collect();
    }
}

/// A table, and which band each cell is in that is there and has a contrast.
struct Banded<'a> {
    table: &'a Table,
    places: Vec<Vec<Option<usize>>>,
}

impl Banded<'_> {
    /// The counts of a label in a band, over weighted records.
    fn counts(&self, column: usize, band: usize, weights: &[f64]) -> Counts {
        let whole = self.table.counts_of(column, weights);
        let mut counts = Counts::default();
        let rows = self.table.rows.iter().zip(&self.places).zip(weights);
        for ((row, places), weight) in rows {
            if places[column] == Some(band)
                && let Some(cell) = row[column]
            {
                counts.add(cell, *weight);
            }
        }
        let share = ratio(counts.support(), whole.support());
        counts.false_positive = whole.false_positive * share;
        counts.true_negative = whole.true_negative * share;
        counts
    }
}

/// The band of every cell of `table` that is there and has a contrast.
fn places(scene: &Scene, table: &Table) -> Vec<Vec<Option<usize>>> {
    let known: Vec<Option<Label>> = table.labels.iter().map(|name| Label::named(name)).collect();
    let is = |finding: &Finding, column: usize| {
        finding.label == table.labels[column]
            || (known[column].is_some() && Label::named(&finding.label) == known[column])
    };
    let rows = scene.pairs.iter().zip(&table.rows);
    rows.map(|(pair, row)| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            cell.filter(|cell| cell.truth)?;
            let findings = pair.record.findings.iter();
            let of = findings.filter(|finding| is(finding, column));
            of.filter_map(|finding| finding.cnr)
                .max_by(f64::total_cmp)
                .map(place)
        });
        cells.collect()
    })
    .collect()
}
