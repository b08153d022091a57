//! How a process ends: one exit code per kind of end, all below 126, so that a shell or a pod can tell them apart.

use std::error::Error;
use std::fmt;

use medfleet_core::chain;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// The job, a check or the service failed.
    Failed = 1,
    /// Wrong arguments or configuration.
    Usage = 2,
    /// Something needed was not reachable or took too long.
    Unreachable = 3,
    /// The drain deadline passed, or a second signal came, with work unfinished.
    DeadlineMissed = 4,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a process ends other than well: the code and the error with its causes.
/// Every error converts to it as [`Exit::Failed`]; the constructors say otherwise.
pub struct Stop {
    pub exit: Exit,
    pub error: Box<dyn Error + Send + Sync>,
}

impl Stop {
    pub fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }

    /// Wrong arguments or configuration.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Usage, error)
    }

    /// Not reachable, or too slow.
    pub fn unreachable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Unreachable, error)
    }

    /// The error followed by all its causes, separated by colons.
    pub fn chain(&self) -> String {
        chain(self.error.as_ref())
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.exit, self.chain())
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::new(Exit::Failed, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the folder")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_stop_tells_the_whole_chain() {
        let stop = Stop::unreachable(Outer(std::io::Error::other("disk on fire")));
        assert_eq!(
            format!("{stop:?}"),
            "Unreachable: cannot open the folder: disk on fire"
        );
        let stop: Stop = Outer(std::io::Error::other("x")).into();
        assert_eq!(stop.exit, Exit::Failed);
    }

    #[test]
    fn codes_stay_below_what_shells_use() {
        for exit in [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Unreachable,
            Exit::DeadlineMissed,
        ] {
            assert!((exit as u8) < 126);
        }
    }
}
