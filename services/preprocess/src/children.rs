//! Child processes for what the service must not do in its own: how they are started, limited, watched and ended. They get
//! nothing of our environment, may write no file and leave no core dump, and have limits of memory, processor time and wall-clock
//! time.
//!
//! A file is judged by processor time alone: by the clock, a good one takes as long as the machine's other work makes it. So the
//! wall-clock limit is wide, against processes that hang, and what reaches it may be tried again.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getppid};

use crate::codecs::Stop;

/// Wall-clock limit of a process, as a multiple of its processor time: on a loaded machine it still gets a fifth of a core.
const WALL_TIMES: u32 = 5;

/// How long a process may take for one answer.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Of the processor, all of its threads together; a begun second counts whole. What needs more is to blame for it.
    pub processor_max: Duration,
    /// By the clock. What needs more may have had to wait for others.
    pub wall_max: Duration,
}

impl Times {
    /// So much of the processor, and five times as much by the clock.
    pub fn of(processor_max: Duration) -> Self {
        Self {
            processor_max,
            wall_max: processor_max.saturating_mul(WALL_TIMES),
        }
    }

    fn processor_seconds(&self) -> u64 {
        let begun = u64::from(self.processor_max.subsec_nanos() > 0);
        self.processor_max.as_secs().saturating_add(begun)
    }
}

/// Why a process gave no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    NotStarted(io::Error),
    Ended,
    /// It used more of the processor than it may, and was ended.
    UsedUp,
    /// It took too long by the clock, and was ended.
    Late,
    /// Nobody waits for it any more, so that it was ended or not even asked.
    Stopped,
}

impl NoAnswer {
    /// Of a process that has ended.
    pub(crate) fn of(ended: nix::Result<WaitStatus>) -> Self {
        match ended {
            Ok(WaitStatus::Signaled(_, Signal::SIGXCPU, _)) => Self::UsedUp,
            _ => Self::Ended,
        }
    }
}

/// A program with pipes to and from it, and nothing of ours: no environment, no folder, no errors in our log.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// The same of a program of ours that is told by `argument` what to be, and its limits behind it, as [`Limits::read`] takes
/// them.
pub(crate) fn limited(
    program: &Path,
    argument: &str,
    memory_bytes_max: u64,
    times: &Times,
) -> Command {
    let mut command = command(program);
    command
        .arg(argument)
        .arg(memory_bytes_max.to_string())
        .arg(times.processor_seconds().to_string());
    command
}

/// A process and what it has started, which end with this.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts it in a group of its own, so that what it starts is ended with it.
    pub(crate) fn start(command: &mut Command) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let mut child = command.process_group(0).spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let process = Self(child);
        let (to, from) = pipes.ok_or_else(|| io::Error::other("it has no pipes"))?;
        Ok((process, to, from))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(-self.id().cast_signed())
    }

    /// Runs what is said to it and heard from it; it is ended when that takes longer than `wall_max`, or when nobody waits for
    /// the decode of this thread any more.
    pub(crate) fn within<T>(
        &self,
        wall_max: Duration,
        exchange: impl FnOnce() -> T,
    ) -> Result<T, NoAnswer> {
        let (stop, group) = (Stop::current(), self.group());
        let Some(watched) = stop.watch(group) else {
            return Err(NoAnswer::Stopped);
        };
        let (answered, waits) = mpsc::channel::<()>();
        let (answer, late) = thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let late = waits.recv_timeout(wall_max) == Err(RecvTimeoutError::Timeout);
                if late {
                    // The process was not reaped yet, so its id cannot be another's. An error means that it has ended.
                    let _ended = kill(group, Signal::SIGKILL);
                }
                late
            });
            let answer = exchange();
            drop(answered);
            (answer, watch.join().unwrap_or(false))
        });
        drop(watched);
        // A process that has answered may have been killed right after, and must not be asked again.
        if stop.is_stopped() {
            Err(NoAnswer::Stopped)
        } else if late {
            Err(NoAnswer::Late)
        } else {
            Ok(answer)
        }
    }

    /// Waits until it has ended, without reaping it: its id stays its own.
    pub(crate) fn ended(&self) -> nix::Result<WaitStatus> {
        let id = Pid::from_raw(self.id().cast_signed());
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::Pid(id), flags) {
                // A signal that was for another thread.
                Err(Errno::EINTR) => {}
                ended => return ended,
            }
        }
    }

    /// Kills it, and returns how it ended: by this signal only if it had not ended before.
    pub(crate) fn end(&self) -> nix::Result<WaitStatus> {
        // An error means that it has ended already.
        let _ended = kill(self.group(), Signal::SIGKILL);
        self.ended()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ended = kill(self.group(), Signal::SIGKILL);
        let _status = self.0.wait();
    }
}

/// The limits of a child process. It sets them itself, before it begins with what it is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    memory_bytes: u64,
    /// Of the processor.
    pub(crate) seconds: u64,
}

impl Limits {
    /// The arguments that come next; `None` if they are not there.
    pub(crate) fn read(arguments: &mut impl Iterator<Item = OsString>) -> Option<Self> {
        let mut number = || arguments.next()?.to_str()?.parse::<u64>().ok();
        Some(Self {
            memory_bytes: number()?,
            seconds: number()?,
        })
    }

    /// No more memory, no core dump with somebody's pixels, no file written.
    pub(crate) fn set(&self) -> io::Result<()> {
        let (_, most) = getrlimit(Resource::RLIMIT_AS)?;
        let bytes = self.memory_bytes.min(most);
        setrlimit(Resource::RLIMIT_AS, bytes, bytes)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
        Ok(())
    }
}

/// Ends this process by SIGXCPU once it has used so many seconds of the processor since it began, and at `hard` by SIGKILL.
pub(crate) fn limit_processor(seconds: u64, hard: u64) -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_CPU)?;
    Ok(setrlimit(
        Resource::RLIMIT_CPU,
        seconds.min(most),
        hard.min(most),
    )?)
}

/// Has the kernel end this process, and what it becomes, with the thread that started it; only for one that its thread waits
/// for as long as it lives. `parent` is the process of that thread.
///
/// # Errors
/// When that has ended already: nobody would be told any more.
pub(crate) fn end_with(parent: u32) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == Pid::from_raw(parent.cast_signed()) {
        Ok(())
    } else {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_begun_second_of_the_processor_counts_whole() {
        let check = |milliseconds, expected| {
            let times = Times::of(Duration::from_millis(milliseconds));
            assert_eq!(times.processor_seconds(), expected, "{milliseconds}");
            assert!(times.wall_max > times.processor_max);
        };
        check(1, 1);
        check(1_000, 1);
        check(1_001, 2);
        check(120_000, 120);
    }

    #[test]
    fn what_a_process_ended_of_is_told() {
        let check = |signal, expected: &str| {
            let (process, _to, _from) = Process::start(&mut sleeping()).expect("starts");
            let id = Pid::from_raw(process.id().cast_signed());
            kill(id, signal).expect("it is there");
            let told = format!("{:?}", NoAnswer::of(process.ended()));
            assert_eq!(told, expected, "{signal}");
            // Whoever ends it then changes nothing.
            let told = format!("{:?}", NoAnswer::of(process.end()));
            assert_eq!(told, expected, "{signal}");
        };
        check(Signal::SIGXCPU, "UsedUp");
        check(Signal::SIGKILL, "Ended");
        check(Signal::SIGTERM, "Ended");
    }

    #[test]
    fn one_that_takes_too_long_is_ended() {
        let (process, _to, _from) = Process::start(&mut sleeping()).expect("starts");
        let waited = process.within(Duration::from_millis(1), || process.ended());
        assert!(matches!(waited, Err(NoAnswer::Late)), "{waited:?}");
        let answered = process.within(Duration::from_secs(60), || 7);
        assert!(matches!(answered, Ok(7)), "{answered:?}");
    }

    /// A process that does nothing for longer than any test.
    fn sleeping() -> Command {
        let mut command = command(Path::new("/bin/sh"));
        command.args(["-c", "exec /bin/sleep 600"]);
        command
    }
}
