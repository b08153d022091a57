//! Whether a stream that a submit writes to had no room a moment ago: then a job that is not known yet is refused before anything
//! of it is stored, and one that is known is not begun once more. Whoever is the first to find no room has a line in the audit by
//! then, and where the intake had none, a record; so many who come again add nothing to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use medfleet_core::UnixMillis;
use medfleet_queue::QueueError;

/// How long a refusal counts for those who come after; then one of them tries.
pub(crate) const FULL_FOR: Duration = Duration::from_secs(1);

/// What the queue last refused for want of room. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<Mutex<Option<Full>>>);

#[derive(Debug)]
struct Full {
    stream: String,
    limit: String,
    found: UnixMillis,
}

impl Room {
    /// Remembers an error that says that there is no room.
    pub(crate) fn note(&self, error: &QueueError, now: UnixMillis) {
        if let QueueError::Full { stream, limit } = error {
            let full = Full {
                stream: stream.clone(),
                limit: limit.clone(),
                found: now,
            };
            // One assignment under the lock: whole after a panic elsewhere.
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(full);
        }
    }

    /// Whether there may be room.
    ///
    /// # Errors
    /// [`QueueError::Full`], as it was noted, if that was just now.
    pub(crate) fn check(&self, now: UnixMillis) -> Result<(), QueueError> {
        let full = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Full {
            stream,
            limit,
            found,
        }) = full.as_ref()
        else {
            return Ok(());
        };
        // Of a clock that was set back nothing is believed.
        let since = u64::try_from(now.0.saturating_sub(found.0));
        if since.is_ok_and(|since| Duration::from_millis(since) < FULL_FOR) {
            return Err(QueueError::Full {
                stream: stream.clone(),
                limit: limit.clone(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_right_after_finds_no_room_and_later_one_tries() {
        let room = Room::default();
        let check = |millis: i64, is_full: bool| {
            let found = room.check(UnixMillis(millis));
            let is_right = match &found {
                Ok(()) => !is_full,
                Err(QueueError::Full { stream, .. }) => is_full && stream == "intake",
                Err(_) => false,
            };
            assert!(is_right, "{millis}: {found:?}");
        };
        check(5_000, false);
        let away = QueueError::Unavailable {
            operation: "publish",
        };
        room.note(&away, UnixMillis(5_000));
        check(5_000, false);
        let full = QueueError::Full {
            stream: "intake".to_owned(),
            limit: "maximum bytes exceeded".to_owned(),
        };
        room.note(&full, UnixMillis(5_000));
        check(5_000, true);
        check(5_999, true);
        check(6_000, false);
        check(4_999, false);
    }
}
