//! How long the handles of uploads live, and how often those that need them for longer ask for that.

use std::time::Duration;

use medfleet_core::setting::DurationText;
use medfleet_runtime::ConfigError;

use super::Limits;

/// How often clients and edges ask for complete uploads to be kept while other files of their study are on their way.
/// A handle that is half over lives on by that.
pub const UPLOADS_RENEWED_EVERY: Duration = Duration::from_secs(10 * 60);

/// A handle must live so many times as long: it may be a little too young to be renewed at one time, and must not be over at
/// the next.
const RENEWALS: u32 = 3;

impl Limits {
    /// `remembered` is how long the queue knows of an upload.
    pub(super) fn check_uploads(&self, remembered: DurationText) -> Result<(), ConfigError> {
        super::all_hold(&[
            (
                self.upload_time_to_live.get() >= UPLOADS_RENEWED_EVERY * RENEWALS,
                "ingest.limits.upload_time_to_live must be at least 30 minutes: clients and edges ask every 10 minutes for the \
                 first files of a study to be kept while its last ones are on their way",
            ),
            (
                remembered >= self.upload_time_to_live,
                "queue.upload_ttl must be at least ingest.limits.upload_time_to_live, so that no valid handle is forgotten",
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use medfleet_runtime::Settings;

    use super::*;
    use crate::config::sample;

    #[test]
    fn a_handle_outlives_two_renewals_and_the_queue_remembers_it() {
        let check = |minutes: u64, remembered: u64, expected: Option<&str>| {
            let mut config = sample::main();
            config.ingest.limits.upload_time_to_live = DurationText::from_secs(minutes * 60);
            config.queue.upload_ttl = DurationText::from_secs(remembered * 60);
            let found = config.check().err().map(|error| error.to_string());
            let begin = found.as_deref().and_then(|text| text.split(' ').next());
            assert_eq!(begin, expected, "{found:?}");
        };
        check(30, 30, None);
        check(60, 90, None);
        check(29, 60, Some("ingest.limits.upload_time_to_live"));
        check(60, 59, Some("queue.upload_ttl"));
    }
}
