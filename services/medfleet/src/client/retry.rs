//! How long a client tries: a bounded number of attempts, waits that double, and the server's own delay where it gives one.

use std::time::Duration;

use medfleet_core::doubled;
use tonic::{Code, Status};
use tonic_types::StatusExt;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    /// Attempts in all, in a row without progress.
    pub(crate) attempts_max: u32,
    /// Wait after the first failure.
    pub(crate) delay_first: Duration,
    /// Longest wait of its own choice.
    pub(crate) delay_max: Duration,
    /// Longest wait that the server may ask for. If it asks for more, there is no further attempt, as it would only refuse until
    /// then.
    pub(crate) asked_max: Duration,
}

impl Retry {
    /// For a person who waits: 8 attempts over about 9 seconds, or as long as the server asks: a quota is back within a minute.
    pub(crate) const PATIENT: Self = Self {
        attempts_max: 8,
        delay_first: Duration::from_millis(100),
        delay_max: Duration::from_secs(3),
        asked_max: Duration::from_secs(60),
    };
    /// For a check: one attempt.
    pub(crate) const ONCE: Self = Self {
        attempts_max: 1,
        delay_first: Duration::ZERO,
        delay_max: Duration::ZERO,
        asked_max: Duration::ZERO,
    };

    /// How long to wait after this failure, the `attempts`-th in a row; `None`: give up.
    pub(crate) fn after(&self, attempts: u32, status: &Status) -> Option<Duration> {
        if attempts >= self.attempts_max || !may_pass(status) {
            return None;
        }
        let asked = status
            .get_error_details()
            .retry_info()
            .and_then(|info| info.retry_delay);
        let own = doubled(
            self.delay_first,
            self.delay_max,
            attempts.saturating_sub(1).into(),
        );
        match asked {
            Some(asked) => (asked <= self.asked_max).then_some(asked),
            None => Some(own),
        }
    }
}

/// Whether the same call may succeed later.
pub(crate) fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Aborted => true,
        Code::DeadlineExceeded => !is_late(status),
        Code::ResourceExhausted => is_busy(status),
        _ => is_broken(status),
    }
}

/// Whether the connection broke during the call, or the peer is no fleet. The transport then reports unknown, cancelled or
/// internal, with its own error as the source.
pub(crate) fn is_broken(status: &Status) -> bool {
    let of_transport = [Code::Unknown, Code::Cancelled, Code::Internal];
    of_transport.contains(&status.code()) && std::error::Error::source(status).is_some()
}

/// Whether the request did not come whole in the fleet's time: sent again it would take as long.
pub(crate) fn is_late(status: &Status) -> bool {
    is_told(status, |reason| reason == "REQUEST_LATE")
}

/// Whether a fleet was reached and says that it cannot serve now.
pub(crate) fn is_told_away(status: &Status) -> bool {
    status.code() == Code::Unavailable && is_told(status, |_| true)
}

/// Whether a fleet, and nothing on the way to it, gives such a reason.
fn is_told(status: &Status, is_wanted: impl FnOnce(&str) -> bool) -> bool {
    let details = status.get_error_details();
    let info = details.error_info();
    info.is_some_and(|info| info.domain == "medfleet" && is_wanted(&info.reason))
}

/// Whether the fleet will take it later. Without a delay it is the request itself that is too much.
pub(crate) fn is_busy(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.get_error_details().retry_info().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn check(attempts: u32, status: &Status, expected_millis: Option<u64>) {
        assert_eq!(
            Retry::PATIENT.after(attempts, status),
            expected_millis.map(Duration::from_millis)
        );
    }

    #[test]
    fn waits_double_and_end() {
        let gone = Status::unavailable("gone");
        check(1, &gone, Some(100));
        check(3, &gone, Some(400));
        check(7, &gone, Some(3000));
        check(8, &gone, None);
    }

    #[test]
    fn only_what_may_pass_is_repeated() {
        check(1, &Status::invalid_argument("no"), None);
        check(1, &Status::not_found("no"), None);
        check(1, &Status::internal("a defect"), None);
        check(
            1,
            &Status::resource_exhausted("the file is too large"),
            None,
        );
    }

    #[test]
    fn a_request_that_the_line_is_too_slow_for_is_not_sent_again() {
        let of = |domain: &str, reason: &str| {
            let none = [] as [(String, String); 0];
            let details = ErrorDetails::with_error_info(reason, domain, none);
            Status::with_error_details(Code::DeadlineExceeded, "late", details)
        };
        check(1, &of("medfleet", "REQUEST_LATE"), None);
        check(1, &of("medfleet", "UPLOAD_IDLE"), Some(100));
        check(1, &of("another.org", "REQUEST_LATE"), Some(100));
        check(1, &Status::deadline_exceeded("the client's own"), Some(100));
    }

    #[test]
    fn nobody_comes_back_sooner_than_the_server_asks() {
        let details = |delay| ErrorDetails::with_retry_info(Some(delay));
        let asks = |delay| {
            Status::with_error_details(Code::ResourceExhausted, "come back", details(delay))
        };
        check(1, &asks(Duration::from_millis(700)), Some(700));
        check(7, &asks(Duration::from_secs(60)), Some(60_000));
        check(8, &asks(Duration::from_secs(60)), None);
        check(1, &asks(Duration::from_secs(61)), None);
    }
}
