//! The text half of the simulated model: it counts its memory, shares the beginnings of prompts and is suspended by the
//! same rules as a real one, and takes the time it is told to.

use std::collections::HashMap;
use std::sync::Arc;

use medfleet_model::{BlockLayout, Blocks, ConstraintError, Guide, Guides, Progress, TokenSet};

use super::{Simulated, digest, pause, words};
use crate::backend::{
    Alternative, DecodeBackend, Decoding, Description, EngineError, Finish, KvMemory, Outcome,
    PromptSize, Sequence, Step, Token, Work,
};
use crate::decode::DecodeRequest;
use crate::prompt::{Part, Prompt};
use crate::real::as_u32;

/// Bytes of KV memory it pretends to need for a token: that of the five layers of MedGemma 4B that see everything, in bf16. The
/// others hold no more than their window of a long prompt.
const KV_BYTES_PER_TOKEN: u64 = 5 * 4096;
/// Positions in a KV block, as the real model's.
const BLOCK_TOKENS: u32 = 16;
/// Ends a text that has a form; the other tokens of such a text are single bytes.
const END: u32 = 256;

/// The text half of the simulated model.
#[derive(Debug)]
pub struct SimulatedDecoder {
    model: Simulated,
    blocks: Blocks,
    budget_bytes: u64,
    sequences: HashMap<Sequence, Running>,
    guides: Option<Arc<Guides>>,
}

#[derive(Debug)]
struct Running {
    progress: Progress,
    /// Whether a stretch was computed since it has its memory.
    begun: bool,
    writing: Writing,
}

#[derive(Debug)]
struct Writing {
    /// Without a form: what is written, a word a token.
    words: Vec<String>,
    /// With one: what decides, and what is allowed.
    form: Option<(blake3::OutputReader, Guide)>,
    written: usize,
    max_tokens: usize,
    alternatives: usize,
}

impl SimulatedDecoder {
    pub(super) fn new(model: Simulated, budget_bytes: u64) -> Self {
        let blocks = budget_bytes / (u64::from(BLOCK_TOKENS) * KV_BYTES_PER_TOKEN);
        // No more than 2³² positions: beyond any context that it could hold.
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).min(1 << 28);
        Self {
            model,
            blocks: Blocks::new(blocks, BlockLayout::global(BLOCK_TOKENS as usize)),
            budget_bytes,
            sequences: HashMap::new(),
            guides: None,
        }
    }

    /// A token for each word and for each image token, and one that begins.
    fn tokens(&self, prompt: &Prompt) -> (Vec<u32>, Vec<usize>) {
        let (mut tokens, mut images) = (vec![1], Vec::new());
        let words = |text: &str, tokens: &mut Vec<u32>| {
            tokens.extend(text.split_whitespace().map(token));
        };
        words(&prompt.system, &mut tokens);
        for part in &prompt.parts {
            match part {
                Part::Text(text) => words(text, &mut tokens),
                Part::Image => {
                    images.push(tokens.len());
                    let count = self.model.description.tokens_per_image as usize;
                    tokens.extend(std::iter::repeat_n(0, count));
                }
            }
        }
        (tokens, images)
    }

    fn guide(&mut self, decoding: &Decoding) -> Result<Option<Guide>, EngineError> {
        let Some(constraint) = &decoding.constraint else {
            return Ok(None);
        };
        let guides = match &self.guides {
            Some(guides) => Arc::clone(guides),
            None => {
                let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
                let words = bytes.chain([Vec::new()]).collect();
                Arc::clone(self.guides.insert(Arc::new(Guides::new(words, END)?)))
            }
        };
        Ok(Some(guides.guide(constraint)?))
    }

    /// The time that a pass takes.
    fn spend(&self, works: &[Work]) {
        let timing = &self.model.timing;
        let mut time = timing.decode_step;
        for work in works {
            let Some(running) = self.sequences.get(&work.sequence) else {
                continue;
            };
            if running.progress.left() > 1 {
                time += timing.prefill_token * work.tokens;
            } else {
                time += timing.decode_sequence;
            }
            if !running.begun {
                time += timing.prefill;
            }
        }
        pause(time);
    }
}

/// Any fixed function of a word serves.
fn token(word: &str) -> u32 {
    let hash = |id: u32, byte: u8| id.wrapping_mul(31).wrapping_add(byte.into());
    word.bytes().fold(0, hash)
}

impl DecodeBackend for SimulatedDecoder {
    fn description(&self) -> &Description {
        &self.model.description
    }

    fn kv(&self) -> KvMemory {
        KvMemory {
            budget_bytes: self.budget_bytes,
            block_bytes: u64::from(BLOCK_TOKENS) * KV_BYTES_PER_TOKEN,
            layout: *self.blocks.layout(),
            blocks: self.blocks.total(),
            available: self.blocks.available(),
        }
    }

    fn open(
        &mut self,
        sequence: Sequence,
        request: &DecodeRequest,
    ) -> Result<PromptSize, EngineError> {
        let guide = self.guide(&request.decoding)?;
        let (tokens, firsts) = self.tokens(&request.prompt);
        let tokens_per_image = self.model.description.tokens_per_image;
        let decoding = &request.decoding;
        let digest = digest(&request.prompt, &request.images, decoding.seed);
        let writing = Writing {
            words: match guide {
                None => words(digest.clone(), self.model.words),
                Some(_) => Vec::new(),
            },
            form: guide.map(|guide| (digest, guide)),
            written: 0,
            max_tokens: decoding.max_tokens as usize,
            alternatives: decoding.alternatives as usize,
        };
        let running = Running {
            progress: request.progress((&tokens, &firsts), tokens_per_image, BLOCK_TOKENS as usize),
            begun: false,
            writing,
        };
        self.sequences.insert(sequence, running);
        Ok(PromptSize {
            tokens: as_u32(tokens.len()),
            image_tokens: as_u32(firsts.len()).saturating_mul(tokens_per_image),
        })
    }

    fn begin(&mut self, sequence: Sequence) -> u32 {
        let running = self.sequences.get_mut(&sequence);
        running.map_or(0, |running| {
            as_u32(running.progress.begin(&mut self.blocks).0)
        })
    }

    fn progress(&self, sequence: Sequence) -> Option<&Progress> {
        let running = self.sequences.get(&sequence);
        running.map(|running| &running.progress)
    }

    fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    fn reserve(&mut self, sequence: Sequence, tokens: u32) -> bool {
        let Some(Running { progress, .. }) = self.sequences.get_mut(&sequence) else {
            return false;
        };
        let end = progress.cached() + tokens as usize;
        progress.reserve(&mut self.blocks, end).is_ok()
    }

    fn run(&mut self, works: &[Work]) -> Result<Vec<Outcome>, EngineError> {
        self.spend(works);
        let outcomes = works.iter().map(|work| {
            let Some(running) = self.sequences.get_mut(&work.sequence) else {
                return vec![Err(EngineError::Model("the sequence is not known".into()))];
            };
            running.begun = true;
            let end = running.progress.cached() + work.tokens as usize;
            running.progress.advance(&mut self.blocks, end);
            if running.progress.left() > 0 {
                return Vec::new();
            }
            let step = running.writing.next();
            if let Ok(Step {
                token: Some(token), ..
            }) = &step
            {
                running.progress.push(token.id);
            }
            vec![step]
        });
        Ok(outcomes.collect())
    }

    fn suspend(&mut self, sequence: Sequence) {
        if let Some(running) = self.sequences.get_mut(&sequence) {
            running.progress.give_back(&mut self.blocks);
            running.begun = false;
        }
    }

    fn release(&mut self, sequence: Sequence) {
        self.suspend(sequence);
        self.sequences.remove(&sequence);
    }
}

impl Writing {
    fn next(&mut self) -> Result<Step, EngineError> {
        let stop = Step {
            token: None,
            text: String::new(),
            finish: Some(Ok(Finish::Stop)),
        };
        let (text, token, whole) = match &mut self.form {
            Some((digest, guide)) => {
                let Some((byte, token)) = formed(digest, guide, self.alternatives)? else {
                    return Ok(stop);
                };
                (char::from(byte).to_string(), token, guide.is_finished())
            }
            None => {
                let Some(text) = self.words.get(self.written) else {
                    return Ok(stop);
                };
                let id = token(text);
                // Any fixed function of the word serves: between -2 and 0.
                let log_probability = -((id % 256) as f32) / 128.0;
                let own = Alternative {
                    id,
                    text: text.clone(),
                    log_probability,
                };
                let token = Token {
                    id,
                    log_probability,
                    alternatives: std::iter::repeat_n(own, self.alternatives.min(1)).collect(),
                };
                (text.clone(), token, false)
            }
        };
        self.written += 1;
        let finish = if whole {
            Some(Ok(Finish::Stop))
        } else {
            (self.written >= self.max_tokens).then_some(Ok(Finish::Length))
        };
        Ok(Step {
            token: Some(token),
            text,
            finish,
        })
    }
}

/// The next byte of a text that has a form, the likeliest of those allowed by weights from the digest; nothing where the
/// text is whole. Marks that close something weigh more, so that texts end.
fn formed(
    digest: &mut blake3::OutputReader,
    guide: &mut Guide,
    alternatives: usize,
) -> Result<Option<(u8, Token)>, ConstraintError> {
    let allowed: TokenSet = guide.allowed()?;
    let printable = |id: &u32| (0x20..0x7f).contains(id);
    let bytes: Vec<u32> = allowed.ids().filter(printable).collect();
    if allowed.contains(END) || bytes.is_empty() {
        return Ok(None);
    }
    let mut weights: Vec<(u32, f32)> = bytes
        .into_iter()
        .map(|id| {
            let mut noise = [0; 2];
            digest.fill(&mut noise);
            let noise = f32::from(u16::from_le_bytes(noise)) / 65_536.0;
            let closes = matches!(id, 0x22 | 0x5d | 0x7d);
            (id, noise + if closes { 0.5 } else { 0.0 })
        })
        .collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let sum: f32 = weights.iter().map(|(_, weight)| weight.exp()).sum();
    let alternative = |(id, weight): &(u32, f32)| Alternative {
        id: *id,
        // Printable ASCII.
        text: char::from(*id as u8).to_string(),
        log_probability: weight - sum.ln(),
    };
    let Some(first) = weights.first().map(alternative) else {
        return Ok(None);
    };
    guide.take(first.id)?;
    let token = Token {
        id: first.id,
        log_probability: first.log_probability,
        alternatives: weights.iter().take(alternatives).map(alternative).collect(),
    };
    Ok(Some((first.id as u8, token)))
}
