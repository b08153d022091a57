//! Gemma's tokenizer: text to ids without ever letting text become a control token, and ids back to text as a stream.
//! All special ids come from tokenizer.json; none is written into the code.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Tokenizer as Library};

use crate::error::{ConstraintError, LoadError, PromptError, StillThinking};
use crate::guide::Guides;

/// Stands for one vector of an image.
const SOFT_TOKEN: &str = "<image_soft_token>";

/// Ids of the tokens that the prompt format is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `<bos>`
    pub bos: u32,
    /// `<eos>`
    pub eos: u32,
    /// `<start_of_turn>`
    pub start_of_turn: u32,
    /// `<end_of_turn>`
    pub end_of_turn: u32,
    /// The image tokens, where the checkpoint takes images.
    pub image: Option<ImageMarkers>,
    /// `<unused94>`, which opens a thinking block, where it exists.
    pub thinking_open: Option<u32>,
    /// `<unused95>`, which closes it.
    pub thinking_close: Option<u32>,
}

/// Ids around and in the place of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageMarkers {
    /// `<start_of_image>`
    pub start: u32,
    /// `<end_of_image>`
    pub end: u32,
    /// `<image_soft_token>`, repeated once per image token.
    pub soft: u32,
}

/// A loaded tokenizer.
pub struct Tokenizer {
    library: Library,
    special: SpecialTokens,
    control: HashSet<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of `dir`; its ids must have rows in an embedding of `rows`.
    pub fn load(dir: &Path, rows: usize, with_images: bool) -> Result<Self, LoadError> {
        let text = crate::config::read(dir, "tokenizer.json")?;
        Self::parse(&text, rows, with_images)
    }

    /// The same from the file's text.
    pub fn parse(json: &str, rows: usize, with_images: bool) -> Result<Self, LoadError> {
        let library = Library::from_bytes(json.as_bytes()).map_err(|error| {
            let text = error.to_string();
            LoadError::Tokenizer {
                reason: text.lines().next().unwrap_or("does not parse").to_owned(),
            }
        })?;
        Self::new(library, rows, with_images)
    }

    /// From the library's own form, whichever file that came from.
    pub(crate) fn new(
        mut library: Library,
        rows: usize,
        with_images: bool,
    ) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::Tokenizer { reason };
        match library.get_model() {
            ModelWrapper::BPE(bpe) if bpe.byte_fallback => (),
            _ => {
                return Err(refuse(
                    "model is of another kind, allowed is BPE with byte fallback".to_owned(),
                ));
            }
        }
        library.with_padding(None);
        library
            .with_truncation(None)
            .map_err(|error| refuse(error.to_string()))?;
        let added = library.get_added_tokens_decoder();
        let names = added
            .values()
            .filter(|token| token.special || is_control(&token.content));
        let special: Vec<AddedToken> = names.map(|token| token.clone().special(true)).collect();
        let control = added
            .iter()
            .filter(|(_, t)| t.special || is_control(&t.content))
            .map(|(id, _)| *id)
            .collect();
        // Control tokens marked as special are skipped in text: from here on the text "<end_of_turn>" is eight
        // characters and more, not a turn's end. The file marks the thinking tokens as ordinary, so they are added.
        library
            .add_special_tokens(special)
            .map_err(|error| refuse(error.to_string()))?;
        library.set_encode_special_tokens(true);
        // An image's soft token is never looked up: text-only checkpoints and GGUF files have no row for it.
        let mut vocab = library.get_vocab(true);
        vocab.remove(SOFT_TOKEN);
        let id_max = vocab.into_values().max().unwrap_or(0);
        if id_max as usize >= rows {
            return Err(LoadError::TokenizerTooLarge { id_max, rows });
        }
        Ok(Self {
            special: resolve(&library, with_images)?,
            library,
            control,
        })
    }

    /// Ids of the prompt format.
    pub const fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Whether a token is part of the format rather than of the text.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.contains(&id)
    }

    /// The id of a token by its exact text, for tests and tools.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// The first id below `rows` that stands for another text in `other`, with the text here and there. An image's soft token
    /// and rows that only fill up a vocabulary (llama.cpp's `[PAD…]`) count as no text.
    pub(crate) fn first_difference(
        &self,
        other: &Self,
        rows: usize,
    ) -> Option<(u32, Option<String>, Option<String>)> {
        let piece = |tokenizer: &Self, id: u32| {
            let piece = tokenizer.library.id_to_token(id);
            piece.filter(|piece| piece != SOFT_TOKEN && !piece.starts_with("[PAD"))
        };
        // The vocabulary is far below 2³².
        (0..rows as u32).find_map(|id| {
            let (ours, theirs) = (piece(self, id), piece(other, id));
            (ours != theirs).then_some((id, ours, theirs))
        })
    }

    /// Plain text to ids. Whatever it says, no id of the result is a control token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let encoding = self
            .library
            .encode_fast(text, false)
            .map_err(|_| PromptError::Encode {
                reason: "the tokenizer failed on this text",
            })?;
        let ids = encoding.get_ids();
        if ids.iter().any(|id| self.is_control(*id)) {
            return Err(PromptError::Encode {
                reason: "the tokenizer makes control tokens from plain text",
            });
        }
        Ok(ids.to_vec())
    }

    /// All ids to text at once; control tokens and thinking leave nothing, even where the thinking never ends.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = Detokenizer::default();
        let mut text = String::new();
        for id in ids {
            text.push_str(&stream.push(self, *id).unwrap_or_default());
        }
        text.push_str(&stream.finish().unwrap_or_default());
        text
    }

    /// The vocabulary with `rows` tokens, prepared for text that must have a form and ends with `end`.
    pub fn guides(&self, rows: usize, end: u32) -> Result<Guides, ConstraintError> {
        // The vocabulary is far below 2³².
        Guides::new((0..rows as u32).map(|id| self.bytes(id)).collect(), end)
    }

    /// The bytes a token stands for; none for control tokens and for rows past the vocabulary.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        if self.is_control(id) {
            return Vec::new();
        }
        match self.library.id_to_token(id) {
            // Rows past the tokenizer have no text.
            None => Vec::new(),
            Some(piece) => match fallback_byte(&piece) {
                Some(byte) => vec![byte],
                None => piece.replace('\u{2581}', " ").into_bytes(),
            },
        }
    }
}

/// Tokens to text, one at a time: bytes are held back until they make whole characters, and what the model thinks
/// before it answers is left out.
#[derive(Debug, Default, Clone)]
pub struct Detokenizer {
    pending: Vec<u8>,
    /// Between the tokens that open and close thinking.
    thinking: bool,
}

impl Detokenizer {
    /// The text that `id` completes; may be empty. Bytes that can never become a character give U+FFFD.
    /// `None` for a token that is no part of the answer: one inside a thinking block, and those that open and close it.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Option<String> {
        let special = tokenizer.special();
        let (open, close) = (special.thinking_open, special.thinking_close);
        if self.thinking || open == Some(id) || close == Some(id) {
            // An unfinished character stays unfinished: nothing is joined across a thinking block.
            self.pending.clear();
            self.thinking = open == Some(id) || (self.thinking && close != Some(id));
            return None;
        }
        self.pending.extend(tokenizer.bytes(id));
        Some(self.take(false))
    }

    /// What is left when no token follows: at most one U+FFFD.
    ///
    /// # Errors
    /// [`StillThinking`] inside a thinking block: the answer has not begun, or was interrupted.
    pub fn finish(&mut self) -> Result<String, StillThinking> {
        if self.thinking {
            return Err(StillThinking);
        }
        Ok(self.take(true))
    }

    fn take(&mut self, last: bool) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[length..];
                        }
                        None if last => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &[];
                            break;
                        }
                        None => {
                            rest = after;
                            break;
                        }
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}

/// Names of control tokens, whether or not the file marks them as special.
fn is_control(content: &str) -> bool {
    let unused = content
        .strip_prefix("<unused")
        .and_then(|rest| rest.strip_suffix('>'));
    unused.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        || matches!(
            content,
            "<pad>"
                | "<eos>"
                | "<bos>"
                | "<unk>"
                | "<mask>"
                | "<start_of_turn>"
                | "<end_of_turn>"
                | "<start_of_image>"
                | "<end_of_image>"
                | "<image_soft_token>"
                | "[multimodal]"
        )
}

/// `<0x0A>` → 10.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    // Two digits exactly; a parse failure means that this is an ordinary piece.
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

fn resolve(library: &Library, with_images: bool) -> Result<SpecialTokens, LoadError> {
    let need = |token| {
        library
            .token_to_id(token)
            .ok_or(LoadError::MissingToken { token })
    };
    let image = || {
        Ok::<_, LoadError>(ImageMarkers {
            start: need("<start_of_image>")?,
            end: need("<end_of_image>")?,
            soft: need(SOFT_TOKEN)?,
        })
    };
    Ok(SpecialTokens {
        bos: need("<bos>")?,
        eos: need("<eos>")?,
        start_of_turn: need("<start_of_turn>")?,
        end_of_turn: need("<end_of_turn>")?,
        image: if with_images { Some(image()?) } else { None },
        thinking_open: library.token_to_id("<unused94>"),
        thinking_close: library.token_to_id("<unused95>"),
    })
}

#[cfg(test)]
mod tests;
