//! A second, smaller model that reads along with the texts of the first and says what it would write next. It sees no images:
//! of a prompt it reads the text, without the tokens that stand for images and those around them.
//!
//! Each text has keys and values of its own, in a pool of the drafter's. It reads only when it is asked, so that it costs
//! nothing where proposing does not pay: what was written meanwhile is read before the next proposal, a stretch at a time.
//! What it has read of proposals that turned out wrong is read over. Nothing depends on it: where its memory or its context
//! is at an end, or it fails, it proposes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use medfleet_core::{Digest, chain};
use medfleet_model as model;
use model::{
    Cacheable, Chunk, ForwardError, KvOptions, KvPool, LogitRows, Model, Progress, Sampling,
    Situation, Want, choose,
};

use super::{BLOCK_TOKENS, begin, failed};
use crate::backend::{EngineError, Sequence};

/// Tokens that it reads before one pass at most, of all texts together: the texts that are written wait for it.
const READ_TOKENS_MAX: usize = 256;
/// Tokens of a text in a step that only goes on: what it proposed last, and what the model wrote after that.
const STEP_TOKENS_MAX: usize = 4;

pub(super) struct Drafter {
    model: Arc<Model>,
    pool: KvPool,
    /// Tokens of the first model's prompts that are left out.
    left_out: Vec<u32>,
    texts: HashMap<Sequence, Text>,
}

/// One text as the second model reads it.
struct Text {
    /// What is certain: the prompt without images, and what was written.
    progress: Progress,
    /// How many tokens of the first model's were taken over.
    followed: usize,
    /// Proposed tokens that are read behind the certain ones; all of those are read then.
    ahead: Vec<u32>,
}

/// What is read of a text in one step.
struct Stretch {
    tokens: Vec<u32>,
    /// Position of the first.
    start: usize,
    /// Whether nothing is left after it.
    whole: bool,
}

/// What it would write next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guess {
    pub(super) token: u32,
    /// As it sees it itself.
    pub(super) probability: f32,
}

/// What one step came to.
pub(super) struct Stepped {
    /// Of each text; nothing of one that is not read to its end.
    pub(super) guesses: Vec<Option<Guess>>,
    /// Whether more was read than what came since the last step.
    pub(super) caught_up: bool,
}

impl Drafter {
    /// With memory for keys and values within a limit, in bytes, which is taken now; for texts of `first`.
    pub(super) fn new(
        model: Arc<Model>,
        bytes_max: u64,
        first: &Model,
    ) -> Result<Self, EngineError> {
        let options = KvOptions {
            block_tokens: BLOCK_TOKENS,
            budget_bytes: usize::try_from(bytes_max).unwrap_or(usize::MAX),
        };
        let mut pool = model.kv_pool(options).map_err(failed)?;
        pool.limit_stretches(READ_TOKENS_MAX);
        let markers = first.tokenizer().and_then(|of| of.special().image);
        let left_out = markers.map_or_else(Vec::new, |of| vec![of.start, of.soft, of.end]);
        Ok(Self {
            model,
            pool,
            left_out,
            texts: HashMap::new(),
        })
    }

    /// Takes on a text by its prompt, without memory. Texts of one scope share what was read of equal beginnings.
    pub(super) fn open(&mut self, sequence: Sequence, scope: Digest, prompt: &[u32]) {
        let tokens = prompt.iter().filter(|token| !self.left_out.contains(token));
        let tokens: Vec<u32> = tokens.copied().collect();
        let cacheable = Cacheable {
            scope,
            tokens: &tokens,
            images: &[],
            tokens_per_image: 0,
        };
        let text = Text {
            progress: Progress::new(&cacheable, self.pool.block_tokens()),
            followed: prompt.len(),
            ahead: Vec::new(),
        };
        self.texts.insert(sequence, text);
    }

    /// Takes over what was written since: `tokens` are all of the first model's, `proposed` follow them.
    pub(super) fn follow(&mut self, sequence: Sequence, tokens: &[u32], proposed: &[u32]) {
        if let Some(text) = self.texts.get_mut(&sequence) {
            begin(&mut text.progress, &mut self.pool);
            text.follow(tokens, proposed, &mut self.pool);
        }
    }

    /// One pass over what each of these texts, followed by these proposals, has that was not read. A text that finds no
    /// memory gets no guess; where the pass fails, none of them gets any again, nor does one of which it makes no numbers.
    pub(super) fn step(&mut self, texts: &[(Sequence, Vec<u32>)]) -> Stepped {
        let (mut room, context) = (READ_TOKENS_MAX, self.model.config().text.positions_max);
        let mut stretches = Vec::with_capacity(texts.len());
        for (sequence, proposed) in texts {
            let text = self.texts.get_mut(sequence);
            let stretch = text.and_then(|text| text.stretch(proposed, room, &mut self.pool));
            let stretch = stretch.filter(|of| of.start + of.tokens.len() <= context);
            room -= stretch.as_ref().map_or(0, |of| of.tokens.len());
            stretches.push(stretch);
        }
        let long = |of: &Stretch| of.tokens.len() > STEP_TOKENS_MAX;
        let caught_up = stretches.iter().flatten().any(long);
        let rows = match self.forward(texts, &stretches) {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "the draft model failed: it proposes nothing more for the texts of this pass"
                );
                for (sequence, _) in texts {
                    self.release(*sequence);
                }
                Vec::new()
            }
        };
        let mut rows = rows.into_iter();
        let guess = |((sequence, _), stretch): (&(Sequence, Vec<u32>), Option<Stretch>)| {
            let (stretch, rows) = (stretch?, rows.next()?);
            let text = self.texts.get_mut(sequence)?;
            text.read(&stretch, &mut self.pool);
            let guess = likeliest(rows.rows.first()?, self.model.forbidden_tokens());
            if guess.is_none() {
                tracing::warn!(
                    "the draft model made values that are no numbers: it proposes nothing more for this text"
                );
                // Whoever took over its keys and values would get none either.
                text.progress.forget(self.pool.blocks_mut());
                self.release(*sequence);
            }
            guess
        };
        Stepped {
            guesses: texts.iter().zip(stretches).map(guess).collect(),
            caught_up,
        }
    }

    /// Logits behind each stretch that is whole, in order of those that are read.
    fn forward(
        &mut self,
        texts: &[(Sequence, Vec<u32>)],
        stretches: &[Option<Stretch>],
    ) -> Result<Vec<LogitRows>, ForwardError> {
        let mut chunks = Vec::with_capacity(texts.len());
        for ((sequence, _), stretch) in texts.iter().zip(stretches) {
            if let (Some(stretch), Some(text)) = (stretch, self.texts.get(sequence)) {
                chunks.push(Chunk {
                    tokens: &stretch.tokens,
                    images: &[],
                    start: stretch.start,
                    table: text.progress.table(),
                    want: if stretch.whole {
                        Want::Last
                    } else {
                        Want::Nothing
                    },
                });
            }
        }
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        self.model.forward(&mut self.pool, &chunks)
    }

    /// Takes a text's memory; it can be read again.
    pub(super) fn suspend(&mut self, sequence: Sequence) {
        if let Some(text) = self.texts.get_mut(&sequence) {
            text.ahead.clear();
            text.progress.give_back(self.pool.blocks_mut());
        }
    }

    /// Forgets a text and frees its memory.
    pub(super) fn release(&mut self, sequence: Sequence) {
        self.suspend(sequence);
        self.texts.remove(&sequence);
    }

    /// Blocks that texts hold.
    #[cfg(test)]
    pub(super) fn blocks_used(&self) -> usize {
        let blocks = self.pool.blocks();
        blocks.total() - blocks.available()
    }
}

impl Text {
    /// As [`Drafter::follow`]. At least one token is left to read: what comes after the last one is asked for next.
    fn follow(&mut self, tokens: &[u32], proposed: &[u32], pool: &mut KvPool) {
        let new = tokens.get(self.followed..).unwrap_or_default();
        self.followed = tokens.len();
        for token in new {
            self.progress.push(*token);
        }
        let right = common(new, &self.ahead);
        let cached = self.progress.cached();
        let mut read = cached + right;
        self.ahead.drain(..right);
        // What it has read ahead is of use only where it goes on as it was proposed.
        let still = if right == new.len() {
            common(proposed, &self.ahead)
        } else {
            0
        };
        self.ahead.truncate(still);
        let known = self.progress.tokens().len();
        if read == known && self.ahead.len() == proposed.len() && self.ahead.pop().is_none() {
            read -= 1;
        }
        // Further back its blocks may be gone. Nothing is read then, until something is written.
        self.progress.advance(pool.blocks_mut(), read.max(cached));
    }

    /// What to read next, `room` tokens at most, with the memory for it.
    fn stretch(&mut self, proposed: &[u32], room: usize, pool: &mut KvPool) -> Option<Stretch> {
        let start = self.progress.cached() + self.ahead.len();
        let certain = self.progress.tokens().get(start..).unwrap_or_default();
        let proposed = proposed.get(self.ahead.len()..).unwrap_or_default();
        let unread = certain.iter().chain(proposed).take(room);
        let tokens: Vec<u32> = unread.copied().collect();
        if tokens.is_empty() {
            return None;
        }
        let whole = tokens.len() == certain.len() + proposed.len();
        let end = start + tokens.len();
        self.progress.reserve(pool.blocks_mut(), end).ok()?;
        Some(Stretch {
            tokens,
            start,
            whole,
        })
    }

    /// A stretch was read.
    fn read(&mut self, stretch: &Stretch, pool: &mut KvPool) {
        let (start, known) = (stretch.start, self.progress.tokens().len());
        let end = start + stretch.tokens.len();
        // As far as it is certain.
        self.progress.advance(pool.blocks_mut(), end);
        let certain = known.saturating_sub(start).min(stretch.tokens.len());
        self.ahead.extend(&stretch.tokens[certain..]);
    }
}

/// How many tokens two stretches have in common at their beginnings.
fn common(one: &[u32], other: &[u32]) -> usize {
    let pairs = one.iter().zip(other);
    pairs.take_while(|(a, b)| a == b).count()
}

/// The token with the largest of these logits.
pub(super) fn likeliest(logits: &[f32], forbidden: &[u32]) -> Option<Guess> {
    let situation = Situation {
        forbidden,
        ..Situation::default()
    };
    // Logits that are no numbers make no proposal; the text is the first model's.
    let choice = choose(logits, &Sampling::greedy(), &situation).ok()?;
    Some(Guess {
        token: choice.token,
        probability: choice.logprob.exp(),
    })
}
