//! What a person or a script sees: words, tables, JSON lines. Results go to stdout, progress to stderr.

mod draft;
mod erasure;
mod job;
mod json;
mod letter;
mod pause;
mod progress;
mod words;

use std::io::{self, Write};
use std::time::Duration;

use medfleet_core::setting::ByteSize;
use medfleet_proto::v1::Job;
use serde_json::Value;

pub(crate) use draft::{draft, numbers};
pub(crate) use erasure::{erasure_json, erasure_line};
use job::job_lines;
pub(crate) use job::{erased_line, job_table_head, job_table_row};
pub(crate) use json::{
    accepted_json, dead_letter_json, discarded_json, draft_json, erased_json, event_json, job_json,
};
pub(crate) use letter::{dead_letter_lines, dead_letter_table_head, dead_letter_table_row};
pub(crate) use pause::{pause_json, pause_table_head, pause_table_row, resumed_json};
pub(crate) use progress::Progress;
pub(crate) use words::{failure_text, state_word};

/// Writes one JSON object as one line on stdout.
pub(crate) fn print_json(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a text on stdout, with a line end.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes a job on stdout: as one JSON object, or as lines for people.
pub(crate) fn print_job(job: &Job, json: bool) -> io::Result<()> {
    match json {
        true => print_json(&job_json(job)),
        false => print(&job_lines(job)),
    }
}

/// A duration for people: `0.8 ms`, `12 ms`, `1.5 s`, `2 min 5 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1000.0;
    match millis {
        0.0..9.95 => format!("{millis:.1} ms"),
        0.0..999.5 => format!("{millis:.0} ms"),
        0.0..59_950.0 => format!("{:.1} s", millis / 1000.0),
        _ => {
            let seconds = duration.as_secs_f64().round() as u64;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
    }
}

/// A number of bytes for people: `512 B`, `2.9 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    ByteSize::from_bytes(count).rounded()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let check =
            |micros, expected: &str| assert_eq!(seconds(Duration::from_micros(micros)), expected);
        check(0, "0.0 ms");
        check(840, "0.8 ms");
        check(12_300, "12 ms");
        check(1_500_000, "1.5 s");
        check(125_000_000, "2 min 5 s");
    }
}
