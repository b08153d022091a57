//! The other process: limits itself, then decodes what comes on stdin until it ends.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter};
use std::process::ExitCode;

use medfleet_imaging::{Codestreams, Here};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};

use super::wire;

/// Samples are written in steps of this many bytes.
const BUFFER_BYTES: usize = 1 << 17;

/// Decodes until there is no more. `arguments`: the program's own, among them [`super::ARGUMENT`], the bytes of memory and
/// the seconds of processor time that it may use.
pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let numbers: Vec<OsString> = arguments.into_iter().skip(2).collect();
    let number = |at: usize| numbers.get(at).map(OsString::as_os_str).and_then(number);
    let (Some(memory_bytes), Some(seconds)) = (number(0), number(1)) else {
        return ExitCode::from(2);
    };
    // Only a second logger is refused, and there is no first.
    let _first = log::set_logger(&EndsWithoutMemory);
    log::set_max_level(log::LevelFilter::Error);
    match limit(memory_bytes).and_then(|()| serve(seconds)) {
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

fn number(text: &OsStr) -> Option<u64> {
    text.to_str()?.parse().ok()
}

/// No more memory than this, no core dump with somebody's pixels, no file written.
pub(crate) fn limit(memory_bytes: u64) -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_AS)?;
    setrlimit(
        Resource::RLIMIT_AS,
        memory_bytes.min(most),
        memory_bytes.min(most),
    )?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    Ok(())
}

fn serve(seconds: u64) -> io::Result<()> {
    let mut from = io::stdin().lock();
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
    let mut codestream = Vec::new();
    while wire::take(&mut from, &mut codestream)? {
        // Should the one who watches be gone, this ends a codestream without end.
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        // The limit counts both.
        let used = (usage.user_time() + usage.system_time()).tv_sec();
        let until = seconds
            .saturating_add(used.unsigned_abs())
            .saturating_add(1);
        // The hard limit stays as it is, so that the soft one can be set again for the next codestream.
        let (_, most) = getrlimit(Resource::RLIMIT_CPU)?;
        setrlimit(Resource::RLIMIT_CPU, until.min(most), most)?;
        let planes = Here.decode(&codestream).ok();
        wire::answer(&mut to, planes.as_deref())?;
    }
    Ok(())
}
