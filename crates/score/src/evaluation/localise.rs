//! Boxes: how well those that were said lie over the true ones.

use std::collections::BTreeMap;

use super::{
    Case, Evaluation, Failure, LabelRow, Named, Pair, Part, Scene, band, draft::described,
};
use crate::labeler::Label;
use crate::metrics::boxes::{FOUND_IOU, Rect, matched};
use crate::metrics::multilabel::Counts;

const BANDS: &[(&str, &str)] = &[("recall", "Found (IoU ≥ 0.5)"), ("mean_iou", "Mean IoU")];

/// What became of a record's boxes.
struct Places {
    /// Of each finding that has a box: the overlap.
    overlaps: Vec<Option<f64>>,
    /// Said boxes that lie over no finding, by label.
    spare: BTreeMap<String, usize>,
    said: usize,
}

pub(super) fn evaluate(scene: &Scene, into: &mut Evaluation) {
    let places: Vec<Places> = scene.pairs.iter().map(places).collect();
    let mut overlaps = vec![Part::default(); places.len()];
    let mut found = overlaps.clone();
    let mut precise = overlaps.clone();
    for (number, places) in places.iter().enumerate() {
        for overlap in places.overlaps.iter().flatten() {
            overlaps[number].add(*overlap);
            found[number].add(is_found(*overlap));
        }
        precise[number] = Part {
            sum: found[number].sum,
            count: places.said,
        };
    }
    let draws = &scene.draws;
    let named = [
        Part::named(&overlaps, draws, "mean_iou", "Mean IoU over true boxes"),
        Part::named(&found, draws, "recall_50", "True boxes found (IoU ≥ 0.5)"),
        Part::named(
            &precise,
            draws,
            "precision_50",
            "Said boxes that lie right (IoU ≥ 0.5)",
        ),
    ];
    into.figures
        .extend(named.into_iter().flatten().collect::<Vec<Named>>());
    into.labels = rows(scene, &places);
    into.bands = band::bands(scene, BANDS, |record, finding| {
        let overlap = places[record].overlaps[finding];
        vec![overlap.map(is_found), overlap]
    });
    for (pair, places) in scene.pairs.iter().zip(&places) {
        into.failures.extend(failures(pair));
        into.worst.extend(case(pair, places));
    }
}

fn is_found(overlap: f64) -> f64 {
    f64::from(u8::from(overlap >= FOUND_IOU))
}

/// Whether the record's findings are asked for one by one.
fn one_by_one(pair: &Pair) -> bool {
    pair.outcomes.iter().any(|outcome| outcome.item.is_some())
}

fn failures(pair: &Pair) -> Vec<Failure> {
    if !one_by_one(pair) {
        return pair.failure(None).into_iter().collect();
    }
    let findings = pair.record.findings.iter().enumerate();
    let asked = findings.filter(|(_, finding)| finding.area.is_some());
    asked
        .filter_map(|(number, _)| pair.failure(Some(number)))
        .collect()
}

/// One name for the names of a label.
fn key(label: &str) -> String {
    Label::named(label).map_or_else(|| label.to_lowercase(), |label| label.chexpert().to_owned())
}

/// Boxes of one label: the true ones with their findings' numbers, and those said.
type Group = (Vec<(usize, Rect)>, Vec<Rect>);

fn places(pair: &Pair) -> Places {
    let findings = &pair.record.findings;
    let mut places = Places {
        overlaps: findings
            .iter()
            .map(|finding| finding.area.map(|_| 0.0))
            .collect(),
        spare: BTreeMap::new(),
        said: 0,
    };
    if one_by_one(pair) {
        for (number, finding) in findings.iter().enumerate() {
            let Some(area) = finding.area else { continue };
            let said: Vec<Rect> = pair
                .item(Some(number))
                .map(|outcome| outcome.boxes.iter().map(|said| said.area).collect())
                .unwrap_or_default();
            places.take(&[(number, area)], &said, &key(&finding.label));
        }
        return places;
    }
    let Some(outcome) = pair.whole() else {
        return places;
    };
    let labelled = outcome.boxes.iter().any(|said| said.label.is_some());
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    // Boxes without any label lie over whatever is there.
    let group = |label: Option<&str>| {
        if labelled {
            label.map(key).unwrap_or_default()
        } else {
            "any".into()
        }
    };
    for (number, finding) in findings.iter().enumerate() {
        if let Some(area) = finding.area {
            groups
                .entry(group(Some(&finding.label)))
                .or_default()
                .0
                .push((number, area));
        }
    }
    for said in &outcome.boxes {
        groups
            .entry(group(said.label.as_deref()))
            .or_default()
            .1
            .push(said.area);
    }
    for (label, (truths, said)) in groups {
        places.take(&truths, &said, &label);
    }
    places
}

impl Places {
    fn take(&mut self, truths: &[(usize, Rect)], said: &[Rect], label: &str) {
        let rects: Vec<Rect> = truths.iter().map(|(_, rect)| *rect).collect();
        let (overlaps, _) = matched(&rects, said);
        let right = overlaps
            .iter()
            .filter(|overlap| **overlap >= FOUND_IOU)
            .count();
        for ((number, _), overlap) in truths.iter().zip(overlaps) {
            self.overlaps[*number] = Some(overlap);
        }
        self.said += said.len();
        *self.spare.entry(label.to_owned()).or_default() += said.len() - right;
    }
}

/// A label's boxes, by record.
struct Row {
    /// The set's name for it; none where only drafts have it.
    name: Option<String>,
    counts: Vec<Counts>,
    overlaps: Vec<Part>,
}

/// Each label's boxes; one found is a true positive, one said elsewhere a false one.
fn rows(scene: &Scene, places: &[Places]) -> Vec<LabelRow> {
    let records = places.len();
    let empty = || Row {
        name: None,
        counts: vec![Counts::default(); records],
        overlaps: vec![Part::default(); records],
    };
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for (number, (pair, places)) in scene.pairs.iter().zip(places).enumerate() {
        for (finding, overlap) in pair.record.findings.iter().zip(&places.overlaps) {
            let Some(overlap) = overlap else { continue };
            let row = rows.entry(key(&finding.label)).or_insert_with(empty);
            row.name = Some(finding.label.clone());
            row.counts[number].true_positive += is_found(*overlap);
            row.counts[number].false_negative += 1.0 - is_found(*overlap);
            row.overlaps[number].add(*overlap);
        }
        for (label, count) in places.spare.iter().filter(|(_, count)| **count > 0) {
            let row = rows.entry(label.clone()).or_insert_with(empty);
            row.counts[number].false_positive += *count as f64;
        }
    }
    let row = |(key, row): (String, Row)| {
        let counts = |weights: &[f64]| Counts::sum(&row.counts, weights);
        let overlap = |weights: &[f64]| Part::mean(&row.overlaps, weights);
        LabelRow {
            iou: scene.draws.figure(overlap),
            ..LabelRow::counted(row.name.clone().unwrap_or(key), &scene.draws, counts)
        }
    };
    rows.into_iter().map(row).collect()
}

fn case(pair: &Pair, places: &Places) -> Option<Case> {
    let overlaps: Vec<f64> = places.overlaps.iter().flatten().copied().collect();
    let score = overlaps.iter().sum::<f64>() / overlaps.len().max(1) as f64;
    let failed = pair
        .outcomes
        .iter()
        .all(|outcome| outcome.failure.is_some());
    if failed || overlaps.iter().all(|overlap| *overlap >= FOUND_IOU) {
        return None;
    }
    let numbers = |rect: &Rect| {
        let edges: [f64; 4] = (*rect).into();
        let edges: Vec<String> = edges.iter().map(|edge| format!("{edge:.0}")).collect();
        format!("[{}]", edges.join(", "))
    };
    let truths = pair.record.findings.iter().filter_map(|finding| {
        let area = finding.area?;
        Some(format!("{} {}", described(finding), numbers(&area)))
    });
    let said = pair
        .outcomes
        .iter()
        .flat_map(|outcome| &outcome.boxes)
        .map(|said| {
            let label = said.label.as_deref().unwrap_or_default().replace('_', " ");
            format!("{label} {}", numbers(&said.area)).trim().to_owned()
        });
    Some(Case {
        id: pair.record.id.clone(),
        image: pair.image(),
        score,
        question: None,
        truth: truths.collect::<Vec<_>>().join("; "),
        said: said.collect::<Vec<_>>().join("; "),
        wrong: vec![format!("mean IoU {score:.2}")],
    })
}
