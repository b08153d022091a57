//! The prediction of one record, as a line of `outcomes.jsonl`. Lines are appended as answers come, so that an evaluation
//! that was cut off goes on where it was; a later line of the same record and item replaces an earlier one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::metrics::boxes::Rect;
use crate::metrics::radcliq::Learned;
use crate::metrics::radgraph::Graph;
use crate::record::{LINE_BYTES_MAX, Side};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// A report of the picture.
    Report,
    /// Which labels it has.
    Classify,
    /// Its questions.
    Answer,
    /// Where its findings are.
    Localise,
    /// Its labels, by the likeness of image and text.
    ZeroShot,
    /// What changed since the picture before.
    Compare,
}

impl Task {
    pub const ALL: [Self; 6] = [
        Self::Report,
        Self::Classify,
        Self::Answer,
        Self::Localise,
        Self::ZeroShot,
        Self::Compare,
    ];

    /// As on the command line and in outcomes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Classify => "classify",
            Self::Answer => "answer",
            Self::Localise => "localise",
            Self::ZeroShot => "zero-shot",
            Self::Compare => "compare",
        }
    }
}

/// What was said of one record, or of one of its items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub id: String,
    pub task: Task,
    /// Which question of the record (answer), or which finding (localise, where each is asked for); none for the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Label → score; higher is likelier. Of a classification 0..=1, there from 0.5 on.
    /// One that isn't a number isn't written, so that it counts as missing.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "numbers"
    )]
    pub scores: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boxes: Vec<SaidBox>,
    /// The text's RadGraph annotation, if somebody made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<Graph>,
    /// The parts of RadCliQ that models make of the text and its reference, if somebody ran them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub radcliq: Option<Learned>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Path of a picture to show beside it: PNG or JPEG, in whatever folder the caller of the report looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// JSON has no way to write what isn't a number, and reads none back.
fn numbers<S: serde::Serializer>(
    scores: &BTreeMap<String, f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(scores.iter().filter(|(_, score)| score.is_finite()))
}

/// A box that was said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaidBox {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    /// Where: 0..=1000 of the picture padded to a square.
    #[serde(rename = "box")]
    pub area: Rect,
}

/// Outcomes of a file that may have been cut off.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Read {
    /// In the file's order.
    pub outcomes: Vec<Outcome>,
    /// Bytes up to the end of the last whole line. What comes after is a line cut off while it was written: whoever goes
    /// on writing cuts the file to this length first.
    pub whole_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum OutcomeError {
    #[error("line {line} of the outcomes can't be read")]
    Read {
        /// Counted from 1.
        line: usize,
        source: std::io::Error,
    },
    #[error("line {line} of the outcomes is not an outcome")]
    Json {
        line: usize,
        source: serde_json::Error,
    },
    #[error("line {line} of the outcomes has more than {LINE_BYTES_MAX} bytes")]
    Long { line: usize },
}

impl Outcome {
    /// An answer still without content.
    pub fn new(id: impl Into<String>, task: Task) -> Self {
        Self {
            id: id.into(),
            task,
            item: None,
            text: None,
            scores: BTreeMap::new(),
            boxes: Vec::new(),
            graph: None,
            radcliq: None,
            failure: None,
            image: None,
        }
    }

    /// Its line of the file, with the line's end.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(line)
    }

    /// What it is the outcome of.
    pub fn key(&self) -> (&str, Task, Option<usize>) {
        (&self.id, self.task, self.item)
    }
}

/// The outcomes of a file. A last line without its end is left out.
pub fn read_outcomes(mut from: impl std::io::BufRead) -> Result<Read, OutcomeError> {
    let mut read = Read::default();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut bounded = std::io::Read::take(&mut from, LINE_BYTES_MAX as u64 + 1);
        let count = std::io::BufRead::read_until(&mut bounded, b'\n', &mut bytes)
            .map_err(|source| OutcomeError::Read { line, source })?;
        if count > LINE_BYTES_MAX {
            return Err(OutcomeError::Long { line });
        }
        if bytes.last() != Some(&b'\n') {
            break;
        }
        read.whole_bytes += count as u64;
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let outcome = serde_json::from_slice(&bytes);
        read.outcomes
            .push(outcome.map_err(|source| OutcomeError::Json { line, source })?);
    }
    Ok(read)
}

/// What has an answer; failures don't count, so that they are tried again.
pub fn answered(outcomes: &[Outcome]) -> BTreeSet<(String, Task, Option<usize>)> {
    let mut answered = BTreeSet::new();
    for outcome in outcomes {
        let (id, task, item) = outcome.key();
        let key = (id.to_owned(), task, item);
        if outcome.failure.is_none() {
            answered.insert(key);
        } else {
            answered.remove(&key);
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Outcome {
        let mut outcome = Outcome::new("phantom-1-0", Task::ZeroShot);
        outcome.scores.insert("nodule".into(), 0.25);
        outcome.boxes.push(SaidBox {
            label: Some("nodule".into()),
            side: Some(Side::Left),
            area: Rect::new(1.0, 2.0, 3.0, 4.0).unwrap(),
        });
        outcome
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let line = sample().line().unwrap();
        assert_eq!(
            line,
            "{\"id\":\"phantom-1-0\",\"task\":\"zero-shot\",\"scores\":{\"nodule\":0.25},\"boxes\":[{\"label\":\"nodule\",\"side\":\"left\",\"box\":[1.0,2.0,3.0,4.0]}]}\n"
        );
        let read = read_outcomes(line.as_bytes()).unwrap();
        assert_eq!(read.outcomes, [sample()]);
        assert_eq!(read.whole_bytes, line.len() as u64);
    }

    #[test]
    fn a_score_that_is_no_number_is_not_written() {
        let mut outcome = sample();
        outcome.scores.insert("oedema".into(), f64::NAN);
        let read = read_outcomes(outcome.line().unwrap().as_bytes()).unwrap();
        assert_eq!(read.outcomes, [sample()]);
    }

    #[test]
    fn a_line_that_was_cut_off_is_left_out() {
        let line = sample().line().unwrap();
        let text = format!("{line}{}", &line[..20]);
        let read = read_outcomes(text.as_bytes()).unwrap();
        assert_eq!(read.outcomes.len(), 1);
        assert_eq!(read.whole_bytes, line.len() as u64);
        let error = read_outcomes(&b"nonsense\n"[..]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 1 of the outcomes is not an outcome"
        );
    }

    #[test]
    fn failures_are_tried_again() {
        let mut failed = sample();
        failed.failure = Some("deadline".into());
        assert_eq!(answered(&[failed.clone(), sample()]).len(), 1);
        assert_eq!(answered(&[sample(), failed]).len(), 0);
    }
}
