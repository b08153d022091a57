//! The wall clock of one machine: a little off from the beginning, plus the jumps since. Timers do not depend on it. The queue's
//! waits do: nats-server stores the time of day of a delivery or an entry and compares it with the clock later.

use std::cell::Cell;

use medfleet_core::UnixMillis;

use super::timeline::{Timeline, date};

/// How far any clock is off before it jumps, in milliseconds.
const SKEW_MAX: u64 = 2_000;
/// How far jumps take a clock from the right time, in milliseconds.
const OFF_MAX: i64 = 3_600_000;
/// How far the queue's clock goes back at once. What it gave out just before is out for so much longer: the run waits for it.
const QUEUE_BACK_MAX: u64 = 30_000;

#[derive(Debug)]
pub(super) struct WallClock {
    /// Milliseconds; less than none when it is behind.
    ahead: Cell<i64>,
    /// The most that it ever was ahead.
    most: Cell<i64>,
    /// The least.
    least: Cell<i64>,
}

impl WallClock {
    pub(super) fn new(timeline: &Timeline) -> Self {
        let ahead = timeline.about(SKEW_MAX);
        Self {
            ahead: Cell::new(ahead),
            most: Cell::new(ahead),
            least: Cell::new(ahead),
        }
    }

    /// What it shows at a moment of the timeline.
    pub(super) fn time(&self, now: u64) -> UnixMillis {
        UnixMillis(date(now).0.saturating_add(self.ahead.get()))
    }

    /// No earlier moment has shown a later time.
    pub(super) fn time_at_most(&self, now: u64) -> UnixMillis {
        UnixMillis(date(now).0.saturating_add(self.most.get()))
    }

    /// Whether this clock can have shown `time` at about this moment of the timeline, within a tolerance of milliseconds.
    pub(super) fn may_have_shown(&self, time: UnixMillis, now: u64, give: i64) -> bool {
        let ahead = time.0.saturating_sub(date(now).0);
        (self.least.get() - give..=self.most.get() + give).contains(&ahead)
    }

    /// Sets it forward by so many milliseconds, or back.
    pub(super) fn jump(&self, by: i64) {
        let ahead = self.ahead.get().saturating_add(by);
        let ahead = ahead.clamp(-OFF_MAX, OFF_MAX);
        self.ahead.set(ahead);
        self.most.set(self.most.get().max(ahead));
        self.least.set(self.least.get().min(ahead));
    }
}

/// How far a clock jumps: by seconds, by minutes, or by up to an hour.
pub(super) fn leap(timeline: &Timeline) -> i64 {
    let leap = match timeline.between(0, 2) {
        0 => timeline.between(1_000, 10_000),
        1 => timeline.between(10_000, 600_000),
        _ => timeline.between(600_000, OFF_MAX.unsigned_abs()),
    };
    0_i64.saturating_add_unsigned(leap)
}

/// How far the queue's clock jumps back.
pub(super) fn leap_back_of_queue(timeline: &Timeline) -> i64 {
    0_i64.saturating_sub_unsigned(timeline.between(1_000, QUEUE_BACK_MAX))
}
