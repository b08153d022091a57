//! Exit codes, and the one error type of commands: what to tell the person, and the code that scripts see.

use std::fmt;
use std::process::ExitCode;

use crate::client::ClientError;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what was asked.
    Done,
    /// The job or a check failed.
    Failed,
    /// The command line or a configuration is wrong.
    Usage,
    /// Something could not be reached, or did not answer in time.
    Unreachable,
    /// A service's own code, passed on as it is.
    Service(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Service(code) => code,
        })
    }
}

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The code to end with.
    pub(crate) exit: Exit,
    /// What happened, to which thing, what was expected, what to do.
    pub(crate) error: anyhow::Error,
}

pub(crate) type CommandResult = Result<Exit, Fault>;

impl Fault {
    /// The command line or a configuration is wrong.
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Usage,
            error: error.into(),
        }
    }

    /// The same, with what it is about in front: the fleet does not repeat what it was asked for.
    pub(crate) fn about(self, what: &str) -> Self {
        Self {
            exit: self.exit,
            error: self.error.context(what.to_owned()),
        }
    }

    /// Something could not be reached.
    pub(crate) fn unreachable(error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Unreachable,
            error: error.into(),
        }
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        // A fleet that was called on the way says more than that something failed.
        let called = error.downcast_ref::<ClientError>();
        Self {
            exit: called.map_or(Exit::Failed, ClientError::exit),
            error,
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self {
            exit: Exit::Failed,
            error: error.into(),
        }
    }
}

impl fmt::Display for Fault {
    /// The whole chain on one line, innermost cause last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::Context;
    use tonic::Status;

    use super::*;

    #[test]
    fn a_fleet_that_is_away_is_no_failed_check() {
        let check = |status, expected| {
            let error = ClientError::from_status("http://localhost:1", 1, Duration::ZERO, status);
            let error = Err::<(), _>(error).context("the third of a list was asked for");
            let fault = Fault::from(error.expect_err("it is one"));
            assert_eq!(fault.exit, expected);
        };
        check(Status::unavailable("gone"), Exit::Unreachable);
        check(Status::unauthenticated("no"), Exit::Usage);
        check(Status::internal("a defect"), Exit::Failed);
        assert_eq!(Fault::from(anyhow::anyhow!("other")).exit, Exit::Failed);
    }

    #[test]
    fn what_it_is_about_changes_no_exit_code() {
        let fault = Fault::usage(anyhow::anyhow!("not a name")).about("jobs/a");
        assert_eq!(fault.exit, Exit::Usage);
        assert_eq!(fault.to_string(), "jobs/a: not a name");
    }
}
