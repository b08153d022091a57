//! The flag that names a program to read text in pixels.

use std::path::PathBuf;

use medfleet_imaging::TextCheck;
use medfleet_preprocess::TextReaderConfig;
use medfleet_preprocess::ocr::Ocr;

use crate::exit::Fault;

/// The flag.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct LetteringArgs {
    /// Look for text in the pixels with this program, Tesseract 5 or newer, by its whole path: `/usr/bin/tesseract`. What shows
    /// more than marks of side, view and position is refused
    #[arg(long, value_name = "FILE")]
    text_reader: Option<PathBuf>,
}

impl LetteringArgs {
    /// What looks, once it has looked at a picture; `None` without the flag.
    pub(crate) fn check(&self) -> Result<Option<TextCheck>, Fault> {
        let Some(program) = &self.text_reader else {
            return Ok(None);
        };
        let config = TextReaderConfig::of(program.clone());
        config.check().map_err(Fault::usage)?;
        Ok(config.settings().map(|settings| {
            // For the one run of the command, which ends with the process.
            let reader: &'static Ocr = Box::leak(Box::new(Ocr::of_this_program(settings)));
            config.text_check(reader)
        }))
    }
}
