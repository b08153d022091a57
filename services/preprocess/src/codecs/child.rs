//! The other process: limits itself, then decodes what comes on stdin until it ends.

use std::ffi::OsString;
use std::io::{self, BufWriter};
use std::process::ExitCode;

use medfleet_imaging::{Codestreams, Here};
use nix::sys::resource::{UsageWho, getrusage};

use super::wire;
use crate::children::{Limits, limit_processor};

/// Samples are written in steps of this many bytes.
const BUFFER_BYTES: usize = 1 << 17;

/// Decodes until there is no more. `arguments`: the program's own, among them [`super::ARGUMENT`], the bytes of memory and
/// the seconds of processor time that it may use.
pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(limits) = Limits::read(&mut arguments.into_iter().skip(2)) else {
        return ExitCode::from(2);
    };
    // Only a second logger is refused, and there is no first.
    let _first = log::set_logger(&EndsWithoutMemory);
    log::set_max_level(log::LevelFilter::Error);
    match limits.set().and_then(|()| serve(limits.seconds)) {
        Ok(()) => ExitCode::SUCCESS,
        // The other end is gone, or the limits are not to be had: it sees that there is no answer.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Ends the process where the decoder says that it lacks memory. Otherwise that looks as if the codestream were broken, and it
/// says so in words only.
struct EndsWithoutMemory;

impl log::Log for EndsWithoutMemory {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == log::Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if ["memory", "alloc"].iter().any(|word| text.contains(word)) {
            std::process::abort();
        }
    }

    fn flush(&self) {}
}

fn serve(seconds: u64) -> io::Result<()> {
    let mut from = io::stdin().lock();
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    let mut codestream = Vec::new();
    while wire::take(&mut from, &mut codestream)? {
        // The limit counts all that the process has used, of user and system time.
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let used = (usage.user_time() + usage.system_time()).tv_sec();
        let until = seconds
            .saturating_add(used.unsigned_abs())
            .saturating_add(1);
        // The hard limit stays as it is, so that the soft one can be set again for the next codestream.
        limit_processor(until, u64::MAX)?;
        let planes = Here.decode(&codestream).ok();
        wire::answer(&mut to, planes.as_deref())?;
    }
    Ok(())
}
