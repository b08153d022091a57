//! The other process: limits itself, then becomes the program that reads.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::children::{Limits, end_with, limit_processor};

/// The exit code that says that the program is not to be had; Tesseract's own are 0 and 1.
pub(super) const NOT_STARTED: i32 = 125;

/// Becomes the program. `arguments`: our own program's name, [`super::ARGUMENT`], the bytes of memory and the seconds of
/// processor time that it may use, the id of the process that started it, then the program and its arguments.
pub(crate) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter().skip(2);
    let limits = Limits::read(&mut arguments);
    let parent = arguments
        .next()
        .and_then(|id| id.to_str()?.parse::<u32>().ok());
    let (Some(limits), Some(parent), Some(program)) = (limits, parent, arguments.next()) else {
        return ExitCode::from(2);
    };
    let ready = end_with(parent)
        .and_then(|()| limits.set())
        // The signal that says so can be ignored, the one behind it cannot.
        .and_then(|()| limit_processor(limits.seconds, limits.seconds.saturating_add(1)));
    if ready.is_ok() {
        // It comes back only where it failed; nobody reads why, and the code says that it did.
        let _why = Command::new(program).args(arguments).exec();
    }
    ExitCode::from(NOT_STARTED as u8)
}
