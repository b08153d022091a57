//! The form of the files in `prompts/`, and how a question is filled in. What a file means is said in the newest one.

use std::collections::BTreeMap;

use medfleet_model::Constraint;
use serde::Deserialize;

use super::{Arrangement, Asked, Images, Part, Prompt, Question};
use crate::backend::EngineError;

/// The prompts of one version.
#[derive(Debug, Deserialize)]
pub struct Prompts {
    version: String,
    #[serde(default)]
    think: String,
    kinds: Option<Kinds>,
    #[serde(flatten)]
    tasks: BTreeMap<String, Task>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    #[serde(default)]
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
    // As the versions before the third tell images apart.
    #[serde(rename = "pictures")]
    Pictures,
    #[serde(rename = "slide")]
    Slide,
    #[serde(rename = "apart")]
    Apart,
    #[serde(rename = "volume")]
    Volume,
    #[serde(rename = "patches")]
    Patches,
}

#[derive(Debug, Deserialize)]
struct Kinds {
    /// Where nothing says it.
    unknown: Kind,
    /// Where they are of several.
    mixed: Kind,
    #[serde(flatten)]
    known: BTreeMap<String, Kind>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    #[serde(default)]
    modalities: Vec<String>,
    system: String,
    image: String,
    images: String,
    listed: String,
    #[serde(default)]
    shown_one: String,
    #[serde(default)]
    shown_several: String,
    #[serde(default)]
    volume: String,
}

/// The words of some images' kind.
#[derive(Debug, Default)]
struct Shown<'a> {
    system: &'a str,
    /// By the name that stands in braces.
    names: Vec<(&'static str, String)>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Form {
    Regex(String),
    Schema(String),
}

impl When {
    fn holds(self, images: &Images, words: &str) -> bool {
        let is_volume = images.arrangement == Arrangement::Volume;
        let are_of_slides =
            images.count() > 0 && images.modalities.iter().all(|modality| modality == "SM");
        match self {
            Self::OneImage => images.count() == 1,
            Self::SeveralImages => images.count() > 1,
            Self::Context => !words.is_empty(),
            Self::Pictures => !is_volume && !are_of_slides,
            Self::Slide => are_of_slides,
            Self::Apart => images.arrangement == Arrangement::Apart,
            Self::Volume => is_volume,
            Self::Patches => images.arrangement == Arrangement::Slide,
        }
    }
}

impl Kinds {
    fn of(&self, modality: &str) -> &Kind {
        let mut known = self.known.values();
        let found = known.find(|kind| kind.modalities.iter().any(|one| one == modality));
        found.unwrap_or(&self.unknown)
    }

    fn shown(&self, images: &Images) -> Shown<'_> {
        let modalities = images.modalities.iter();
        let each: Vec<&Kind> = modalities.map(|modality| self.of(modality)).collect();
        let first = each.first().copied().unwrap_or(&self.unknown);
        let kind = if each.iter().all(|kind| std::ptr::eq(*kind, first)) {
            first
        } else {
            &self.mixed
        };
        let system = if each.iter().all(|kind| kind.system == first.system) {
            &first.system
        } else {
            &kind.system
        };
        let listed: Vec<&str> = each.iter().map(|kind| kind.listed.as_str()).collect();
        let listed = listed.join(", ");
        let list = |template: &str| fill(template, &[("list", listed.as_str())]);
        let shown = match images.count() {
            0 => String::new(),
            1 => kind.shown_one.clone(),
            _ => list(&kind.shown_several),
        };
        Shown {
            system,
            names: vec![
                ("image", kind.image.clone()),
                ("images", list(&kind.images)),
                ("shown", shown),
                ("volume", kind.volume.clone()),
            ],
        }
    }
}

impl Prompts {
    pub(super) fn read(file: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(file)
    }

    /// The version's name.
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
        images: &Images,
        think: bool,
    ) -> Result<Asked, EngineError> {
        let missing = |task| EngineError::NoPrompt {
            version: &self.version,
            task,
        };
        let name = question.task();
        let task = self.tasks.get(name).ok_or_else(|| missing(name))?;
        if think && self.think.is_empty() {
            return Err(missing("think"));
        }
        let kinds = self.kinds.as_ref();
        let shown = kinds.map(|kinds| kinds.shown(images)).unwrap_or_default();
        let system = match (images.count(), task.system.as_str()) {
            // A question without images is not for a radiologist.
            (0, _) => "",
            (_, "") => shown.system,
            (_, own) => own,
        };
        let think = if think { self.think.as_str() } else { "" };
        let words = question.words();
        let form = |template: &str| fill(template, &[words]);
        Ok(Asked {
            prompt: Prompt {
                system: format!("{think}{system}").trim().to_owned(),
                parts: task.parts(words, images, &shown),
            },
            constraint: task.form.as_ref().map(|found| match found {
                Form::Regex(regex) => Constraint::Regex(form(regex)),
                Form::Schema(schema) => Constraint::JsonSchema(form(schema)),
            }),
        })
    }
}

impl Task {
    fn parts(&self, words: (&str, &str), images: &Images, shown: &Shown<'_>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let flush = |text: &mut String, parts: &mut Vec<Part>| {
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(text)));
            }
        };
        let names = shown.names.iter();
        let names = names.map(|(name, words)| (*name, words.as_str()));
        let names: Vec<(&str, &str)> = names.chain([words]).collect();
        let used = |piece: &&Piece| piece.when.iter().all(|when| when.holds(images, words.1));
        for piece in self.turn.iter().filter(used) {
            if piece.images {
                flush(&mut text, &mut parts);
                for slice in 1..=images.count() {
                    parts.push(Part::Image);
                    let number = slice.to_string();
                    let mut after = fill(&piece.after, &[("slice", number.as_str())]);
                    flush(&mut after, &mut parts);
                }
            }
            text.push_str(&fill(&piece.text, &names));
        }
        flush(&mut text, &mut parts);
        parts
    }
}

/// Puts words where the template names them; once, so that words in braces that a caller wrote stay as they are.
fn fill(template: &str, names: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let (before, after) = rest.split_at(open);
        filled.push_str(before);
        let inside = after.find('}').map(|close| &after[1..close]);
        let named = inside.and_then(|inside| names.iter().find(|(name, _)| *name == inside));
        if let Some((name, words)) = named {
            filled.push_str(words);
            rest = &after[name.len() + 2..];
        } else {
            // A brace of the template's own, as in JSON.
            filled.push('{');
            rest = &after[1..];
        }
    }
    filled.push_str(rest);
    filled
}
