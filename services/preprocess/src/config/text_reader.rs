//! What an operator decides about the program that reads text in pixels.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use medfleet_core::TenantId;
use medfleet_core::setting::{ByteSize, DurationText};
use medfleet_imaging::{FoundText, TextCheck, TextKind, TextReader};
use medfleet_runtime::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::children::Times;
use crate::error::StartError;
use crate::ocr::{Ocr, OcrSettings};

/// Tesseract does not start with less.
const MEMORY_BYTES_MIN: ByteSize = ByteSize::from_mib(128);

/// The program that looks for text in pixels, and what follows.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextReaderConfig {
    /// The file of Tesseract, 5 or newer, by its whole path: `/usr/bin/tesseract`. Without one nobody looks for text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^/"))]
    pub program: Option<PathBuf>,
    /// The folder of its models, by its whole path; else where it was built to look.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^/"))]
    pub data_folder: Option<PathBuf>,
    /// Its models, as it calls them: eng, deu. All are used together.
    #[schemars(length(min = 1), inner(regex(pattern = "^[A-Za-z0-9_/]+$")))]
    pub languages: Vec<String>,
    /// What it looks at: `picture` (no header: PNG, JPEG, TIFF), `unsaid` (DICOM whose header says nothing, of kinds that carry
    /// no text as a rule), `slice` (the same of CT and MR, and NIfTI), `allowed` (what `burned_in_allowed` lets in), `vouched`
    /// (Burned In Annotation NO). Patches of whole slides are never looked at.
    #[schemars(length(min = 1))]
    pub looks_at: BTreeSet<ImageKind>,
    /// How sure it must be of a word, in percent, for the word to count.
    #[schemars(range(max = 100))]
    pub confidence_min: u32,
    /// Letters and digits that a word must have to count.
    #[schemars(range(min = 1))]
    pub length_min: u32,
    /// Its memory, in bytes of address space; there are up to `decodes_max` of them.
    pub memory_bytes_max: ByteSize,
    /// Processor time that it may use for one image; it is ended then, and the file refused. By the clock it may take five times
    /// as long; it is ended then too, and the job tried again.
    pub time_max: DurationText,
    /// Tenants whose images are used with the lines painted over in which text was found. What it does not find stays. Of
    /// everybody else such a file is refused.
    pub paints_over_for: BTreeSet<TenantId>,
}

/// Images, by what is known of their text before they are looked at.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// Without a header: PNG, JPEG, TIFF.
    Picture,
    /// DICOM whose header says nothing, of kinds that carry no text as a rule.
    Unsaid,
    /// The same of CT and MR, and NIfTI.
    Slice,
    /// Refused but for `burned_in_allowed`.
    Allowed,
    /// The header says that there is none.
    Vouched,
}

impl From<ImageKind> for TextKind {
    fn from(kind: ImageKind) -> Self {
        match kind {
            ImageKind::Picture => Self::Picture,
            ImageKind::Unsaid => Self::Unsaid,
            ImageKind::Slice => Self::Slice,
            ImageKind::Allowed => Self::Allowed,
            ImageKind::Vouched => Self::Vouched,
        }
    }
}

impl Default for TextReaderConfig {
    fn default() -> Self {
        Self {
            program: None,
            data_folder: None,
            languages: vec!["eng".to_owned()],
            looks_at: BTreeSet::from([
                ImageKind::Picture,
                ImageKind::Unsaid,
                ImageKind::Slice,
                ImageKind::Allowed,
            ]),
            // Of texture that is no text, Tesseract 5.3 is at most 70 % sure; of drawn text of ten rows, mostly 85 and more.
            confidence_min: 75,
            length_min: 3,
            memory_bytes_max: ByteSize::from_mib(1024),
            // 64 Mi pixels take 52 s, 12 Mi pixels 5 s.
            time_max: DurationText::from_secs(120),
            paints_over_for: BTreeSet::new(),
        }
    }
}

impl TextReaderConfig {
    /// With a program; everything else as by default.
    pub fn of(program: PathBuf) -> Self {
        Self {
            program: Some(program),
            ..Self::default()
        }
    }

    /// Checks relations between fields, and has the program look at a small picture.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong =
            |reason: String| ConfigError::relation(format!("preprocess.text_reader.{reason}"));
        let is_word = |text: &String| {
            let mut bytes = text.bytes();
            !text.is_empty() && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'/')
        };
        if self.languages.is_empty() || !self.languages.iter().all(is_word) {
            return Err(wrong(
                "languages must name models as Tesseract does, at least one: eng".to_owned(),
            ));
        }
        if self.looks_at.is_empty() {
            return Err(wrong(
                "looks_at must name at least one kind of image; leave program out to look at none"
                    .to_owned(),
            ));
        }
        if self.confidence_min > 100 {
            return Err(wrong(
                "confidence_min must be at most 100 (percent)".to_owned(),
            ));
        }
        if self.length_min == 0 {
            return Err(wrong("length_min must be at least 1".to_owned()));
        }
        if self.memory_bytes_max < MEMORY_BYTES_MIN {
            return Err(wrong(
                "memory_bytes_max must be at least 128 MiB, or Tesseract does not start".to_owned(),
            ));
        }
        if self.time_max.get().as_secs() == 0 {
            return Err(wrong("time_max must be at least 1 s".to_owned()));
        }
        let Some(settings) = self.settings() else {
            return Ok(());
        };
        is_program(&settings.program).map_err(|reason| wrong(format!("program {reason}")))?;
        if self
            .data_folder
            .as_ref()
            .is_some_and(|folder| !folder.is_dir())
        {
            return Err(wrong(
                "data_folder is no folder that can be read".to_owned(),
            ));
        }
        let program = settings.program.clone();
        Ocr::unlimited(settings).trial().map_err(|error| {
            let cause = error.to_string();
            let said = StartError::TextReader { program, error };
            wrong(format!("program: {said}: {cause}"))
        })
    }

    /// How the program is run; `None` without one.
    pub fn settings(&self) -> Option<OcrSettings> {
        Some(OcrSettings {
            program: self.program.clone()?,
            languages: self.languages.join("+"),
            data_folder: self.data_folder.clone(),
            memory_bytes_max: self.memory_bytes_max.get(),
            times: Times::of(self.time_max.get()),
        })
    }

    /// What is done with the images of somebody whose text is not painted over.
    pub fn text_check(&self, reader: &'static dyn TextReader) -> TextCheck {
        TextCheck {
            reader,
            kinds: self.looks_at.iter().copied().map(TextKind::from).collect(),
            // At most 100.
            confidence_min: self.confidence_min as f32,
            length_min: self.length_min as usize,
            found: FoundText::Refuse,
        }
    }
}

/// Whether it is a file that may be run, or why not.
fn is_program(path: &Path) -> Result<(), String> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!(
            "{shown} must be a whole path, as /usr/bin/tesseract"
        ));
    }
    let metadata =
        fs::metadata(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("{shown} is no program"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut TextReaderConfig), expected: &str) {
        let mut config = TextReaderConfig::default();
        assert!(config.check().is_ok(), "nothing is read, nothing is wrong");
        change(&mut config);
        let said = config.check().expect_err("refused").to_string();
        assert!(said.contains(expected), "{said}");
    }

    #[test]
    fn settings_that_cannot_work_are_told_before_the_start() {
        check(|config| config.languages.clear(), "languages");
        check(
            |config| config.languages.push("../eng -c".into()),
            "languages",
        );
        check(|config| config.looks_at.clear(), "looks_at");
        check(|config| config.confidence_min = 101, "confidence_min");
        check(|config| config.length_min = 0, "length_min");
        let little = ByteSize::from_mib(64);
        check(
            |config| config.memory_bytes_max = little,
            "memory_bytes_max",
        );
        check(
            |config| config.time_max = DurationText::from_secs(0),
            "time_max",
        );
    }

    #[test]
    fn a_program_that_cannot_be_run_is_told_before_the_start() {
        let program = |path: &str| {
            let path = PathBuf::from(path);
            move |config: &mut TextReaderConfig| config.program = Some(path)
        };
        check(program("tesseract"), "whole path");
        check(program("/nowhere/at/all"), "cannot be read");
        check(program("/"), "no program");
        // A program, and not one that reads text.
        check(program("/bin/sh"), "without an answer");
    }
}
