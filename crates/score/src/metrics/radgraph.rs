//! RadGraph rewards of two annotated reports.
//!
//! Each is the F1 of two sets of facts; 0 if either report has no entity. *simple* takes (tokens, label) of each entity;
//! *partial* also whether it has a relation; *complete* takes (tokens, label, relation, tokens of the other end) of each
//! relation, and (tokens, label) of entities without any. Source: Jain et al. 2021 and Delbrouck et al. 2022;
//! Stanford-AIMI/radgraph@87f11a1 `rewards.py`. The annotations come from RadGraph's model, which isn't part of this project.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A report's entities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// By their number.
    pub entities: BTreeMap<String, Entity>,
}

/// A word or a few, and what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// The words.
    pub tokens: String,
    /// As `Observation::definitely present`.
    pub label: String,
    /// Kind, and the other entity's number.
    #[serde(default)]
    pub relations: Vec<(String, String)>,
}

/// The rewards of one pair of reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Entities.
    pub simple: f64,
    /// Entities, and whether they are related.
    pub partial: f64,
    /// Entities and relations.
    pub complete: f64,
}

/// The rewards of a report for a reference.
pub fn rewards(said: &Graph, truth: &Graph) -> Rewards {
    if said.entities.is_empty() || truth.entities.is_empty() {
        return Rewards::default();
    }
    Rewards {
        simple: set_f1(&said.simple(), &truth.simple()),
        partial: set_f1(&said.partial(), &truth.partial()),
        complete: set_f1(&said.complete(), &truth.complete()),
    }
}

/// RadCliQ's part of RadGraph: the mean of the F1 of entities (tokens as written, label) and of relations (both ends with
/// their labels, kind). Source: RadEval@e0a3909 `radcliq.py`.
pub fn radcliq_part(said: &Graph, truth: &Graph) -> f64 {
    let entities = set_f1(&said.as_written(), &truth.as_written());
    let relations = set_f1(&said.relations(), &truth.relations());
    f64::midpoint(entities, relations)
}

fn set_f1<T: Ord>(said: &BTreeSet<T>, truth: &BTreeSet<T>) -> f64 {
    let common = said.intersection(truth).count() as f64;
    let precision = super::ratio(common, said.len() as f64);
    let recall = super::ratio(common, truth.len() as f64);
    super::harmonic(precision, recall)
}

/// Tokens and label, as they are written.
type Written<'a> = (&'a str, &'a str);
/// Tokens and label, and a relation with the tokens at its other end.
type Complete<'a> = (String, &'a str, Option<(&'a str, String)>);

impl Graph {
    fn simple(&self) -> BTreeSet<(String, &str)> {
        let entities = self.entities.values();
        entities
            .map(|e| (e.tokens.to_lowercase(), e.label.as_str()))
            .collect()
    }

    fn partial(&self) -> BTreeSet<(String, &str, bool)> {
        let entities = self.entities.values();
        let fact = |e: &'_ Entity| (e.tokens.to_lowercase(), !e.relations.is_empty());
        entities
            .map(|e| {
                let (tokens, related) = fact(e);
                (tokens, e.label.as_str(), related)
            })
            .collect()
    }

    fn complete(&self) -> BTreeSet<Complete<'_>> {
        let mut facts = BTreeSet::new();
        for entity in self.entities.values() {
            let (tokens, label) = (entity.tokens.to_lowercase(), entity.label.as_str());
            if entity.relations.is_empty() {
                facts.insert((tokens, label, None));
                continue;
            }
            for (kind, other) in &entity.relations {
                // The reference fails on a relation to nothing; here its end is empty.
                let other = self.entities.get(other);
                let end = other.map(|other| other.tokens.to_lowercase());
                let relation = (kind.as_str(), end.unwrap_or_default());
                facts.insert((tokens.clone(), label, Some(relation)));
            }
        }
        facts
    }

    fn as_written(&self) -> BTreeSet<Written<'_>> {
        self.entities.values().map(Entity::written).collect()
    }

    fn relations(&self) -> BTreeSet<(Written<'_>, Written<'_>, &str)> {
        let mut facts = BTreeSet::new();
        for entity in self.entities.values() {
            for (kind, other) in &entity.relations {
                if let Some(other) = self.entities.get(other) {
                    facts.insert((entity.written(), other.written(), kind.as_str()));
                }
            }
        }
        facts
    }
}

impl Entity {
    fn written(&self) -> Written<'_> {
        (&self.tokens, &self.label)
    }
}
