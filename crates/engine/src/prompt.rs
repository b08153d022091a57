//! Tasks to prompts. The words are data, in `prompts/`, one file a version; this reads and fills them in.
//!
//! Gemma has no system role; its chat template puts the system text in front.

use std::sync::LazyLock;

use medfleet_model::{Constraint, Message, Role};

use crate::backend::EngineError;

mod data;

pub use data::Prompts;
pub use medfleet_model::Part;

/// The version of the prompts that is used unless another is asked for.
pub const PROMPT_VERSION: &str = "prompts-3";

static VERSIONS: LazyLock<Vec<Prompts>> = LazyLock::new(|| {
    let files = [
        include_str!("../prompts/1.toml"),
        include_str!("../prompts/2.toml"),
        include_str!("../prompts/3.toml"),
    ];
    let read = |file| Prompts::read(file).expect("a test reads these files, which are compiled in");
    files.into_iter().map(read).collect()
});

/// What the model is given: an optional system text and one user turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Put in front of the user's turn; empty for none.
    pub system: String,
    /// The turn, in order.
    pub parts: Vec<Part>,
}

/// What is asked, with the caller's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A report; the context may be empty.
    Report {
        /// Indication, history.
        clinical_context: String,
    },
    /// An answer to a question.
    Answer { question: String },
    /// Whether one label applies, yes or no.
    Classify { label: String },
    /// Boxes around what is asked for.
    Localise {
        /// What to look for.
        target: String,
    },
    /// A comparison of prior and current; the context may be empty.
    Compare {
        /// Indication, history.
        clinical_context: String,
    },
    /// A JSON value of a schema.
    Extract { json_schema: String },
}

/// How the images of a prompt belong together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Arrangement {
    /// Each on its own: radiographs, photographs, single slices.
    #[default]
    Apart,
    /// Slices of one CT or MR series, in order.
    Volume,
    /// Patches of one whole-slide image.
    Slide,
}

/// The images of a prompt, which its words follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Images {
    /// The DICOM modality of each, in order; empty where nothing says it.
    pub modalities: Vec<String>,
    /// How they belong together.
    pub arrangement: Arrangement,
}

impl Images {
    /// So many of one modality, each on its own; of none that is known where it is empty.
    pub fn of(modality: &str, count: usize) -> Self {
        Self {
            modalities: vec![modality.to_owned(); count],
            arrangement: Arrangement::Apart,
        }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.modalities.len()
    }
}

/// A question in the words of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What the model is given.
    pub prompt: Prompt,
    /// The form of the text, where the task has one.
    pub constraint: Option<Constraint>,
}

impl Question {
    /// In the words of [`PROMPT_VERSION`], without thinking.
    pub fn prompt(&self, images: &Images) -> Result<Asked, EngineError> {
        Prompts::current().ask(self, images, false)
    }

    /// The task's name in the data.
    const fn task(&self) -> &'static str {
        match self {
            Self::Report { .. } => "report",
            Self::Answer { .. } => "answer",
            Self::Classify { .. } => "classify",
            Self::Localise { .. } => "localise",
            Self::Compare { .. } => "compare",
            Self::Extract { .. } => "extract",
        }
    }

    /// The caller's words by the name that stands in braces in the data.
    fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Report { clinical_context } | Self::Compare { clinical_context } => {
                ("context", clinical_context.trim())
            }
            Self::Answer { question } => ("question", question.trim()),
            Self::Classify { label } => ("label", label.trim()),
            Self::Localise { target } => ("target", target.trim()),
            Self::Extract { json_schema } => ("schema", json_schema.trim()),
        }
    }
}

impl Prompts {
    /// The version that is used unless another is asked for.
    pub fn current() -> &'static Self {
        Self::of(PROMPT_VERSION).expect("a test finds this version")
    }

    /// A version by its name.
    pub fn of(version: &str) -> Option<&'static Self> {
        VERSIONS.iter().find(|prompts| prompts.version() == version)
    }

    /// The names of all versions, oldest first.
    pub fn versions() -> impl Iterator<Item = &'static str> {
        VERSIONS.iter().map(Self::version)
    }
}

impl Prompt {
    /// Images the prompt names.
    pub fn images(&self) -> usize {
        self.parts
            .iter()
            .filter(|part| matches!(part, Part::Image))
            .count()
    }

    /// The conversation that a model is shown.
    pub fn messages(&self) -> Vec<Message> {
        let mut messages = Vec::with_capacity(2);
        if !self.system.is_empty() {
            messages.push(Message {
                role: Role::System,
                parts: vec![Part::Text(self.system.clone())],
            });
        }
        messages.push(Message {
            role: Role::User,
            parts: self.parts.clone(),
        });
        messages
    }

    /// A form in which two different prompts are never equal: lengths in front of texts. For digests.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut push = |kind: u8, text: &str| {
            bytes.push(kind);
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        push(b's', &self.system);
        for part in &self.parts {
            match part {
                Part::Image => push(b'i', ""),
                Part::Text(text) => push(b't', text),
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
