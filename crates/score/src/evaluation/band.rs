//! Findings by their contrast-to-noise ratio: how hard they are to see.

use super::{Band, Part, Scene};

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
            let band = EDGES[1..bands].iter().filter(|edge| cnr >= **edge).count();
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
            figures: named.collect(),
        }
    };
    let bands = parts.into_iter().enumerate().map(band);
    bands.filter(|band| band.findings > 0).collect()
}
