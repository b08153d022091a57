//! MedGemma behind the engine: `crates/model` translated into what the scheduler asks of a backend.
//! Loading and the vision half are here, the text half is in `decoder`.

use std::path::Path;
use std::sync::Arc;

use medfleet_core::{Digest, chain};
use medfleet_model as model;
use model::{
    BlockTable, Chunk, ComputeDevice, Continue, Dtype, FolderSource, GenerateError, GgufSource,
    KvOptions, KvPool, LoadOptions, Message, Model, Parts, Progress, QuantisedCache, Request,
    SamplingError, Want,
};

use crate::backend::{DecodeBackend, Description, EncodeBackend, EngineError, Frame, ImageTokens};

mod decoder;
mod drafter;

use decoder::Decoder;
use drafter::Drafter;

/// Positions in a KV block.
const BLOCK_TOKENS: usize = 16;

/// A loaded model, shared by both halves when one process runs both.
#[derive(Debug, Clone)]
pub struct Loaded {
    model: Arc<Model>,
    description: Description,
    /// A second model that proposes what the first one verifies.
    draft: Option<Arc<Model>>,
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

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A Hugging Face folder.
    Folder(FolderSource),
    /// A GGUF with the language model, and the vision tower beside it.
    Gguf(GgufSource),
}

impl Origin {
    /// A model is called as its folder is, or as its file without the ending.
    fn name(&self) -> String {
        match self {
            Self::Folder(source) => name_of(&source.path),
            Self::Gguf(source) => name_of(&source.text.with_extension("")),
        }
    }
}

impl Loaded {
    /// Loads a model that sees images. Takes seconds to minutes: call it on a blocking thread.
    ///
    /// # Errors
    /// The model's own, which name the file, key or tensor; [`EngineError::Model`] for a checkpoint without images, or whose
    /// language model gives no numbers.
    pub fn load(
        origin: &Origin,
        device: ComputeDevice,
        dtype: Dtype,
        half: Half,
    ) -> Result<Self, EngineError> {
        let parts = match half {
            Half::Encode => Parts::Vision,
            Half::Decode => Parts::Text,
            Half::Both => Parts::All,
        };
        let options = LoadOptions {
            dtype,
            parts,
            device,
        };
        let model = match origin {
            Origin::Folder(source) => Model::load_folder(source, options),
            Origin::Gguf(source) => Model::load_gguf(source, options),
        };
        let model = model.map_err(failed)?;
        say(model.quantised_cache());
        if model.image_shape().is_none() {
            return Err(EngineError::Model(
                "the checkpoint has no vision tower".into(),
            ));
        }
        check_numbers(&model)?;
        let loaded = Self::of(model, &origin.name());
        if half != Half::Encode {
            loaded.say_what_texts_depend_on();
        }
        Ok(loaded)
    }

    /// A model that is loaded already, also one that sees no images: to measure with. A worker takes what [`Loaded::load`] takes.
    pub fn of(model: Model, name: &str) -> Self {
        let [tokens_per_image, token_width] = model.image_shape().unwrap_or_default();
        let config = model.config();
        let frame_side = config.vision.as_ref().map_or(0, |vision| vision.image_size);
        let digests = model.digests();
        let description = Description {
            model: name.to_owned(),
            model_digest: digests.model,
            settings_digest: *model.settings_digest(),
            encoder_digest: digests.encoder.unwrap_or(Digest::new([0; 32])),
            device: model.device(),
            dtype: model.dtype(),
            weights: model.held().to_owned(),
            reproducible: model.rows_stand_alone(),
            frame_side: as_u32(frame_side),
            tokens_per_image: as_u32(tokens_per_image),
            token_width: as_u32(token_width),
            context_tokens_max: as_u32(config.text.positions_max),
        };
        Self {
            model: Arc::new(model),
            description,
            draft: None,
        }
    }

    /// Says what a worker that writes texts does not keep of what results promise.
    fn say_what_texts_depend_on(&self) {
        if let Some(cause) = self.varies_because() {
            tracing::warn!(
                cause,
                "a text may be worded otherwise when others are written beside it: the same record need not give the same text again"
            );
        }
        let forms = self.model.without_kernels();
        if !forms.is_empty() {
            // `provenance.weights` names them in each result.
            tracing::warn!(
                forms,
                "matrices are held in forms for which there are no kernels: texts are written slowly"
            );
        }
    }

    /// Why a text may depend on those that are written beside it, where it may.
    pub fn varies_because(&self) -> Option<String> {
        if self.model.rows_stand_alone() {
            return None;
        }
        let (forms, device) = (self.model.without_kernels(), &self.description.device);
        let place = if forms.is_empty() {
            format!("on this device ({device})")
        } else {
            format!("where matrices are held in {forms}, for which there are no kernels")
        };
        Some(format!(
            "a row of a pass depends on those beside it {place}"
        ))
    }

    /// Whether proposed tokens can be verified without changing a text: a row of a pass has the same bits whatever is beside it.
    pub fn verifies_proposals(&self) -> bool {
        self.model.rows_stand_alone()
    }

    /// Why they cannot, where they cannot.
    pub fn verifies_none_because(&self) -> Option<String> {
        let cause = self.varies_because()?;
        Some(format!("{cause}, so no proposal is ever verified"))
    }

    /// The forms in which a second model holds matrices without kernels, as in [`Model::without_kernels`]: it is slow then, and
    /// proposes only where that pays all the same.
    pub fn draft_without_kernels(&self) -> &str {
        let draft = self.draft.as_ref();
        draft.map_or("", |draft| draft.without_kernels())
    }

    /// With a second, smaller model, loaded with its text half, that proposes tokens where a decoder is asked to propose any.
    /// It takes no part in what is written.
    pub fn with_draft(self, draft: Model) -> Result<Self, EngineError> {
        self.model.check_draft(&draft).map_err(failed)?;
        let draft = Some(Arc::new(draft));
        Ok(Self { draft, ..self })
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The vision half.
    pub fn encoder(&self) -> Box<dyn EncodeBackend> {
        Box::new(self.clone())
    }

    /// The text half with its KV memory, which is taken now. No more than `prefill_tokens_max` tokens, or one image, are
    /// computed of a sequence at once. Of the memory, a second model has the share that a position of it takes beside one of
    /// the first.
    pub fn decoder(
        &self,
        kv_bytes_max: u64,
        prefill_tokens_max: u32,
    ) -> Result<Box<dyn DecodeBackend>, EngineError> {
        let (kv_bytes_max, drafter) = match &self.draft {
            Some(draft) if self.verifies_proposals() => {
                let (ours, of_draft) = (self.model.kv_position_bytes(), draft.kv_position_bytes());
                let share = share(kv_bytes_max, of_draft, ours + of_draft);
                let drafter = Drafter::new(Arc::clone(draft), share, &self.model)?;
                (kv_bytes_max - share, Some(drafter))
            }
            Some(_) | None => (kv_bytes_max, None),
        };
        let options = KvOptions {
            block_tokens: BLOCK_TOKENS,
            budget_bytes: usize::try_from(kv_bytes_max).unwrap_or(usize::MAX),
        };
        let mut pool = self.model.kv_pool(options).map_err(failed)?;
        let stretch = prefill_tokens_max.max(self.description.tokens_per_image);
        pool.limit_stretches(stretch as usize);
        let decoder = Decoder::new(self.clone(), pool, kv_bytes_max);
        Ok(Box::new(decoder.with_drafter(drafter)))
    }
}

/// Bytes of KV memory that one text takes alone, its prompt included, where no more than `prefill_tokens_max` tokens are read at
/// once: for whoever sets a budget before the model is loaded.
pub fn kv_bytes_of(
    config: &model::Config,
    tokens: usize,
    prefill_tokens_max: u32,
    dtype: Dtype,
) -> usize {
    let of_image = config.vision.as_ref();
    let of_image = of_image.map_or(0, |vision| vision.tokens_per_image);
    let stretch = of_image.max(prefill_tokens_max as usize);
    let text = &config.text;
    text.kv_bytes_of(tokens, (BLOCK_TOKENS, stretch), dtype)
}

/// `part` of `whole` parts of so many bytes, rounded down.
fn share(bytes: u64, part: usize, whole: usize) -> u64 {
    let share = u128::from(bytes) * part as u128 / whole.max(1) as u128;
    u64::try_from(share).unwrap_or(bytes)
}

/// Reads one token, so that weights of the language model that are no numbers are found before a job is: a worker that has them
/// would fail every job at once, sooner than others could do it.
fn check_numbers(model: &Model) -> Result<(), EngineError> {
    let Some(tokenizer) = model.tokenizer() else {
        return Ok(());
    };
    let options = KvOptions {
        block_tokens: 1,
        budget_bytes: model.kv_position_bytes(),
    };
    let mut pool = model.kv_pool(options).map_err(failed)?;
    let mut table = BlockTable::default();
    pool.reserve(&mut table, 1).map_err(failed)?;
    let chunk = Chunk {
        tokens: &[tokenizer.special().bos],
        images: &[],
        start: 0,
        table: &table,
        want: Want::Last,
    };
    let rows = model.forward(&mut pool, &[chunk]).map_err(failed)?;
    let mut logits = rows.iter().flat_map(|of| &of.rows).flatten();
    if logits.all(|logit| logit.is_finite()) {
        return Ok(());
    }
    Err(EngineError::Model(
        "its weights give no numbers after the first token: a file of the model is damaged, or was made wrongly".into(),
    ))
}

/// Whether it makes numbers of an image, whose tokens are zeros, and of the words around it. Unlike [`check_numbers`] this takes as
/// long as reading a prompt.
fn reads_numbers(model: &Model) -> bool {
    let dtype = model.dtype();
    let zeros = model.image_shape().and_then(|shape| {
        let bytes = vec![0; shape[0] * shape[1] * dtype.bytes()];
        model::ImageTokens::from_bytes(shape, dtype, bytes).ok()
    });
    let images: Vec<model::ImageTokens> = zeros.into_iter().collect();
    let asked = Message::user(images.len(), "Describe this.");
    // Whatever else fails says nothing about numbers.
    let Ok(prompt) = model.prompt(&[asked], images.len()) else {
        return true;
    };
    let request = Request::greedy(model, &prompt, &images, 1);
    let read = model.generate(&request, &mut |_| Continue::Yes);
    !matches!(read, Err(GenerateError::Sampling(SamplingError::NotFinite)))
}

/// Tells the operator what became of kept matrices: with any of these the model is the same.
fn say(cache: &QuantisedCache) {
    match cache {
        QuantisedCache::Off => {}
        QuantisedCache::Read => tracing::info!("quantised weights were read from their cache"),
        QuantisedCache::Written => tracing::info!("quantised weights were kept in their cache"),
        QuantisedCache::NotWritten { reason } => {
            tracing::warn!(reason, "quantised weights were not kept in their cache");
        }
        QuantisedCache::Damaged { reason } => tracing::warn!(
            reason,
            "the cache of quantised weights did not pass: what was wrong was made of the model's files"
        ),
    }
}

/// A model is called as its folder is.
pub(crate) fn name_of(folder: &Path) -> String {
    folder
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Takes over what the pool holds of a text's beginning, and says how many tokens that is. Where it cannot be copied, the
/// text is read from its start.
fn begin(progress: &mut Progress, pool: &mut KvPool) -> usize {
    let (tokens, copies) = progress.begin(pool.blocks_mut());
    let Err(error) = pool.copy(&copies) else {
        return tokens;
    };
    tracing::warn!(error = chain(&error), "a known beginning was not copied");
    progress.give_back(pool.blocks_mut());
    0
}

pub(crate) fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

pub(crate) fn failed(error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    EngineError::Model(Box::new(error))
}

/// The model's own form of a frame.
pub(crate) fn model_frame(frame: &Frame) -> Result<model::Frame, EngineError> {
    let (side, channels) = (frame.side as usize, frame.channels as usize);
    model::Frame::new(side, channels, frame.pixels.to_vec()).map_err(failed)
}

impl EncodeBackend for Loaded {
    fn description(&self) -> &Description {
        &self.description
    }

    fn encode(&mut self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EngineError> {
        let frames = frames.iter().map(model_frame);
        let frames: Vec<model::Frame> = frames.collect::<Result<_, _>>()?;
        let tokens = self.model.encode(&frames);
        let tokens = tokens.map_err(|error| match error {
            model::EncodeError::NotFinite => EngineError::NotFinite,
            error => failed(error),
        })?;
        Ok(tokens.into_iter().map(ImageTokens::from).collect())
    }

    fn computes(&mut self) -> bool {
        self.model.computes()
    }

    fn makes_numbers(&mut self) -> bool {
        let side = self.description.frame_side;
        let pixels = vec![0; side as usize * side as usize];
        let black = Frame {
            side,
            channels: 1,
            pixels: pixels.into(),
        };
        !matches!(self.encode(&[black]), Err(EngineError::NotFinite))
    }
}

#[cfg(test)]
mod tests;
