//! The job on its way, on stderr: a line that moves on a terminal, one line for each stage elsewhere, and the text as it comes.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use medfleet_proto::v1::JobProgress;

use super::words::state_word;
use super::{bytes, seconds};
use crate::client::{Event, UploadNews};

/// How often an upload's progress is printed where there is no terminal.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// How often the terminal line moves.
const TICK: Duration = Duration::from_millis(120);

/// Shows events as they come.
pub(crate) struct Progress {
    screen: Option<Screen>,
    text: String,
    started: Instant,
    /// When something was last said of an upload.
    said_last: Instant,
}

/// The two moving lines of a terminal.
struct Screen {
    _lines: MultiProgress,
    stage: ProgressBar,
    text: ProgressBar,
}

impl Progress {
    /// `started`: when the person began to wait.
    pub(crate) fn new(started: Instant) -> Self {
        let screen = io::stderr().is_terminal().then(Screen::new);
        Self {
            screen,
            text: String::new(),
            started,
            said_last: started,
        }
    }

    /// How the upload of an input goes. Where there is no terminal, a line only now and then.
    pub(crate) fn upload(&mut self, input: usize, news: &UploadNews) {
        match news {
            UploadNews::Sent { bytes: sent, total } => {
                let text = format!(
                    "uploading input {input}: {} of {}",
                    bytes(*sent),
                    bytes(*total)
                );
                match &self.screen {
                    Some(screen) => screen.stage.set_message(text),
                    None if self.said_last.elapsed() > QUIET_MAX => {
                        self.said_last = Instant::now();
                        self.line(&text);
                    }
                    None => {}
                }
            }
            UploadNews::Stored { total } => {
                self.said_last = Instant::now();
                if self.screen.is_none() {
                    self.line(&format!("uploaded input {input}: {}", bytes(*total)));
                }
            }
            UploadNews::Broke { attempts, said } => self.line(&format!(
                "the upload of input {input} broke (failure {attempts} in a row: {said}); going on where it stopped"
            )),
        }
    }

    /// A plain line that stays.
    pub(crate) fn line(&self, text: &str) {
        let text = format!("{:>9}  {text}", seconds(self.started.elapsed()));
        match &self.screen {
            Some(screen) => screen.stage.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// The next event of the job.
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Progress { progress, .. } => self.stage(&stage_text(progress)),
            Event::Final { job, .. } => {
                self.end_text();
                // Why it failed is the last word of the command, not of the display.
                self.line(state_word(job.state));
                if let Some(screen) = self.screen.take() {
                    screen.stage.finish_and_clear();
                    screen.text.finish_and_clear();
                }
            }
            Event::Reset { attempt } => {
                self.end_text();
                if *attempt > 1 {
                    self.line(&format!("attempt {attempt}: the text starts over"));
                }
            }
            Event::Text { text, .. } => self.more_text(text),
        }
    }

    fn stage(&mut self, text: &str) {
        self.end_text();
        self.line(text);
        if let Some(screen) = &self.screen {
            screen.stage.set_message(text.to_owned());
        }
    }

    fn more_text(&mut self, text: &str) {
        self.text.push_str(text);
        match &self.screen {
            Some(screen) => screen.text.set_message(self.text.replace('\n', "\n  ")),
            None => {
                let mut err = io::stderr().lock();
                // Progress that cannot be written is no reason to lose the job's result.
                let _unseen = write!(err, "{text}").and_then(|()| err.flush());
            }
        }
    }

    /// Ends the line of streamed text; the whole text comes again with the result.
    fn end_text(&mut self) {
        if self.text.is_empty() {
            return;
        }
        match &self.screen {
            Some(screen) => screen.text.set_message(String::new()),
            None => eprintln!(),
        }
        self.text.clear();
    }
}

impl Screen {
    fn new() -> Self {
        let lines = MultiProgress::new();
        let stage = lines.add(ProgressBar::new_spinner());
        stage.enable_steady_tick(TICK);
        let text = lines.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("  {msg}") {
            text.set_style(style);
        }
        Self {
            _lines: lines,
            stage,
            text,
        }
    }
}

fn stage_text(progress: &JobProgress) -> String {
    let state = state_word(progress.state);
    if progress.chunks_total == 0 {
        return state.to_owned();
    }
    format!(
        "{state}  {} of {} chunks encoded",
        progress.chunks_done, progress.chunks_total
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_proto::v1::JobState;

    #[test]
    fn stages_say_how_far_they_are() {
        let check = |chunks_done, chunks_total, expected: &str| {
            let progress = JobProgress {
                state: JobState::Encoding.into(),
                chunks_total,
                chunks_done,
            };
            assert_eq!(stage_text(&progress), expected);
        };
        check(0, 0, "ENCODING");
        check(1, 4, "ENCODING  1 of 4 chunks encoded");
    }
}
