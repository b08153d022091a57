//! The next token of each text of a pass. A choice looks at a quarter of a million logits, and a form has to say which tokens it
//! allows: for many texts one after the other that takes as long as the pass itself, so they choose side by side.

use std::collections::HashMap;

use medfleet_model::{Choice, LogitRows};
use rayon::prelude::*;

use super::Decoder;
use crate::backend::{EngineError, Sequence, Step, Work};

/// A step, and the token to compute next, if any.
pub(super) type Written = Result<(Step, Option<u32>), EngineError>;

/// What a forward gives of a position.
pub(super) enum Found {
    Logits(Vec<f32>),
    Likeliest(Choice),
    /// What was already made of its logits.
    Written(Written),
}

impl Found {
    /// Of all positions in order; `first` is what was made of the first row of logits.
    pub(super) fn all(of: LogitRows, first: Option<Written>) -> Vec<Self> {
        let rows = of.rows.into_iter().map(Self::Logits);
        let mut all: Vec<Self> = rows.chain(of.likeliest.map(Self::Likeliest)).collect();
        if let (Some(place), Some(first)) = (all.first_mut(), first) {
            *place = Self::Written(first);
        }
        all
    }
}

impl Decoder {
    /// What the first row of logits makes of each text that has read all of its tokens; nothing for those without such a row.
    pub(super) fn choose_first(
        &mut self,
        works: &[Work],
        rows: &[LogitRows],
    ) -> Vec<Option<Written>> {
        let sequences = works.iter().map(|work| work.sequence);
        let firsts = rows.iter().map(|rows| rows.rows.first());
        let rows: HashMap<Sequence, _> = sequences.zip(firsts).collect();
        let loaded = &self.loaded;
        let texts = self.running.par_iter_mut();
        let texts = texts.filter(|(_, text)| text.progress.left() == 0);
        let mut written: HashMap<Sequence, Written> = texts
            .filter_map(|(sequence, text)| {
                let row = rows.get(sequence).copied().flatten()?;
                let seen = text.progress.tokens();
                Some((*sequence, text.writing.write(loaded, row, seen)))
            })
            .collect();
        let written = works.iter().map(|work| written.remove(&work.sequence));
        written.collect()
    }
}
