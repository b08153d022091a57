//! What a report says, from its text alone: for each label whether it is there, not there, uncertain or not mentioned, and
//! on which side.
//!
//! By rules, in the way of the CheXpert labeler (Irvin et al. 2019): phrases are found (`phrases.rs`, a table), cues of negation
//! and uncertainty are found (`cues.rs`, a table), and a cue reaches the phrases of its clause that no boundary parts from
//! it (`scope.rs`). [`Label`] holds the mapping between the phantoms' names and CheXpert's. Of several mentions, positive wins over uncertain and uncertain over negative. There is no model and no
//! randomness in it: the same text gives the same labels anywhere.
//!
//! How it compares: on the 687 reports of `chexbert_test_set_radgraph_xl.json` in Stanford-AIMI/radgraph@87f11a1 (annotated
//! by RadGraph-XL's model, not by people; eight labels, 1480 times named) it agrees on there or not there in 97.1 %, and on
//! there, uncertain or not there in 90.9 %. It isn't a clean test: before five cues were added from looking at some of the
//! differences, these were 97.1 % and 90.2 %. The rules for headings, clauses with a verb of their own and what is gone came
//! later; they change two of these mentions, one each way.
//!
//! What it doesn't do: it doesn't resolve pronouns ("it has resolved"), doesn't weigh one sentence against another, and
//! knows no phrase that isn't in its table. Sections of history, technique and comparison are not read.

mod change;
mod cues;
mod label;
mod pattern;
mod phrases;
mod scope;
mod side;
mod text;

use std::collections::BTreeSet;

use serde::Serialize;

pub use change::{Comparison, Statement, compare};
pub use label::Label;

use crate::record::Side;
use phrases::Says;

/// What a report says of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    NotMentioned,
    /// That it isn't there.
    Negative,
    /// That it may be there.
    Uncertain,
    /// That it is there.
    Positive,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mention {
    pub label: Label,
    pub status: Status,
    /// The side that is named, if any.
    pub side: Option<Side>,
    pub sentence: usize,
    pub phrase: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Every phrase, in order.
    pub mentions: Vec<Mention>,
}

pub fn read(report: &str) -> Reading {
    let mut mentions = Vec::new();
    for (number, sentence) in text::sentences(report).iter().enumerate() {
        for clause in text::clauses(sentence) {
            mentions.extend(read_clause(clause, number));
        }
    }
    Reading { mentions }
}

fn read_clause(words: &[String], sentence: usize) -> Vec<Mention> {
    let found = phrases::find(words);
    let cues = cues::find(words);
    let sides = side::sides(words, &found);
    let mut mentions = Vec::new();
    for (phrase, side) in found.iter().zip(sides) {
        let reached = scope::status(words, &cues, phrase.start..phrase.end);
        let status = match (phrase.entry.says, reached) {
            (Says::There, status) => status,
            (Says::NotThere, Status::Positive) => Status::Negative,
            // "The heart may be of normal size", "the lungs are not clear": nothing that a label could be told from.
            (Says::NotThere, _) | (Says::Nothing, _) => continue,
        };
        for label in phrase.entry.labels {
            mentions.push(Mention {
                label: *label,
                status,
                side,
                sentence,
                phrase: words[phrase.start..phrase.end].join(" "),
            });
        }
    }
    mentions
}

impl Reading {
    /// What is said of a label, all mentions together. No finding is positive unless some other label than support devices
    /// is positive or uncertain.
    pub fn status(&self, label: Label) -> Status {
        if label == Label::NoFinding {
            let named = |mention: &&Mention| {
                mention.status >= Status::Uncertain && mention.label != Label::SupportDevices
            };
            return if self.mentions.iter().any(|mention| named(&mention)) {
                Status::NotMentioned
            } else {
                Status::Positive
            };
        }
        let of = self
            .mentions
            .iter()
            .filter(|mention| mention.label == label);
        let strongest = of.map(|mention| mention.status).max();
        strongest.unwrap_or(Status::NotMentioned)
    }

    /// Whether a label counts as there. Uncertain does, as in RadEval's F1CheXbert ("rrg" mode: positive or uncertain).
    pub fn has(&self, label: Label) -> bool {
        self.status(label) >= Status::Uncertain
    }

    /// The sides that are named of a label that is there.
    pub fn sides(&self, label: Label) -> BTreeSet<Side> {
        let there = self
            .mentions
            .iter()
            .filter(|mention| mention.label == label && mention.status >= Status::Uncertain);
        there.filter_map(|mention| mention.side).collect()
    }
}

#[cfg(test)]
mod tests;
