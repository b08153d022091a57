//! What is proposed for texts: what followed the same tokens before, and where that is little, what a second model would write.

use std::time::Instant;

use super::{Decoder, Running};
use crate::backend::Sequence;
use crate::speculation::chances::Source;
use crate::speculation::{DraftSteps, Phrases, Proposing};

/// What followed the same tokens before gives way to a second model where it was right less often than this, and than that.
const LOOKED_UP_CHANCE_MIN: f32 = 0.5;
/// The second model ends where all that it has proposed for a text is right with less than this chance.
const REACH_MIN: f32 = 0.2;

impl Decoder {
    /// As [`DecodeBackend::draft_chance`](crate::backend::DecodeBackend::draft_chance).
    pub(super) fn chance_of_drafts(&self, texts: &[Sequence]) -> Option<f32> {
        let (phrases, _) = (self.phrases.as_ref()?, self.drafter.as_ref()?);
        let (mut memory, now) = (phrases.lock(), Instant::now());
        let running = texts.iter().filter_map(|text| self.running.get(text));
        let chances = running.map(|text| memory.tenant(text.scope, now).chances().of_draft());
        let chances: Vec<f32> = chances.collect();
        let mean = chances.iter().sum::<f32>() / chances.len().max(1) as f32;
        (!chances.is_empty()).then_some(mean)
    }

    /// As [`DecodeBackend::propose`](crate::backend::DecodeBackend::propose).
    pub(super) fn propose_for(
        &mut self,
        texts: &[Sequence],
        tokens_max: usize,
        drafts_max: usize,
    ) -> Proposing {
        let Some(phrases) = self.phrases.clone() else {
            return Proposing::default();
        };
        self.look_up(&phrases, texts, (tokens_max, drafts_max));
        let steps = self.draft(&phrases, texts, drafts_max);
        let stretch = self.pool.blocks().layout().stretch_tokens;
        let (mut memory, now) = (phrases.lock(), Instant::now());
        let worth = texts.iter().map(|text| {
            let Some(running) = self.running.get(text) else {
                return Vec::new();
            };
            let most = running.proposed_max(tokens_max, stretch);
            let tenant = memory.tenant(running.scope, now);
            running.proposals.worth(tenant.chances(), most)
        });
        Proposing {
            texts: worth.collect(),
            steps,
        }
    }

    /// Proposes what followed the same tokens before.
    fn look_up(
        &mut self,
        phrases: &Phrases,
        texts: &[Sequence],
        (tokens_max, drafts_max): (usize, usize),
    ) {
        let stretch = self.pool.blocks().layout().stretch_tokens;
        let drafts = self.drafter.is_some() && drafts_max > 0;
        let (mut memory, now) = (phrases.lock(), Instant::now());
        for text in texts {
            let Some(running) = self.running.get_mut(text) else {
                continue;
            };
            let most = running.proposed_max(tokens_max, stretch);
            let Running {
                progress,
                writing,
                proposals,
                ..
            } = running;
            let tenant = memory.tenant(running.scope, now);
            let least = if drafts {
                tenant.chances().of_draft().min(LOOKED_UP_CHANCE_MIN)
            } else {
                0.0
            };
            let model = &self.loaded.model;
            let never =
                |token: u32, chance: f32| chance < least || writing.proposes_never(model, token);
            proposals.extend(progress.tokens(), tenant, never, most);
        }
    }

    /// Lets the second model go on from there, until a text has as many proposals or what it has is no longer likely. Texts
    /// take their steps together.
    fn draft(&mut self, phrases: &Phrases, texts: &[Sequence], drafts_max: usize) -> DraftSteps {
        let mut steps = DraftSteps::default();
        let Some(drafter) = self.drafter.as_mut() else {
            return steps;
        };
        let stretch = self.pool.blocks().layout().stretch_tokens;
        let mut going = Vec::with_capacity(texts.len());
        for text in texts {
            let Some(running) = self.running.get(text) else {
                continue;
            };
            let proposed: Vec<u32> = running.proposals.tokens().collect();
            if proposed.len() < running.proposed_max(drafts_max, stretch) {
                drafter.follow(*text, running.progress.tokens(), &proposed);
                going.push((*text, proposed));
            }
        }
        let model = &self.loaded.model;
        while !going.is_empty() {
            let begun = Instant::now();
            let stepped = drafter.step(&going);
            // A text for which there is no memory takes no time.
            let guessed = stepped.guesses.iter().flatten().count();
            if !stepped.caught_up && guessed > 0 {
                steps.texts = steps.texts.max(guessed);
                steps.count += 1;
                steps.time += begun.elapsed();
            }
            let mut memory = phrases.lock();
            let mut further = Vec::with_capacity(going.len());
            for ((text, mut proposed), guess) in going.into_iter().zip(stepped.guesses) {
                let (Some(guess), Some(running)) = (guess, self.running.get_mut(&text)) else {
                    continue;
                };
                if running.writing.proposes_never(model, guess.token) {
                    continue;
                }
                let source = Source::draft(guess.probability);
                running.proposals.push(guess.token, source);
                proposed.push(guess.token);
                let tenant = memory.tenant(running.scope, begun);
                let likely = running.proposals.reach(tenant.chances()) >= REACH_MIN;
                if likely && proposed.len() < running.proposed_max(drafts_max, stretch) {
                    further.push((text, proposed));
                }
            }
            going = further;
        }
        steps
    }
}
