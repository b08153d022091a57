//! MedGemma behind the engine: `crates/model` translated into what the scheduler asks of a backend.
//! Each sequence keeps its block table, its detokenizer and its count of tokens; a step is one forward over all of them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use medfleet_core::Digest;
use medfleet_model as model;
use model::{
    BlockTable, Chunk, Detokenizer, ImageSpan, KvOptions, KvPool, LoadOptions, LogitRows, Message,
    Model, Parts, Role, Sampling, StillThinking, Want, choose,
};

use crate::backend::{
    DecodeBackend, Decoding, Description, Dtype, EncodeBackend, EngineError, Finish, Frame,
    ImageTokens, PromptSize, Sequence, Step, Token,
};
use crate::prompt::{Part, Prompt};

/// Positions in a KV block.
const BLOCK_TOKENS: usize = 16;
/// Longest stretch of a prompt in one forward, in tokens; an image is never split.
const PREFILL_TOKENS_MAX: usize = 512;

/// A loaded model, shared by both halves when one process runs both.
#[derive(Debug, Clone)]
pub struct Loaded {
    model: Arc<Model>,
    description: Description,
}

/// Which half a process needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Frames to tokens.
    Encode,
    /// Tokens to text.
    Decode,
    /// One process runs both.
    Both,
}

impl Loaded {
    /// Loads a Hugging Face folder. Takes seconds to minutes: call it on a blocking thread.
    ///
    /// # Errors
    /// The model's own, which name the file, key or tensor; [`EngineError::Model`] for a checkpoint without images.
    pub fn load(folder: &Path, dtype: Dtype, half: Half) -> Result<Self, EngineError> {
        let parts = match half {
            Half::Encode => Parts::Vision,
            Half::Decode => Parts::Text,
            Half::Both => Parts::All,
        };
        let options = LoadOptions {
            dtype: to_model(dtype),
            parts,
        };
        let model = Model::load(folder, options).map_err(failed)?;
        let Some([tokens_per_image, token_width]) = model.image_shape() else {
            return Err(EngineError::Model(
                "the checkpoint has no vision tower".into(),
            ));
        };
        let config = model.config();
        let frame_side = config.vision.as_ref().map_or(0, |vision| vision.image_size);
        let name = folder
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let digests = model.digests();
        let description = Description {
            model: name,
            model_digest: digests.model,
            encoder_digest: digests.encoder.unwrap_or(Digest::new([0; 32])),
            device: device(),
            dtype,
            frame_side: as_u32(frame_side),
            tokens_per_image: as_u32(tokens_per_image),
            token_width: as_u32(token_width),
            context_tokens_max: as_u32(config.text.positions_max),
        };
        Ok(Self {
            model: Arc::new(model),
            description,
        })
    }

    /// What was loaded.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The vision half.
    #[must_use]
    pub fn encoder(&self) -> Box<dyn EncodeBackend> {
        Box::new(Encoder {
            loaded: self.clone(),
        })
    }

    /// The text half with its KV memory, which is taken now.
    ///
    /// # Errors
    /// When the budget holds not even one block.
    pub fn decoder(&self, kv_bytes_max: u64) -> Result<Box<dyn DecodeBackend>, EngineError> {
        let budget_bytes = usize::try_from(kv_bytes_max).unwrap_or(usize::MAX);
        let options = KvOptions {
            block_tokens: BLOCK_TOKENS,
            budget_bytes,
        };
        let pool = self.model.kv_pool(options).map_err(failed)?;
        Ok(Box::new(Decoder {
            loaded: self.clone(),
            pool,
            running: HashMap::new(),
        }))
    }
}

/// Kind of device, with the instruction set that the kernels choose at run time.
fn device() -> String {
    let level = level();
    format!("cpu {} {level}", std::env::consts::ARCH)
}

#[cfg(target_arch = "x86_64")]
fn level() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        "avx512"
    } else if std::arch::is_x86_feature_detected!("avx2") {
        "avx2"
    } else {
        "baseline"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> &'static str {
    "baseline"
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    EngineError::Model(Box::new(error))
}

const fn to_model(dtype: Dtype) -> model::Dtype {
    match dtype {
        Dtype::F32 => model::Dtype::F32,
        Dtype::Bf16 => model::Dtype::Bf16,
    }
}

struct Encoder {
    loaded: Loaded,
}

impl EncodeBackend for Encoder {
    fn description(&self) -> &Description {
        &self.loaded.description
    }

    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
        let convert = |frame: &Frame| {
            let (side, channels) = (frame.side as usize, frame.channels as usize);
            model::Frame::new(side, channels, frame.pixels.to_vec()).map_err(failed)
        };
        let frames: Vec<model::Frame> = frames.iter().map(convert).collect::<Result<_, _>>()?;
        let tokens = self.loaded.model.encode(&frames).map_err(failed)?;
        let dtype = self.loaded.description.dtype;
        let convert = |tokens: model::ImageTokens| {
            let [count, width] = tokens.shape();
            let bytes = Bytes::from(tokens.into_bytes());
            ImageTokens {
                count: as_u32(count),
                width: as_u32(width),
                dtype,
                bytes,
            }
        };
        Ok(tokens.into_iter().map(convert).collect())
    }
}

struct Decoder {
    loaded: Loaded,
    pool: KvPool,
    running: HashMap<Sequence, Running>,
}

/// A sequence between two steps.
struct Running {
    table: BlockTable,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    /// The token written last: the next step's input.
    last: u32,
    written: u32,
    max_tokens: u32,
    sampling: Sampling,
    stream: Detokenizer,
}

impl DecodeBackend for Decoder {
    fn description(&self) -> &Description {
        &self.loaded.description
    }

    fn measure(&self, prompt: &Prompt) -> Result<PromptSize, EngineError> {
        let built = self.build(prompt)?;
        let image_tokens = as_u32(built.images().len()) * self.loaded.description.tokens_per_image;
        Ok(PromptSize {
            tokens: as_u32(built.tokens().len()),
            image_tokens,
        })
    }

    fn kv_bytes(&self, tokens: u32) -> u64 {
        let blocks = (tokens as usize).div_ceil(BLOCK_TOKENS);
        blocks as u64 * self.pool.block_bytes() as u64
    }

    fn prefill(
        &mut self,
        sequence: Sequence,
        prompt: &Prompt,
        images: &[ImageTokens],
        decoding: &Decoding,
    ) -> Result<Step, EngineError> {
        let built = self.build(prompt)?;
        let convert = |image: &ImageTokens| {
            let shape = [image.count as usize, image.width as usize];
            model::ImageTokens::from_bytes(shape, to_model(image.dtype), image.bytes.to_vec())
                .map_err(failed)
        };
        let images: Vec<_> = images.iter().map(convert).collect::<Result<_, _>>()?;
        let mut table = BlockTable::default();
        let positions = built.tokens().len() + decoding.max_tokens as usize;
        self.pool.reserve(&mut table, positions).map_err(failed)?;
        let logits = match self.read(&built, &images, &table) {
            Ok(logits) => logits,
            Err(error) => {
                self.pool.release(table);
                return Err(error);
            }
        };
        let sampling = Sampling {
            temperature: decoding.temperature,
            top_k: decoding.top_k as usize,
            top_p: decoding.top_p,
            seed: decoding.seed,
        };
        let mut running = Running {
            table,
            cached: built.tokens().len(),
            last: 0,
            written: 0,
            max_tokens: decoding.max_tokens,
            sampling,
            stream: Detokenizer::default(),
        };
        let step = write(&self.loaded.model, &mut running, &logits);
        if step.is_ok() {
            self.running.insert(sequence, running);
        } else {
            self.pool.release(running.table);
        }
        step
    }

    fn step(&mut self, sequences: &[Sequence]) -> Result<Vec<Step>, EngineError> {
        let unknown = || EngineError::Model("a sequence is not known".into());
        let mut chunks = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let running = self.running.get(sequence).ok_or_else(unknown)?;
            chunks.push(Chunk {
                tokens: std::slice::from_ref(&running.last),
                images: &[],
                start: running.cached,
                table: &running.table,
                want: Want::Last,
            });
        }
        let rows = self
            .loaded
            .model
            .forward(&mut self.pool, &chunks)
            .map_err(failed)?;
        let mut steps = Vec::with_capacity(sequences.len());
        for (sequence, rows) in sequences.iter().zip(rows) {
            let running = self.running.get_mut(sequence).ok_or_else(unknown)?;
            running.cached += 1;
            steps.push(write(&self.loaded.model, running, &only_row(rows)?)?);
        }
        Ok(steps)
    }

    fn release(&mut self, sequence: Sequence) {
        if let Some(running) = self.running.remove(&sequence) {
            self.pool.release(running.table);
        }
    }
}

impl Decoder {
    fn build(&self, prompt: &Prompt) -> Result<model::Prompt, EngineError> {
        let part = |part: &Part| match part {
            Part::Image => model::Part::Image,
            Part::Text(text) => model::Part::Text(text.clone()),
        };
        let mut messages = Vec::with_capacity(2);
        if !prompt.system.is_empty() {
            let parts = vec![model::Part::Text(prompt.system.clone())];
            messages.push(Message {
                role: Role::System,
                parts,
            });
        }
        messages.push(Message {
            role: Role::User,
            parts: prompt.parts.iter().map(part).collect(),
        });
        self.loaded
            .model
            .prompt(&messages, prompt.images())
            .map_err(failed)
    }

    /// Reads the prompt in stretches; the logits of its last position.
    fn read(
        &mut self,
        prompt: &model::Prompt,
        images: &[model::ImageTokens],
        table: &BlockTable,
    ) -> Result<Vec<f32>, EngineError> {
        let mut start = 0;
        loop {
            let range = prompt.chunk(start, PREFILL_TOKENS_MAX);
            let inside = prompt
                .images()
                .iter()
                .zip(images)
                .filter(|(at, _)| range.contains(at));
            let spans: Vec<ImageSpan> = inside
                .map(|(at, tokens)| ImageSpan {
                    offset: at - range.start,
                    tokens,
                })
                .collect();
            let last = range.end == prompt.tokens().len();
            let chunk = Chunk {
                tokens: &prompt.tokens()[range.clone()],
                images: &spans,
                start: range.start,
                table,
                want: if last { Want::Last } else { Want::Nothing },
            };
            let rows = self
                .loaded
                .model
                .forward(&mut self.pool, &[chunk])
                .map_err(failed)?;
            if last {
                let rows = rows.into_iter().next().unwrap_or_default();
                return only_row(rows);
            }
            start = range.end;
        }
    }
}

/// Chooses the next token of a sequence and turns it into text.
fn write(model: &Model, running: &mut Running, logits: &[f32]) -> Result<Step, EngineError> {
    let at = u64::from(running.written);
    let choice = choose(logits, &running.sampling, at, model.forbidden_tokens()).map_err(failed)?;
    if model.stop_tokens().contains(&choice.token) {
        let (text, finish) = end(&mut running.stream, Finish::Stop);
        return Ok(Step {
            token: None,
            text,
            finish: Some(finish),
        });
    }
    running.last = choice.token;
    running.written += 1;
    let Some(tokenizer) = model.tokenizer() else {
        return Err(EngineError::Model("the tokenizer is not loaded".into()));
    };
    let piece = running.stream.push(tokenizer, choice.token);
    let token = piece.as_ref().map(|_| Token {
        id: choice.token,
        log_probability: choice.logprob,
    });
    let mut text = piece.unwrap_or_default();
    let mut finish = None;
    if running.written >= running.max_tokens {
        let (rest, ended) = end(&mut running.stream, Finish::Length);
        text.push_str(&rest);
        finish = Some(ended);
    }
    Ok(Step {
        token,
        text,
        finish,
    })
}

/// The rest of a text, and how it ended.
fn end(stream: &mut Detokenizer, finish: Finish) -> (String, Result<Finish, StillThinking>) {
    match stream.finish() {
        Ok(rest) => (rest, Ok(finish)),
        Err(thinking) => (String::new(), Err(thinking)),
    }
}

fn only_row(rows: LogitRows) -> Result<Vec<f32>, EngineError> {
    let missing = || EngineError::Model("the forward returned no logits".into());
    rows.rows.into_iter().next().ok_or_else(missing)
}

#[cfg(test)]
mod tests;
