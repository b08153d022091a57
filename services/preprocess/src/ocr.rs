//! Tesseract as the reader of text in pixels: a process for each picture, over pipes. Its decoder of pictures and its models are
//! somebody else's, so that it gets what the decoder of JPEG 2000 gets (`children`). This program again, with a hidden argument,
//! sets the limits and then becomes Tesseract.
//!
//! What it reads may be names: nothing of it is logged.
//!
//! Reading order: [`Ocr`] here, `sheet` (the picture as Tesseract gets it), `tsv` (its answer), `child` (the other process).

mod child;
mod sheet;
mod tsv;

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{self, Command};
use std::thread;

use medfleet_core::chain;
use medfleet_imaging::{Page, TextReader, TextReaderError, Word};
use nix::sys::wait::WaitStatus;

use crate::children::{self, NoAnswer, Process, Times};
use crate::codecs::Stop;
use sheet::Sheet;

pub(crate) use child::main as child_main;

/// The hidden argument that makes a program of ours a reader.
pub(crate) const ARGUMENT: &str = "read-text";
/// Of one picture; the second one is for a process that was ended from outside.
const TRIES: u32 = 2;
/// More than any picture's words take.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Sparse text in no particular order, at a resolution that it need not guess, with a threshold for each place of the picture
/// (Sauvola's), without which text over anatomy is lost.
const HOW: &[&str] = &["--psm", "11", "--dpi", "150", "-c", "thresholding_method=2"];
/// A picture that costs nothing to look at, black: width and height in pixels.
const TRIAL_SIDE: u32 = 64;

/// Which program, and what it may cost.
#[derive(Clone, Debug)]
pub struct OcrSettings {
    /// Where Tesseract is.
    pub program: PathBuf,
    /// The languages of its models, as Tesseract wants them: `eng+deu`.
    pub languages: String,
    /// Where its models are, unless it knows by itself.
    pub data_folder: Option<PathBuf>,
    /// Its address space.
    pub memory_bytes_max: u64,
    /// For one picture.
    pub times: Times,
}

/// The reader.
#[derive(Clone, Debug)]
pub struct Ocr {
    /// A program of ours that sets the limits; `None` goes without those of memory and processor time.
    limiter: Option<PathBuf>,
    settings: OcrSettings,
}

impl Ocr {
    /// Limited by the program that asks. `/proc/self/exe` is it even after an update has replaced its file.
    pub fn of_this_program(settings: OcrSettings) -> Self {
        Self::new(PathBuf::from("/proc/self/exe"), settings)
    }

    /// Limited by a program that becomes a reader when it gets the hidden argument.
    pub fn new(limiter: PathBuf, settings: OcrSettings) -> Self {
        Self {
            limiter: Some(limiter),
            settings,
        }
    }

    /// Without the limits of memory and processor time, in programs that are not ours to start: for a trial alone.
    pub fn unlimited(settings: OcrSettings) -> Self {
        Self {
            limiter: None,
            settings,
        }
    }

    /// Has a black picture looked at, for each language by itself: of several, Tesseract goes on with those that it has a model
    /// for, and misses what is written in the others.
    ///
    /// # Errors
    /// When it does not answer: it is not there, it is not Tesseract, it has no model for a language, it needs more memory.
    pub fn trial(&self) -> Result<(), TextReaderError> {
        let pixels = vec![0; (TRIAL_SIDE * TRIAL_SIDE) as usize];
        let page = Page {
            width: TRIAL_SIDE,
            height: TRIAL_SIDE,
            channels: 1,
            pixels: &pixels,
        };
        for language in self.settings.languages.split('+') {
            let mut alone = self.clone();
            language.clone_into(&mut alone.settings.languages);
            alone.read(&page)?;
        }
        // All of them together need more memory.
        self.read(&page).map(|_words| ())
    }

    fn command(&self) -> Command {
        let settings = &self.settings;
        let mut command = match &self.limiter {
            Some(limiter) => {
                let memory = settings.memory_bytes_max;
                let mut command = children::limited(limiter, ARGUMENT, memory, &settings.times);
                command
                    // Who waits for it, without whom nothing ends it before it is done.
                    .arg(process::id().to_string())
                    .arg(&settings.program);
                command
            }
            None => children::command(&settings.program),
        };
        command.args(["stdin", "stdout", "-l", &settings.languages]);
        if let Some(folder) = &settings.data_folder {
            command.arg("--tessdata-dir").arg(folder);
        }
        command
            .args(HOW)
            .arg("tsv")
            // As many pictures as files are decoded at a time are looked at: more threads would wait for each other.
            .env("OMP_THREAD_LIMIT", "1");
        command
    }

    fn ask(&self, sheet: &[u8]) -> Result<Vec<u8>, NoAnswer> {
        if Stop::current().is_stopped() {
            return Err(NoAnswer::Stopped);
        }
        let started = Process::start(&mut self.command()).map_err(NoAnswer::NotStarted)?;
        let (process, mut to, from) = started;
        let exchange = || {
            thread::scope(|scope| {
                scope.spawn(move || {
                    // One that does not take all of it ends without an answer, which is seen below.
                    let _taken = to.write_all(sheet);
                });
                let mut answer = Vec::new();
                let read = from.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
                (read.map(|_| answer), process.ended())
            })
        };
        match process.within(self.settings.times.wall_max, exchange)? {
            (Ok(answer), Ok(WaitStatus::Exited(_, 0))) => Ok(answer),
            (_, Ok(WaitStatus::Exited(_, child::NOT_STARTED))) => {
                Err(NoAnswer::NotStarted(io::ErrorKind::NotFound.into()))
            }
            (_, ended) => Err(NoAnswer::of(ended)),
        }
    }
}

impl TextReader for Ocr {
    fn read(&self, page: &Page<'_>) -> Result<Vec<Word>, TextReaderError> {
        let sheet = Sheet::of(page);
        for _ in 0..TRIES {
            match self.ask(&sheet.bytes) {
                Ok(answer) => {
                    let words = tsv::words(&String::from_utf8_lossy(&answer));
                    let Some(words) = words else {
                        tracing::warn!("the program that reads text answered something else");
                        return Err(TextReaderError::Failed);
                    };
                    return Ok(sheet.placed(words));
                }
                Err(NoAnswer::NotStarted(error)) => {
                    tracing::error!(
                        error = chain(&error),
                        "cannot start the program that reads text"
                    );
                    return Err(TextReaderError::Unavailable);
                }
                Err(NoAnswer::UsedUp) => {
                    tracing::warn!("the program that reads text used more time than it may");
                    return Err(TextReaderError::TooSlow);
                }
                Err(NoAnswer::Late) => {
                    tracing::warn!("the program that reads text took too long and was ended");
                    return Err(TextReaderError::Overdue);
                }
                Err(NoAnswer::Stopped) => return Err(TextReaderError::Stopped),
                Err(NoAnswer::Ended) => {
                    tracing::warn!("the program that reads text ended without an answer");
                }
            }
        }
        Err(TextReaderError::Failed)
    }
}
