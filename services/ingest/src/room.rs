//! Remembers for a moment that a stream which submits write to is full. Until then a new job is refused before anything of it is
//! stored, and a known one is not queued again. The first submit that finds no room has already written its audit line, and if the
//! intake was full its record too; those that come right after it would add the same again and again.
//!
//! Also knows which streams have only a reserve left. It is kept for what must go on without submits: jobs under way, cancels, what
//! operators do, and erasures, which make room. Half of the audit's reserve is for erasures and operators alone, so that a tenant
//! that cancels job after job cannot block an erasure. The streams are looked at every few seconds, in which a fleet does not fill
//! even half a reserve.
//!
//! The reserve of the intake is for STAT jobs: whoever fills it with others, as a tenant without a quota may, keeps no patient out
//! who waits. Half of that is for STAT jobs within a budget, and of tenants that have few jobs: whoever calls everything STAT keeps
//! no neighbour out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use medfleet_core::{Class, UnixMillis};
use medfleet_queue::{
    AUDIT_STREAM, INTAKE_STREAM, PENDING_STREAM, QueueError, StreamUsage, is_record_stream,
};

/// Why there is no room where only the reserve is left.
const RESERVED: &str = "what is left is kept for jobs under way, cancels and erasures";
/// Why there is no room where only half of the reserve is left.
const LAST: &str = "what is left is kept for erasures and operators";
/// Why there is no room where only the intake's reserve is left.
const FOR_STAT: &str = "what is left is kept for STAT jobs";
/// Why there is no room where only half of the intake's reserve is left.
const FOR_FEW: &str =
    "what is left is kept for STAT jobs within a budget, and of tenants that have few jobs";

/// How long submits are refused after one has found a stream full; then the next one tries again.
pub(crate) const FULL_FOR: Duration = Duration::from_secs(1);

/// What is known of the queue's room. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// What the queue last refused for want of room.
    full: Option<Full>,
    /// Streams that had only their reserve left when they were looked at.
    low: Vec<String>,
    /// Of these, the streams that had only half of their reserve left.
    lowest: Vec<String>,
}

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
            self.lock().full = Some(full);
        }
    }

    /// Remembers which streams have only their reserve left, and which only half of it.
    pub(crate) fn look(&self, usage: &[StreamUsage]) {
        let names = |is_wanted: fn(&StreamUsage) -> bool| -> Vec<String> {
            let wanted = usage.iter().filter(|stream| is_wanted(stream));
            wanted.map(|stream| stream.stream.clone()).collect()
        };
        let mut seen = self.lock();
        seen.low = names(StreamUsage::is_at_reserve);
        seen.lowest = names(StreamUsage::is_at_half_reserve);
    }

    /// Whether there may be room for a new job of this class.
    ///
    /// # Errors
    /// [`QueueError::Full`], where only a reserve is left that is not for it; or as it was noted, if that was just now.
    pub(crate) fn check(&self, now: UnixMillis, class: Class) -> Result<(), QueueError> {
        self.check_reserve(is_of_submits)?;
        self.check_intake(class)?;
        self.check_noted(now)
    }

    /// Whether the intake may take one more unit of this class.
    ///
    /// # Errors
    /// [`QueueError::Full`], where only its reserve is left and the class is another than STAT.
    pub(crate) fn check_intake(&self, class: Class) -> Result<(), QueueError> {
        match class {
            Class::Stat => Ok(()),
            _ => none_of(&self.lock().low, is_intake, FOR_STAT),
        }
    }

    /// Whether the intake may take a STAT job that no budget bounds, of a tenant that has its part of the open jobs already.
    ///
    /// # Errors
    /// [`QueueError::Full`], where only half of its reserve is left.
    pub(crate) fn check_unbounded(&self) -> Result<(), QueueError> {
        none_of(&self.lock().lowest, is_intake, FOR_FEW)
    }

    /// Whether there may be room for what is asked once more of a job that has its record. The intake's reserve is another question
    /// ([`Room::check_intake`]): it may wait there already.
    ///
    /// # Errors
    /// As [`Room::check`].
    pub(crate) fn check_again(&self, now: UnixMillis) -> Result<(), QueueError> {
        self.check_audit()?;
        self.check_noted(now)
    }

    /// Whether the audit may take a line of a submit or of a read.
    ///
    /// # Errors
    /// [`QueueError::Full`], where only the reserve is left.
    pub(crate) fn check_audit(&self) -> Result<(), QueueError> {
        self.check_reserve(is_audit)
    }

    /// Whether the audit may take a line of what a client does to a job, other than erase it.
    ///
    /// # Errors
    /// [`QueueError::Full`], where only half of the reserve is left.
    pub(crate) fn check_act(&self) -> Result<(), QueueError> {
        none_of(&self.lock().lowest, is_audit, LAST)
    }

    fn check_reserve(&self, is_needed: fn(&str) -> bool) -> Result<(), QueueError> {
        none_of(&self.lock().low, is_needed, RESERVED)
    }

    fn check_noted(&self, now: UnixMillis) -> Result<(), QueueError> {
        let seen = self.lock();
        let Some(Full {
            stream,
            limit,
            found,
        }) = &seen.full
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

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Changed in single assignments: whole after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether submits write to a stream that others need as well: lines of the audit, records of jobs, entries of what is to be
/// swept. A shard of the records that is full is as good as all of them: which one a job is in nobody chooses.
fn is_of_submits(stream: &str) -> bool {
    is_audit(stream) || is_record_stream(stream) || stream == PENDING_STREAM
}

fn is_audit(stream: &str) -> bool {
    stream == AUDIT_STREAM
}

fn is_intake(stream: &str) -> bool {
    stream == INTAKE_STREAM
}

fn none_of(low: &[String], is_needed: fn(&str) -> bool, limit: &str) -> Result<(), QueueError> {
    match low.iter().find(|low| is_needed(low)) {
        None => Ok(()),
        Some(stream) => Err(QueueError::Full {
            stream: stream.clone(),
            limit: limit.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use medfleet_queue::JOBS_STREAM;

    use super::*;

    #[test]
    fn who_comes_right_after_finds_no_room_and_later_one_tries() {
        let room = Room::default();
        let check = |millis: i64, is_full: bool| {
            let found = room.check(UnixMillis(millis), Class::Stat);
            let is_right = match &found {
                Ok(()) => !is_full,
                Err(QueueError::Full { stream, .. }) => is_full && stream == "intake",
                Err(_) => false,
            };
            assert!(is_right, "{millis}: {found:?}");
        };
        check(5_000, false);
        let away = QueueError::unavailable("publish");
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

    /// A stream with room for 1,600 bytes.
    fn used(stream: &str, bytes: u64) -> StreamUsage {
        StreamUsage {
            stream: stream.to_owned(),
            messages: 1,
            bytes,
            last_sequence: 1,
            bytes_max: Some(1_600),
            messages_max: None,
        }
    }

    #[test]
    fn the_intakes_reserve_is_for_stat() {
        let room = Room::default();
        let check = |usage: StreamUsage, is_for_all: bool| {
            room.look(std::slice::from_ref(&usage));
            for class in Class::ALL {
                let found = room.check(UnixMillis(0), *class).is_ok();
                let expected = is_for_all || *class == Class::Stat;
                assert_eq!(found, expected, "{class}, {usage:?}");
            }
            // What has its record may wait for release already.
            assert!(room.check_again(UnixMillis(0)).is_ok());
            let again = room.check_intake(Class::Bulk).is_ok();
            assert_eq!(again, is_for_all, "{usage:?}");
        };
        check(used(INTAKE_STREAM, 1_499), true);
        check(used(INTAKE_STREAM, 1_500), false);
        let of_messages = |messages| StreamUsage {
            messages,
            messages_max: Some(32),
            ..used(INTAKE_STREAM, 0)
        };
        check(of_messages(29), true);
        check(of_messages(30), false);
        let check = |usage: StreamUsage, is_for_all: bool| {
            room.look(std::slice::from_ref(&usage));
            assert_eq!(room.check_unbounded().is_ok(), is_for_all, "{usage:?}");
        };
        check(used(INTAKE_STREAM, 1_549), true);
        check(used(INTAKE_STREAM, 1_550), false);
        check(of_messages(30), true);
        check(of_messages(31), false);
        check(used(AUDIT_STREAM, 1_600), true);
        // The stages have intakes of their own, which submits do not write to.
        check(used("INTAKE_ENCODE", 1_600), true);
        assert!(room.check(UnixMillis(0), Class::Bulk).is_ok());
    }

    #[test]
    fn the_reserve_is_not_for_submits_nor_the_audits_for_reads_nor_half_of_that_for_cancels() {
        let room = Room::default();
        let now = UnixMillis(5_000);
        let check = |stream: &str, bytes: u64, expected: [bool; 4]| {
            room.look(&[used(stream, bytes)]);
            let found = [
                room.check(now, Class::Stat),
                room.check_again(now),
                room.check_audit(),
                room.check_act(),
            ];
            assert_eq!(
                found.map(|found| found.is_ok()),
                expected,
                "{stream}, {bytes}"
            );
        };
        check(AUDIT_STREAM, 1_550, [false; 4]);
        check(AUDIT_STREAM, 1_549, [false, false, false, true]);
        check(AUDIT_STREAM, 1_500, [false, false, false, true]);
        check(AUDIT_STREAM, 1_499, [true; 4]);
        check(JOBS_STREAM, 1_600, [false, true, true, true]);
        check(JOBS_STREAM, 1_500, [false, true, true, true]);
        check("KV_JOBS_3_OF_8", 1_500, [false, true, true, true]);
        check(PENDING_STREAM, 1_500, [false, true, true, true]);
        // A full one stops nothing, and a store has limits of its own.
        check("EVENTS", 1_600, [true; 4]);
        check("OBJ_blobs", 1_600, [true; 4]);
    }
}
