//! Gemma 3's chat form, built token by token: control tokens by id, everything a user wrote as plain text.
//!
//! `{bos}<start_of_turn>user\n…<end_of_turn>\n<start_of_turn>model\n`; there is no system role, its text and a blank
//! line go before the first user turn. An image becomes `\n\n<start_of_image>`, its soft tokens, `<end_of_image>\n\n`.

use std::ops::Range;

use crate::error::PromptError;
use crate::tokenizer::Tokenizer;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions; only as the first message.
    System,
    /// The one who asks.
    User,
    /// The model's own earlier answer.
    Model,
}

/// A piece of a message.
#[derive(Clone, PartialEq, Eq)]
pub enum Part {
    /// Text as written; its ends are trimmed, as the chat template does.
    Text(String),
    /// The place of the next image.
    Image,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Prompts hold patient data and stay out of logs.
        f.write_str(match self {
            Self::Text(_) => "Text(..)",
            Self::Image => "Image",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    /// What is said and shown, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A user's turn: all images first, then the text.
    pub fn user(images: usize, text: impl Into<String>) -> Self {
        let mut parts = vec![Part::Image; images];
        parts.push(Part::Text(text.into()));
        Self {
            role: Role::User,
            parts,
        }
    }
}

/// A prompt as the model takes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Prompt {
    tokens: Vec<u32>,
    images: Vec<usize>,
    tokens_per_image: usize,
}

impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Token ids are the prompt's text in other words.
        let (tokens, images) = (self.tokens.len(), self.images.len());
        f.debug_struct("Prompt")
            .field("tokens", &tokens)
            .field("images", &images)
            .finish_non_exhaustive()
    }
}

impl Prompt {
    /// Builds the prompt of a conversation that ends with the user and awaits the model.
    ///
    /// `tokens_per_image` is nothing where the checkpoint takes no images; `images` is how many will be given.
    ///
    /// # Errors
    /// [`PromptError`]: images and their places differ, roles out of turn, an image in the system message.
    pub fn build(
        tokenizer: &Tokenizer,
        messages: &[Message],
        tokens_per_image: Option<usize>,
        images: usize,
    ) -> Result<Self, PromptError> {
        let placeholders = messages
            .iter()
            .flat_map(|m| &m.parts)
            .filter(|part| **part == Part::Image)
            .count();
        if placeholders != images {
            return Err(PromptError::ImageCount {
                images,
                placeholders,
            });
        }
        if placeholders > 0 && (tokens_per_image.is_none() || tokenizer.special().image.is_none()) {
            return Err(PromptError::NoVision { placeholders });
        }
        let (system, turns) = system_text(messages)?;
        let mut writer = Writer {
            tokenizer,
            text: String::new(),
            prompt: Self {
                tokens: Vec::new(),
                images: Vec::new(),
                tokens_per_image: tokens_per_image.unwrap_or(0),
            },
        };
        writer.control(tokenizer.special().bos)?;
        for (index, turn) in turns.iter().enumerate() {
            let expected = if index % 2 == 0 {
                Role::User
            } else {
                Role::Model
            };
            if turn.role != expected {
                return Err(PromptError::Turn {
                    index: index + messages.len() - turns.len(),
                });
            }
            writer.turn(turn, if index == 0 { &system } else { "" })?;
        }
        if turns.len().is_multiple_of(2) {
            return Err(if turns.is_empty() {
                PromptError::Empty
            } else {
                PromptError::Turn {
                    index: messages.len() - 1,
                }
            });
        }
        writer.control(tokenizer.special().start_of_turn)?;
        writer.text.push_str("model\n");
        writer.flush()?;
        Ok(writer.prompt)
    }

    /// A sequence that no conversation gives, for comparison with the reference.
    #[cfg(test)]
    pub(crate) const fn from_tokens(
        tokens: Vec<u32>,
        images: Vec<usize>,
        tokens_per_image: usize,
    ) -> Self {
        Self {
            tokens,
            images,
            tokens_per_image,
        }
    }

    /// Token ids, soft tokens where images stand.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Offset of each image's first soft token, in the order the images are to be given.
    pub fn images(&self) -> &[usize] {
        &self.images
    }

    /// The next stretch to prefill from `start`: at most `tokens_max` long unless a single image is longer, and never
    /// ending inside an image. Empty once `start` has reached the end.
    pub fn chunk(&self, start: usize, tokens_max: usize) -> Range<usize> {
        let runs = self.images.iter().copied();
        let runs = runs.map(|first| first..first + self.tokens_per_image);
        stretch(runs, self.tokens.len(), start, tokens_max)
    }
}

/// The next stretch of `len` tokens from `start`: at most `tokens_max` long, cutting none of the image `runs`, which come
/// in order; longer only where a single image is.
pub(crate) fn stretch(
    mut runs: impl Iterator<Item = Range<usize>>,
    len: usize,
    start: usize,
    tokens_max: usize,
) -> Range<usize> {
    let end = start.saturating_add(tokens_max.max(1)).min(len);
    match runs.find(|run| run.start < end && end < run.end) {
        Some(run) if run.start > start => start..run.start,
        Some(run) => start..run.end,
        None => start.min(end)..end,
    }
}

/// The system message's text with the blank line that ends it, and the turns after it.
fn system_text(messages: &[Message]) -> Result<(String, &[Message]), PromptError> {
    match messages {
        [first, turns @ ..] if first.role == Role::System => {
            let mut text = String::new();
            for part in &first.parts {
                match part {
                    Part::Text(piece) => text.push_str(piece),
                    Part::Image => return Err(PromptError::SystemImage),
                }
            }
            text.push_str("\n\n");
            Ok((text, turns))
        }
        turns => Ok((String::new(), turns)),
    }
}

/// Collects plain text until the next control token, because neighbouring pieces are encoded as one.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    text: String,
    prompt: Prompt,
}

impl Writer<'_> {
    fn turn(&mut self, turn: &Message, lead: &str) -> Result<(), PromptError> {
        let special = *self.tokenizer.special();
        self.control(special.start_of_turn)?;
        self.text.push_str(if turn.role == Role::Model {
            "model\n"
        } else {
            "user\n"
        });
        self.text.push_str(lead);
        for part in &turn.parts {
            match part {
                Part::Text(text) => self.text.push_str(text.trim()),
                Part::Image => self.image()?,
            }
        }
        self.control(special.end_of_turn)?;
        self.text.push('\n');
        Ok(())
    }

    fn image(&mut self) -> Result<(), PromptError> {
        let Some(markers) = self.tokenizer.special().image else {
            return Err(PromptError::NoVision { placeholders: 1 });
        };
        self.text.push_str("\n\n");
        self.control(markers.start)?;
        self.prompt.images.push(self.prompt.tokens.len());
        self.prompt.tokens.extend(std::iter::repeat_n(
            markers.soft,
            self.prompt.tokens_per_image,
        ));
        self.control(markers.end)?;
        self.text.push_str("\n\n");
        Ok(())
    }

    fn control(&mut self, id: u32) -> Result<(), PromptError> {
        self.flush()?;
        self.prompt.tokens.push(id);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), PromptError> {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.prompt.tokens.extend(self.tokenizer.encode(&text)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
