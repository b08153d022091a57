//! The closed sets that work is sorted by: class, stage, task, given modality, blob kind. Each has one text form, used on every
//! border.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A text that is none of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what}; allowed: {allowed}")]
pub struct UnknownWord {
    /// Which set.
    pub what: &'static str,
    pub allowed: String,
}

/// An enum of words: its members in order, the one text form of each, and back.
#[macro_export]
macro_rules! closed_set {
    ($(#[$doc:meta])* $vis:vis enum $name:ident, $what:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every member, in order.
            $vis const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The one text form.
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::UnknownWord;
            fn from_str(text: &str) -> ::std::result::Result<Self, $crate::UnknownWord> {
                Self::ALL.iter().copied().find(|member| member.as_str() == text).ok_or_else(|| $crate::UnknownWord {
                    what: $what,
                    allowed: Self::ALL.iter().map(|member| member.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

closed_set!(
    /// How soon work matters; the order of the variants is the order of service.
    pub enum Class, "class", {
        /// A patient waits.
        Stat = "stat",
        /// Soon.
        Urgent = "urgent",
        /// The normal reading list.
        Routine = "routine",
        /// Whenever there is time.
        Bulk = "bulk",
    }
);

/// For tables of settings that have an entry for each.
impl JsonSchema for Class {
    fn schema_name() -> Cow<'static, str> {
        "Class".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<&str> = Self::ALL.iter().map(|class| class.as_str()).collect();
        json_schema!({ "type": "string", "enum": words })
    }
}

closed_set!(
    /// A stage that takes units of work from the queue.
    pub enum Stage, "stage", {
        /// Study blobs to frames.
        Preprocess = "preprocess",
        /// Frames to image tokens, in chunks.
        Encode = "encode",
        /// Image tokens and prompt to text.
        Decode = "decode",
    }
);

closed_set!(
    /// What a job is asked to do.
    pub enum TaskKind, "task", {
        /// Draft a report.
        Report = "report",
        /// Answer a question.
        Answer = "answer",
        /// Say which labels apply.
        Classify = "classify",
        /// Draw boxes.
        Localise = "localise",
        /// Compare prior and current.
        Compare = "compare",
        /// Extract fields as JSON.
        Extract = "extract",
        /// Image embeddings.
        Embed = "embed",
        /// Scores of texts for an image.
        ZeroShot = "zero-shot",
    }
);

closed_set!(
    /// What a caller may say that an input shows, as DICOM calls it: what volumes are without, and what prompts have words for.
    pub enum GivenModality, "modality", {
        /// Computed tomography.
        Ct = "CT",
        /// Magnetic resonance.
        Mr = "MR",
        /// Computed radiography.
        Cr = "CR",
        /// Digital radiography.
        Dx = "DX",
        /// Mammography.
        Mg = "MG",
        /// Ultrasound.
        Us = "US",
        /// External-camera photography.
        Xc = "XC",
        /// Ophthalmic photography.
        Op = "OP",
        /// Ophthalmic tomography.
        Opt = "OPT",
        /// Endoscopy.
        Es = "ES",
        /// General microscopy.
        Gm = "GM",
        /// Dermoscopy.
        Dms = "DMS",
        /// Slide microscopy.
        Sm = "SM",
        /// Digital microscopy, a retired word for general microscopy.
        Dm = "DM",
    }
);

closed_set!(
    /// What a blob holds; the second segment of its name.
    pub enum BlobKind, "blob kind", {
        /// A part of a submitted file.
        Input = "input",
        /// What was submitted: inputs, task, decoding parameters.
        Study = "study",
        /// Model-ready pixels.
        Frame = "frame",
        /// What preprocessing made of a study.
        Frames = "frames",
        /// Image tokens of a frame.
        Tokens = "tokens",
        /// A list of image tokens: of a chunk, named by frames manifest, chunk and encoder; or of one frame, named by all that
        /// decides them.
        TokensOfChunk = "chunk",
        /// The text so far of a decode attempt.
        Text = "text",
        /// A result.
        Result = "result",
    }
);

impl TaskKind {
    /// How many images the task takes: least and most (`None`: as many as the fleet's limit allows).
    pub const fn images(self) -> (u32, Option<u32>) {
        match self {
            Self::Answer => (0, None),
            Self::Localise => (1, Some(1)),
            Self::Compare => (2, Some(2)),
            Self::Report | Self::Classify | Self::Extract | Self::Embed | Self::ZeroShot => {
                (1, None)
            }
        }
    }

    /// Whether it is done by a model that compares pictures and texts (MedSigLIP), and not by one that writes.
    pub const fn compares(self) -> bool {
        matches!(self, Self::Embed | Self::ZeroShot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back() {
        for class in Class::ALL {
            assert_eq!(class.as_str().parse(), Ok(*class));
        }
        for kind in TaskKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        let error = "STAT"
            .parse::<Class>()
            .expect_err("upper case is not a class");
        assert_eq!(
            error.to_string(),
            "unknown class; allowed: stat, urgent, routine, bulk"
        );
    }
}
