//! The form of the files in `prompts/`, and how a question is filled in. What a file means is said in the newest one.

use std::collections::BTreeMap;

use medfleet_model::Constraint;
use serde::Deserialize;

use super::{Asked, ImageKind, Images, Part, Prompt, Question};
use crate::backend::EngineError;

/// The prompts of one version.
#[derive(Debug, Deserialize)]
pub struct Prompts {
    version: String,
    #[serde(default)]
    think: String,
    #[serde(flatten)]
    tasks: BTreeMap<String, Task>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    system: String,
    turn: Vec<Piece>,
    form: Option<Form>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    #[serde(default)]
    images: bool,
    #[serde(default)]
    after: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    when: Vec<When>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum When {
    #[serde(rename = "one image")]
    OneImage,
    #[serde(rename = "several images")]
    SeveralImages,
    #[serde(rename = "context")]
    Context,
    #[serde(rename = "pictures")]
    Pictures,
    #[serde(rename = "volume")]
    Volume,
    #[serde(rename = "slide")]
    Slide,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Form {
    Regex(String),
    Schema(String),
}

impl When {
    fn holds(self, images: Images, words: &str) -> bool {
        match self {
            Self::OneImage => images.count == 1,
            Self::SeveralImages => images.count > 1,
            Self::Context => !words.is_empty(),
            Self::Pictures => images.kind == ImageKind::Pictures,
            Self::Volume => images.kind == ImageKind::Volume,
            Self::Slide => images.kind == ImageKind::Slide,
        }
    }
}

impl Prompts {
    /// Reads a file.
    pub(super) fn read(file: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(file)
    }

    /// The version's name.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A question about images, in the words of this version; `think` lets the model think before it answers.
    ///
    /// # Errors
    /// [`EngineError::NoPrompt`] where this version does not have the task, or has no words for thinking.
    pub fn ask(
        &'static self,
        question: &Question,
        images: impl Into<Images>,
        think: bool,
    ) -> Result<Asked, EngineError> {
        let images = images.into();
        let missing = |task| EngineError::NoPrompt {
            version: &self.version,
            task,
        };
        let name = question.task();
        let task = self.tasks.get(name).ok_or_else(|| missing(name))?;
        if think && self.think.is_empty() {
            return Err(missing("think"));
        }
        // A question without images is not for a radiologist.
        let system = if images.count == 0 { "" } else { &task.system };
        let think = if think { self.think.as_str() } else { "" };
        let words = question.words();
        Ok(Asked {
            prompt: Prompt {
                system: format!("{think}{system}").trim().to_owned(),
                parts: task.parts(words, images),
            },
            constraint: task.form.as_ref().map(|form| match form {
                Form::Regex(regex) => Constraint::Regex(fill(regex, words, None)),
                Form::Schema(schema) => Constraint::JsonSchema(fill(schema, words, None)),
            }),
        })
    }
}

impl Task {
    fn parts(&self, words: (&str, &str), images: Images) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let flush = |text: &mut String, parts: &mut Vec<Part>| {
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(text)));
            }
        };
        let used = |piece: &&Piece| piece.when.iter().all(|when| when.holds(images, words.1));
        for piece in self.turn.iter().filter(used) {
            if piece.images {
                flush(&mut text, &mut parts);
                for slice in 1..=images.count {
                    parts.push(Part::Image);
                    let mut after = fill(&piece.after, words, Some(slice));
                    flush(&mut after, &mut parts);
                }
            }
            text.push_str(&fill(&piece.text, words, None));
        }
        flush(&mut text, &mut parts);
        parts
    }
}

/// Puts the caller's words, and the number of a slice, where the template names them; once, so that words in braces that
/// a caller wrote stay as they are.
fn fill(template: &str, (name, words): (&str, &str), slice: Option<usize>) -> String {
    let mut filled = String::with_capacity(template.len() + words.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let (before, after) = rest.split_at(open);
        filled.push_str(before);
        let inside = after.find('}').map(|close| &after[1..close]);
        match (inside, slice) {
            (Some("slice"), Some(slice)) => filled.push_str(&slice.to_string()),
            (Some(inside), _) if inside == name => filled.push_str(words),
            _ => {
                // A brace of the template's own, as in JSON.
                filled.push('{');
                rest = &after[1..];
                continue;
            }
        }
        rest = &after[inside.map_or(1, |inside| inside.len() + 2)..];
    }
    filled.push_str(rest);
    filled
}
