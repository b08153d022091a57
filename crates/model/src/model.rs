//! A model folder, loaded: the parts that were asked for behind one handle.

use std::path::{Path, PathBuf};

use candle_core::Device;
use medfleet_core::Digest;
use medfleet_kernels::Kernels;

use crate::chat_template;
use crate::config::{Config, VisionConfig};
use crate::device::{self, ComputeDevice};
use crate::digests::Memory;
use crate::dtype::Dtype;
use crate::error::{CacheError, EncodeError, ForwardError, LoadError, PromptError};
use crate::frame::Frame;
use crate::gguf::file::GgufFile;
use crate::gguf::{self, GgufSource, names};
use crate::projector::Projector;
use crate::prompt::{Message, Prompt};
use crate::settings::{self, Settings};
use crate::text::TextTower;
use crate::text::batch::{Chunk, LogitRows};
use crate::text::cache::{KvOptions, KvPool, position_bytes};
use crate::tokenizer::Tokenizer;
use crate::tokens::ImageTokens;
use crate::vision::VisionTower;
use crate::weights::{Digests, Part, QuantisedCache, Weights};

/// Which parts to load: an encode worker needs no language model, a decode worker no vision tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    Vision,
    /// Projector, language model and tokenizer.
    Text,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// What to compute in; the stored dtype may differ.
    pub dtype: Dtype,
    pub parts: Parts,
    pub device: ComputeDevice,
}

/// A Hugging Face folder (config.json, safetensors in one file or shards, tokenizer.json, generation_config.json, and a chat
/// template where there is one), and how its weights are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderSource {
    pub path: PathBuf,
    /// Quantise the language model's matrices to Q8_0 while they are read: the same as a GGUF of these weights in Q8_0 that
    /// is kept as it is stored, where activations are quantised to 8 bits as well. Norms, projector and vision tower stay
    /// what they are.
    pub quantised: bool,
    /// Folder in which the weights' digests are remembered, which is made where it is missing: a start then reads only the
    /// weights it needs. What is remembered holds as long as no file of weights changes.
    pub digest_cache: Option<PathBuf>,
    /// Folder in which matrices that were quantised are kept for the next start, which then reads half as much and quantises
    /// nothing: 34 bytes for 32 weights, in one file for each model. Used with [`FolderSource::quantised`]; it also remembers
    /// digests where `digest_cache` does not. What became of it says [`Model::quantised_cache`].
    pub quantised_cache: Option<PathBuf>,
}

impl FolderSource {
    /// The folder as it is, with nothing remembered.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            quantised: false,
            digest_cache: None,
            quantised_cache: None,
        }
    }
}

/// What is read before the weights are.
struct Loaded {
    config: Config,
    /// What the files of weights are, and where their digests are remembered.
    memory: Memory,
    /// Digests that were remembered.
    known: Option<Digests>,
    settings: Digest,
}

/// MedGemma, or any Gemma 3 of its form.
pub struct Model {
    config: Config,
    dtype: Dtype,
    digests: Digests,
    settings: Digest,
    held: String,
    without_kernels: String,
    quantised_cache: QuantisedCache,
    device: Device,
    kernels: Option<Kernels>,
    vision: Option<VisionTower>,
    text: Option<TextTower>,
    tokenizer: Option<Tokenizer>,
    stop_tokens: Vec<u32>,
    forbidden_tokens: Vec<u32>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("dtype", &self.dtype)
            .field("digests", &self.digests)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a [`FolderSource`] as [`FolderSource::new`] says it. A path that ends in `.gguf` is loaded as
    /// [`GgufSource::text`] says.
    pub fn load(path: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        Self::load_held(path, false, None, options)
    }

    /// As [`Model::load`]. `quantised` holds the language model's matrices in blocks, as [`FolderSource::quantised`] and
    /// [`GgufSource::quantised`] say; digests are remembered in `digest_cache`, where there is one.
    pub fn load_held(
        path: &Path,
        quantised: bool,
        digest_cache: Option<&Path>,
        options: LoadOptions,
    ) -> Result<Self, LoadError> {
        let digest_cache = digest_cache.map(Path::to_owned);
        if path.extension().is_some_and(|end| end == "gguf") {
            let source = GgufSource {
                quantised,
                digest_cache,
                ..GgufSource::text(path)
            };
            return Self::load_gguf(&source, options);
        }
        let source = FolderSource {
            quantised,
            digest_cache,
            ..FolderSource::new(path)
        };
        Self::load_folder(&source, options)
    }

    pub fn load_folder(source: &FolderSource, options: LoadOptions) -> Result<Self, LoadError> {
        let dir = source.path.as_path();
        let config = Config::read(dir)?;
        let settings = Settings::new().files(dir, &settings::OF_FOLDER)?;
        let remember = source.digest_cache.as_ref();
        let remember = remember.or(source.quantised_cache.as_ref());
        let memory = Memory::new(&[dir], remember.map(PathBuf::as_path))?;
        let known = memory.recall();
        let mut weights = Weights::open(dir)?;
        weights.use_kernels(options.device.kernels());
        if source.quantised {
            weights.quantise();
            // The vision tower alone has nothing that is quantised.
            if let (Some(folder), true) = (&source.quantised_cache, options.parts != Parts::Vision)
            {
                weights.keep(folder, known.map(|known| known.model), memory.stamp());
            }
        }
        let loaded = Loaded {
            config,
            memory,
            known,
            settings: settings.digest(),
        };
        let tokenizer = |config: &Config| load_tokenizer(dir, config);
        Self::assemble(loaded, &weights, options, tokenizer)
    }

    /// Loads llama.cpp's form of the model: a GGUF with the language model, and the vision tower from an mmproj GGUF or a
    /// Hugging Face folder. Matrices are dequantised to the dtype of `options` unless the source says otherwise.
    pub fn load_gguf(source: &GgufSource, options: LoadOptions) -> Result<Self, LoadError> {
        let files = [Some(&source.text), source.vision.as_ref()];
        let files: Vec<&Path> = files.into_iter().flatten().map(PathBuf::as_path).collect();
        let memory = Memory::new(&files, source.digest_cache.as_deref())?;
        let known = memory.recall();
        let file = GgufFile::open(&source.text)?;
        let mut settings = Settings::new().metadata(&file.metadata);
        let mut weights = Weights::default();
        weights.use_kernels(options.device.kernels());
        let mut config = Config {
            text: crate::gguf::config::text(&file)?,
            vision: None,
            image_token: None,
            stop_tokens: Vec::new(),
        };
        if let Some(path) = &source.vision {
            let (vision, tensors, with_vision) = open_vision(path, settings)?;
            settings = with_vision;
            weights.take_vision(tensors);
            config.vision = Some(vision);
        }
        let metadata = weights.add_gguf(file, source.quantised, names::text)?;
        let apart = source.tokenizer_apart();
        if let Some(path) = &apart {
            settings = settings.file(path)?;
        }
        let loaded = Loaded {
            config,
            memory,
            known,
            settings: settings.digest(),
        };
        let tokenizer = move |config: &Config| gguf::tokenizer(apart, &metadata, config);
        Self::assemble(loaded, &weights, options, tokenizer)
    }

    /// `tokenizer` reads it, and is called where the language model is asked for.
    fn assemble(
        loaded: Loaded,
        weights: &Weights,
        options: LoadOptions,
        tokenizer: impl FnOnce(&Config) -> Result<Tokenizer, LoadError> + Send,
    ) -> Result<Self, LoadError> {
        let Loaded {
            config,
            memory,
            known,
            settings,
        } = loaded;
        let device = options.device.open()?;
        let with_text = options.parts != Parts::Vision;
        let (mut parsed, mut computed) = (None, None);
        // While weights are read, by cores that would wait for memory or disk: the tokenizer is parsed, which takes one core more
        // than a second, and what has to be hashed is hashed.
        let towers = rayon::in_place_scope(|scope| {
            if with_text {
                scope.spawn(|_| parsed = Some(tokenizer(&config)));
            }
            if known.is_none() {
                scope.spawn(|_| computed = Some(weights.digests()));
            }
            let vision = match options.parts {
                Parts::Text => None,
                Parts::Vision | Parts::All => load_vision(weights, &config, options, &device)?,
            };
            let text = if with_text {
                Some(load_text(weights, &config, options.dtype, &device)?)
            } else {
                None
            };
            Ok::<_, LoadError>((vision, text))
        });
        let tokenizer = parsed.transpose()?;
        let (vision, text) = towers?;
        let stop_tokens = stop_tokens(&config, tokenizer.as_ref());
        let soft_token = tokenizer
            .as_ref()
            .and_then(|t| t.special().image)
            .map(|image| image.soft);
        let digests = settle_digests(&memory, known, computed)?;
        let quantised_cache = weights
            .finish_kept(digests.model)
            .inspect_err(|_| memory.forget())?;
        let held = weights.held();
        device::settle(&device)?;
        Ok(Self {
            digests: digests.held(&held),
            settings,
            held,
            without_kernels: weights.without_kernels(),
            quantised_cache,
            forbidden_tokens: soft_token.into_iter().collect(),
            config,
            dtype: options.dtype,
            device,
            kernels: options.device.kernels(),
            vision,
            text: text.map(|text| text.with_soft_token(soft_token)),
            tokenizer,
            stop_tokens,
        })
    }

    /// The checked configuration.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What is computed in, and what image tokens must be in.
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Forms that the language model's matrices are held and multiplied in, such as `q8_0` or `q4_k, q6_k`; empty where
    /// none is quantised.
    pub fn held(&self) -> &str {
        &self.held
    }

    /// Those of them that the CPU's kernels do not multiply, where they are used; empty where there are none.
    pub fn without_kernels(&self) -> &str {
        &self.without_kernels
    }

    /// What became of [`FolderSource::quantised_cache`] when this was loaded.
    pub const fn quantised_cache(&self) -> &QuantisedCache {
        &self.quantised_cache
    }

    /// Kind of device that it computes on, with the level of its kernels.
    pub fn device(&self) -> String {
        device::describe(&self.device, self.kernels)
    }

    /// Whether the logits of a row are the same bits whatever else is in the forward: other sequences, or later tokens of its
    /// own. The CPU's kernels promise that; candle's products, on whatever device, choose their loops by the shape.
    pub fn rows_stand_alone(&self) -> bool {
        self.text.as_ref().is_some_and(TextTower::rows_stand_alone)
    }

    /// Digests of the weights, over all parts of the folder whichever were loaded; in another form ([`Model::held`]) they
    /// are another model's.
    pub const fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Digest of what decides a text beside the weights: of the files of configuration and vocabulary, or a GGUF's own.
    pub const fn settings_digest(&self) -> &Digest {
        &self.settings
    }

    /// The tokenizer; absent when only the vision tower was loaded.
    pub const fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Checks that a second model can propose tokens for this one: that all ids stand for the same texts in both.
    ///
    /// # Errors
    /// [`LoadError::DraftVocabulary`] with the first id that does not; [`LoadError::Tokenizer`] where either was loaded
    /// without its text half.
    pub fn check_draft(&self, draft: &Self) -> Result<(), LoadError> {
        let (Some(ours), Some(theirs)) = (&self.tokenizer, &draft.tokenizer) else {
            return Err(LoadError::Tokenizer {
                reason: "it is not loaded".to_owned(),
            });
        };
        let rows = self.config.text.vocab.max(draft.config.text.vocab);
        let quoted = |piece: Option<String>| {
            piece.map_or_else(|| "nothing".to_owned(), |piece| format!("{piece:?}"))
        };
        match ours.first_difference(theirs, rows) {
            None => Ok(()),
            Some((id, expected, found)) => Err(LoadError::DraftVocabulary {
                id,
                found: quoted(found),
                expected: quoted(expected),
            }),
        }
    }

    /// Whether its device still computes, to be asked after a call that failed.
    pub fn computes(&self) -> bool {
        device::computes(&self.device)
    }

    /// Tokens that end an answer, ascending: those that the files name, and the ends of text and of turn.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Tokens that must not be sampled: the soft token, which stands for an image.
    pub fn forbidden_tokens(&self) -> &[u32] {
        &self.forbidden_tokens
    }

    /// [tokens per image, vision hidden] of image tokens; absent in text-only checkpoints.
    pub fn image_shape(&self) -> Option<[usize; 2]> {
        self.config
            .vision
            .as_ref()
            .map(|vision| [vision.tokens_per_image, vision.hidden])
    }

    /// One [`ImageTokens`] per frame, in order. Frames are resized to the model's size where needed.
    ///
    /// # Errors
    /// [`EncodeError::NotLoaded`] without the vision tower, [`EncodeError::NotFinite`] for tokens that are no numbers.
    pub fn encode(&self, frames: &[Frame]) -> Result<Vec<ImageTokens>, EncodeError> {
        let vision = self.vision.as_ref().ok_or(EncodeError::NotLoaded)?;
        frames.iter().map(|frame| vision.encode(frame)).collect()
    }

    /// The prompt of a conversation in Gemma 3's chat form, for `images` images.
    pub fn prompt(&self, messages: &[Message], images: usize) -> Result<Prompt, PromptError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(PromptError::Encode {
            reason: "the tokenizer is not loaded",
        })?;
        Prompt::build(
            tokenizer,
            messages,
            self.config.vision.as_ref().map(|v| v.tokens_per_image),
            images,
        )
    }

    /// A pool of key-value blocks for this model, in its dtype.
    pub fn kv_pool(&self, options: KvOptions) -> Result<KvPool, CacheError> {
        KvPool::new(&self.config.text, options, self.dtype, &self.device)
    }

    /// Bytes of keys and values per position, over all layers.
    pub fn kv_position_bytes(&self) -> usize {
        position_bytes(&self.config.text, self.dtype)
    }

    /// Computes a batch of chunks, each of another sequence, and stores their keys and values in `pool`.
    /// Returns the logits each chunk asked for, in the same order.
    ///
    /// # Errors
    /// [`ForwardError`]; nothing was computed unless it is `Backend`.
    pub fn forward(
        &self,
        pool: &mut KvPool,
        chunks: &[Chunk],
    ) -> Result<Vec<LogitRows>, ForwardError> {
        self.text
            .as_ref()
            .ok_or(ForwardError::NotLoaded)?
            .forward(pool, chunks)
    }

    #[cfg(test)]
    pub(crate) fn mutate(&mut self, mutations: crate::text::Mutations) {
        self.text.as_mut().unwrap().mutate(mutations);
    }

    #[cfg(test)]
    pub(crate) fn project(&self, tokens: &ImageTokens) -> candle_core::Tensor {
        self.text.as_ref().unwrap().project(tokens)
    }
}

/// The digests of what was loaded: remembered ones, or those that were computed, which are remembered now.
///
/// # Errors
/// Also where files changed meanwhile: then these are digests of something else.
fn settle_digests(
    memory: &Memory,
    known: Option<Digests>,
    computed: Option<Result<Digests, LoadError>>,
) -> Result<Digests, LoadError> {
    let computed = computed.transpose()?;
    memory.check()?;
    if let Some(computed) = &computed {
        memory.keep(computed);
    }
    // One of the two is there: what is not known is computed.
    Ok(known
        .or(computed)
        .expect("digests that were not remembered were computed"))
}

fn load_vision(
    weights: &Weights,
    config: &Config,
    options: LoadOptions,
    device: &Device,
) -> Result<Option<VisionTower>, LoadError> {
    match &config.vision {
        Some(vision) => {
            let scope = weights.part(Part::Vision, options.dtype, device);
            VisionTower::load(&scope, vision, options.dtype, device).map(Some)
        }
        // Asked for everything, a text-only checkpoint is complete without a tower.
        None if options.parts == Parts::All => Ok(None),
        None => Err(LoadError::NoVision),
    }
}

/// Vision tower and projector of an mmproj file or a folder: configuration, the tensors to take them from, and the settings with
/// those of this one.
fn open_vision(
    path: &Path,
    settings: Settings,
) -> Result<(VisionConfig, Weights, Settings), LoadError> {
    if path.is_dir() {
        let config = Config::read(path)?.vision.ok_or(LoadError::NoVision)?;
        let settings = settings.files(path, &settings::OF_FOLDER[..1])?;
        return Ok((config, Weights::open(path)?, settings));
    }
    let file = GgufFile::open(path)?;
    let config = crate::gguf::config::vision(&file)?;
    let swapped = crate::gguf::config::feed_forward_swapped(&file, &config);
    let settings = settings.metadata(&file.metadata);
    let mut weights = Weights::default();
    weights.add_gguf(file, false, |name| names::vision(name, swapped))?;
    Ok((config, weights, settings))
}

fn load_tokenizer(dir: &Path, config: &Config) -> Result<Tokenizer, LoadError> {
    chat_template::check(dir)?;
    let tokenizer = Tokenizer::load(dir, config.text.vocab, config.vision.is_some())?;
    if let (Some(markers), Some(stated)) = (tokenizer.special().image, config.image_token)
        && markers.soft != stated
    {
        let allowed = format!(
            "{}, the id of <image_soft_token> in tokenizer.json",
            markers.soft
        );
        return Err(LoadError::Config {
            field: "image_token_index",
            found: stated.to_string(),
            allowed,
        });
    }
    Ok(tokenizer)
}

fn load_text(
    weights: &Weights,
    config: &Config,
    dtype: Dtype,
    device: &Device,
) -> Result<TextTower, LoadError> {
    let images = match &config.vision {
        Some(vision) => {
            let scope = weights.part(Part::Projector, dtype, device);
            let projector = Projector::load(&scope, vision, &config.text, dtype, device)?;
            Some(projector)
        }
        None => None,
    };
    let scope = weights.part(Part::Text, dtype, device);
    TextTower::load(&scope, &config.text, images, device)
}

/// What the files say, and the ends of text and of turn: prompts are in the chat form, and behind the end of its turn the
/// model would write the user's next one, without a mark in the text.
fn stop_tokens(config: &Config, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    let mut tokens = config.stop_tokens.clone();
    if let Some(special) = tokenizer.map(Tokenizer::special) {
        tokens.extend([special.eos, special.end_of_turn]);
    }
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}
