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
        /// Which.
        device: crate::ComputeDevice,
        /// Why.
        reason: String,
    },
    /// A file is missing or unreadable.
    #[error("cannot read {file}")]
    Read {
        /// Which file of the folder.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A JSON file does not parse, or a value has the wrong type.
    #[error("{file} is not valid")]
    Json {
        /// Which file of the folder.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A configuration value this implementation does not compute.
    #[error("config.json: {field} is {found}, allowed is {allowed}")]
    Config {
        /// The key, dotted.
        field: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// A safetensors file is truncated or inconsistent.
    #[error("{file} is not a complete safetensors file: {reason}")]
    Safetensors {
        /// Which file of the folder.
        file: String,
        /// What the format check said.
        reason: String,
    },
    /// A tensor is absent.
    #[error("tensor {name} is missing, expected shape {expected:?}")]
    MissingTensor {
        /// Full name in the checkpoint's own scheme.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape.
    #[error("tensor {name} has shape {found:?} ({dtype}), expected {expected:?}")]
    TensorShape {
        /// Full name in the checkpoint's own scheme.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
        /// Its stored dtype.
        dtype: String,
    },
    /// A tensor is stored in a dtype that is not read.
    #[error("tensor {name} {shape:?} is stored as {found}, allowed are F32 and BF16")]
    TensorDtype {
        /// Full name in the checkpoint's own scheme.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its stored dtype.
        found: String,
    },
    /// A tensor has values that are no numbers: whatever was computed with it would be none.
    #[error(
        "tensor {name} in {file} has values that are no numbers: the file is damaged, or was made wrongly; fetch the model anew"
    )]
    NotFinite {
        /// Full name in the checkpoint's own scheme.
        name: String,
        /// Which file.
        file: String,
    },
    /// A matrix that cannot be quantised: its rows are no whole blocks.
    #[error(
        "tensor {name} has rows of {inputs} values, which are no blocks of {block}: it cannot be quantised"
    )]
    Blocks {
        /// Full name in the checkpoint's own scheme.
        name: String,
        /// Values of a row.
        inputs: usize,
        /// Values of a block.
        block: usize,
    },
    /// A quantised matrix without kernels of our own, in a dtype that the library does not multiply it with.
    #[error(
        "tensor {name} is held as {form}, which this device multiplies with f32 only; found dtype {dtype}"
    )]
    QuantisedDtype {
        /// Full name in the checkpoint's own scheme.
        name: String,
        /// The form that it is held in.
        form: &'static str,
        /// What the model computes in.
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
    QuantisedCache {
        /// The file with the rows.
        file: String,
    },
    /// tokenizer.json does not parse or is of another kind.
    #[error("tokenizer.json cannot be used: {reason}")]
    Tokenizer {
        /// Why, in one line.
        reason: String,
    },
    /// A token that the prompt format needs does not exist.
    #[error("tokenizer.json has no token {token}")]
    MissingToken {
        /// Its text.
        token: &'static str,
    },
    /// The tokenizer can produce ids that have no embedding row.
    #[error("tokenizer.json has the id {id_max}, but the embedding has only {rows} rows")]
    TokenizerTooLarge {
        /// The largest token id.
        id_max: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A second model, which is to propose tokens for another one, has other tokens.
    #[error(
        "the draft model has other tokens: id {id} is {found} there and {expected} in the model that it proposes for; take a Gemma 3 with the same tokenizer"
    )]
    DraftVocabulary {
        /// The first id that differs.
        id: u32,
        /// Its text in the draft model, quoted, or `nothing`.
        found: String,
        /// Its text in the model.
        expected: String,
    },
    /// The folder's chat template is not Gemma 3's form.
    #[error("the chat template in {file} lacks {marker}: prompts are built in Gemma 3's form only")]
    ChatTemplate {
        /// Which file.
        file: &'static str,
        /// The marker that was looked for.
        marker: &'static str,
    },
    /// A GGUF file that cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The vision part was asked for, and the checkpoint is text only.
    #[error("this checkpoint has no vision tower")]
    NoVision,
    /// The tensor library failed.
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
    Format {
        /// Which file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The file ends too early.
    #[error("{file} is cut off: {what} needs {expected} bytes, the file has {found}")]
    Truncated {
        /// Which file.
        file: String,
        /// What was being read.
        what: String,
        /// Bytes needed, from the start of the file.
        expected: usize,
        /// Bytes of the file.
        found: usize,
    },
    /// A metadata value is missing or one that is not computed.
    #[error("{file}: {key} is {found}, expected {expected}")]
    Metadata {
        /// Which file.
        file: String,
        /// The key.
        key: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A tensor is stored in a type that is not read.
    #[error(
        "{file}: tensor {name} has ggml type {found}, allowed are F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K and Q6_K"
    )]
    TensorDtype {
        /// Which file.
        file: String,
        /// The tensor's name in the file.
        name: String,
        /// ggml's number of the type.
        found: u32,
    },
    /// A tensor that stands for a computation which is not done.
    #[error("{file}: tensor {name} is none of Gemma 3's")]
    UnknownTensor {
        /// Which file.
        file: String,
        /// The tensor's name in the file.
        name: String,
    },
}

/// A picture the vision tower cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Side out of range.
    #[error("frame side is {found} pixels, allowed are 1 to {max}")]
    Side {
        /// Side in pixels.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Neither grey nor colour.
    #[error("frame has {found} channels, allowed are 1 and 3")]
    Channels {
        /// Channels found.
        found: usize,
    },
    /// Too few or too many bytes.
    #[error("frame has {found} bytes, expected {expected}")]
    Bytes {
        /// side × side × channels.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
}

/// Encoding frames failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The vision part was not loaded.
    #[error("the vision tower is not loaded")]
    NotLoaded,
    /// One of the frames is unusable.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came out is not all numbers.
    #[error(
        "the vision tower made values that are no numbers: its weights are damaged, or the device computed wrongly"
    )]
    NotFinite,
    /// The tensor library failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Embedding a picture or a text failed. The text itself is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// The picture cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The tokenizer failed.
    #[error("the tokenizer failed on this text")]
    Tokenize,
    /// What came out has no direction.
    #[error(
        "the embedding is zero, or not all numbers: the weights are damaged, or the device computed wrongly"
    )]
    NotFinite,
    /// The tensor library failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Image tokens that do not belong to this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageTokensError {
    /// Another shape.
    #[error("image tokens have shape {found:?}, expected {expected:?}")]
    Shape {
        /// [tokens per image, vision hidden].
        expected: [usize; 2],
        /// What was declared.
        found: [usize; 2],
    },
    /// Another dtype.
    #[error("image tokens are {found}, expected {expected}")]
    Dtype {
        /// The model's dtype.
        expected: crate::Dtype,
        /// What was declared.
        found: crate::Dtype,
    },
    /// The bytes do not fill the declared shape.
    #[error("image tokens have {found} bytes, expected {expected}")]
    Bytes {
        /// tokens × hidden × bytes per element.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
}

/// A prompt that cannot be built. The text itself is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Images given and places for them differ.
    #[error("{images} images were given, but the prompt has {placeholders} places for images")]
    ImageCount {
        /// Images given.
        images: usize,
        /// Places in the messages.
        placeholders: usize,
    },
    /// Images in a prompt of a text-only model.
    #[error("the prompt has {placeholders} images, but this checkpoint is text only")]
    NoVision {
        /// Places in the messages.
        placeholders: usize,
    },
    /// Roles do not alternate.
    #[error(
        "message {index} is out of turn: user and model alternate, user first, system only at the start"
    )]
    Turn {
        /// Which message.
        index: usize,
    },
    /// The system message holds an image.
    #[error("the system message holds an image, allowed is text only")]
    SystemImage,
    /// Nothing to say.
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
        /// Blocks free.
        free: usize,
        /// Blocks of the pool.
        total: usize,
    },
    /// The budget holds not even one block.
    #[error("a key-value budget of {budget_bytes} bytes holds no block of {block_bytes} bytes")]
    Budget {
        /// The budget.
        budget_bytes: usize,
        /// One block over all layers.
        block_bytes: usize,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A batch that cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The text part was not loaded.
    #[error("the text tower is not loaded")]
    NotLoaded,
    /// A chunk with no tokens.
    #[error("chunk {chunk} is empty")]
    EmptyChunk {
        /// Which chunk of the batch.
        chunk: usize,
    },
    /// A token id without an embedding.
    #[error("chunk {chunk} has the token id {id}, allowed are 0 to {max}")]
    TokenId {
        /// Which chunk of the batch.
        chunk: usize,
        /// The id.
        id: u32,
        /// The largest id.
        max: usize,
    },
    /// An image's run of soft tokens is not whole in the chunk.
    #[error(
        "chunk {chunk} cuts an image at offset {offset}: an image's {tokens_per_image} tokens go in one chunk, with the image"
    )]
    CutImage {
        /// Which chunk of the batch.
        chunk: usize,
        /// Offset within the chunk.
        offset: usize,
        /// Soft tokens of one image.
        tokens_per_image: usize,
    },
    /// The block table does not reach far enough, or is not of this pool.
    #[error("chunk {chunk} ends at position {end}, but its blocks hold {capacity} positions")]
    BlockTable {
        /// Which chunk of the batch.
        chunk: usize,
        /// One past the last position.
        end: usize,
        /// Positions held.
        capacity: usize,
    },
    /// Beyond the model's context.
    #[error("position {end} is beyond the model's context of {max} tokens")]
    Context {
        /// One past the last position.
        end: usize,
        /// The limit.
        max: usize,
    },
    /// The image tokens are not this model's.
    #[error(transparent)]
    Image(#[from] ImageTokensError),
    /// The tensor library failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Sampling values out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A parameter out of range.
    #[error("{field} is {found}, allowed is {allowed}")]
    Parameter {
        /// Which parameter.
        field: &'static str,
        /// What was given.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The model's output holds no usable number: a fault of weights or arithmetic, never of the prompt.
    #[error("the logits hold no finite value")]
    NotFinite,
}

/// A constraint on the text that cannot be enforced. Its own words are never repeated: a caller wrote them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The schema is not JSON.
    #[error("the JSON Schema is not JSON: {reason}")]
    Json {
        /// What, and at which line and column.
        reason: String,
    },
    /// The schema is JSON and cannot be enforced.
    #[error("the JSON Schema cannot be enforced: {reason}")]
    Schema {
        /// Which of its keywords, or why not.
        reason: String,
    },
    /// The regular expression cannot be enforced.
    #[error("the regular expression cannot be enforced")]
    Regex,
    /// The vocabulary cannot be used to enforce anything.
    #[error("the vocabulary cannot be searched: {reason}")]
    Vocabulary {
        /// Why.
        reason: String,
    },
    /// The text ran into a state in which no token is allowed.
    #[error("the constraint on the text failed while it was written: {reason}")]
    Broken {
        /// Why, as a word of a closed list.
        reason: &'static str,
    },
}

/// A single request failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// Images given and places for them differ.
    #[error("{images} images were given, but the prompt has {placeholders} places for images")]
    ImageCount {
        /// Images given.
        images: usize,
        /// Places in the prompt.
        placeholders: usize,
    },
    /// Prompt and answer do not fit the context.
    #[error(
        "prompt of {prompt} tokens and up to {tokens_max} new ones exceed the model's context of {context}"
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        tokens_max: usize,
        /// The limit.
        context: usize,
    },
    /// The model's arithmetic failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// No room for keys and values.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Sampling failed.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// There is no answer.
    #[error(transparent)]
    StillThinking(#[from] StillThinking),
}

/// The text ended inside a thinking block: what was written is not an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model was still thinking when its text ended, so there is no answer; raise max_tokens"
)]
pub struct StillThinking;
