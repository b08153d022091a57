//! Child processes that never outlive us, not even when we are killed with kill -9.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

/// How often a child is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(25);

/// Asks the kernel to kill the child when the thread that spawns it ends: spawn from a thread that lives as long as
/// the child is wanted. The child gets a process group of its own, so that Ctrl-C in a terminal reaches only us.
pub(crate) fn tie_to_us(command: &mut Command) {
    let parent = Pid::this();
    command.process_group(0);
    // SAFETY: the closure runs in the forked child before exec and makes only two system calls,
    // which neither allocate nor take locks.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            // We may have died between the fork and the line above.
            if getppid() == parent {
                Ok(())
            } else {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
        });
    }
}

/// Gives the child nothing to read, and a new file at `log` for all that it says.
pub(crate) fn log_to(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let same = file
        .try_clone()
        .with_context(|| format!("cannot share {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(same).stderr(file);
    Ok(())
}

/// Asks a child to stop, waits at most `patience`, then kills it. Says whether it stopped by itself.
pub(crate) fn end(child: &mut Child, patience: Duration) -> Result<bool> {
    if let Some(pid) = i32::try_from(child.id()).ok().map(Pid::from_raw) {
        // It may have ended by itself a moment ago.
        let _gone = kill(pid, Signal::SIGTERM);
    }
    let begun = Instant::now();
    // No one speaks on this channel: it is a pause.
    let (_keep, never) = channel::<()>();
    loop {
        if child
            .try_wait()
            .context("cannot wait for a child process")?
            .is_some()
        {
            return Ok(true);
        }
        if begun.elapsed() >= patience {
            child.kill().context("cannot kill a child process")?;
            child.wait().context("cannot wait for a child process")?;
            return Ok(false);
        }
        pause(&never, POLL);
    }
}

/// An address on loopback that nobody listens on now, for a child that is told where to listen.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    listener.local_addr().context("no free port on 127.0.0.1")
}

/// Waits; false when told to stop, by a word on the channel or by its closing.
pub(crate) fn pause(stopped: &Receiver<()>, time: Duration) -> bool {
    matches!(stopped.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_asked_first_and_killed_after() {
        let start = |script: &str| {
            let mut command = Command::new("sh");
            tie_to_us(command.args(["-c", script]));
            command.spawn().expect("starts")
        };
        assert!(end(&mut start("exec sleep 600"), Duration::from_secs(20)).expect("ends"));
        let mut deaf = start("trap '' TERM; while :; do sleep 1; done");
        // It is deaf only once the trap is set; before, it stops when asked, which is fine here too.
        end(&mut deaf, Duration::from_millis(200)).expect("is killed");
        assert!(deaf.try_wait().expect("was waited for").is_some());
    }
}
