//! One line of `set.jsonl`: what is in a picture, in words and numbers.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::labels::{Label, Side, Size, Zone};
use crate::plan::Change;

/// What is known of one picture.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// `phantom-<seed>-<index>`.
    pub id: String,
    /// Path of the picture in the set's folder; none in a raw set.
    pub image: Option<String>,
    /// What it is where its format does not say it, as DICOM calls it: a chest film.
    pub modality: &'static str,
    /// Number of the picture in its set.
    pub index: u64,
    /// Height of the presented picture in pixels, before it is padded.
    pub rows: u32,
    /// Width of the presented picture in pixels, before it is padded.
    pub cols: u32,
    /// Each label, 0 or 1.
    pub labels: Labels,
    /// The findings, in the order of labels.
    pub findings: Vec<Finding>,
    pub report: String,
    pub questions: Vec<Question>,
    /// What changed since the picture before, in pairs.
    pub prior: Option<Prior>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub label: Label,
    /// The patient's side.
    pub side: Side,
    /// The third of the lung, where it has one.
    pub zone: Option<Zone>,
    /// How large it is, where it has a size.
    pub size: Option<Size>,
    /// Contrast-to-noise ratio at 224 pixels, two decimals.
    pub cnr: f64,
    /// Top, left, bottom, right: 0..=1000 of the picture padded to a square.
    #[serde(rename = "box")]
    pub area: [u32; 4],
    /// Where in the box it is: the parts of the padded square, 16 rows and a bit for each of 16 columns (the lowest is the
    /// leftmost), in which it has half of its strength or more. What an enlarged heart covers besides a normal one.
    pub cells: [u16; 16],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    pub question: String,
    /// `yes`, `no`, or a few words.
    pub answer: String,
}

/// The picture before, of the same patient.
#[derive(Clone, Debug, Serialize)]
pub struct Prior {
    pub index: u64,
    pub id: String,
    /// What became of each finding of either.
    pub changes: Vec<Changed>,
    /// A comparison in words.
    pub report: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    pub label: Label,
    /// The patient's side.
    pub side: Side,
    pub change: Change,
}

/// Which labels a picture has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<Label>);

impl Labels {
    /// The labels of these findings.
    pub fn of(findings: &[Finding]) -> Self {
        Self(findings.iter().map(|finding| finding.label).collect())
    }

    /// Whether there is a finding of this label.
    pub fn has(&self, label: Label) -> bool {
        self.0.contains(&label)
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Label::ALL.len()))?;
        for label in Label::ALL {
            map.serialize_entry(label.name(), &u8::from(self.has(label)))?;
        }
        map.end()
    }
}
