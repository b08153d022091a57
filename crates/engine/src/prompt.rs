//! Tasks to prompt text, by a versioned template: the words here are data, and a change of any of them is a new version.
//!
//! Images come first and the question last, the prior image before the current one: the order the model was trained with
//! (MedGemma technical reports 1 and 1.5). Gemma has no system role; its chat template puts the system text in front.

/// Version of the templates. It changes whenever a prompt could change.
pub const PROMPT_VERSION: &str = "prompts-1";

const RADIOLOGIST: &str = "You are an expert radiologist.";
const REPORT_ONE: &str = "Describe this X-ray.";
const REPORT_SEVERAL: &str = "Describe these X-rays of one study.";
const REPORT_FORM: &str = "Write a section that begins with \"Findings:\" and then a section that begins with \"Impression:\".";
const COMPARE: &str = "The first image is the prior examination, the second image is the current one. \
Compare the two: say what is new, what has improved, what has worsened and what is unchanged.";
const CONTEXT: &str = "Clinical context:";

/// A piece of a user turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The next image.
    Image,
    /// Text; never read as control tokens.
    Text(String),
}

/// What the model is given: an optional system text and one user turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Put in front of the user's turn; empty for none.
    pub system: String,
    /// The turn, images first.
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
    Answer {
        /// The question.
        question: String,
    },
    /// A comparison of prior and current; the context may be empty.
    Compare {
        /// Indication, history.
        clinical_context: String,
    },
}

impl Question {
    /// The prompt for this many images.
    #[must_use]
    pub fn prompt(&self, images: usize) -> Prompt {
        let (system, text) = match self {
            Self::Report { clinical_context } => {
                let ask = if images == 1 {
                    REPORT_ONE
                } else {
                    REPORT_SEVERAL
                };
                (
                    RADIOLOGIST,
                    with_context(clinical_context, &format!("{ask} {REPORT_FORM}")),
                )
            }
            Self::Answer { question } => {
                let system = if images == 0 { "" } else { RADIOLOGIST };
                (system, question.trim().to_owned())
            }
            Self::Compare { clinical_context } => {
                (RADIOLOGIST, with_context(clinical_context, COMPARE))
            }
        };
        let mut parts = vec![Part::Image; images];
        parts.push(Part::Text(text));
        Prompt {
            system: system.to_owned(),
            parts,
        }
    }
}

fn with_context(context: &str, ask: &str) -> String {
    match context.trim() {
        "" => ask.to_owned(),
        context => format!("{CONTEXT} {context}\n\n{ask}"),
    }
}

impl Prompt {
    /// Images the prompt names.
    #[must_use]
    pub fn images(&self) -> usize {
        self.parts
            .iter()
            .filter(|part| matches!(part, Part::Image))
            .count()
    }

    /// A form in which two different prompts are never equal: lengths in front of texts. For digests.
    #[must_use]
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
mod tests {
    use super::*;

    fn check(question: &Question, images: usize, system: &str, text: &str) {
        let prompt = question.prompt(images);
        assert_eq!(prompt.images(), images);
        assert_eq!(prompt.system, system);
        assert_eq!(prompt.parts.last(), Some(&Part::Text(text.to_owned())));
        assert_eq!(prompt.parts.len(), images + 1);
    }

    #[test]
    fn images_come_first_and_the_question_last() {
        let question = Question::Answer {
            question: " Is there an effusion?\n".to_owned(),
        };
        check(&question, 2, RADIOLOGIST, "Is there an effusion?");
        check(&question, 0, "", "Is there an effusion?");
    }

    #[test]
    fn context_stands_before_what_is_asked() {
        let compare = Question::Compare {
            clinical_context: "cough".to_owned(),
        };
        check(
            &compare,
            2,
            RADIOLOGIST,
            &format!("Clinical context: cough\n\n{COMPARE}"),
        );
        let report = Question::Report {
            clinical_context: "  ".to_owned(),
        };
        check(
            &report,
            1,
            RADIOLOGIST,
            &format!("{REPORT_ONE} {REPORT_FORM}"),
        );
    }

    #[test]
    fn different_prompts_have_different_bytes() {
        let one = Prompt {
            system: "ab".to_owned(),
            parts: vec![Part::Text("c".to_owned())],
        };
        let two = Prompt {
            system: "a".to_owned(),
            parts: vec![Part::Text("bc".to_owned())],
        };
        assert_ne!(one.canonical_bytes(), two.canonical_bytes());
    }
}
