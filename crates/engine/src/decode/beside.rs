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

    /// Looks at the encoder. Call it before looking for requests, so that one that comes later ends the next wait.
    pub(super) fn look(&mut self) {
        self.seen = self.encoding.look();
    }

    /// A request was taken on.
    pub(super) fn arrived(&self) {
        self.encoding.arrived();
    }

    /// Until when these texts wait for one whose images are being encoded; `None` if they do not wait.
    pub(super) fn waits(&self, texts: &[Text], texts_max: usize) -> Option<Instant> {
        let coming = self.seen.coming?;
        self.company.waits(Instant::now(), texts, texts_max, coming)
    }

    /// Waits until the given time, or until something has changed since [`Beside::look`].
    pub(super) fn wait(&self, until: Instant) {
        self.encoding.wait(self.seen, until);
    }

    pub(super) fn begin_pass(&self) -> Mark {
        self.encoding.begin_pass()
    }

    /// A pass has ended. `texts`: how many it wrote a token of, if it did nothing else.
    pub(super) fn end_pass(&mut self, mark: Mark, texts: Option<usize>) {
        if self.encoding.end_pass(mark)
            && let Some(texts) = texts
        {
            self.company.passed(texts, mark.elapsed());
        }
    }

    /// Notes the length of a text that has ended.
    pub(super) fn ended(&mut self, tokens: usize) {
        self.company.ended(tokens);
    }
}
