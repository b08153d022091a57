//! The other process: limits itself, then becomes the program that reads.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::codecs::limit;

/// The exit code that says that the program is not to be had; Tesseract's own are 0 and 1.
pub(super) const NOT_STARTED: i32 = 125;

/// Becomes the program. `arguments`: our own program's name, [`super::ARGUMENT`], the bytes of memory and the seconds of
/// processor time that it may use, then the program and its arguments.
pub(crate) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter().skip(2);
    let mut number = || arguments.next()?.to_str()?.parse::<u64>().ok();
    let (Some(memory_bytes), Some(seconds)) = (number(), number()) else {
        return ExitCode::from(2);
    };
    let Some(program) = arguments.next() else {
        return ExitCode::from(2);
    };
    let limited = limit(memory_bytes).and_then(|()| {
        let (_, most) = getrlimit(Resource::RLIMIT_CPU)?;
        let seconds = seconds.min(most);
        Ok(setrlimit(Resource::RLIMIT_CPU, seconds, seconds)?)
    });
    if limited.is_ok() {
        // It comes back only where it failed; nobody reads why, and the code says that it did.
        let _why = Command::new(program).args(arguments).exec();
    }
    ExitCode::from(NOT_STARTED as u8)
}
