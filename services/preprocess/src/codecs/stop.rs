//! A decode that nobody waits for any more: its job was cancelled, or the unit has to be handed back. Its threads cannot be
//! stopped, but the processes that they wait for can be ended, no other is started for it, and imaging asks before each frame
//! and each file of an archive whether to go on.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

thread_local! {
    /// What stops the decode that runs on this thread. Imaging decodes on the thread that calls it, so it need not know of this.
    static CURRENT: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

/// Stops a decode. Clones stop the same one.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// The processes that work for the decode, one for each of its threads; a negative id is that of a process group. A process
    /// stays here until it is reaped, so its id is still its own.
    processes: Vec<Pid>,
}

impl Stop {
    /// Ends the processes that work for the decode, for good.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        for process in &state.processes {
            // An error means that it has ended already.
            let _ended = kill(*process, Signal::SIGKILL);
        }
    }

    /// Runs a decode that this stops, or a part of it, on the caller's thread.
    pub fn during<T>(&self, decode: impl FnOnce() -> T) -> T {
        let _before = Before(CURRENT.replace(Some(self.clone())));
        decode()
    }

    /// What stops the decode of this thread; where nothing does, one that nobody else has.
    pub(crate) fn current() -> Self {
        CURRENT.with_borrow(Clone::clone).unwrap_or_default()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Says which process works until the outcome is dropped; `None` once it was stopped.
    pub(crate) fn watch(&self, process: Pid) -> Option<Watched<'_>> {
        let mut state = self.state();
        if state.stopped {
            return None;
        }
        state.processes.push(process);
        Some(Watched {
            stop: self,
            process,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A flag and a list, each whole even after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that is ended when its decode is stopped.
#[derive(Debug)]
pub(crate) struct Watched<'a> {
    stop: &'a Stop,
    process: Pid,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let process = self.process;
        self.stop.state().processes.retain(|one| *one != process);
    }
}

/// What stopped the thread's decode before.
struct Before(Option<Stop>);

impl Drop for Before {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    /// A process that does nothing for longer than any test.
    fn process() -> (Child, Pid) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let id = Pid::from_raw(child.id().cast_signed());
        (child, id)
    }

    #[test]
    fn the_process_that_works_is_ended() {
        let (mut child, id) = process();
        let stop = Stop::default();
        let watched = stop.watch(id).unwrap();
        stop.clone().stop();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
        drop(watched);
        assert!(stop.watch(id).is_none());
    }

    #[test]
    fn every_process_that_works_is_ended_and_no_other() {
        let [mut first, mut second, mut third] = [process(), process(), process()];
        let stop = Stop::default();
        let done = stop.watch(second.1).unwrap();
        let _works = [stop.watch(first.1).unwrap(), stop.watch(third.1).unwrap()];
        drop(done);
        stop.stop();
        for (child, _) in [&mut first, &mut third] {
            let status = child.wait().unwrap();
            assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
        }
        assert!(second.0.try_wait().unwrap().is_none());
        second.0.kill().unwrap();
        second.0.wait().unwrap();
    }

    #[test]
    fn a_process_that_works_no_more_is_left_alone() {
        let (mut child, id) = process();
        let stop = Stop::default();
        drop(stop.watch(id));
        stop.stop();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn each_thread_knows_its_own_decode() {
        let (outer, inner) = (Stop::default(), Stop::default());
        outer.stop();
        outer.during(|| {
            inner.during(|| assert!(!Stop::current().is_stopped()));
            assert!(Stop::current().is_stopped());
            let elsewhere = std::thread::spawn(|| Stop::current().is_stopped());
            assert!(!elsewhere.join().unwrap());
        });
        assert!(!Stop::current().is_stopped());
    }
}
