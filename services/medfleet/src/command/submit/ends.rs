//! The signals that ask `submit` to end: whoever unpacked files of a patient removes them first.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a program to end: a person's, the system's, and that of a terminal that goes away.
#[derive(Debug)]
pub(super) struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Ends {
    /// From now on none of these signals kills the process. Without `hangups`, SIGHUP stays as it is.
    pub(super) fn listen(hangups: bool) -> std::io::Result<Self> {
        let hangup = hangups.then(|| signal(SignalKind::hangup()));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup.transpose()?,
        })
    }

    /// Waits for the first of them.
    pub(super) async fn come(&mut self) {
        let Self {
            interrupt,
            terminate,
            hangup,
        } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hung_up => {}
        }
    }
}

/// Whether we were started to outlive our terminal (`nohup`), by what Linux says of this process.
pub(super) fn ignores_hangups(status: &str) -> bool {
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit n - 1 is signal n, and a hangup is signal 1.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn every_signal_that_asks_to_end_is_heard() {
        use nix::sys::signal::{Signal, raise};
        for asked in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let mut ends = Ends::listen(true).expect("listens");
            raise(asked).expect("is sent");
            let heard = tokio::time::timeout(Duration::from_secs(20), ends.come()).await;
            assert!(heard.is_ok(), "{asked} was not heard");
        }
    }

    #[test]
    fn who_was_started_to_outlive_a_terminal_does() {
        let check = |status: &str, expected| assert_eq!(ignores_hangups(status), expected);
        check(
            "Name:\tmedfleet\nSigIgn:\t0000000000000001\nSigCgt:\t0\n",
            true,
        );
        check("SigIgn:\t0000000000001007\n", true);
        check("SigIgn:\t0000000000001000\nSigCgt:\t1\n", false);
        check("", false);
    }
}
