//! One request from prompt to text, on its own: what `medfleet infer` uses and what batched serving is compared with.

use crate::error::{ForwardError, GenerateError};
use crate::model::Model;
use crate::prompt::Prompt;
use crate::sampling::{Choice, Sampling, Situation, choose};
use crate::text::batch::{Chunk, ImageSpan, LogitRows, Want};
use crate::text::blocks::BlockTable;
use crate::text::cache::{KvOptions, KvPool};
use crate::tokenizer::Detokenizer;
use crate::tokens::ImageTokens;

/// Positions per key-value block of a single request.
const BLOCK_TOKENS: usize = 16;

/// What is asked of [`Model::generate`].
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// From [`Model::prompt`].
    pub prompt: &'a Prompt,
    /// One per image of the prompt, in order.
    pub images: &'a [ImageTokens],
    pub sampling: Sampling,
    /// Most tokens to generate.
    pub tokens_max: usize,
    /// Tokens that end the answer; [`Model::stop_tokens`] as a rule.
    pub stop_tokens: &'a [u32],
    /// Longest prefill step in tokens.
    pub prefill_tokens_max: usize,
    /// Whether to keep the logits.
    pub collect_logits: bool,
}

impl<'a> Request<'a> {
    /// Greedy, the model's own stop tokens, prefill in steps of 512, no logits.
    pub fn greedy(
        model: &'a Model,
        prompt: &'a Prompt,
        images: &'a [ImageTokens],
        tokens_max: usize,
    ) -> Self {
        Self {
            prompt,
            images,
            sampling: Sampling::greedy(),
            tokens_max,
            stop_tokens: model.stop_tokens(),
            prefill_tokens_max: 512,
            collect_logits: false,
        }
    }
}

/// A step of the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    pub choice: Choice,
    /// The text it completes; may be empty, and is while the model thinks.
    pub text: String,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token, which is the last token of the answer.
    Stop,
    /// `tokens_max` was reached.
    Length,
    /// The caller asked for it.
    Cancelled,
}

#[derive(Debug, Clone)]
pub struct Generation {
    /// Tokens with their log-probabilities, a stop token included.
    pub choices: Vec<Choice>,
    /// Their text; control tokens and thinking leave none.
    pub text: String,
    pub finish: Finish,
    /// Where asked for: [1 + tokens, vocab], for the last prompt position and each generated token.
    pub logits: Vec<Vec<f32>>,
}

/// What the callback wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continue {
    /// Another token.
    Yes,
    /// No more: the result says Cancelled.
    No,
}

impl Model {
    /// Generates an answer. `watch` is called before every computing step with nothing, so that a caller can cancel
    /// during a long prefill, and after every token with its [`Delta`].
    ///
    /// # Errors
    /// [`GenerateError`]: images and places differ, beyond the context, out of memory for keys and values;
    /// still thinking at the end.
    pub fn generate(
        &self,
        request: &Request,
        watch: &mut dyn FnMut(Option<&Delta>) -> Continue,
    ) -> Result<Generation, GenerateError> {
        let mut run = Run::start(self, request)?;
        let finish = run.all(watch)?;
        let Run {
            choices,
            text,
            logits,
            ..
        } = run;
        Ok(Generation {
            choices,
            text,
            finish,
            logits,
        })
    }
}

struct Run<'a> {
    model: &'a Model,
    request: &'a Request<'a>,
    pool: KvPool,
    table: BlockTable,
    stream: Detokenizer,
    choices: Vec<Choice>,
    text: String,
    logits: Vec<Vec<f32>>,
    /// Tokens of prompt and answer.
    seen: Vec<u32>,
}

impl<'a> Run<'a> {
    fn start(model: &'a Model, request: &'a Request<'a>) -> Result<Self, GenerateError> {
        request.sampling.check()?;
        let (prompt, images) = (request.prompt.tokens().len(), request.images.len());
        let placeholders = request.prompt.images().len();
        if images != placeholders {
            return Err(GenerateError::ImageCount {
                images,
                placeholders,
            });
        }
        let context = model.config().text.positions_max;
        let positions = prompt.saturating_add(request.tokens_max);
        if positions > context {
            return Err(GenerateError::Context {
                prompt,
                tokens_max: request.tokens_max,
                context,
            });
        }
        let position_bytes = model.kv_position_bytes();
        let budget_bytes = positions.max(1).next_multiple_of(BLOCK_TOKENS) * position_bytes;
        let mut pool = model.kv_pool(KvOptions {
            block_tokens: BLOCK_TOKENS,
            budget_bytes,
        })?;
        let mut table = BlockTable::default();
        pool.reserve(&mut table, positions)?;
        let (stream, choices) = (Detokenizer::default(), Vec::new());
        Ok(Self {
            model,
            request,
            pool,
            table,
            stream,
            choices,
            text: String::new(),
            logits: Vec::new(),
            seen: request.prompt.tokens().to_vec(),
        })
    }

    fn all(
        &mut self,
        watch: &mut dyn FnMut(Option<&Delta>) -> Continue,
    ) -> Result<Finish, GenerateError> {
        let Some(mut rows) = self.prefill(watch)? else {
            return Ok(Finish::Cancelled);
        };
        let finish = loop {
            if self.choices.len() >= self.request.tokens_max {
                break Finish::Length;
            }
            if watch(None) == Continue::No {
                break Finish::Cancelled;
            }
            let (token, next) = self.take(&rows, watch)?;
            let stop = self.request.stop_tokens.contains(&token);
            let full = self.choices.len() >= self.request.tokens_max;
            // After the last token only the logits, where they are collected, are left to compute.
            if !(stop || full || next == Continue::No) || self.request.collect_logits {
                rows = self.step()?;
                self.keep(&rows);
            }
            if stop {
                break Finish::Stop;
            }
            if next == Continue::No {
                break Finish::Cancelled;
            }
        };
        match self.stream.finish() {
            Ok(rest) => self.text.push_str(&rest),
            // Who cancels has asked for no answer.
            Err(_) if finish == Finish::Cancelled => (),
            Err(thinking) => return Err(thinking.into()),
        }
        Ok(finish)
    }

    /// What the last prompt position gives, or nothing when cancelled on the way.
    fn prefill(
        &mut self,
        watch: &mut dyn FnMut(Option<&Delta>) -> Continue,
    ) -> Result<Option<LogitRows>, GenerateError> {
        let prompt = self.request.prompt;
        let mut start = 0;
        loop {
            if watch(None) == Continue::No {
                return Ok(None);
            }
            let range = prompt.chunk(start, self.request.prefill_tokens_max);
            let placed = prompt.images().iter().zip(self.request.images);
            let inside = placed.filter(|(first, _)| range.contains(first));
            let images: Vec<_> = inside
                .map(|(first, tokens)| ImageSpan {
                    offset: first - range.start,
                    tokens,
                })
                .collect();
            let last = range.end == prompt.tokens().len();
            let chunk = Chunk {
                tokens: &prompt.tokens()[range.clone()],
                images: &images,
                start: range.start,
                table: &self.table,
                want: if last { self.want() } else { Want::Nothing },
            };
            let rows = self.model.forward(&mut self.pool, &[chunk])?;
            if last {
                let rows = only_chunk(rows)?;
                self.keep(&rows);
                return Ok(Some(rows));
            }
            start = range.end;
        }
    }

    /// Chooses the next token and tells the caller.
    fn take(
        &mut self,
        rows: &LogitRows,
        watch: &mut dyn FnMut(Option<&Delta>) -> Continue,
    ) -> Result<(u32, Continue), GenerateError> {
        let situation = Situation {
            step: self.choices.len() as u64,
            forbidden: self.model.forbidden_tokens(),
            seen: &self.seen,
            allowed: None,
        };
        let choice = match (rows.likeliest, rows.rows.last()) {
            (Some(choice), _) => choice,
            (None, Some(logits)) => choose(logits, &self.request.sampling, &situation)?,
            (None, None) => return Err(ForwardError::EmptyChunk { chunk: 0 }.into()),
        };
        self.choices.push(choice);
        self.seen.push(choice.token);
        let text = match self.model.tokenizer() {
            Some(tokenizer) => self
                .stream
                .push(tokenizer, choice.token)
                .unwrap_or_default(),
            None => String::new(),
        };
        self.text.push_str(&text);
        Ok((choice.token, watch(Some(&Delta { choice, text }))))
    }

    /// Feeds the last chosen token.
    fn step(&mut self) -> Result<LogitRows, GenerateError> {
        let Some(choice) = self.choices.last() else {
            return Err(ForwardError::EmptyChunk { chunk: 0 }.into());
        };
        let chunk = Chunk {
            tokens: &[choice.token],
            images: &[],
            start: self.request.prompt.tokens().len() + self.choices.len() - 1,
            table: &self.table,
            want: self.want(),
        };
        only_chunk(self.model.forward(&mut self.pool, &[chunk])?)
    }

    /// What is wanted of a position that a token is chosen at.
    fn want(&self) -> Want {
        if self.request.sampling.is_greedy() && !self.request.collect_logits {
            Want::Likeliest
        } else {
            Want::Last
        }
    }

    fn keep(&mut self, rows: &LogitRows) {
        if self.request.collect_logits {
            self.logits.extend(rows.rows.iter().cloned());
        }
    }
}

/// What the only chunk of a forward gives.
fn only_chunk(rows: Vec<LogitRows>) -> Result<LogitRows, GenerateError> {
    let chunk = rows.into_iter().next();
    chunk.ok_or_else(|| ForwardError::EmptyChunk { chunk: 0 }.into())
}
