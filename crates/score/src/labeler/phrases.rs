//! The phrases of each label, as data. In [`super::pattern`]'s writing; the longest match at a word wins.

use super::label::Label;
use super::label::Label::{
    Atelectasis, Cardiomegaly, Consolidation, Edema, EnlargedCardiomediastinum, Fracture,
    LungLesion, LungOpacity, PleuralEffusion, PleuralOther, Pneumonia, Pneumothorax,
    SupportDevices,
};
use super::pattern::match_at;

/// What a phrase says by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    There,
    NotThere,
    /// Nothing: words that look like a label's and mean something else.
    Nothing,
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) labels: &'static [Label],
    pub(super) says: Says,
    pub(super) patterns: &'static [&'static str],
}

/// An entry at a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) entry: &'static Entry,
    pub(super) start: usize,
    pub(super) end: usize,
}

const fn there(labels: &'static [Label], patterns: &'static [&'static str]) -> Entry {
    Entry {
        labels,
        says: Says::There,
        patterns,
    }
}

const fn not_there(labels: &'static [Label], patterns: &'static [&'static str]) -> Entry {
    Entry {
        labels,
        says: Says::NotThere,
        patterns,
    }
}

const LUNG: &[Label] = &[
    LungOpacity,
    LungLesion,
    Edema,
    Consolidation,
    Pneumonia,
    Atelectasis,
];
const HEART: &[Label] = &[Cardiomegaly];
const BOTH: &[Label] = &[Cardiomegaly, EnlargedCardiomediastinum];

/// Phrases → labels.
const TABLE: &[Entry] = &[
    there(
        HEART,
        &[
            "cardiomegaly",
            "enlarged heart|hearts",
            "heart * enlarged",
            "cardiac enlargement",
            "enlarged cardiac silhouette|shadow|size|contour|contours",
            "cardiac silhouette|shadow|size|contour|contours * enlarged",
            "enlargement of the cardiac silhouette|shadow",
            "enlargement of the heart",
            "enlarged heart size",
            "heart|silhouette * increased in size",
            "increased cardiothoracic ratio",
        ],
    ),
    not_there(
        HEART,
        &[
            "heart * normal in? size?",
            "normal heart size?",
            "normal sized heart",
            "normal cardiac silhouette|shadow|size|contour|contours",
            "cardiac silhouette|shadow|size|contour|contours * normal",
            "heart * within? normal limits",
        ],
    ),
    there(
        &[EnlargedCardiomediastinum],
        &[
            "widened|wide|enlarged mediastinum|mediastinal",
            "mediastinal widening|enlargement",
            "widening of the mediastinum|mediastinal",
            "mediastinum|mediastinal * widened|enlarged",
            "enlarged cardiomediastinal silhouette|contour|contours",
            "cardiomediastinal silhouette|contour|contours * enlarged|widened",
        ],
    ),
    not_there(
        BOTH,
        &[
            "cardiomediastinal silhouette|contour|contours * normal|unremarkable",
            "normal|unremarkable cardiomediastinal silhouette|contour|contours",
            "cardiac and mediastinal silhouettes|contours * normal|unremarkable",
        ],
    ),
    not_there(
        LUNG,
        &["lung|lungs * clear", "clear lungs", "lung fields * clear"],
    ),
    there(
        &[LungOpacity],
        &[
            "airspace|air disease",
            "air space disease",
            "hazy|haziness",
            "infiltrate~",
            "opaci~",
        ],
    ),
    there(
        &[LungLesion],
        &[
            "pulmonary|lung? nodul~ opaci~|densit~?",
            "pulmonary|lung? mass|masses",
            "pulmonary|lung lesion|lesions",
            "cavitary lesion|lesions",
        ],
    ),
    there(
        &[Edema],
        &[
            "pulmonary|interstitial|alveolar? edema|oedema",
            "congestive? heart failure",
            "chf",
            "pulmonary? vascular congestion",
            "pulmonary venous? congestion",
        ],
    ),
    there(&[Consolidation], &["consolidat~"]),
    there(
        &[Pneumonia],
        &[
            "pneumonia|pneumonias|bronchopneumonia",
            "infectious process",
            "infection",
        ],
    ),
    there(
        &[Atelectasis],
        &[
            "atelecta~",
            "lobe|lobar collapse",
            "lung collapse",
            "collapsed lung|lobe",
            "collapse of the left|right upper|middle|lower? lung|lobe",
        ],
    ),
    there(&[Pneumothorax], &["pneumothora~"]),
    there(&[Pneumothorax, PleuralEffusion], &["hydropneumothora~"]),
    there(
        &[PleuralEffusion],
        &[
            "pleural? effusion|effusions",
            "pleural fluid",
            "hydrothora~",
        ],
    ),
    there(
        &[PleuralOther],
        &[
            "pleural thickening|plaque|plaques|scarring|scar|calcification|calcifications",
            "fibrothora~",
        ],
    ),
    there(&[Fracture], &["rib? fracture~", "broken rib|ribs"]),
    not_there(
        &[Fracture],
        &[
            "ribs|bones * intact",
            "osseous|bony structures|thorax * intact|unremarkable",
        ],
    ),
    there(
        &[SupportDevices],
        &[
            "support devices|device",
            "endotracheal|tracheostomy|nasogastric|enteric|feeding|orogastric|dobhoff|chest|pleural|ett|et|ng|og tube|tubes",
            "ett",
            "tracheostomy",
            "central venous? line|lines|catheter|catheters",
            "internal? jugular|subclavian|femoral|arterial|venous|dialysis|ij line|lines|catheter|catheters",
            "venous|dialysis|jugular|subclavian|pigtail|swan|pulmonary ganz|artery|vein? catheter|catheters",
            "catheter|catheters",
            "picc line|lines?",
            "pacemaker~",
            "pacer|pacers|icd|aicd|defibrillator",
            "pacing|pacer lead|leads|wire|wires",
            "port a cath",
            "portacath|mediport",
            "sternotomy|sternal wires",
            "lines and tubes",
            "monitoring and support devices",
        ],
    ),
    Entry {
        labels: &[],
        says: Says::Nothing,
        patterns: &[
            "pericardial effusion|effusions",
            "joint effusion",
            "mass effect",
            "lung|lungs * clear of",
            "lung fields * clear of",
            "soft tissue edema|oedema|mass",
            "catheter tip",
        ],
    },
];

/// The phrases of a clause, from left to right, none over another.
pub(super) fn find(words: &[String]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut start = 0;
    while start < words.len() {
        let longest = TABLE
            .iter()
            .flat_map(|entry| entry.patterns.iter().map(move |pattern| (entry, pattern)))
            .filter_map(|(entry, pattern)| Some((match_at(pattern, words, start)?, entry)))
            .filter(|(end, _)| *end > start);
        // The first of several as long: the table's order decides.
        let best = longest.fold(None, |best: Option<(usize, &Entry)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        });
        let Some((end, entry)) = best else {
            start += 1;
            continue;
        };
        if entry.says != Says::Nothing {
            found.push(Found { entry, start, end });
        }
        start = end;
    }
    found
}
