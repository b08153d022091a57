//! JPEG 2000 in processes of its own: this program again, with a hidden argument, over pipes. A codestream that ends its
//! decoder ends one of these, never the service.
//!
//! A process is kept for the next codestream, limited as `children` says. One that ends is replaced and the codestream tried
//! once more in a fresh one, since it may have been ended from outside; a second end is the codestream's. When nobody waits for
//! the decode any more, its process is ended at once.
//!
//! Reading order: [`Codecs`] here, `stop` (decodes that nobody waits for), `wire` (what goes through the pipes), `child` (the
//! other process).

mod child;
mod stop;
mod wire;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use medfleet_core::chain;
use medfleet_imaging::{CodestreamError, Codestreams, OnThread, Plane, THREADS};

use crate::children::{self, NoAnswer, Process, Times};
use crate::ocr;

pub use stop::Stop;

/// The hidden argument that makes a program of ours a decoder.
pub const ARGUMENT: &str = "decode-codestreams";
/// A process is replaced after this many codestreams, in case the decoder leaks.
const CODESTREAMS_MAX: u32 = 1024;
/// Threads of one process, and of one file's frames, at most: more of them wait for each other, and other files are there to be
/// decoded.
const THREADS_MAX: usize = 4;
/// How often whoever waits for a process looks whether somebody still waits for the samples.
const STOP_LOOKED_FOR_EVERY: Duration = Duration::from_millis(50);
/// Of one codestream; the second one is for a process that was ended from outside.
const TRIES: u32 = 2;

/// Whether these arguments of a program, its name first, ask it to be a decoder, or a reader of text.
pub fn is_child(arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> bool {
    let mut arguments = arguments.into_iter().skip(1);
    arguments
        .next()
        .is_some_and(|first| first.as_ref() == ARGUMENT || first.as_ref() == ocr::ARGUMENT)
}

/// Runs as the child that the arguments ask for, until there is no more to do.
pub fn child_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.get(1).is_some_and(|first| first == ocr::ARGUMENT) {
        ocr::child_main(arguments)
    } else {
        child::main(arguments)
    }
}

/// What the processes may cost.
#[derive(Clone, Debug)]
pub struct CodecLimits {
    /// Address space of each.
    pub memory_bytes_max: u64,
    /// For one codestream, from its first byte in to its last sample out; that of the processor for each thread.
    pub times: Times,
    /// Processes at a time, however many threads want one; as many are kept while there is nothing to decode.
    pub processes_max: usize,
}

/// The processes.
#[derive(Debug)]
pub struct Codecs {
    program: PathBuf,
    limits: CodecLimits,
    idle: Mutex<Vec<Decoder>>,
    /// Those that decode, and whoever waits for one of them to be done.
    busy: Mutex<usize>,
    done: Condvar,
    ended: AtomicU64,
}

/// The right to have one process decode.
struct Turn<'a>(&'a Codecs);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.busy() -= 1;
        self.0.done.notify_one();
    }
}

/// One of them.
#[derive(Debug)]
struct Decoder {
    process: Process,
    to: ChildStdin,
    from: ChildStdout,
    /// Codestreams that it has decoded.
    decoded: u32,
}

impl Codecs {
    /// Processes of the program that asks. `/proc/self/exe` is it even after an update has replaced its file.
    pub fn of_this_program(limits: CodecLimits) -> Self {
        Self::new(PathBuf::from("/proc/self/exe"), limits)
    }

    /// Processes of a program that becomes a decoder when it gets [`ARGUMENT`].
    pub fn new(program: PathBuf, limits: CodecLimits) -> Self {
        Self {
            program,
            limits,
            idle: Mutex::default(),
            busy: Mutex::default(),
            done: Condvar::new(),
            ended: AtomicU64::new(0),
        }
    }

    /// Processes that ended while they decoded, so far.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Ids of the processes that wait for a codestream.
    pub fn idle_ids(&self) -> Vec<u32> {
        self.idle()
            .iter()
            .map(|decoder| decoder.process.id())
            .collect()
    }

    /// Ends the processes that wait.
    pub fn close(&self) {
        self.idle().clear();
    }

    fn busy(&self) -> MutexGuard<'_, usize> {
        // One number: whole even after a panic elsewhere.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more process may decode; `None` when nobody waits for it any more.
    fn turn(&self) -> Option<Turn<'_>> {
        let stop = Stop::current();
        let mut busy = self.busy();
        while !stop.is_stopped() {
            if *busy < self.limits.processes_max.max(1) {
                *busy += 1;
                return Some(Turn(self));
            }
            let waited = self.done.wait_timeout(busy, STOP_LOOKED_FOR_EVERY);
            (busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Decoder>> {
        // One push or pop: whole even after a panic elsewhere.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `fresh`: of a process that is started for it.
    fn ask(&self, codestream: &[u8], fresh: bool) -> Result<Option<Vec<Plane>>, NoAnswer> {
        let _turn = self.turn().ok_or(NoAnswer::Stopped)?;
        let waiting = if fresh { None } else { self.idle().pop() };
        let mut decoder = match waiting {
            Some(decoder) => decoder,
            None => Decoder::start(&self.program, &self.limits).map_err(NoAnswer::NotStarted)?,
        };
        let answer = decoder.ask(codestream, &self.limits.times)?;
        decoder.decoded += 1;
        let mut idle = self.idle();
        // A decoder that met a broken codestream may be in any state.
        let good = answer.is_some() && decoder.decoded < CODESTREAMS_MAX;
        if good && idle.len() < self.limits.processes_max {
            idle.push(decoder);
        }
        Ok(answer)
    }
}

impl Codestreams for Codecs {
    fn decode(&self, codestream: &[u8]) -> Result<Vec<Plane>, CodestreamError> {
        for attempt in 0..TRIES {
            // What killed one process from outside may have killed all idle ones too. The file must not be blamed for that, so
            // the second try takes a fresh process.
            match self.ask(codestream, attempt > 0) {
                Ok(Some(planes)) => return Ok(planes),
                Ok(None) => return Err(CodestreamError::Broken),
                Err(NoAnswer::NotStarted(error)) => {
                    tracing::error!(error = chain(&error), "cannot start a process that decodes");
                    return Err(CodestreamError::Unavailable);
                }
                Err(NoAnswer::UsedUp) => {
                    tracing::warn!("a process used more time to decode than it may");
                    self.ended.fetch_add(1, Ordering::Relaxed);
                    return Err(CodestreamError::TooSlow);
                }
                Err(NoAnswer::Late) => {
                    tracing::warn!("a process took too long to decode and was ended");
                    self.ended.fetch_add(1, Ordering::Relaxed);
                    return Err(CodestreamError::Overdue);
                }
                Err(NoAnswer::Stopped) => return Err(CodestreamError::Stopped),
                Err(NoAnswer::Ended) => {
                    tracing::warn!("a process ended while it decoded");
                    self.ended.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Err(CodestreamError::Crashed)
    }

    fn is_stopped(&self) -> bool {
        Stop::current().is_stopped()
    }

    fn carried(&self) -> OnThread {
        let stop = Stop::current();
        Box::new(move |work: &mut dyn FnMut()| stop.during(work))
    }
}

impl Decoder {
    fn start(program: &Path, limits: &CodecLimits) -> io::Result<Self> {
        let (memory, threads) = (limits.memory_bytes_max, threads());
        // Every thread's time counts; there are THREADS_MAX at most.
        let processor_max = limits.times.processor_max.saturating_mul(threads as u32);
        let times = Times {
            processor_max,
            ..limits.times
        };
        let mut command = children::limited(program, ARGUMENT, memory, &times);
        command
            .env(THREADS, threads.to_string())
            // Each thread's heap would reserve address space, which is what is limited.
            .env("MALLOC_ARENA_MAX", "1");
        let (process, to, from) = Process::start(&mut command)?;
        wire::widen(&to);
        wire::widen(&from);
        Ok(Self {
            process,
            to,
            from,
            decoded: 0,
        })
    }

    /// `None` if the codestream is broken.
    fn ask(&mut self, codestream: &[u8], times: &Times) -> Result<Option<Vec<Plane>>, NoAnswer> {
        let (to, from) = (&mut self.to, &mut self.from);
        let exchange = || wire::send(to, codestream).and_then(|()| wire::receive(from));
        let answer = self.process.within(times.wall_max, exchange)?;
        answer.map_err(|_| NoAnswer::of(self.process.end()))
    }
}

/// As many as there are cores for the service, whoever else uses them: threads beyond the idle cores cost next to nothing.
pub(crate) fn threads() -> usize {
    thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_argument_makes_a_decoder() {
        assert!(is_child(["medfleet", ARGUMENT, "1", "2"]));
        assert!(is_child(["medfleet", ocr::ARGUMENT, "1", "2", "tesseract"]));
        assert!(!is_child(["medfleet", "frames", ARGUMENT]));
        assert!(!is_child([ARGUMENT]));
    }

    /// Of a program that is not there.
    fn nowhere() -> Codecs {
        let limits = CodecLimits {
            memory_bytes_max: 1 << 30,
            times: Times::of(Duration::from_secs(60)),
            processes_max: 1,
        };
        Codecs::new(PathBuf::from("/nowhere/at/all"), limits)
    }

    #[test]
    fn a_program_that_is_not_there_is_not_the_files_fault() {
        let codecs = nowhere();
        assert_eq!(codecs.decode(b"x"), Err(CodestreamError::Unavailable));
        // It has given its turn back.
        assert_eq!(codecs.decode(b"x"), Err(CodestreamError::Unavailable));
    }

    #[test]
    fn whoever_waits_for_a_process_waits_no_longer_than_it_is_waited_for() {
        let (codecs, stop) = (nowhere(), Stop::default());
        let turn = codecs.turn();
        assert!(turn.is_some());
        thread::scope(|scope| {
            let waits = scope.spawn(|| stop.during(|| codecs.decode(b"x")));
            stop.stop();
            assert_eq!(waits.join().unwrap(), Err(CodestreamError::Stopped));
            let waits = scope.spawn(|| codecs.decode(b"x"));
            drop(turn);
            assert_eq!(waits.join().unwrap(), Err(CodestreamError::Unavailable));
        });
    }

    #[test]
    fn the_threads_of_a_decode_stop_with_it() {
        let (codecs, stop) = (nowhere(), Stop::default());
        let carried = stop.during(|| codecs.carried());
        let is_stopped = || {
            let mut is_stopped = false;
            carried(&mut || is_stopped = codecs.is_stopped());
            is_stopped
        };
        thread::scope(|scope| {
            assert!(!scope.spawn(is_stopped).join().unwrap());
            stop.stop();
            assert!(scope.spawn(is_stopped).join().unwrap());
        });
        assert!(!codecs.is_stopped());
    }
}
