//! The decoder's side of a shared device: what it sees of the encoder, and the measuring of its own passes.

use std::time::Instant;

use super::company::{Company, Text};
use crate::encoding::{Encoding, Mark, View};

/// An encoder that computes on the same device.
#[derive(Debug)]
pub(super) struct Beside {
    encoding: Encoding,
    company: Company,
    /// The encoder as it was before the newest requests were looked for.
    seen: View,
}

impl Beside {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            company: Company::default(),
            seen: View::default(),
        }
    }

    /// Looks at the encoder. To be done before requests are looked for: one that comes after that ends the next wait.
    pub(super) fn look(&mut self) {
        self.seen = self.encoding.look();
    }

    /// A request was taken on.
    pub(super) fn arrived(&self) {
        self.encoding.arrived();
    }

    /// Until when these texts wait for one whose images are encoded, if they do.
    pub(super) fn waits(&self, texts: &[Text], texts_max: usize) -> Option<Instant> {
        let coming = self.seen.coming?;
        self.company.waits(Instant::now(), texts, texts_max, coming)
    }

    /// Waits until the time, or until there is something new to look at.
    pub(super) fn wait(&self, until: Instant) {
        self.encoding.wait(self.seen, until);
    }

    pub(super) fn begin_pass(&self) -> Mark {
        self.encoding.begin_pass()
    }

    /// A pass has ended; of so many texts when it did nothing but write a token of each.
    pub(super) fn end_pass(&mut self, mark: Mark, texts: Option<usize>) {
        if self.encoding.end_pass(mark)
            && let Some(texts) = texts
        {
            self.company.passed(texts, mark.elapsed());
        }
    }

    /// A text ended with so many tokens.
    pub(super) fn ended(&mut self, tokens: usize) {
        self.company.ended(tokens);
    }
}
