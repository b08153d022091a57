//! One line of a set's `set.jsonl`: what is known of one picture. Only `id` must be there: a set that has no boxes, or
//! no reports, or only questions, leaves the rest out. Fields of other names are ignored.
//!
//! | field | form |
//! |---|---|
//! | `id` | text, unique in the set |
//! | `image`, `images` | a path in the set's folder, or several; null where the picture lies elsewhere |
//! | `modality` | what pictures are whose format does not say it, as DICOM calls it: `DX`, `CT` |
//! | `labels` | name → 1 or true (there), 0, false or null (not there), −1 (uncertain); a name left out is not known |
//! | `findings` | list of `label`, and any of `side`, `zone`, `size`, `cnr`, `box` |
//! | `report` | text |
//! | `questions` | list of `question`, `answer`, and perhaps `kind`: `closed` or `open` |
//! | `prior` | null, or any of `image`, `images`, `id`, `index`, `report`, and `changes`: a list of `label`, `change`, perhaps `side`; an empty list says that nothing was or is there, one left out that it isn't known |
//! | `graph` | the report's RadGraph annotation: `{"entities": {"1": {"tokens", "label", "relations": [["modify","2"]]}}}` |

mod fields;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::metrics::boxes::Rect;
use crate::metrics::radgraph::Graph;
pub use fields::FieldError;
use fields::Fields;

/// Records of a set, at most. A bootstrap's draws take this many bytes each.
pub const RECORDS_MAX: usize = 100_000;
/// Bytes of a line, at most.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// What is known of one picture.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Record {
    /// Its name, unique in the set.
    pub id: String,
    /// Paths of its pictures in the set's folder.
    pub images: Vec<String>,
    /// What they are where their format does not say it, as DICOM calls it; empty where nothing says it.
    pub modality: String,
    pub labels: BTreeMap<String, Truth>,
    pub findings: Vec<Finding>,
    pub report: Option<String>,
    pub questions: Vec<Question>,
    pub prior: Option<Prior>,
    /// The report's entities and relations.
    pub graph: Option<Graph>,
}

/// What a set says of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Truth {
    Negative,
    /// The set's author could not tell (CheXpert's −1).
    Uncertain,
    Positive,
}

/// Where a finding lies, for the patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The patient's left, which is on a PA film's right.
    Left,
    /// The patient's right.
    Right,
    Bilateral,
    /// Neither: heart, devices.
    Midline,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub label: String,
    /// The patient's side.
    pub side: Option<Side>,
    pub zone: Option<String>,
    pub size: Option<String>,
    /// Contrast-to-noise ratio.
    pub cnr: Option<f64>,
    /// Where it is: 0..=1000 of the picture padded to a square.
    #[serde(rename = "box")]
    pub area: Option<Rect>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Question {
    pub question: String,
    pub answer: String,
    /// Whether a few answers are possible. Where the set doesn't say, yes and no are closed and all else is open.
    pub kind: QuestionKind,
}

/// Whether an answer is one of a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuestionKind {
    /// One of a few, mostly yes or no.
    Closed,
    /// Free words.
    Open,
}

/// The picture before, of the same patient.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Prior {
    pub index: Option<u64>,
    pub id: Option<String>,
    /// Paths of its pictures in the set's folder, where it isn't a record of the set.
    pub images: Vec<String>,
    /// What became of each finding of either picture; none where it isn't known.
    pub changes: Option<Vec<Changed>>,
    /// A comparison in words.
    pub report: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub label: String,
    /// The patient's side.
    pub side: Option<Side>,
    /// What became of it: any name of a [`Change`].
    pub change: String,
}

/// What became of a finding since the picture before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    New,
    Worse,
    Better,
    Unchanged,
    Resolved,
}

impl Change {
    /// All, in the order of tables.
    pub const ALL: [Self; 5] = [
        Self::New,
        Self::Worse,
        Self::Better,
        Self::Unchanged,
        Self::Resolved,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Worse => "worse",
            Self::Better => "better",
            Self::Unchanged => "unchanged",
            Self::Resolved => "resolved",
        }
    }

    /// By any of the names that sets use; case doesn't matter.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.trim().to_lowercase().as_str() {
            "new" | "appeared" => Self::New,
            "worse" | "worsened" | "worsening" | "larger" | "increased" | "progressed" => {
                Self::Worse
            }
            "better" | "improved" | "improving" | "smaller" | "decreased" => Self::Better,
            "unchanged" | "stable" | "same" | "no change" => Self::Unchanged,
            "resolved" | "removed" | "gone" => Self::Resolved,
            _ => return None,
        })
    }
}

/// A set that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The text isn't UTF-8, or reading it failed.
    #[error("line {line} of the set can't be read")]
    Read {
        /// Counted from 1.
        line: usize,
        source: std::io::Error,
    },
    #[error("line {line} of the set is not a JSON object")]
    Json {
        line: usize,
        source: serde_json::Error,
    },
    #[error("line {line} of the set, field {field}: {problem}", field = source.field, problem = source.problem)]
    Field { line: usize, source: FieldError },
    #[error("line {line} of the set, field id: {id} is the name of an earlier record")]
    Repeated { line: usize, id: String },
    #[error("line {line} of the set has more than {LINE_BYTES_MAX} bytes")]
    Long {
        /// Counted from 1.
        line: usize,
    },
    #[error("the set has more than {RECORDS_MAX} records")]
    Many,
    #[error("the set has no record")]
    Empty,
}

/// The records of a `set.jsonl`; empty lines are skipped.
pub fn read_set(mut from: impl std::io::BufRead) -> Result<Vec<Record>, SetError> {
    let mut records = Vec::new();
    let mut names = BTreeSet::new();
    let mut text = String::new();
    for line in 1.. {
        text.clear();
        // One byte more than allowed, so that a line that is too long shows itself.
        let mut bounded = std::io::Read::take(&mut from, LINE_BYTES_MAX as u64 + 1);
        let read = std::io::BufRead::read_line(&mut bounded, &mut text)
            .map_err(|source| SetError::Read { line, source })?;
        if read == 0 {
            break;
        }
        if read > LINE_BYTES_MAX {
            return Err(SetError::Long { line });
        }
        if text.trim().is_empty() {
            continue;
        }
        if records.len() == RECORDS_MAX {
            return Err(SetError::Many);
        }
        let record = read_record(&text, line)?;
        if !names.insert(record.id.clone()) {
            let id = record.id;
            return Err(SetError::Repeated { line, id });
        }
        records.push(record);
    }
    if records.is_empty() {
        return Err(SetError::Empty);
    }
    Ok(records)
}

fn read_record(text: &str, line: usize) -> Result<Record, SetError> {
    let map = serde_json::from_str(text).map_err(|source| SetError::Json { line, source })?;
    record_of(&Fields::top(map)).map_err(|source| SetError::Field { line, source })
}

fn record_of(fields: &Fields) -> Result<Record, FieldError> {
    Ok(Record {
        id: fields.needed("id", Fields::text)?,
        images: images_of(fields)?,
        modality: fields.text("modality")?.unwrap_or_default(),
        labels: fields.truths("labels")?,
        findings: fields.objects("findings", finding_of)?,
        report: fields.text("report")?,
        questions: fields.objects("questions", question_of)?,
        prior: fields.object("prior", prior_of)?,
        graph: fields.any("graph")?,
    })
}

fn images_of(fields: &Fields) -> Result<Vec<String>, FieldError> {
    let mut images: Vec<String> = fields.list("images", Fields::text_item)?;
    if let Some(image) = fields.text("image")? {
        images.insert(0, image);
    }
    Ok(images)
}

fn finding_of(fields: &Fields) -> Result<Finding, FieldError> {
    Ok(Finding {
        label: fields.needed("label", Fields::text)?,
        side: fields.any("side")?,
        zone: fields.text("zone")?,
        size: fields.text("size")?,
        cnr: fields.any("cnr")?,
        area: fields.any("box")?,
    })
}

fn question_of(fields: &Fields) -> Result<Question, FieldError> {
    let answer = fields.needed("answer", Fields::text)?;
    let closed = matches!(
        crate::metrics::answer::normalised(&answer).as_str(),
        "yes" | "no"
    );
    let kind = fields.any("kind")?.unwrap_or(if closed {
        QuestionKind::Closed
    } else {
        QuestionKind::Open
    });
    Ok(Question {
        question: fields.needed("question", Fields::text)?,
        answer,
        kind,
    })
}

fn prior_of(fields: &Fields) -> Result<Prior, FieldError> {
    Ok(Prior {
        index: fields.any("index")?,
        id: fields.text("id")?,
        images: images_of(fields)?,
        changes: if fields.has("changes") {
            Some(fields.objects("changes", changed_of)?)
        } else {
            None
        },
        report: fields.text("report")?,
    })
}

fn changed_of(fields: &Fields) -> Result<Changed, FieldError> {
    Ok(Changed {
        label: fields.needed("label", Fields::text)?,
        side: fields.any("side")?,
        change: fields.needed("change", Fields::text)?,
    })
}

/// What a set is, for the head of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub name: String,
    /// What it holds and where it comes from, in a sentence.
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub phantom: bool,
}

impl About {
    /// What the records themselves tell: every record of a phantom set is named `phantom-…`.
    pub fn of(name: &str, records: &[Record]) -> Self {
        let phantom = !records.is_empty() && records.iter().all(|r| r.id.starts_with("phantom-"));
        Self {
            name: name.into(),
            description: if phantom {
                "synthetic chest phantoms with known findings".into()
            } else {
                String::new()
            },
            phantom,
        }
    }
}

#[cfg(test)]
mod tests;
