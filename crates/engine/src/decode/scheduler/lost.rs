//! What becomes of texts when the model fails: a text is blamed only for what it took part in, so that a job does not use up
//! its tries on the failures of others.

use std::error::Error;
use std::sync::Arc;

use medfleet_core::chain;
use tokio::sync::mpsc;

use super::{Panicked, Request, Scheduler};
use crate::backend::{EngineError, Outcome, Sequence, Work};
use crate::health::Call;

/// The engine has ended: what it has not looked at is done elsewhere.
pub(super) fn refuse_all(mut requests: mpsc::Receiver<Request>) {
    requests.close();
    while let Some(request) = requests.blocking_recv() {
        // A caller that is gone wants no answer.
        let _ = request.admitted.send(Err(EngineError::Stopped));
    }
}

impl Scheduler {
    /// A pass failed. Where it was of several texts, each does its part again alone, and only those are lost, and say why, of
    /// which that fails.
    pub(super) fn lose(&mut self, works: &[Work], error: EngineError) -> Result<(), Panicked> {
        let took_part = |sequence| works.iter().any(|work| work.sequence == sequence);
        if matches!(error, EngineError::Panicked) {
            return Err(self.fail_all(took_part));
        }
        let backend = self.backend.as_mut();
        // Before they are told: whoever is may ask again at once.
        let computes = self.reporter.still_computes(&error, || backend.computes());
        if computes && works.len() > 1 {
            tracing::warn!(
                error = chain(&error),
                texts = works.len(),
                "a pass failed, and each of its texts is computed alone"
            );
            return works.iter().try_for_each(|work| self.pass_alone(*work));
        }
        let cause: Arc<dyn Error + Send + Sync> = match error {
            EngineError::Model(cause) => Arc::from(cause),
            other => Arc::new(other),
        };
        for work in works {
            let lost = EngineError::Model(Box::new(Arc::clone(&cause)));
            self.fail(work.sequence, lost);
        }
        if computes {
            Ok(())
        } else {
            Err(self.fail_all(|_| false))
        }
    }

    fn pass_alone(&mut self, work: Work) -> Result<(), Panicked> {
        let works = [Work {
            proposed: 0,
            ..work
        }];
        match self.pass(&works).0 {
            Ok(outcomes) => self.take_pass(&works, std::iter::empty(), outcomes),
            Err(error) => self.lose(&works, error),
        }
    }

    /// Puts into what a pass made what is told of values that are no numbers. Says whether the engine ends because of them.
    pub(super) fn judge_numbers(&mut self, outcomes: &mut [Outcome]) -> bool {
        let is_without = |outcome: &&mut Outcome| {
            let last = outcome.last();
            matches!(last, Some(Err(EngineError::NotFinite)))
        };
        if outcomes.iter().flatten().any(Result::is_ok) {
            self.reporter.made_numbers();
        }
        let mut without = outcomes.iter_mut().filter(is_without).peekable();
        if without.peek().is_none() {
            return false;
        }
        // What is tried now is of none of them.
        self.suspect(|_| false);
        let backend = self.backend.as_mut();
        // It reads an image and some words.
        let tried = Call::compute(backend.description().tokens_per_image as usize);
        let found = self
            .reporter
            .without_numbers(tried, || backend.makes_numbers());
        for outcome in without {
            outcome.pop();
            outcome.push(Err(found.told()));
        }
        found.ends()
    }

    /// Says whose the call into the model is that begins now.
    pub(super) fn suspect(&self, is_suspect: impl Fn(Sequence) -> bool) {
        for taken in self.active.iter().chain(&self.waiting) {
            taken.suspect.set(is_suspect(taken.sequence));
        }
    }

    /// Nothing of the model is used again, and every stream learns it: those that may have been the cause, and the others, which
    /// are done elsewhere.
    pub(super) fn fail_all(&mut self, is_suspect: impl Fn(Sequence) -> bool) -> Panicked {
        for taken in self.active.drain(..).chain(self.waiting.drain(..)) {
            let error = if is_suspect(taken.sequence) {
                EngineError::Panicked
            } else {
                EngineError::Stopped
            };
            // A reader that is gone wants no error.
            let _ = taken.events.try_send(Err(error));
        }
        Panicked
    }
}
