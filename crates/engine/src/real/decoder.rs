//! The text half of MedGemma. Each sequence keeps its tokens, its blocks, its detokenizer and its constraint; a pass is
//! one forward over stretches of several sequences at different positions.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::Instant;

use medfleet_core::Digest;
use medfleet_model as model;
use model::{
    Chunk, ConstraintError, Detokenizer, Guide, Guides, ImageSpan, KvPool, LogitRows, Progress,
    SamplingError, Situation, StillThinking, Want, choose, likeliest,
};

use super::drafter::Drafter;
use super::{Loaded, as_u32, failed, reads_numbers};
use crate::backend::{
    Alternative, DecodeBackend, Decoding, Description, EngineError, Finish, ImageTokens, KvMemory,
    Outcome, PromptSize, Sequence, Step, Token, Work,
};
use crate::decode::DecodeRequest;
use crate::prompt::Prompt;
use crate::speculation::proposals::Proposals;
use crate::speculation::{Phrases, Proposing};

mod choosing;
mod proposing;

use choosing::{Found, Written};

pub(super) struct Decoder {
    loaded: Loaded,
    pool: KvPool,
    budget_bytes: u64,
    running: HashMap<Sequence, Running>,
    /// The vocabulary for constraints, prepared when the first one comes.
    guides: OnceLock<Result<Guides, ConstraintError>>,
    /// Where tokens are proposed: what tenants' texts had in common.
    phrases: Option<Phrases>,
    /// The second model, where there is one.
    drafter: Option<Drafter>,
}

/// A sequence between two passes.
pub(super) struct Running {
    pub(super) progress: Progress,
    pub(super) images: Vec<ImageTokens>,
    pub(super) writing: Writing,
    /// Whose it is, since when, and how long its prompt.
    pub(super) scope: Digest,
    pub(super) begun: Instant,
    pub(super) prompt_tokens: usize,
    pub(super) proposals: Proposals,
}

/// What turns logits into text.
pub(super) struct Writing {
    pub(super) written: u32,
    pub(super) decoding: Decoding,
    pub(super) stream: Detokenizer,
    pub(super) guide: Option<Guide>,
}

impl Decoder {
    pub(super) fn new(loaded: Loaded, pool: KvPool, budget_bytes: u64) -> Self {
        Self {
            loaded,
            pool,
            budget_bytes,
            running: HashMap::new(),
            guides: OnceLock::new(),
            phrases: None,
            drafter: None,
        }
    }

    /// With a second model that proposes.
    pub(super) fn with_drafter(self, drafter: Option<Drafter>) -> Self {
        Self { drafter, ..self }
    }

    /// Blocks that the second model's texts hold.
    #[cfg(test)]
    pub(super) fn draft_blocks_used(&self) -> usize {
        self.drafter.as_ref().map_or(0, Drafter::blocks_used)
    }

    pub(super) fn build(&self, prompt: &Prompt) -> Result<model::Prompt, EngineError> {
        self.loaded
            .model
            .prompt(&prompt.messages(), prompt.images())
            .map_err(failed)
    }

    fn guide(&self, decoding: &Decoding) -> Result<Option<Guide>, EngineError> {
        let Some(constraint) = &decoding.constraint else {
            return Ok(None);
        };
        let model = &self.loaded.model;
        let guides = self.guides.get_or_init(|| {
            let missing = |reason: &str| ConstraintError::Vocabulary {
                reason: reason.to_owned(),
            };
            let tokenizer = model
                .tokenizer()
                .ok_or_else(|| missing("it is not loaded"))?;
            // What ends a text must be a token that the model stops at.
            let end = tokenizer.special().end_of_turn;
            tokenizer.guides(model.config().text.vocab, end)
        });
        let guides = guides.as_ref().map_err(Clone::clone)?;
        Ok(Some(guides.guide(constraint)?))
    }
}

/// Beside the pool, which a forward changes.
fn find(running: &HashMap<Sequence, Running>, sequence: Sequence) -> Result<&Running, EngineError> {
    running.get(&sequence).ok_or_else(unknown)
}

fn unknown() -> EngineError {
    EngineError::Model("a sequence is not known".into())
}

impl Decoder {
    /// One forward over these stretches and the proposals behind them.
    fn forward(
        &mut self,
        works: &[Work],
        ranges: &[Range<usize>],
    ) -> Result<Vec<LogitRows>, EngineError> {
        let stretches = || works.iter().zip(ranges);
        let images: Vec<Vec<(usize, model::ImageTokens)>> = stretches()
            .map(|(work, range)| find(&self.running, work.sequence)?.images_in(range))
            .collect::<Result<_, EngineError>>()?;
        let spans = images.iter().zip(ranges).map(|(images, range)| {
            let span = |(first, tokens)| ImageSpan {
                offset: first - range.start,
                tokens,
            };
            images.iter().map(|(f, t)| span((*f, t))).collect()
        });
        let spans: Vec<Vec<ImageSpan>> = spans.collect();
        let fed: Vec<Cow<[u32]>> = stretches()
            .map(|(work, range)| Ok(find(&self.running, work.sequence)?.fed(work, range)))
            .collect::<Result<_, EngineError>>()?;
        let mut chunks = Vec::with_capacity(works.len());
        for (((work, range), images), fed) in stretches().zip(&spans).zip(&fed) {
            let Running {
                progress, writing, ..
            } = find(&self.running, work.sequence)?;
            let last = range.end == progress.tokens().len();
            chunks.push(Chunk {
                tokens: fed,
                images,
                start: range.start,
                table: progress.table(),
                want: match (last, fed.len() > range.len()) {
                    (false, _) => Want::Nothing,
                    (true, false) => writing.want(),
                    (true, true) => Want::All,
                },
            });
        }
        let model = &self.loaded.model;
        model.forward(&mut self.pool, &chunks).map_err(failed)
    }
}

impl DecodeBackend for Decoder {
    fn description(&self) -> &Description {
        &self.loaded.description
    }

    fn kv(&self) -> KvMemory {
        let blocks = self.pool.blocks();
        KvMemory {
            budget_bytes: self.budget_bytes,
            block_bytes: self.pool.block_bytes() as u64,
            layout: *blocks.layout(),
            blocks: blocks.total(),
            available: blocks.available(),
        }
    }

    fn open(
        &mut self,
        sequence: Sequence,
        request: &DecodeRequest,
    ) -> Result<PromptSize, EngineError> {
        let built = self.build(&request.prompt)?;
        let guide = self.guide(&request.decoding)?;
        let tokens_per_image = self.loaded.description.tokens_per_image;
        let (placed, block_tokens) = ((built.tokens(), built.images()), self.pool.block_tokens());
        let running = Running {
            progress: request.progress(placed, tokens_per_image, block_tokens),
            images: request.images.clone(),
            writing: Writing {
                written: 0,
                decoding: request.decoding.clone(),
                stream: Detokenizer::default(),
                guide,
            },
            scope: request.scope,
            begun: Instant::now(),
            prompt_tokens: built.tokens().len(),
            proposals: Proposals::default(),
        };
        self.running.insert(sequence, running);
        if let (Some(drafter), Some(_)) = (&mut self.drafter, &self.phrases) {
            drafter.open(sequence, request.scope, built.tokens());
        }
        Ok(PromptSize {
            tokens: as_u32(built.tokens().len()),
            image_tokens: as_u32(built.images().len()) * tokens_per_image,
        })
    }

    fn begin(&mut self, sequence: Sequence) -> u32 {
        let Some(running) = self.running.get_mut(&sequence) else {
            return 0;
        };
        as_u32(super::begin(&mut running.progress, &mut self.pool))
    }

    fn progress(&self, sequence: Sequence) -> Option<&Progress> {
        let running = self.running.get(&sequence);
        running.map(|running| &running.progress)
    }

    fn blocks(&self) -> &model::Blocks {
        self.pool.blocks()
    }

    fn reserve(&mut self, sequence: Sequence, tokens: u32) -> bool {
        let Some(Running { progress, .. }) = self.running.get_mut(&sequence) else {
            return false;
        };
        let end = progress.cached() + tokens as usize;
        progress.reserve(self.pool.blocks_mut(), end).is_ok()
    }

    fn rows_stand_alone(&self) -> bool {
        self.loaded.model.rows_stand_alone()
    }

    fn speculate(&mut self, phrases: Phrases) -> bool {
        let exact = self.rows_stand_alone();
        self.phrases = exact.then_some(phrases);
        exact
    }

    fn draft_chance(&self, texts: &[Sequence]) -> Option<f32> {
        self.chance_of_drafts(texts)
    }

    fn propose(&mut self, texts: &[Sequence], tokens_max: u32, drafts_max: u32) -> Proposing {
        self.propose_for(texts, tokens_max as usize, drafts_max as usize)
    }

    fn run(&mut self, works: &[Work]) -> Result<Vec<Outcome>, EngineError> {
        let ranges = works.iter().map(|work| {
            let running = find(&self.running, work.sequence)?;
            Ok(running.progress.next(work.tokens as usize))
        });
        let ranges: Vec<Range<usize>> = ranges.collect::<Result<_, EngineError>>()?;
        let rows = self.forward(works, &ranges)?;
        for (work, range) in works.iter().zip(ranges) {
            let running = self.running.get_mut(&work.sequence).ok_or_else(unknown)?;
            running.progress.advance(self.pool.blocks_mut(), range.end);
        }
        let firsts = self.choose_first(works, &rows);
        let mut outcomes = Vec::with_capacity(works.len());
        for ((work, rows), first) in works.iter().zip(rows).zip(firsts) {
            let running = self.running.get_mut(&work.sequence).ok_or_else(unknown)?;
            outcomes.push(if running.progress.left() == 0 {
                let (found, phrases) = (Found::all(rows, first), self.phrases.as_ref());
                let outcome = running.write_all(&self.loaded, &mut self.pool, found, phrases);
                if matches!(outcome.last(), Some(Err(EngineError::NotFinite))) {
                    // Another try on the same keys and values would find the same.
                    running.progress.forget(self.pool.blocks_mut());
                }
                outcome
            } else {
                Vec::new()
            });
        }
        Ok(outcomes)
    }

    fn suspend(&mut self, sequence: Sequence) {
        if let Some(running) = self.running.get_mut(&sequence) {
            running.progress.give_back(self.pool.blocks_mut());
        }
        if let Some(drafter) = &mut self.drafter {
            drafter.suspend(sequence);
        }
    }

    fn release(&mut self, sequence: Sequence) {
        self.suspend(sequence);
        self.running.remove(&sequence);
        if let Some(drafter) = &mut self.drafter {
            drafter.release(sequence);
        }
    }

    fn computes(&mut self) -> bool {
        self.loaded.model.computes()
    }

    fn makes_numbers(&mut self) -> bool {
        reads_numbers(&self.loaded.model)
    }
}

impl Running {
    /// The images whose run begins in a stretch, with its position.
    fn images_in(
        &self,
        range: &Range<usize>,
    ) -> Result<Vec<(usize, model::ImageTokens)>, EngineError> {
        let inside = self.progress.images_in(range);
        inside
            .map(|(index, first)| {
                let image = self.images.get(index).ok_or_else(unknown)?;
                let shape = [image.count as usize, image.width as usize];
                let tokens =
                    model::ImageTokens::from_bytes(shape, image.dtype, image.bytes.to_vec());
                Ok((first, tokens.map_err(failed)?))
            })
            .collect()
    }

    /// How many proposals can be of use: all right, the text has one token more than those, and a longer stretch would hold
    /// more memory than a sequence was counted with.
    fn proposed_max(&self, tokens_max: usize, stretch_tokens: usize) -> usize {
        let Writing {
            written, decoding, ..
        } = &self.writing;
        let left = decoding.max_tokens.saturating_sub(*written) as usize;
        tokens_max
            .min(left.saturating_sub(1))
            .min(stretch_tokens.saturating_sub(1))
    }

    /// The tokens of a stretch, with the proposals that are verified behind them.
    fn fed(&self, work: &Work, range: &Range<usize>) -> Cow<'_, [u32]> {
        let stretch = &self.progress.tokens()[range.clone()];
        // Every row of a chunk with proposals is wanted: it must not be a prompt's.
        if work.proposed == 0 || range.len() != 1 {
            return Cow::Borrowed(stretch);
        }
        let proposed = self.proposals.tokens().take(work.proposed as usize);
        Cow::Owned(stretch.iter().copied().chain(proposed).collect())
    }

    /// Chooses the next token, and as long as that is the one that was proposed, the one after it: what these rows of logits
    /// make of it. Gives back the memory of what was proposed in vain.
    fn write_all(
        &mut self,
        loaded: &Loaded,
        pool: &mut KvPool,
        found: Vec<Found>,
        phrases: Option<&Phrases>,
    ) -> Outcome {
        if found.is_empty() {
            let missing = EngineError::Model("the forward returned no logits".into());
            return vec![Err(missing)];
        }
        let mut outcome = Outcome::new();
        for found in found {
            if self.progress.left() > 0 {
                // The token before was the one proposed: its keys and values are there.
                let end = self.progress.tokens().len();
                self.progress.advance(pool.blocks_mut(), end);
            }
            let seen = self.progress.tokens();
            let written = match found {
                Found::Logits(row) => self.writing.write(loaded, &row, seen),
                Found::Likeliest(choice) => self.writing.take(loaded, choice, Vec::new()),
                Found::Written(written) => written,
            };
            let (step, token) = match written {
                Ok(written) => written,
                Err(error) => {
                    outcome.push(Err(error));
                    break;
                }
            };
            let finish = step.finish;
            outcome.push(Ok(step));
            if let Some(token) = token {
                self.progress.push(token);
            }
            // Where the text ends, what was proposed there is measured too.
            let right = phrases.is_some_and(|phrases| {
                let mut memory = phrases.lock();
                let tenant = memory.tenant(self.scope, Instant::now());
                self.proposals.written(token, tenant.chances_mut())
            });
            if finish.is_some() {
                self.learn(phrases, finish);
            }
            if !right || finish.is_some() {
                break;
            }
        }
        self.progress.shrink(pool.blocks_mut());
        outcome
    }

    /// The text has ended well: what its tenant writes next may be like it. One whose job was erased meanwhile is not kept.
    fn learn(&self, phrases: Option<&Phrases>, finish: Option<Result<Finish, StillThinking>>) {
        if let (Some(phrases), Some(Ok(_))) = (phrases, finish) {
            let mut memory = phrases.lock();
            if !memory.may_learn(&self.scope, self.begun) {
                return;
            }
            let tenant = memory.tenant(self.scope, Instant::now());
            tenant.learn(self.progress.tokens(), self.prompt_tokens);
        }
    }
}

impl Writing {
    /// What is wanted of the position that the next token is chosen at.
    pub(super) fn want(&self) -> Want {
        let plain = self.guide.is_none() && self.decoding.alternatives == 0;
        if plain && self.decoding.sampling().is_greedy() {
            Want::Likeliest
        } else {
            Want::Last
        }
    }

    /// The step that these logits make after the tokens `seen`, and the token to compute next, if any.
    pub(super) fn write(&mut self, loaded: &Loaded, logits: &[f32], seen: &[u32]) -> Written {
        let model = &loaded.model;
        let allowed = self.guide.as_mut().map(Guide::allowed).transpose()?;
        let situation = Situation {
            step: self.written.into(),
            forbidden: model.forbidden_tokens(),
            seen,
            allowed: allowed.as_ref(),
        };
        let choice = choose(logits, &self.decoding.sampling(), &situation);
        let choice = choice.map_err(|error| match error {
            SamplingError::NotFinite => EngineError::NotFinite,
            error => failed(error),
        })?;
        let alternatives = match model.tokenizer() {
            Some(tokenizer) if !self.stops_at(model, choice.token) => {
                self.alternatives(tokenizer, logits, &situation)
            }
            _ => Vec::new(),
        };
        self.take(loaded, choice, alternatives)
    }

    /// The step that this choice makes, and the token to compute next, if any.
    fn take(
        &mut self,
        loaded: &Loaded,
        choice: model::Choice,
        alternatives: Vec<Alternative>,
    ) -> Written {
        let model = &loaded.model;
        if self.stops_at(model, choice.token) {
            return Ok((self.last(None, String::new(), Finish::Stop), None));
        }
        if let Some(guide) = &mut self.guide {
            guide.take(choice.token)?;
        }
        self.written += 1;
        let Some(tokenizer) = model.tokenizer() else {
            return Err(EngineError::Model("the tokenizer is not loaded".into()));
        };
        let piece = self.stream.push(tokenizer, choice.token);
        let token = piece.as_ref().map(|_| Token {
            id: choice.token,
            log_probability: choice.logprob,
            alternatives,
        });
        let text = piece.unwrap_or_default();
        let finish = if self.guide.as_ref().is_some_and(Guide::is_finished) {
            Some(Finish::Stop)
        } else if self.written >= self.decoding.max_tokens {
            Some(Finish::Length)
        } else {
            None
        };
        let step = match finish {
            Some(finish) => self.last(token, text, finish),
            None => Step {
                token,
                text,
                finish: None,
            },
        };
        Ok((step, Some(choice.token)))
    }

    /// Whether a token is never proposed: the model may not write it, has no logit for it, or ends with it.
    fn proposes_never(&self, model: &model::Model, token: u32) -> bool {
        let known = (token as usize) < model.config().text.vocab;
        !known || model.forbidden_tokens().contains(&token) || self.stops_at(model, token)
    }

    /// Whether a token ends the text.
    fn stops_at(&self, model: &model::Model, token: u32) -> bool {
        self.decoding.stop_tokens.contains(&token) || model.stop_tokens().contains(&token)
    }

    fn alternatives(
        &self,
        tokenizer: &model::Tokenizer,
        logits: &[f32],
        situation: &Situation,
    ) -> Vec<Alternative> {
        if self.decoding.alternatives == 0 {
            return Vec::new();
        }
        let likeliest = likeliest(logits, situation, self.decoding.alternatives as usize);
        let alternative = |choice: model::Choice| Alternative {
            id: choice.token,
            text: String::from_utf8_lossy(&tokenizer.bytes(choice.token)).into_owned(),
            log_probability: choice.logprob,
        };
        likeliest.into_iter().map(alternative).collect()
    }

    /// The last step: with the rest of the text, or without an answer where the model still thinks.
    fn last(&mut self, token: Option<Token>, mut text: String, finish: Finish) -> Step {
        let finish = match self.stream.finish() {
            Ok(rest) => {
                text.push_str(&rest);
                Ok(finish)
            }
            Err(StillThinking) => {
                text.clear();
                Err(StillThinking)
            }
        };
        Step {
            token,
            text,
            finish: Some(finish),
        }
    }
}
