//! The error families of this crate, one per operation.
//! candle embeds backtraces in its messages, so its errors stop here: [`BackendError`] keeps the first line only.

/// What the tensor library said, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor computation failed: {message}")]
pub struct BackendError {
    /// The first line of the library's message; shapes and dtypes, never contents.
    pub message: String,
}

impl From<candle_core::Error> for BackendError {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        Self {
            message: text.lines().next().unwrap_or("no message").to_owned(),
        }
    }
}

/// A model folder that cannot be loaded. File and tensor names are those of the checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device is not there, or this build does not know it.
    #[error("cannot compute on {device}: {reason}")]
    Device {
        device: crate::ComputeDevice,
        reason: String,
    },
    #[error("cannot read {file}")]
    Read {
        file: String,
        source: std::io::Error,
    },
    /// A JSON file does not parse, or a value has the wrong type.
    #[error("{file} is not valid")]
    Json {
        file: String,
        source: serde_json::Error,
    },
    #[error("config.json: {field} is {found}, allowed is {allowed}")]
    Config {
        /// The key, dotted.
        field: &'static str,
        found: String,
        allowed: String,
    },
    #[error("{file} is not a complete safetensors file: {reason}")]
    Safetensors { file: String, reason: String },
    #[error("tensor {name} is missing, expected shape {expected:?}")]
    MissingTensor { name: String, expected: Vec<usize> },
    #[error("tensor {name} has shape {found:?} ({dtype}), expected {expected:?}")]
    TensorShape {
        name: String,
        expected: Vec<usize>,
        found: Vec<usize>,
        dtype: String,
    },
    #[error("tensor {name} {shape:?} is stored as {found}, allowed are F32 and BF16")]
    TensorDtype {
        name: String,
        shape: Vec<usize>,
        found: String,
    },
    #[error(
        "tensor {name} in {file} has values that are no numbers: the file is damaged, or was made wrongly; fetch the model anew"
    )]
    NotFinite { name: String, file: String },
    #[error(
        "tensor {name} has rows of {inputs} values, which are no blocks of {block}: it cannot be quantised"
    )]
    Blocks {
        name: String,
        inputs: usize,
        block: usize,
    },
    /// A quantised matrix without kernels of our own, in a dtype that the library does not multiply it with.
    #[error(
        "tensor {name} is held as {form}, which this device multiplies with f32 only; found dtype {dtype}"
    )]
    QuantisedDtype {
        name: String,
        form: &'static str,
        dtype: crate::Dtype,
    },
    /// A file of weights is another than when loading began: what was loaded may be of both.
    #[error(
        "files of weights in {place} changed while they were read: start again when they are complete"
    )]
    Changed {
        /// The folder or file.
        place: String,
    },
    /// Quantised rows that were kept differ from those that the model's files make, of which they were kept.
    #[error(
        "{file} was made of other weights than those of its digest, and was removed; start again, and fetch the model anew if this happens again"
    )]
    QuantisedCache { file: String },
    #[error("tokenizer.json cannot be used: {reason}")]
    Tokenizer { reason: String },
    #[error("tokenizer.json has no token {token}")]
    MissingToken { token: &'static str },
    #[error("tokenizer.json has the id {id_max}, but the embedding has only {rows} rows")]
    TokenizerTooLarge { id_max: u32, rows: usize },
    #[error(
        "the draft model has other tokens: id {id} is {found} there and {expected} in the model that it proposes for; take a Gemma 3 with the same tokenizer"
    )]
    DraftVocabulary {
        id: u32,
        /// Its text in the draft model, quoted, or `nothing`.
        found: String,
        expected: String,
    },
    #[error("the chat template in {file} lacks {marker}: prompts are built in Gemma 3's form only")]
    ChatTemplate {
        file: &'static str,
        marker: &'static str,
    },
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("this checkpoint has no vision tower")]
    NoVision,
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl LoadError {
    /// [`LoadError::Read`] of this file, by what the system said.
    pub(crate) fn unreadable(file: &str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Read {
            file: file.to_owned(),
            source,
        }
    }
}

/// A GGUF file that cannot be used. Names are those of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// Not GGUF, or inconsistent with itself.
    #[error("{file} is not a usable GGUF file: {reason}")]
    Format { file: String, reason: String },
    #[error("{file} is cut off: {what} needs {expected} bytes, the file has {found}")]
    Truncated {
        file: String,
        what: String,
        /// Bytes needed, from the start of the file.
        expected: usize,
        found: usize,
    },
    /// A metadata value is missing or one that is not computed.
    #[error("{file}: {key} is {found}, expected {expected}")]
    Metadata {
        file: String,
        key: String,
        found: String,
        expected: String,
    },
    #[error(
        "{file}: tensor {name} has ggml type {found}, allowed are F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K and Q6_K"
    )]
    TensorDtype {
        file: String,
        name: String,
        /// ggml's number of the type.
        found: u32,
    },
    /// A tensor that stands for a computation which is not done.
    #[error("{file}: tensor {name} is none of Gemma 3's")]
    UnknownTensor { file: String, name: String },
}

/// A picture the vision tower cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame side is {found} pixels, allowed are 1 to {max}")]
    Side { found: usize, max: usize },
    #[error("frame has {found} channels, allowed are 1 and 3")]
    Channels { found: usize },
    #[error("frame has {found} bytes, expected {expected}")]
    Bytes {
        /// side × side × channels.
        expected: usize,
        found: usize,
    },
}

/// Encoding frames failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the vision tower is not loaded")]
    NotLoaded,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(
        "the vision tower made values that are no numbers: its weights are damaged, or the device computed wrongly"
    )]
    NotFinite,
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Embedding a picture or a text failed. The text itself is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("the tokenizer failed on this text")]
    Tokenize,
    #[error(
        "the embedding is zero, or not all numbers: the weights are damaged, or the device computed wrongly"
    )]
    NotFinite,
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Image tokens that do not belong to this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageTokensError {
    #[error("image tokens have shape {found:?}, expected {expected:?}")]
    Shape {
        /// [tokens per image, vision hidden].
        expected: [usize; 2],
        found: [usize; 2],
    },
    #[error("image tokens are {found}, expected {expected}")]
    Dtype {
        /// The model's dtype.
        expected: crate::Dtype,
        found: crate::Dtype,
    },
    #[error("image tokens have {found} bytes, expected {expected}")]
    Bytes {
        /// tokens × hidden × bytes per element.
        expected: usize,
        found: usize,
    },
}

/// A prompt that cannot be built. The text itself is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    #[error("{images} images were given, but the prompt has {placeholders} places for images")]
    ImageCount { images: usize, placeholders: usize },
    #[error("the prompt has {placeholders} images, but this checkpoint is text only")]
    NoVision { placeholders: usize },
    #[error(
        "message {index} is out of turn: user and model alternate, user first, system only at the start"
    )]
    Turn { index: usize },
    #[error("the system message holds an image, allowed is text only")]
    SystemImage,
    #[error("the prompt has no user message")]
    Empty,
    /// The tokenizer failed, or plain text became a control token, which must not happen.
    #[error("the prompt cannot be encoded: {reason}")]
    Encode {
        /// Why, without the text.
        reason: &'static str,
    },
}

/// Key-value blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// No room now; others must finish first.
    #[error("{needed} key-value blocks are needed, {free} of {total} are free")]
    OutOfBlocks {
        /// Blocks still missing from the table.
        needed: usize,
        free: usize,
        total: usize,
    },
    #[error("a key-value budget of {budget_bytes} bytes holds no block of {block_bytes} bytes")]
    Budget {
        budget_bytes: usize,
        /// One block over all layers.
        block_bytes: usize,
    },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A batch that cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("the text tower is not loaded")]
    NotLoaded,
    #[error("chunk {chunk} is empty")]
    EmptyChunk {
        /// Which chunk of the batch.
        chunk: usize,
    },
    #[error("chunk {chunk} has the token id {id}, allowed are 0 to {max}")]
    TokenId { chunk: usize, id: u32, max: usize },
    #[error(
        "chunk {chunk} cuts an image at offset {offset}: an image's {tokens_per_image} tokens go in one chunk, with the image"
    )]
    CutImage {
        chunk: usize,
        offset: usize,
        tokens_per_image: usize,
    },
    /// The block table does not reach far enough, or is not of this pool.
    #[error("chunk {chunk} ends at position {end}, but its blocks hold {capacity} positions")]
    BlockTable {
        chunk: usize,
        /// One past the last position.
        end: usize,
        capacity: usize,
    },
    #[error("position {end} is beyond the model's context of {max} tokens")]
    Context {
        /// One past the last position.
        end: usize,
        max: usize,
    },
    #[error(transparent)]
    Image(#[from] ImageTokensError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Sampling values out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    #[error("{field} is {found}, allowed is {allowed}")]
    Parameter {
        field: &'static str,
        found: String,
        allowed: &'static str,
    },
    /// The model's output holds no usable number: a fault of weights or arithmetic, never of the prompt.
    #[error("the logits hold no finite value")]
    NotFinite,
}

/// A constraint on the text that cannot be enforced. Its own words are never repeated: a caller wrote them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("the JSON Schema is not JSON: {reason}")]
    Json {
        /// What, and at which line and column.
        reason: String,
    },
    #[error("the JSON Schema cannot be enforced: {reason}")]
    Schema {
        /// Which of its keywords, or why not.
        reason: String,
    },
    #[error("the regular expression cannot be enforced")]
    Regex,
    #[error("the vocabulary cannot be searched: {reason}")]
    Vocabulary { reason: String },
    #[error("the constraint on the text failed while it was written: {reason}")]
    Broken {
        /// Why, as a word of a closed list.
        reason: &'static str,
    },
}

/// A single request failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerateError {
    #[error("{images} images were given, but the prompt has {placeholders} places for images")]
    ImageCount { images: usize, placeholders: usize },
    #[error(
        "prompt of {prompt} tokens and up to {tokens_max} new ones exceed the model's context of {context}"
    )]
    Context {
        prompt: usize,
        tokens_max: usize,
        context: usize,
    },
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error(transparent)]
    StillThinking(#[from] StillThinking),
}

/// The text ended inside a thinking block: what was written is not an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model was still thinking when its text ended, so there is no answer; raise max_tokens"
)]
pub struct StillThinking;
